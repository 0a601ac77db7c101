from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sfuda_bench.frames import write_parquet
from sfuda_bench.report.plain import to_csv, to_latex, to_markdown
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.thresholds import best_threshold, threshold_table

REAL = ("drishti_gs", "rim_one_r3")
CURVES = {
    "source_only": {0.25: 0.80, 0.5: 0.70, 0.75: 0.50},
    "cpr_cbam": {0.25: 0.78, 0.5: 0.80, 0.75: 0.70},
    "target_supervised": {0.25: 0.10, 0.5: 0.20, 0.75: 0.95},
}


def add_curves(out: Path, curves: Mapping[str, Any], shuffle: int | None = None) -> None:
    """Give the cells of the real pair a curve; the source model's weights stay as they were."""
    for path in out.glob("cells/*/drishti_gs-*/*/cell.json"):
        cell = json.loads(path.read_text("utf-8"))
        changed = "source" if cell["method"] == "source_only" else cell["method"]
        cell |= {"source_model_sha256": "source", "adapted_model_sha256": changed}
        path.write_text(json.dumps(cell), "utf-8")
        if cell["method"] not in curves:
            continue
        rows = [
            {"image": image, "structure": structure, "threshold": threshold, "dice": dice}
            for image in ("image0", "image1")
            for structure in ("cup", "disc")
            for threshold, dice in curves[cell["method"]].items()
        ]
        frame = pd.DataFrame(rows)
        if shuffle is not None:
            frame = frame.sample(frac=1.0, random_state=shuffle)
        write_parquet(frame, path.parent / "thresholds.parquet")
        record = {"ece": {"cup": 0.05, "disc": 0.01}}
        (path.parent / "thresholds.json").write_text(json.dumps(record), "utf-8")


def test_the_best_threshold_is_common_and_a_tie_goes_to_the_middle() -> None:
    assert best_threshold([CURVES["source_only"], CURVES["cpr_cbam"]]) == 0.25
    assert best_threshold([{0.25: 1.0, 0.5: 1.0, 0.75: 1.0}]) == 0.5


def test_the_gain_left_is_taken_at_the_common_threshold(make_store: Callable[..., Any]) -> None:
    """At 0.5 the method gains 10 points, at the best common threshold it loses 2."""
    store = make_store()
    add_curves(store.out, CURVES)
    table = threshold_table(read_scope(store.out))
    assert table is not None
    keys = [column.key for column in table.columns]
    rows = {row[:3]: dict(zip(keys, row, strict=True)) for row in table.rows}
    row = rows["drishti_gs → rim_one_r3", "cup", "cpr_cbam"]
    assert row["dice_at_0.5"] == pytest.approx(80)
    assert row["ece_percent"] == pytest.approx(5)
    assert row["own_best_threshold"] == 0.5
    assert row["common_threshold"] == 0.25  # the supervised row has no say
    assert row["dice_at_common"] == pytest.approx(78)
    assert row["gain_at_0.5"] == pytest.approx(10)
    assert row["gain_at_0.75"] == pytest.approx(20)
    assert row["gain_left"] == pytest.approx(-2)
    assert rows["drishti_gs → rim_one_r3", "cup", "Source only"]["gain_left"] is None
    assert rows["syn_a → syn_b §", "cup", "cpr_cbam"]["dice_at_0.5"] is None
    assert "-2.0" in to_markdown(table) and r"\toprule" in to_latex(table)


def test_shuffled_rows_change_no_byte(make_store: Callable[..., Any]) -> None:
    texts = set()
    for name, shuffle in (("a", None), ("b", 3)):
        store = make_store(name, shuffle)
        add_curves(store.out, CURVES, shuffle)
        table = threshold_table(read_scope(store.out))
        assert table is not None
        texts.add(to_csv(table))
    assert len(texts) == 1


def test_a_store_without_curves_has_no_table(make_store: Callable[..., Any]) -> None:
    assert threshold_table(read_scope(make_store().out)) is None

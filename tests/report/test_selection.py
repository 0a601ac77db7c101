from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from sfuda_bench.frames import read_parquet, write_parquet
from sfuda_bench.report.plain import to_csv
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.selection import selection_table

REAL = ("drishti_gs", "rim_one_r3")
SCORES = {
    "dice_cup": (0.70, 0.80),
    "dice_disc": (0.90, 0.90),
    "asd_cup": (1.0, 1.0),
    "asd_disc": (1.0, 1.0),
}


def tracked(store: Any, shuffle: int | None = None) -> Any:
    """One method whose average epoch is 2 points worse than the last, the oracle's 6 better."""
    for seed in (0, 1):
        folder = store.add("cpr_cbam", REAL, seed, SCORES, epochs=20)
        path = folder / "cases-standard.parquet"
        last = read_parquet(path)
        parts = [last]
        for name, change in (("average-last-10", 0), ("average-last-5", -0.02), ("oracle", 0.06)):
            parts.append(last.assign(selection=name, dice=last["dice"] + change))
        cases = pd.concat(parts)
        if shuffle is not None:
            cases = cases.sample(frac=1.0, random_state=shuffle)
        write_parquet(cases, path)
        store.add("source_only", REAL, seed, SCORES, epochs=0)
    return store


def lines(table: Any) -> dict[str, dict[str, Any]]:
    """Return the table's lines by selection."""
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    return {row["selection"]: row for row in rows}


def test_regret_is_measured_against_the_oracle(store: Any) -> None:
    table = selection_table(read_scope(tracked(store).out), "standard")
    assert table is not None
    found = lines(table)
    assert list(found) == ["last", "average-last-5", "average-last-10", "oracle †"]
    # What is not trained has no epoch to select.
    assert {row["method"] for row in found.values()} == {"cpr_cbam"}
    assert found["last"]["dice_cup"] == pytest.approx(75)
    assert found["average-last-5"]["dice_avg"] == pytest.approx(80.5)
    assert found["last"]["regret"] == pytest.approx(6)
    assert found["average-last-5"]["regret"] == pytest.approx(8)
    assert found["oracle †"]["regret"] is None


def test_any_number_of_validators_adds_lines_and_no_column(store: Any) -> None:
    """The primary selection leads the label-free ones; chosen epochs of all runs are shown."""
    names = [f"label-free:{name}" for name in ("entropy", "primary", *map(str, range(14)))]
    for seed in (0, 1):
        folder = store.add("cpr_cbam", REAL, seed, SCORES, epochs=20)
        path = folder / "cases-standard.parquet"
        last = read_parquet(path)
        parts = [last.assign(selection=name) for name in ("last", *names, "oracle")]
        write_parquet(pd.concat(parts), path)
        chosen = {"label-free:primary": 3 + seed, "label-free:entropy": 0}
        curve = [last.assign(epoch=epoch, dice=0.5 + 0.1 * (epoch == 7)) for epoch in (0, 7, 8)]
        columns = ["epoch", "structure", "image", "dice"]
        write_parquet(pd.concat(curve)[columns], folder / "epochs-standard.parquet")
        (folder / "selections.json").write_text(json.dumps(chosen), "utf-8")
    table = selection_table(read_scope(store.out), "standard")
    assert table is not None
    assert len(table.columns) == 8
    found = lines(table)
    assert len(found) == 18
    assert list(found)[:2] == ["last", "label-free:primary"]
    assert list(found)[-1] == "oracle †"
    assert found["last"]["epoch"] == "20"
    assert found["label-free:primary"]["epoch"] == "3, 4"
    assert found["label-free:entropy"]["epoch"] == "0"
    assert found["label-free:3"]["epoch"] is None
    assert found["oracle †"]["epoch"] == "7"


def test_shuffled_rows_change_no_byte(tmp_path: Any, make_store: Callable[..., Any]) -> None:
    kind = type(make_store())
    texts = set()
    for name, shuffle in (("a", None), ("b", 1)):
        table = selection_table(read_scope(tracked(kind(tmp_path / name), shuffle).out), "standard")
        assert table is not None
        texts.add(to_csv(table))
    assert len(texts) == 1


def test_one_selection_is_no_choice(make_store: Callable[..., Any]) -> None:
    assert selection_table(read_scope(make_store().out), "standard") is None

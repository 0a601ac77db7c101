from __future__ import annotations

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


def test_regret_is_measured_against_the_oracle(store: Any) -> None:
    table = selection_table(read_scope(tracked(store).out), "standard")
    assert table is not None
    keys = [column.key for column in table.columns]
    (row,) = (dict(zip(keys, row, strict=True)) for row in table.rows)
    assert row["method"] == "cpr_cbam"  # what is not trained has no epoch to select
    assert row["dice_cup_last"] == pytest.approx(75)
    assert row["dice_avg_average-last-5"] == pytest.approx(80.5)
    assert row["regret_last"] == pytest.approx(6)
    assert row["regret_average-last-5"] == pytest.approx(8)
    assert "regret_oracle" not in keys
    order = [key for key in keys if key.startswith("dice_avg_")]
    assert order == [
        f"dice_avg_{n}" for n in ("last", "average-last-5", "average-last-10", "oracle")
    ]


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

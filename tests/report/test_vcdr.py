from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sfuda_bench.frames import write_parquet
from sfuda_bench.report.plain import to_csv, to_markdown
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.vcdr import agreement, vcdr_table

NAN = math.nan


def test_the_numbers_are_those_computed_by_hand() -> None:
    found = agreement([0.5, 0.7, 0.65, 0.4], [0.4, 0.55, 0.7, 0.4])
    # Errors: 0.1, 0.15, -0.05, 0. The second eye alone is referred wrongly, and only its error
    # exceeds 0.1: an error of exactly 0.1 does not.
    assert found.eyes == 4
    assert found.undefined == 0
    assert found.mae == pytest.approx(0.075)
    assert found.bias == pytest.approx(0.05)
    std = math.sqrt((0.05**2 + 0.1**2 + 0.1**2 + 0.05**2) / 3)
    assert found.limit_low == pytest.approx(0.05 - 1.96 * std)
    assert found.limit_high == pytest.approx(0.05 + 1.96 * std)
    assert found.large_error_percent == 25
    assert found.referral_agreement_percent == 75


def test_referral_starts_at_exactly_the_ratio() -> None:
    assert agreement([60 / 100], [3 / 5]).referral_agreement_percent == 100
    assert agreement([0.6], [0.59]).referral_agreement_percent == 0


def test_an_eye_without_a_predicted_disc_is_an_error_but_has_no_size() -> None:
    found = agreement([NAN, 0.5], [0.5, 0.5])
    assert (found.eyes, found.undefined, found.mae) == (2, 1, 0)
    assert found.large_error_percent == 50
    assert found.referral_agreement_percent == 50
    assert found.limit_low is None


def test_an_eye_without_a_true_disc_is_left_out() -> None:
    assert agreement([0.5, 0.5], [0.5, NAN]).eyes == 1
    assert agreement([0.5], [NAN]).mae is None


def add_eyes(out: Path, profile: str = "standard", shuffle: int | None = None) -> None:
    """Give every cell two eyes with an error of 0.2 and 0."""
    for path in out.glob("cells/*/*/*/cell.json"):
        cell = json.loads(path.read_text("utf-8"))
        eyes = pd.DataFrame(
            {
                "selection": "last",
                "image": ["image0", "image1"],
                "vcdr_prediction": [0.7, 0.5],
                "vcdr_truth": [0.5, 0.5],
                "vcdr_error": [0.2, 0.0],
            }
        )
        if shuffle is not None:
            eyes = eyes.sample(frac=1.0, random_state=shuffle)
        assert cell["key"]
        write_parquet(eyes, path.parent / f"eyes-{profile}.parquet")


def test_a_missing_cell_gives_a_dash_and_a_finished_row_its_numbers(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    add_eyes(store.out)
    table = vcdr_table(read_scope(store.out), "standard")
    assert table is not None
    rows: dict[Any, Any] = {(row[0], row[1]): row for row in table.rows}
    full = rows["drishti_gs → rim_one_r3", "cpr_cbam"]
    assert full[2:6] == (4, 0, pytest.approx(0.1), pytest.approx(0.1))
    failed = rows["drishti_gs → rim_one_r3", "Tent (online)"]
    assert failed[2:] == (None,) * 8
    text = to_markdown(table)
    assert "| Tent (online) | \N{EN DASH} |" in text
    assert "| Target supervised † |" in text and "| syn_a → syn_b § |" in text
    assert "†" not in to_csv(table) and "§" not in to_csv(table)
    # The bars of an absolute value must not end a cell.
    widths = {line.replace(r"\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert widths == {11}


def test_shuffled_rows_change_no_byte(make_store: Callable[..., Any]) -> None:
    texts = set()
    for name, shuffle in (("a", None), ("b", 1), ("c", 2)):
        store = make_store(name, shuffle)
        add_eyes(store.out, shuffle=shuffle)
        table = vcdr_table(read_scope(store.out), "standard")
        assert table is not None
        texts.add(to_csv(table))
    assert len(texts) == 1


def test_a_store_without_eyes_has_no_table(make_store: Callable[..., Any]) -> None:
    assert vcdr_table(read_scope(make_store().out), "standard") is None

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.report.records import (
    check_store,
    read_cases,
    read_cells,
    read_plan,
    read_scoring,
)

Make = Callable[..., Any]


def test_a_folder_without_store_is_a_usage_error_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"no store at {tmp_path}") as caught:
        check_store(tmp_path)
    assert "--out" in (caught.value.hint or "")


def test_a_store_of_another_schema_has_exit_code_7(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"schema": 99}')

    with pytest.raises(StoreSchemaError, match="99") as caught:
        check_store(tmp_path)
    assert caught.value.exit_code == 7


def test_cells_are_read_with_their_fields_and_unfinished_folders_are_none(make_store: Make) -> None:
    store = make_store()
    (store.out / "cells" / "cpr_cbam" / "a-b" / "0123456789abcdef").mkdir(parents=True)

    cells = read_cells(store.out)

    assert len(cells) == 13
    assert {"source_only", "cpr_cbam", "tent", "target_supervised"} == {c.method for c in cells}
    assert all(cell.key.startswith(cell.folder.name) for cell in cells)
    assert all(["standard"] == cell.profiles for cell in cells)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"key": "x"}', '{"schema": 2}'])
def test_a_damaged_cell_is_named_with_what_helps(make_store: Make, text: str) -> None:
    store = make_store()
    damaged = read_cells(store.out)[3].folder / "cell.json"
    damaged.write_text(text)

    with pytest.raises(StoreSchemaError) as caught:
        read_cells(store.out)
    assert str(damaged) in caught.value.message
    assert "delete" in (caught.value.hint or "")
    assert str(damaged.parent) in (caught.value.hint or "")


def test_a_damaged_parquet_is_named_with_what_helps(make_store: Make) -> None:
    cells = read_cells(make_store().out)
    damaged = cells[0].folder / "cases-standard.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])

    with pytest.raises(StoreSchemaError, match=r"cases-standard\.parquet") as caught:
        read_cases(cells, "standard")
    assert str(damaged.parent) in (caught.value.hint or "")


def test_cases_name_their_cell_and_unscored_cells_add_none(make_store: Make) -> None:
    store = make_store()
    cells = read_cells(store.out)

    cases = read_cases(cells, "standard")

    assert len(cells) * 4 == len(cases)
    assert {cell.key for cell in cells} == set(cases["key"])
    assert read_cases(cells, "cpr-2023").empty


def test_cells_scored_in_two_ways_are_refused(make_store: Make) -> None:
    store = make_store()
    cells = read_cells(store.out)
    path = cells[0].folder / "scores-standard.json"
    record = json.loads(path.read_text())
    record["profile_fields"]["threshold"] = 0.6
    path.write_text(json.dumps(record))

    with pytest.raises(UsageError, match="threshold") as caught:
        read_scoring(cells, "standard")
    assert "rescore --profile standard" in (caught.value.hint or "")


def test_a_missing_plan_is_none_and_a_damaged_one_is_named(make_store: Make) -> None:
    store = make_store()
    plan = store.out / "plans" / "last.json"
    assert len(read_plan(store.out) or []) == 16

    plan.write_text('{"cells": [{"key": "x"}]}')
    with pytest.raises(StoreSchemaError, match=r"last\.json"):
        read_plan(store.out)

    plan.unlink()
    assert read_plan(store.out) is None

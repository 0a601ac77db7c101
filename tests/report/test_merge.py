"""Two stores become one that reports as if one run had made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.errors import CheckFailed, StoreSchemaError, UsageError
from sfuda_bench.report.merge import merge
from sfuda_bench.report.records import read_cells
from sfuda_bench.report.tables import store_tables, write_tables
from tests.report.rich_store import RichStore

PAIR = ("drishti_gs", "rim_one_r3")
SMALL: dict[str, Any] = {"pairs": (PAIR,), "images": 5, "profiles": ("standard",), "seeds": 1}


def store(folder: Path, *methods: str) -> Path:
    return RichStore(folder, methods=methods, **SMALL).out


def test_a_merged_store_has_the_tables_of_one_run(tmp_path: Path) -> None:
    whole = store(tmp_path / "whole", "source_only", "bn_adapt", "cpr")
    first = store(tmp_path / "a", "source_only", "bn_adapt")
    second = store(tmp_path / "b", "source_only", "cpr")
    done = merge([first, second], tmp_path / "joined")
    assert (done.copied, done.shared, done.different) == (3, 1, ())
    (expected,), (found,) = store_tables(whole), store_tables(tmp_path / "joined")
    assert found.blocks == expected.blocks
    assert write_tables(tmp_path / "joined")


def test_merging_again_copies_nothing(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a", "source_only"), store(tmp_path / "b", "cpr")
    merge([first, second], tmp_path / "joined")
    assert merge([second], tmp_path / "joined").copied == 0
    assert len(read_cells(tmp_path / "joined")) == 2


def test_a_cell_with_two_results_is_named_and_the_first_stays(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a", "cpr"), store(tmp_path / "b", "cpr")
    (path,) = second.glob("cells/*/*/*/cell.json")
    change(path, adapted_model_sha256="another")
    done = merge([first, second], tmp_path / "joined")
    assert done.different == ("cpr drishti_gs:rim_one_r3 seed 0",)
    (kept,) = read_cells(tmp_path / "joined")
    assert kept.record["adapted_model_sha256"] != "another"


def test_other_images_of_a_domain_are_refused(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a", "source_only"), store(tmp_path / "b", "cpr")
    for number, folder in enumerate((first, second)):
        for path in folder.glob("cells/*/*/*/cell.json"):
            change(path, digests={"target_test": f"digest {number}"})
    with pytest.raises(CheckFailed, match="test images of rim_one_r3 differ"):
        merge([first, second], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_another_version_of_a_profile_is_refused(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a", "source_only"), store(tmp_path / "b", "cpr")
    for path in second.glob("cells/*/*/*/scores-standard.json"):
        change(path, scorer_version=99)
    with pytest.raises(UsageError, match="applied in two ways"):
        merge([first, second], tmp_path / "joined")


def test_another_schema_and_a_single_store_are_refused(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a", "source_only"), store(tmp_path / "b", "cpr")
    with pytest.raises(UsageError, match="at least two"):
        merge([first], tmp_path / "joined")
    change(second / "store.json", schema=99)
    with pytest.raises(StoreSchemaError, match="schema 99"):
        merge([first, second], tmp_path / "joined")


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

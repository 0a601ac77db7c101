"""Which pairs of a published table can be run, what is missing, and what may stand in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfuda_bench import cli
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.report.reproduce import measured_table, published_values, reproduce
from sfuda_bench.report.reproduce_data import arrange
from sfuda_bench.report.scope import read_scope

TABLE1 = [("drishti_gs", "rim_one_r3"), ("refuge_val", "drishti_gs")]


def root_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name / "train").mkdir(parents=True)
    return folder


def test_the_pairs_of_table_1_are_those_of_the_report() -> None:
    assert list(dict.fromkeys(value.pair for value in published_values("table1"))) == TABLE1


def test_with_every_domain_every_pair_is_run(tmp_path: Path) -> None:
    found = arrange(TABLE1, root_of(tmp_path, "drishti_gs", "Domain2", "Domain4", "other"), None)
    assert [str(pair) for pair in found.pairs] == [":".join(pair) for pair in TABLE1]
    assert (found.missing, found.stand_ins, found.notes) == ({}, {}, [])


def test_a_missing_domain_is_named_with_where_to_put_it(tmp_path: Path) -> None:
    found = arrange(TABLE1, root_of(tmp_path, "drishti_gs", "rim_one_r3"), None)
    assert [str(pair) for pair in found.pairs] == ["drishti_gs:rim_one_r3"]
    (note,) = found.notes
    assert note.startswith("refuge_val is missing: ")
    assert f"{tmp_path}/refuge_val/{{train,test}}/ROIs/{{image,mask}}/*.png" in note
    assert f"{tmp_path}/Domain4" in note
    assert "320 train and 80 test images" in note and "https://" in note


def test_nothing_to_run_is_a_data_error_that_offers_a_stand_in(tmp_path: Path) -> None:
    root = root_of(tmp_path, "drishti_gs", "refuge_train")
    with pytest.raises(DataError, match=r"rim_one_r3 is missing.*refuge_val is missing") as caught:
        arrange(TABLE1, root, None)
    assert caught.value.hint == "--stand-in refuge_train"


@pytest.mark.parametrize("text", ["refuge_train", "Domain3", "refuge_val=refuge_train"])
def test_a_stand_in_takes_the_place_of_the_missing_domain_of_its_family(
    tmp_path: Path, text: str
) -> None:
    found = arrange(TABLE1, root_of(tmp_path, "drishti_gs", "refuge_train"), text)
    assert [str(pair) for pair in found.pairs] == ["refuge_train:drishti_gs"]
    assert found.stand_ins == {"refuge_val": "refuge_train"}
    assert "refuge_train stands in for it" in found.notes[1]


def test_a_stand_in_that_nothing_needs_is_not_used(tmp_path: Path) -> None:
    root = root_of(tmp_path, "drishti_gs", "refuge_train", "refuge_val")
    found = arrange(TABLE1, root, "refuge_train")
    assert found.stand_ins == {}
    assert [str(pair) for pair in found.pairs] == ["refuge_val:drishti_gs"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("refuge_test", "no domain 'refuge_test' here"),
        ("mine", "not said for which domain; missing: rim_one_r3, refuge_val"),
        ("refuge_vla=mine", "the table has no domain 'refuge_vla' .*did you mean 'refuge_val'"),
        ("a=b=c", "expected DOMAIN or MISSING=DOMAIN"),
        ("=mine", "expected DOMAIN or MISSING=DOMAIN"),
        ("refuge", "ambiguous"),
    ],
)
def test_a_stand_in_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        arrange(TABLE1, root_of(tmp_path, "drishti_gs", "mine"), text)


def test_pairs_chooses_among_the_tables_pairs(tmp_path: Path) -> None:
    root = root_of(tmp_path, "drishti_gs", "rim_one_r3", "refuge_val")
    found = arrange(TABLE1, root, None, "*:drishti_gs")
    assert [str(pair) for pair in found.pairs] == ["refuge_val:drishti_gs"]
    with pytest.raises(DataError, match="names none of them"):
        arrange(TABLE1, root, None, "drishti_gs:refuge_val")


# -- beside the published numbers ---------------------------------------------------------------


def test_a_stand_in_is_shown_and_never_compared(make_store: Any) -> None:
    """The filled store has drishti_gs -> rim_one_r3; here it stands for another pair."""
    scope = read_scope(make_store().out)
    stand_ins = {"refuge_val": "drishti_gs", "drishti_gs": "rim_one_r3"}
    values = [v for v in published_values("table1") if v.pair == TABLE1[1]]
    found = reproduce(scope, "t", {"t": values}, stand_ins)
    assert {one.verdict for one in found} == {"not comparable"}
    assert all("in place of refuge_val → drishti_gs" in one.reasons[0] for one in found)
    assert {one.published.pair for one in found} == {TABLE1[1]}
    table = measured_table(scope, "t", values, stand_ins)
    assert all("stand-in for refuge_val, drishti_gs" in str(row[0]) for row in table.rows)


def test_measured_numbers_stand_beside_published_ones(make_store: Any) -> None:
    """Also those of methods for which nothing was published."""
    from dataclasses import replace

    scope = read_scope(make_store().out)
    values = [replace(v, profile="standard") for v in published_values("table1")]
    table = measured_table(scope, "table1", values)
    keys = [column.key for column in table.columns]
    rows = [dict(zip(keys, row, strict=True)) for row in table.rows]
    assert {row["pair"] for row in rows} == {"drishti_gs → rim_one_r3"}
    cbam = next(r for r in rows if r["method"] == "cpr_cbam" and r["metric"] == "dice")
    assert cbam["cup"] == pytest.approx(80)  # 85 and 75 on the two images
    assert cbam["published_cup"] == 73.84
    without = [row for row in rows if row["published_cup"] is None]
    assert any(row["cup"] is not None for row in without)


# -- the command --------------------------------------------------------------------------------


def call(*arguments: object) -> int:
    return cli.main(["reproduce", *map(str, arguments)])


def test_the_command_says_what_is_missing_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = root_of(tmp_path / "data", "drishti_gs", "refuge_train")
    out = tmp_path / "out"
    assert call("table1", "--data-root", root, "--out", out) == 3
    error = capsys.readouterr().err
    assert "rim_one_r3 is missing: put it at" in error
    assert "hint: --stand-in refuge_train" in error
    assert not out.exists()


def test_a_data_root_of_the_environment_alone_runs_nothing(
    make_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFUDA_DATA_ROOT", str(tmp_path / "nowhere"))
    assert call("table1", "--out", make_store().out, "--json") == 0


@pytest.mark.slow
def test_table_1_with_a_stand_in_is_run_and_printed(
    tmp_path: Path, trained: Any, plugin_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json
    import shutil

    root = tmp_path / "data"
    for name, toy in (("drishti_gs", "toy_a"), ("refuge_train", "toy_b")):
        shutil.copytree(trained.data / toy, root / name)
    out = tmp_path / "out"
    flags = [f"--set={text}" for text in (*trained.base, "source.epochs=2", "cpr.head_batch=4")]
    shared = ("--data-root", root, "--out", out, "--stand-in", "refuge_train", "--device", "cpu",
              "--plugin", plugin_folder / "tiny.py", "--methods", "source_only,cpr",
              "--preset", "official", *flags)  # fmt: skip
    assert call("table1", *shared, "--set", "cpr.refine_scale=1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["stand_ins"] == {"refuge_val": "refuge_train"}
    assert set(document["missing"]) == {"rim_one_r3", "refuge_val"}
    assert document["run"] == {
        "cells": 2, "computed": 2, "reused": 0, "failed": 0, "not_run": 0,
        "failures": [], "out": str(out),
    }  # fmt: skip
    cell = next(out.glob("cells/cpr/*/*/cell.json"))
    # The stand-in has the iterations of the pair that it stands for.
    assert json.loads(cell.read_text())["config"]["iterations"] == 32
    assert call("table1", *shared, "--set", "cpr.refine_scale=1") == 0
    text = capsys.readouterr().out
    assert "refuge_train → drishti_gs (stand-in for refuge_val)" in text
    assert "83.76" in text and "not comparable" in text

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench import cli
from sfuda_bench.errors import UsageError
from sfuda_bench.report.export import challenger_csv, write_bundle
from sfuda_bench.report.tables import write_tables


def test_challenger_gets_one_mean_per_task_case_and_algorithm(
    make_store: Callable[..., Any],
) -> None:
    rows = list(csv.DictReader(io.StringIO(challenger_csv(make_store().out))))
    assert list(rows[0]) == ["Task", "TestCase", "Algorithm", "MetricValue"]
    values = {(r["Task"], r["TestCase"], r["Algorithm"]): r["MetricValue"] for r in rows}
    assert len(values) == len(rows) == 2 * 2 * 2 * 3
    # Seeds 0.8 and 0.9 on the first image.
    assert values["drishti_gs:rim_one_r3 cup", "image0", "cpr_cbam"] == "0.850000"
    # A failed seed leaves no mean over an unequal set, and the oracle is no competitor.
    assert values["drishti_gs:rim_one_r3 cup", "image0", "Tent (online)"] == "NA"
    assert not any(algorithm == "Target supervised" for _, _, algorithm in values)


def test_distances_are_exported_in_pixels(make_store: Callable[..., Any]) -> None:
    text = challenger_csv(make_store().out, metric="asd")
    assert "drishti_gs:rim_one_r3 cup,image1,cpr_cbam,10.000000" in text


def test_shuffled_rows_change_no_byte(make_store: Callable[..., Any]) -> None:
    shuffles = (("a", None), ("b", 1))
    assert len({challenger_csv(make_store(name, shuffle).out) for name, shuffle in shuffles}) == 1


def test_what_is_not_there_is_named(make_store: Callable[..., Any], tmp_path: Path) -> None:
    store = make_store()
    with pytest.raises(UsageError, match="cpr-2023"):
        challenger_csv(store.out, profile="cpr-2023")
    with pytest.raises(UsageError, match="--metric nsd"):
        challenger_csv(store.out, metric="nsd")
    with pytest.raises(UsageError, match="no store"):
        write_bundle(tmp_path / "nowhere", tmp_path / "b.zip")


def test_an_unpacked_bundle_renders_the_same_tables(
    make_store: Callable[..., Any], tmp_path: Path
) -> None:
    store = make_store()
    for name in ("predictions/aa-cup.png", "model.safetensors", "log.txt"):
        cell = next(store.out.glob("cells/*/*/*"))
        (cell / name).parent.mkdir(exist_ok=True)
        (cell / name).write_bytes(b"x")
    write_bundle(store.out, tmp_path / "bundle.zip")
    with zipfile.ZipFile(tmp_path / "bundle.zip") as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "copy")
    assert {Path(name).suffix for name in names} == {".json", ".parquet"}
    here, there = write_tables(store.out), write_tables(tmp_path / "copy")
    assert [path.read_bytes() for path in here] == [path.read_bytes() for path in there]


def test_equal_stores_give_equal_bundles(make_store: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(make_store(name).out, tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_command_writes_both_forms(
    make_store: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(make_store().out)
    for kind, name in (("challenger", "c.csv"), ("bundle", "b.zip")):
        to = tmp_path / name
        arguments = ["export", "--out", out, "--format", kind, "--to", str(to), "--json"]
        assert cli.main(arguments) == 0
        assert json.loads(capsys.readouterr().out)["file"] == str(to)
        assert to.stat().st_size > 100

"""Curves over severity: which pairs make one, what the table says, and what is drawn."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfuda_bench.frames import read_parquet
from sfuda_bench.report import figures, style
from sfuda_bench.report.figures_data import load
from sfuda_bench.report.figures_severity import families, severity_curves
from sfuda_bench.report.plain import to_csv, to_markdown
from sfuda_bench.report.scope import Scope, read_scope
from sfuda_bench.report.severity import SeverityScores, find_curves, on_curves, severity_table
from tests.report.rich_store import RichStore

A = "synthetic_a"
BLUR = [(A, f"{A}@0"), (A, f"{A}@blur=0.5"), (A, f"{A}@blur=1")]
STORE: dict[str, Any] = {
    "methods": ("source_only", "entropy_min", "cpr"),
    "pairs": (*BLUR, ("drishti_gs", "rim_one_r3")),
    "images": 6,
    "profiles": ("standard",),
    "lost": (),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RichStore(tmp_path_factory.mktemp("severity") / "store", **STORE).out


@pytest.fixture(scope="module")
def scope(out: Path) -> Scope:
    return read_scope(out)


def test_a_curve_has_one_knob_one_source_and_the_base_domain_at_its_left() -> None:
    (curve,) = find_curves([*reversed(BLUR), ("drishti_gs", "rim_one_r3")])
    assert (curve.source, curve.base, curve.knob, curve.fixed) == (A, A, "blur", "")
    assert [severity for severity, _ in curve.points] == [0, 0.5, 1]
    assert curve.points[0][1] == BLUR[0]


def test_the_base_under_its_own_name_is_severity_0_of_other_sources() -> None:
    pairs = [("clinic", A), ("clinic", f"{A}@noise=1"), ("other", A)]
    (curve,) = find_curves(pairs)
    assert curve.points == ((0.0, ("clinic", A)), (1.0, ("clinic", f"{A}@noise=1")))


def test_of_a_grid_of_two_knobs_each_level_of_the_other_gives_a_curve() -> None:
    targets = [f"{A}@0", f"{A}@blur=1", f"{A}@noise=1", f"{A}@blur=1+noise=1"]
    curves = find_curves([(A, target) for target in targets])
    assert [(c.knob, c.fixed) for c in curves] == [
        ("blur", ""),
        ("blur", "noise=1"),
        ("noise", ""),
        ("noise", "blur=1"),
    ]
    assert curves[1].label == "blur (with noise=1)"


@pytest.mark.parametrize(
    "pairs",
    [
        [],
        [("drishti_gs", "rim_one_r3"), (A, "synthetic_b")],
        [(A, f"{A}@blur=1")],
        [(A, f"{A}@blur=1"), ("clinic", f"{A}@blur=0.5")],
        [("clinic", "me@home"), ("clinic", "me")],
    ],
)
def test_single_points_and_other_pairs_make_no_curve(pairs: list[tuple[str, str]]) -> None:
    assert find_curves(pairs) == []
    assert on_curves(pairs) == set()


def test_the_table_repeats_the_stored_scores(out: Path, scope: Scope) -> None:
    table = severity_table(scope, "standard")
    assert table is not None
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert len(rows) == 3 * 3
    assert {row["knob"] for row in rows} == {"blur"}
    means: dict[tuple[str, str], float] = {}
    for target, severity in (("@0", "0"), ("@blur=0.5", "0.5"), ("@blur=1", "1")):
        for method, label in (("source_only", "Source only"), ("cpr", "CPR")):
            paths = (out / "cells" / method / f"{A}-{A}{target}").glob("*/cases-standard.parquet")
            runs = []
            for path in paths:
                frame = read_parquet(path)
                frame = frame[frame["selection"] == "last"]
                runs.append(100 * frame.groupby("structure")["dice"].mean().mean())
            means[severity, label] = float(np.mean(runs))
            (row,) = [r for r in rows if (r["severity"], r["method"]) == (severity, label)]
            assert float(row["dice_avg"]) == pytest.approx(means[severity, label], abs=1e-5)
            assert float(row["dice_avg_low"]) == pytest.approx(min(runs), abs=1e-5)
            assert float(row["dice_avg_high"]) == pytest.approx(max(runs), abs=1e-5)
            assert row["runs"] == "2"
        gain = means[severity, "CPR"] - means[severity, "Source only"]
        (row,) = [r for r in rows if (r["severity"], r["method"]) == (severity, "CPR")]
        assert float(row["gain_avg"]) == pytest.approx(gain, abs=1e-5)


def test_synthetic_is_said_in_the_table(scope: Scope) -> None:
    table = severity_table(scope, "standard")
    assert table is not None
    text = to_markdown(table)
    assert "§ synthetic images, not of patients" in text
    assert f"{A} §" in text


def test_without_turned_knobs_there_is_no_table(tmp_path: Path) -> None:
    plain = RichStore(tmp_path / "store", **{**STORE, "pairs": (("drishti_gs", "rim_one_r3"),)})
    assert severity_table(read_scope(plain.out), "standard") is None


def test_a_row_with_a_missing_run_has_no_point_there(tmp_path: Path) -> None:
    part = RichStore(tmp_path / "store", **{**STORE, "pairs": BLUR, "lost": ("entropy_min",)})
    scores = SeverityScores(read_scope(part.out), "standard")
    counts = {row.method: len(scores.points(scores.curves[0], row)) for row in scores.rows}
    assert counts == {"source_only": 3, "entropy_min": 1, "cpr": 3}


def test_figures_show_each_part_and_replace_those_of_single_points(out: Path, scope: Scope) -> None:
    drawings = list(figures._drawings(load(out), SeverityScores(scope, "standard")))
    names = [name for name, *_ in drawings]
    drawn = [name for name in names if name.startswith("severity-")]
    assert [name.split("-")[1] for name in drawn] == ["avg", "cup", "disc"]
    assert not [name for name in names if "blur" in name]
    assert [name for name in names if name.startswith("images-") and "rim_one_r3" in name]
    for _, kind, title, caption, _ in drawings:
        if kind == "Dice over severity":
            assert "ynthetic images, not of patients" in title
            assert "ynthetic images, not of patients" in caption


def test_a_line_is_a_method_and_a_band_its_runs(out: Path, scope: Scope) -> None:
    scores = SeverityScores(scope, "standard")
    assert families(scores.curves) == [(A, A)]
    with style.figure_style():
        figure = severity_curves(scores, load(out).lines, (A, A), "cup")
        assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "blur"
    assert len(axes.lines) == len(scores.rows) == len(axes.collections)
    for line, row in zip(axes.lines, scores.rows, strict=True):
        points = scores.points(scores.curves[0], row)
        assert np.asarray(line.get_xdata()).tolist() == [0, 0.5, 1]
        heights = np.asarray(line.get_ydata()).tolist()
        assert heights == pytest.approx([point.mean("cup") for point in points])
        for point in points:
            assert min(point.means["cup"]) <= point.mean("cup") <= max(point.means["cup"])

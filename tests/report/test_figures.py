from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.frames import read_parquet, write_parquet
from sfuda_bench.report import style
from sfuda_bench.report.figures import SavedFigure, save_figures, write_figures
from sfuda_bench.report.figures_curves import adaptation_curves, threshold_curves
from sfuda_bench.report.figures_data import FigureData, FigurePair, load
from sfuda_bench.report.figures_ranking import critical_difference_figure, rank_stability
from sfuda_bench.report.figures_scores import heat_map, heat_values, image_scores, slopes
from sfuda_bench.report.figures_vcdr import bland_altman
from tests.report.rich_store import RichStore

PAIR = ("drishti_gs", "rim_one_r3")
SYNTHETIC_PAIR = ("drishti_gs", "synthetic_a")
SMALL: dict[str, Any] = {
    "methods": ("source_only", "entropy_min", "cpr", "upper"),
    "pairs": (PAIR, SYNTHETIC_PAIR),
    "images": 5,
    "profiles": ("standard",),
}

TINY: dict[str, Any] = {
    **SMALL,
    "methods": ("source_only", "bn_adapt", "cpr"),
    "pairs": (SYNTHETIC_PAIR,),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RichStore(tmp_path_factory.mktemp("figures") / "store", **SMALL).out


@pytest.fixture(scope="module")
def data(out: Path) -> FigureData:
    return load(out)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[SavedFigure]:
    return save_figures(RichStore(tmp_path_factory.mktemp("saved") / "store", **TINY).out)


@pytest.fixture(autouse=True)
def drawn_in_style() -> Iterator[None]:
    with style.figure_style():
        yield


def titles(figure: Any) -> str:
    return str(figure.get_suptitle()).replace("\n", " ")


# -- numbers ----------------------------------------------------------------------------------


def test_a_heat_map_holds_the_mean_over_images_of_means_over_seeds(
    out: Path, data: FigureData
) -> None:
    row = next(i for i, line in enumerate(data.lines) if line.label == "CPR")
    cells = sorted((out / "cells/cpr/drishti_gs-rim_one_r3").glob("*/cases-standard.parquet"))
    assert len(cells) == 2
    frames = [read_parquet(path).query("selection == 'last'") for path in cells]
    cups = [frame[frame["structure"] == "cup"]["dice"].mean() for frame in frames]
    assert heat_values(data, "cup")[row, 0] == pytest.approx(100 * np.mean(cups))


def test_a_row_that_lacks_a_run_has_no_entry_and_no_average(data: FigureData) -> None:
    """Its other seed is stored, but a mean over it alone would be of something else."""
    row = next(i for i, line in enumerate(data.lines) if line.label == "Entropy minimisation")
    values = heat_values(data, "disc")
    assert np.isnan(values[row]).all()  # one seed failed in one pair, one is missing in the other
    others = np.delete(values, row, axis=0)
    assert not np.isnan(others).any()
    assert row not in data.rows_of(data.cases, 0)


def test_the_baseline_is_the_row_whose_models_equal_their_source(data: FigureData) -> None:
    assert data.baseline is not None
    assert data.lines[data.baseline].label == "Source only"


def test_another_selection_takes_its_scores_and_marks_every_row_as_oracle(
    out: Path, data: FigureData
) -> None:
    oracle = load(out, "oracle")
    change = heat_values(oracle, "cup") - heat_values(data, "cup")
    rows = {line.label: i for i, line in enumerate(data.lines)}
    assert change[rows["CPR"], 0] == pytest.approx(1.0, abs=1e-9)
    assert change[rows["Source only"], 0] == 0  # nothing was trained: every epoch is the same
    assert all(line.oracle for line in oracle.lines)


def test_an_undefined_ratio_is_counted_and_left_out(data: FigureData) -> None:
    figure = bland_altman(data, 0)
    assert figure is not None
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert texts
    assert all("n = 4, 1 undefined" in text for text in texts)


def test_slopes_print_the_mean_change_and_the_share_made_worse(data: FigureData) -> None:
    figure = slopes(data, 0)
    assert figure is not None
    cases = data.cases[(data.cases["pair"] == 0) & (data.cases["structure"] == "cup")]
    row = next(i for i, line in enumerate(data.lines) if line.label == "CPR")
    wide = cases.pivot(index="image", columns="row", values="dice")
    change = wide[row] - wide[data.baseline]
    expected = f"mean {change.mean():+.1f}\n{100 * (change < -1).mean():.0f} % worse by > 1"
    assert expected in [axes.get_xlabel() for axes in figure.axes]


def test_selection_marks_sit_on_the_last_and_on_the_best_epoch(data: FigureData) -> None:
    figure = adaptation_curves(data, 0)
    assert figure is not None
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left").startswith("CPR\nDice"))
    marks = {str(line.get_marker()): np.asarray(line.get_xdata()).tolist() for line in panel.lines}
    assert marks["s"] == [10]
    assert marks["*"] == [5]  # 0.02 e - 0.002 e^2 is greatest at 5
    assert len(panel.patches) == 1  # the epochs of average-last-5


def test_harm_over_epochs_counts_images_that_fell_below_the_unadapted_model(
    tmp_path: Path,
) -> None:
    store = RichStore(tmp_path / "s", **{**TINY, "seeds": 1})
    (path,) = store.out.glob("cells/cpr/*/*/epochs-standard.parquet")
    frame = read_parquet(path)
    fell = (frame["epoch"] == 2) & (frame["image"] == "image0") & (frame["structure"] == "cup")
    frame.loc[fell, "dice"] = frame.loc[frame["epoch"] == 0, "dice"].iloc[0] - 0.03
    write_parquet(frame, path)
    epochs = load(store.out).epochs.set_index("epoch")
    assert epochs.loc[2, "worse_1"] == pytest.approx(100 / 10), "one of 5 images x 2 structures"
    assert epochs.loc[2, "worse_5"] == 0
    assert epochs.loc[0, "worse_1"] == 0


def test_a_threshold_curve_marks_its_best_threshold(data: FigureData) -> None:
    figure = threshold_curves(data, 0)
    assert figure is not None
    curves = data.thresholds[(data.thresholds["pair"] == 0) & (data.thresholds["row"] == 0)]
    cup = curves[curves["structure"] == "cup"]
    best = cup.nlargest(1, "dice")["threshold"].item()
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "v"]
    assert np.asarray(marks[0].get_xdata()).item() == best


# -- what is drawn ----------------------------------------------------------------------------


def test_ranks_of_resampled_images_add_up_to_one_per_method(
    data: FigureData, tmp_path: Path
) -> None:
    assert rank_stability(data, 0) is None, "a lost run leaves two methods"
    methods = ("source_only", "bn_adapt", "cpr", "upper")
    figure = rank_stability(load(RichStore(tmp_path / "s", **{**SMALL, "methods": methods}).out), 0)
    assert figure is not None
    for axes in figure.axes:
        sizes = [blobs.get_sizes().sum() for blobs in axes.collections]
        assert len(sizes) == 3, "three ranked methods, the oracle is not among them"
        assert sizes == pytest.approx([sizes[0]] * 3)


def test_a_critical_difference_needs_three_pairs_that_every_method_has(
    data: FigureData, tmp_path: Path
) -> None:
    assert critical_difference_figure(data) is None
    methods = ("source_only", "bn_adapt", "dpl", "cpr", "upper")
    wide = {"methods": methods, "images": 4, "profiles": ("standard",), "seeds": 1}
    figure = critical_difference_figure(load(RichStore(tmp_path / "wide", **wide).out))
    assert figure is not None
    texts = [text.get_text() for text in figure.axes[0].texts]
    ranks = [float(text.split("  ")[1]) for text in texts if "  " in text]
    assert len(ranks) == 4
    assert sum(ranks) == pytest.approx(4 * 2.5, abs=0.05), "mean ranks of four methods average 2.5"


def test_every_kind_of_figure_is_written_as_pdf_and_png(saved: list[SavedFigure]) -> None:
    kinds = {figure.kind for figure in saved}
    assert kinds == {
        "Overview",
        "Dice per image",
        "Change per image",
        "Stability of ranks",
        "Vertical cup-to-disc ratio",
        "Dice over the threshold",
        "Adaptation curves",
    }
    for figure in saved:
        assert [path.suffix for path in figure.paths] == [".pdf", ".png"]
        assert figure.paths[0].read_bytes().startswith(b"%PDF")
        assert figure.paths[1].read_bytes().startswith(b"\x89PNG")
        assert b"CreationDate" not in figure.paths[0].read_bytes()


def test_synthetic_pairs_are_marked_in_every_title(data: FigureData) -> None:
    kinds = (image_scores, slopes, bland_altman, threshold_curves, adaptation_curves)
    figures = [draw(data, 1) for draw in kinds]
    assert all(figure is not None for figure in figures)
    for figure in [*figures, heat_map(data)]:
        assert "synthetic images, not of patients" in titles(figure)
    assert "synthetic" not in titles(image_scores(data, 0))


def test_figures_without_records_are_skipped(tmp_path: Path) -> None:
    store = RichStore(tmp_path / "store", **SMALL)
    for path in store.out.rglob("*.parquet"):
        if path.name.startswith(("thresholds", "epochs", "curve", "eyes")):
            path.unlink()
    data = load(store.out)
    assert threshold_curves(data, 0) is None
    assert adaptation_curves(data, 0) is None
    assert bland_altman(data, 0) is None
    assert image_scores(data, 0) is not None


def test_colours_and_dashes_tell_two_dozen_methods_apart() -> None:
    assert len(style.PALETTE) * len(style.DASHES) >= 24
    assert len(set(style.PALETTE)) == len(style.PALETTE)


# -- bytes ------------------------------------------------------------------------------------


def test_shuffled_rows_change_no_byte(tmp_path: Path, saved: list[SavedFigure]) -> None:
    first = [path for figure in saved for path in figure.paths]
    second = write_figures(RichStore(tmp_path / "b", **TINY, shuffle=3).out)
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


# -- names and errors -------------------------------------------------------------------------


def test_hostile_names_stay_in_the_folder_and_are_no_formulas(tmp_path: Path) -> None:
    rename = {"CPR": r"$\frac{$ <b>&amp;", "rim_one_r3": "a$b ..%_^"}
    small = {**TINY, "pairs": (PAIR,)}
    out = RichStore(tmp_path / "store", **small, rename=rename).out
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        paths = write_figures(out)
    assert paths
    assert {path.parent for path in paths} == {out / "figures"}


@pytest.mark.parametrize("name", ["../../etc", "a/b", "", "…", "x" * 300])
def test_a_slug_is_a_plain_file_name(name: str) -> None:
    made = style.slug(name)
    assert "/" not in made
    assert not made.startswith(".")
    assert 0 < len(made) <= 120


def test_two_pairs_never_share_a_file() -> None:
    pairs = [("a-b", "c"), ("a", "b-c"), ("a b", "c"), ("a", "b c")]
    slugs = {FigurePair(*pair, synthetic=False).slug for pair in pairs}
    assert len(slugs) == len(pairs)


def test_an_unknown_selection_or_profile_says_what_there_is(out: Path) -> None:
    with pytest.raises(UsageError, match="average-last-5, last, oracle"):
        load(out, "average-last-9")
    with pytest.raises(UsageError, match="there are: standard"):
        load(out, profile="beal-2019")


def test_a_damaged_record_names_its_file(tmp_path: Path) -> None:
    out = RichStore(tmp_path / "store", **SMALL).out
    path = next(out.rglob("eyes-standard.parquet"))
    write_parquet(read_parquet(path).drop(columns="vcdr_truth"), path)
    with pytest.raises(StoreSchemaError, match=r"eyes-standard.*vcdr_truth"):
        load(out)


def test_figures_and_page_import_no_torch(out: Path) -> None:
    code = (
        "import sys, pathlib; from sfuda_bench.report.figures_data import load; "
        "from sfuda_bench.report import figures, html; "
        "load(pathlib.Path(sys.argv[1])); html.report_data(pathlib.Path(sys.argv[1])); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(out)], check=False).returncode == 0


# -- crops whose position comes from labels ------------------------------------------------------


@pytest.fixture(scope="module")
def centred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of which one pair has crops that are centred on annotations."""
    pairs = (PAIR, SYNTHETIC_PAIR, ("rim_one_r3", "drishti_gs"))
    fields = {**TINY, "pairs": pairs, "seeds": 1}
    return mark_pair(RichStore(tmp_path_factory.mktemp("centred") / "store", **fields).out, PAIR)


def mark_pair(out: Path, pair: tuple[str, str]) -> Path:
    path = out / "plans" / "last.json"
    plan = json.loads(path.read_text("utf-8"))
    for cell in plan["cells"]:
        cell["positions_from_labels"] = (cell["source"], cell["target"]) == pair
    path.write_text(json.dumps(plan), "utf-8")
    return out


WORDS = "crops centred on annotated discs: position comes from labels"


def test_a_pair_cut_out_by_labels_is_marked_and_explained_in_every_figure(centred: Path) -> None:
    data = load(centred)
    assert [pair.marks for pair in data.pairs] == ["¶", "§", ""]
    assert data.pairs[0].label == "drishti_gs → rim_one_r3 ¶"
    assert data.pairs[0].title == f"drishti_gs → rim_one_r3 (¶ {WORDS})"
    assert f"¶ {WORDS}" in titles(heat_map(data))
    ticks = [text.get_text() for text in heat_map(data).axes[1].get_xticklabels()]
    assert [text.endswith("¶") for text in ticks] == [True, False, False, False]
    ranks = critical_difference_figure(data)
    assert ranks is not None
    assert "¶ crops centred on annotated discs among them" in titles(ranks)
    for draw in (image_scores, slopes, rank_stability, bland_altman, threshold_curves):
        for position in range(3):
            figure = draw(data, position)
            assert figure is not None
            assert (f"(¶ {WORDS})" in titles(figure)) == (position == 0), draw.__name__


def test_captions_explain_the_mark_where_pairs_are_named_by_it(
    centred: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(figure: Any, folder: Path, stem: str) -> list[Path]:
        return [folder / f"{stem}.png"]

    monkeypatch.setattr(style, "freeze_layout", lambda figure: None)
    monkeypatch.setattr(style, "save", save)
    figures = save_figures(centred)
    assert len(figures) > 8
    for figure in figures:
        explained = WORDS in figure.title or f"¶ {WORDS}." in figure.caption
        named = figure.kind == "Overview" or f"{PAIR[0]}-{PAIR[1]}" in figure.png.name
        assert explained == named, figure.png.name


def test_a_store_without_such_crops_shows_no_mark_of_them(
    data: FigureData, saved: list[SavedFigure]
) -> None:
    assert all("¶" not in pair.label + pair.title for pair in data.pairs)
    assert "¶" not in titles(heat_map(data))
    assert all("¶" not in figure.title + figure.caption for figure in saved)


def test_the_figures_font_has_every_mark() -> None:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))
    assert all(font.get_char_index(ord(mark)) for mark in "†§¶‡→")

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.frames import read_parquet, write_parquet
from sfuda_bench.report.comparison import read_scores
from sfuda_bench.report.harm import collapse_warnings, harm, worst_mean, write_harm

REAL = ("drishti_gs", "rim_one_r3")
BEFORE = (0.80, 0.80, 0.80, 0.80)
AFTER = (0.79, 0.78, 0.70, 0.90)  # -1 (not more than 1), -2, -10, +10 points


def dice(cup: tuple[float, ...], disc: tuple[float, ...] | None = None) -> dict[str, Any]:
    asd = tuple(5.0 for _ in cup)
    return {"dice_cup": cup, "dice_disc": disc or cup, "asd_cup": asd, "asd_disc": asd}


def add(store: Any, method: str, seed: int, scores: dict[str, Any], *, area: float = 0.1,
        empty: int = 0, shuffle: int | None = None) -> Path:  # fmt: skip
    """Add a cell with predicted areas (share of the image) and ``empty`` empty predictions."""
    folder: Path = store.add(method, REAL, seed, scores, shuffle=shuffle)
    record = json.loads((folder / "cell.json").read_text("utf-8"))
    record["source_model_sha256"] = "a" * 64
    record["adapted_model_sha256"] = "a" * 64 if method == "source_only" else method
    (folder / "cell.json").write_text(json.dumps(record), "utf-8")
    path = folder / "cases-standard.parquet"
    cases = read_parquet(path)
    number = cases["image"].str.removeprefix("image").astype(int)
    cases = cases.assign(area_prediction=area, area_truth=0.1, empty_prediction=number < empty)
    write_parquet(cases, path)
    return folder


def filled(store: Any, shuffle: int | None = None) -> Any:
    for seed in (0, 1):
        add(store, "source_only", seed, dice(BEFORE), shuffle=shuffle)
        add(store, "cpr_cbam", seed, dice(AFTER), shuffle=shuffle)
    store.plan([store.asked(m, REAL, s) for m in ("source_only", "cpr_cbam") for s in (0, 1)])
    return store


def test_hand_worked_harm(store: Any) -> None:
    frame = harm(read_scores(filled(store).out, "standard"))
    assert list(frame["structure"]) == ["cup", "disc", "avg"]
    row = frame.iloc[0]
    assert (row["label"], row["reference"], row["n_images"]) == ("cpr_cbam", "Source only", 4)
    assert row["harmed_1"] == 50  # a loss of exactly one point is not more than one
    assert row["harmed_5"] == 25
    assert row["worst_change"] == pytest.approx(-10)
    assert (row["worst_dice"], row["reference_worst_dice"]) == pytest.approx((70, 80))
    assert row["mean_change"] == pytest.approx((-1 - 2 - 10 + 10) / 4)


def test_seeds_are_averaged_per_image_before_harm_is_counted(store: Any) -> None:
    """One seed loses 4 points, the other gains 4: no image is harmed on average."""
    for seed, shift in ((0, -0.04), (1, 0.04)):
        add(store, "source_only", seed, dice(BEFORE))
        add(store, "cpr_cbam", seed, dice(tuple(value + shift for value in BEFORE)))
    row = harm(read_scores(store.out, "standard")).iloc[0]
    assert (row["harmed_1"], row["mean_change"]) == pytest.approx((0, 0))


@pytest.mark.parametrize(("n", "count"), [(1, 1), (20, 1), (21, 2), (40, 2), (51, 3)])
def test_the_worst_five_percent_are_rounded_up(n: int, count: int) -> None:
    values = np.random.default_rng(0).permutation(np.arange(n, dtype=float))
    assert worst_mean(values) == pytest.approx((count - 1) / 2)


def test_the_worst_of_nothing_is_undefined() -> None:
    assert math.isnan(worst_mean([]))
    assert worst_mean([math.nan, 3.0]) == 3.0


def test_files_are_equal_whatever_the_order_of_rows(tmp_path: Path, store: Any) -> None:
    kind = type(store)
    paths = write_harm(filled(kind(tmp_path / "plain")).out)
    endings = ("csv", "md", "tex", "tex")
    assert [path.name for path in paths] == [f"harm-standard.{e}" for e in endings]
    mixed = write_harm(filled(kind(tmp_path / "mixed"), shuffle=7).out)
    assert [path.read_bytes() for path in mixed] == [path.read_bytes() for path in paths]
    frame = pd.read_csv(paths[0])
    assert frame.loc[frame["structure"] == "cup", "harmed_5"].item() == 25
    assert "No cell looks collapsed" in paths[1].read_text("utf-8")


def test_without_the_source_model_there_is_nothing_to_write(make_store: Any) -> None:
    assert write_harm(make_store().out) == []


@pytest.mark.parametrize(
    ("area", "empty", "reason"),
    [
        (0.009, 0, "predicted area is 9 % of the source model's"),
        (0.41, 0, "predicted area is 410 % of the source model's"),
        (0.1, 1, "25 % of the predictions are empty"),
    ],
)
def test_a_collapsed_cell_is_named(store: Any, area: float, empty: int, reason: str) -> None:
    add(store, "source_only", 0, dice(BEFORE))
    add(store, "source_only", 1, dice(BEFORE))
    add(store, "cpr_cbam", 0, dice(AFTER))
    folder = add(store, "cpr_cbam", 1, dice(AFTER), area=area, empty=empty)
    found = collapse_warnings(read_scores(store.out, "standard"))
    assert [(w.structure, w.label, w.seed, w.pair) for w in found] == [
        ("cup", "cpr_cbam", 1, REAL),
        ("disc", "cpr_cbam", 1, REAL),
    ]
    assert reason in found[0].text
    assert found[0].key.startswith(folder.name)
    assert any("Collapse warning" in path.read_text("utf-8") for path in write_harm(store.out))


def test_a_source_model_that_predicts_nothing_is_no_measure_of_area(store: Any) -> None:
    """A method that brings the cup back must not look collapsed because its area grew."""
    add(store, "source_only", 0, dice(BEFORE), area=0.001, empty=2)
    add(store, "cpr_cbam", 0, dice(AFTER), area=0.1)
    found = collapse_warnings(read_scores(store.out, "standard"))
    assert {warning.label for warning in found} == {"Source only"}


def test_the_limits_themselves_are_no_collapse(store: Any) -> None:
    add(store, "source_only", 0, dice((0.8,) * 5))
    add(store, "cpr_cbam", 0, dice((0.8,) * 5), area=0.4, empty=1)  # 400 % and 20 %
    assert collapse_warnings(read_scores(store.out, "standard")) == []


def test_the_warning_reads_no_label(store: Any) -> None:
    """Other truths and scores, same predictions: the same warnings."""
    add(store, "source_only", 0, dice(BEFORE))
    folder = add(store, "cpr_cbam", 0, dice(AFTER), area=0.005)
    before = collapse_warnings(read_scores(store.out, "standard"))
    path = folder / "cases-standard.parquet"
    cases = read_parquet(path)
    write_parquet(cases.assign(dice=1.0, area_truth=0.9, empty_truth=True), path)
    assert collapse_warnings(read_scores(store.out, "standard")) == before
    assert len(before) == 2


def test_an_old_record_without_areas_is_judged_by_empty_predictions(make_store: Any) -> None:
    """Tent's disc is empty on every image of the synthetic pair."""
    found = collapse_warnings(read_scores(make_store().out, "standard"))
    assert {(w.label, w.structure, w.seed) for w in found} == {
        ("Tent (online)", "disc", 0),
        ("Tent (online)", "disc", 1),
    }
    assert all(math.isnan(w.area_ratio) for w in found)

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from sfuda_bench.errors import UsageError
from sfuda_bench.scoring.codes import encode
from sfuda_bench.scoring.profiles import Profile, get_profile
from sfuda_bench.scoring.scorer import (
    CASE_COLUMNS,
    DISTANCES,
    EYE_COLUMNS,
    average_selections,
    oracle_epoch,
    score_image,
    score_set,
)

Array = NDArray[Any]

GRID = 32
DIAGONAL_PX = math.hypot(GRID, GRID)
STANDARD, CPR = get_profile("standard"), get_profile("cpr-2023")


def ellipse(y: float, x: float, height: float, width: float) -> Array:
    rows, columns = np.mgrid[:GRID, :GRID]
    return np.asarray(np.hypot((rows - y) / height, (columns - x) / width) < 1)


def eye(y: float = 16, x: float = 16, cup: float = 5.5, disc: float = 10.5) -> Array:
    """A (2, GRID, GRID) mask, cup first; the disc is 2 x 10 + 1 = 21 pixels high."""
    return np.stack([ellipse(y, x, cup, cup - 1), ellipse(y, x, disc, disc - 1)])


def certain(mask: Array) -> Array:
    return encode(mask.astype(np.float32))


def random_set(count: int) -> tuple[Array, Array, list[str]]:
    rng = np.random.default_rng(3)
    centres = rng.uniform(13, 19, (2, count, 2))
    masks = np.stack([eye(y, x) for y, x in centres[0]])
    predictions = np.stack([eye(y, x, cup=4.5, disc=9) for y, x in centres[1]])
    return certain(predictions), masks, [f"image{index}" for index in range(count)]


def with_cup(mask: Array, present: bool) -> Array:
    cup = mask[0] if present else np.zeros_like(mask[0])
    return np.stack([cup, mask[1]])


def test_columns_have_their_order_and_rows_the_order_of_the_images() -> None:
    codes, masks, images = random_set(3)
    cases, eyes = score_set(codes, masks, images, STANDARD)
    assert tuple(cases.columns) == CASE_COLUMNS
    assert tuple(eyes.columns) == EYE_COLUMNS
    assert cases["image"].tolist() == [name for name in images for _ in range(2)]
    assert cases["structure"].tolist() == ["cup", "disc"] * 3
    assert eyes["image"].tolist() == images


def test_a_perfect_prediction_scores_perfectly() -> None:
    (cup, disc), row = score_image(certain(eye()), eye(), STANDARD)
    for case in (cup, disc):
        assert case["dice"] == case["nsd"] == 1
        assert [case[name] for name in DISTANCES] == [0, 0, 0]
        assert case["area_prediction"] == case["area_truth"]
        assert case["disc_diameter_px"] == 21
    assert disc["area_truth"] == eye()[1].sum() / GRID**2
    assert row == {"vcdr_prediction": 11 / 21, "vcdr_truth": 11 / 21, "vcdr_error": 0}


def test_vcdr_error_is_prediction_minus_truth() -> None:
    _, row = score_image(certain(eye(cup=7.5)), eye(cup=5.5), STANDARD)
    assert row["vcdr_error"] == pytest.approx((15 - 11) / 21)


@pytest.mark.parametrize(
    ("profile", "in_prediction", "in_truth", "expected_dice", "expected_nsd", "distance_px"),
    [
        (STANDARD, False, True, 0, 0, DIAGONAL_PX),
        (STANDARD, True, False, 0, 0, DIAGONAL_PX),
        (STANDARD, False, False, 1, 1, 0),
        (CPR, False, True, "1 / (n + 1)", math.nan, math.nan),
        (CPR, True, False, "1 / (n + 1)", math.nan, math.nan),
        (CPR, False, False, 1, math.nan, math.nan),
    ],
)
@pytest.mark.parametrize("engine", ["core", "medpy"])
def test_empty_mask_matrix(
    profile: Profile,
    in_prediction: bool,
    in_truth: bool,
    expected_dice: float | str,
    expected_nsd: float,
    distance_px: float,
    engine: str,
) -> None:
    """An empty cup is scored by the profile's policy, flagged, and leaves the disc alone."""
    codes = certain(with_cup(eye(), in_prediction))
    cases, row = score_image(codes, with_cup(eye(), in_truth), profile, engine)
    cup, disc = cases
    if isinstance(expected_dice, str):
        expected_dice = 1 / (eye()[0].sum() + 1)
    expected = {"dice": expected_dice, "nsd": expected_nsd}
    expected |= dict.fromkeys(DISTANCES, distance_px)
    assert {name: cup[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    assert (cup["empty_prediction"], cup["empty_truth"]) == (not in_prediction, not in_truth)
    assert (disc["dice"], disc["hd95_px"], disc["empty_truth"]) == (1, 0, False)
    assert row["vcdr_prediction"] == (11 / 21 if in_prediction else 0)


def test_without_a_true_disc_the_diameter_and_ratio_are_nan() -> None:
    mask = eye()
    mask[1] = False
    cases, row = score_image(certain(eye()), mask, STANDARD)
    assert math.isnan(cases[0]["disc_diameter_px"])
    assert math.isnan(row["vcdr_error"])


def test_thresholds_are_strict_on_the_model_grid() -> None:
    for threshold, profile in ((0.5, STANDARD), (0.75, CPR)):
        above = np.nextafter(np.float32(threshold), np.float32(1))
        prob = np.where(eye(), above, np.float32(threshold)).astype(np.float32)
        cases, _ = score_image(encode(prob), eye(), profile)
        assert [case["dice"] for case in cases] == [1, 1]


def test_a_small_prediction_is_brought_to_the_mask_grid() -> None:
    small = eye().reshape(2, GRID // 2, 2, GRID // 2, 2).mean(axis=(2, 4)).astype(np.float32)
    cases, _ = score_image(encode(small), eye(), STANDARD)
    assert all(case["dice"] > 0.95 for case in cases)
    assert all(case["assd_directed_px"] < 0.5 for case in cases)


def test_cpr_profile_smooths_dice_by_one() -> None:
    prediction, truth = eye(x=15), eye()
    cases, _ = score_image(certain(prediction), truth, CPR)
    overlap = (prediction & truth).sum(axis=(1, 2))
    total = prediction.sum(axis=(1, 2)) + truth.sum(axis=(1, 2))
    assert [case["dice"] for case in cases] == pytest.approx((2 * overlap + 1) / (total + 1))


def test_nsd_tolerance_is_a_share_of_the_true_disc_for_both_structures() -> None:
    """Shifted sideways by 2 of 21 pixels: within 10 % of the diameter everywhere."""
    codes, mask = certain(eye(x=14)), eye()
    tight, _ = score_image(codes, mask, replace(STANDARD, nsd_tolerance_share=0.02))
    loose, _ = score_image(codes, mask, replace(STANDARD, nsd_tolerance_share=0.10))
    assert all(case["nsd"] < 0.7 for case in tight)
    assert all(case["nsd"] == 1 for case in loose)


@pytest.mark.parametrize("profile", [STANDARD, CPR], ids=lambda profile: profile.name)
def test_core_and_medpy_engines_agree(profile: Profile) -> None:
    codes, masks, images = random_set(6)
    ours = score_set(codes, masks, images, profile, engine="core")
    theirs = score_set(codes, masks, images, profile, engine="medpy")
    pd.testing.assert_frame_equal(ours[0], theirs[0], rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(ours[1], theirs[1])


@pytest.mark.parametrize(("profile", "dice_is_medpy"), [(STANDARD, True), (CPR, False)])
def test_the_medpy_engine_takes_dice_and_distances_from_medpy(
    profile: Profile, dice_is_medpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = pytest.importorskip("medpy.metric.binary")
    for value, name in enumerate(("dc", "asd", "assd", "hd95"), start=101):
        monkeypatch.setattr(binary, name, lambda *masks, value=value: value)
    cases, _ = score_image(certain(eye(x=14)), eye(), profile, engine="medpy")
    for case in cases:
        assert [case[name] for name in DISTANCES] == [102, 103, 104]
        assert (case["dice"] == 101) == dice_is_medpy


def test_shuffled_image_order_changes_nothing_per_image() -> None:
    codes, masks, images = random_set(5)
    order = np.array([3, 0, 4, 2, 1])
    cases, eyes = score_set(codes, masks, images, STANDARD)
    shuffled = score_set(codes[order], masks[order], [images[i] for i in order], STANDARD)
    for straight, other, keys in (
        (cases, shuffled[0], ["image", "structure"]),
        (eyes, shuffled[1], ["image"]),
    ):
        restored = other.sort_values(keys, ignore_index=True)
        pd.testing.assert_frame_equal(straight, restored, check_exact=True)


def test_swapping_the_channels_of_prediction_and_mask_swaps_the_rows() -> None:
    """T-GEN-8; only what refers to the disc by name (diameter, tolerance) may differ."""
    codes, mask = certain(eye(x=14, cup=4.5)), eye()
    (cup, disc), _ = score_image(codes, mask, STANDARD)
    (first, second), _ = score_image(codes[::-1], mask[::-1], STANDARD)
    for straight, swapped in ((disc, first), (cup, second)):
        for name in ("dice", *DISTANCES, "area_prediction", "area_truth", "empty_truth"):
            assert straight[name] == swapped[name]


def test_an_unknown_engine_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="'monai'"):
        score_image(certain(eye()), eye(), STANDARD, engine="monai")
    with pytest.raises(UsageError, match="'monai'"):
        score_set(np.empty((0, 2, 8, 8), np.uint8), np.empty((0, 2, 8, 8), bool), [], CPR, "monai")


def test_wrong_shapes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match="bool"):
        score_image(certain(eye()), eye().astype(np.uint8), STANDARD)
    with pytest.raises(ValueError, match="channels"):
        score_image(certain(eye())[:1], eye(), STANDARD)
    with pytest.raises(ValueError, match="2 image names"):
        score_set(certain(eye())[None], eye()[None], ["a", "b"], STANDARD)


def test_an_empty_set_keeps_its_columns() -> None:
    nothing = np.empty((0, 2, 8, 8), np.uint8)
    cases, eyes = score_set(nothing, nothing.astype(bool), [], STANDARD)
    assert (len(cases), len(eyes)) == (0, 0)
    assert tuple(cases.columns) == CASE_COLUMNS


def test_importing_the_scorer_imports_neither_torch_nor_medpy() -> None:
    code = (
        "import sys, sfuda_bench.scoring.scorer;"
        "print({'torch', 'medpy', 'joblib'} & {*sys.modules} or 'light')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "light"


def epochs(**dice_of: list[tuple[float, float]]) -> pd.DataFrame:
    """Cases of several epochs from image=[(cup, disc) at epoch 0, at epoch 1, ...]."""
    rows = [
        {
            "image": image,
            "structure": structure,
            "seed": 7,
            "dice": dice,
            "hd95_px": 10 * dice,
            "empty_prediction": dice == 0,
            "epoch": epoch,
        }
        for image, values in dice_of.items()
        for epoch, pair in enumerate(values)
        for structure, dice in zip(("cup", "disc"), pair, strict=True)
    ]
    return pd.DataFrame(rows)


def test_average_is_the_mean_of_each_case_over_its_last_k_epochs() -> None:
    cases = epochs(b=[(0.1, 0.1), (0.0, 0.9), (0.4, 0.8), (0.8, 0.6)], a=[(0.5, 0.5)] * 4)
    averaged = average_selections(cases, k=2)
    assert [*averaged.columns] == [name for name in cases.columns if name != "epoch"]
    assert averaged["image"].tolist() == ["b", "b", "a", "a"]
    assert averaged["structure"].tolist() == ["cup", "disc"] * 2
    assert averaged["dice"].tolist() == pytest.approx([0.6, 0.7, 0.5, 0.5])
    assert averaged["hd95_px"].tolist() == pytest.approx([6, 7, 5, 5])
    assert averaged["seed"].tolist() == [7] * 4
    assert averaged["empty_prediction"].tolist() == [False] * 4
    # Over three epochs the one empty prediction is in, and its flag with it.
    assert average_selections(cases, k=3)["empty_prediction"].tolist() == [True] + [False] * 3


def test_average_ignores_the_order_of_the_epochs() -> None:
    cases = epochs(a=[(0.1, 0.2), (0.3, 0.4), (0.5, 0.6)])
    backwards = cases.sort_values(["epoch", "structure"], ascending=[False, True])
    pd.testing.assert_frame_equal(average_selections(cases, 1), average_selections(backwards, 1))


def test_average_leaves_an_excluded_distance_out_of_its_mean() -> None:
    cases = epochs(a=[(0.1, 0.1), (0.2, 0.2), (0.4, 0.4)])
    cases.loc[(cases["epoch"] == 1) & (cases["structure"] == "cup"), "hd95_px"] = math.nan
    assert average_selections(cases, k=2)["hd95_px"].tolist() == pytest.approx([4, 3])


def test_the_unadapted_epoch_never_enters_an_average() -> None:
    cases = epochs(a=[(1.0, 1.0), (0.5, 0.5)])
    assert average_selections(cases, k=1)["dice"].tolist() == [0.5, 0.5]
    with pytest.raises(UsageError, match="1 recorded"):
        average_selections(cases, k=2)
    with pytest.raises(UsageError, match="0 recorded"):
        average_selections(cases[cases["epoch"] == 0], k=1)


def test_average_works_on_the_columns_of_the_scorer() -> None:
    codes, masks, images = random_set(2)
    frame = score_set(codes, masks, images, CPR)[0]
    averaged = average_selections(
        pd.concat([frame.assign(epoch=epoch) for epoch in (0, 1, 2)]), k=2
    )
    pd.testing.assert_frame_equal(averaged, frame)


def test_oracle_is_the_epoch_of_the_best_mean_over_images_and_structures() -> None:
    cases = epochs(a=[(0.2, 0.9), (0.6, 0.9), (0.9, 0.9)], b=[(0.2, 0.9), (0.7, 0.9), (0.1, 0.9)])
    assert oracle_epoch(cases) == 1


def test_oracle_may_be_the_unadapted_model() -> None:
    assert oracle_epoch(epochs(a=[(0.8, 0.9), (0.7, 0.9)])) == 0


def test_oracle_ties_go_to_the_earlier_epoch_even_across_rounding() -> None:
    """The same three scores handed to other images sum to another last bit."""
    cases = epochs(
        a=[(0, 0), (0.1, 0.1), (0.3, 0.3)],
        b=[(0, 0), (0.2, 0.2), (0.2, 0.2)],
        c=[(0, 0), (0.3, 0.3), (0.1, 0.1)],
    )
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    assert oracle_epoch(cases) == 1


@pytest.mark.parametrize("select", [oracle_epoch, lambda cases: average_selections(cases, 1)])
def test_selecting_without_epochs_says_how_to_record_them(select: Callable[..., Any]) -> None:
    with pytest.raises(UsageError) as caught:
        select(epochs(a=[(0.1, 0.1)]).drop(columns="epoch"))
    assert caught.value.hint == "run with --track epochs"

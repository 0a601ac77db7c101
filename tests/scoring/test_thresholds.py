from __future__ import annotations

import numpy as np
import pytest

from sfuda_bench.scoring.codes import encode, upsample
from sfuda_bench.scoring.metrics import dice
from sfuda_bench.scoring.thresholds import (
    THRESHOLDS,
    expected_calibration_error,
    threshold_curve,
)


def random_set(size: int = 16, grid: int = 24, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return encode(random.random((n, 2, size, size))), random.random((n, 2, grid, grid)) > 0.6


def test_every_value_is_the_dice_of_the_thresholded_probability() -> None:
    """Against the scorer's own definition, on an up-sampled grid, at thresholds off the codes."""
    codes, masks = random_set()
    frame = threshold_curve(codes, masks, ["a", "b", "c"], (0.3, 0.5, 0.77))
    assert len(frame) == 3 * 2 * 3
    for row in frame.to_dict("records"):
        i, c = "abc".index(row["image"]), ("cup", "disc").index(row["structure"])
        prediction = upsample(codes[i], 24)[c] > np.float32(row["threshold"])
        assert row["dice"] == pytest.approx(dice(prediction, masks[i, c]), abs=1e-12)


def test_the_usual_thresholds_are_among_the_default_ones() -> None:
    assert {0.5, 0.75} <= set(THRESHOLDS)
    assert all((256 * t).is_integer() for t in THRESHOLDS)


def test_empty_masks_score_as_in_the_strict_profile() -> None:
    codes = np.full((1, 2, 4, 4), 100, np.uint8)  # probability 0.39
    masks = np.zeros((1, 2, 4, 4), bool)
    masks[0, 1] = True
    frame = threshold_curve(codes, masks, ["a"], (0.25, 0.5))
    assert frame["dice"].tolist() == [0.0, 1.0, 1.0, 0.0]


def test_calibration_error_is_the_gap_of_probability_and_truth() -> None:
    codes = np.full((2, 2, 4, 4), 63, np.uint8)  # probability 63.5 / 256 in every pixel
    masks = np.zeros((2, 2, 4, 4), bool)
    masks[:, 0, :2] = True  # half of the pixels
    masks[0, 1] = True  # half of the pixels, on one image
    error = expected_calibration_error(codes, masks)
    assert error == pytest.approx({"cup": 0.5 - 63.5 / 256, "disc": 0.5 - 63.5 / 256})


def test_a_calibrated_prediction_has_an_error_near_zero() -> None:
    random = np.random.default_rng(1)
    prob = random.random((4, 2, 64, 64))
    masks = random.random(prob.shape) < prob
    assert max(expected_calibration_error(encode(prob), masks).values()) < 0.02


@pytest.mark.parametrize("thresholds", [(), (0.5, 0.5), (0.0, 0.5), (0.5, 1.0), (0.6, 0.5)])
def test_thresholds_that_do_not_rise_are_refused(thresholds: tuple[float, ...]) -> None:
    codes, masks = random_set()
    with pytest.raises(ValueError, match="rise"):
        threshold_curve(codes, masks, ["a", "b", "c"], thresholds)


def test_lengths_must_agree() -> None:
    codes, masks = random_set()
    with pytest.raises(ValueError, match="3 predictions, 3 masks and 2"):
        threshold_curve(codes, masks, ["a", "b"])

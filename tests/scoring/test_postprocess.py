"""Post-processing of published protocols, against filters worked by hand or written naively."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.signal import medfilt2d

from sfuda_bench.scoring.codes import encode
from sfuda_bench.scoring.postprocess import (
    beal,
    erode_diamond,
    fill_holes,
    largest_component,
    median_smooth,
    postprocess,
)
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.scorer import score_image


def disc(side: int, radius: float) -> Any:
    y, x = np.mgrid[0:side, 0:side] - side // 2
    return np.hypot(x, y) <= radius


@pytest.mark.parametrize("times", [1, 2, 5])
def test_the_median_filter_equals_scipys(times: int) -> None:
    mask = np.random.default_rng(0).random((40, 33)) > 0.45
    expected = mask.astype(np.uint8)
    for _ in range(times):
        expected = medfilt2d(expected, 7)
    assert (median_smooth(mask, 7, times) == expected.astype(bool)).all()


def test_a_diamond_takes_what_is_closer_to_the_outside_than_its_radius() -> None:
    mask = np.ones((20, 20), bool)
    mask[10, 10] = False
    y, x = np.mgrid[0:20, 0:20]
    far = abs(y - 10) + abs(x - 10) > 7
    # The image's border takes nothing: what lies outside counts as set.
    assert (erode_diamond(mask, 7) == far).all()


def test_the_larger_part_stays_and_corners_connect() -> None:
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = mask[1, 1] = mask[2, 2] = True
    mask[6, 5:7] = True
    kept = largest_component(mask)
    assert kept.sum() == 3 and kept[2, 2] and not kept[6].any()
    assert not largest_component(np.zeros((4, 4), bool)).any()


def test_of_equal_parts_the_first_row_by_row_stays() -> None:
    mask = np.zeros((5, 5), bool)
    mask[1, 3] = mask[3, 1] = True
    assert np.argwhere(largest_component(mask)).tolist() == [[1, 3]]


def test_holes_are_filled_unless_an_edge_leads_out() -> None:
    ring = np.ones((5, 5), bool)
    ring[2, 2] = False
    assert fill_holes(ring).all()
    ring[2, 0:2] = False
    assert fill_holes(ring)[2, 2] == False  # noqa: E712  # numpy's bool


def test_beal_worked_step_by_step_on_a_square() -> None:
    """A square of 31 px: the medians round its corners, the diamond takes 7 px from each side.

    What the medians take off a corner is more than 7 px away, so that 17 x 17 px remain.
    """
    mask = np.zeros((64, 64), bool)
    mask[16:47, 16:47] = True
    mask[2:4, 2:4] = True  # a speck, which the first median removes
    mask[30, 30] = False  # a hole, which it fills
    expected = np.zeros((64, 64), bool)
    expected[23:40, 23:40] = True
    assert (beal(mask) == expected).all()


def test_a_structure_thinner_than_the_diamond_vanishes() -> None:
    assert not beal(disc(64, 6.0)).any()
    assert beal(disc(64, 20.0)).any()


def test_each_structure_is_processed_by_itself() -> None:
    masks = np.stack([disc(64, 12), disc(64, 24)])
    both = postprocess(masks, "beal")
    assert (both[0] == beal(masks[0])).all() and (both[1] == beal(masks[1])).all()
    assert postprocess(masks, "none") is masks


def test_beal_scores_are_those_of_the_processed_masks() -> None:
    """Golden: a perfect prediction loses its rim; Dice = (2 |P| + 1) / (|P| + |G| + 1)."""
    truth = np.stack([disc(128, 25), disc(128, 45)])
    codes = encode(truth.astype(np.float32) * 0.9 + 0.05)
    cases, _ = score_image(codes, truth, get_profile("beal-2019"))
    for case, mask in zip(cases, truth, strict=True):
        left, whole = beal(mask).sum(), mask.sum()
        assert case["dice"] == pytest.approx((2 * left + 1) / (left + whole + 1), abs=1e-12)
        assert 6 < case["assd_directed_px"] < 8
    plain, _ = score_image(codes, truth, get_profile("cpr-2023"))
    assert [case["dice"] for case in plain] == [1.0, 1.0]


def test_the_drishti_rules_have_a_threshold_of_their_own_for_the_cup() -> None:
    truth = np.stack([disc(128, 30), disc(128, 50)])
    prob = np.stack([disc(128, 30) * 0.3, disc(128, 50) * 0.6]).astype(np.float32)
    codes = encode(np.clip(prob, 0.01, 0.99))
    tuned, _ = score_image(codes, truth, get_profile("beal-2019-drishti"))
    strict, _ = score_image(codes, truth, get_profile("beal-2019"))
    assert min(case["dice"] for case in tuned) > 0.6
    assert all(case["empty_prediction"] for case in strict)

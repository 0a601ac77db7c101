import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from sfuda_bench.scoring.metrics import (
    assd_directed,
    assd_pooled,
    dice,
    hd95,
    nsd,
    surface_distances,
)

Array = NDArray[Any]


def draw(picture: str) -> Array:
    """A mask from lines of '#' (object) and '.' (background)."""
    return np.array([[symbol == "#" for symbol in row] for row in picture.split()])


def square(side: int, top: int, left: int, size: int = 6) -> Array:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def blob(seed: int, size: int = 40) -> Array:
    """A random smooth object; the large ones touch the image edge."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=(size, size)), rng.uniform(0.5, 5))
    return noise > np.quantile(noise, rng.uniform(0.1, 0.97))


def all_distances(prediction: Array, truth: Array) -> list[float]:
    distances = surface_distances(prediction, truth)
    return [assd_directed(distances), assd_pooled(distances), hd95(distances)]


EMPTY = np.zeros((6, 6), bool)


def test_hand_drawn_column_and_its_neighbour() -> None:
    """Two one-pixel-wide columns, three columns apart: every distance is 3."""
    prediction = draw("...... .#.... .#.... .#.... ...... ......")
    truth = draw("...... ....#. ....#. ....#. ...... ......")
    distances = surface_distances(prediction, truth)
    assert distances.prediction_to_truth_px.tolist() == [3, 3, 3]
    assert all_distances(prediction, truth) == [3, 3, 3]
    assert nsd(distances, 2.99) == 0
    assert nsd(distances, 3) == 1
    assert dice(prediction, truth) == 0


def test_hand_drawn_line_and_longer_line() -> None:
    """A pair of pixels against a row of five: 0, 0 one way and 2, 1, 0, 0, 1 the other."""
    prediction = draw("...... ...... ...##. ...... ...... ......")
    truth = draw("...... ...... .##### ...... ...... ......")
    distances = surface_distances(prediction, truth)
    assert sorted(distances.prediction_to_truth_px) == [0, 0]
    assert distances.truth_to_prediction_px.tolist() == [2, 1, 0, 0, 1]
    assert assd_directed(distances) == pytest.approx(0.4)
    assert assd_pooled(distances) == pytest.approx(4 / 7)
    # Seven sorted distances: rank 0.95 x 6 = 5.7 lies between 1 and 2.
    assert hd95(distances) == pytest.approx(1.7)
    assert nsd(distances, 0) == pytest.approx(4 / 7)
    assert nsd(distances, 1) == pytest.approx(6 / 7)
    assert dice(prediction, truth) == pytest.approx(4 / 7)


def test_hand_drawn_ring_has_the_border_of_its_hole() -> None:
    """The ring's inner and outer border are both border; the filled square has one."""
    ring = draw("##### ##### ##.## ##### #####")
    distances = surface_distances(ring, np.ones((5, 5), bool))
    assert distances.prediction_to_truth_px.size == 16 + 4
    assert distances.truth_to_prediction_px.size == 16


def test_object_pixels_on_the_image_edge_are_border() -> None:
    full = np.ones((6, 6), bool)
    distances = surface_distances(full, square(1, 3, 3))
    assert distances.prediction_to_truth_px.size == 20


def test_o13_squares_shifted_by_one() -> None:
    prediction, truth = square(3, 1, 1), square(3, 1, 2)
    assert dice(prediction, truth, smooth=1) == pytest.approx(13 / 19)
    distances = surface_distances(prediction, truth)
    assert assd_directed(distances) == pytest.approx(0.5)
    assert assd_pooled(distances) == pytest.approx(0.5)


def test_o13_pixel_in_the_centre_of_a_square() -> None:
    distances = surface_distances(square(1, 4, 4, 9), square(5, 2, 2, 9))
    assert distances.prediction_to_truth_px.mean() == pytest.approx(2.0)
    assert distances.truth_to_prediction_px.mean() == pytest.approx(2.32514, abs=5e-6)
    assert assd_directed(distances) == pytest.approx(2.16257, abs=5e-6)
    assert assd_pooled(distances) == pytest.approx(2.30601, abs=5e-6)


def test_identical_masks_are_perfect() -> None:
    mask = square(3, 1, 2)
    distances = surface_distances(mask, mask)
    assert all_distances(mask, mask) == [0, 0, 0]
    assert nsd(distances, 0) == 1
    assert dice(mask, mask) == dice(mask, mask, smooth=1) == 1


@pytest.mark.parametrize(
    ("prediction", "truth"),
    [(EMPTY, square(3, 1, 1)), (square(3, 1, 1), EMPTY), (EMPTY, EMPTY)],
    ids=["no prediction", "no truth", "neither"],
)
def test_distances_of_an_empty_mask_are_nan(prediction: Array, truth: Array) -> None:
    distances = surface_distances(prediction, truth)
    assert distances.undefined
    assert all(math.isnan(value) for value in all_distances(prediction, truth))
    assert math.isnan(nsd(distances, 1e9))


def test_dice_of_empty_masks() -> None:
    mask = square(3, 1, 1)
    assert dice(mask, EMPTY) == dice(EMPTY, mask) == 0
    assert dice(EMPTY, mask, smooth=1) == pytest.approx(1 / 10)
    assert math.isnan(dice(EMPTY, EMPTY))
    assert dice(EMPTY, EMPTY, smooth=1) == 1


@pytest.mark.parametrize("function", [dice, surface_distances])
def test_other_shapes_and_types_are_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        function(EMPTY, np.zeros((6, 7), bool))
    with pytest.raises(ValueError, match="bool"):
        function(EMPTY.astype(np.uint8), EMPTY)


def assert_agrees_with_medpy(prediction: Array, truth: Array) -> None:
    binary = pytest.importorskip("medpy.metric.binary")
    distances = surface_distances(prediction, truth)
    forward, backward = binary.asd(prediction, truth), binary.asd(truth, prediction)
    assert dice(prediction, truth) == pytest.approx(binary.dc(prediction, truth), abs=1e-6)
    assert assd_directed(distances) == pytest.approx((forward + backward) / 2, abs=1e-6)
    assert assd_pooled(distances) == pytest.approx(binary.assd(prediction, truth), abs=1e-6)
    assert hd95(distances) == pytest.approx(binary.hd95(prediction, truth), abs=1e-6)


@given(arrays(bool, (9, 11)), arrays(bool, (9, 11)))
@settings(deadline=None, max_examples=150)
def test_agrees_with_medpy_on_any_pixels(prediction: Array, truth: Array) -> None:
    assume(prediction.any() and truth.any())
    assert_agrees_with_medpy(prediction, truth)


def test_agrees_with_medpy_on_blobs_of_which_many_touch_the_edge() -> None:
    touching = 0
    for seed in range(0, 80, 2):
        prediction, truth = blob(seed), blob(seed + 1)
        touching += bool(truth[0].any() or truth[:, 0].any())
        assert_agrees_with_medpy(prediction, truth)
    assert touching >= 10


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_every_metric_is_symmetric(first: int, second: int) -> None:
    a, b = blob(first), blob(second)
    assert dice(a, b) == dice(b, a)
    assert all_distances(a, b) == pytest.approx(all_distances(b, a), rel=1e-12)
    assert nsd(surface_distances(a, b), 2) == nsd(surface_distances(b, a), 2)


@given(st.integers(0, 10_000), st.integers(0, 7), st.integers(0, 7))
@settings(deadline=None, max_examples=30)
def test_background_around_the_objects_changes_no_distance(seed: int, top: int, left: int) -> None:
    a, b = blob(seed), blob(seed + 1)
    padding = ((top, 3), (left, 5))
    assert all_distances(np.pad(a, padding), np.pad(b, padding)) == all_distances(a, b)


def test_a_tolerance_rounded_down_still_includes_its_distance() -> None:
    """0.58 x 50 is 28.999999999999996 in floating point."""
    tolerance_px = 0.58 * 50
    assert tolerance_px < 29
    distances = surface_distances(square(1, 0, 0, 40), square(1, 0, 29, 40))
    assert nsd(distances, tolerance_px) == 1

from __future__ import annotations

import math

import numpy as np
import pytest

from sfuda_bench.images.statistics import (
    QUANTITIES,
    colour_values,
    edge_values,
    shape_values,
    spreads,
)


def round_mask(side: int, disc: float, cup: float) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    distance = np.hypot(rows, columns)
    return np.stack([distance < cup, distance < disc])


def test_colours_are_means_over_the_field_of_view() -> None:
    image = np.zeros((10, 10, 3), dtype=np.uint8)
    image[:, :4] = (100, 60, 20)
    found = colour_values(image)
    assert found["outside"] == pytest.approx(0.6)
    assert [found[name] for name in ("red", "green", "blue")] == [100, 60, 20]
    assert found["green_sd"] == 0
    assert colour_values(np.zeros((4, 4, 3), dtype=np.uint8)) == {"outside": 1.0}


@pytest.mark.parametrize("side", [100, 300])
def test_shares_do_not_depend_on_the_size_of_the_crop(side: int) -> None:
    found = shape_values(round_mask(side, 0.3 * side, 0.15 * side))
    assert found["disc_scale"] == pytest.approx(0.6, abs=0.005)
    assert found["disc_share"] == pytest.approx(math.pi * 0.09, rel=0.02)
    assert found["vcdr"] == pytest.approx(0.5, abs=0.02)
    assert found["disc_diameter_px"] == pytest.approx(0.6 * side, rel=0.01)


def test_without_a_disc_there_is_no_shape_and_no_edge() -> None:
    empty = np.zeros((2, 20, 20), dtype=bool)
    assert shape_values(empty) == {}
    assert edge_values(np.zeros((20, 20, 3), dtype=np.uint8), empty) == {}


def test_contrasts_are_the_steps_of_green_at_the_outlines() -> None:
    cup, disc = mask = round_mask(256, 80, 40)
    green = np.select([cup, disc], [200, 150], 90)
    image = np.repeat(green[..., None], 3, axis=2).astype(np.uint8)
    assert edge_values(image, mask) == {"disc_contrast": 60.0, "cup_contrast": 50.0}


def test_spreads_leave_out_what_is_undefined() -> None:
    found = spreads([{"vcdr": 0.4, "red": 10.0}, {"vcdr": math.nan}, {"vcdr": 0.6}])
    assert (found["vcdr"].n, found["vcdr"].mean) == (2, pytest.approx(0.5))
    assert found["vcdr"].sd == pytest.approx(0.1414, abs=1e-4)
    assert found["red"].sd is None
    assert set(found) == {"vcdr", "red"} <= {quantity.key for quantity in QUANTITIES}

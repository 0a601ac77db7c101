import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio, vertical_extent_px

Array = NDArray[Any]


def rows(first: int, last: int) -> Array:
    mask = np.zeros((12, 12), bool)
    mask[first : last + 1, 4:7] = True
    return mask


EMPTY = np.zeros((12, 12), bool)


def test_extent_counts_both_end_rows() -> None:
    assert vertical_extent_px(rows(3, 3)) == 1
    assert vertical_extent_px(rows(0, 11)) == 12
    assert vertical_extent_px(EMPTY) == 0


def test_a_hole_does_not_lower_the_extent() -> None:
    mask = rows(2, 9)
    mask[4:7] = False
    assert vertical_extent_px(mask) == 8


def test_ratio_of_extents() -> None:
    assert vertical_cup_to_disc_ratio(np.stack([rows(4, 7), rows(2, 9)])) == 0.5


@pytest.mark.parametrize("cup", [EMPTY, rows(4, 7)])
def test_ratio_without_a_disc_is_nan(cup: Array) -> None:
    assert math.isnan(vertical_cup_to_disc_ratio(np.stack([cup, EMPTY])))


def test_ratio_without_a_cup_is_zero() -> None:
    assert vertical_cup_to_disc_ratio(np.stack([EMPTY, rows(2, 9)])) == 0

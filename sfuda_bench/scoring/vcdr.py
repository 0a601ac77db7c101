"""The vertical cup-to-disc ratio, the clinical number behind the masks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def vertical_extent_px(mask: NDArray[np.bool_]) -> int:
    """Return the last minus the first row that contains the structure, plus one.

    A hole does not lower it, unlike counting the pixels of each column (REFUGE's code).

    Args:
        mask: (H, W) bool.

    Returns:
        Rows in pixels; 0 for an empty mask.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    return int(rows[-1] - rows[0] + 1) if rows.size else 0


def vertical_cup_to_disc_ratio(mask: NDArray[np.bool_]) -> float:
    """Return the vertical extent of the cup divided by that of the disc.

    Args:
        mask: (2, H, W) bool, channel 0 = cup, channel 1 = disc.

    Returns:
        At least 0; above 1 only if the cup reaches beyond the disc. 0 when only the cup is
        empty.

    Undefined:
        NaN when the disc is empty.
    """
    cup, disc = (vertical_extent_px(structure) for structure in mask)
    return cup / disc if disc else float("nan")

"""Cut the region of interest: fixed windows at native resolution, or the owners' whole crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfuda_bench.errors import UsageError
from sfuda_bench.images.decode import resize_image, resize_mask

Uint8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

MODES = {"native800": 800, "crop512": 512, "whole": 0}
"""Window of each mode at native resolution, px; 0 takes the whole picture."""
CUP_LEVEL, RIM_LEVEL, BACKGROUND_LEVEL = 0, 128, 255


@dataclass(frozen=True)
class Window:
    """A square of the photograph; it may reach beyond its borders.

    Args:
        top_px: First row.
        left_px: First column.
        side_px: Rows and columns.
    """

    top_px: int
    left_px: int
    side_px: int

    def cut(self, array: npt.NDArray[np.generic], fill: int) -> npt.NDArray[np.generic]:
        """Cut (H, W, ...) ``array``; what lies outside becomes ``fill``."""
        cut = np.full((self.side_px, self.side_px, *array.shape[2:]), fill, array.dtype)
        rows = _overlap(self.top_px, self.side_px, array.shape[0])
        columns = _overlap(self.left_px, self.side_px, array.shape[1])
        cut[rows[1], columns[1]] = array[rows[0], columns[0]]
        return cut


def make_window(mode: str, size: tuple[int, int], centre: tuple[float, float]) -> Window:
    """Return the window of a mode.

    A window of 512 px is the central part of the one of 800 px at the same centre.

    Args:
        mode: A name of :data:`MODES`, or ``native<PX>`` for another native window.
        size: Height and width of the photograph.
        centre: Row and column of the disc's centre; ``whole`` does not use it.

    Raises:
        UsageError: The mode is unknown.
    """
    side = window_px(mode)
    if side == 0:
        side = max(size)
        return Window((size[0] - side) // 2, (size[1] - side) // 2, side)
    row, column = (int(np.floor(value + 0.5)) for value in centre)
    return Window(row - side // 2, column - side // 2, side)


def window_px(mode: str) -> int:
    """Return the side of a mode's window in native px; 0 for the whole picture.

    Raises:
        UsageError: The mode is unknown.
    """
    if mode in MODES:
        return MODES[mode]
    digits = mode.removeprefix("native").removeprefix("crop")
    if digits.isdecimal() and mode[:1] in "nc" and 16 <= int(digits) <= 8192:
        return int(digits)
    raise UsageError(
        f"--roi-mode {mode}: expected {', '.join(MODES)} or native<PX>, e.g. native400"
    )


def cut_roi(
    image: Uint8, mask: Bool | None, window: Window, size_px: int
) -> tuple[Uint8, Bool | None]:
    """Cut image and mask and bring them to ``size_px``, bilinear and nearest neighbour.

    Args:
        image: (H, W, 3) uint8.
        mask: (2, H, W) bool, cup first.
        window: What to cut; outside there is black and background.
        size_px: Side of the result.

    Returns:
        (S, S, 3) uint8 and (2, S, S) bool.
    """
    roi = resize_image(np.asarray(window.cut(image, 0), np.uint8), size_px)
    if mask is None:
        return roi, None
    cut = np.stack([np.asarray(window.cut(structure, 0), bool) for structure in mask])
    return roi, resize_mask(cut, size_px)


def mask_levels(mask: Bool) -> Uint8:
    """Return the (H, W, 3) picture of a mask: 0 cup, 128 rim, 255 background."""
    cup, disc = mask
    levels = np.where(cup, CUP_LEVEL, np.where(disc, RIM_LEVEL, BACKGROUND_LEVEL))
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


def _overlap(start: int, side: int, extent: int) -> tuple[slice, slice]:
    """Return the same stretch in the picture and in the window."""
    first, last = max(0, start), min(extent, start + side)
    last = max(first, last)
    return slice(first, last), slice(first - start, last - start)

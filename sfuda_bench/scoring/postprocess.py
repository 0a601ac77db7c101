"""What some published protocols do to a thresholded prediction before it is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

BoolArray = NDArray[np.bool_]
PostProcessing = Literal["none", "beal"]

_BEAL_MEDIANS, _BEAL_MEDIAN_PX, _BEAL_EROSION_PX = 5, 7, 7


def median_smooth(mask: BoolArray, side_px: int, times: int) -> BoolArray:
    """Apply a median filter again and again; what lies outside counts as background.

    Args:
        mask: (H, W) bool.
        side_px: Odd side of the square window, px.
        times: How often.
    """
    window = np.ones(side_px, dtype=np.int32)
    for _ in range(times):
        # The median of 0s and 1s is 1 where more than half of the window is.
        count = mask.astype(np.int32)
        for axis in (0, 1):
            count = ndimage.convolve1d(count, window, axis=axis, mode="constant", cval=0)
        mask = count > side_px**2 // 2
    return mask


def erode_diamond(mask: BoolArray, radius_px: int) -> BoolArray:
    """Erode by the diamond of all pixels within a city-block distance; outside counts as set.

    Args:
        mask: (H, W) bool.
        radius_px: Radius of the diamond, px.
    """
    # A diamond of radius r is r times the cross of four neighbours.
    eroded: BoolArray = ndimage.binary_erosion(mask, iterations=radius_px, border_value=1)
    return eroded


def largest_component(mask: BoolArray) -> BoolArray:
    """Keep the largest of the parts that touch along an edge or at a corner.

    Args:
        mask: (H, W) bool; an empty one stays empty. Of equal parts the one found first row by
            row is kept.
    """
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def fill_holes(mask: BoolArray) -> BoolArray:
    """Fill background that no path along edges connects with the border.

    Args:
        mask: (H, W) bool.
    """
    return np.asarray(ndimage.binary_fill_holes(mask), dtype=np.bool_)


def beal(mask: BoolArray) -> BoolArray:
    """Smooth, erode, keep the largest component and fill its holes, as BEAL's test script.

    Args:
        mask: (H, W) bool, one structure.

    Source:
        BEAL ``utils/Utils.py`` at 945cad3: five medians of 7 x 7 px, a diamond of 7 px. Lengths
        are pixels of the evaluation grid, there 512 x 512.
    """
    smooth = median_smooth(mask, _BEAL_MEDIAN_PX, _BEAL_MEDIANS)
    return fill_holes(largest_component(erode_diamond(smooth, _BEAL_EROSION_PX)))


POSTPROCESSING: Mapping[str, Callable[[BoolArray], BoolArray]] = MappingProxyType(
    {"none": lambda mask: mask, "beal": beal}
)


def postprocess(masks: BoolArray, kind: PostProcessing) -> BoolArray:
    """Apply a post-processing to each structure by itself.

    Args:
        masks: (2, H, W) bool.
        kind: A key of :data:`POSTPROCESSING`.
    """
    if kind == "none":
        return masks
    return np.stack([POSTPROCESSING[kind](mask) for mask in masks])

"""What several validators ask of hard masks; here an empty mask is never a success."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sfuda_bench.scoring.validators.record import BoolArray

RING_PX = 20
"""Farthest that a sampled background pixel lies from the mask, in pixels of the record."""


def agreement(first: BoolArray, second: BoolArray) -> tuple[float, float]:
    """Return the mean Dice over images of two sets of masks, per structure.

    Args:
        first: (N, 2, H, W) bool.
        second: (N, 2, H, W) bool.

    Undefined:
        Two empty masks count as 0, not as 1: a collapsed model agrees with itself perfectly.
    """
    overlap = 2 * np.count_nonzero(first & second, axis=(2, 3))
    total = np.count_nonzero(first, axis=(2, 3)) + np.count_nonzero(second, axis=(2, 3))
    return both((overlap / np.maximum(total, 1)).mean(axis=0))


def both(values: Any) -> tuple[float, float]:
    """Return the values of cup and disc as plain floats."""
    cup, disc = values
    return float(cup), float(disc)


def fragmentation(masks: BoolArray) -> NDArray[np.float64]:
    """Return the share of each mask that lies outside its largest part.

    Args:
        masks: (N, 2, H, W) bool; parts touch along an edge or at a corner.

    Returns:
        (N, 2) float in [0, 1), 0 for an empty mask.
    """
    shares = [[_outside_largest(mask) for mask in pair] for pair in masks]
    return np.array(shares, dtype=np.float64)


def _outside_largest(mask: BoolArray) -> float:
    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if count < 2:
        return 0.0
    sizes = np.bincount(labels.ravel())[1:]
    return float(1 - sizes.max() / sizes.sum())


def stratified_pixels(
    masks: BoolArray, generator: np.random.Generator, count: int = 200
) -> NDArray[np.int64]:
    """Draw half of the pixels from a mask and half from the background around it.

    Args:
        masks: (2, H, W) bool of one image, of the source model: the draw must not depend on the
            model that is judged.
        generator: Of this image.
        count: Pixels per structure, with repetition where there are fewer.

    Returns:
        (2, count) int64 flat positions: foreground first, then background within
        :data:`RING_PX` of the mask. Where a mask or its ring is empty, the whole image.
    """
    chosen = []
    for mask in masks:
        ring = _dilated(mask, RING_PX) & ~mask
        halves = ((mask, count // 2), (ring, count - count // 2))
        chosen.append(np.concatenate([_draw(region, size, generator) for region, size in halves]))
    return np.stack(chosen)


def _draw(region: BoolArray, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    places = np.flatnonzero(region)
    if not len(places):
        places = np.arange(region.size)
    drawn: NDArray[np.int64] = generator.choice(places, size, replace=len(places) < size)
    return drawn.astype(np.int64)


def _dilated(mask: BoolArray, radius_px: int) -> BoolArray:
    """Return the pixels within a distance of the mask; none for an empty mask."""
    near = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        # Farther away nothing can be near, and distances cost time.
        window = tuple(
            slice(max(0, found[0] - radius_px), found[-1] + radius_px + 1)
            for found in (rows, columns)
        )
        near[window] = ndimage.distance_transform_edt(~mask[window]) <= radius_px
    return near


def contour_band(mask: BoolArray, radius_px: int) -> BoolArray:
    """Return the pixels within a distance of the mask's outermost pixels.

    Args:
        mask: (H, W) bool; an empty mask and one without background have no contour.
        radius_px: Largest distance, in pixels.
    """
    inside = ndimage.binary_erosion(mask, border_value=1)
    return _dilated(mask & ~inside, radius_px)

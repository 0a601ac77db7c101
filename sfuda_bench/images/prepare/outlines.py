"""Recover cup and disc from a copy of the photograph on which a grader drew their outlines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import ConvexHull, QhullError

from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.pixels import read_photograph

Bool = npt.NDArray[np.bool_]
Uint8 = npt.NDArray[np.uint8]

_LEVEL = 40  # by how much a channel must differ to count as ink; JPEG stays below
_GAP_PX = 2  # gaps in a line up to twice this are closed
_SMALLEST_SHARE = 0.03  # of the disc, for the area that the cup's outline encloses


def read_outlines(path: Path, photograph: Uint8) -> tuple[Bool, Bool]:
    """Return what two closed lines enclose: the outer one the disc, the inner one the cup.

    The lines may touch. Each structure reaches to the middle of its line.

    Args:
        path: The copy with drawings, of the photograph's size.
        photograph: (H, W, 3) uint8.

    Returns:
        Cup and disc, (H, W) bool.

    Raises:
        DataError: The sizes differ, or the drawing does not enclose a disc and a cup.
    """
    drawn = read_photograph(path)
    if drawn.shape != photograph.shape:
        raise DataError(
            f"{path}: {drawn.shape[1]} x {drawn.shape[0]} px, but its photograph is "
            f"{photograph.shape[1]} x {photograph.shape[0]} px",
            hint="is it a copy of this photograph?",
        )
    ink = np.abs(drawn.astype(np.int16) - photograph).max(axis=2) > _LEVEL
    rows, columns, ink = _surroundings(ink)
    cup, disc = _enclosed(path, ink)
    full = np.zeros((2, *photograph.shape[:2]), bool)
    full[0, rows, columns], full[1, rows, columns] = cup, disc
    return full[0], full[1]


def _surroundings(ink: Bool) -> tuple[slice, slice, Bool]:
    """Cut out where the ink is, with a margin, so that what follows is fast."""
    labels, count = ndimage.label(ndimage.binary_dilation(ink, iterations=_GAP_PX))
    if count == 0:
        return slice(0, ink.shape[0]), slice(0, ink.shape[1]), ink
    boxes = ndimage.find_objects(labels)
    largest = max(boxes, key=lambda box: max(part.stop - part.start for part in box))
    margin = 4 * _GAP_PX
    rows, columns = (slice(max(0, part.start - margin), part.stop + margin) for part in largest)
    return rows, columns, ink[rows, columns]


def _enclosed(path: Path, ink: Bool) -> tuple[Bool, Bool]:
    cross = ndimage.generate_binary_structure(2, 1)
    padded = np.pad(ink, 2 * _GAP_PX)
    closed = ndimage.binary_closing(padded, cross, iterations=_GAP_PX)
    closed = closed[2 * _GAP_PX : -2 * _GAP_PX, 2 * _GAP_PX : -2 * _GAP_PX]
    outer = _largest(ndimage.binary_fill_holes(closed))
    line_px = _line_width(closed & outer)
    regions, count = ndimage.label(outer & ~closed)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)[1:]
    usable = [n + 1 for n, size in enumerate(sizes) if size > _SMALLEST_SHARE * outer.sum()]
    if len(usable) < 2:
        raise DataError(
            f"{path}: the drawing encloses {len(usable)} areas; expected disc and cup",
            hint="move this file away: the eye then counts without this grader",
        )
    inner = max((regions == region for region in usable), key=_solidity)
    half = max(1, round(line_px / 2))
    cup = ndimage.binary_dilation(inner, cross, iterations=half)
    disc = ndimage.binary_erosion(outer, cross, iterations=half) | cup
    return cup, disc


def _largest(regions: Bool) -> Bool:
    labels, count = ndimage.label(regions)
    if count < 2:
        return regions
    sizes = ndimage.sum_labels(regions, labels, range(1, count + 1))
    return np.asarray(labels == 1 + int(np.argmax(sizes)))


def _line_width(line: Bool) -> float:
    """Return twice the mean depth of a line's ridge."""
    depth = ndimage.distance_transform_cdt(np.pad(line, 1), "taxicab")[1:-1, 1:-1]
    ridge = line & (depth == ndimage.maximum_filter(depth, 3))
    return float(2 * depth[ridge].mean() - 1) if ridge.any() else 1.0


def _solidity(region: Bool) -> float:
    """Return a region's share of its convex hull: near 1 for a cup, less for a rim around it."""
    border = region & ~ndimage.binary_erosion(region)
    points = np.argwhere(border)
    try:
        hull = float(ConvexHull(points).volume)  # in two dimensions the volume is the area
    except QhullError:
        return 0.0
    return float(region.sum()) / max(hull, 1.0)

"""Dice over thresholds, and calibration, from stored predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sfuda_bench.scoring.codes import STRUCTURES, upsample

THRESHOLDS = tuple(k / 32 for k in range(1, 32))
"""Multiples of 1/256, at which the stored codes lose nothing; 0.5 and 0.75 are among them."""
CURVE_VERSION = 1
"""Raised whenever a number below changes."""
BINS = 16

BoolArray = NDArray[np.bool_]


def threshold_curve(
    codes: NDArray[np.uint8],
    masks: BoolArray,
    images: Sequence[str],
    thresholds: Sequence[float] = THRESHOLDS,
) -> pd.DataFrame:
    """Return the Dice of every image and structure at every threshold.

    Plain Dice: an empty prediction of an empty truth scores 1, of any other truth 0.

    Args:
        codes: (N, 2, S, S) uint8 stored predictions, cup first.
        masks: (N, 2, G, G) bool ground truth on the evaluation grid.
        images: N names.
        thresholds: T strictly rising values in (0, 1); a pixel is foreground where
            prob > threshold.

    Returns:
        2 N T rows: image, structure, threshold, dice (fraction).

    Raises:
        ValueError: The lengths differ, or the thresholds do not rise within (0, 1).
    """
    edges = np.asarray(thresholds, dtype=np.float32)
    if not len(edges) or (np.diff(edges) <= 0).any() or edges[0] <= 0 or edges[-1] >= 1:
        raise ValueError(f"thresholds must rise strictly within (0, 1), got {list(thresholds)}")
    _check(codes, masks, len(images))
    rows: list[dict[str, Any]] = []
    for image, code, mask in zip(images, codes, masks, strict=True):
        prob = upsample(code, mask.shape[-1])
        for channel, structure in enumerate(STRUCTURES):
            values = _dice_at(prob[channel], mask[channel], edges)
            rows += [
                {"image": image, "structure": structure, "threshold": threshold, "dice": value}
                for threshold, value in zip(map(float, thresholds), values, strict=True)
            ]
    return pd.DataFrame(rows, columns=["image", "structure", "threshold", "dice"])


def expected_calibration_error(
    codes: NDArray[np.uint8], masks: BoolArray, bins: int = BINS
) -> dict[str, float]:
    """Return the expected calibration error (ECE) of the foreground probability per structure.

    All pixels of all images on the evaluation grid are binned by probability into ``bins`` of
    equal width; the ECE is the mean over pixels of |mean probability - share of foreground| of
    their bin. Most pixels are plain background, so it is small even for a poor cup.

    Args:
        codes: (N, 2, S, S) uint8 stored predictions, cup first.
        masks: (N, 2, G, G) bool ground truth.
        bins: Number of bins.

    Returns:
        Fractions in [0, 1] by structure.

    Raises:
        ValueError: The lengths differ or there is no image.
    """
    _check(codes, masks, len(codes))
    if not len(codes):
        raise ValueError("calibration needs at least one image")
    sums = np.zeros((len(STRUCTURES), 3, bins))  # pixels, probability, foreground
    for code, mask in zip(codes, masks, strict=True):
        prob = upsample(code, mask.shape[-1])
        for channel in range(len(STRUCTURES)):
            flat = prob[channel].ravel().astype(np.float64)
            place = np.minimum((flat * bins).astype(np.intp), bins - 1)
            for row, weight in enumerate((None, flat, mask[channel].ravel())):
                sums[channel, row] += np.bincount(place, weights=weight, minlength=bins)
    gaps = np.abs(sums[:, 1] - sums[:, 2]).sum(axis=1) / sums[:, 0].sum(axis=1)
    return {name: float(gap) for name, gap in zip(STRUCTURES, gaps, strict=True)}


def _dice_at(prob: NDArray[np.float32], mask: BoolArray, edges: NDArray[np.float32]) -> list[float]:
    """Return the Dice at each edge from one histogram of the probabilities."""
    # The number of thresholds below each pixel's probability; ties are not above.
    above = np.searchsorted(edges, prob.ravel(), side="left")
    size = len(edges) + 1
    counts = np.bincount(above, minlength=size)
    hits = np.bincount(above[mask.ravel()], minlength=size)
    predicted = counts[::-1].cumsum()[::-1][1:]
    shared = hits[::-1].cumsum()[::-1][1:]
    total = predicted + int(mask.sum())
    values = np.where(total > 0, 2 * shared / np.maximum(total, 1), 1.0)
    return [float(value) for value in values]


def _check(codes: NDArray[np.uint8], masks: BoolArray, images: int) -> None:
    if not len(codes) == len(masks) == images:
        raise ValueError(f"{len(codes)} predictions, {len(masks)} masks and {images} image names")
    if masks.dtype != np.bool_ or masks.ndim != 4 or masks.shape[1] != len(STRUCTURES):
        raise ValueError(f"masks must be bool (N, 2, G, G), got {masks.dtype} {masks.shape}")

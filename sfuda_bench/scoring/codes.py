"""Probabilities stored as one byte per pixel, and brought to the evaluation grid."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

STRUCTURES = ("cup", "disc")
"""Order of the two channels of every map: the disc includes the cup."""

# Probabilities may leave [0, 1] by this much through rounding, and no further.
_ROUNDING = 1e-5


def encode(prob: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Return the byte code of each probability, exact at thresholds k/256.

    The code is max(0, ceil(256 p) - 1), so for each integer k in 1..255, ``p > k/256`` is
    the same as ``code >= k``: a prediction thresholded at 0.5 or 0.75 loses nothing.

    Args:
        prob: (...) floating point probabilities in [0, 1]. Multiplying by 256 is exact in
            every binary format, so the input's own precision is kept.

    Returns:
        (...) uint8.

    Raises:
        ValueError: If a value is not finite or lies outside [0, 1], e.g. when logits are
            given.
    """
    prob = np.asarray(prob)
    if prob.size and not (prob.min() >= -_ROUNDING and prob.max() <= 1 + _ROUNDING):
        raise ValueError(
            f"probabilities must be finite and in [0, 1], got {prob.min()} to {prob.max()}"
        )
    codes: NDArray[np.uint8] = np.clip(np.ceil(prob * 256) - 1, 0, 255).astype(np.uint8)
    return codes


def decode(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the probability in the middle of each code's interval, (code + 0.5) / 256.

    Args:
        codes: (...) uint8.

    Returns:
        (...) float32 in (0, 1), within 1/512 of the encoded probability and never equal to
        a threshold k/256.
    """
    return (codes.astype(np.float32) + np.float32(0.5)) / np.float32(256)


def upsample(codes: NDArray[np.uint8], grid: int | tuple[int, int]) -> NDArray[np.float32]:
    """Return the probabilities of stored codes on a grid of another size.

    Bilinear with half-pixel centres and clamped edges (``align_corners=False``), without
    antialiasing. At ``grid == S`` nothing is interpolated, so thresholds stay exact.
    Element-wise float32 arithmetic only: the result is the same on every machine and for
    every thread count, which a matrix product would not promise.

    Args:
        codes: (..., S, S) uint8.
        grid: Side of the result in pixels, or its height and width.

    Returns:
        (..., grid, grid) or (..., height, width) float32 in (0, 1).

    Raises:
        ValueError: If the codes are not uint8 or not square.
    """
    if codes.dtype != np.uint8 or codes.ndim < 2 or codes.shape[-1] != codes.shape[-2]:
        raise ValueError(
            f"codes must be uint8 of shape (..., S, S), got {codes.dtype} of shape {codes.shape}"
        )
    prob = decode(codes)
    height, width = (grid, grid) if isinstance(grid, int) else grid
    if codes.shape[-2:] == (height, width):
        return prob
    # Columns first: the irregular memory access then touches the smaller array.
    low, high, weight = _neighbours(codes.shape[-1], width)
    wide = _interpolate(prob, -1, low, high, weight)
    low, high, weight = _neighbours(codes.shape[-2], height)
    return _interpolate(wide, -2, low, high, weight[:, None])


def _interpolate(
    values: NDArray[np.float32],
    axis: int,
    low: NDArray[np.intp],
    high: NDArray[np.intp],
    weight: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return low + weight (high - low) along an axis, in place to spare memory traffic."""
    first, second = values.take(low, axis=axis), values.take(high, axis=axis)
    second -= first
    second *= weight
    second += first
    return second


def _neighbours(
    size: int, grid: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return each output pixel's two input pixels and the weight of the second."""
    position = np.maximum((np.arange(grid) + 0.5) * (size / grid) - 0.5, 0)
    low = np.minimum(position.astype(np.intp), size - 1)
    high = np.minimum(low + 1, size - 1)
    return low, high, (position - low).astype(np.float32)

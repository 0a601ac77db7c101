"""Find photographs that appear twice although no byte agrees: saved again, cropped, resized.

All crops around a disc look alike from afar, so an ordinary perceptual hash of 64 bits takes
different eyes for one. This one has 255 bits and is made from the locally normalised green
channel, where the course of the vessels weighs as much as the bright disc. One image is compared
as a whole, the other also through slightly smaller windows of it, in both directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from sfuda_bench.images.decode import Uint8

Float = npt.NDArray[np.float32]
Signs = npt.NDArray[np.int8]

BITS = 255
SAME_BELOW = 50
"""Two images that differ in fewer bits are taken for one photograph.

Measured at 512 x 512 px on 457 disc crops of three hospitals: the nearest two of the 104,196
pairs of different photographs differ in 60 bits. Copies saved as JPEG of quality 30, reduced to
200 px, brightened, blurred, with noise, or cropped to as little as 88 % of the side off the
centre differ in at most 41, cropped to 85 % in at most 43.
"""

_SIDE = 96
_FREQUENCIES = 16
_SIGMA = 9.0  # of the local normalisation, px of the reduced image
_SOFT = 2.0  # gray levels: below this contrast is noise
_FLAT = 0.5  # gray levels: an image with less contrast has nothing to recognise
_WINDOWS = ((0.95, 3), (0.9, 5))
"""Side of the smaller windows as a share of the image's, and their places along one axis."""
_BLOCK = 64


@dataclass(frozen=True)
class NearPair:
    """Two images that are probably one photograph.

    Args:
        first: Place of the first image in the sequence.
        second: Place of the second, larger than ``first``.
        bits: How many of the 255 bits differ, at the best of all alignments.
    """

    first: int
    second: int
    bits: int


def perceptual_hash(image: Uint8) -> Signs | None:
    """Return the signs of an image's low spatial frequencies, whole and in smaller windows.

    Args:
        image: (H, W, 3) uint8 RGB.

    Returns:
        (35, 255) int8 of -1 and 1; the first row is the whole image. ``None`` for an image
        without structure, which resembles every other such image.
    """
    small = Image.fromarray(np.ascontiguousarray(image[..., 1]))
    green = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.float32)
    rough = green - _smooth(green)
    spread = np.sqrt(_smooth(rough * rough))
    if float(spread.max()) < _FLAT:
        return None
    waves = _waves()
    found = np.einsum("wkx,yx,vly->wvlk", waves, rough / (spread + _SOFT), waves, optimize=True)
    rows = [found[column, row].ravel()[1:] for column, row in _places()]
    return np.where(np.stack(rows) > 0, 1, -1).astype(np.int8)


def near_pairs(hashes: Sequence[Signs | None], below: int = SAME_BELOW) -> list[NearPair]:
    """Return the pairs of images that differ in fewer than ``below`` bits, nearest first.

    Args:
        hashes: From :func:`perceptual_hash`; ``None`` is like no other.
        below: Number of bits.
    """
    known = [place for place, signs in enumerate(hashes) if signs is not None]
    signs = [found for found in hashes if found is not None]
    if len(known) < 2:
        return []
    whole = np.stack([one[0] for one in signs]).astype(np.float32)
    bits = np.empty((len(known), len(known)), dtype=np.float32)
    for start in range(0, len(known), _BLOCK):
        block = np.stack(signs[start : start + _BLOCK]).astype(np.float32)
        alike = (block.reshape(-1, BITS) @ whole.T).reshape(*block.shape[:2], -1).max(axis=1)
        bits[start : start + _BLOCK] = (BITS - alike) / 2
    bits = np.minimum(bits, bits.T)
    first, second = np.nonzero(np.triu(bits < below, 1))
    pairs = [
        NearPair(known[i], known[j], int(bits[i, j])) for i, j in zip(first, second, strict=True)
    ]
    return sorted(pairs, key=lambda pair: (pair.bits, pair.first, pair.second))


def _smooth(values: Float) -> Float:
    return np.asarray(ndimage.gaussian_filter(values, _SIGMA, truncate=2.0), dtype=np.float32)


@cache
def _waves() -> Float:
    """Return cosines on every window along one axis, faded out towards its ends.

    Returns:
        (9, 16, 96) float32: window, frequency, pixel.
    """
    rows = []
    for share, count in ((1.0, 1), *_WINDOWS):
        for start in np.linspace(0.0, 1.0 - share, count) if count > 1 else (0.0,):
            within = ((np.arange(_SIDE) + 0.5) / _SIDE - start) / share
            inside = (within > 0) & (within < 1)
            fade = np.where(inside, np.sin(np.pi * within), 0.0)
            waves = np.cos(np.pi * np.outer(np.arange(_FREQUENCIES), within))
            rows.append(waves * fade)
    return np.stack(rows).astype(np.float32)


@cache
def _places() -> tuple[tuple[int, int], ...]:
    """Return the windows along x and y that make one square window."""
    places, start = [(0, 0)], 1
    for _, count in _WINDOWS:
        along = range(start, start + count)
        places += [(column, row) for row in along for column in along]
        start += count
    return tuple(places)

"""Images as the released loaders treat them: decoded from PNG and augmented for every sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Uint8 = NDArray[np.uint8]
Float = NDArray[np.float32]


@dataclass
class Sample:
    """One image of a split as a loader returns it.

    Attributes:
        name: File name without suffix.
        image: (3, S, S) float32 in [-1, 1].
        mask: (2, S, S) float32 ground truth, cup first.
        boundary: (1, S, S) float32 soft boundary of both structures.
    """

    name: str
    image: Float
    mask: Float
    boundary: Float


def files(root: Path, split: str) -> list[Path]:
    """Return the image files of a split, by name."""
    return sorted((root / split / "ROIs" / "image").glob("*.png"))


def mask_of(image: Path) -> Path:
    """Return the mask file of an image file."""
    return image.parent.parent / "mask" / image.name


def load(path: Path, size: int, rng: np.random.Generator | None) -> Sample:
    """Decode, resize, augment (with a generator) and normalise one image and its mask."""
    image = np.asarray(
        Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
    )
    if rng is not None:
        image = eraser(gamma(salt_or_pepper(image, rng), rng), rng)
    mask = read_mask(path, size)
    normal = image.astype(np.float32).transpose(2, 0, 1) / 127.5 - 1.0
    return Sample(path.stem, normal, mask, boundary(mask))


def read_mask(image: Path, size: int) -> Float:
    """Decode and resize the mask of an image; (2, S, S), cup first."""
    opened = Image.open(mask_of(image)).convert("L")
    levels = np.asarray(opened.resize((size, size), Image.Resampling.NEAREST))
    return np.stack([levels <= 50, levels <= 200]).astype(np.float32)


def boundary(mask: Float) -> Float:
    """Return the soft boundary (1, S, S) of both structures; no loss of DPL or CPR uses it."""
    edge = np.zeros(mask.shape[-2:], dtype=bool)
    for one in mask.astype(bool):
        wide = ndimage.binary_dilation(one, iterations=5)
        edge |= wide ^ ndimage.binary_erosion(one, iterations=5, border_value=1)
    smooth = ndimage.gaussian_filter((255 * edge).astype(np.uint8), sigma=3)
    return (smooth / 255.0).astype(np.float32)[None]


def salt_or_pepper(image: Uint8, rng: np.random.Generator) -> Uint8:
    """Write level 1 (salt, p 0.25) or 0 (pepper, p 0.25) at random places."""
    draw = rng.uniform()
    if draw < 0.5:
        return image
    image = image.copy()
    share, level = (0.2, 1) if draw > 0.75 else (0.8, 0)
    count = int(np.ceil(0.004 * image.size * share))
    rows, columns = (rng.integers(0, side - 1, count) for side in image.shape[:2])
    image[rows, columns] = level
    return image


def gamma(image: Uint8, rng: np.random.Generator) -> Uint8:
    """Change the brightness by a look-up table, p 0.5."""
    if rng.uniform() < 0.5:
        return image
    exponent = 1.0 / rng.uniform(0.5, 3.5)
    table = np.array([((i / 255.0) ** exponent) * 255 for i in range(256)]).astype(np.uint8)
    return table[image]


def eraser(image: Uint8, rng: np.random.Generator) -> Uint8:
    """Fill one rectangle with one level, p 0.5."""
    if rng.uniform() < 0.5:
        return image
    image = image.copy()
    height, width, _ = image.shape
    while True:
        area, ratio = rng.uniform(0.02, 0.06) * height * width, rng.uniform(0.3, 0.6)
        wide, tall = int(np.sqrt(area / ratio)), int(np.sqrt(area * ratio))
        left, top = rng.integers(0, width), rng.integers(0, height)
        if left + wide <= width and top + tall <= height:
            break
    image[top : top + tall, left : left + wide] = np.uint8(rng.uniform(0, 255))
    return image

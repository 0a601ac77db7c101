from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from sfuda_bench.images.near_duplicates import BITS, SAME_BELOW, near_pairs, perceptual_hash

SIDE = 160


def eye(seed: int, side: int = SIDE) -> np.ndarray:
    """Draw a bright disc in the middle, the same for all, and dark lines, which differ."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side] / side - 0.5
    shade = 70 + 110 * (np.hypot(rows, columns) < 0.25)
    for _ in range(8):
        angle, bend, start = rng.uniform(0, 2 * np.pi), rng.normal(0, 2), rng.normal(0, 0.08)
        along = np.cos(angle) * columns + np.sin(angle) * rows
        across = -np.sin(angle) * columns + np.cos(angle) * rows - start - bend * along**2
        shade = shade - 50 * np.exp(-((across / 0.015) ** 2)) * (along > 0)
    green = ndimage.gaussian_filter(shade, side / 160)
    colours = np.stack([1.6 * green, green, 0.4 * green], axis=2)
    return np.clip(colours + rng.normal(0, 2, colours.shape), 0, 255).astype(np.uint8)


def cropped(image: np.ndarray, share: float, right: float, down: float) -> np.ndarray:
    side = len(image)
    size, slack = round(side * share), side * (1 - share)
    left, top = round(slack * right), round(slack * down)
    return image[top : top + size, left : left + size]


def as_jpeg(image: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=40)
    return np.asarray(Image.open(stream))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "saved as JPEG": as_jpeg,
    "reduced": lambda image: np.asarray(Image.fromarray(image).resize((100, 100))),
    "brighter": lambda image: np.clip(image * 1.2, 0, 255).astype(np.uint8),
    "cropped in the middle": lambda image: cropped(image, 0.95, 0.5, 0.5),
    "cropped at a corner": lambda image: cropped(image, 0.93, 0.0, 1.0),
    "cropped at a side": lambda image: cropped(image, 0.9, 1.0, 0.4),
    "moved": lambda image: cropped(image, 0.97, 1.0, 0.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_is_found_in_either_order(change: Callable[..., np.ndarray]) -> None:
    for seed in range(3):
        image = eye(seed)
        hashes = [perceptual_hash(image), perceptual_hash(change(image))]
        assert len(near_pairs(hashes)) == len(near_pairs(hashes[::-1])) == 1


def test_different_eyes_with_one_disc_are_no_pair() -> None:
    hashes = [perceptual_hash(eye(seed)) for seed in range(12)]
    assert near_pairs(hashes) == []
    assert min(pair.bits for pair in near_pairs(hashes, BITS)) > SAME_BELOW


def test_an_image_differs_in_no_bit_from_itself() -> None:
    signs = perceptual_hash(eye(0))
    assert [pair.bits for pair in near_pairs([signs, signs])] == [0]


def test_pairs_name_places_nearest_first_across_blocks() -> None:
    """More images than one block holds; the ones without structure keep their places."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (20, 20, 3), dtype=np.uint8) for _ in range(70)]
    images[1] = np.zeros((20, 20, 3), dtype=np.uint8)
    images += [images[3], np.clip(images[68] * 0.97 + 6, 0, 255).astype(np.uint8)]
    pairs = near_pairs([perceptual_hash(image) for image in images])
    assert [(pair.first, pair.second) for pair in pairs] == [(3, 70), (68, 71)]
    assert pairs[0].bits <= pairs[1].bits


def test_images_without_structure_are_like_no_other() -> None:
    flat = [np.full((30, 30, 3), level, dtype=np.uint8) for level in (0, 90, 90)]
    assert [perceptual_hash(image) for image in flat] == [None] * 3
    assert near_pairs([None, None]) == []

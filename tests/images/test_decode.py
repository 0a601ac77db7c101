from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import (
    content_digest,
    decode_levels,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
)

RGB = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
GRAY = np.array([[0, 50, 51, 128, 200, 201, 255]], dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]  # PIL's save options
    return path


def test_levels_decode_at_the_transitions_of_the_released_code() -> None:
    cup, disc = decode_levels(GRAY)
    assert cup.tolist() == [[True, True, False, False, False, False, False]]
    assert disc.tolist() == [[True, True, True, True, True, False, False]]


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_may_be_gray_or_three_equal_channels(tmp_path: Path, channels: int) -> None:
    pixels = GRAY if channels == 1 else np.repeat(GRAY[..., None], 3, axis=2)
    mask = read_mask(save(tmp_path / "m.png", pixels))
    assert mask.dtype == np.bool_
    assert np.array_equal(mask, decode_levels(GRAY))


def test_an_rgb_image_is_read_as_it_is(tmp_path: Path) -> None:
    assert np.array_equal(read_image(save(tmp_path / "i.png", RGB)), RGB)


def test_a_mask_with_unequal_channels_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"m\.png.*unequal channels"):
        read_mask(save(tmp_path / "m.png", RGB))


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of every kind that neither an image nor a mask may be."""
    sixteen = Image.fromarray(np.zeros((8, 8), dtype=np.uint16))
    sixteen.save(folder / "sixteen.png")
    Image.fromarray(RGB).quantize(8).save(folder / "palette.png")
    Image.fromarray(RGB).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(RGB).convert("LA").save(folder / "gray-alpha.png")
    Image.fromarray(RGB).convert("1").save(folder / "one-bit.png")
    Image.fromarray(RGB).save(folder / "transparent.png", transparency=(1, 2, 3))
    Image.fromarray(RGB).save(folder / "jpeg.png", format="JPEG")
    whole = save(folder / "whole.png", RGB).read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "header.png").write_bytes(whole[:20])
    (folder / "empty.png").write_bytes(b"")
    names = "sixteen palette alpha gray-alpha one-bit transparent jpeg truncated header empty"
    return {name: folder / f"{name}.png" for name in [*names.split(), "missing"]}


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("sixteen", "16-bit"),
        ("palette", "palette"),
        ("alpha", "alpha"),
        ("gray-alpha", "alpha"),
        ("one-bit", "1-bit"),
        ("transparent", "transparent colour"),
        ("jpeg", "not a PNG"),
        ("truncated", "truncated"),
        ("header", "truncated"),
        ("empty", "not a PNG"),
        ("missing", "cannot be read"),
    ],
)
def test_unusual_files_are_refused_by_name(
    tmp_path: Path, read: object, name: str, problem: str
) -> None:
    path = bad_files(tmp_path)[name]
    with pytest.raises(DataError, match=problem) as error:
        read(path)  # type: ignore[operator]  # one of the two readers above
    assert str(path) in str(error.value)
    assert error.value.hint


def test_a_sixteen_bit_rgb_png_is_not_silently_narrowed(tmp_path: Path) -> None:
    """The decoder would turn it into 8 bits; the header says what it is."""
    content = bytearray(save(tmp_path / "i.png", RGB).read_bytes())
    content[24] = 16
    (tmp_path / "i.png").write_bytes(content)
    with pytest.raises(DataError, match="16-bit RGB"):
        read_image(tmp_path / "i.png")


def test_a_gray_image_is_refused_as_an_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="8-bit gray PNG; expected an 8-bit PNG, RGB"):
        read_image(save(tmp_path / "i.png", GRAY))


def test_the_digest_ignores_compression_and_sees_one_changed_value(tmp_path: Path) -> None:
    small = read_image(save(tmp_path / "a.png", RGB, compress_level=9))
    large = read_image(save(tmp_path / "b.png", RGB, compress_level=0))
    assert content_digest(small) == content_digest(large)
    changed = RGB.copy()
    changed[3, 4, 1] ^= 1
    assert content_digest(changed) != content_digest(RGB)
    assert content_digest(RGB.reshape(4, 16, 3)) != content_digest(RGB)


def test_resizing_keeps_types_and_the_cup_inside_the_disc() -> None:
    levels = np.random.default_rng(1).choice([0, 128, 255], (80, 80)).astype(np.uint8)
    mask = resize_mask(decode_levels(levels), 51)
    assert mask.shape == (2, 51, 51)
    assert mask.dtype == np.bool_
    assert not (mask[0] & ~mask[1]).any()
    image = resize_image(np.full((80, 80, 3), 77, dtype=np.uint8), 51)
    assert image.shape == (51, 51, 3)
    assert (image == 77).all()


def test_resizing_to_the_same_size_changes_nothing() -> None:
    assert resize_image(RGB, 8) is RGB


def test_masks_resize_like_their_gray_levels() -> None:
    """Nearest on the structures equals nearest on the PNG, as the released code does it."""
    levels = np.random.default_rng(2).choice([0, 128, 255], (80, 80)).astype(np.uint8)
    nearest = Image.fromarray(levels).resize((51, 51), Image.Resampling.NEAREST)
    expected = decode_levels(np.asarray(nearest))
    assert np.array_equal(resize_mask(decode_levels(levels), 51), expected)

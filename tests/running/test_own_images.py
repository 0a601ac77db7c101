"""One's own images: formats, what is refused, what is said, and that masks are never images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import read_image
from sfuda_bench.running.own.images import (
    check_stems,
    find_images,
    look_at,
    notes_on,
    read_picture,
    write_split,
)

RNG = np.random.default_rng(0)
RGB = RNG.integers(30, 200, (24, 32, 3), dtype=np.uint8)


def save(path: Path, array: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.tif", "a.tiff"])
def test_lossless_files_keep_their_pixels(tmp_path: Path, name: str) -> None:
    assert np.array_equal(read_picture(save(tmp_path / name, RGB)).pixels, RGB)


def test_a_jpeg_is_read_and_turned_as_its_tag_says(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to see it upright
    path = save(tmp_path / "a.jpg", RGB, exif=exif, quality=95)
    picture = read_picture(path)
    assert picture.pixels.shape == (32, 24, 3)
    assert picture.conversions == ("turned",)
    plain = np.asarray(Image.open(path)).astype(int)
    assert np.array_equal(picture.pixels, np.rot90(plain, -1))


def test_gray_palette_and_opaque_alpha_are_read_as_rgb(tmp_path: Path) -> None:
    gray = read_picture(save(tmp_path / "gray.png", RGB[..., 0]))
    assert np.array_equal(gray.pixels, np.repeat(RGB[..., :1], 3, axis=2))
    assert gray.conversions == ("gray",)
    opaque = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    alpha = read_picture(save(tmp_path / "alpha.png", opaque))
    assert np.array_equal(alpha.pixels, RGB)
    assert alpha.conversions == ("alpha",)
    Image.fromarray(RGB).quantize(64).save(tmp_path / "palette.png")
    palette = read_picture(tmp_path / "palette.png")
    expected = np.asarray(Image.fromarray(RGB).quantize(64).convert("RGB"))
    assert np.array_equal(palette.pixels, expected)
    assert not (gray.as_is or alpha.as_is or palette.as_is)


def test_of_16_bits_the_upper_8_are_used_and_a_narrower_scale_is_refused(tmp_path: Path) -> None:
    wide = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 85
    picture = read_picture(save(tmp_path / "wide.png", wide))
    assert np.array_equal(picture.pixels[..., 1], (wide >> 8).astype(np.uint8))
    assert set(picture.conversions) == {"16 bit", "gray"}
    assert np.array_equal(read_picture(save(tmp_path / "w.tif", wide)).pixels, picture.pixels)
    with pytest.raises(DataError, match="unclear scale"):
        read_picture(save(tmp_path / "narrow.png", wide // 85))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("empty.png", lambda path: path.write_bytes(b"")),
        ("cut.png", lambda path: path.write_bytes(save(path, RGB).read_bytes()[:200])),
        ("text.jpg", lambda path: path.write_text("no image")),
        ("cmyk.jpg", lambda path: Image.new("CMYK", (8, 8)).save(path)),
        ("float.tif", lambda path: save(path, RGB[..., 0].astype(np.float32))),
        ("half.png", lambda path: save(path, np.dstack([RGB, RGB[..., 0]]))),
        ("gone.png", lambda path: None),
    ],
)
def test_what_has_no_single_reading_is_refused_by_name(
    tmp_path: Path, name: str, make: Any
) -> None:
    make(tmp_path / name)
    with pytest.raises(DataError, match=name) as caught:
        read_picture(tmp_path / name)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    with pytest.raises(DataError, match="too large"):
        read_picture(tmp_path / "huge.png")


def test_images_are_found_in_the_folder_or_beside_its_masks(tmp_path: Path) -> None:
    image = save(tmp_path / "ROIs" / "image" / "a.png", RGB)
    save(tmp_path / "ROIs" / "mask" / "a.png", RGB[..., 0])
    for named in (tmp_path, tmp_path / "ROIs", image.parent):
        found = find_images(named)
        assert found.files == (image,)
        assert found.beside == (tmp_path / "ROIs" / "mask",)
    (image.parent / "notes.txt").write_text("x")
    save(image.parent / "._b.png", RGB)
    assert find_images(image.parent).files == (image,)
    assert "1 files are no" in find_images(image.parent).notes[0]


def test_missing_and_empty_folders_are_errors_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name, text in (("gone", "no such"), ("file", "is a file"), ("empty", "no image")):
        with pytest.raises(DataError, match=text) as caught:
            find_images(tmp_path / name)
        assert caught.value.hint


def test_equal_stems_are_refused_in_any_case() -> None:
    with pytest.raises(DataError, match="same name"):
        check_stems([Path("a.png"), Path("b.png"), Path("A.jpg")])


def test_masks_are_left_out_and_photographs_keep_their_pixels(tmp_path: Path) -> None:
    mask = np.full((24, 32), 255, np.uint8)
    mask[4:20, 4:20], mask[8:12, 8:12] = 128, 0
    files = [
        save(tmp_path / "a.png", RGB),
        save(tmp_path / "a_mask.png", mask),
        save(tmp_path / "b.tif", RGB[::-1].copy()),
    ]
    facts = write_split(files, tmp_path / "out", 0)
    assert [found.mask_like for found in facts] == [False, True, False]
    written = sorted((tmp_path / "out").iterdir())
    assert np.array_equal(read_image(written[0]), RGB)
    assert np.array_equal(read_image(written[1]), RGB[::-1])
    assert len(written) == 2
    with pytest.raises(DataError, match="look like masks"):
        write_split(files[1:2], tmp_path / "out", 0)


def test_every_unreadable_file_is_listed_at_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"2 images.*a\.png.*b\.png"):
        write_split(sorted(tmp_path.glob("*.png")), tmp_path / "out", 0)


def test_full_fields_and_odd_shapes_are_named(tmp_path: Path) -> None:
    y, x = np.mgrid[0:96, 0:96]
    field = np.where((np.hypot(x - 48, y - 48) < 46)[..., None], RGB.mean(), 0)
    whole = read_picture(save(tmp_path / "field.png", np.repeat(field, 3, 2).astype(np.uint8)))
    assert look_at(whole).full_field
    assert not look_at(whole, crop_px=48).full_field
    crop = read_picture(save(tmp_path / "crop.png", RGB))
    text = " | ".join(notes_on([look_at(whole), look_at(crop)], image_size=64, crop_px=0))
    assert "1 of 2 images (e.g. 96 x 96 px) look like full" in text
    assert "1 of 2 images (e.g. 32 x 24 px) are not square" in text
    assert "are enlarged to the 64 px" in text
    cut = " | ".join(notes_on([look_at(whole, 32), look_at(crop, 24)], image_size=24, crop_px=24))
    assert "2 of 2 images (e.g. 96 x 96 px) are larger than 24 px" in cut
    assert "not square" not in cut

"""Bytes that no camera wrote: an image, or an error of ours that names the file."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import read_image, read_levels, read_mask
from tests.fuzz.pictures import SIDE, attack, check_all, chunk, png, seeds


@given(st.randoms(use_true_random=False))
def test_damaged_files_are_images_or_errors_that_name_them(
    folder: Path, rng: random.Random
) -> None:
    attack(rng, folder)


@pytest.mark.parametrize("name", sorted(seeds()))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_file_cut_short_is_refused_as_image_and_as_mask(
    tmp_path: Path, name: str, share: float
) -> None:
    data = seeds()[name]
    path = tmp_path / name
    path.write_bytes(data[: int(len(data) * share)])
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=name):
            read(path)
    check_all(path)


ODD = {
    "wrong CRC": png(SIDE, SIDE, wrong_crc=True),
    "16 bits": png(SIDE, SIDE, depth=16),
    "palette": png(SIDE, SIDE, colour=3, extra=((b"PLTE", bytes(768)),)),
    "no width": png(0, SIDE),
    "no height": png(SIDE, 0),
    "transparent colour": png(SIDE, SIDE, extra=((b"tRNS", bytes(6)),)),
    "a bomb by its size": png(60_000, 60_000),
    "the largest size": png(2**31 - 1, 2**31 - 1),
    "beyond the largest size": png(2**32 - 1, 1),
    "a bomb in a text": png(SIDE, SIDE, extra=((b"zTXt", b"x\0\0" + b"\x78\x9c"),)),
    "fewer rows than promised": png(SIDE, SIDE, data=bytes(30)),
    "unknown filter": png(SIDE, SIDE, data=b"\7" * (SIDE * (3 * SIDE + 1))),
    "no pixels": png(SIDE, SIDE).split(b"IDAT")[0][:-4] + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("name", sorted(set(ODD) - {"a bomb in a text"}))
def test_what_has_no_single_reading_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(ODD[name])
    with pytest.raises(DataError, match=r"odd\.png") as caught:
        read_image(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    check_all(path)


def test_an_interlaced_image_has_the_pixels_of_a_plain_one(tmp_path: Path) -> None:
    plain, laced = tmp_path / "plain.png", tmp_path / "laced.png"
    plain.write_bytes(png(1, 1, data=b"\0\1\2\3"))
    laced.write_bytes(png(1, 1, interlace=1, data=b"\0\1\2\3"))
    assert np.array_equal(read_image(plain), read_image(laced))


@given(st.integers(0, 255))
def test_every_gray_value_of_a_mask_is_one_tissue(folder: Path, gray: int) -> None:
    path = folder / "mask.png"
    path.write_bytes(png(1, 1, colour=0, data=bytes([0, gray])))
    cup, disc = read_mask(path)[:, 0, 0]
    assert read_levels(path)[0, 0] == gray
    assert (cup, disc) == (gray <= 50, gray <= 200)

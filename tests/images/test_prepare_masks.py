"""A wrong declaration of a mask's encoding is caught, and the right one is named."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from sfuda_bench.datasets import BinaryMasks, LabelMask, RawMask, SoftMasks, Tissue
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.prepare.encodings import COMMON, Encoding, describe, parse_encoding
from sfuda_bench.images.prepare.masks import decode_masks
from sfuda_bench.images.prepare.pixels import read_gray, read_photograph
from tests.images import raw_trees as trees

IMAGE, MASK = trees.eye(0)


def decode(folder: Path, mask: RawMask, agreement: float = 0.5) -> npt.NDArray[np.bool_]:
    paths = {path.name: path for path in folder.iterdir()}
    return decode_masks([mask], paths, IMAGE, agreement=agreement).mask


def codes(values: dict[int, Tissue]) -> tuple[int, int, int]:
    by_tissue = {tissue: value for value, tissue in values.items()}
    return by_tissue["cup"], by_tissue["rim"], by_tissue["background"]


@pytest.mark.parametrize("values", COMMON, ids=describe)
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_every_declared_encoding_decodes_to_the_same_mask(
    values: dict[int, Tissue], suffix: str, tmp_path: Path
) -> None:
    trees.save(tmp_path / f"m{suffix}", trees.levels(MASK, *codes(values)))
    assert np.array_equal(decode(tmp_path, LabelMask(f"m{suffix}", values)), MASK)


@pytest.mark.parametrize(
    ("truth", "declared"),
    [(a, b) for a in COMMON for b in COMMON if a != b],
    ids=lambda values: describe(values),
)
def test_every_other_declaration_is_refused_and_the_right_one_named(
    truth: dict[int, Tissue], declared: dict[int, Tissue], tmp_path: Path
) -> None:
    trees.save(tmp_path / "m.png", trees.levels(MASK, *codes(truth)))
    with pytest.raises(DataError, match=r"m\.png") as error:
        decode(tmp_path, LabelMask("m.png", declared))
    assert f"--encoding {describe(truth)}" in str(error.value.hint)


def test_an_undeclared_encoding_is_asked_for_with_what_would_pass(tmp_path: Path) -> None:
    trees.save(tmp_path / "m.png", trees.levels(MASK, 2, 1, 0))
    with pytest.raises(DataError, match="nothing says what its gray values 0, 1, 2 mean") as error:
        decode(tmp_path, LabelMask("m.png", None))
    assert "2=cup,1=rim,0=background" in str(error.value.hint)


def test_stray_values_are_refused(tmp_path: Path) -> None:
    levels = trees.levels(MASK, 0, 128, 255)
    levels[0, :3] = 77
    trees.save(tmp_path / "m.png", levels)
    with pytest.raises(DataError, match=r"gray values 77 in 0.01% of the pixels are not declared"):
        decode(tmp_path, LabelMask("m.png", COMMON[0]))


def test_a_lossy_mask_is_read_by_the_nearest_value(tmp_path: Path) -> None:
    trees.save(tmp_path / "m.jpg", trees.levels(MASK, 0, 128, 255))
    decoded = decode(tmp_path, LabelMask("m.jpg", COMMON[0]))
    assert (decoded != MASK).mean() < 0.002


@pytest.mark.parametrize("bright", [True, False])
def test_two_files_of_either_polarity(bright: bool, tmp_path: Path) -> None:
    for name, structure in zip(("cup", "disc"), MASK, strict=True):
        trees.save(tmp_path / f"{name}.png", trees.binary(structure, bright=bright))
    right, wrong = ("bright", "dark") if bright else ("dark", "bright")
    mask = BinaryMasks("cup.png", "disc.png", right)  # type: ignore[arg-type]  # one of the two
    assert np.array_equal(decode(tmp_path, mask), MASK)
    with pytest.raises(DataError, match="the disc covers 96") as error:
        decode(tmp_path, BinaryMasks("cup.png", "disc.png", wrong))  # type: ignore[arg-type]  # as above
    assert f"--encoding {right}" in str(error.value.hint)


def test_exchanged_files_are_caught(tmp_path: Path) -> None:
    for name, structure in zip(("cup", "disc"), MASK, strict=True):
        trees.save(tmp_path / f"{name}.png", trees.binary(structure))
    with pytest.raises(DataError, match="the cup is larger than the disc"):
        decode(tmp_path, BinaryMasks("disc.png", "cup.png"))


def test_a_soft_map_declared_as_two_valued_is_caught(tmp_path: Path) -> None:
    for name, radius in (("cup", trees.CUP_RADIUS), ("disc", trees.DISC_RADIUS)):
        soft = trees.soft(trees.centre_of(0), radius, IMAGE.shape[:2])
        trees.save(tmp_path / f"{name}.png", soft)
    with pytest.raises(DataError, match="neither dark nor bright"):
        decode(tmp_path, BinaryMasks("cup.png", "disc.png"))
    disc = decode(tmp_path, SoftMasks("cup.png", "disc.png", 4), agreement=1.0)[1]
    assert np.array_equal(disc, MASK[1])


def test_a_resampled_soft_map_is_refused(tmp_path: Path) -> None:
    for name in ("cup", "disc"):
        smooth = np.linspace(0, 255, IMAGE.shape[1]).astype(np.uint8)
        trees.save(tmp_path / f"{name}.png", np.tile(smooth, (IMAGE.shape[0], 1)))
    with pytest.raises(DataError, match="no shares of 4 graders"):
        decode(tmp_path, SoftMasks("cup.png", "disc.png", 4))


def test_a_cup_elsewhere_is_the_mask_of_another_eye(tmp_path: Path) -> None:
    trees.save(tmp_path / "cup.png", trees.binary(trees.eye(7)[1][0]))
    trees.save(tmp_path / "disc.png", trees.binary(MASK[1]))
    with pytest.raises(DataError, match="of the cup lie outside the disc"):
        decode(tmp_path, BinaryMasks("cup.png", "disc.png"))


def test_an_empty_mask_is_refused(tmp_path: Path) -> None:
    trees.save(tmp_path / "m.png", np.full(IMAGE.shape[:2], 255, np.uint8))
    with pytest.raises(DataError, match="there is no disc"):
        decode(tmp_path, LabelMask("m.png", COMMON[0]))


def test_a_class_index_palette_is_read_by_index_and_a_gray_one_by_colour(tmp_path: Path) -> None:
    classes = Image.fromarray(trees.levels(MASK, 2, 1, 0)).convert("P")
    classes.putpalette([0, 0, 0, 200, 30, 30, 20, 200, 20])
    classes.save(tmp_path / "classes.png")
    assert set(np.unique(read_gray(tmp_path / "classes.png")[0])) == {0, 1, 2}
    gray = Image.fromarray(trees.levels(MASK, 2, 1, 0)).convert("P")
    gray.putpalette([255] * 3 + [128] * 3 + [0] * 3)
    gray.save(tmp_path / "gray.bmp")
    assert set(np.unique(read_gray(tmp_path / "gray.bmp")[0])) == {0, 128, 255}


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n1234"])
def test_a_damaged_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(DataError, match=r"m\.png: cannot be read"):
        decode(tmp_path, LabelMask("m.png", COMMON[0]))


@pytest.mark.parametrize("text", ["0=cup", "0=cup,1=rim,300=background", "0=cup,1=disc", "white"])
def test_a_malformed_declaration_is_explained(text: str) -> None:
    with pytest.raises(UsageError, match="--encoding"):
        parse_encoding(text)


def test_a_declaration_of_another_kind_of_mask_is_refused() -> None:
    with pytest.raises(UsageError, match="does not fit"):
        Encoding(structure="dark").redeclare(LabelMask("m", COMMON[0]))
    with pytest.raises(UsageError, match="does not fit"):
        parse_encoding("0=cup,128=rim,255=background").redeclare(BinaryMasks("c", "d"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_that_is_stored_turned_is_refused(suffix: str, tmp_path: Path) -> None:
    """Nobody knows whether its mask was drawn on what is stored or on what viewers show."""
    for orientation in (1, 3, 6):
        tag = Image.Exif()
        tag[ExifTags.Base.Orientation] = orientation
        path = tmp_path / f"{orientation}{suffix}"
        Image.fromarray(IMAGE).save(path, exif=tag)
        if orientation == 1:
            assert read_photograph(path).shape == IMAGE.shape
            continue
        with pytest.raises(DataError, match=rf"stored turned .*orientation {orientation}"):
            read_photograph(path)


def test_a_picture_of_16_bits_per_channel_is_refused_not_cut_down(tmp_path: Path) -> None:
    height, width, _ = IMAGE.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in IMAGE)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in chunks
        )
    )
    for read in (read_photograph, read_gray):
        with pytest.raises(DataError, match="16 bits per channel"):
            read(tmp_path / "deep.png")


def test_an_opaque_or_clear_alpha_channel_changes_nothing(tmp_path: Path) -> None:
    alpha = np.tile(np.arange(IMAGE.shape[1], dtype=np.uint8), (IMAGE.shape[0], 1))
    Image.fromarray(np.dstack([IMAGE, alpha])).save(tmp_path / "a.png")
    assert np.array_equal(read_photograph(tmp_path / "a.png"), IMAGE)

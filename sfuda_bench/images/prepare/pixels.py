"""Read photographs and gray values from the formats in which owners publish them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image

from sfuda_bench.errors import DataError

Uint8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

FORMATS = ["PNG", "JPEG", "TIFF", "BMP"]
LOSSY = {"JPEG", "MPO"}  # MPO: a JPEG of some cameras, opened as JPEG
MAX_PIXELS = 200_000_000


def read_photograph(path: Path, *, left_half: bool = False) -> Uint8:
    """Read a colour photograph.

    Args:
        path: PNG, JPEG, TIFF or BMP.
        left_half: Cut the left half of a picture that is wider than high, a stereo pair.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The file is damaged, of another format, no 8-bit colour picture, or stored
            turned (EXIF): then nobody knows whether its mask is.
    """
    with _opened(path) as image:
        if image.mode not in ("RGB", "RGBA", "P"):
            raise DataError(
                f"{path}: a picture of mode {image.mode}; expected 8-bit colour",
                hint="save it again as 8-bit RGB",
            )
        pixels = np.asarray(image.convert("RGB"))
    return _left_half(pixels) if left_half else pixels


def read_gray(path: Path, *, left_half: bool = False) -> tuple[Uint8, bool]:
    """Read the gray values of a mask file.

    A palette's *indices* are its gray values if the file has one; a colour file must be gray.

    Args:
        path: PNG, JPEG, TIFF or BMP.
        left_half: As for :func:`read_photograph`.

    Returns:
        (H, W) uint8, and whether the format is lossy.

    Raises:
        DataError: The file is damaged, of another format, coloured, or stored turned.
    """
    with _opened(path) as image:
        lossy = image.format in LOSSY
        pixels = _gray(path, image, lossy=lossy)
    return (_left_half(pixels) if left_half else pixels), lossy


def _gray(path: Path, image: Image.Image, *, lossy: bool) -> Uint8:
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8) * np.uint8(255)
    if image.mode in ("L", "P"):
        gray = np.asarray(image)
        palette = image.getpalette() if image.mode == "P" else None
        return _palette_gray(gray, palette) if palette else gray
    if image.mode in ("RGB", "RGBA"):
        colours = np.asarray(image.convert("RGB"))
        spread = np.ptp(colours, axis=2)
        if spread.max(initial=0) > (24 if lossy else 0):
            raise DataError(
                f"{path}: a coloured mask; expected gray values",
                hint="save it again as 8-bit gray",
            )
        return np.ascontiguousarray(colours[..., 0])
    values = np.asarray(image)
    if values.ndim == 2 and values.dtype.kind in "iu" and 0 <= values.min() <= values.max() <= 255:
        return values.astype(np.uint8)
    raise DataError(
        f"{path}: a mask of mode {image.mode}; expected gray values of 0 to 255",
        hint="save it again as 8-bit gray",
    )


def _palette_gray(indices: Uint8, palette: list[int]) -> Uint8:
    """Return a gray ramp's colours, or the indices where the palette is for show.

    BMP masks of gray images come with a palette that repeats the gray values; class-index PNGs
    come with arbitrary colours, and their indices are the classes.
    """
    table = np.zeros((256, 3), np.uint8)
    given = np.asarray(palette, np.uint8).reshape(-1, 3)
    table[: len(given)] = given
    used = table[np.unique(indices)]
    is_gray = bool((used == used[:, :1]).all())
    return table[indices, 0] if is_gray else indices


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise DataError(f"{path}: {image.width} x {image.height} px is too large", hint=None)
        deep = _is_deep(image)
        image.load()
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read as {', '.join(FORMATS[:2])}, TIFF or BMP: {error}",
            hint="download it again",
        ) from error
    if deep:
        raise DataError(
            f"{path}: a colour picture of 16 bits per channel; expected 8",
            hint="save it again as 8-bit RGB",
        )
    if (orientation := _orientation(image)) > 1:
        raise DataError(
            f"{path}: is stored turned or mirrored (EXIF orientation {orientation}): does its "
            "mask fit what is stored, or what a viewer shows?",
            hint="look, and save it again without this tag",
        )
    return image


def _is_deep(image: Image.Image) -> bool:
    """Whether a colour picture has 16 bits per channel, of which Pillow drops eight in silence."""
    tiles = getattr(image, "tile", ())  # what is still to be decoded, of files only
    modes = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in tiles if tile[3]]
    return image.mode in ("RGB", "RGBA") and any(";16" in str(mode) for mode in modes)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 without one; a damaged tag is none."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _left_half(pixels: Uint8) -> Uint8:
    height, width = pixels.shape[:2]
    return np.ascontiguousarray(pixels[:, : width // 2]) if width > height else pixels


def resize_nearest(array: Bool, size: tuple[int, int]) -> Bool:
    """Resize a (H, W) bool array to ``size`` = (height, width), nearest neighbour."""
    if array.shape == size:
        return array
    image = Image.fromarray(array.astype(np.uint8))
    resized = image.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return np.asarray(resized).astype(np.bool_)

"""Read ROI images and masks from PNG, strictly: what is unusual is an error, never a guess."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfuda_bench.errors import DataError

Uint8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Pixel = TypeVar("Pixel", bound=np.generic)

CUP_MAX_LEVEL = 50
RIM_MAX_LEVEL = 200

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {0: "gray", 2: "RGB", 3: "palette", 4: "gray with alpha", 6: "RGB with alpha"}


def read_image(path: Path) -> Uint8:
    """Read an 8-bit RGB PNG.

    Args:
        path: The file.

    Returns:
        (H, W, 3) uint8.

    Raises:
        DataError: The file is missing, damaged, or not an 8-bit RGB PNG; the message names it.
    """
    return _read_png(path, ("RGB",))


def read_mask(path: Path) -> Bool:
    """Read a mask PNG as two structures, cup first.

    Args:
        path: An 8-bit PNG, gray or RGB with three equal channels.

    Returns:
        (2, H, W) bool: cup, disc. The disc includes the cup.

    Raises:
        DataError: The file is missing, damaged, or of another kind; the message names it.

    Source:
        Released CPR code, dataloaders/custom_transforms.py at 1fea8d4 (levels 50 and 200).
    """
    return decode_levels(read_levels(path))


def read_levels(path: Path) -> Uint8:
    """Read the gray levels of a mask PNG.

    Returns:
        (H, W) uint8, undecoded.

    Raises:
        DataError: The file is missing, damaged, or of another kind; the message names it.
    """
    levels = _read_png(path, ("gray", "RGB"))
    if levels.ndim == 2:
        return levels
    gray = levels[..., 0]
    if not (np.array_equal(gray, levels[..., 1]) and np.array_equal(gray, levels[..., 2])):
        raise DataError(
            f"{path}: an RGB mask with unequal channels; expected gray, or three equal channels",
            hint="sfuda-bench data verify --data-root DIR",
        )
    return np.ascontiguousarray(gray)


def decode_levels(levels: Uint8) -> Bool:
    """Turn gray levels into structures: at most 50 cup, 51 to 200 rim, above 200 background.

    Args:
        levels: (H, W) uint8.

    Returns:
        (2, H, W) bool: cup, disc.
    """
    return np.stack([levels <= CUP_MAX_LEVEL, levels <= RIM_MAX_LEVEL])


def central_window(array: npt.NDArray[Pixel], side_px: int, *, axis: int) -> npt.NDArray[Pixel]:
    """Cut the central window out of an image or a mask, without resampling.

    Args:
        array: Image (H, W, 3) or mask (2, H, W).
        side_px: Side of the window, px; 0, or an extent that is no larger, is left whole.
        axis: Axis of the rows; that of the columns follows.

    Returns:
        A contiguous array with at most ``side_px`` rows and columns; of an odd surplus the larger
        part goes at the bottom and the right.
    """
    if side_px == 0 or max(array.shape[axis : axis + 2]) <= side_px:
        return array
    cut = [slice(None)] * array.ndim
    for place in (axis, axis + 1):
        start = max(0, (array.shape[place] - side_px) // 2)
        cut[place] = slice(start, start + side_px)
    return np.ascontiguousarray(array[tuple(cut)])


def resize_image(image: Uint8, size: int) -> Uint8:
    """Resize an image to ``size`` x ``size`` px, bilinear with anti-aliasing.

    Args:
        image: (H, W, 3) uint8.
        size: New side, px.

    Returns:
        (size, size, 3) uint8.
    """
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: Bool, size: int) -> Bool:
    """Resize a mask to ``size`` x ``size`` px, nearest neighbour.

    Args:
        mask: (2, H, W) bool.
        size: New side, px.

    Returns:
        (2, size, size) bool.
    """
    if mask.shape[1:] == (size, size):
        return mask
    return np.stack([_resize_nearest(structure, size) for structure in mask])


def content_digest(array: npt.NDArray[np.generic]) -> str:
    """Return the sha256 of an array's shape and values.

    It is independent of the file's name, compression and metadata.

    Args:
        array: Decoded image or mask, uint8 or bool.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _resize_nearest(structure: Bool, size: int) -> Bool:
    image = Image.fromarray(structure.astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.NEAREST)).astype(np.bool_)


def _read_png(path: Path, kinds: tuple[str, ...]) -> Uint8:
    """Decode ``path``; its colour type must be one of ``kinds`` at 8 bits per channel."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}", hint="check the data root"
        ) from error
    _check_header(path, content, kinds)
    _check_chunks(path, content)
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            transparent = "transparency" in image.info
            pixels = np.array(image)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path}: a damaged or truncated PNG: {error}", hint="copy the file again"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large: {error}", hint="crop to the disc region") from error
    if transparent:
        raise DataError(f"{path}: has a transparent colour; expected none", hint=_SAVE_HINT)
    return pixels


def _check_chunks(path: Path, content: bytes) -> None:
    """Check the checksum of every chunk, up to the last: decoders skip those of the pixels."""
    start, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        (length,) = struct.unpack(">I", content[start : start + 4].ljust(4, b"\0"))
        kind, end = content[start + 4 : start + 8], start + 8 + length
        found = zlib.crc32(memoryview(content)[start + 4 : end])
        if content[end : end + 4] != struct.pack(">I", found):
            raise DataError(
                f"{path}: a damaged or truncated PNG: the checksum of chunk "
                f"{kind.decode('ascii', 'replace')!r} is wrong",
                hint="copy the file again",
            )
        start = end + 4


_SAVE_HINT = "save it again as 8-bit RGB (image) or 8-bit gray (mask)"


def _check_header(path: Path, content: bytes, kinds: tuple[str, ...]) -> None:
    """Check bit depth and colour type in the header, which decoders convert silently."""
    expected = f"expected an 8-bit PNG, {' or '.join(kinds)}"
    if not content.startswith(_SIGNATURE):
        raise DataError(f"{path}: not a PNG file; {expected}", hint=_SAVE_HINT)
    if len(content) < 33 or content[12:16] != b"IHDR":
        raise DataError(f"{path}: a damaged or truncated PNG header", hint="copy the file again")
    depth, colour = content[24], _COLOUR_TYPES.get(content[25], "unknown")
    if colour not in kinds or depth != 8:
        raise DataError(f"{path}: a {depth}-bit {colour} PNG; {expected}", hint=_SAVE_HINT)

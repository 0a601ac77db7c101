"""One's own images: finding them in a folder, and reading what cameras and exports write.

Only pictures directly in one folder are read. Nothing that looks like a mask becomes an image, and
no file name leaves this module: names can carry the diagnosis.
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import Uint8, central_window

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Files that are read, in any case."""
IMAGE_FOLDERS = ("ROIs/image", "image", "images")
"""Where images are looked for when the folder itself holds none."""
_MASK_FOLDERS = ("mask", "masks")
_MOST_PIXELS = 178_000_000  # beyond twice this library's own alarm, decoding is refused
_LISTED = 5
_MOST_MASK_LEVELS = 4
_LEAST_16_BIT = 4096  # values that never reach it are 10- or 12-bit ones in a wider file
_CORNER_SHARE, _BLACK, _LIT = 16, 20, 40
_ORIENTATION = 0x0112
_PNG_DEPTH_AT = 24  # byte of a PNG that holds the bits per channel

_CONVERTED = {
    "16 bit": "have 16 bits per channel: the upper 8 are used",
    "gray": "are gray: the three channels are made equal, which no network here was trained on",
    "alpha": "have an opaque alpha channel, which is left out",
    "turned": "are turned as their orientation tag says",
    "pages": "have several pages: the first is used",
}


@dataclass(frozen=True)
class ImageFolder:
    """The images in a folder.

    Attributes:
        folder: Where they lie; below the folder that was named, when that holds ``image/``.
        files: Paths sorted by name.
        notes: What the user should know of the choice.
    """

    folder: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()

    @property
    def beside(self) -> tuple[Path, ...]:
        """Folders beside or below the images that are called like folders of masks."""
        near = [self.folder / name for name in _MASK_FOLDERS]
        near += [self.folder.parent / name for name in _MASK_FOLDERS]
        return tuple(path for path in near if path.is_dir())


@dataclass(frozen=True)
class Picture:
    """One decoded image.

    Attributes:
        pixels: (H, W, 3) uint8.
        conversions: Keys of what was done to it, of the notes of this module.
        as_is: Whether the file is an 8-bit RGB PNG that holds exactly these pixels.
    """

    pixels: Uint8
    conversions: tuple[str, ...] = ()
    as_is: bool = False


@dataclass(frozen=True)
class Facts:
    """What was seen of one image; no pixels and no name."""

    height: int
    width: int
    conversions: tuple[str, ...]
    mask_like: bool
    full_field: bool


# -- finding ----------------------------------------------------------------------------------


def find_images(folder: Path) -> ImageFolder:
    """List the images directly in a folder, or in its ``ROIs/image``, ``image`` or ``images``.

    Folders of masks beside them are not even listed.

    Raises:
        DataError: No such folder, or no image in it.
    """
    if not folder.is_dir():
        problem = "is a file, expected a folder" if folder.exists() else "no such folder"
        raise DataError(f"--images {folder}: {problem}", hint="--images DIR names a folder")
    for place in (folder, *(folder / name for name in IMAGE_FOLDERS)):
        if not place.is_dir():
            continue
        files, others = _listed(place)
        if files:
            notes = [] if place == folder else [f"the images are those in {place}"]
            if others:
                notes.append(
                    f"{len(others)} files are no {_kinds()} and are ignored, e.g. {others[0].name}"
                )
            return ImageFolder(place, tuple(files), tuple(notes))
    raise DataError(
        f"--images {folder}: no image directly in it; expected {_kinds()}",
        hint="name the folder that holds the images themselves",
    )


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images and the other files of a folder, sorted, without hidden ones."""
    try:
        found = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"--images {folder}: cannot be listed: {error.strerror}",
            hint="check the permissions of the folder",
        ) from error
    images = [path for path in found if path.suffix.lower() in SUFFIXES]
    return images, [path for path in found if path.suffix.lower() not in SUFFIXES]


def _kinds() -> str:
    return ", ".join(f"*{suffix}" for suffix in SUFFIXES)


def check_stems(files: Sequence[Path]) -> None:
    """Refuse files whose masks would have one name.

    Raises:
        DataError: Names two such files.
    """
    seen: dict[str, Path] = {}
    for path in files:
        other = seen.setdefault(path.stem.casefold(), path)
        if other is not path:
            raise DataError(
                f"'{other.name}' and '{path.name}' would get masks of the same name",
                hint="rename one of them, or keep one",
            )


# -- decoding ---------------------------------------------------------------------------------


def read_picture(path: Path) -> Picture:
    """Read a PNG, JPEG or TIFF as 8-bit RGB; what has no single reading is refused.

    Gray becomes three equal channels, of 16 bits the upper 8 are kept, an opaque alpha channel is
    left out, an orientation tag is followed, and of several pages the first is taken.

    Returns:
        The pixels and what was done to get them.

    Raises:
        DataError: Missing, damaged, too large, half transparent, CMYK, or numbers that are no
            gray levels; the message names the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror or error}", hint="check the file"
        ) from error
    try:
        with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "TIFF"]) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} px")
            image.load()
            return _converted(path, image, content)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large: {error}", hint="crop to the disc region") from error
    except DataError:
        raise
    except Exception as error:  # each format raises its own kinds for a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a PNG, JPEG or TIFF that can be decoded"
        raise DataError(f"{path}: a damaged or unusual image: {reason}", hint=_SAVE) from error


_SAVE = "save it again as an 8-bit RGB PNG"


def _converted(path: Path, image: Image.Image, content: bytes) -> Picture:
    png = image.format == "PNG"
    done = ["pages"] if getattr(image, "n_frames", 1) > 1 else []
    if image.getexif().get(_ORIENTATION, 1) not in (0, 1):
        image, done = ImageOps.exif_transpose(image), [*done, "turned"]
    if png and content[_PNG_DEPTH_AT] == 16 and not image.mode.startswith("I"):
        done.append("16 bit")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise DataError(f"{path}: partly transparent; expected opaque pixels", hint=_SAVE)
        image, done = image.convert("RGB"), [*done, "alpha"]
    if image.mode.startswith("I"):
        return Picture(_from_wide(path, np.asarray(image)), (*done, "16 bit", "gray"))
    if image.mode in ("1", "L"):
        return Picture(_rgb(image), (*done, "gray"))
    if image.mode not in ("RGB", "P", "YCbCr"):
        raise DataError(f"{path}: colour mode {image.mode}; expected RGB or gray", hint=_SAVE)
    as_is = png and image.mode == "RGB" and not done and content[_PNG_DEPTH_AT] == 8
    return Picture(_rgb(image), tuple(done), as_is)


def _rgb(image: Image.Image) -> Uint8:
    return np.array(image.convert("RGB"))


def _from_wide(path: Path, levels: NDArray[Any]) -> Uint8:
    """Return 16-bit gray levels (H, W) as 8-bit RGB."""
    low, high = int(levels.min()), int(levels.max())
    if low < 0 or high > 65_535 or 0 < high < _LEAST_16_BIT:
        raise DataError(
            f"{path}: gray levels {low} to {high} in a file of 16 or more bits: of unclear scale",
            hint=_SAVE,
        )
    gray = (levels.astype(np.uint32) >> 8).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


# -- looking ----------------------------------------------------------------------------------


def look_at(picture: Picture, crop_px: int = 0) -> Facts:
    """Return what can be said of an image, after the central window is cut."""
    height, width = picture.pixels.shape[:2]
    return Facts(
        height=height,
        width=width,
        conversions=picture.conversions,
        mask_like=_is_mask_like(picture.pixels),
        full_field=_is_full_field(central_window(picture.pixels, crop_px, axis=0)),
    )


def _is_mask_like(pixels: Uint8) -> bool:
    """Whether an image has two to four gray levels and no colour: no photograph has."""
    first = pixels[..., 0]
    levels = np.count_nonzero(np.bincount(first.ravel(), minlength=256))
    if not 2 <= levels <= _MOST_MASK_LEVELS:
        return False
    return np.array_equal(first, pixels[..., 1]) and np.array_equal(first, pixels[..., 2])


def _is_full_field(pixels: Uint8) -> bool:
    """Whether at least three corners are black around a lit centre, as of a whole fundus."""
    side = max(1, min(pixels.shape[:2]) // _CORNER_SHARE)
    ends = (slice(None, side), slice(-side, None))
    corners = [pixels[rows, columns].max(axis=2).mean() for rows in ends for columns in ends]
    middle = [slice(n // 2 - side // 2, n // 2 + side // 2 + 1) for n in pixels.shape[:2]]
    dark = sum(corner < _BLACK for corner in corners)
    return bool(dark >= 3 and pixels[middle[0], middle[1]].max(axis=2).mean() > _LIT)


def notes_on(facts: Sequence[Facts], image_size: int, crop_px: int) -> list[str]:
    """Say what happens to images that are no plain square crops, one sentence per kind.

    Args:
        facts: Of each image that is used.
        image_size: Side of the model's input, px.
        crop_px: Side of the central window that is cut first, px; 0 for none.
    """
    total, notes = len(facts), []
    cut = [f for f in facts if crop_px and max(f.height, f.width) > crop_px]
    if cut:
        notes.append(
            f"{_some(cut, total)} are larger than {crop_px} px: only the central {crop_px} x "
            f"{crop_px} px are used, so the disc must lie there; data.roi_crop_px = 0 takes whole "
            "images"
        )
    windows = [(f, _window(f, crop_px)) for f in facts]
    uneven = [f for f, (height, width) in windows if height != width]
    if uneven:
        notes.append(
            f"{_some(uneven, total)} are not square: they are squeezed into the square input, "
            "which distorts the disc; cut a square around it"
        )
    whole = [f for f in facts if f.full_field]
    if whole:
        notes.append(
            f"{_some(whole, total)} look like full fundus fields (black corners): nothing looks "
            "for the disc in them, and a network for disc crops fails there; crop to the disc"
        )
    small = [f for f, sides in windows if min(sides) < image_size]
    if small:
        notes.append(f"{_some(small, total)} are enlarged to the {image_size} px of the input")
    counts = Counter(kind for f in facts for kind in f.conversions)
    notes += [
        f"{counts[k]} of {total} images {text}" for k, text in _CONVERTED.items() if counts[k]
    ]
    return notes


def _some(found: Sequence[Facts], total: int) -> str:
    return f"{len(found)} of {total} images (e.g. {found[0].width} x {found[0].height} px)"


def _window(facts: Facts, crop_px: int) -> tuple[int, int]:
    if not crop_px:
        return facts.height, facts.width
    return min(facts.height, crop_px), min(facts.width, crop_px)


# -- copies that a run can pack ---------------------------------------------------------------


def write_split(files: Sequence[Path], folder: Path, crop_px: int) -> list[Facts]:
    """Write images into a folder as 8-bit RGB PNGs under running numbers, and look at them.

    A file that is one already is linked. What looks like a mask is left out.

    Args:
        files: The images.
        folder: Where they go; replaced when it exists.
        crop_px: Side of the central window that will be used, px; 0 for the whole image.

    Returns:
        Facts of every file, those of masks among them.

    Raises:
        DataError: A file cannot be read (all are listed), or none is left.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    targets = [folder / f"{number:06d}.png" for number in range(len(files))]
    facts = each(partial(_written, crop_px=crop_px), list(zip(files, targets, strict=True)))
    if all(found.mask_like for found in facts):
        raise DataError(
            f"all {len(files)} files look like masks: two to four gray levels and no colour",
            hint="--images DIR names the folder of the photographs",
        )
    return facts


def _written(pair: tuple[Path, Path], crop_px: int) -> Facts:
    path, target = pair
    picture = read_picture(path)
    facts = look_at(picture, crop_px)
    if facts.mask_like:
        return facts
    if picture.as_is:
        try:
            target.symlink_to(path.absolute())
        except OSError:  # a file system without links
            shutil.copyfile(path, target)
    else:
        Image.fromarray(picture.pixels).save(target, compress_level=1)
    return facts


def each(function: Any, items: Iterable[Any]) -> list[Any]:
    """Apply a function that reads an image to each item, in threads.

    Raises:
        DataError: Lists the first of the files that cannot be read.
    """

    def attempt(item: Any) -> Any:
        try:
            return function(item)
        except DataError as error:
            return error

    with _large_images_allowed(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(attempt, items))
    errors = [found for found in results if isinstance(found, DataError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        more = f"; and {len(errors) - _LISTED} more" if len(errors) > _LISTED else ""
        listed = "; ".join(error.message for error in errors[:_LISTED])
        raise DataError(
            f"{len(errors)} images cannot be used: {listed}{more}", hint=errors[0].hint or _SAVE
        )
    return results


@contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Let images through that are large and no attack, without a warning for each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield

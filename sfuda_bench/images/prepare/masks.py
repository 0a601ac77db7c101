"""Turn a download's mask files into cup and disc, and catch a wrong declaration of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sfuda_bench.datasets import (
    BinaryMasks,
    Contours,
    LabelMask,
    RawMask,
    SoftMasks,
    Tissue,
    mask_files,
)
from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.contours import read_contour
from sfuda_bench.images.prepare.encodings import COMMON, describe
from sfuda_bench.images.prepare.outlines import read_outlines
from sfuda_bench.images.prepare.pixels import read_gray, resize_nearest

Bool = npt.NDArray[np.bool_]
Uint8 = npt.NDArray[np.uint8]

FIELD_SHARE = (0.001, 0.30)
"""Share of a whole field that a disc may cover."""
CROP_SHARE = (0.02, 0.85)
"""Share of an owners' crop that a disc may cover."""
_GROSS_SHARE = 0.15  # of the cup outside the disc: no slip of the pen but a wrong declaration
_STRAY_SHARE = 0.005  # of pixels that a two-valued or soft mask may have in between
_SIZE_TOLERANCE = 0.02  # by how much the ratio of sides may differ between image and mask
_LOSSY_REACH = 40  # gray values around a declared one that JPEG may blur it to


@dataclass(frozen=True)
class DecodedMask:
    """Cup and disc of one eye.

    Args:
        mask: (2, H, W) bool, cup first, at the photograph's size. The cup may leave the disc.
        resized: Whether a file had another size than the photograph.
    """

    mask: Bool
    resized: bool


def decode_masks(
    masks: Sequence[RawMask],
    paths: Mapping[str, Path],
    photograph: Uint8,
    *,
    agreement: float,
    left_half: bool = False,
    cropped: bool = False,
) -> DecodedMask:
    """Read the masks of all graders of one eye and combine them.

    Args:
        masks: One entry per grader, or one soft map.
        paths: Where the raw files lie.
        photograph: (H, W, 3) uint8; masks of another size are resized to it, nearest neighbour.
        agreement: Share of the graders, in (0, 1], that must have marked a pixel.
        left_half: The files are stereo pairs of which the left half counts.
        cropped: The photograph is a crop around the disc.

    Returns:
        Cup and disc.

    Raises:
        DataError: A file cannot be read, or its content contradicts the declaration.
    """
    size = (photograph.shape[0], photograph.shape[1])
    share = CROP_SHARE if cropped else FIELD_SHARE
    votes = np.zeros((2, *size), np.uint16)
    resized = False
    for mask in masks:
        pair = _read(mask, paths, photograph, agreement, left_half=left_half)
        resized = resized or any(structure.shape != size for structure in pair)
        for structure in pair:
            _check_size(paths[mask_files(mask)[-1]], structure.shape, size)
        fitted = np.stack([resize_nearest(structure, size) for structure in pair])
        problem = find_problem(fitted, share)
        if problem:
            raise DataError(
                f"{paths[mask_files(mask)[-1]]}: {problem}",
                hint=_advice(mask, paths, share, left_half=left_half),
            )
        votes += fitted
    agreed = votes >= _needed(len(masks), agreement)
    if not agreed[1].any():
        raise DataError(
            f"{paths[mask_files(masks[0])[-1]]}: the {len(masks)} graders agree on no disc",
            hint="ask for the agreement of fewer, e.g. --agreement half",
        )
    return DecodedMask(agreed, resized)


def find_problem(mask: Bool, share: tuple[float, float]) -> str:
    """Say what contradicts that ``mask`` holds a cup within a disc; empty when nothing does.

    A cup that leaves the disc a little is no contradiction: it is counted elsewhere.

    Args:
        mask: (2, H, W) bool, cup first.
        share: Smallest and largest share of the picture that a disc covers.
    """
    cup, disc = mask
    low, high = share
    covered = float(disc.mean())
    if not disc.any():
        return "as declared there is no disc"
    if not low <= covered <= high:
        expected = f"expected {low:.1%} to {high:.0%}"
        return f"as declared the disc covers {covered:.1%} of the picture; {expected}"
    if cup.sum() > disc.sum():
        return "as declared the cup is larger than the disc: are the two exchanged?"
    outside = int((cup & ~disc).sum())
    if outside > _GROSS_SHARE * max(1, int(cup.sum())):
        return f"as declared {outside / cup.sum():.0%} of the cup lie outside the disc"
    holes = int((ndimage.binary_fill_holes(cup) & ~cup).sum())
    if holes > 0.1 * disc.sum():
        return "as declared the cup is a ring around the rim: are the two exchanged?"
    edge = np.concatenate([disc[0], disc[-1], disc[:, 0], disc[:, -1]])
    if edge.mean() > 0.5:
        return "as declared the disc runs along the picture's border: is it the background?"
    return ""


def _needed(graders: int, agreement: float) -> int:
    """Return how many of the graders make up the share ``agreement``."""
    return max(1, math.ceil(agreement * graders - 1e-9))


def _read(
    mask: RawMask,
    paths: Mapping[str, Path],
    photograph: Uint8,
    agreement: float,
    *,
    left_half: bool,
) -> tuple[Bool, Bool]:
    """Return cup and disc of one grader, each at its file's own size."""
    if isinstance(mask, LabelMask):
        return _read_labels(paths[mask.file], mask.values, left_half=left_half)
    if isinstance(mask, BinaryMasks):
        cup, disc = (
            _read_binary(paths[file], mask.structure, left_half=left_half)
            for file in (mask.cup, mask.disc)
        )
        return cup, disc
    if isinstance(mask, SoftMasks):
        cup, disc = (
            _read_soft(paths[file], mask.graders, agreement) for file in (mask.cup, mask.disc)
        )
        return cup, disc
    if isinstance(mask, Contours):
        cup, disc = (
            read_contour(paths[file], (photograph.shape[0], photograph.shape[1]))
            for file in (mask.cup, mask.disc)
        )
        return cup, disc
    return read_outlines(paths[mask.file], photograph)


def _read_labels(
    path: Path, values: Mapping[int, Tissue] | None, *, left_half: bool
) -> tuple[Bool, Bool]:
    gray, lossy = read_gray(path, left_half=left_half)
    if values is None:
        raise DataError(
            f"{path}: nothing says what its gray values {_listed(np.unique(gray))} mean",
            hint=_fitting(gray, FIELD_SHARE) or "declare them: --encoding 0=cup,128=rim,...",
        )
    declared = np.array(sorted(values), np.int16)
    nearest = np.abs(gray[..., None].astype(np.int16) - declared).argmin(axis=2)
    distance = np.abs(gray.astype(np.int16) - declared[nearest])
    stray = distance > (_LOSSY_REACH if lossy else 0)
    if stray.mean() > (_STRAY_SHARE if lossy else 0):
        raise DataError(
            f"{path}: gray values {_listed(np.unique(gray[stray]))} in {stray.mean():.2%} of the "
            f"pixels are not declared; declared: {describe(values)}",
            hint=_fitting(gray, FIELD_SHARE) or "declare them with --encoding",
        )
    tissue = np.array([values[int(value)] for value in declared])[nearest]
    return tissue == "cup", (tissue == "cup") | (tissue == "rim")


def _read_binary(path: Path, structure: str, *, left_half: bool) -> Bool:
    gray, lossy = read_gray(path, left_half=left_half)
    bright = gray > (127 if lossy else 0)
    between = (gray > _LOSSY_REACH) & (gray < 255 - _LOSSY_REACH) if lossy else _between(gray)
    if between.mean() > _STRAY_SHARE:
        raise DataError(
            f"{path}: {between.mean():.2%} of the pixels are neither dark nor bright; expected a "
            "mask of two gray values",
            hint="is it a soft map, or one file with cup and rim?",
        )
    return np.asarray(bright if structure == "bright" else ~bright, bool)


def _between(gray: Uint8) -> Bool:
    return np.asarray((gray > gray.min()) & (gray < gray.max()), bool)


def _read_soft(path: Path, graders: int, agreement: float) -> Bool:
    gray, _ = read_gray(path)
    share = gray.astype(np.float32) * graders / 255
    count = np.rint(share)
    odd = np.abs(share - count) > 0.05
    if odd.mean() > _STRAY_SHARE:
        raise DataError(
            f"{path}: gray values {_listed(np.unique(gray[odd]))} are no shares of {graders} "
            "graders",
            hint="download it again; a soft map must not be resampled",
        )
    return np.asarray(count >= _needed(graders, agreement))


def _check_size(path: Path, found: tuple[int, ...], size: tuple[int, int]) -> None:
    """Refuse a mask whose shape is not that of the photograph up to a few pixels."""
    factors = [found[axis] / size[axis] for axis in (0, 1)]
    if abs(factors[0] / factors[1] - 1) > _SIZE_TOLERANCE:
        raise DataError(
            f"{path}: {found[1]} x {found[0]} px, but its photograph is {size[1]} x {size[0]} px",
            hint="is it the mask of this photograph?",
        )


def _advice(
    mask: RawMask, paths: Mapping[str, Path], share: tuple[float, float], *, left_half: bool
) -> str:
    """Return the declaration under which the files make sense, if one does."""
    if isinstance(mask, LabelMask):
        gray, _ = read_gray(paths[mask.file], left_half=left_half)
        return _fitting(gray, share) or "is it the mask of this photograph?"
    if isinstance(mask, BinaryMasks):
        other = "dark" if mask.structure == "bright" else "bright"
        pair = [
            _read_binary(paths[file], other, left_half=left_half) for file in (mask.cup, mask.disc)
        ]
        if pair[0].shape == pair[1].shape and not find_problem(np.stack(pair), share):
            return f"these checks pass with --encoding {other}"
    return "is it the mask of this photograph?"


def _fitting(gray: Uint8, share: tuple[float, float]) -> str:
    for values in COMMON:
        if not {*np.unique(gray).tolist()} <= {*values}:
            continue
        codes = {tissue: value for value, tissue in values.items()}
        cup = gray == codes["cup"]
        if not find_problem(np.stack([cup, cup | (gray == codes["rim"])]), share):
            return f"these checks pass with --encoding {describe(values)}"
    return ""


def _listed(values: npt.NDArray[np.generic]) -> str:
    shown = ", ".join(str(value) for value in values[:6])
    return shown + (", ..." if len(values) > 6 else "")

"""One eye from its raw files to the written region of interest."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfuda_bench.datasets import RawEye, mask_files
from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.centres import Centres, error_diameters
from sfuda_bench.images.prepare.encodings import name_of
from sfuda_bench.images.prepare.manifest import sha256
from sfuda_bench.images.prepare.masks import decode_masks
from sfuda_bench.images.prepare.options import Resolved
from sfuda_bench.images.prepare.pixels import read_photograph
from sfuda_bench.images.prepare.window import Window, cut_roi, make_window, mask_levels
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio

Uint8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EyeJob:
    """What is needed to write one eye.

    Args:
        eye: Where its files are.
        split: Its side.
        files: Path and sha256 of its raw files, by their name below the raw folder.
    """

    eye: RawEye
    split: str
    files: Mapping[str, tuple[Path, str]]


def raw_files_of(eye: RawEye) -> list[str]:
    """Return the raw files of an eye: the photograph, then the masks."""
    masks = [file for mask in eye.masks for file in mask_files(mask)]
    return list(dict.fromkeys([eye.image, *masks]))


def write_eye(job: EyeJob, folder: Path, resolved: Resolved, centres: Centres) -> dict[str, Any]:
    """Read, check, cut and write one eye; return its entry of the manifest.

    Args:
        job: The eye.
        folder: The domain's folder.
        resolved: The options.
        centres: The way to its centre.

    Raises:
        DataError: A file cannot be read, or contradicts what is declared about it.
    """
    eye = job.eye
    paths = {name: path for name, (path, _) in job.files.items()}
    photograph = read_photograph(paths[eye.image], left_half=eye.left_half)
    _check_crop(paths[eye.image], photograph, resolved)
    entry: dict[str, Any] = {
        "name": eye.name,
        "split": job.split,
        "raw": {name: digest for name, (_, digest) in job.files.items()},
        "photograph_px": [photograph.shape[1], photograph.shape[0]],
    }
    mask = _mask(job, paths, photograph, resolved, entry)
    point = centres.find(eye.name, photograph, mask)
    window = make_window(resolved.roi_mode, (photograph.shape[0], photograph.shape[1]), point)
    entry["centre_px"] = {"x": round(point[1], 2), "y": round(point[0], 2)}
    entry["crop_box_px"] = [
        window.left_px, window.top_px,
        window.left_px + window.side_px, window.top_px + window.side_px,
    ]  # fmt: skip
    if mask is not None:
        entry |= _labels(eye, mask, point, window)
    roi, roi_mask = cut_roi(photograph, mask, window, resolved.size_px)
    rois = folder / job.split / "ROIs"
    entry["image_sha256"] = _write(rois / "image" / f"{eye.name}.png", roi)
    if roi_mask is not None:
        levels = mask_levels(roi_mask)
        entry["mask_sha256"] = _write(rois / "mask" / f"{eye.name}.png", levels)
    return entry


def _check_crop(path: Path, photograph: Uint8, resolved: Resolved) -> None:
    """Refuse to resample in silence what comes in another size than its owners' crops have."""
    side = resolved.layout.size_px
    if not side or resolved.request.size_px or photograph.shape[:2] == (side, side):
        return
    raise DataError(
        f"{path}: {photograph.shape[1]} x {photograph.shape[0]} px; the crops of this archive "
        f"have {side} x {side} px",
        hint="--size PX brings all of them to one size",
    )


def _mask(
    job: EyeJob,
    paths: Mapping[str, Path],
    photograph: Uint8,
    resolved: Resolved,
    entry: dict[str, Any],
) -> Bool | None:
    """Decode the masks; what was found about them goes into the manifest's entry."""
    if not job.eye.masks:
        return None
    masks = [resolved.request.encoding.redeclare(mask) for mask in job.eye.masks]
    decoded = decode_masks(
        masks,
        paths,
        photograph,
        agreement=resolved.agreement,
        left_half=job.eye.left_half,
        cropped=resolved.layout.cropped,
    )
    cup, disc = decoded.mask
    entry["encoding"] = name_of(masks[0])
    entry["mask_resized"] = decoded.resized
    entry["cup_outside_disc_px"] = int((cup & ~disc).sum())
    return np.stack([cup & disc, disc])


def _labels(eye: RawEye, mask: Bool, point: tuple[float, float], window: Window) -> dict[str, Any]:
    """What the masks say; nothing of it may reach a method."""
    disc = mask[1]
    kept = window.cut(disc, 0)
    found: dict[str, Any] = {
        "vcdr": round(vertical_cup_to_disc_ratio(mask), 4),
        "centre_error_disc_diameters": round(error_diameters(point, disc), 4),
        "disc_cut_off": int(np.count_nonzero(kept)) < int(disc.sum()),
    }
    if eye.graders_vcdr:
        found["graders_vcdr"] = list(eye.graders_vcdr)
    return found


def _write(path: Path, pixels: Uint8) -> str:
    """Write a PNG without metadata and return its sha256; equal pixels give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=6)
    path.write_bytes(stream.getvalue())
    return sha256(path)

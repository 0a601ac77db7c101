"""Check a data root before it is used: every problem is listed, not only the first."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from sfuda_bench.datasets import (
    SPLITS,
    DatasetSpec,
    dataset_names,
    domain_folders,
    folder_domain,
    get_dataset,
)
from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import Uint8, content_digest, decode_levels, read_image, read_levels

Severity = Literal["error", "warning"]

MASK_LEVELS = (0, 128, 255)
_LISTED = 5


@dataclass(frozen=True)
class Finding:
    """One problem: ``error`` spoils results or stops a run, ``warning`` is worth a look."""

    severity: Severity
    path: Path
    message: str


@dataclass(frozen=True)
class _Checked:
    """What was seen of one image and its mask."""

    path: Path
    digest: str | None
    size: tuple[int, int] | None
    findings: tuple[Finding, ...]


def verify(root: Path) -> list[Finding]:
    """Check every domain below ``root``.

    Errors: an unreadable or unusual PNG, a mask whose size differs from its image's, a mask
    without an image, a split that has masks for some of its images only, an empty split, one
    image twice across splits or domains.

    Warnings: a split without any mask (it can be adapted to, not trained on nor scored), stray
    mask values, a cup that is not wholly surrounded by rim, an empty disc, images of several
    sizes or not square, the same image twice in one split, counts that are not the published
    split, files that are no PNG.

    Args:
        root: Folder of domains.

    Returns:
        Findings, errors first, then by path. Empty when all is well.

    Raises:
        DataError: ``root`` is missing or holds no domain.
    """
    findings: list[Finding] = []
    checked: dict[tuple[str, str], list[_Checked]] = {}
    seen: dict[str, Path] = {}
    for folder in domain_folders(root):
        try:
            name = folder_domain(folder)
        except DataError as error:
            findings.append(Finding("error", folder, error.message))
            name = folder.name
        if name in seen:
            findings.append(Finding("error", folder, f"the same domain as {seen[name]}: '{name}'"))
        seen[name] = folder
        for split in SPLITS:
            split_findings, images = _verify_split(folder / split / "ROIs")
            findings += split_findings
            checked[str(folder), split] = images
        findings += _check_counts(folder, name, [len(checked[str(folder), s]) for s in SPLITS])
    findings += _check_duplicates(checked)
    return sorted(findings, key=lambda f: (f.severity != "error", str(f.path), f.message))


def _verify_split(rois: Path) -> tuple[list[Finding], list[_Checked]]:
    images, masks = (_files(rois / kind) for kind in ("image", "mask"))
    if not images:
        problem = "has no *.png file" if (rois / "image").is_dir() else "is missing"
        return [Finding("error", rois / "image", f"the image folder {problem}")], []
    findings = _check_pairing(rois, set(images), set(masks)) + _check_others(rois)
    with ThreadPoolExecutor() as pool:
        paired = [masks.get(name) for name in images]
        checked = list(pool.map(_check_sample, images.values(), paired))
    for sample in checked:
        findings += sample.findings
    sizes = {sample.size for sample in checked if sample.size is not None}
    if len(sizes) > 1:
        listed = ", ".join(f"{width} x {height}" for height, width in sorted(sizes)[:_LISTED])
        findings.append(Finding("warning", rois / "image", f"images of several sizes: {listed} px"))
    return findings, checked


def _files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.glob("*.png"))} if folder.is_dir() else {}


def _check_pairing(rois: Path, images: set[str], masks: set[str]) -> list[Finding]:
    findings = [
        Finding("error", rois / "mask" / name, "a mask without an image of the same name")
        for name in sorted(masks - images)
    ]
    missing = sorted(images - masks)
    if len(missing) == len(images):
        message = "no masks: usable as unlabelled target, not for source training or scoring"
        findings.append(Finding("warning", rois / "mask", message))
    else:
        findings += [Finding("error", rois / "mask" / name, "missing mask") for name in missing]
    return findings


def _check_others(rois: Path) -> list[Finding]:
    findings = []
    for folder in (rois / "image", rois / "mask"):
        others = [p.name for p in folder.glob("*") if p.suffix != ".png" and p.name[0] != "."]
        if others:
            listed = ", ".join(sorted(others)[:_LISTED])
            findings.append(Finding("warning", folder, f"{len(others)} files not read: {listed}"))
    return findings


def _check_sample(image_path: Path, mask_path: Path | None) -> _Checked:
    findings: list[Finding] = []
    digest = size = None
    try:
        image = read_image(image_path)
        digest, size = content_digest(image), (image.shape[0], image.shape[1])
        if size[0] != size[1]:
            message = f"{size[1]} x {size[0]} px: not square, will be distorted"
            findings.append(Finding("warning", image_path, message))
    except DataError as error:
        findings.append(Finding("error", image_path, _without_path(error, image_path)))
    if mask_path is not None:
        findings += _check_mask(mask_path, size)
    return _Checked(image_path, digest, size, tuple(findings))


def _check_mask(path: Path, image_size: tuple[int, int] | None) -> list[Finding]:
    try:
        levels = read_levels(path)
    except DataError as error:
        return [Finding("error", path, _without_path(error, path))]
    findings = []
    if image_size is not None and levels.shape != image_size:
        message = (
            f"{levels.shape[1]} x {levels.shape[0]} px, "
            f"but its image is {image_size[1]} x {image_size[0]} px"
        )
        findings.append(Finding("error", path, message))
    stray = np.setdiff1d(np.unique(levels), MASK_LEVELS)
    if stray.size:
        listed = ", ".join(str(value) for value in stray[:_LISTED])
        share = float(np.isin(levels, stray).mean())
        message = f"stray values {listed} in {share:.2%} of the pixels; expected 0, 128, 255"
        findings.append(Finding("error", path, message))
    findings += [Finding("warning", path, message) for message in _check_anatomy(levels)]
    return findings


def _check_anatomy(levels: Uint8) -> list[str]:
    """Check that there is a disc and that the cup lies inside it, nowhere touching background."""
    cup, disc = decode_levels(levels)
    if not disc.any():
        return ["no disc"]
    if not cup.any():
        return ["no cup"]
    padded = np.pad(disc, 1)
    surrounded = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    outside = int((cup & ~surrounded).sum())
    return [f"{outside} px of the cup reach the edge of the disc"] if outside else []


def _check_counts(folder: Path, name: str, counts: list[int]) -> list[Finding]:
    spec = _spec(name)
    if spec is None or spec.published_counts is None or tuple(counts) == spec.published_counts:
        return []
    published = " / ".join(map(str, spec.published_counts))
    message = (
        f"{counts[0]} / {counts[1]} train / test images; the published split has {published}: "
        "numbers cannot be compared with published ones"
    )
    return [Finding("warning", folder, message)]


def _spec(name: str) -> DatasetSpec | None:
    return get_dataset(name) if name in dataset_names() else None


def _check_duplicates(checked: dict[tuple[str, str], list[_Checked]]) -> list[Finding]:
    places: dict[str, list[tuple[tuple[str, str], Path]]] = defaultdict(list)
    for place, samples in checked.items():
        for sample in samples:
            if sample.digest is not None:
                places[sample.digest].append((place, sample.path))
    findings = []
    for (first_place, first), *others in places.values():
        for place, path in others:
            severity: Severity = "warning" if place == first_place else "error"
            findings.append(Finding(severity, path, f"the same image as {first}"))
    return findings


def _without_path(error: DataError, path: Path) -> str:
    return error.message.removeprefix(f"{path}: ")

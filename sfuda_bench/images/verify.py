"""Check a data root before it is used: every problem is listed, not only the first."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sfuda_bench.datasets import (
    LABEL_CENTER,
    MANIFEST,
    SPLITS,
    DatasetSpec,
    dataset_names,
    domain_folders,
    folder_domain,
    get_dataset,
    roi_center,
)
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.decode import Bool, content_digest, decode_levels, read_image, read_levels
from sfuda_bench.images.near_duplicates import (
    BITS,
    SAME_BELOW,
    Signs,
    near_pairs,
    perceptual_hash,
)
from sfuda_bench.images.prepare.manifest import damaged_files, read_manifest
from sfuda_bench.images.statistics import (
    SplitNumbers,
    Spread,
    Values,
    colour_values,
    shape_values,
    spreads,
)

Severity = Literal["error", "warning"]

MASK_LEVELS = (0, 128, 255)
SCALE_TOLERANCE = 0.15
"""By how much the mean disc diameter, as a share of the side, may differ without a warning."""
_LISTED = 5
_FROM_LABELS = (
    "the crops are centred on annotated discs: positions come from labels, which no deployed "
    "system has"
)


@dataclass(frozen=True)
class Finding:
    """One problem: ``error`` spoils results or stops a run, ``warning`` is worth a look."""

    severity: Severity
    path: Path
    message: str


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that are probably one photograph, saved or cropped in two ways.

    Args:
        first: One file.
        second: The other.
        bits: How many of the 255 bits of their perceptual hashes differ.
    """

    first: Path
    second: Path
    bits: int


@dataclass(frozen=True)
class Inspection:
    """What was found and measured in a data root.

    Args:
        findings: Errors first, then by path. Empty when all is well.
        splits: Numbers of every split, by domain.
        roi_centers: Where the position of the crops comes from, by domain.
        near_duplicates: Nearest first; those within one split are no finding.
    """

    findings: tuple[Finding, ...]
    splits: tuple[SplitNumbers, ...]
    roi_centers: Mapping[str, str]
    near_duplicates: tuple[NearDuplicate, ...]

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return {
            "errors": self.errors,
            "findings": [
                {"severity": f.severity, "path": str(f.path), "message": f.message}
                for f in self.findings
            ],
            "splits": [split.to_json() for split in self.splits],
            "roi_centers": dict(self.roi_centers),
            "near_duplicates": [
                {"first": str(pair.first), "second": str(pair.second), "bits": pair.bits}
                for pair in self.near_duplicates
            ],
            "near_duplicate_below_bits": SAME_BELOW,
        }


@dataclass(frozen=True)
class _Checked:
    """What was seen of one image and its mask."""

    path: Path
    digest: str | None
    size: tuple[int, int] | None
    findings: tuple[Finding, ...]
    values: Values
    signs: Signs | None
    masked: bool


@dataclass(frozen=True)
class _DomainChecked:
    """What was seen of one domain."""

    folder: Path
    name: str
    synthetic: bool
    roi_center: str
    images: Mapping[str, list[_Checked]]

    def numbers(self, split: str) -> SplitNumbers:
        images = [image for image in self.images[split] if image.size is not None]
        sides = [side for image in images for side in image.size or ()]
        return SplitNumbers(
            self.name,
            split,
            len(images),
            sum(image.masked for image in images),
            (min(sides), max(sides)) if sides else None,
            spreads([image.values for image in images]),
        )

    def scale(self) -> Spread | None:
        """Return the disc's diameter as a share of the side, over both splits."""
        images = [image.values for split in SPLITS for image in self.images[split]]
        return spreads(images).get("disc_scale")


def verify(root: Path) -> list[Finding]:
    """Check every domain below ``root``; the findings of :func:`inspect_root`.

    Args:
        root: Folder of domains.

    Returns:
        Findings, errors first, then by path. Empty when all is well.

    Raises:
        DataError: ``root`` is missing or holds no domain.
    """
    return list(inspect_root(root).findings)


def inspect_root(root: Path) -> Inspection:
    """Check and measure every domain below ``root``.

    Errors: an unreadable or unusual PNG, a mask whose size differs from its image's, a mask
    without an image, a split that has masks for some of its images only, an empty split, one
    image twice across splits or domains, a file of a prepared domain that is not what its
    manifest says.

    Warnings: a split without any mask (it can be adapted to, not trained on nor scored), stray
    mask values, a cup that is not wholly surrounded by rim, an empty disc, images of several
    sizes or not square, the same image twice in one split, probably one photograph in two splits
    or domains, crops of two domains or splits in which the disc differs in size by more than
    15 %, crops whose position comes from annotations, counts that are not the published split,
    files that are no PNG.

    Args:
        root: Folder of domains.

    Raises:
        DataError: ``root`` is missing or holds no domain.
    """
    findings: list[Finding] = []
    domains: list[_DomainChecked] = []
    for folder in domain_folders(root):
        domain, found = _check_domain(folder)
        findings += found
        for other in domains:
            if other.name == domain.name:
                message = f"the same domain as {other.folder}: '{domain.name}'"
                findings.append(Finding("error", folder, message))
        domains.append(domain)
    checked = {
        (str(domain.folder), split): domain.images[split] for domain in domains for split in SPLITS
    }
    pairs = _near_duplicates([image for images in checked.values() for image in images])
    findings += [
        *_check_duplicates(checked),
        *_check_near_duplicates(pairs, root),
        *_check_scales(domains),
    ]
    return Inspection(
        tuple(sorted(findings, key=lambda f: (f.severity != "error", str(f.path), f.message))),
        tuple(domain.numbers(split) for domain in domains for split in SPLITS),
        {domain.name: domain.roi_center for domain in domains},
        tuple(pairs),
    )


def _check_domain(folder: Path) -> tuple[_DomainChecked, list[Finding]]:
    findings: list[Finding] = []
    try:
        name = folder_domain(folder)
    except DataError as error:
        findings.append(Finding("error", folder, error.message))
        name = folder.name
    images: dict[str, list[_Checked]] = {}
    for split in SPLITS:
        found, images[split] = _verify_split(folder / split / "ROIs")
        findings += found
    spec = _spec(name)
    center, found = _check_manifest(folder)
    synthetic = spec is not None and spec.synthetic
    findings += [*found, *_check_counts(folder, spec, [len(images[split]) for split in SPLITS])]
    if center == LABEL_CENTER and not synthetic:
        findings.append(Finding("warning", folder, _FROM_LABELS))
    return _DomainChecked(folder, name, synthetic, center, images), findings


def _check_manifest(folder: Path) -> tuple[str, list[Finding]]:
    """Return where the crops' position comes from, and what is not as a manifest says."""
    try:
        center, manifest = roi_center(folder), read_manifest(folder)
        damaged = damaged_files(folder, manifest) if manifest is not None else []
    except DataError as error:
        return "unknown", [Finding("error", folder / MANIFEST, error.message)]
    except UsageError:  # an ambiguous name, which is a finding of its own
        return "unknown", []
    except (KeyError, TypeError) as error:
        message = f"damaged: no {error}; prepare the domain again"
        return "unknown", [Finding("error", folder / MANIFEST, message)]
    message = "missing, changed or added since the domain was prepared"
    return center, [Finding("error", folder / name, message) for name in damaged]


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
    paths = sorted(folder.glob("[!.]*.png")) if folder.is_dir() else []
    return {path.name: path for path in paths}


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
    digest = size = signs = None
    values: dict[str, float] = {}
    try:
        image = read_image(image_path)
        digest, size = content_digest(image), (image.shape[0], image.shape[1])
        values, signs = colour_values(image), perceptual_hash(image)
        if size[0] != size[1]:
            message = f"{size[1]} x {size[0]} px: not square, will be distorted"
            findings.append(Finding("warning", image_path, message))
    except DataError as error:
        findings.append(Finding("error", image_path, _without_path(error, image_path)))
    masked = False
    if mask_path is not None:
        found, shapes = _check_mask(mask_path, size)
        findings += found
        masked, values = shapes is not None, values | (shapes or {})
    return _Checked(image_path, digest, size, tuple(findings), values, signs, masked)


def _check_mask(
    path: Path, image_size: tuple[int, int] | None
) -> tuple[list[Finding], dict[str, float] | None]:
    """Return what is wrong with a mask, and its shapes if it can be read."""
    try:
        levels = read_levels(path)
    except DataError as error:
        return [Finding("error", path, _without_path(error, path))], None
    findings = []
    if image_size is not None and levels.shape != image_size:
        message = (
            f"{levels.shape[1]} x {levels.shape[0]} px, "
            f"but its image is {image_size[1]} x {image_size[0]} px"
        )
        findings.append(Finding("error", path, message))
    counts = np.bincount(levels.ravel(), minlength=256)
    counts[list(MASK_LEVELS)] = 0
    stray = np.flatnonzero(counts)
    if stray.size:
        listed = ", ".join(str(value) for value in stray[:_LISTED])
        share = float(counts.sum() / levels.size)
        message = f"stray values {listed} in {share:.2%} of the pixels; expected 0, 128, 255"
        findings.append(Finding("error", path, message))
    mask = decode_levels(levels)
    findings += [Finding("warning", path, message) for message in _check_anatomy(mask)]
    return findings, shape_values(mask)


def _check_anatomy(mask: Bool) -> list[str]:
    """Check that there is a disc and that the cup lies inside it, nowhere touching background."""
    cup, disc = mask
    if not disc.any():
        return ["no disc"]
    if not cup.any():
        return ["no cup"]
    padded = np.pad(disc, 1)
    surrounded = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    outside = int((cup & ~surrounded).sum())
    return [f"{outside} px of the cup reach the edge of the disc"] if outside else []


def _check_counts(folder: Path, spec: DatasetSpec | None, counts: list[int]) -> list[Finding]:
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


def _near_duplicates(images: list[_Checked]) -> list[NearDuplicate]:
    """Return the pairs that look like one photograph; equal images are found by their digest."""
    found = []
    for pair in near_pairs([image.signs for image in images]):
        first, second = images[pair.first], images[pair.second]
        if first.digest != second.digest:
            found.append(NearDuplicate(first.path, second.path, pair.bits))
    return found


def _check_near_duplicates(pairs: list[NearDuplicate], root: Path) -> list[Finding]:
    """Name for each image the nearest one of another split or domain."""
    findings: dict[Path, Finding] = {}
    for pair in pairs:
        if pair.first.parent == pair.second.parent or pair.second in findings:
            continue
        domains = {path.relative_to(root).parts[0] for path in (pair.first, pair.second)}
        message = (
            f"probably the same photograph as {pair.first} ({pair.bits} of {BITS} bits of the "
            f"perceptual hash differ): if it is, the {'domains' if len(domains) > 1 else 'splits'} "
            "are not independent"
        )
        findings[pair.second] = Finding("warning", pair.second, message)
    return list(findings.values())


def _check_scales(domains: list[_DomainChecked]) -> list[Finding]:
    """Compare how much of the crop the disc takes, between domains and between splits.

    Generated domains differ on purpose and are compared with real ones only.
    """
    findings = []
    for domain in domains:
        train, test = (domain.numbers(split).values.get("disc_scale") for split in SPLITS)
        if not (train and test and _beyond_chance(train, test)):
            continue
        if text := _scale_text("train", train, "test", test):
            message = f"{text}: the splits seem to be cropped in two ways"
            findings.append(Finding("warning", domain.folder, message))
    for first, second in combinations(domains, 2):
        one, other = first.scale(), second.scale()
        if one is None or other is None or (first.synthetic and second.synthetic):
            continue
        if text := _scale_text(first.name, one, second.name, other):
            message = f"{text}: crop scale is part of the measured gap"
            findings.append(Finding("warning", second.folder, message))
    return findings


def _beyond_chance(one: Spread, other: Spread) -> bool:
    """Whether two means of one hospital's eyes differ by more than three standard errors."""
    if one.sd is None or other.sd is None:
        return False
    error = math.sqrt(one.sd**2 / one.n + other.sd**2 / other.n)
    return abs(one.mean - other.mean) > 3 * error


def _scale_text(first: str, one: Spread, second: str, other: Spread) -> str:
    """Return the two numbers if they differ by more than is allowed, else nothing."""
    ratio = max(one.mean, other.mean) / min(one.mean, other.mean) - 1
    if ratio <= SCALE_TOLERANCE:
        return ""
    return (
        f"the disc's diameter is {one.mean:.1%} of the side in {first} and {other.mean:.1%} in "
        f"{second}, {ratio:.0%} apart"
    )


def _without_path(error: DataError, path: Path) -> str:
    return error.message.removeprefix(f"{path}: ")

"""What ``data prepare`` is asked for, and what it resolves to for one data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sfuda_bench.datasets import (
    DATASETS,
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawFiles,
    RawLayout,
    canonical_name,
    dataset_names,
    folder_domain,
    get_dataset,
)
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.prepare.centres import CENTRES
from sfuda_bench.images.prepare.encodings import Encoding, describe
from sfuda_bench.images.prepare.roi_archive import roi_layout
from sfuda_bench.images.prepare.window import window_px

AGREEMENTS = {"any": 1e-6, "half": 0.5, "most": 0.75, "all": 1.0}
"""Shares of the graders that can be named."""
_WHOLE_SIZE_PX = 512


@dataclass(frozen=True)
class PrepareRequest:
    """The flags of ``data prepare``; ``None`` takes the data set's default."""

    dataset: str
    raw: Path
    out: Path
    name: str | None = None
    layout: Literal["owner", "plain", "rois"] = "owner"
    cropped: bool = False
    size_px: int | None = None
    roi_mode: str | None = None
    centre: str | None = None
    centres: Path | None = None
    expert: str | None = None
    split: str | None = None
    split_file: Path | None = None
    split_seed: int = 0
    agreement: str | None = None
    encoding: Encoding = field(default_factory=Encoding)
    repair: bool = False
    skip_incomplete: bool = False
    replace: bool = False


@dataclass(frozen=True)
class Resolved:
    """A request with every default filled in."""

    request: PrepareRequest
    domain: str
    spec: DatasetSpec | None
    layout: RawLayout
    choice: RawChoice
    roi_mode: str
    centre: str
    size_px: int
    agreement: float

    @property
    def options(self) -> dict[str, Any]:
        """The options as the manifest keeps them."""
        request = self.request
        return {
            "layout": request.layout,
            "roi_mode": self.roi_mode,
            "size_px": self.size_px,
            "centre": self.centre,
            "centres_sha256": _digest(request.centres),
            "expert": self.choice.expert,
            "split": self.choice.split,
            "split_file_sha256": _digest(request.split_file),
            "split_seed": request.split_seed,
            "agreement": self.agreement,
            "encoding": _encoding_text(request.encoding),
            "cropped": self.layout.cropped,
            "repair": request.repair,
            "skip_incomplete": request.skip_incomplete,
        }


def resolve(request: PrepareRequest) -> Resolved:
    """Fill in what the request leaves open.

    Raises:
        UsageError: The data set is unknown or has no raw layout, or a flag does not fit it.
    """
    if request.out.resolve().is_relative_to(request.raw.resolve()):
        raise UsageError(
            f"--out {request.out} lies inside --raw {request.raw}: the next run would take its "
            "files for raw ones",
            hint="choose an --out beside it",
        )
    spec, layout = _find_layout(request)
    roi_mode = request.roi_mode or ("whole" if layout.cropped else "native800")
    side = window_px(roi_mode)
    centre = request.centre or ("csv" if request.centres else "owner" if side == 0 else "detector")
    if centre not in CENTRES:
        raise UsageError(f"--centre {centre}: expected one of {', '.join(CENTRES)}")
    if (centre == "csv") != (request.centres is not None):
        raise UsageError("--centre csv and --centres FILE.csv go together", hint="give both")
    if (side == 0) != (centre == "owner"):
        raise UsageError(
            f"--roi-mode {roi_mode} and --centre {centre} do not go together",
            hint="'whole' takes the owners' crop as it is, and only then the centre is theirs",
        )
    name = request.name or (spec.name if spec else request.dataset)
    _check_name(name, spec, request.out)
    return Resolved(
        request=request,
        domain=name,
        spec=spec,
        layout=layout,
        choice=RawChoice(
            _choose("--expert", request.expert, layout.experts),
            _choose("--split", request.split, layout.splits),
        ),
        roi_mode=roi_mode,
        centre=centre,
        size_px=request.size_px or side or layout.size_px or _WHOLE_SIZE_PX,
        agreement=parse_agreement(request.agreement or layout.agreement),
    )


def parse_agreement(text: str) -> float:
    """Parse ``--agreement``: a name of :data:`AGREEMENTS`, or a share in (0, 1].

    Raises:
        UsageError: It is neither.
    """
    if text in AGREEMENTS:
        return AGREEMENTS[text]
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"--agreement {text}: expected {', '.join(AGREEMENTS)} or a share above 0, at most 1"
        )
    return share


def preparable() -> list[str]:
    """Return the data sets that have a raw layout."""
    return [name for name in dataset_names() if DATASETS.get(name).raw is not None]


def _find_layout(request: PrepareRequest) -> tuple[DatasetSpec | None, RawLayout]:
    if request.layout == "plain":
        known = canonical_name(request.dataset) in dataset_names()
        spec = get_dataset(request.dataset) if known else None
        return spec, RawLayout(_read_plain, "image/ and mask/", cropped=request.cropped)
    if request.layout == "rois":
        spec = get_dataset(request.dataset)
        return spec, roi_layout(spec)
    try:
        spec = get_dataset(request.dataset)
    except UsageError as error:
        raise UsageError(
            error.message, hint="a folder of your own: add --layout plain; " + (error.hint or "")
        ) from error
    if spec.raw is None:
        raise UsageError(
            f"nothing is known about the raw layout of '{spec.name}'; known for "
            f"{', '.join(preparable())}",
            hint="--layout plain reads image/ and mask/",
        )
    return spec, spec.raw


def _check_name(name: str, spec: DatasetSpec | None, out: Path) -> None:
    """Refuse a folder's name that no run can use, or that stands for another data set."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or "@" in name:
        raise UsageError(f"'{name}' cannot be the name of a domain", hint="give a plain word")
    try:
        meant = folder_domain(out / name)
    except DataError as error:
        raise UsageError(f"'{name}' cannot be the name of a domain: {error.message}") from error
    if meant in dataset_names() and (spec is None or meant != spec.name):
        raise UsageError(
            f"'{name}' is a name of the data set '{meant}': it would pass for it",
            hint="give another --name",
        )


def _read_plain(files: RawFiles, choice: RawChoice) -> RawDomain:
    return files.image_mask_folder()


def _choose(flag: str, asked: str | None, known: tuple[str, ...]) -> str:
    if asked is None:
        return known[0]
    if asked not in known:
        raise UsageError(f"{flag} {asked}: expected {' or '.join(known)}")
    return asked


def _digest(path: Path | None) -> str | None:
    if path is None:
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"


def _encoding_text(encoding: Encoding) -> str:
    if encoding.values is not None:
        return describe(encoding.values)
    return encoding.structure or "as declared"

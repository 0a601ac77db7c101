"""Port for data sets: what a data-set plug-in registers, and how domains are found on disk.

A data-set plug-in *describes* a domain (title, aliases, licence, published split). The images
always come from folders in the ROI layout ``ROOT/<domain>/{train,test}/ROIs/{image,mask}/*.png``;
any folder in that layout is a domain, with or without a plug-in.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from sfuda_bench._checkout import plugin_path
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.registry import Registry

__path__ = plugin_path("datasets")

LAYOUT = "ROOT/<domain>/{train,test}/ROIs/{image,mask}/*.png"
SPLITS = ("train", "test")

RoiCenter = Literal["gt", "csv", "detector", "unknown"]


@dataclass(frozen=True)
class Sample:
    """One image of a split and, where there is one, its mask."""

    stem: str
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class Split:
    """The samples of ``train`` or ``test``, sorted by file name."""

    name: str
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Domain:
    """One domain found on disk.

    ``roi_center`` says where the position of the crops comes from: ``"gt"`` (annotations),
    ``"csv"``, ``"detector"`` or ``"unknown"``.
    """

    name: str
    title: str
    train: Split
    test: Split
    synthetic: bool
    roi_center: str

    def split(self, name: str) -> Split:
        """Return the split called ``"train"`` or ``"test"``.

        Raises:
            UsageError: There is no split of that name.
        """
        if name not in SPLITS:
            raise UsageError(f"unknown split '{name}'; expected one of: {', '.join(SPLITS)}")
        return self.train if name == "train" else self.test


class Materialise(Protocol):
    """Writes one generated domain below ``root``; does nothing when it is already complete."""

    def __call__(self, root: Path, *, size: int = 256, counts: tuple[int, int] = (40, 20)) -> None:
        """Write ``root/<domain>`` in the ROI layout.

        Args:
            root: Folder that holds one folder per domain.
            size: Side of the square ROIs, px.
            counts: Number of train and test images.
        """


@dataclass(frozen=True)
class DatasetSpec:
    """What is known of a data set before any file is read.

    Args:
        name: Canonical name, also the name of its folder.
        title: Name in tables and figures.
        aliases: Other names, in any case, for selectors and folders.
        families: Ambiguous names shared by several data sets; using one is an error.
        published_counts: Train and test sizes of the published split, when there is one.
        synthetic: Generated images, marked in every table.
        roi_center: Where the position of the crops comes from.
        description: One sentence.
        licence: Terms in a few words.
        homepage: Where to ask for the images.
        citation: Paper to cite.
        materialise: Writes the images, for generated domains only.
    """

    name: str
    title: str
    description: str
    licence: str
    homepage: str
    citation: str
    aliases: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    published_counts: tuple[int, int] | None = None
    synthetic: bool = False
    roi_center: RoiCenter = "unknown"
    materialise: Materialise | None = None


DATASETS: Registry[DatasetSpec] = Registry("datasets", "sfuda_bench.datasets")


def register(spec: DatasetSpec) -> DatasetSpec:
    """Register a data set; called by each plug-in when it is imported.

    Raises:
        UsageError: The name or an alias is taken; the message names both files.
    """
    origin = sys._getframe(1).f_code.co_filename
    DATASETS.add(spec.name, spec, origin=origin, aliases=_other_names(spec))
    return spec


def get_dataset(name: str) -> DatasetSpec:
    """Return the data set called ``name`` (or an alias, in any case).

    Raises:
        UsageError: The name is unknown, or stands for several data sets.
    """
    _refuse_ambiguous(name)
    return DATASETS.get(name)


def dataset_names() -> list[str]:
    """Return the canonical names of the registered data sets, sorted."""
    return DATASETS.names()


def canonical_name(name: str) -> str:
    """Return the canonical name for an alias; an unregistered name stands for itself.

    Raises:
        UsageError: The name stands for several data sets.
    """
    spec = _find_spec(name)
    return spec.name if spec else name


def materialise_synthetic(
    root: Path, *, size: int = 256, counts: tuple[int, int] = (40, 20)
) -> list[str]:
    """Write every generated domain below ``root`` and return their names.

    Args:
        root: Folder that holds one folder per domain; created when missing.
        size: Side of the square ROIs, px.
        counts: Number of train and test images of each domain.
    """
    specs = [spec for spec in map(get_dataset, dataset_names()) if spec.materialise is not None]
    for spec in specs:
        if spec.materialise is not None:
            spec.materialise(root, size=size, counts=counts)
    return [spec.name for spec in specs]


def find_domains(root: Path) -> dict[str, Domain]:
    """Find the domains below ``root``: every folder that has a ``train`` or a ``test`` folder.

    Args:
        root: Folder in the layout ``ROOT/<domain>/{train,test}/ROIs/{image,mask}/*.png``.

    Returns:
        Domains by canonical name, sorted. A sample without a mask file has ``mask=None``.

    Raises:
        DataError: The root or an image folder is missing or empty, or two folders are one domain.
    """
    return {name: read_domain(folder) for name, folder in domain_index(root).items()}


def domain_index(root: Path) -> dict[str, Path]:
    """Return the folder of every domain below ``root`` by canonical name, sorted.

    Raises:
        DataError: The root is missing or holds no domain, or two folders are one domain.
    """
    folders: dict[str, Path] = {}
    for folder in domain_folders(root):
        name = folder_domain(folder)
        if name in folders:
            raise DataError(
                f"{root}: the folders '{folders[name].name}' and '{folder.name}' are both the "
                f"domain '{name}'",
                hint="keep one of them",
            )
        folders[name] = folder
    return dict(sorted(folders.items()))


def domain_folders(root: Path) -> list[Path]:
    """Return the folders below ``root`` that hold a ``train`` or a ``test`` folder, sorted.

    Raises:
        DataError: ``root`` is no folder or holds no domain.
    """
    if not root.is_dir():
        raise DataError(
            f"{root}: no such folder", hint="--data-root DIR names the folder of domains"
        )
    folders = sorted(
        folder
        for folder in root.iterdir()
        if any((folder / split).is_dir() for split in SPLITS) and not folder.name.startswith(".")
    )
    if not folders:
        raise DataError(f"{root}: no domain found; expected {LAYOUT}", hint=_layout_hint(root))
    return folders


def folder_domain(folder: Path) -> str:
    """Return the canonical name of the domain in ``folder``.

    Raises:
        DataError: The folder's name stands for several data sets.
    """
    try:
        return canonical_name(folder.name)
    except UsageError as error:
        raise DataError(f"{folder}: {error.message}", hint="rename the folder") from error


def read_domain(folder: Path) -> Domain:
    """List the samples of the domain in ``folder``, without opening an image.

    Raises:
        DataError: An image folder is missing or empty.
    """
    spec = _find_spec(folder.name)
    return Domain(
        name=folder_domain(folder),
        title=spec.title if spec else folder.name,
        train=_read_split(folder, "train"),
        test=_read_split(folder, "test"),
        synthetic=spec.synthetic if spec else False,
        roi_center=spec.roi_center if spec else "unknown",
    )


def _read_split(folder: Path, name: str) -> Split:
    images, masks = (folder / name / "ROIs" / kind for kind in ("image", "mask"))
    paths = sorted(images.glob("*.png")) if images.is_dir() else []
    if not paths:
        problem = "has no *.png file" if images.is_dir() else "is missing"
        raise DataError(f"{images}: the image folder {problem}", hint=f"expected {LAYOUT}")
    with_mask = {path.name for path in masks.glob("*.png")} if masks.is_dir() else set()
    return Split(
        name,
        tuple(
            Sample(path.stem, path, masks / path.name if path.name in with_mask else None)
            for path in paths
        ),
    )


def _other_names(spec: DatasetSpec) -> tuple[str, ...]:
    """Aliases that differ from the name, which the registry adds itself."""
    return tuple(alias for alias in spec.aliases if alias.lower() != spec.name.lower())


def _find_spec(name: str) -> DatasetSpec | None:
    _refuse_ambiguous(name)
    wanted = name.lower()
    for spec in map(DATASETS.get, DATASETS.names()):
        if wanted in {key.lower() for key in (spec.name, *spec.aliases)}:
            return spec
    return None


def _refuse_ambiguous(name: str) -> None:
    members = [
        spec.name
        for spec in map(DATASETS.get, DATASETS.names())
        if name.lower() in {family.lower() for family in spec.families}
    ]
    if members:
        raise UsageError(
            f"'{name}' is ambiguous: it stands for {' and '.join(members)}",
            hint=f"write {' or '.join(members)}",
        )


def _layout_hint(root: Path) -> str:
    if any((root / name).is_dir() for name in ("ROIs", "image")):
        return "give the folder above the domains, not a domain or split itself"
    return "see datasets/README.md for the layout"

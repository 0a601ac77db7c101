"""Port for data sets: what a data-set plug-in registers, and how domains are found on disk.

A data-set plug-in *describes* a domain (title, aliases, licence, published split). The images
always come from folders in the ROI layout ``ROOT/<domain>/{train,test}/ROIs/{image,mask}/*.png``;
any folder in that layout is a domain, with or without a plug-in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from sfuda_bench._checkout import plugin_path
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.registry import Registry
from sfuda_bench.severity import Derived, base_of, split_name

__path__ = plugin_path("datasets")

LAYOUT = "ROOT/<domain>/{train,test}/ROIs/{image,mask}/*.png"
SPLITS = ("train", "test")

RoiCenter = Literal["gt", "csv", "detector", "owner", "unknown"]
LABEL_CENTER: RoiCenter = "gt"
MANIFEST = "manifest.json"
"""Written beside ``train`` and ``test`` by ``data prepare``."""


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
    ``"csv"``, ``"detector"``, ``"owner"`` (the owners' own crops) or ``"unknown"``. The
    manifest of a prepared domain knows; for other folders it is what the plug-in says.
    """

    name: str
    title: str
    train: Split
    test: Split
    synthetic: bool
    roi_center: str

    @property
    def positions_from_labels(self) -> bool:
        """Whether real crops are centred on annotations: every table has to say so."""
        return self.roi_center == LABEL_CENTER and not self.synthetic

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

    def __call__(
        self,
        root: Path,
        *,
        size: int = 256,
        counts: tuple[int, int] = (40, 20),
        severity: Mapping[str, float] | None = None,
        name: str | None = None,
    ) -> None:
        """Write ``root/<name>`` in the ROI layout.

        Args:
            root: Folder that holds one folder per domain.
            size: Side of the square ROIs, px.
            counts: Number of train and test images.
            severity: Knobs to turn; given only to a domain that declares ``knobs``.
            name: Folder of a derived domain; the base domain's own name without it.
        """


# -- the owners' downloads -------------------------------------------------------------------

Tissue = Literal["cup", "rim", "background"]


@dataclass(frozen=True)
class RawFile:
    """One file of an owners' download.

    Args:
        path: Path below the raw folder with ``/`` between its parts; an archive counts as a folder.
        groups: What the named groups of the pattern matched.
    """

    path: str
    groups: Mapping[str, str]


@dataclass(frozen=True)
class LabelMask:
    """One file whose gray values name the tissue, e.g. ``{0: "cup", 128: "rim", ...}``.

    ``values`` is ``None`` where nobody declared them: preparing then asks for ``--encoding``.
    """

    file: str
    values: Mapping[int, Tissue] | None


@dataclass(frozen=True)
class BinaryMasks:
    """One file per structure; the structure is ``"bright"`` (above 0) or ``"dark"`` (0)."""

    cup: str
    disc: str
    structure: Literal["bright", "dark"] = "bright"


@dataclass(frozen=True)
class SoftMasks:
    """One file per structure; the gray value over 255 is the share of ``graders`` who marked it."""

    cup: str
    disc: str
    graders: int


@dataclass(frozen=True)
class DrawnOutlines:
    """A copy of the photograph on which one grader drew the outlines of disc and cup."""

    file: str


@dataclass(frozen=True)
class Contours:
    """One text file per structure with the points of its outline: x and y in px, one per line."""

    cup: str
    disc: str


RawMask = LabelMask | BinaryMasks | SoftMasks | DrawnOutlines | Contours


def mask_files(mask: RawMask) -> tuple[str, ...]:
    """Return the files of a mask: cup and disc, or the one file of both."""
    if isinstance(mask, LabelMask | DrawnOutlines):
        return (mask.file,)
    return mask.cup, mask.disc


@dataclass(frozen=True)
class RawEye:
    """One photograph of a download and where its masks are.

    Args:
        name: Name of the written files, without suffix.
        image: Path of the photograph below the raw folder.
        masks: One entry per grader; several are combined by agreement. Empty without labels.
        split: ``"train"`` or ``"test"`` where the owners or a published list say so.
        stratum: Group whose share is kept equal when the split has to be drawn, e.g. a clinic.
        patient: Whose eye it is, where that is known: a split that is drawn keeps a patient whole.
        left_half: The photograph is one half of a stereo pair, the left one.
        graders_vcdr: The graders' own vertical cup-to-disc ratios.
        missing: Files that ought to be there and are not.
    """

    name: str
    image: str
    masks: tuple[RawMask, ...] = ()
    split: str | None = None
    stratum: str = ""
    patient: str = ""
    left_half: bool = False
    graders_vcdr: tuple[float, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class RawDomain:
    """What a layout found in a download.

    Args:
        eyes: The photographs, in any order.
        split_origin: Where the eyes' ``split`` comes from, in a few words; empty without one.
        published: Whether published numbers use this split.
        expected: Names that the published split lists, by ``"train"`` and ``"test"``.
        notes: Remarks for the user and the manifest.
    """

    eyes: tuple[RawEye, ...]
    split_origin: str = ""
    published: bool = False
    expected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class RawFiles(Protocol):
    r"""The files of a download; archives inside it, nested ones too, are seen as folders.

    Patterns are regular expressions, in any case, for the *end* of a path from the beginning of
    one of its parts: ``Images/(?P<eye>\d+)\.jpg`` finds ``any/thing/Images/001.JPG``.
    """

    def find(self, pattern: str) -> list[RawFile]:
        """Return the files whose path ends as ``pattern`` says, sorted by path."""

    def index(self, pattern: str) -> dict[str, RawFile]:
        """Return the files by their group ``eye`` in lower case.

        Raises:
            DataError: Two files of different content claim one eye.
        """

    def text(self, path: str) -> str:
        """Return the text of a small file."""

    def image_mask_folder(self, values: Mapping[int, Tissue] | None = None) -> RawDomain:
        """Read a plain image + mask folder; ``values`` as in :class:`LabelMask`."""


def structure_files(
    key: str,
    cups: Mapping[str, RawFile],
    discs: Mapping[str, RawFile],
    expected: Sequence[str],
) -> tuple[tuple[str, str] | None, tuple[str, ...]]:
    """Find the files of one eye where each structure has its own.

    Args:
        key: The eye, as in :meth:`RawFiles.index`.
        cups: Files of the cup by eye.
        discs: Files of the disc by eye.
        expected: What the two files of this eye are called, cup first.

    Returns:
        The paths of both, cup first, or ``None``; and the names of those that are missing.
    """
    found = zip(expected, (cups, discs), strict=True)
    missing = tuple(name for name, files in found if key not in files)
    return (None if missing else (cups[key].path, discs[key].path)), missing


def label_file(
    key: str, masks: Mapping[str, RawFile], values: Mapping[int, Tissue], expected: str
) -> tuple[tuple[LabelMask, ...], tuple[str, ...]]:
    """Find the mask of one eye where one file has both structures.

    Args:
        key: The eye, as in :meth:`RawFiles.index`.
        masks: Files by eye.
        values: What gray values mean.
        expected: What the file of this eye is called.

    Returns:
        The mask, if there is one; and the file's name, if it is missing.
    """
    if key in masks:
        return (LabelMask(masks[key].path, values),), ()
    return (), (expected,)


@dataclass(frozen=True)
class PublishedSplit:
    """A list of names per split that papers use.

    Attributes:
        source: Where it was published.
        expected: Names by split.
    """

    source: str
    expected: Mapping[str, tuple[str, ...]]

    @cached_property
    def _listed(self) -> dict[str, tuple[str, str]]:
        return {
            name.lower(): (name, part) for part, names in self.expected.items() for name in names
        }

    def find(self, key: str, written: str) -> tuple[str, str | None]:
        """Return an eye's listed name and its split, or its own name and ``None``.

        Args:
            key: The eye, as in :meth:`RawFiles.index`.
            written: Its name as the file has it.
        """
        return self._listed.get(key, (written, None))


def read_published_split(path: Path) -> PublishedSplit:
    """Read a list of ``datasets/splits``."""
    content = json.loads(path.read_text("utf-8"))
    return PublishedSplit(content["source"], {part: tuple(content[part]) for part in SPLITS})


def read_ratios(path: str, words: Sequence[str]) -> tuple[float, ...]:
    """Return the cup-to-disc ratios that stand in a file of the owners.

    Args:
        path: The file, for the message.
        words: One number each.

    Raises:
        DataError: A word is no ratio.
    """
    try:
        ratios = tuple(map(float, words))
    except ValueError:
        ratios = (-1.0,)
    if not all(0 <= ratio <= 1 for ratio in ratios):
        raise DataError(
            f"{path}: expected cup-to-disc ratios, found '{' '.join(words)[:60]}'",
            hint="download it again; without this file nothing is compared with the graders",
        )
    return ratios


@dataclass(frozen=True)
class RawChoice:
    """What the user chose among a layout's ``experts`` and ``splits``."""

    expert: str
    split: str


class ReadRaw(Protocol):
    """Finds the photographs and masks of one domain in a download; opens no image."""

    def __call__(self, files: RawFiles, choice: RawChoice) -> RawDomain:
        """Return what is there; eyes without masks are kept, with ``missing`` filled."""


@dataclass(frozen=True)
class RawLayout:
    """How the owners lay out their download.

    Args:
        read: Finds the photographs and masks.
        tree: What the raw folder should contain, for messages.
        experts: Whose masks can be chosen; the first is the default.
        splits: Splits that can be chosen; the first is the default.
        agreement: How many graders must agree unless the user says otherwise: ``"any"``,
            ``"half"``, ``"most"``, ``"all"`` or a share.
        cropped: The owners' images are crops around the disc already, not whole fields.
        size_px: Side of the owners' crops, where all have the same; 0 where they differ.
    """

    read: ReadRaw
    tree: str
    experts: tuple[str, ...] = ("all",)
    splits: tuple[str, ...] = ("default",)
    agreement: str = "half"
    cropped: bool = False
    size_px: int = 0


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
        camera: Camera and field of view, as far as the owners state them.
        encoding: Who annotated, and how the owners' masks encode cup, rim and background.
        pitfalls: What often goes wrong with this data set, one sentence each.
        materialise: Writes the images, for generated domains only.
        knobs: What may be turned in a derived domain such as ``name@knob=0.4``.
        raw: How the owners' download is laid out, where it can be prepared.
    """

    name: str
    title: str
    description: str
    licence: str
    homepage: str
    citation: str
    camera: str = ""
    encoding: str = ""
    pitfalls: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    published_counts: tuple[int, int] | None = None
    synthetic: bool = False
    roi_center: RoiCenter = "unknown"
    materialise: Materialise | None = None
    knobs: tuple[str, ...] = ()
    raw: RawLayout | None = None


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
        UsageError: The name stands for several data sets, or a derived name is malformed.
    """
    spec = _find_spec(name)
    if spec is None:
        return name
    return Derived(spec.name, split_name(name).severity).name if "@" in name else spec.name


def dataset_knobs(name: str) -> tuple[str, ...]:
    """Return what may be turned in domains derived from ``name``: nothing unless it is generated.

    Raises:
        UsageError: The name stands for several data sets.
    """
    spec = _find_spec(base_of(name))
    return spec.knobs if spec else ()


def materialise_derived(root: Path, name: str) -> Path:
    """Write the derived domain ``name`` below ``root`` and return its folder.

    It has the size and the numbers of images that :func:`materialise_synthetic` gives its base.

    Raises:
        UsageError: There is no such generated domain, knob or severity.
    """
    spec, derived = get_dataset(base_of(name)), split_name(name)
    if spec.materialise is None or not derived.severity.keys() <= {*spec.knobs}:
        known = ", ".join(spec.knobs) or "none"
        raise UsageError(f"no domain '{name}'; knobs of {spec.name}: {known}")
    spec.materialise(root, severity=derived.severity, name=name)
    return root / name


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
    if "->" in folder.name or any(c in ":,*" or not c.isprintable() for c in folder.name):
        raise DataError(
            f"{str(folder)!r}: a domain's name cannot hold ':', ',', '*', '->' or control "
            "characters: pairs are written with them",
            hint="rename the folder",
        )
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
        title=f"{spec.title}{folder.name[len(base_of(folder.name)) :]}" if spec else folder.name,
        train=_read_split(folder, "train"),
        test=_read_split(folder, "test"),
        synthetic=spec.synthetic if spec else False,
        roi_center=roi_center(folder),
    )


def roi_center(folder: Path) -> str:
    """Return where the position of a domain's crops comes from; see :class:`Domain`.

    Raises:
        DataError: The manifest is damaged.
    """
    spec = _find_spec(folder.name)
    return _manifest_value(folder, "roi_center") or (spec.roi_center if spec else "unknown")


def _manifest_value(folder: Path, key: str) -> str:
    """Return a text of a prepared domain's manifest, or nothing where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return ""
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: a damaged manifest: {error}",
            hint="prepare the domain again, or remove the file",
        ) from error
    return str(manifest.get(key, "")) if isinstance(manifest, dict) else ""


def _read_split(folder: Path, name: str) -> Split:
    images, masks = (folder / name / "ROIs" / kind for kind in ("image", "mask"))
    paths = sorted(images.glob("[!.]*.png")) if images.is_dir() else []  # "._x.png" is no image
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
    """Return what is registered under a name, or under the base of a derived one."""
    _refuse_ambiguous(name)
    wanted = base_of(name).strip().lower()
    for spec in map(DATASETS.get, DATASETS.names()):
        if wanted in {key.lower() for key in (spec.name, *spec.aliases)}:
            return spec if spec.knobs or "@" not in name else None
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

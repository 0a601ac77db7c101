"""The plain layout: a folder of images beside a folder of masks, or of cups and of discs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from sfuda_bench.datasets import BinaryMasks, LabelMask, RawDomain, RawEye, RawMask, Tissue
from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.tables import eye_name

if TYPE_CHECKING:
    from sfuda_bench.images.prepare.raw_files import RawTree

_KINDS = {
    "cup": {"cup", "cups", "optic-cup", "optic_cup", "oc"},
    "disc": {"disc", "discs", "disk", "optic-disc", "optic_disc", "od"},
    "mask": {"mask", "masks", "label", "labels", "gt", "annotation", "annotations"},
    "image": {"image", "images", "img", "imgs", "fundus"},
}
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
}  # fmt: skip
_SUFFIX = re.compile(r"[-_](?:mask|label|gt|seg|cup|oc|disc|disk|od)$", re.IGNORECASE)
_IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
_Key = tuple[str, str]


def read_plain_folder(files: RawTree, values: Mapping[int, Tissue] | None) -> RawDomain:
    """Pair the images below ``image/`` with masks of the same name.

    Folder names count in any case and in common spellings (``images``, ``masks``, ``labels``).
    Masks lie below ``mask/`` in one file, or below ``cup/`` and ``disc/``. A suffix such as
    ``_mask`` is dropped unless an image is called so: ``_od`` may be a right eye. Folders
    ``train`` and ``test`` give the split.

    Args:
        files: The raw tree.
        values: What gray values mean, for masks of one file.

    Raises:
        DataError: A name occurs twice, or the tree is an archive of several domains.
    """
    _refuse_several_domains(files)
    found: dict[str, dict[_Key, str]] = {kind: {} for kind in _KINDS}
    classified = [(path, *_classify(path)) for path in files.files]
    images = {key for _, kind, key in classified if kind == "image"}
    for path, kind, key in classified:
        if kind is None:
            continue
        if key not in images:
            key = (key[0], _SUFFIX.sub("", key[1]))
        first = found[kind].setdefault(key, path)
        if first != path:
            raise DataError(
                f"{files.root}: two files for one {kind}: {first} and {path}",
                hint="names must be unique within train and within test",
            )
    eyes = tuple(_eye(key, path, found, values) for key, path in found["image"].items())
    stray = sorted({*found["mask"], *found["cup"], *found["disc"]} - set(found["image"]))
    notes = (f"{len(stray)} masks without an image, e.g. {stray[0][1]}",) if stray else ()
    split = any(eye.split for eye in eyes)
    return RawDomain(eyes, "the raw folder's train and test folders" if split else "", notes=notes)


def _refuse_several_domains(files: RawTree) -> None:
    """Keep hospitals apart: the archive that papers share holds one folder for each."""
    parts = {part.lower() for path in files.files for part in path.split("/")[:-1]}
    domains = sorted(part for part in parts if re.fullmatch(r"domain\d+", part))
    if len(domains) > 1:
        raise DataError(
            f"{files.root}: holds {', '.join(domains)}: they would become one domain",
            hint="--layout rois takes one of them, or give its folder to --raw",
        )


def _classify(path: str) -> tuple[str | None, _Key]:
    """Return the kind of a file, by the innermost folder that says it, and its key."""
    pure = PurePosixPath(path)
    folders = [part.lower() for part in pure.parts[:-1]]
    split = next((_SPLITS[part] for part in reversed(folders) if part in _SPLITS), "")
    if pure.suffix.lower() not in _IMAGES:
        return None, ("", "")
    for part in reversed(folders):
        for kind, names in _KINDS.items():
            if part in names:
                return kind, (split, eye_name(pure.name))
    return None, ("", "")


def _eye(
    key: _Key,
    path: str,
    found: Mapping[str, Mapping[_Key, str]],
    values: Mapping[int, Tissue] | None,
) -> RawEye:
    split, stem = key
    masks: tuple[RawMask, ...] = ()
    missing: tuple[str, ...] = ()
    if key in found["mask"]:
        masks = (LabelMask(found["mask"][key], values),)
    elif key in found["cup"] and key in found["disc"]:
        masks = (BinaryMasks(found["cup"][key], found["disc"][key]),)
    else:
        lone = [kind for kind in ("cup", "disc") if key not in found[kind]]
        missing = tuple(f"{kind}/{stem}" for kind in lone) if len(lone) == 1 else (f"mask/{stem}",)
    return RawEye(stem, path, masks, _SPLITS.get(split), missing=missing)

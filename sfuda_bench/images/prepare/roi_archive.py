"""The archive of crops that papers on domain adaptation share: four domains, split and cropped."""

from __future__ import annotations

import re

from sfuda_bench.datasets import (
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    Tissue,
    label_file,
)

_SIDE_PX = 800
_VALUES: dict[int, Tissue] = {0: "cup", 128: "rim", 255: "background"}


def roi_layout(spec: DatasetSpec) -> RawLayout:
    """Return the layout ``DomainN/{train,test}/ROIs/{image,mask}/NAME.png`` for one data set.

    The domain's folder has any of the data set's names, so that the older
    ``Drishti-GS/{train,test}/{image,mask}/`` is read as well. Crops are 800 x 800 px, masks gray:
    0 cup, 128 rim, 255 background.

    Args:
        spec: The data set whose domain is wanted; the others of the archive are passed over.

    Source:
        Released code of BEAL (945cad3), DPL (634de5b) and CPR (1fea8d4), fundus_dataloader.py.
    """
    names = sorted({_any_separator(name) for name in (spec.name, *spec.aliases)})
    folders = f"(?:{'|'.join(names)})"

    def read(files: RawFiles, choice: RawChoice) -> RawDomain:
        eyes = [eye for split in ("train", "test") for eye in _read_split(files, folders, split)]
        counts = tuple(sum(eye.split == split for eye in eyes) for split in ("train", "test"))
        return RawDomain(
            tuple(eyes),
            split_origin="the train and test folders of the shared archive of crops",
            published=counts == spec.published_counts,
        )

    shown = next((name for name in spec.aliases if name.startswith("Domain")), spec.name)
    tree = f"{shown}/{{train,test}}/ROIs/{{image,mask}}/*.png below --raw"
    return RawLayout(read, tree, cropped=True, size_px=_SIDE_PX)


def _read_split(files: RawFiles, folders: str, split: str) -> list[RawEye]:
    below = rf"{folders}/{split}/(?:ROIs/)?%s/(?P<eye>[^/]+)\.png"
    masks = files.index(below % "mask")
    eyes = []
    for key, photograph in files.index(below % "image").items():
        name = photograph.groups["eye"]
        mask, missing = label_file(key, masks, _VALUES, f"{split}/ROIs/mask/{name}.png")
        eyes.append(RawEye(name, photograph.path, masks=mask, split=split, missing=missing))
    return eyes


def _any_separator(name: str) -> str:
    """Return a pattern for a name with its words joined in any of the usual ways."""
    return "[-_ ]?".join(map(re.escape, re.split("[-_ ]", name.lower())))

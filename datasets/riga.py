"""RIGA: 750 retinal images of three sources, optic disc and cup by six experts."""

from collections import defaultdict

from sfuda_bench.datasets import (
    DatasetSpec,
    DrawnOutlines,
    RawChoice,
    RawDomain,
    RawEye,
    RawFile,
    RawFiles,
    RawLayout,
    Tissue,
    register,
)

_EXPERTS = ("all", "1", "2", "3", "4", "5", "6")
_MASK_VALUES: dict[int, Tissue] = {255: "cup", 128: "rim", 0: "background"}
_IMAGE = r"(?P<eye>[^/]+/image\d+)"
_SUFFIX = r"\.(?:tif|tiff|jpg|jpeg|png)"


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    """Read the owners' six drawings per photograph, or a subset that comes as filled masks."""
    photographs = files.index(rf"{_IMAGE}prime{_SUFFIX}")
    if not photographs:
        return files.image_mask_folder(_MASK_VALUES)
    drawings: dict[str, list[RawFile]] = defaultdict(list)
    for drawn in files.find(rf"{_IMAGE}-(?P<expert>\d){_SUFFIX}"):
        if choice.expert in ("all", drawn.groups["expert"]):
            drawings[drawn.groups["eye"].lower()].append(drawn)
    eyes = []
    for key, photograph in photographs.items():
        folder, stem = photograph.groups["eye"].split("/")
        found = drawings.get(key, [])
        eyes.append(
            RawEye(
                f"{folder}_{stem}",
                photograph.path,
                masks=tuple(DrawnOutlines(file.path) for file in found),
                stratum=folder,
                missing=() if found else (f"{folder}/{stem}-{{1..6}}",),
            )
        )
    return RawDomain(tuple(eyes))


register(
    DatasetSpec(
        name="riga",
        title="RIGA",
        aliases=("riga_subset",),
        roi_center="gt",
        description="Disc crops of a subset; there is no published split.",
        licence="See the owners' page.",
        homepage="https://deepblue.lib.umich.edu/data/concern/data_sets/3b591905z",
        citation="Almazroa et al., Retinal fundus images for glaucoma analysis: the RIGA dataset, "
        "SPIE Medical Imaging 2018",
        camera="Three sources (MESSIDOR, Bin Rushed, Magrabi) with different cameras; see the "
        "owners' page.",
        encoding="Six graders drew outlines into copies of the photograph; filled versions in "
        "circulation have 255 cup, 128 rim, 0 background, opposite to most other data sets.",
        pitfalls=(
            "The polarity of filled masks is opposite to most other data sets.",
            "Graders disagree: say whether one grader or an agreement is used.",
            "The three sources are three cameras: it is no single domain.",
            "There is no published split.",
        ),
        raw=RawLayout(
            _read,
            tree="{BinRushed/BinRushedN,Magrabia/Magrabi...,MESSIDOR}/imageNprime.{jpg,tif} and "
            "imageN-{1..6}.{jpg,tif}; or image/ and mask/ (255 cup, 128 rim, 0 background)",
            experts=_EXPERTS,
        ),
    )
)

"""REFUGE: the training, validation and test releases are three domains."""

from functools import partial

from sfuda_bench.datasets import (
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    Tissue,
    label_file,
    register,
)

_CITATION = (
    "Orlando et al., REFUGE Challenge: A unified framework for evaluating automated methods for "
    "glaucoma assessment from fundus photographs, Medical Image Analysis 59, 2020"
)
_HOMEPAGE = "https://refuge.grand-challenge.org/"
_LICENCE = "Research use; register with the challenge."
_ENCODING = (
    "One gray file: 0 cup, 128 rim, 255 background; from several glaucoma specialists, "
    "combined by the organisers."
)
_SPLIT = (
    "The name lists of the 320 / 80 split of the papers are not published: a new split differs."
)
_VALUES: dict[int, Tissue] = {0: "cup", 128: "rim", 255: "background"}


def _read(files: RawFiles, choice: RawChoice, *, images: str, annotations: str) -> RawDomain:
    masks = files.index(
        rf"{annotations}/(?:.+/)?Disc_Cup_Masks/(?:.+/)?(?P<eye>[gnVT]\d{{4}})\.(?:bmp|png)"
    )
    eyes = []
    for key, photograph in files.index(
        rf"(?:REFUGE-)?{images}/(?:.+/)?(?P<eye>[gnVT]\d{{4}})\.(?:jpg|jpeg|png|bmp|tif)"
    ).items():
        name = photograph.groups["eye"]
        expected = f"{annotations}/Disc_Cup_Masks/.../{name}.bmp"
        mask, missing = label_file(key, masks, _VALUES, expected)
        eyes.append(
            RawEye(
                name,
                photograph.path,
                masks=mask,
                stratum=_diagnosis(masks[key].path if key in masks else photograph.path),
                missing=missing,
            )
        )
    return RawDomain(
        tuple(eyes),
        notes=("the name lists of the published 320 / 80 split are not known: drawn here",),
    )


def _diagnosis(path: str) -> str:
    """Return the folder that sorts eyes by diagnosis, where a release has one."""
    folder = path.split("/")[-2]
    return folder if folder.lower() in {"glaucoma", "non-glaucoma", "g", "n"} else ""


def _layout(images: str, annotations: str, tree: str) -> RawLayout:
    return RawLayout(partial(_read, images=images, annotations=annotations), tree)


register(
    DatasetSpec(
        name="refuge_train",
        title="REFUGE train",
        aliases=("Domain3", "refuge-train", "refugetrain"),
        families=("refuge",),
        published_counts=(320, 80),
        roi_center="detector",
        description="400 eyes of the challenge's training release, Zeiss Visucam 500.",
        licence=_LICENCE,
        homepage=_HOMEPAGE,
        citation=_CITATION,
        camera="Zeiss Visucam 500, 2124 x 2056 px.",
        encoding=_ENCODING,
        pitfalls=(
            _SPLIT,
            "Papers that say REFUGE may mean the training release or the validation release: "
            "two cameras, two domains.",
            "File names and folders carry the diagnosis: g glaucoma, n normal.",
            "Archives may be nested one level deeper than documented.",
        ),
        raw=_layout(
            "Training400",
            "Annotation-Training400",
            "Training400/{Glaucoma,Non-Glaucoma}/{g,n}NNNN.jpg and "
            "Annotation-Training400/Disc_Cup_Masks/{Glaucoma,Non-Glaucoma}/{g,n}NNNN.bmp",
        ),
    )
)
register(
    DatasetSpec(
        name="refuge_val",
        title="REFUGE validation",
        aliases=("Domain4", "refuge-val", "refugeval", "refuge_validation"),
        families=("refuge",),
        published_counts=(320, 80),
        roi_center="detector",
        description="400 eyes of the challenge's validation release, Canon CR-2.",
        licence=_LICENCE,
        homepage=_HOMEPAGE,
        citation=_CITATION,
        camera="Canon CR-2, 1634 x 1634 px.",
        encoding=_ENCODING,
        pitfalls=(
            _SPLIT,
            "Another camera than the training release: numbers on the two do not compare.",
        ),
        raw=_layout(
            "Validation400",
            "REFUGE-Validation400-GT",
            "REFUGE-Validation400/VNNNN.jpg and REFUGE-Validation400-GT/Disc_Cup_Masks/VNNNN.bmp",
        ),
    )
)
register(
    DatasetSpec(
        name="refuge_test",
        title="REFUGE test",
        aliases=("refuge-test", "refugetest"),
        families=("refuge",),
        roi_center="detector",
        description="400 eyes of the challenge's test release, Canon CR-2.",
        licence=_LICENCE,
        homepage=_HOMEPAGE,
        citation=_CITATION,
        camera="Canon CR-2, 1634 x 1634 px.",
        encoding=_ENCODING,
        pitfalls=("There is no published split into train and test for adaptation.",),
        raw=_layout(
            "Test400",
            "REFUGE-Test-GT",
            "Test400/TNNNN.jpg and REFUGE-Test-GT/Disc_Cup_Masks/{G,N}/TNNNN.bmp",
        ),
    )
)

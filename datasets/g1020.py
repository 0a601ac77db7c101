"""G1020: 1020 retinal images of 432 patients from Kaiserslautern, Germany; disc and cup."""

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

_EYE = r"(?P<eye>image_\d+)"
_VALUES: dict[int, Tissue] = {0: "background", 1: "rim", 2: "cup"}


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    masks = files.index(rf"Masks/{_EYE}\.(?:png|bmp|tif)")
    eyes = []
    for key, photograph in files.index(rf"Images/{_EYE}\.(?:jpg|jpeg|png)").items():
        name = photograph.groups["eye"]
        mask, missing = label_file(key, masks, _VALUES, f"Masks/{name}.png")
        eyes.append(RawEye(name, photograph.path, masks=mask, missing=missing))
    return RawDomain(
        tuple(eyes),
        notes=("files do not say which eyes are one patient's: a drawn split may part them",),
    )


register(
    DatasetSpec(
        name="g1020",
        title="G1020",
        roi_center="detector",
        description="1020 photographs of 432 patients of one practice in Germany, 296 with "
        "glaucoma.",
        licence="See the owners' page.",
        homepage="https://arxiv.org/abs/2006.09158",
        citation="Bajwa et al., G1020: A benchmark retinal fundus image dataset for "
        "computer-aided glaucoma detection, IJCNN 2020",
        camera="1944 x 2108 to 2426 x 3007 px; for the camera see the paper.",
        encoding="Gray values of copies in circulation: 0 background, 1 rim, 2 cup.",
        pitfalls=(
            "A patient has up to 12 photographs, and no file says which: a drawn split may part "
            "them.",
            "Not every photograph has an annotated cup: there the cup is empty.",
            "The masks look black in a viewer: their values are 0, 1, 2.",
        ),
        raw=RawLayout(_read, tree="Images/image_N.jpg and Masks/image_N.png (0, 1 rim, 2 cup)"),
    )
)

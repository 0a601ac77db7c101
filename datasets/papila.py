"""PAPILA: both eyes of 244 patients from Murcia, Spain; optic disc and cup by two experts."""

from sfuda_bench.datasets import (
    Contours,
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    register,
    structure_files,
)

_EYE = r"(?P<eye>RET\d{3}O[DS])"
_EXPERTS = ("exp1", "exp2")


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    experts = _EXPERTS if choice.expert == "all" else (choice.expert,)
    contour = rf"Contours/{_EYE}_%s_%s\.txt"
    cups = {expert: files.index(contour % ("cup", expert)) for expert in experts}
    discs = {expert: files.index(contour % ("disc", expert)) for expert in experts}
    eyes = []
    for key, photograph in files.index(rf"FundusImages/{_EYE}\.(?:jpg|jpeg|png)").items():
        name = photograph.groups["eye"].upper()
        masks: list[Contours] = []
        missing: list[str] = []
        for expert in experts:
            expected = [f"{name}_{kind}_{expert}.txt" for kind in ("cup", "disc")]
            pair, lacking = structure_files(key, cups[expert], discs[expert], expected)
            masks += [Contours(*pair)] if pair else []
            missing += lacking
        complete = len(masks) == len(experts)
        eyes.append(
            RawEye(
                name,
                photograph.path,
                masks=tuple(masks) if complete else (),
                patient=name[:-2],
                missing=tuple(missing),
            )
        )
    return RawDomain(tuple(eyes))


register(
    DatasetSpec(
        name="papila",
        title="PAPILA",
        roi_center="detector",
        description="488 photographs, both eyes of 244 patients of one hospital in Spain.",
        licence="See the owners' page.",
        homepage="https://figshare.com/articles/dataset/PAPILA/14798004",
        citation="Kovalyk et al., PAPILA: Dataset with fundus images and clinical data of both "
        "eyes of the same patient for glaucoma assessment, Scientific Data 9, 2022",
        camera="2576 x 1934 px; for the camera see the owners' page.",
        encoding="No masks: one text file per structure and expert with the points of its outline.",
        pitfalls=(
            "There is no published split; one that is drawn by eye puts the two eyes of a patient "
            "on both sides.",
            "Two experts differ: say which one is used, or how they are combined.",
        ),
        raw=RawLayout(
            _read,
            tree="FundusImages/RETNNN{OD,OS}.jpg and "
            "ExpertsSegmentations/Contours/RETNNN{OD,OS}_{cup,disc}_{exp1,exp2}.txt",
            experts=("exp1", "exp2", "all"),
        ),
    )
)

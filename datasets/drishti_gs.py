"""Drishti-GS1: 101 retinal images from Madurai, India; optic disc and cup by four experts."""

from pathlib import Path

from sfuda_bench.datasets import (
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFile,
    RawFiles,
    RawLayout,
    SoftMasks,
    read_published_split,
    read_ratios,
    register,
    structure_files,
)

_EYE = r"(?P<eye>drishtiGS_\d+)"
_SPLIT = Path(__file__).parent / "splits" / "drishti_gs.json"


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    split = read_published_split(_SPLIT)
    photographs = files.index(rf"Images/(?:[^/]+/)?{_EYE}\.(?:png|jpg|jpeg|tif|bmp)")
    cups = files.index(rf"SoftMap/{_EYE}_cupsegSoftmap\.(?:png|bmp|tif)")
    discs = files.index(rf"SoftMap/{_EYE}_ODsegSoftmap\.(?:png|bmp|tif)")
    ratios = files.index(rf"{_EYE}_cdrValues\.txt")
    eyes = []
    for key, photograph in photographs.items():
        name, side = split.find(key, photograph.groups["eye"])
        expected = [f"{name}_{kind}segSoftmap.png" for kind in ("cup", "OD")]
        pair, missing = structure_files(key, cups, discs, expected)
        eyes.append(
            RawEye(
                name,
                photograph.path,
                masks=(SoftMasks(*pair, graders=4),) if pair else (),
                split=side,
                graders_vcdr=_ratios(files, ratios.get(key)),
                missing=missing,
            )
        )
    return RawDomain(
        tuple(eyes),
        split_origin=f"official: {split.source}",
        published=True,
        expected=split.expected,
    )


def _ratios(files: RawFiles, file: RawFile | None) -> tuple[float, ...]:
    """Return the four experts' ratios, which stand in one line."""
    return read_ratios(file.path, files.text(file.path).split()) if file else ()


register(
    DatasetSpec(
        name="drishti_gs",
        title="Drishti-GS",
        aliases=("Domain1", "drishti", "drishti-gs", "drishti_gs1", "drishtigs"),
        published_counts=(50, 51),
        roi_center="detector",
        description="101 eyes from one hospital in India, mostly glaucoma; official split.",
        licence="Research use; ask the owners.",
        homepage="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",
        citation="Sivaswamy et al., A comprehensive retinal image dataset for the assessment of "
        "glaucoma from the optic nerve head analysis, JSM Biomedical Imaging Data Papers, 2015",
        camera="30 degree field of view centred on the disc, about 2045 to 2468 x 1749 to 1845 "
        "px; for the camera see the owners' page.",
        encoding="Soft maps of four graders, one file per structure: 0, 64, 128, 191, 255 is the "
        "share who marked a pixel.",
        pitfalls=(
            "Papers turn the soft maps into masks at different agreements (any, half, three of "
            "four, all) and seldom say at which.",
            "Some soft maps differ from their photograph by a few pixels in size.",
            "In 2 of the 101 crops the disc touches the border of the central 512 px window.",
            "The file names of common crops carry the diagnosis: g glaucoma, n normal.",
        ),
        raw=RawLayout(
            _read,
            tree="Drishti-GS1_files/{Training,Test}/Images/drishtiGS_NNN.png and "
            "{GT,Test_GT}/drishtiGS_NNN/SoftMap/drishtiGS_NNN_{ODseg,cupseg}Softmap.png",
            # The masks of Domain1 are those of all four graders: its crops of the five eyes that
            # were compared (001, 002, 003, 004, 008) equal ours in every pixel, and differ in
            # thousands at any lower share.
            agreement="all",
        ),
    )
)

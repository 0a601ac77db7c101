"""RIM-ONE r3: 159 stereo retinal images from Spain; optic disc and cup by two experts."""

from pathlib import Path

from sfuda_bench.datasets import (
    BinaryMasks,
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    read_published_split,
    register,
    structure_files,
)

_EYE = r"(?P<eye>[NGS]-\d+-[LR])"
_SPLIT = Path(__file__).parent / "splits" / "rim_one_r3.json"
_FOLDERS = {"avg": "Average_masks", "exp1": "Expert1_masks", "exp2": "Expert2_masks"}


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    split = read_published_split(_SPLIT)
    # Releases differ: N-1-L-Disc-exp1.png and N-1-L-1-Disc-exp1.png both occur.
    mask = rf"{_FOLDERS[choice.expert]}/{_EYE}(?:-\d)?-%s-{choice.expert}\.(?:png|bmp|jpg)"
    cups, discs = files.index(mask % "Cup"), files.index(mask % "Disc")
    eyes = []
    for key, photograph in files.index(rf"Stereo Images/{_EYE}\.(?:jpg|jpeg|png|bmp|tif)").items():
        name, side = split.find(key, photograph.groups["eye"])
        expected = [f"{name}-{kind}-{choice.expert}.png" for kind in ("Cup", "Disc")]
        pair, missing = structure_files(key, cups, discs, expected)
        eyes.append(
            RawEye(
                name,
                photograph.path,
                masks=(BinaryMasks(*pair),) if pair else (),
                split=side,
                stratum=name[0],
                left_half=True,
                missing=missing,
            )
        )
    return RawDomain(
        tuple(eyes),
        split_origin=f"published list: {split.source}",
        published=True,
        expected=split.expected,
    )


register(
    DatasetSpec(
        name="rim_one_r3",
        title="RIM-ONE r3",
        aliases=("Domain2", "rimone_r3", "rim-one-r3", "rimone", "rim_one", "rimoner3"),
        published_counts=(99, 60),
        roi_center="detector",
        description="159 stereo pairs from Spain (left half annotated), healthy to glaucoma.",
        licence="Research use; redistribution needs the owners' consent.",
        homepage="http://medimrg.webs.ull.es/",
        citation="Fumero et al., RIM-ONE: An open retinal image database for optic nerve "
        "evaluation, CBMS 2011",
        camera="Kowa WX 3D stereo camera; 2144 x 1424 px, two views side by side.",
        encoding="One binary file per structure, above 0 inside; two experts and their average.",
        pitfalls=(
            "Only the left half of each stereo picture is annotated.",
            "The 99 / 60 split of the papers is no part of the download.",
            "Papers use one expert or the average and seldom say which.",
            "The newer collection by the same owners has the same photographs: the two are not "
            "independent domains.",
            "File names carry the diagnosis: N, S suspect, G.",
        ),
        raw=RawLayout(
            _read,
            tree="{Healthy,Glaucoma and suspects}/Stereo Images/X-n-{L,R}.jpg and "
            "{Average,Expert1,Expert2}_masks/X-n-{L,R}-{Disc,Cup}-{Avg,exp1,exp2}.png",
            experts=("avg", "exp1", "exp2"),
        ),
    )
)

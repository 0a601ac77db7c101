"""RIM-ONE DL: 485 disc crops of RIM-ONE r1, r2 and r3; optic disc and cup by one expert each."""

from sfuda_bench.datasets import (
    BinaryMasks,
    DatasetSpec,
    RawChoice,
    RawDomain,
    RawEye,
    RawFiles,
    RawLayout,
    register,
    structure_files,
)

_EYE = r"(?P<eye>r\d_Im\d+)"


def _read(files: RawFiles, choice: RawChoice) -> RawDomain:
    partition = {"hospital": "partitioned_by_hospital", "random": "partitioned_randomly"}
    photographs = files.index(
        rf"{partition[choice.split]}/(?P<part>training|test)_set/(?P<group>[^/]+)/"
        rf"{_EYE}\.(?:png|jpg|bmp|tif)"
    )
    mask = rf"RIM-ONE_DL_reference_segmentations/(?:.+/)?{_EYE}(?:-\d)?-%s-T\.(?:png|bmp)"
    cups, discs = files.index(mask % "Cup"), files.index(mask % "Disc")
    eyes = []
    for key, photograph in photographs.items():
        name = photograph.groups["eye"]
        expected = [f"{name}-1-{kind}-T.png" for kind in ("Cup", "Disc")]
        pair, missing = structure_files(key, cups, discs, expected)
        eyes.append(
            RawEye(
                name,
                photograph.path,
                masks=(BinaryMasks(*pair),) if pair else (),
                split="train" if photograph.groups["part"].lower() == "training" else "test",
                stratum=photograph.groups["group"].lower(),
                missing=missing,
            )
        )
    return RawDomain(
        tuple(eyes),
        split_origin=f"official: the owners' folders {partition[choice.split]}",
        published=True,
    )


register(
    DatasetSpec(
        name="rim_one_dl",
        title="RIM-ONE DL",
        aliases=("rimone_dl", "rim-one-dl", "rimonedl"),
        roi_center="owner",
        description="485 disc crops of three hospitals (313 healthy, 172 glaucoma), cropped by "
        "the owners.",
        licence="Research use with citation; see the owners' LICENSE file.",
        homepage="https://github.com/miag-ull/rim-one-dl",
        citation="Fumero et al., RIM-ONE DL: A unified retinal image database for assessing "
        "glaucoma using deep learning, Image Analysis & Stereology 39, 2020",
        camera="Three earlier releases with different cameras; see the owners' page.",
        encoding="One binary file per structure, above 0 inside.",
        pitfalls=(
            "The owners cropped the images: position and scale are theirs and differ from crops "
            "made by a fixed window.",
            "It contains photographs of the stereo release by the same owners: the two are not "
            "independent domains.",
            "There are two official partitions, by hospital and random; state which.",
        ),
        raw=RawLayout(
            _read,
            tree="RIM-ONE_DL_images/partitioned_{by_hospital,randomly}/{training,test}_set/"
            "{glaucoma,normal}/rN_ImNNN.png and RIM-ONE_DL_reference_segmentations/"
            "{glaucoma,normal}/rN_ImNNN-1-{Disc,Cup}-T.png",
            splits=("hospital", "random"),
            cropped=True,
        ),
    )
)

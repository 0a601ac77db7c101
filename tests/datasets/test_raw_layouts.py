"""Every owner's layout, in its exact shape, becomes a domain that verification passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.datasets import DATASETS, RawChoice, dataset_names, find_domains
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.decode import read_image, read_mask
from sfuda_bench.images.prepare.options import PrepareRequest, preparable
from sfuda_bench.images.prepare.prepare import Prepared, prepare
from sfuda_bench.images.prepare.raw_files import open_raw
from sfuda_bench.images.prepare.roi_archive import roi_layout
from sfuda_bench.images.verify import verify
from tests.images import raw_trees as trees

LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "drishti_gs": trees.drishti,
    "rim_one_r3": trees.rim_one_r3,
    "refuge_train": lambda root: trees.refuge(root, "train"),
    "refuge_val": lambda root: trees.refuge(root, "validation"),
    "refuge_test": lambda root: trees.refuge(root, "test"),
    "rim_one_dl": trees.rim_one_dl,
    "origa": trees.origa,
    "riga": trees.riga_drawn,
    "g1020": trees.g1020,
    "papila": trees.papila,
}


def made(dataset: str, raw: Path, out: Path, **flags: Any) -> Prepared:
    cropped = dataset == "rim_one_dl"
    flags = {**({} if cropped else {"roi_mode": "native64", "centre": "gt"}), **flags}
    return prepare(PrepareRequest(dataset, raw, out, **flags))


def names(prepared: Prepared, side: str) -> list[str]:
    return [eye["name"] for eye in prepared.manifest["eyes"] if eye["split"] == side]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_becomes_a_domain_that_verification_passes(name: str, tmp_path: Path) -> None:
    prepared = made(name, LAYOUTS[name](tmp_path / "raw"), tmp_path / "out")
    assert not [f for f in verify(tmp_path / "out") if f.severity == "error"]
    domain = find_domains(tmp_path / "out")[name]
    for split in (domain.train, domain.test):
        assert split.samples
        for sample in split.samples:
            assert sample.mask is not None
            cup, disc = read_mask(sample.mask)
            assert read_image(sample.image).shape == (*disc.shape, 3)
            assert (disc | ~cup).all()
            assert cup.any() or (name, sample.stem) == ("g1020", "image_21")
    assert domain.roi_center == prepared.manifest["roi_center"]
    assert prepared.manifest["owner"]["homepage"].startswith("http")


def test_every_layout_has_a_test_here() -> None:
    assert set(preparable()) == set(LAYOUTS)


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_download_is_refused_with_the_tree_that_was_expected(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match="no photograph") as error:
        made(name, tmp_path / "raw", tmp_path / "out")
    layout = DATASETS.get(name).raw
    assert layout is not None
    assert layout.tree in str(error.value.hint)


def test_drishti_has_the_official_split_and_says_what_is_missing(tmp_path: Path) -> None:
    prepared = made("drishti_gs", trees.drishti(tmp_path / "raw"), tmp_path / "out")
    assert names(prepared, "train") == ["drishtiGS_002", "drishtiGS_004", "drishtiGS_008"]
    assert names(prepared, "test") == ["drishtiGS_001", "drishtiGS_003"]
    split = prepared.manifest["split"]
    assert split["origin"].startswith("official")
    assert not split["published"]  # 5 of 101 eyes are not the published split
    assert {side: len(missing) for side, missing in split["missing"].items()} == {
        "train": 47,
        "test": 49,
    }
    assert any("47 of the 50 train" in note for note in prepared.manifest["notes"])


def test_a_side_that_would_be_empty_is_drawn_and_marked(tmp_path: Path) -> None:
    prepared = made("drishti_gs", trees.drishti(tmp_path / "raw", test=0), tmp_path / "out")
    split = prepared.manifest["split"]
    assert split["counts"] == {"train": 2, "test": 1}
    assert split["origin"].startswith("drawn here")
    assert not split["published"]
    assert any("would leave test empty" in note for note in prepared.manifest["notes"])


@pytest.mark.parametrize(
    ("agreement", "steps"), [("any", 3), ("half", 2), ("most", 1), ("all", 0), (None, 0)]
)
def test_agreement_picks_the_share_of_graders_in_a_soft_map(
    agreement: str | None, steps: int, tmp_path: Path
) -> None:
    """The k-th of the four drawn graders' circles is a pixel wider; the default is all four."""
    prepared = made(
        "drishti_gs", trees.drishti(tmp_path / "raw"), tmp_path / "out", agreement=agreement
    )
    _, disc = read_mask(prepared.folder / "train" / "ROIs" / "mask" / "drishtiGS_008.png")
    wanted = trees.circle(trees.centre_of(8), trees.DISC_RADIUS + steps)
    assert disc.sum() == wanted.sum()


def test_a_soft_map_of_another_size_is_resized_and_counted(tmp_path: Path) -> None:
    prepared = made("drishti_gs", trees.drishti(tmp_path / "raw"), tmp_path / "out")
    assert prepared.manifest["summary"]["masks_resized"] == 1
    (note,) = [note for note in prepared.manifest["notes"] if "resized" in note]
    assert note.endswith("in 1 eyes: drishtiGS_004")
    resized = [eye["name"] for eye in prepared.manifest["eyes"] if eye["mask_resized"]]
    assert resized == ["drishtiGS_004"]


def test_a_soft_map_of_another_shape_is_refused(tmp_path: Path) -> None:
    raw = trees.drishti(tmp_path / "raw")
    for path in raw.rglob("drishtiGS_002_ODsegSoftmap.png"):
        Image.open(path).crop((0, 0, 100, 140)).save(path)
    with pytest.raises(DataError, match=r"100 x 140 px, but its photograph is 180 x 150"):
        made("drishti_gs", raw, tmp_path / "out")


def test_graders_ratios_agree_with_masks_they_belong_to(tmp_path: Path) -> None:
    prepared = made("drishti_gs", trees.drishti(tmp_path / "raw"), tmp_path / "out")
    assert prepared.agreement is not None
    assert len(prepared.agreement.eyes) == 5
    assert prepared.agreement.mean_absolute < 0.02
    assert prepared.agreement.holds


def test_a_split_without_labels_is_prepared_and_said(tmp_path: Path) -> None:
    raw = trees.drishti(tmp_path / "raw", train=1, test=1)
    for path in raw.glob("**/Test_GT/**/*segSoftmap.png"):
        path.unlink()
    prepared = made("drishti_gs", raw, tmp_path / "out", centre="detector")
    assert "no masks for test" in prepared.manifest["notes"]
    assert find_domains(tmp_path / "out")["drishti_gs"].test.samples[0].mask is None


def test_a_missing_mask_among_others_is_named_or_left_out_on_request(tmp_path: Path) -> None:
    raw = trees.drishti(tmp_path / "raw")
    for path in raw.rglob("drishtiGS_004_cupsegSoftmap.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"drishtiGS_004 \(drishtiGS_004_cupsegSoftmap.png\)"):
        made("drishti_gs", raw, tmp_path / "out")
    prepared = made("drishti_gs", raw, tmp_path / "out", skip_incomplete=True)
    assert names(prepared, "train") == ["drishtiGS_002", "drishtiGS_008"]


def test_rim_one_r3_takes_the_left_half_and_the_published_lists(tmp_path: Path) -> None:
    prepared = made("rim_one_r3", trees.rim_one_r3(tmp_path / "raw"), tmp_path / "out")
    assert names(prepared, "test") == ["G-22-L", "N-1-L"]
    assert {tuple(eye["photograph_px"]) for eye in prepared.manifest["eyes"]} == {
        (130, trees.HEIGHT)
    }
    assert prepared.manifest["split"]["origin"].startswith("published list")


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("Expert1_masks", "-%s-exp1"), ("Expert1_masks", "-1-%s-exp1")],
)
def test_rim_one_r3_experts_are_found_under_both_spellings(
    folder: str, suffix: str, tmp_path: Path
) -> None:
    raw = trees.rim_one_r3(tmp_path / "raw", expert=folder, suffix=suffix)
    prepared = made("rim_one_r3", raw, tmp_path / "out", expert="exp1")
    assert prepared.manifest["options"]["expert"] == "exp1"
    with pytest.raises(UsageError, match="expected avg or exp1 or exp2"):
        made("rim_one_r3", raw, tmp_path / "other", expert="exp3")


def test_refuge_is_split_here_in_equal_shares_of_both_diagnoses(tmp_path: Path) -> None:
    prepared = made("refuge_train", trees.refuge(tmp_path / "raw", "train"), tmp_path / "out")
    assert sorted(name[0] for name in names(prepared, "test")) == ["g", "n"]
    assert not prepared.manifest["split"]["published"]


def test_rim_one_dl_keeps_the_owners_crop_whole(tmp_path: Path) -> None:
    prepared = made("rim_one_dl", trees.rim_one_dl(tmp_path / "raw"), tmp_path / "out")
    manifest = prepared.manifest
    assert (manifest["roi_center"], manifest["roi_scale"], manifest["size_px"]) == (
        "owner",
        "owner",
        512,
    )
    assert manifest["split"]["counts"] == {"train": 3, "test": 2}
    random = made(
        "rim_one_dl", tmp_path / "raw", tmp_path / "out", split="random", name="rim_one_dl_random"
    )
    assert names(random, "test") == [
        eye["name"] for eye in manifest["eyes"] if eye["name"].endswith(("000", "001"))
    ]


def test_origa_takes_sets_a_and_b_and_no_crop(tmp_path: Path) -> None:
    prepared = made("origa", trees.origa(tmp_path / "raw"), tmp_path / "out")
    assert names(prepared, "train") == ["002", "004"]
    assert names(prepared, "test") == ["001", "003", "005"]
    assert prepared.manifest["split"]["published"]
    assert prepared.manifest["eyes"][0]["graders_vcdr"] == [0.5]


@pytest.mark.parametrize("touching", [False, True])
def test_riga_outlines_are_filled_even_where_they_touch(touching: bool, tmp_path: Path) -> None:
    raw = trees.riga_drawn(tmp_path / "raw", touching=touching)
    prepared = made("riga", raw, tmp_path / "out")
    assert len(prepared.manifest["eyes"]) == 6
    for eye in prepared.manifest["eyes"]:
        path = prepared.folder / eye["split"] / "ROIs" / "mask" / f"{eye['name']}.png"
        cup, disc = read_mask(path)
        assert np.sqrt(cup.sum() / np.pi) == pytest.approx(trees.CUP_RADIUS, abs=1.5)
        assert np.sqrt(disc.sum() / np.pi) == pytest.approx(trees.DISC_RADIUS, abs=1.5)


def test_one_expert_of_riga_can_be_chosen(tmp_path: Path) -> None:
    raw = trees.riga_drawn(tmp_path / "raw")
    every, one = (
        made("riga", raw, tmp_path / "out", expert=expert, name=f"riga_{expert}")
        for expert in ("all", "6")
    )
    assert len(every.manifest["eyes"][0]["raw"]) == 7
    assert len(one.manifest["eyes"][0]["raw"]) == 2
    assert one.manifest["eyes"][0]["name"] == every.manifest["eyes"][0]["name"]


def test_a_riga_subset_with_filled_masks_has_the_cup_at_255(tmp_path: Path) -> None:
    prepared = made("riga", trees.plain(tmp_path / "raw"), tmp_path / "out")
    assert prepared.manifest["eyes"][0]["encoding"] == "255=cup,128=rim,0=background"


def test_papila_keeps_the_two_eyes_of_a_patient_on_one_side(tmp_path: Path) -> None:
    prepared = made("papila", trees.papila(tmp_path / "raw"), tmp_path / "out")
    assert prepared.manifest["split"]["counts"] == {"train": 8, "test": 2}
    (patient,) = {name[:-2] for name in names(prepared, "test")}
    assert names(prepared, "test") == [f"{patient}OD", f"{patient}OS"]


@pytest.mark.parametrize(
    ("flags", "grown"),
    [
        ({}, 0),
        ({"expert": "exp2"}, 3),
        ({"expert": "all", "agreement": "all"}, 0),
        ({"expert": "all", "agreement": "any"}, 3),
    ],
)
def test_outlines_of_points_are_filled_and_experts_chosen(
    flags: dict[str, str], grown: int, tmp_path: Path
) -> None:
    prepared = made("papila", trees.papila(tmp_path / "raw"), tmp_path / "out", **flags)
    for eye in prepared.manifest["eyes"]:
        path = prepared.folder / eye["split"] / "ROIs" / "mask" / f"{eye['name']}.png"
        cup, disc = read_mask(path)
        assert np.sqrt(cup.sum() / np.pi) == pytest.approx(trees.CUP_RADIUS + grown, abs=0.6)
        assert np.sqrt(disc.sum() / np.pi) == pytest.approx(trees.DISC_RADIUS + grown, abs=0.6)
        assert eye["centre_error_disc_diameters"] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no outline .0 lines"),
        ("1 2\n3 4\n", "no outline .2 lines"),
        ("1 2\n3 4\n5\n", "no outline"),
        ("1 2\nx y\n5 6\n", "no outline"),
        ("1 2\n3 400\n5 6\n", "leaves its photograph of 180 x 150 px"),
        ("1 2\n3 nan\n5 6\n", "leaves its photograph"),
    ],
)
def test_points_that_are_no_outline_are_named(text: str, says: str, tmp_path: Path) -> None:
    raw = trees.papila(tmp_path / "raw")
    for path in raw.rglob("RET002OD_disc_exp1.txt"):
        path.write_text(text)
    with pytest.raises(DataError, match=rf"RET002OD_disc_exp1.txt: .*{says}"):
        made("papila", raw, tmp_path / "out")


# -- the archive of crops that papers share ----------------------------------------------------


def from_archive(dataset: str, raw: Path, out: Path, **flags: Any) -> Prepared:
    return prepare(PrepareRequest(dataset, raw, out, layout="rois", **flags))


def test_one_domain_of_the_shared_archive_is_taken_pixel_by_pixel(tmp_path: Path) -> None:
    raw = trees.domain_archive(tmp_path / "raw")
    prepared = from_archive("drishti_gs", raw, tmp_path / "out")
    assert prepared.folder.name == "drishti_gs"
    assert names(prepared, "train") == ["gdrishtiGS_002", "ndrishtiGS_008"]
    assert names(prepared, "test") == ["gdrishtiGS_001"]
    manifest = prepared.manifest
    assert (manifest["roi_center"], manifest["size_px"]) == ("owner", trees.ARCHIVE_PX)
    assert not manifest["split"]["published"]  # 3 of 101 eyes
    image, mask = trees.archived(1)
    rois = prepared.folder / "train" / "ROIs"
    assert np.array_equal(read_image(rois / "image" / "ndrishtiGS_008.png"), image)
    assert np.array_equal(read_mask(rois / "mask" / "ndrishtiGS_008.png"), mask)
    assert not [f for f in verify(tmp_path / "out") if f.severity == "error"]


@pytest.mark.parametrize("folder", ["Domain1", "Drishti-GS", "drishti_gs", "DOMAIN1"])
def test_the_archive_is_read_packed_under_any_name_and_without_rois_folders(
    folder: str, tmp_path: Path
) -> None:
    tree = trees.domain_archive(tmp_path / "tree", side=96) / "Fundus"
    (tree / "Domain1").rename(tree / folder)
    for split in ("train", "test"):
        if folder == "Drishti-GS":  # the archive's oldest form
            for kind in ("image", "mask"):
                (tree / folder / split / "ROIs" / kind).rename(tree / folder / split / kind)
    archive = tmp_path / "Fundus.zip"
    archive.write_bytes(trees.zipped(tree))
    assert len(from_archive("Domain1", archive, tmp_path / "out", size_px=96).manifest["eyes"]) == 3


def test_a_full_archive_is_the_published_split(tmp_path: Path) -> None:
    layout = roi_layout(replace(DATASETS.get("drishti_gs"), published_counts=(2, 1)))
    tree = open_raw(trees.domain_archive(tmp_path / "raw", side=96), tmp_path / "scratch")
    assert layout.read(tree, RawChoice("all", "default")).published


def test_a_mask_that_the_archive_lacks_is_named(tmp_path: Path) -> None:
    raw = trees.domain_archive(tmp_path / "raw", side=96)
    (raw / "Fundus/Domain2/train/ROIs/mask/N-2-R.png").unlink()
    with pytest.raises(DataError, match=r"N-2-R \(train/ROIs/mask/N-2-R.png\)"):
        from_archive("rim_one_r3", raw, tmp_path / "out")


def test_crops_of_another_size_are_not_resampled_in_silence(tmp_path: Path) -> None:
    raw = trees.domain_archive(tmp_path / "raw", side=128)
    with pytest.raises(DataError, match="128 x 128 px; the crops of this archive have 800") as no:
        from_archive("drishti_gs", raw, tmp_path / "out")
    assert "--size" in str(no.value.hint)
    assert from_archive("drishti_gs", raw, tmp_path / "out", size_px=128).manifest["size_px"] == 128


def test_the_plain_layout_does_not_melt_hospitals_together(tmp_path: Path) -> None:
    raw = trees.domain_archive(tmp_path / "raw", side=128)
    with pytest.raises(DataError, match="holds domain1, domain2") as error:
        prepare(PrepareRequest("mine", raw, tmp_path / "out", layout="plain", cropped=True))
    assert "--layout rois" in str(error.value.hint)


# -- names and small files of the owners -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "turn", "test"),
    [
        ("drishti_gs", str.upper, ["drishtiGS_001", "drishtiGS_003"]),
        ("rim_one_r3", str.lower, ["G-22-L", "N-1-L"]),
    ],
)
def test_the_published_split_does_not_depend_on_the_case_of_names(
    name: str, turn: Callable[[str], str], test: list[str], tmp_path: Path
) -> None:
    raw = LAYOUTS[name](tmp_path / "raw")
    for path in sorted(raw.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(turn(path.name)))
    assert names(made(name, raw, tmp_path / "out"), "test") == test


@pytest.mark.parametrize("text", ["0.5, n/a", "nan", "62", "-0.1"])
def test_ratios_that_are_none_are_named(text: str, tmp_path: Path) -> None:
    raw = trees.drishti(tmp_path / "raw")
    for path in raw.rglob("drishtiGS_002_cdrValues.txt"):
        path.write_text(text)
    with pytest.raises(DataError, match=r"drishtiGS_002_cdrValues.txt: expected cup-to-disc"):
        made("drishti_gs", raw, tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [(",", ";", "no column Filename, ExpCDR"), ("0.5", "NA", "cup-to-disc ratios, found 'NA'")],
)
def test_a_damaged_list_of_origa_is_named(old: str, new: str, says: str, tmp_path: Path) -> None:
    raw = trees.origa(tmp_path / "raw")
    table = raw / "OrigaList.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"OrigaList.csv: .*{says}"):
        made("origa", raw, tmp_path / "out")


def test_an_eye_that_the_published_split_lacks_leaves_the_others_where_they_are(
    tmp_path: Path,
) -> None:
    raw = trees.drishti(tmp_path / "raw")
    for path in sorted(raw.rglob("*drishtiGS_008*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("008", "999")))
    prepared = made("drishti_gs", raw, tmp_path / "out")
    assert names(prepared, "test") == ["drishtiGS_001", "drishtiGS_003"]
    assert "drawn here" in prepared.manifest["split"]["origin"]
    assert not prepared.manifest["split"]["published"]


def test_all_drawings_that_enclose_nothing_are_named_at_once_and_can_be_left_out(
    tmp_path: Path,
) -> None:
    raw = trees.riga_drawn(tmp_path / "raw")
    spoilt = [raw / "MESSIDOR" / f"image{number}-3.tif" for number in (1, 2)]
    for path, number in zip(spoilt, (1, 2), strict=True):
        path.write_bytes((raw / "MESSIDOR" / f"image{number}prime.tif").read_bytes())
    says = r"image1-3.tif: the drawing encloses 0 areas.*1 other eyes fail: MESSIDOR_image2"
    with pytest.raises(DataError, match=says) as error:
        made("riga", raw, tmp_path / "out")
    assert "move this file away" in str(error.value.hint)
    for path in spoilt:
        path.unlink()
    assert len(made("riga", raw, tmp_path / "out").manifest["eyes"]) == 6


def test_graders_who_agree_on_no_disc_are_named(tmp_path: Path) -> None:
    raw = trees.riga_drawn(tmp_path / "raw")
    image, _ = trees.eye(1)
    ink = [trees.outline(trees.circle((110, 140), radius)) for radius in (18, 9)]
    image[ink[0] | ink[1]] = (10, 10, 250)
    trees.save(raw / "BinRushed" / "BinRushed2" / "Image1-1.jpg", image)
    with pytest.raises(DataError, match="the 6 graders agree on no disc"):
        made("riga", raw, tmp_path / "out", agreement="all")


def test_shipped_split_lists_are_whole_and_disjoint() -> None:
    """Counts of the published splits."""
    for name in dataset_names():
        spec = DATASETS.get(name)
        if name in ("drishti_gs", "rim_one_r3"):
            assert spec.raw is not None
            found = spec.raw.read(_NoFiles(), _Choice())  # type: ignore[arg-type]  # a stand-in
            assert (len(found.expected["train"]), len(found.expected["test"])) == (
                spec.published_counts
            )
            assert not {*found.expected["train"]} & {*found.expected["test"]}


class _NoFiles:
    def find(self, pattern: str) -> list[Any]:
        return []

    def index(self, pattern: str) -> dict[str, Any]:
        return {}


class _Choice:
    expert, split = "avg", "default"

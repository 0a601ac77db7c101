"""Options, manifest, atomicity and idempotence of ``data prepare``, on the plain layout."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sfuda_bench.images.prepare.prepare as module
from sfuda_bench.datasets import RawEye, find_domains
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.decode import read_image, read_mask
from sfuda_bench.images.prepare.encodings import parse_encoding
from sfuda_bench.images.prepare.manifest import damaged_files, read_manifest
from sfuda_bench.images.prepare.options import PrepareRequest
from sfuda_bench.images.prepare.prepare import Prepared, prepare
from sfuda_bench.images.prepare.splits import draw_split
from sfuda_bench.images.prepare.vcdr_check import check_domain
from sfuda_bench.images.prepare.window import Window, make_window
from sfuda_bench.images.verify import verify
from tests.images import raw_trees as trees

BRIGHT_CUP = "255=cup,128=rim,0=background"


def made(raw: Path, out: Path, encoding: str | None = BRIGHT_CUP, **flags: Any) -> Prepared:
    flags = {"roi_mode": "native64", "centre": "gt", "layout": "plain", **flags}
    if encoding is not None:
        flags["encoding"] = parse_encoding(encoding)
    return prepare(PrepareRequest("my_clinic", raw, out, **flags))


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- what is written -------------------------------------------------------------------------


def test_the_window_is_native_pixels_around_the_centre(tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out")
    for eye in prepared.manifest["eyes"]:
        image, mask = trees.eye(int(eye["name"][-1]))
        left, top, right, bottom = eye["crop_box_px"]
        rois = prepared.folder / eye["split"] / "ROIs"
        written = read_image(rois / "image" / f"{eye['name']}.png")
        assert np.array_equal(written, image[top:bottom, left:right])
        assert np.array_equal(
            read_mask(rois / "mask" / f"{eye['name']}.png"), mask[:, top:bottom, left:right]
        )
        rows, columns = np.nonzero(mask[1])
        assert eye["centre_px"]["y"] == pytest.approx(rows.mean(), abs=0.01)
        assert eye["centre_px"]["x"] == pytest.approx(columns.mean(), abs=0.01)
        assert eye["centre_error_disc_diameters"] == 0


def test_a_window_beyond_the_photograph_is_black_and_background(tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out", roi_mode="native800")
    rois = prepared.folder / "train" / "ROIs"
    name = next(rois.glob("image/*.png")).name
    image, (cup, disc) = read_image(rois / "image" / name), read_mask(rois / "mask" / name)
    assert image.shape == (800, 800, 3)
    assert not image[0].any()
    assert not (cup[0].any() or disc[0].any())


def test_the_512_crop_is_the_centre_of_the_800_window() -> None:
    large, small = (
        make_window(mode, (900, 1000), (430.4, 512.5)) for mode in ("native800", "crop512")
    )
    assert (small.top_px - large.top_px, small.left_px - large.left_px) == (144, 144)
    assert large == Window(30, 113, 800)


def test_size_resamples_the_window(tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out", size_px=32)
    image = next((prepared.folder / "train" / "ROIs" / "image").glob("*.png"))
    assert read_image(image).shape == (32, 32, 3)
    assert prepared.manifest["window_px"] == 64
    assert prepared.manifest["size_px"] == 32


def test_masks_are_written_as_three_equal_channels_of_three_values(tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out")
    mask = np.asarray(Image.open(next((prepared.folder / "test" / "ROIs" / "mask").glob("*.png"))))
    assert mask.ndim == 3
    assert set(np.unique(mask)) == {0, 128, 255}


def test_positions_from_labels_are_marked(tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out")
    assert prepared.manifest["roi_center"] == "gt"
    assert find_domains(tmp_path / "out")["my_clinic"].roi_center == "gt"
    assert "the crops' position comes from labels" in prepared.manifest["notes"]


def test_centres_come_from_the_users_table(tmp_path: Path) -> None:
    table = tmp_path / "centres.csv"
    rows = [f"eye_{n},{trees.centre_of(n)[1] + 3},{trees.centre_of(n)[0]}" for n in range(5)]
    table.write_text("name,x_px,y_px\n" + "\n".join(rows) + "\n")
    raw = trees.plain(tmp_path / "raw")
    prepared = made(raw, tmp_path / "out", centre="csv", centres=table)
    assert prepared.manifest["roi_center"] == "csv"
    assert all(
        eye["centre_error_disc_diameters"] == pytest.approx(3 / 36, abs=0.002)
        for eye in prepared.manifest["eyes"]
    )
    table.write_text("name,x_px,y_px\neye_0,70,60\n")
    with pytest.raises(DataError, match="no row for eye_1"):
        made(raw, tmp_path / "other", centre="csv", centres=table)
    with pytest.raises(UsageError, match="go together"):
        made(raw, tmp_path / "other", centre="csv")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp"])
def test_photographs_of_every_format_are_read(suffix: str, tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw", suffix=suffix), tmp_path / "out")
    assert len(prepared.manifest["eyes"]) == 5
    assert next(iter(prepared.manifest["eyes"][0]["raw"])).endswith(suffix)


def test_the_manifest_says_where_everything_comes_from(tmp_path: Path) -> None:
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out")
    manifest = read_manifest(prepared.folder)
    assert manifest is not None
    eye = manifest["eyes"][0]
    assert set(eye["raw"]) == {f"image/{eye['name']}.png", f"mask/{eye['name']}.png"}
    assert all(len(digest) == 64 for digest in (*eye["raw"].values(), eye["image_sha256"]))
    assert manifest["options"]["encoding"] == BRIGHT_CUP
    assert str(tmp_path) not in json.dumps(manifest)
    assert not damaged_files(prepared.folder, manifest)


# -- splits ----------------------------------------------------------------------------------


def test_train_and_test_folders_give_the_split(tmp_path: Path) -> None:
    for side, numbers in (("Training", (0, 1)), ("Test", (2,))):
        for number in numbers:
            image, mask = trees.eye(number)
            trees.save(tmp_path / "raw" / side / "Images" / f"{number}.png", image)
            path = tmp_path / "raw" / side / "Masks" / f"{number}_mask.png"
            trees.save(path, trees.levels(mask, 255, 128, 0))
    prepared = made(tmp_path / "raw", tmp_path / "out")
    assert prepared.manifest["split"]["counts"] == {"train": 2, "test": 1}
    assert "train and test folders" in prepared.manifest["split"]["origin"]


def test_a_split_file_decides(tmp_path: Path) -> None:
    raw, table = trees.plain(tmp_path / "raw"), tmp_path / "split.csv"
    table.write_text(
        "name,split\n" + "".join(f"eye_{n},{'test' if n else 'train'}\n" for n in range(5))
    )
    prepared = made(raw, tmp_path / "out", split_file=table)
    assert prepared.manifest["split"]["counts"] == {"train": 1, "test": 4}
    table.write_text("name,split\neye_0,train\n")
    with pytest.raises(DataError, match="no train or test for eye_1"):
        made(raw, tmp_path / "other", split_file=table)


def test_a_drawn_split_depends_on_names_and_seed_alone() -> None:
    eyes = [RawEye(f"e{n}", "", stratum="ab"[n % 4 == 0]) for n in range(40)]
    sides = dict(zip((eye.name for eye in eyes), draw_split(eyes, 0), strict=True))
    turned = eyes[::-1]
    assert sides == dict(zip((eye.name for eye in turned), draw_split(turned, 0), strict=True))
    assert list(sides.values()).count("test") == 8
    per_stratum = [e.stratum for e in eyes if sides[e.name] == "test"]
    assert (per_stratum.count("a"), per_stratum.count("b")) == (6, 2)
    assert draw_split(eyes, 1) != draw_split(eyes, 0)
    for count in (2, 3):
        assert {*draw_split(eyes[:count], 0)} == {"train", "test"}


def test_one_eye_is_no_domain(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    for number in range(1, 5):
        (raw / "image" / f"eye_{number}.png").unlink()
    with pytest.raises(DataError, match="one for train and one for test"):
        made(raw, tmp_path / "out")


# -- again, and interrupted ------------------------------------------------------------------


def test_a_second_run_changes_nothing_and_another_place_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    raw = trees.plain(tmp_path / "raw")
    first = made(raw, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    second = made(raw, tmp_path / "out")
    assert (first.changed, second.changed) == (True, False)
    assert snapshot(tmp_path / "out") == before
    made(raw, tmp_path / "elsewhere")
    contents = {name: content for name, (_, content) in before.items()}
    assert {n: c for n, (_, c) in snapshot(tmp_path / "elsewhere").items()} == contents


def test_other_options_need_replace(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    made(raw, tmp_path / "out")
    with pytest.raises(UsageError, match="prepared already, and differs: other options"):
        made(raw, tmp_path / "out", size_px=32)
    assert made(raw, tmp_path / "out", size_px=32, replace=True).changed
    assert not made(raw, tmp_path / "out", size_px=32).changed


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    prepared = made(raw, tmp_path / "out")
    image = next((prepared.folder / "test" / "ROIs" / "image").glob("*.png"))
    image.write_bytes(b"")
    with pytest.raises(UsageError, match=f"files changed since: .*{image.name}"):
        made(raw, tmp_path / "out")


def test_a_folder_of_the_users_own_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out" / "my_clinic" / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match="was not made by"):
        made(trees.plain(tmp_path / "raw"), tmp_path / "out", replace=True)


def test_an_interrupted_run_leaves_no_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = trees.plain(tmp_path / "raw")

    def killed(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    request = PrepareRequest(
        "my_clinic", raw, tmp_path / "out", layout="plain", roi_mode="native64", centre="gt",
        encoding=parse_encoding(BRIGHT_CUP),
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        prepare(request, killed)
    assert not list((tmp_path / "out").iterdir())


def test_leftovers_of_a_killed_run_are_removed_and_a_half_replacement_is_undone(
    tmp_path: Path,
) -> None:
    raw = trees.plain(tmp_path / "raw")
    made(raw, tmp_path / "out")
    work = tmp_path / "out" / ".my_clinic.preparing"
    (work / "domain").mkdir(parents=True)
    (tmp_path / "out" / "my_clinic").rename(work / "old")
    assert not made(raw, tmp_path / "out").changed
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my_clinic"]


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with (
        module._work_folder(tmp_path / "out", "my_clinic"),
        pytest.raises(DataError, match="another process"),
    ):
        made(raw, tmp_path / "out")


def test_a_replacement_interrupted_between_its_renames_keeps_the_old_domain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = trees.plain(tmp_path / "raw")
    made(raw, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    rename = Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == "domain":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        with pytest.raises(KeyboardInterrupt):
            made(raw, tmp_path / "out", size_px=32, replace=True)
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize("change", [{"schema": 0}, {"eyes": None}, {"eyes": [{}]}])
def test_an_old_or_damaged_manifest_can_be_replaced(change: dict[str, Any], tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    path = made(raw, tmp_path / "out").folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((DataError, UsageError)) as error:
        made(raw, tmp_path / "out")
    assert "--replace" in str(error.value.hint)
    assert made(raw, tmp_path / "out", replace=True).changed
    assert read_manifest(path.parent) is not None


def test_a_manifest_that_cannot_be_read_is_never_overwritten(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    path = made(raw, tmp_path / "out").folder / "manifest.json"
    path.write_text("{")
    with pytest.raises(DataError, match="damaged") as error:
        made(raw, tmp_path / "out", replace=True)
    assert "move" in str(error.value.hint)


def test_files_of_a_file_manager_are_no_change_and_no_image(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    prepared = made(raw, tmp_path / "out")
    images = prepared.folder / "train" / "ROIs" / "image"
    count = len(find_domains(tmp_path / "out")["my_clinic"].train.samples)
    for name in (".DS_Store", f"._{next(images.iterdir()).name}"):
        (images / name).write_bytes(b"\0\5\x16\7")
    assert not made(raw, tmp_path / "out").changed
    assert not [finding for finding in verify(tmp_path / "out") if finding.severity == "error"]
    assert len(find_domains(tmp_path / "out")["my_clinic"].train.samples) == count


def test_out_inside_raw_is_refused(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw")
    with pytest.raises(UsageError, match="lies inside --raw"):
        made(raw, raw / "out")
    assert not (raw / "out").exists()


# -- names -----------------------------------------------------------------------------------


def renamed(raw: Path, image: str, mask: str) -> Path:
    (raw / "image" / "eye_0.png").rename(raw / "image" / image)
    (raw / "mask" / "eye_0.png").rename(raw / "mask" / mask)
    return raw


@pytest.mark.parametrize("side", ["OD", "OS", "od"])
def test_a_right_eye_keeps_its_mask(side: str, tmp_path: Path) -> None:
    """OD is the right eye here, and no suffix of a disc's mask."""
    name = f"p1_{side}.png"
    prepared = made(renamed(trees.plain(tmp_path / "raw"), name, name), tmp_path / "out")
    assert prepared.manifest["summary"]["labelled"] == 5


def test_names_are_the_same_however_their_accents_are_composed(tmp_path: Path) -> None:
    raw = renamed(trees.plain(tmp_path / "raw"), "e\u0301il.png", "\u00e9il.png")
    table = tmp_path / "split.csv"
    rows = [f"eye_{n}.png,train" for n in range(1, 5)]
    table.write_text("\n".join(["name,split", "\u00e9il,test", *rows]), "utf-8")
    prepared = made(raw, tmp_path / "out", split_file=table)
    assert prepared.manifest["summary"]["labelled"] == 5
    assert prepared.manifest["eyes"][-1]["name"] == "\u00e9il"


def test_a_name_that_is_no_utf8_is_refused_and_shown(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xe9.png")
    with pytest.raises(DataError, match=r"udce9\.png.*cannot be written"):
        made(renamed(trees.plain(tmp_path / "raw"), name, name), tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name;x_px;y_px\neye_0;1;2\n", "its first line is 'name;x_px;y_px'"),
        (b"name,x_px\neye_0,1\n", "its first line is 'name,x_px'"),
        (b"name,x_px,y_px\neye_0,1\n", "row 2 is too short"),
        (b"name,x_px,y_px\neye_0,1,2\neye_0.PNG,1,3\n", "two different rows for eye_0"),
        (b"name,x_px,y_px\neye_0,one,2\n", "eye_0: could not convert"),
        (b"name,x_px,y_px\n\xe9,1,2\n", "utf-8"),
        (b'name,x_px,y_px\n"' + b"a" * 200_000, "field larger"),
        (b"", "its first line is ''"),
    ],
)
def test_a_table_that_is_none_is_explained(content: bytes, says: str, tmp_path: Path) -> None:
    table = tmp_path / "centres.csv"
    table.write_bytes(content)
    with pytest.raises(DataError, match=f"--centres .*{says}"):
        made(trees.plain(tmp_path / "raw"), tmp_path / "out", centre="csv", centres=table)


def test_a_table_has_any_order_of_columns_a_byte_order_mark_and_names_of_files(
    tmp_path: Path,
) -> None:
    table = tmp_path / "centres.csv"
    rows = "".join(f"60,note,70,eye_{n}.JPG\n" for n in reversed(range(5)))
    table.write_text("y_px,remark,x_px,name\n" + rows, "utf-8-sig")
    prepared = made(trees.plain(tmp_path / "raw"), tmp_path / "out", centre="csv", centres=table)
    assert {tuple(eye["centre_px"].values()) for eye in prepared.manifest["eyes"]} == {(70.0, 60.0)}


def test_eyes_that_folders_do_not_name_are_drawn_and_the_others_stay(tmp_path: Path) -> None:
    for side, numbers in (("train", (0,)), ("validation", (1, 2)), ("test", (3,))):
        for number in numbers:
            image, mask = trees.eye(number)
            trees.save(tmp_path / "raw" / side / "image" / f"{number}.png", image)
            path = tmp_path / "raw" / side / "mask" / f"{number}.png"
            trees.save(path, trees.levels(mask, 255, 128, 0))
    prepared = made(tmp_path / "raw", tmp_path / "out")
    sides = {eye["name"]: eye["split"] for eye in prepared.manifest["eyes"]}
    assert (sides["0"], sides["3"]) == ("train", "test")
    assert {sides["1"], sides["2"]} == {"train", "test"}
    assert any("drawn here: 1, 2" in note for note in prepared.manifest["notes"])


# -- cups that leave the disc, graders -------------------------------------------------------


def leaving(raw: Path) -> Path:
    """Write two files per eye; the cup of one eye reaches two columns out of the disc."""
    for number in range(4):
        image, (cup, disc) = trees.eye(number)
        trees.save(raw / "images" / f"{number}.png", image)
        if number == 2:
            row, column = (int(value) for value in trees.centre_of(number))
            cup[row - 1 : row + 1, column : column + int(trees.DISC_RADIUS) + 3] = True
        trees.save(raw / "masks" / "cup" / f"{number}_cup.png", trees.binary(cup))
        trees.save(raw / "masks" / "disc" / f"{number}_disc.png", trees.binary(disc))
    return raw


def test_a_cup_that_leaves_the_disc_is_repaired_on_request_only_and_counted(
    tmp_path: Path,
) -> None:
    raw = leaving(tmp_path / "raw")
    with pytest.raises(DataError, match=r"leaves the disc in 1 of 4 eyes: 2 \(5 px\)") as error:
        made(raw, tmp_path / "out", encoding=None)
    assert "--repair" in str(error.value.hint)
    assert not (tmp_path / "out" / "my_clinic").exists()
    prepared = made(raw, tmp_path / "out", encoding=None, repair=True)
    assert prepared.manifest["summary"]["cup_outside_disc"] == {"eyes": 1, "px": 5}


def test_the_written_masks_are_compared_with_the_graders(tmp_path: Path) -> None:
    raw = trees.drishti(tmp_path / "raw")
    prepared = prepare(
        PrepareRequest("drishti_gs", raw, tmp_path / "out", roi_mode="native64", centre="gt")
    )
    agreement = check_domain(prepared.folder)
    assert agreement is not None
    assert agreement.holds
    assert agreement.mean_difference == pytest.approx(
        np.mean([eye.ours - np.mean(eye.graders) for eye in agreement.eyes])
    )
    path = prepared.folder / "test" / "ROIs" / "mask" / "drishtiGS_001.png"
    swapped = np.asarray(Image.open(path)).copy()
    swapped[swapped == 128] = 0
    Image.fromarray(swapped).save(path)
    wrong = check_domain(prepared.folder)
    assert wrong is not None
    assert wrong.suspects == ("drishtiGS_001",)
    shutil.rmtree(prepared.folder / "train")


def test_a_folder_without_manifest_is_no_prepared_domain(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a prepared domain"):
        check_domain(tmp_path)

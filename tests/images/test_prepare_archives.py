"""Downloads that come as archives, nested ones too, and archives that are not to be trusted."""

from __future__ import annotations

import errno
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare import archives
from sfuda_bench.images.prepare.archives import Budget, unpack
from sfuda_bench.images.prepare.options import PrepareRequest
from sfuda_bench.images.prepare.prepare import Prepared, prepare
from sfuda_bench.images.prepare.raw_files import open_raw
from tests.images import raw_trees as trees


def made(raw: Path, out: Path) -> Prepared:
    request = PrepareRequest("refuge_train", raw, out, roi_mode="native64", centre="gt")
    return prepare(request)


def zip_of(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_archives_in_archives_give_the_same_domain_as_folders(tmp_path: Path) -> None:
    tree = trees.refuge(tmp_path / "tree", "train")
    inner = {
        f"REFUGE2/{part}.zip": trees.zipped(tree / part)
        for part in ("Training400", "Annotation-Training400")
    }
    inner["__MACOSX/REFUGE2/._x.zip"] = b"junk"
    (tmp_path / "raw").mkdir()
    outer = zip_of(tmp_path / "raw" / "download.zip", inner)
    nested = made(tmp_path / "raw", tmp_path / "nested")
    plain = made(tree, tmp_path / "plain")
    alone = made(outer, tmp_path / "alone")
    for one in (nested, alone):
        assert [(eye["name"], eye["split"], eye["image_sha256"], eye["mask_sha256"])
                for eye in one.manifest["eyes"]] == [
            (eye["name"], eye["split"], eye["image_sha256"], eye["mask_sha256"])
            for eye in plain.manifest["eyes"]
        ]  # fmt: skip
    assert not list((tmp_path / "nested").glob(".*"))  # nothing unpacked is left


def test_an_archive_beside_its_unpacked_folder_is_not_opened_again(tmp_path: Path) -> None:
    tree = trees.refuge(tmp_path / "raw", "train")
    (tree / "Training400.zip").write_bytes(b"no archive at all")
    assert len(made(tree, tmp_path / "out").manifest["eyes"]) == 10


def test_tar_archives_are_read(tmp_path: Path) -> None:
    tree = trees.refuge(tmp_path / "tree", "train")
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "all.tar.gz", "w:gz") as archive:
        archive.add(tree, "REFUGE")
    assert len(made(tmp_path / "raw", tmp_path / "out").manifest["eyes"]) == 10


@pytest.mark.parametrize(
    "name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "c:evil.png"]
)
def test_a_path_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(DataError, match="outside the folder"):
        unpack(path, tmp_path / "inside" / "deep", Budget())
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_left_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        data = tarfile.TarInfo("real.png")
        data.size = 1
        archive.addfile(data, io.BytesIO(b"x"))
    unpack(tmp_path / "a.tar", tmp_path / "out", Budget())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["real.png"]


def test_a_bomb_is_refused_before_it_goes_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "_SMALL_BYTES", 2**16)
    path = zip_of(tmp_path / "bomb.zip", {"a.png": bytes(2**22)})
    with pytest.raises(DataError, match=r"a.png claims to unpack to 4194304 bytes from"):
        unpack(path, tmp_path / "out", Budget())
    many = zip_of(tmp_path / "many.zip", {f"{n}.png": b"x" for n in range(30)})
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack(many, tmp_path / "out", Budget(members=20))
    with pytest.raises(DataError, match="unpacks to more than"):
        unpack(many, tmp_path / "out", Budget(bytes=20))


def test_archives_too_deep_are_refused(tmp_path: Path) -> None:
    content = b""
    for depth in range(archives.MAX_DEPTH + 2):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a.txt" if depth == 0 else f"{depth}.zip", content)
        content = stream.getvalue()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "top.zip").write_bytes(content)
    with pytest.raises(DataError, match="more than 4 deep"):
        open_raw(tmp_path / "raw", tmp_path / "scratch")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken"])
def test_a_damaged_archive_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "images.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"images.zip: cannot be unpacked"):
        open_raw(tmp_path / "raw", tmp_path / "scratch")


def test_two_files_for_one_eye_are_refused_unless_they_are_the_same(tmp_path: Path) -> None:
    tree = trees.refuge(tmp_path / "raw", "train")
    copy = tree / "again" / "Training400" / "Glaucoma" / "g0001.jpg"
    trees.save(copy, trees.eye(0)[0])
    assert len(made(tree, tmp_path / "out").manifest["eyes"]) == 10
    trees.save(copy, trees.eye(5)[0])
    with pytest.raises(DataError, match="two files of different content for one eye"):
        made(tree, tmp_path / "other")


def test_a_missing_or_foreign_raw_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_raw(tmp_path / "none", tmp_path / "scratch")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no file"):
        open_raw(tmp_path / "empty", tmp_path / "scratch")
    (tmp_path / "images.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="neither a folder nor a zip or tar"):
        open_raw(tmp_path / "images.rar", tmp_path / "scratch")


def test_an_archive_may_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").mkdir()
    with tarfile.open(tmp_path / "raw" / "bomb.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = 2**20
        archive.addfile(member, io.BytesIO(bytes(2**20)))
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: _Usage())
    with pytest.raises(DataError, match="nine tenths of the free space"):
        open_raw(tmp_path / "raw", tmp_path / "scratch")


class _Usage:
    free = 2**20


def test_a_full_disk_is_no_damaged_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(zip_of(tmp_path / "a.zip", {"a.png": b"x"}), tmp_path / "out", Budget())


def test_a_damaged_archive_of_any_compression_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.png", bytes(range(256)) * 8)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a.zip: cannot be unpacked"):
        unpack(path, tmp_path / "out", Budget())


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_tar_archives_of_every_common_compression_are_read(kind: str, tmp_path: Path) -> None:
    tree = trees.refuge(tmp_path / "tree", "train")
    with tarfile.open(tmp_path / f"all.tar.{kind}", f"w:{kind}") as archive:  # type: ignore[call-overload]  # one of the two
        archive.add(tree, "REFUGE")
    found = open_raw(tmp_path / f"all.tar.{kind}", tmp_path / "scratch")
    assert len(found.files) == 20


def test_an_archive_that_cannot_be_unpacked_is_named_beside_other_files(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "readme.txt").write_text("terms")
    (tmp_path / "raw" / "REFUGE.rar").write_bytes(b"Rar!")
    with pytest.raises(DataError, match="no photograph") as error:
        made(tmp_path / "raw", tmp_path / "out")
    assert error.value.hint == "unpack REFUGE.rar by hand"


def test_linked_folders_are_followed_once_and_never_in_a_circle(tmp_path: Path) -> None:
    tree = trees.refuge(tmp_path / "tree", "train")
    raw = tmp_path / "raw"
    raw.mkdir()
    for part in ("Training400", "Annotation-Training400"):
        (raw / part).symlink_to(tree / part)
    (raw / "up").symlink_to(tmp_path)
    (tree / "Training400" / "again").symlink_to(tree / "Training400")
    found = open_raw(raw, tmp_path / "scratch")
    assert len(found.files) == 20
    assert len(made(raw, tmp_path / "out").manifest["eyes"]) == 10

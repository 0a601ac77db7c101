"""The files of a download as one tree, whether they lie in folders or in (nested) archives."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

from sfuda_bench.datasets import RawDomain, RawFile, Tissue
from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.archives import (
    MAX_DEPTH,
    UNREADABLE,
    Budget,
    archive_stem,
    is_archive,
    unpack,
)
from sfuda_bench.images.prepare.plain_folder import read_plain_folder

_MAX_TEXT = 16 * 2**20


@dataclass(frozen=True)
class RawTree:
    """The files below a raw folder by their path; implements the port's ``RawFiles``."""

    root: Path
    files: Mapping[str, Path]

    @property
    def packed(self) -> list[str]:
        """Archives of kinds that cannot be unpacked here."""
        return [path for path in self.files if path.lower().endswith(UNREADABLE)]

    def find(self, pattern: str) -> list[RawFile]:
        """See :meth:`sfuda_bench.datasets.RawFiles.find`."""
        wanted = re.compile(rf"(?:.*/)?{pattern}", re.IGNORECASE)
        matches = ((path, wanted.fullmatch(path)) for path in self.files)
        return [
            RawFile(path, {k: v or "" for k, v in match.groupdict().items()})
            for path, match in matches
            if match
        ]

    def index(self, pattern: str) -> dict[str, RawFile]:
        """See :meth:`sfuda_bench.datasets.RawFiles.index`."""
        found: dict[str, RawFile] = {}
        for file in self.find(pattern):
            key = file.groups["eye"].lower()
            first = found.setdefault(key, file)
            if first is not file and self.sha256(first.path) != self.sha256(file.path):
                raise DataError(
                    f"{self.root}: two files of different content for one eye: "
                    f"{first.path} and {file.path}",
                    hint="leave the one that is meant below --raw",
                )
        return found

    def text(self, path: str) -> str:
        """See :meth:`sfuda_bench.datasets.RawFiles.text`."""
        file = self.files[path]
        if file.stat().st_size > _MAX_TEXT:
            raise DataError(f"{self.root}: {path} is too large for a text file", hint="check it")
        return file.read_bytes().decode("utf-8-sig", errors="replace")

    def image_mask_folder(self, values: Mapping[int, Tissue] | None = None) -> RawDomain:
        """See :meth:`sfuda_bench.datasets.RawFiles.image_mask_folder`."""
        return read_plain_folder(self, values)

    def sha256(self, path: str) -> str:
        """Return the sha256 of a file's bytes."""
        with self.files[path].open("rb") as stream:
            return file_digest(stream, "sha256").hexdigest()


def open_raw(root: Path, scratch: Path) -> RawTree:
    """List a raw folder, unpacking the archives in it.

    An archive beside a folder of its own name is taken as unpacked there already. Links to folders
    elsewhere are followed, each place once.

    Args:
        root: The raw folder, or one archive.
        scratch: Empty folder for what is unpacked.

    Returns:
        Every file, sorted by path.

    Raises:
        DataError: ``root`` is missing or empty, or an archive cannot be unpacked.
    """
    if not root.exists():
        raise DataError(f"--raw {root}: no such folder or archive", hint="check the path")
    files: dict[str, Path] = {}
    budget = Budget.for_disk(scratch.parent)
    if root.is_dir():
        _walk(root, "", 0, scratch, files, budget)
    elif is_archive(root.name):
        target = scratch / "0"
        unpack(root, target, budget)
        _walk(target, archive_stem(root.name) + "/", 1, scratch, files, budget)
    else:
        raise DataError(
            f"--raw {root}: neither a folder nor a zip or tar archive",
            hint="unpack it and give the folder",
        )
    if not files:
        raise DataError(f"--raw {root}: holds no file", hint="check the path")
    return RawTree(root, dict(sorted(files.items())))


def _walk(
    folder: Path, prefix: str, depth: int, scratch: Path, files: dict[str, Path], budget: Budget
) -> None:
    top, followed = folder.resolve(), set[Path]()
    for current, folders, names in os.walk(folder, followlinks=True):
        here = Path(current)
        folders[:] = sorted(
            name
            for name in folders
            if name[0] != "." and name != "__MACOSX" and _is_new(here / name, top, followed)
        )
        below = here.relative_to(folder).as_posix()
        start = prefix if below == "." else f"{prefix}{below}/"
        for name in sorted(names):
            if name.startswith("."):
                continue
            if not is_archive(name):
                files[start + name] = here / name
            elif archive_stem(name) not in folders:
                _walk_archive(here / name, start, depth, scratch, files, budget)


def _is_new(folder: Path, top: Path, followed: set[Path]) -> bool:
    """Whether a folder is none of a link's that is seen anyway or would lead in a circle."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    if target in followed or target.is_relative_to(top) or top.is_relative_to(target):
        return False
    followed.add(target)
    return True


def _walk_archive(
    archive: Path, start: str, depth: int, scratch: Path, files: dict[str, Path], budget: Budget
) -> None:
    if depth >= MAX_DEPTH:
        raise DataError(
            f"{archive}: archives within archives more than {MAX_DEPTH} deep",
            hint="unpack them by hand",
        )
    target = scratch / str(sum(1 for _ in scratch.iterdir()) if scratch.is_dir() else 0)
    unpack(archive, target, budget)
    _walk(target, f"{start}{archive_stem(archive.name)}/", depth + 1, scratch, files, budget)

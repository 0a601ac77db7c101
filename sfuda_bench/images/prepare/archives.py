"""Unpack archives safely: no path leaves the folder, no archive fills the disk."""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from sfuda_bench.errors import DataError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
UNREADABLE = (".rar", ".7z")
MAX_DEPTH = 4
MAX_MEMBERS = 200_000
MAX_BYTES = 64 * 2**30
MAX_RATIO = 400
"""Uncompressed over compressed bytes above which an archive is refused once it is large."""
_SMALL_BYTES = 64 * 2**20
_CHUNK = 2**20
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


def is_archive(name: str) -> bool:
    """Whether a file is an archive that can be unpacked, by its suffix."""
    return name.lower().endswith(SUFFIXES)


def archive_stem(name: str) -> str:
    """Return the name of an archive without its suffix: the folder it is seen as."""
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


@dataclass
class Budget:
    """What may still be unpacked of one download, all its archives together."""

    members: int = MAX_MEMBERS
    bytes: int = MAX_BYTES

    @classmethod
    def for_disk(cls, folder: Path) -> Budget:
        """Return what may be unpacked on a folder's disk: no more than nine tenths of its room."""
        return cls(bytes=min(MAX_BYTES, shutil.disk_usage(folder).free * 9 // 10))

    def spend(self, archive: Path, *, members: int = 0, count: int = 0) -> None:
        """Take members and bytes off.

        Raises:
            DataError: Nothing is left.
        """
        self.members -= members
        self.bytes -= count
        if self.members < 0 or self.bytes < 0:
            raise DataError(
                f"{archive}: unpacks to more than {MAX_MEMBERS} files, {MAX_BYTES >> 30} GiB or "
                "nine tenths of the free space",
                hint="unpack it by hand if this is right, and give that folder to --raw",
            )


def unpack(archive: Path, folder: Path, budget: Budget) -> None:
    """Unpack the regular files of an archive below ``folder``.

    Links, devices and hidden helper files are left out.

    Args:
        archive: A zip or tar file.
        folder: Created; nothing is written outside it.
        budget: Shared by all archives of one download.

    Raises:
        DataError: The archive is damaged or encrypted, a member's path would leave the folder, or
            the budget or the ratio of sizes is exceeded.
        OSError: The disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, stream in _members(archive, budget):
            target = folder.joinpath(*_safe_parts(archive, name))
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as written:
                _copy(archive, stream, written, budget)
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            raise  # the archive may be whole
        raise DataError(
            f"{archive}: cannot be unpacked: {error}", hint="download it again"
        ) from error
    except (RuntimeError, NotImplementedError) as error:  # zipfile: encrypted, unknown method
        raise DataError(
            f"{archive}: cannot be unpacked: {error}",
            hint="unpack it by hand and give that folder to --raw",
        ) from error


def _members(archive: Path, budget: Budget) -> Iterator[tuple[str, IO[bytes]]]:
    if archive.name.lower().endswith(".zip"):
        yield from _zip_members(archive, budget)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None and not _helper(member.name):
                budget.spend(archive, members=1)
                yield member.name, stream


def _zip_members(archive: Path, budget: Budget) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            kind = member.external_attr >> 16
            if member.is_dir() or stat.S_ISLNK(kind) or _helper(member.filename):
                continue
            budget.spend(archive, members=1)
            if member.file_size > max(_SMALL_BYTES, MAX_RATIO * member.compress_size):
                raise DataError(
                    f"{archive}: {member.filename} claims to unpack to {member.file_size} bytes "
                    f"from {member.compress_size}",
                    hint="this is no archive of images; download it again",
                )
            with file.open(member) as stream:
                yield member.filename, stream


def _copy(archive: Path, source: IO[bytes], target: IO[bytes], budget: Budget) -> None:
    while chunk := source.read(_CHUNK):
        budget.spend(archive, count=len(chunk))
        target.write(chunk)


def _safe_parts(archive: Path, name: str) -> tuple[str, ...]:
    """Return the parts of a member's path, refusing one that could leave the folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    parts = path.parts
    if path.is_absolute() or ".." in parts or not parts or ":" in parts[0] or "\0" in name:
        raise DataError(
            f"{archive}: the member '{name}' would be written outside the folder",
            hint="this archive is not to be trusted; download it again from the owners",
        )
    return parts


def _helper(name: str) -> bool:
    """Whether a member is what an operating system leaves in archives."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"

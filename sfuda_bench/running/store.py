"""The result store: one directory per finished thing, committed once by a rename."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfuda_bench.errors import EnvironmentProblem, StoreSchemaError

SCHEMA = 1
_SHORT = 16  # hex digits of a key used in paths; the full key is inside the JSON


class Busy(Exception):  # noqa: N818  # not an error: another process computes the same key
    """Another process holds the lock of this key."""


@dataclass(frozen=True)
class Store:
    """Paths and atomic commits below ``--out``."""

    root: Path

    @classmethod
    def open(cls, root: Path, *, create: bool = True) -> Store:
        """Open or create a store.

        Raises:
            StoreSchemaError: ``store.json`` has another schema or cannot be read.
            EnvironmentProblem: The folder cannot be written.
        """
        marker = root / "store.json"
        if marker.is_file():
            found = read_json(marker).get("schema")
            if found != SCHEMA:
                raise StoreSchemaError(
                    f"{marker}: schema {found!r}, this version reads schema {SCHEMA}",
                    hint="choose another --out, or use the version that wrote it",
                )
        elif create:
            try:
                root.mkdir(parents=True, exist_ok=True)
                write_json(marker, {"schema": SCHEMA})
            except OSError as error:
                raise EnvironmentProblem(
                    f"--out {root} cannot be written: {error.strerror}",
                    hint="choose a folder on a disk with free space",
                ) from error
        return cls(root)

    def source(self, domain: str, key: str) -> Path:
        """Folder of a source model."""
        return self.root / "sources" / domain / key[:_SHORT]

    def cell(self, method: str, source: str, target: str, key: str) -> Path:
        """Folder of a cell."""
        return self.root / "cells" / method / f"{source}-{target}" / key[:_SHORT]

    def artefact(self, function: str, key: str) -> Path:
        """Folder of a frozen artefact."""
        return self.root / "artefacts" / function / key[:_SHORT]

    def attempt(self, key: str) -> Path:
        """Folder of what is running or failed."""
        return self.root / "attempts" / key[:_SHORT]

    @property
    def packed(self) -> Path:
        """Folder of the packed images and masks."""
        return self.root / "packed"

    @contextmanager
    def lock(self, key: str, *, wait: bool = False) -> Iterator[Path]:
        """Hold the lock of ``key`` and yield its attempt folder; a dead owner's lock is free.

        Raises:
            Busy: A living process holds it and ``wait`` is false.
        """
        folder = self.attempt(key)
        handle = _locked(folder / "lock", wait=wait)
        while handle is None:  # its owner removed the folder while we waited: take the new one
            handle = _locked(folder / "lock", wait=wait)
        try:
            yield folder
        finally:
            os.close(handle)

    def clear_attempt(self, key: str) -> None:
        """Remove the attempt folder of a finished key; call it while holding its lock."""
        shutil.rmtree(self.attempt(key), ignore_errors=True)

    def staging(self, key: str, name: str) -> Path:
        """Return an empty folder to build ``name`` in, next to the lock of ``key``."""
        folder = self.attempt(key) / name
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def keep_log(self, key: str, staged: Path) -> None:
        """Copy the attempt's log beside a result; it is outside every digest."""
        log = self.attempt(key) / "log.txt"
        if log.is_file():
            shutil.copyfile(log, staged / "log.txt")

    def commit(self, staged: Path, final: Path) -> None:
        """Move a finished folder to its place; an earlier one there is replaced."""
        for path in sorted(staged.rglob("*")):
            if path.is_file():
                _fsync(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            retired = staged.with_name(f"{staged.name}.old")
            shutil.rmtree(retired, ignore_errors=True)
            final.rename(retired)
            staged.rename(final)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            staged.rename(final)
        _fsync(final.parent)


def _locked(path: Path, *, wait: bool) -> int | None:
    """Open and lock a lock file; ``None`` when the file is no longer the one at ``path``."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.fstat(handle).st_ino == path.stat().st_ino:
            return handle
    except BlockingIOError as error:
        os.close(handle)
        raise Busy(path.parent.name) from error
    except FileNotFoundError:
        pass
    os.close(handle)
    return None


def stored_records(cell: Mapping[str, Any]) -> frozenset[str]:
    """Return what a stored cell recorded; cells of earlier versions knew ``epochs`` only."""
    return frozenset(cell.get("recorded", ["epochs"] if cell["tracked"] else []))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StoreSchemaError: The file is damaged.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise StoreSchemaError(
            f"{path}: damaged or unreadable ({error})",
            hint=f"delete the folder {path.parent} and run the same command again",
        ) from error
    if not isinstance(value, dict):
        raise StoreSchemaError(f"{path}: expected a JSON object", hint=f"delete {path.parent}")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write JSON (sorted keys, indented) so that a reader sees the old file or the new one."""
    write_bytes(path, (json.dumps(value, sort_keys=True, indent=1) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file through a temporary sibling and a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

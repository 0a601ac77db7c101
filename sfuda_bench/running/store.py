"""The result store: one directory per finished thing, committed once by a rename."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import platform
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sfuda_bench.errors import EnvironmentProblem, StoreSchemaError, spoilt
from sfuda_bench.running.keys import file_digest
from sfuda_bench.running.record_shapes import check_shape
from sfuda_bench.running.seals import MANIFEST, check_listed, sealed, unsealed

SCHEMA = 1
_SHORT = 16  # hex digits of a key used in paths; the full key is inside the JSON
_COMMITTING = "committing.json"  # in an attempt folder: a finished result is being moved from here
CIRCUMSTANCES = frozenset({"run.json", "cost.json", "log.txt", MANIFEST})
"""Files of a committed folder that tell how it came about and not what it is."""
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_TEMPORARY = ".tmp"
_SYNCED_AT_ONCE = 8
_held: set[int] = set()
"""File handles of the locks that this process holds."""


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
            check_schema(marker)
        elif create:
            try:
                root.mkdir(parents=True, exist_ok=True)
                write_json(marker, {"schema": SCHEMA})
            except OSError as error:
                raise EnvironmentProblem(
                    f"--out {root} cannot be written: {error.strerror}",
                    hint="choose a folder on a disk with free space",
                ) from error
        store = cls(root)
        if create:
            store.recover()
        return store

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
        _held.add(handle)
        try:
            self._finish_commit(folder)
            yield folder
        finally:
            _held.discard(handle)
            os.close(handle)

    def recover(self) -> None:
        """Finish the commits that a dead process left half-way, and forget their attempts."""
        for marker in sorted((self.root / "attempts").glob(f"*/{_COMMITTING}")):
            with suppress(Busy), self.lock(marker.parent.name):
                self.clear_attempt(marker.parent.name)

    def clear_attempt(self, key: str) -> None:
        """Remove the attempt folder of a finished key; call it while holding its lock."""
        shutil.rmtree(self.attempt(key), ignore_errors=True)

    def staging(self, key: str, name: str, *, keep: bool = False) -> Path:
        """Return a folder to build ``name`` in, next to the lock of ``key``.

        It is empty, unless what an earlier attempt built is to be kept.
        """
        folder = self.attempt(key) / name
        if folder.exists() and not keep:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)  # of a commit that was never announced
        return folder

    def keep_log(self, key: str, staged: Path) -> None:
        """Copy the attempt's log beside a result; it is outside every digest."""
        log = self.attempt(key) / "log.txt"
        if log.is_file():
            shutil.copyfile(log, staged / "log.txt")

    def commit(self, staged: Path, final: Path) -> None:
        """Move a finished folder to its place; an earlier one there is replaced as a whole.

        From the moment that everything is on the disk, whoever opens the store or takes the lock
        next completes the move if this process does not.

        Args:
            staged: From :meth:`staging`; it gets a manifest of its files.
            final: A folder of this store.
        """
        write_manifest(staged)
        sync_tree(staged)
        make_folder(final.parent)
        _fsync(staged.parent.parent)  # nobody waited for the attempt's folder itself
        note = {
            "staged": staged.name,
            "final": os.path.relpath(final, self.root),
            "manifest": file_digest(staged / MANIFEST),
        }
        write_sealed(staged.parent / _COMMITTING, note)
        self._finish_commit(staged.parent)

    def _finish_commit(self, attempt: Path) -> None:
        """Move the folder that ``committing.json`` names, as far as that is not done yet.

        Every step may be the last of a dying process and the first of the next one. The caller
        holds the lock of the attempt.
        """
        marker = attempt / _COMMITTING
        if not marker.is_file():
            return
        note = read_json(marker)
        staged, final = attempt / note["staged"], self.root / note["final"]
        retired = staged.with_name(f"{staged.name}.old")
        if not _is_that(final, note["manifest"]) and _is_that(staged, note["manifest"]):
            shutil.rmtree(retired, ignore_errors=True)
            if not final.exists():
                staged.rename(final)
            elif not _exchange(staged, final):
                final.rename(retired)
                staged.rename(final)
        elif not final.exists() and retired.is_dir():
            retired.rename(final)
        _fsync(final.parent)
        _fsync(attempt)
        for folder in (staged, retired):
            shutil.rmtree(folder, ignore_errors=True)
        marker.unlink()


def check_schema(marker: Path) -> None:
    """Make sure that the ``store.json`` of a store is of this version's schema.

    Raises:
        StoreSchemaError: It has another schema or cannot be read.
    """
    found = read_json(marker).get("schema")
    if found != SCHEMA:
        raise StoreSchemaError(
            f"{marker}: schema {found!r}, this version reads schema {SCHEMA}",
            hint="choose another --out, or use the version that wrote it",
        )


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: the sha256 of every result file in a folder, by relative path."""
    files = {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CIRCUMSTANCES
    }
    write_json(folder / MANIFEST, {"files": files, "seals": True}, durable=False)


def _is_that(folder: Path, manifest: str) -> bool:
    """Whether a folder is there and has the manifest of this digest."""
    path = folder / MANIFEST
    return path.is_file() and file_digest(path) == manifest


@cache
def _renameat2() -> Any:
    """Return the C library's ``renameat2``, or ``None`` where there is none."""
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None


def _exchange(first: Path, second: Path) -> bool:
    """Let two folders change places in one step, so that neither is ever missing.

    Returns:
        ``False`` where the system or the file system cannot; nothing has changed then.
    """
    function = _renameat2()
    if function is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if function(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(first), None, str(second))


def can_exchange(folder: Path) -> bool:
    """Whether two folders below this one can change places in one step."""
    pair = [folder / name for name in ("one", "other")]
    for path in pair:
        path.mkdir()
    try:
        return _exchange(*pair)
    finally:
        for path in pair:
            path.rmdir()


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
            _sign(handle)
            return handle
    except BlockingIOError as error:
        os.close(handle)
        raise Busy(path.parent.name) from error
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):  # ESTALE: removed by another machine
            os.close(handle)
            raise _no_locks(path, error) from error
    os.close(handle)
    return None


def _no_locks(path: Path, error: OSError) -> OSError | EnvironmentProblem:
    """Return what to raise when a lock cannot be taken for another reason than its owner."""
    if error.errno not in (*_UNSUPPORTED, errno.ENOLCK):
        return error
    return EnvironmentProblem(
        f"{path}: this file system has no locks ({error.strerror})",
        hint="choose an --out on another file system; sfuda-bench doctor --out DIR tells",
    )


def _sign(handle: int) -> None:
    """Write into a lock file who holds it; only people read it."""
    owner = {"host": platform.node(), "pid": os.getpid(), "since": int(time.time())}
    with suppress(OSError):  # a full disk must not keep anybody from a lock
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(owner).encode(), 0)


def lock_owner(path: Path) -> str | None:
    """Return who holds a lock, e.g. ``"node7 process 4711"``; ``None`` when nobody does.

    The shared lock asked for here is given back at once; a worker that tries in between takes
    the cell for busy and comes back to it.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        try:
            owner = json.loads(path.read_bytes())
            return f"{owner['host']} process {owner['pid']}"
        except (OSError, ValueError, TypeError, KeyError):
            return "a living process"
    finally:
        os.close(handle)
    return None


def _let_go() -> None:
    """Close inherited locks in a forked process, so that they are free when their owner dies."""
    for handle in _held:
        with suppress(OSError):
            os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def stored_records(cell: Mapping[str, Any]) -> frozenset[str]:
    """Return what a stored cell recorded; cells of earlier versions knew ``epochs`` only."""
    return frozenset(cell.get("recorded", ["epochs"] if cell["tracked"] else []))


def read_json(path: Path, *, checked: bool = True) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        checked: Compare it with its seal or with the manifest beside it, and its fields with what
            a record of its name holds; a verification does that itself.

    Raises:
        StoreSchemaError: The file is damaged.
    """
    try:
        data = path.read_bytes()
        value = json.loads(data.decode("utf-8"))
        if b"\\ud" in data.lower():  # half a surrogate pair is no text that can be written
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, OSError, RecursionError) as error:
        raise spoilt(path, f"damaged or unreadable ({error})") from error
    if not isinstance(value, dict):
        raise spoilt(path, "expected a JSON object")
    if checked:
        check_listed(path, data)
    record = unsealed(path, value, checked=checked)
    if checked:
        check_shape(path, record)
    return record


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write JSON (sorted keys, indented) so that a reader sees the old file or the new one."""
    data = (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
    write_bytes(path, data, durable=durable)


def write_sealed(path: Path, value: Mapping[str, Any], *, durable: bool = True) -> None:
    """Write a JSON object with a seal, for a record that no manifest lists."""
    write_json(path, sealed(value), durable=durable)


def write_bytes(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write a file through a temporary sibling and a rename.

    What a killed process left of an earlier try is removed.

    Args:
        path: The file.
        data: Its bytes.
        durable: Wait until it would outlive a loss of power. What is staged need not: a commit
            brings the whole folder to the disk.
    """
    make_folder(path.parent)
    for leftover in _siblings(path):
        _remove_if_abandoned(leftover)
    try:
        _write_once(path, data, durable)
    except FileNotFoundError:  # the sibling went with its folder, which another process replaced
        make_folder(path.parent)
        _write_once(path, data, durable)
    if durable:
        _fsync(path.parent)


def _write_once(path: Path, data: bytes, durable: bool) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with temporary.open("wb") as stream:
            with suppress(OSError):  # it only tells other processes that this one is alive
                fcntl.flock(stream, fcntl.LOCK_EX)
            stream.write(data)
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def retract(record: Path) -> None:
    """Remove the record of some files before these are replaced; it is written again last.

    A record thus never stands beside files that it does not speak of, whenever the process dies.
    """
    if record.is_file():
        record.unlink(missing_ok=True)
        _fsync(record.parent)


def _siblings(path: Path) -> list[Path]:
    """Return the temporary files of earlier writes of ``path``."""
    start = f".{path.name}."
    names = [name for name in os.listdir(path.parent) if name.startswith(start)]
    return [path.with_name(name) for name in names if name.endswith(_TEMPORARY)]


def _remove_if_abandoned(temporary: Path) -> None:
    """Remove a temporary file unless the process that writes it is alive."""
    with suppress(OSError):
        handle = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()
        finally:
            os.close(handle)


def make_folder(path: Path) -> None:
    """Create a folder and its parents so that they outlive a loss of power."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    _fsync(path.parent)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything below it to the disk.

    Many files at once: a journal commits them together, one after the other each waits for its own
    turn (on a busy disk 80 ms instead of 6 ms for 24 small files).
    """
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        list(pool.map(_fsync, sorted(folder.rglob("*"))))
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some file systems cannot do it for folders
            raise
    finally:
        os.close(handle)

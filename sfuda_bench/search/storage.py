"""Where a study's trials are kept: a journal in the store, or a PostgreSQL server."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import optuna
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from sfuda_bench.errors import EnvironmentProblem, SfudaError, UsageError
from sfuda_bench.running.seals import sealed, unsealed
from sfuda_bench.running.store import write_bytes

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

JOURNAL = "journal.log"
_SCHEMES = ("postgresql", "postgres")
_DRIVER = "postgresql+psycopg"
_RACES = ("IntegrityError", "ProgrammingError")
"""What processes get that make the tables of an empty database at the same moment."""

_ATTEMPTS, _PAUSE = 5, 0.3  # s


class FlockLock(JournalFileOpenLock):
    """The journal's lock: a dead owner's lock is free at once, and its torn line is removed.

    Args:
        journal: The journal file.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal))
        self._journal = journal
        self._handle: int | None = None

    def acquire(self) -> bool:
        """Wait for the lock, then drop what a killed writer left of its last line."""
        path = self._journal.with_name(f"{self._journal.name}.lock")
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        _drop_torn_line(self._journal)
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class SealedJournal(JournalFileBackend):
    """A journal whose lines carry a seal, so that a damaged one is never taken for a trial.

    Lines of earlier versions have none; they are read as they are.

    Args:
        journal: The journal file.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(str(journal), lock_obj=FlockLock(journal))
        self._journal = journal

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines, each with its seal."""
        super().append_logs([sealed(log) for log in logs])

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Yield lines without their seals.

        Raises:
            StoreSchemaError: A line is not what was written.
        """
        for log in super().read_logs(log_number_from):
            yield unsealed(self._journal, log)


def _drop_torn_line(journal: Path) -> None:
    """Cut a journal after its last complete line."""
    with journal.open("r+b") as file:
        data = _tail(file.fileno())
        if data and not data.endswith(b"\n"):
            size = os.fstat(file.fileno()).st_size
            kept = journal.read_bytes().rfind(b"\n") + 1
            file.truncate(min(kept, size))


def _tail(handle: int) -> bytes:
    size = os.fstat(handle).st_size
    return os.pread(handle, 1, size - 1) if size else b""


def open_storage(folder: Path, url: str | None, *, create: bool = True) -> BaseStorage:
    """Open the trials of a study.

    Args:
        folder: The study's folder, where the journal lies.
        url: ``postgresql://...``, or ``None`` for the journal.
        create: Make the journal if there is none.

    Raises:
        UsageError: A URL of another kind, or no journal where one is expected.
        EnvironmentProblem: The server cannot be reached, or its driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is not None:
        return _open_server(url)
    journal = folder / JOURNAL
    if not create and not journal.is_file():
        raise UsageError(
            f"{folder}: no journal of trials", hint="with trials on a server: --storage URL"
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.JournalStorage(SealedJournal(journal))
    except (OSError, SfudaError):
        raise
    except Exception as error:  # what replays the lines trusts them
        raise EnvironmentProblem(
            f"{journal}: damaged ({error})", hint="remove the study's folder; its cells stay"
        ) from error


def _open_server(url: str) -> BaseStorage:
    scheme = url.partition("://")[0].partition("+")[0]
    if scheme not in _SCHEMES or "://" not in url:
        raise UsageError(
            f"--storage {without_password(url)}: expected postgresql://USER@HOST/DATABASE",
            hint="leave it out: the journal in the store serves several processes",
        )
    for attempt in range(_ATTEMPTS):
        try:
            return optuna.storages.RDBStorage(f"{_DRIVER}://{url.partition('://')[2]}")
        except ImportError as error:
            raise EnvironmentProblem(
                f"--storage {without_password(url)}: the driver is missing ({error})",
                hint="pip install 'sfuda-bench[postgres]'",
            ) from error
        except Exception as error:  # whatever the driver raises: it says that there is no server
            if not type(error).__module__.startswith(("sqlalchemy", "optuna", "psycopg")):
                raise
            if type(error).__name__ in _RACES and attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE * (attempt + 1))
                continue
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise EnvironmentProblem(
                f"--storage {without_password(url)}: cannot be used: {reason}",
                hint="is the server running, and does the database exist?",
            ) from error
    raise AssertionError("the last attempt returns or raises")


@contextmanager
def lost_server(url: str | None) -> Iterator[None]:
    """Turn a server that goes away while trials run into a problem of the machine."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        raise EnvironmentProblem(
            f"--storage {without_password(url or '')}: lost: {str(error).splitlines()[0]}",
            hint="run the same command again when the server is back; nothing is lost",
        ) from error


def without_password(url: str) -> str:
    """Return a URL that may be printed and stored."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user = f"{parts.username or ''}:***@"
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}{host}"))


@contextmanager
def trial_lock(folder: Path, name: str) -> Iterator[bool]:
    """Hold the lock of one trial; yields whether it was free. A dead owner's lock is free."""
    path = folder / "running" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)


def is_locked(folder: Path, name: str) -> bool:
    """Whether a living process works on a trial; it is not disturbed by the question."""
    path = folder / "running" / f"{name}.lock"
    if not path.is_file():
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a study's folder: for creating its trials and for writing results."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def place_of(folder: Path) -> str:
    """Return the id of a study's folder; machines that share the folder share the id.

    A trial that a machine without this folder runs must not be taken from it: its lock lies
    elsewhere. Call it while holding :func:`study_lock`.
    """
    path = folder / "place"
    if not path.is_file():
        write_bytes(path, uuid.uuid4().hex.encode())
    return path.read_text("utf-8").strip()

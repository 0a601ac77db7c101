"""The store on a disk that fails and under a process that dies, at each of its operations.

A layer below the store counts the calls that change the disk and makes the k-th of them fail,
write half of its bytes, or be the last of its process, for every k. Afterwards the same work is
done again on a healthy disk.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.errors import EnvironmentProblem, StoreSchemaError
from sfuda_bench.running import store as store_module
from sfuda_bench.running.store import (
    Busy,
    Store,
    read_json,
    retract,
    write_bytes,
    write_json,
    write_sealed,
)
from sfuda_bench.running.store_check import verify_store
from sfuda_bench.running.store_digest import store_contents

KEY = "ab" * 32
SHORT = KEY[:16]
_CALLS = ("mkdir", "rename", "replace", "unlink", "rmdir", "fsync")
Work = Callable[[Path], None]


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: nothing here loses power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Disk:
    """Counts what changes the disk, and misbehaves at one count.

    Args:
        at: The count of the call that goes wrong, from 1; 0 for none.
        fault: ``"ENOSPC"``, ``"EIO"``, ``"torn"`` (half of the bytes, then EIO), ``"kill"``
            (before the call) or ``"kill torn"`` (after half of the bytes).
    """

    def __init__(self, at: int = 0, fault: str = "") -> None:
        self.at, self.fault, self.count = at, fault, 0
        self._lock = threading.Lock()

    @contextmanager
    def installed(self) -> Iterator[Disk]:
        """Stand between the store and the operating system."""
        with pytest.MonkeyPatch.context() as patch:
            for name in _CALLS:
                patch.setattr(os, name, self._wrapped(getattr(os, name)))
            real_open, real_io = os.open, io.open
            patch.setattr(os, "open", self._os_open(real_open))
            patch.setattr(io, "open", self._io_open(real_io))
            exchange = store_module._exchange
            patch.setattr(store_module, "_exchange", self._wrapped(exchange))
            yield self

    def step(self) -> bool:
        """Count a call; whether it is the one that goes wrong."""
        with self._lock:  # a folder is brought to the disk by several threads
            self.count += 1
            is_it = self.count == self.at
        if not is_it:
            return False
        if self.fault == "kill":
            os._exit(9)
        return True

    def fail(self) -> OSError:
        code = errno.ENOSPC if self.fault == "ENOSPC" else errno.EIO
        return OSError(code, os.strerror(code))

    def _wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.step():
                raise self.fail()
            return function(*args, **kwargs)

        return call

    def _os_open(self, function: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT and self.step():
                raise self.fail()
            return function(path, flags, *args, **kwargs)

        return call

    def _io_open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa+"):
                return function(path, mode, *args, **kwargs)
            if self.step():
                raise self.fail()
            return Writing(self, function(path, mode, *args, **kwargs))

        return call


class Writing:
    """An open file whose writes count."""

    def __init__(self, disk: Disk, stream: Any) -> None:
        self._disk, self._stream = disk, stream

    def write(self, data: Any) -> Any:
        if not self._disk.step():
            return self._stream.write(data)
        if "torn" in self._disk.fault:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()
        if "kill" in self._disk.fault:
            os._exit(9)
        raise self._disk.fail()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Writing:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def counted(work: Work, root: Path) -> int:
    """Return how many calls an undisturbed piece of work makes."""
    with Disk().installed() as disk:
        work(root)
    return disk.count


def disturb(work: Work, root: Path, at: int, fault: str) -> None:
    """Do a piece of work until its disk fails or its process dies."""
    if "kill" in fault:
        child = os.fork()
        if child == 0:
            try:
                with Disk(at, fault).installed():
                    work(root)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) in (9, 0)
        return
    try:
        with Disk(at, fault).installed():
            work(root)
    except (OSError, EnvironmentProblem) as error:
        cause = error.__cause__ if isinstance(error, EnvironmentProblem) else error
        assert isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EIO)


FAULTS = ("ENOSPC", "EIO", "torn", "kill", "kill torn")


def write_cell(folder: Path, number: int) -> None:
    """Write what a small cell consists of; all of it names the number."""
    (folder / "predictions").mkdir(exist_ok=True)
    for name in ("a-cup.txt", "a-disc.txt"):
        (folder / "predictions" / name).write_text(f"{number}\n" * 50)
    write_json(folder / "cell.json", {"number": number, "key": KEY})
    write_sealed(folder / "run.json", {"pid": os.getpid()})


def cell_work(number: int) -> Work:
    """Return what a worker does to compute and commit a cell."""

    def work(root: Path) -> None:
        store = Store.open(root)
        final = store.cell("m", "a", "b", KEY)
        with store.lock(KEY):
            if not final.joinpath("cell.json").is_file() or numbers(final) != {number}:
                staged = store.staging(KEY, "cell")
                write_cell(staged, number)
                store.commit(staged, final)
            store.clear_attempt(KEY)

    return work


def numbers(folder: Path) -> set[int]:
    """Return the numbers that the files of a cell's folder name: one, or it is half a cell."""
    texts = [path.read_text() for path in (folder / "predictions").iterdir()]
    assert len(texts) == 2 and {len(text.splitlines()) for text in texts} == {50}
    return {read_json(folder / "cell.json")["number"], *(int(t.split()[0]) for t in texts)}


def assert_readable(root: Path, allowed: set[int]) -> None:
    """Whatever a reader finds is a whole store: no cell, the old or the new one."""
    if (root / "store.json").exists():
        Store.open(root, create=False)
    for path in root.glob("cells/*/*/*/cell.json"):
        found = numbers(path.parent)
        assert len(found) == 1 and found <= allowed
    for path in root.rglob("*.json"):
        if "attempts" not in path.parts:
            read_json(path)


def every_fault(
    work: Work, prepared: Path, root: Path, *, each: bool = True
) -> Iterator[tuple[int, str]]:
    """Disturb a piece of work at every call, each time from the prepared folder.

    Args:
        work: What is disturbed.
        prepared: What it starts from.
        root: Where it works.
        each: Whether every call has every fault; else the faults take turns.
    """
    shutil.copytree(prepared, root)
    total = counted(work, root)
    assert total > 3
    for at in range(1, total + 1):
        for fault in FAULTS if each else [FAULTS[at % len(FAULTS)]]:
            shutil.rmtree(root)
            shutil.copytree(prepared, root)
            disturb(work, root, at, fault)
            yield at, fault


def prepare(folder: Path, *works: Work) -> Path:
    folder.mkdir()
    for work in works:
        work(folder)
    return folder


def assert_clean(root: Path) -> None:
    """Nothing is left of failed tries."""
    assert not list(root.glob("attempts/*"))
    assert not [path for path in root.rglob(".*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("each", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("before", [(), (1,)], ids=["first", "replaced"])
@pytest.mark.parametrize("exchange", [True, False], ids=["one step", "two steps"])
def test_a_commit_survives_every_fault(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: tuple[int, ...],
    exchange: bool,
    each: bool,
) -> None:
    if not exchange:
        monkeypatch.setattr(store_module, "_exchange", lambda first, second: False)
    work = cell_work(2)
    prepared = prepare(tmp_path / "prepared", *(cell_work(number) for number in before))
    expected = store_contents(prepare(tmp_path / "undisturbed", work))
    root = tmp_path / "store"
    for at, fault in every_fault(work, prepared, root, each=each):
        assert_readable(root, {*before, 2})
        if before and exchange:
            assert list(root.glob("cells/*/*/*/cell.json")), f"{fault} at {at}: the cell is gone"
        Store.open(root)  # a planner, before any lock is taken
        if before:
            assert list(root.glob("cells/*/*/*/cell.json")), f"{fault} at {at}: the cell is gone"
        work(root)
        assert store_contents(root) == expected, f"{fault} at {at}"
        assert_clean(root)


def test_a_finished_result_is_not_computed_again_when_only_its_move_was_lost(
    tmp_path: Path,
) -> None:
    """A process that dies after everything is on the disk has not worked for nothing."""
    root = prepare(tmp_path / "store")
    store = Store.open(root)
    staged = store.staging(KEY, "cell")
    write_cell(staged, 2)
    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "rename", lambda *_: os._exit(9))
            store.commit(staged, store.cell("m", "a", "b", KEY))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert not list(root.glob("cells/*/*/*"))
    Store.open(root)
    assert numbers(store.cell("m", "a", "b", KEY)) == {2}
    assert_clean(root)


def test_scores_stand_with_their_record_or_not_at_all(tmp_path: Path) -> None:
    """The record of scores never speaks of other frames than those beside it."""

    def score(number: int) -> Work:
        def work(root: Path) -> None:
            record = root / "scores-standard.json"
            retract(record)
            for name in ("cases", "eyes"):
                write_bytes(root / name, f"{number}".encode() * 40)
            write_json(record, {"number": number})

        return work

    prepared = prepare(tmp_path / "prepared", score(1))
    root = tmp_path / "cell"
    for at, fault in every_fault(score(2), prepared, root):
        if (root / "scores-standard.json").exists():
            number = read_json(root / "scores-standard.json")["number"]
            for name in ("cases", "eyes"):
                assert (root / name).read_text() == f"{number}" * 40, f"{fault} at {at}"
        score(2)(root)
        assert read_json(root / "scores-standard.json") == {"number": 2}
        assert {path.name for path in root.iterdir()} == {"scores-standard.json", "cases", "eyes"}


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    def write(number: int) -> Work:
        return lambda root: write_json(root / "deep" / "er" / "x.json", {"number": number})

    prepared = prepare(tmp_path / "prepared", write(1))
    root = tmp_path / "root"
    for _ in every_fault(write(2), prepared, root):
        assert read_json(root / "deep/er/x.json")["number"] in (1, 2)
        write(2)(root)
        assert [path.name for path in (root / "deep/er").iterdir()] == ["x.json"]
        assert read_json(root / "deep/er/x.json")["number"] == 2


def test_a_lock_can_be_taken_after_every_fault(tmp_path: Path) -> None:
    def cycle(root: Path) -> None:
        store = Store(root)
        with store.lock(KEY) as attempt:
            write_json(attempt / "note.json", {})
            store.clear_attempt(KEY)

    prepared = prepare(tmp_path / "prepared")
    root = tmp_path / "root"
    for _ in every_fault(cycle, prepared, root):
        cycle(root)
        assert_clean(root)


def test_a_store_is_opened_after_every_fault_of_its_making(tmp_path: Path) -> None:
    prepared = prepare(tmp_path / "prepared")
    root = tmp_path / "root"

    def make(folder: Path) -> None:
        Store.open(folder / "store")

    for _ in every_fault(make, prepared, root):
        make(root)
        assert [path.name for path in (root / "store").iterdir()] == ["store.json"]


def test_the_temporary_file_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / ".x.json.1-aa.tmp"
    dead = tmp_path / ".x.json.2-bb.tmp"
    other = tmp_path / ".y.json.3-cc.tmp"
    for path in (living, dead, other):
        path.write_bytes(b"half")
    with living.open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        write_json(tmp_path / "x.json", {})
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", living.name, other.name}


def test_a_file_whose_folder_is_replaced_meanwhile_is_written_into_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cell"
    folder.mkdir()
    replace = os.replace

    def replaced_before(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "replace", replace)
        folder.rename(tmp_path / "old")
        folder.mkdir()
        replace(source, target)

    monkeypatch.setattr(os, "replace", replaced_before)
    write_json(folder / "x.json", {"number": 1})
    assert read_json(folder / "x.json") == {"number": 1}


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[1, 2]", "\x00\xff", "[" * 100_000])
def test_a_torn_record_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cell" / "cell.json"
    path.parent.mkdir()
    path.write_text(text, "latin-1")
    with pytest.raises(StoreSchemaError, match=r"cell\.json") as caught:
        read_json(path)
    assert str(path.parent) in str(caught.value.hint)


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(handle: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(EnvironmentProblem, match="no locks"), Store(tmp_path).lock(KEY):
        pass


def test_a_forked_helper_does_not_keep_the_lock_of_its_dead_owner(tmp_path: Path) -> None:
    """A method may start processes by fork, as data loaders do."""
    store = Store.open(tmp_path / "store")
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        with store.lock(KEY):
            helper = os.fork()
            if helper == 0:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(helper).encode())
            time.sleep(60)
        os._exit(0)
    helper = int(os.read(read, 20))
    try:
        with pytest.raises(Busy), store.lock(KEY):
            pass
        os.kill(owner, 9)
        os.waitpid(owner, 0)
        with store.lock(KEY):
            pass
    finally:
        os.kill(helper, 9)
        os.close(read)
        os.close(write)


def test_a_real_cell_survives_a_full_disk_at_its_commit(bench: Any) -> None:
    """With the models, frames and records of a real cell, at a spread of calls."""
    from sfuda_bench.running.jobs import JobRunner
    from sfuda_bench.running.plan import scoring_todo

    plan = bench.plan("source_only")
    silence = type("Silence", (), {"send": lambda self, message: None})()

    def compute(root: Path) -> None:
        runner = JobRunner(root, "cpu")
        for cell in plan.cells:
            runner.compute(json.loads(json.dumps(cell.job)), silence)
            for job in scoring_todo(cell):
                runner.compute(json.loads(json.dumps(job)), silence)

    total = counted(compute, bench.out)
    expected = store_contents(bench.out)
    for at in range(3, total, max(1, total // 12)):
        shutil.rmtree(bench.out / "cells")
        disturb(compute, bench.out, at, "ENOSPC")
        compute(bench.out)
        assert store_contents(bench.out) == expected, f"ENOSPC at {at} of {total}"
        assert not verify_store(bench.out).mismatches

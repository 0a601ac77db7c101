"""Worker processes in two roles: ``label`` may open masks, ``adapt`` is refused them.

Each worker is a spawned process with a pipe. It computes one job at a time, reports progress and
signs of life through the pipe, and lives until the parent closes the pipe. It leads a process
group of its own, so that whatever a job starts ends with it.
"""

from __future__ import annotations

import errno
import faulthandler
import logging
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import EnvironmentProblem, SfudaError
from sfuda_bench.running.failures import classify, is_certain
from sfuda_bench.running.firewall import restrict
from sfuda_bench.running.store import Store, make_folder

if TYPE_CHECKING:
    from sfuda_bench.running.jobs import JobRunner

_BUSY_SHARE = 0.01  # of a core; a process that waits for nothing but a timer uses less
_ANSWER_SECONDS = 2.0  # until a process has said where it is
_END_SECONDS = 10.0
_DEVICE_ERRORS = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUSOLVER_STATUS")


@dataclass(frozen=True)
class WorkerSettings:
    """What every worker of a run is told once.

    Attributes:
        role: ``"label"`` or ``"adapt"``.
        out: The store.
        device: Device name.
        threads: CPU threads it may use.
        plugins: Python files that register further plug-ins.
        forbidden: Folders whose files an adapt worker must not open: masks, names, raw data.
        gpu: ``CUDA_VISIBLE_DEVICES`` of the process; ``None`` leaves it as it is.
        beat_seconds: Pause between two signs of life.
    """

    role: str
    out: str
    device: str
    threads: int
    plugins: tuple[str, ...]
    forbidden: tuple[str, ...]
    gpu: str | None = None
    beat_seconds: float = 5.0


class Worker:
    """A worker process as the parent sees it."""

    starts_at_once = True
    """A job does not wait in a queue elsewhere: silence is a sign of trouble from the start."""
    start_method = "spawn"

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        # typeshed knows no class that has all of what every context has
        context: Any = multiprocessing.get_context(self.start_method)
        self.connection, child = context.Pipe()
        self._stacks, stacks = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_main, args=(child, stacks, settings), daemon=True, name=f"sfuda-{settings.role}"
        )
        with _worker_environment(settings.threads, settings.gpu):
            self.process.start()
        child.close()
        stacks.close()

    def submit(self, job: dict[str, Any]) -> None:
        """Give the worker a job; its messages follow on ``connection``."""
        self.connection.send(job)

    def stack(self) -> str:
        """Ask a process where its threads are, or read where a fatal error struck it.

        A process that has not begun to work yet ends by the question: only ask before a kill.
        """
        if self.process.is_alive() and self.process.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGUSR1)
        parts, patience = [], _ANSWER_SECONDS
        while self._stacks.poll(patience):
            part = os.read(self._stacks.fileno(), 2**16)
            if not part:
                break
            parts.append(part)
            patience = 0.1
        return b"".join(parts).decode("utf-8", "replace")

    def stop(self, *, force: bool = False) -> None:
        """End the process, by closing its pipe or at once, and whatever its jobs have started."""
        self.connection.close()
        if force:
            self._kill()
        self.process.join(_END_SECONDS)
        self._kill()  # also children that outlived it
        self.process.join(_END_SECONDS)
        self._stacks.close()

    def _kill(self) -> None:
        if self.process.pid is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()


class _worker_environment:  # noqa: N801  # reads as the context manager that it is
    """Settings that must be in the environment before libraries are imported."""

    def __init__(self, threads: int, gpu: str | None) -> None:
        count = str(max(1, threads))
        self._values = {"OMP_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
        # What CUDA needs for repeatable matrix products.
        self._values["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        if gpu is not None:
            self._values["CUDA_VISIBLE_DEVICES"] = gpu
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> None:
        for name, value in self._values.items():
            self._before[name] = os.environ.get(name)
            os.environ[name] = value

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- inside the process -------------------------------------------------------------------------


class Orphaned(BaseException):
    """The parent process is gone; no error of the job, and nothing that a job should catch."""


class Channel:
    """The process's end of the pipe, for the thread that computes and the one that beats."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._working = True  # it imports libraries

    def receive(self) -> dict[str, Any]:
        """Wait for the next job."""
        self._working = False
        job: dict[str, Any] = self._connection.recv()
        self._working = True
        return job

    def send(self, message: dict[str, Any]) -> None:
        """Send a message about the running job.

        Raises:
            Orphaned: Nobody listens any more.
        """
        with self._lock:
            try:
                self._connection.send(message)
            except OSError as error:
                raise Orphaned from error

    def finish(self, message: dict[str, Any]) -> None:
        """Send the last message about the running job: no sign of life comes after it."""
        self._working = False
        self.send(message)

    def beat(self) -> None:
        """Send a sign of life, unless there is nothing to do."""
        if self._working:
            self.send({"kind": "alive"})


def _main(connection: Connection, stacks: Connection, settings: WorkerSettings) -> None:
    """Compute jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    os.setsid()
    faulthandler.enable(stacks.fileno())
    faulthandler.register(signal.SIGUSR1, stacks.fileno())
    channel = Channel(connection)
    heart = _Heart(channel, settings.beat_seconds)
    try:
        with heart.beating():  # importing libraries takes long
            runner, broken = _prepare(settings), None
        # The kernel holds the thread that closed the door, and those that it starts from now on.
        threading.Thread(target=heart.run, daemon=True).start()
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _load_plugins(runner, settings)
    except BaseException as error:
        runner, broken = None, failed_message(error)  # said again for every job that comes
    while True:
        try:
            job = channel.receive()
            channel.finish(_answer(runner, job, channel) if runner else broken or {})
        except (EOFError, OSError, Orphaned):
            return


def _answer(runner: JobRunner, job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Compute one job and return the last message about it."""
    try:
        channel.send({"kind": "started"})
        message: dict[str, Any] = {"kind": "done", "status": runner.compute(job, channel)}
    except Orphaned:
        raise
    except BaseException as error:
        message = failed_message(error)
        message |= {"recorded": runner.recorded, "restart": broken_device(error)}
        error.__traceback__ = None  # its frames hold the job's tensors
    return {**message, "restart": runner.restart() or message.get("restart")}


def broken_device(error: BaseException) -> str | None:
    """Return why a process cannot use its GPU after this error: whatever it does there fails."""
    text = str(error)
    if isinstance(error, RuntimeError) and any(words in text for words in _DEVICE_ERRORS):
        return f"the GPU reported: {text.splitlines()[0]}"
    return None


def _end_with_parent() -> None:
    """End this process and its children when its parent is gone: nothing computes for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


class _Heart:
    """Says from its own thread that the process computes, or waits for another's result.

    It says nothing of a process that waits for anything else: a dead lock, a lost connection. Of
    one that computes without end it says that it is alive; no clock can tell that from a long
    epoch. While a library holds the interpreter's lock nothing can be said.
    """

    def __init__(self, channel: Channel, seconds: float) -> None:
        self._channel, self._seconds = channel, seconds
        self._stopped = threading.Event()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Beat from a thread that ends with the block."""
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join()
            self._stopped.clear()

    def run(self) -> None:
        """Beat until the pipe is closed, or the block of :meth:`beating` ends."""
        before = self._cpu_seconds()
        while not self._stopped.wait(self._seconds):
            now = self._cpu_seconds()
            if now - before > _BUSY_SHARE * self._seconds or _waits_for_a_lock():
                try:
                    self._channel.beat()
                except Orphaned:
                    return
            before = now

    def _cpu_seconds(self) -> float:
        """Return the processor time of this process and its living children."""
        ticks = os.sysconf("SC_CLK_TCK")
        return time.process_time() + sum(self._ticks(pid) for pid in self._children()) / ticks

    def _children(self) -> list[int]:
        found, new = [], [os.getpid()]
        while new:
            parents, new = new, []
            for pid in parents:
                with suppress(OSError, ValueError):
                    new += map(int, self._read(f"{pid}/task/{pid}/children").split())
            found += new
        return found

    def _ticks(self, pid: int) -> int:
        """Return the user and system time of a process in clock ticks; 0 when it is gone."""
        try:
            fields = self._read(f"{pid}/stat").rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])
        except (OSError, ValueError, IndexError):
            return 0

    @staticmethod
    def _read(name: str) -> str:
        return Path("/proc", name).read_text("utf-8", "replace")


def _waits_for_a_lock() -> bool:
    """Whether the main thread waits until another process has computed what it needs."""
    waiting = Store.lock.__wrapped__.__code__  # type: ignore[attr-defined]  # set by contextmanager
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if frame.f_code is waiting:
            return True
        frame = frame.f_back
    return False


def failed_message(error: BaseException) -> dict[str, Any]:
    """Return what a worker says of a job that failed."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = EnvironmentProblem(
            f"the disk is full: {error}", hint="free some space and run the same command again"
        )
    return {
        "kind": "failed",
        "failure": classify(error),
        "certain": is_certain(error),
        "recorded": False,
        "class": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": error.hint if isinstance(error, SfudaError) else None,
        "exit_code": error.exit_code if isinstance(error, SfudaError) else 1,
        "traceback": "".join(traceback.format_exception(error)),
    }


def _prepare(settings: WorkerSettings) -> JobRunner:
    """Import what jobs need, then close the door on masks for an adapt worker."""
    from sfuda_bench.running.jobs import JobRunner
    from sfuda_bench.running.runtime import configure

    configure(settings.threads)
    runner = JobRunner(Path(settings.out), settings.device)
    if settings.role == "adapt":
        _restrict(settings, runner.store)
    return runner


def _load_plugins(runner: JobRunner, settings: WorkerSettings) -> None:
    """Import the plug-ins, behind the closed door, and remember the state that they leave."""
    from sfuda_bench.methods import METHODS
    from sfuda_bench.registry import load_plugin_file
    from sfuda_bench.running.process_state import ProcessState

    METHODS.load()
    for path in settings.plugins:
        load_plugin_file(Path(path))
    runner.clean = ProcessState()


def _restrict(settings: WorkerSettings, store: Store) -> None:
    """Close the door on masks, before any plug-in is imported."""
    platform.processor()  # asks a child process, once
    for folder in ("attempts", "cells", "artefacts", "sources"):  # what exists can be read later
        make_folder(store.root / folder)
    restrict(settings.forbidden, read_only=(store.root / "sources", store.packed))


def log_to(path: Path) -> logging.Handler:
    """Send log records of this process to a file until the handler is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    logging.captureWarnings(True)
    return handler

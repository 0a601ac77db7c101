"""Worker processes in two roles: ``label`` may open masks, ``adapt`` is refused them.

Each worker is a spawned process with a pipe. It computes one job at a time, reports progress
through the pipe, and lives until the parent closes the pipe.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sfuda_bench.errors import EnvironmentProblem, SfudaError


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
    """

    role: str
    out: str
    device: str
    threads: int
    plugins: tuple[str, ...]
    forbidden: tuple[str, ...]


class Worker:
    """A worker process as the parent sees it."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        context = multiprocessing.get_context("spawn")
        self.connection, child = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_main, args=(child, settings), daemon=True, name=f"sfuda-{settings.role}"
        )
        with _worker_environment(settings.threads):
            self.process.start()
        child.close()

    def submit(self, job: dict[str, Any]) -> None:
        """Give the worker a job; its messages follow on ``connection``."""
        self.connection.send(job)

    def stop(self, *, force: bool = False) -> None:
        """End the process: by closing its pipe, or at once."""
        self.connection.close()
        if force:
            self.process.kill()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


class _worker_environment:  # noqa: N801  # reads as the context manager that it is
    """Thread settings that must be in the environment before libraries are imported."""

    def __init__(self, threads: int) -> None:
        count = str(max(1, threads))
        self._values = {"OMP_NUM_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
        # What CUDA needs for repeatable matrix products.
        self._values["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
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


def _main(connection: Connection, settings: WorkerSettings) -> None:
    """Compute jobs until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        compute, broken = _prepare(settings), None
    except BaseException as error:
        compute, broken = None, _failure(error)  # said again for every job that comes
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            if compute is None:
                connection.send(broken)
            else:
                connection.send({"kind": "done", "status": compute(job, connection)})
        except (BrokenPipeError, KeyboardInterrupt):
            return
        except BaseException as error:
            connection.send(_failure(error))


def _end_with_parent() -> None:
    """End this process when its parent is gone, so that nothing computes for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _failure(error: BaseException) -> dict[str, Any]:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = EnvironmentProblem(
            f"the disk is full: {error}", hint="free some space and run the same command again"
        )
    known = isinstance(error, SfudaError)
    return {
        "kind": "failed",
        "class": type(error).__name__,
        "message": str(error) or type(error).__name__,
        "hint": error.hint if isinstance(error, SfudaError) else None,
        "exit_code": error.exit_code if isinstance(error, SfudaError) else 1,
        "traceback": "" if known and not error.__cause__ else traceback.format_exc(),
    }


def _prepare(settings: WorkerSettings) -> Callable[[dict[str, Any], Connection], str]:
    """Import what jobs need, then close the door on masks for an adapt worker."""
    from sfuda_bench.methods import METHODS
    from sfuda_bench.registry import load_plugin_file
    from sfuda_bench.running.jobs import JobRunner
    from sfuda_bench.running.runtime import configure

    configure(settings.threads)
    METHODS.load()
    for path in settings.plugins:
        load_plugin_file(Path(path))
    runner = JobRunner(Path(settings.out), settings.device)
    if settings.role == "adapt":
        refuse_masks(settings.forbidden)
    return runner.compute


def refuse_masks(forbidden: tuple[str, ...]) -> None:
    """Make this process refuse, for good, to open or list anything below ``forbidden``.

    It stops mistakes and ordinary cheating. The proof that labels play no part is elsewhere:
    adapted bytes must not change when the masks are deleted or shuffled.
    """
    roots = tuple(os.path.realpath(folder) for folder in forbidden)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.listdir", "os.scandir", "os.rename", "os.link", "os.symlink"):
            return
        # The second argument of the first three is a mode or missing, not a path.
        for path in arguments[: 1 if event in ("open", "os.listdir", "os.scandir") else 2]:
            if isinstance(path, str | bytes | os.PathLike):
                _check_allowed(os.path.realpath(os.fsdecode(path)), roots)

    sys.addaudithook(hook)


def _check_allowed(path: str, roots: tuple[str, ...]) -> None:
    for root in roots:
        if path == root or path.startswith(root + os.sep):
            raise PermissionError(f"label firewall: an adapting process may not open {path}")


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

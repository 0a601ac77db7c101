"""What runs inside a Dask worker: one task per job, one process of ours per role.

The Dask worker itself computes nothing. A task starts (or finds idle) a worker process of the
job's role, hands it the job and passes on what it says, so that a process which may open masks
never adapts, here as on one machine.
"""

from __future__ import annotations

import hashlib
import importlib
import multiprocessing
import os
import platform
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sfuda_bench.errors import EnvironmentProblem
from sfuda_bench.running.pool import WorkerLike
from sfuda_bench.running.workers import Worker, WorkerSettings

GPU = "GPU"
"""The Dask resource that stands for one GPU."""
SAME = "every worker needs the same installation and the same DIR"
_PACKAGES = ("torch", "torchvision", "numpy", "distributed")
_IDLE_S = 300.0  # a process that nobody uses this long gives its memory back
_VISIBLE_S = 3.0  # a network file system may show a new file a little later


@dataclass(frozen=True)
class Ticket:
    """One job on its way through the cluster.

    Attributes:
        id: Unique name; the key of its Dask task.
        topic: Where its messages go.
        code: What :func:`versions` says on the client.
    """

    id: str
    topic: str
    code: Mapping[str, str]


# -- jobs -----------------------------------------------------------------------------------------


def run_job(ticket: Ticket, settings: WorkerSettings, job: dict[str, Any]) -> dict[str, Any]:
    """Compute one job in a process of its role; runs as a Dask task.

    Returns:
        The job's last message, or ``{"kind": "died", "exit_code": ...}`` when its process ended.
    """
    here = _dask_worker()

    def tell(message: Mapping[str, Any]) -> None:
        here.log_event(ticket.topic, {"ticket": ticket.id, "message": dict(message)})

    tell({"kind": "placed", "worker": here.address})
    if problem := _unfit(ticket, settings):
        return problem
    process, keep = _PROCESSES.take(ticket.id, settings), False
    try:
        process.submit(job)
        while not is_final(message := process.connection.recv()):
            tell(message)
        keep = not message.get("restart")
        return dict(message)
    except (EOFError, OSError):
        process.process.join(5)
        return {"kind": "died", "exit_code": process.process.exitcode}
    finally:
        _PROCESSES.give_back(ticket.id, keep=keep)


def is_final(message: Mapping[str, Any]) -> bool:
    """Whether nothing more is said about a job."""
    return message["kind"] in ("done", "failed")


def kill_job(ticket_id: str) -> None:
    """Kill the process that computes a job here; its task then ends as ``died``."""
    _PROCESSES.kill(ticket_id)


def end_idle(out: str) -> None:
    """End the processes that have worked for one store and are idle."""
    _PROCESSES.end_idle(out)


def _dask_worker() -> Any:
    return importlib.import_module("distributed").get_worker()


class _Processes:
    """The role processes of one Dask worker: those at work by ticket, and the idle ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: dict[str, WorkerLike] = {}
        self._idle: list[tuple[float, WorkerLike]] = []

    def take(self, ticket_id: str, settings: WorkerSettings) -> WorkerLike:
        """Return an idle process with these settings, or a new one."""
        with self._lock:  # starting a process also changes the environment: one at a time
            found = [entry for entry in self._idle if entry[1].settings == settings]
            if found:
                self._idle.remove(found[-1])
            process = found[-1][1] if found else _start(settings)
            self._busy[ticket_id] = process
            return process

    def give_back(self, ticket_id: str, *, keep: bool) -> None:
        """Make the process of a finished job idle, or end it."""
        with self._lock:
            process = self._busy.pop(ticket_id)
            if keep:
                self._idle.append((time.monotonic(), process))
        if keep:
            timer = threading.Timer(_IDLE_S, self.end_idle, kwargs={"idle_s": _IDLE_S})
            timer.daemon = True
            timer.start()
        else:
            process.stop(force=True)

    def kill(self, ticket_id: str) -> None:
        """Kill the process that computes a job, if it does."""
        with self._lock:
            process = self._busy.get(ticket_id)
        if process is not None:
            process.process.kill()

    def end_idle(self, out: str | None = None, idle_s: float = 0.0) -> None:
        """End what is idle at least this long, of one store or of all."""
        before = time.monotonic() - idle_s
        with self._lock:
            ended = [
                entry
                for entry in self._idle
                if entry[0] <= before and out in (None, entry[1].settings.out)
            ]
            self._idle = [entry for entry in self._idle if entry not in ended]
        for _, process in ended:
            process.stop(force=True)


def _start(settings: WorkerSettings) -> WorkerLike:
    # Below a nanny a Dask worker is a daemonic process, which may start none: its children would
    # be left behind when it is terminated. Ours end themselves with their parent.
    multiprocessing.current_process().daemon = False
    return Worker(settings)


_PROCESSES = _Processes()


# -- is this machine fit? -------------------------------------------------------------------------


def describe(
    token: str, files: tuple[str, ...], patience_s: float = _VISIBLE_S, dask_worker: Any = None
) -> dict[str, Any]:
    """Return what the client must know of this Dask worker before it gives it jobs.

    Args:
        token: A file that the client wrote into the store.
        files: Other files that jobs need, e.g. plug-ins.
        patience_s: How long it looks for the token.
        dask_worker: The Dask worker, given by Dask.
    """
    return {
        "host": platform.node(),
        "cores": _cores(),
        "threads": dask_worker.state.nthreads,
        "gpus": int(dask_worker.state.total_resources.get(GPU, 0)),
        "versions": versions(),
        "sees_store": _appears(Path(token), patience_s),
        "missing": [name for name in files if not Path(name).is_file()],
    }


def _cores() -> list[int]:
    """Return the cores that this process may use, no more than a container's limit allows."""
    count: int = importlib.import_module("dask.system").cpu_count()
    known = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(count)
    return sorted(known)[:count]


def _appears(path: Path, patience_s: float) -> bool:
    until = time.monotonic() + patience_s
    while not path.is_file():
        if time.monotonic() > until:
            return False
        time.sleep(0.2)
    return True


@cache
def versions() -> dict[str, str]:
    """Return the versions and the code that results depend on, by name."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            found[name] = version(name).partition("+")[0]  # a CPU and a CUDA build may meet
        except PackageNotFoundError:
            found[name] = "not installed"
    return {**found, "sfuda-bench's code": _code_digest()[:12]}


def _code_digest() -> str:
    """Return a digest of the package's Python files, wherever they lie."""
    folders = {
        folder
        for name in ("sfuda_bench", "sfuda_bench.methods", "sfuda_bench.datasets")
        for folder in importlib.import_module(name).__path__
    }
    files = {path.resolve() for folder in folders for path in Path(folder).rglob("*.py")}
    return hashlib.sha256(
        "".join(sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)).encode()
    ).hexdigest()


def _unfit(ticket: Ticket, settings: WorkerSettings) -> dict[str, Any] | None:
    """Return why this machine, which may have joined late, must not compute the job."""
    wrong = different(ticket.code, versions())
    if not wrong and (Path(settings.out) / "store.json").is_file():
        return None
    what = "; ".join(wrong) or f"the store {settings.out} is not visible there"
    return refused(
        f"Dask worker {_dask_worker().address}: {what}",
        SAME,
    )


def different(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return what two descriptions of versions disagree about, in words."""
    return [
        f"{name} {found.get(name, 'missing')}, expected {value}"
        for name, value in expected.items()
        if found.get(name) != value
    ]


def refused(message: str, hint: str) -> dict[str, Any]:
    """Return the message of a job that met a problem of the machine."""
    return {
        "kind": "failed",
        "class": EnvironmentProblem.__name__,
        "message": message,
        "hint": hint,
        "exit_code": EnvironmentProblem.exit_code,
        "traceback": "",
    }

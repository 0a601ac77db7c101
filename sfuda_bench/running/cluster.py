"""Jobs on the workers of an existing dask.distributed scheduler; they share the store's folder.

The engine sees workers like those of one machine: a pipe that messages come through, a process
that lives or not. Behind each of them stand Dask tasks, one per job, which any Dask worker takes.
"""

from __future__ import annotations

import importlib
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.running.cluster_worker import (
    GPU,
    SAME,
    Ticket,
    describe,
    different,
    end_idle,
    kill_job,
    refused,
    run_job,
    versions,
)
from sfuda_bench.running.store import Store
from sfuda_bench.running.workers import WorkerSettings

if TYPE_CHECKING:
    from types import TracebackType

    from sfuda_bench.running.request import RunRequest

_CONNECT_S = 15.0
_WORKERS_S = 120.0  # a queueing system may need a moment to start the first worker
_CLOSE_S = 20.0
_LOST_AGAIN = 2  # times that a job is tried again which took every Dask worker with it
_KILLED = -9
_INSTALL = 'pip install "sfuda-bench[cluster]"'

Note = Callable[[str], None]


class Cluster:
    """A connection to a scheduler; makes the engine's workers. Leaving the context ends it.

    Args:
        address: E.g. ``tcp://host:8786``.
        out: The store, an absolute path that every worker sees.
        files: Further files that workers must see, e.g. plug-ins.
        device: ``auto``, ``cpu`` or ``cuda``. Workers that announce the Dask resource ``GPU`` make
            ``auto`` mean ``cuda``, and then only they are given jobs.
        note: Takes one line for the user.

    Raises:
        UsageError: The text is no address.
        EnvironmentProblem: ``distributed`` is not installed, the scheduler cannot be reached, has
            no workers, or a worker differs in its versions or does not see the store.
    """

    def __init__(
        self,
        address: str,
        out: Path,
        *,
        files: tuple[Path, ...] = (),
        device: str = "auto",
        note: Note = lambda text: None,
    ) -> None:
        self._note = note
        self._out = out
        self._topic = f"sfuda-bench-{uuid.uuid4().hex}"
        self._workers: dict[str, ClusterWorker] = {}
        self._warm = False
        self.client = _connect(address)
        try:
            described = self._describe(files)
            self.device = _device(device, sum(worker["gpus"] for worker in described))
        except BaseException:
            self.client.close(timeout=_CLOSE_S)
            raise
        on_gpus = self.device == "cuda"
        self._resources = {GPU: 1} if on_gpus else None
        counted = "gpus" if on_gpus else "threads"
        self.slots = sum(worker[counted] for worker in described)
        self.threads = threads_per_slot(described, counted)
        self.client.subscribe_topic(self._topic, self._hear)
        self.client.subscribe_topic("all", self._hear_scheduler)

    def worker(self, settings: WorkerSettings) -> ClusterWorker:
        """Return a worker for the engine: one more job that may run at once."""
        return ClusterWorker(self, settings)

    def submit(self, worker: ClusterWorker, job: dict[str, Any]) -> tuple[str, Any]:
        """Give a job to the scheduler; return the ticket's id and the future.

        Raises:
            EnvironmentProblem: The scheduler is gone.
        """
        self._warm = True
        ticket = Ticket(f"{job['kind']}-{uuid.uuid4().hex}", self._topic, versions())
        self._workers[ticket.id] = worker
        if self.client.status != "running":
            raise EnvironmentProblem(_GONE[0], hint=_GONE[1])
        future = self.client.submit(
            run_job,
            ticket,
            replace(worker.settings, device=self.device, threads=self.threads),
            job,
            key=ticket.id,
            pure=False,
            retries=0,
            resources=self._resources,
        )
        return ticket.id, future

    def busy(self) -> list[ClusterWorker]:
        """Return the workers whose jobs are on their way."""
        return list(self._workers.values())

    def forget(self, ticket_id: str) -> None:
        """Drop what still comes about a job."""
        self._workers.pop(ticket_id, None)

    def kill(self, ticket_id: str, where: str | None) -> None:
        """Kill the process that computes a job on a Dask worker; a lost one has none."""
        if where is not None:
            with suppress(Exception):
                self.client.run(kill_job, ticket_id, workers=[where], on_error="ignore")

    def end_idle(self) -> None:
        """End the idle processes of this store on all Dask workers: they hold memory."""
        if self._warm:
            self._warm = False
            with suppress(Exception):
                self.client.run(end_idle, str(self._out), on_error="ignore")

    def close(self) -> None:
        """End the idle processes of this store, and the connection."""
        self.end_idle()
        with suppress(Exception):
            self.client.close(timeout=_CLOSE_S)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _hear(self, event: tuple[float, Mapping[str, Any]]) -> None:
        _, told = event
        if (worker := self._workers.get(told["ticket"])) is not None:
            worker.hear(told["ticket"], told["message"])

    def _hear_scheduler(self, event: tuple[float, Any]) -> None:
        """Tell the workers whose Dask worker is gone; the scheduler gives their jobs to others."""
        _, told = event
        if isinstance(told, Mapping) and told.get("action") == "remove-worker":
            for worker in self.busy():
                worker.lost(str(told["worker"]))

    # -- are the machines fit? --------------------------------------------------------------

    def _describe(self, files: tuple[Path, ...]) -> list[dict[str, Any]]:
        """Return what each Dask worker says of itself, once all of them are found fit."""
        self._wait_for_workers()
        _check_dask(self.client.get_versions())
        Store.open(self._out)
        token = self._out / f".visible-{uuid.uuid4().hex}"
        token.touch()
        try:
            described: dict[str, dict[str, Any]] = self.client.run(
                describe, str(token), tuple(str(path) for path in files)
            )
        except ImportError as error:
            raise EnvironmentProblem(
                f"a Dask worker cannot import sfuda_bench: {error}",
                hint="start the workers in an environment with the same installation as here",
            ) from error
        finally:
            token.unlink()
        for address, found in described.items():
            _check_worker(address, found, self._out)
        return list(described.values())

    def _wait_for_workers(self) -> None:
        scheduler = self.client.scheduler.address
        if not self.client.nthreads():
            self._note(f"{scheduler} has no workers yet; waiting {_WORKERS_S:.0f} s for the first")
        try:
            self.client.wait_for_workers(1, timeout=_WORKERS_S)
        except TimeoutError as error:
            raise EnvironmentProblem(
                f"--cluster {scheduler}: the scheduler has no workers",
                hint=f"dask worker {scheduler} --nthreads 1",
            ) from error


_GONE = (
    "the Dask scheduler is gone; what was finished is kept",
    "start it and its workers again, then run the same command",
)


def threads_per_slot(described: Iterable[Mapping[str, Any]], counted: str) -> int:
    """Return the CPU threads of one job, the same everywhere: other threads, other last bits.

    Args:
        described: What the workers say of themselves; some may be on one host.
        counted: What makes a slot, ``"threads"`` or ``"gpus"``.

    Returns:
        The fewest cores per slot of any host, at least 1.
    """
    cores: dict[str, set[int]] = {}
    slots: dict[str, int] = {}
    for worker in described:
        if worker[counted]:
            host = worker["host"]
            cores[host] = cores.get(host, set()) | {*worker["cores"]}
            slots[host] = slots.get(host, 0) + worker[counted]
    return max(1, min(len(cores[host]) // slots[host] for host in slots))


class ClusterWorker:
    """A worker as the engine sees it, one job at a time; each job is a Dask task.

    The scheduler gives a job that is lost with its Dask worker to another one, as often as its
    setting ``distributed.scheduler.allowed-failures`` says, and we say so; the store's locks keep
    two workers from computing it at once. A job whose own process died over there is reported as
    gone, as on one machine.

    Args:
        cluster: Where jobs go.
        settings: What its processes are told; device and threads follow the machines.

    Attributes:
        job: The last job.
        where: Address of the Dask worker that has it, once one took it.
    """

    starts_at_once = False
    """Silence before the first message is no sign of trouble: a job may wait for a machine."""

    def __init__(self, cluster: Cluster, settings: WorkerSettings) -> None:
        self.settings = settings
        self.connection, self._sender = Pipe(duplex=False)
        self.process = RemoteProcess(self)
        self._cluster = cluster
        self._lock = threading.RLock()  # messages come from threads of the client
        self.job: dict[str, Any] = {}
        self.where: str | None = None
        self._ticket = ""
        self._future: Any = None
        self._lost = self._killed = 0

    def submit(self, job: dict[str, Any]) -> None:
        """Give the cluster a job; its messages follow on ``connection``."""
        if not self.process.is_alive():
            raise BrokenPipeError("this worker has ended")
        self.job, self._lost, self._killed = job, 0, 0
        self._start()

    def stop(self, *, force: bool = False) -> None:
        """End it; with ``force`` a running job is killed."""
        if force:
            self.process.kill()
        self._end(0)
        self.connection.close()
        self._cluster.end_idle()

    def kill(self) -> None:
        """Kill the running job, wherever it is."""
        with self._lock:
            ticket, future, where = self._ticket, self._future, self.where
            self._ticket = ""
        if ticket:
            self._cluster.forget(ticket)
            with suppress(Exception):
                future.cancel()
            self._cluster.kill(ticket, where)
        self._end(_KILLED)

    def hear(self, ticket: str, message: Mapping[str, Any]) -> None:
        """Pass on a message that came while a job is computed."""
        with self._lock:
            if ticket != self._ticket:
                return
            if message["kind"] == "placed":
                self._placed(message["worker"])
            else:
                self._send(message)

    def lost(self, where: str) -> None:
        """Hear that a Dask worker is gone; if it had the job, another one will get it."""
        with self._lock:
            if self.where == where:
                self.where = None
                self._lost += 1
                text = f"lost with Dask worker {where}; waits for another one"
                self._send({"kind": "waiting", "text": text})

    def _placed(self, where: str) -> None:
        if self.where is not None:
            self.lost(self.where)
        self.where = where

    def _start(self) -> None:
        with self._lock:
            self.where = None
            self._ticket, self._future = self._cluster.submit(self, self.job)
            self._future.add_done_callback(partial(self._finished, self._ticket))

    def _finished(self, ticket: str, future: Any) -> None:
        """Take the end of a Dask task, in a thread of the client."""
        self._cluster.forget(ticket)
        message, error = _outcome(future)  # asks the client's loop, which may wait for our lock
        with self._lock:
            if ticket != self._ticket:
                return  # killed
            self._ticket = ""
            if error is not None:
                self._broken(error)
            elif message["kind"] == "died":
                self._end(message["exit_code"])
            else:
                self._send(message)

    def _broken(self, error: BaseException) -> None:
        """Take the end of a task that returned nothing: its worker was lost, or unfit."""
        if not isinstance(error, _Lost):
            self._send(refused(f"a Dask worker cannot run jobs: {error!r}", SAME))
            return
        self._killed += 1
        if self.where is not None:  # the scheduler's word about it is still on its way
            self.lost(self.where)
        if max(self._lost, self._killed) > _LOST_AGAIN:
            self._send(_given_up(max(self._lost, self._killed)))
            return
        try:
            self._start()
        except EnvironmentProblem as problem:
            self._send(refused(problem.message, problem.hint or ""))

    def _send(self, message: Mapping[str, Any]) -> None:
        with suppress(OSError):  # the engine has left
            self._sender.send(dict(message))

    def _end(self, exitcode: int | None) -> None:
        """Let the engine find that this worker is gone."""
        with self._lock:
            if not self._sender.closed:
                self.process.exitcode = exitcode
                self._sender.close()

    @property
    def ended(self) -> bool:
        """Whether nothing will come through the connection any more."""
        return self._sender.closed


def _outcome(future: Any) -> tuple[dict[str, Any], BaseException | None]:
    """Return what a Dask task returned, or what it raised."""
    if future.status == "finished":
        with suppress(Exception):  # its worker is lost before the result was fetched
            return future.result(), None
        return {}, _Lost()
    if future.status == "error":
        error = future.exception()
        return {}, _Lost() if type(error).__name__ == "KilledWorker" else error
    return refused(*_GONE), None


def _given_up(workers: int) -> dict[str, Any]:
    """Return the message of a job that took several Dask workers with it."""
    return {
        "kind": "failed",
        "failure": "died",
        "class": "RuntimeError",
        "message": f"{workers} Dask workers were lost while they computed it",
        "hint": None,
        "exit_code": 1,
        "traceback": "",
        "recorded": False,
    }


class _Lost(Exception):  # noqa: N818  # not a mistake of anybody's
    """A job was lost with its Dask worker."""


class RemoteProcess:
    """Stands for the process that computes a worker's jobs on some machine."""

    def __init__(self, worker: ClusterWorker) -> None:
        self._worker = worker
        self.exitcode: int | None = None

    def is_alive(self) -> bool:
        """Whether the worker can still be given a job."""
        return not self._worker.ended

    def join(self, timeout: float | None = None) -> None:
        """Return at once: the engine only waits for what has ended."""

    def kill(self) -> None:
        """Kill the running job."""
        self._worker.kill()


# -- what a command does with a cluster -----------------------------------------------------------


class Placed(Protocol):
    """What a request and the flags of a study have in common."""

    @property
    def out(self) -> Path:
        """The store."""
        ...

    @property
    def data_root(self) -> Path | None:
        """Folder of domains."""
        ...

    @property
    def plugins(self) -> tuple[Path, ...]:
        """Files of plug-ins."""
        ...


def placement(asked: Placed, cluster: Cluster, jobs: int | None) -> dict[str, Any]:
    """Return the fields of a request that a cluster decides.

    Paths become absolute. Without ``jobs`` there are as many at once as the cluster has slots now;
    with it, fewer or more: those that find no machine wait at the scheduler for new ones. This
    machine plans; its own device does not matter.
    """
    return {
        "out": asked.out.resolve(),
        "data_root": asked.data_root and asked.data_root.resolve(),
        "plugins": tuple(path.resolve() for path in asked.plugins),
        "device": "cpu" if cluster.device == "cpu" else "auto",
        "jobs": jobs or cluster.slots,
        "gpus": (),
    }


def on_cluster(request: RunRequest, cluster: Cluster, jobs: int | None) -> RunRequest:
    """Return the request as a cluster computes it; ``auto`` precision follows its devices."""
    from sfuda_bench.running.runtime import resolve_precision

    precision = resolve_precision(request.settings.precision, cluster.device)
    settings = replace(request.settings, precision=precision)
    return replace(request, settings=settings, **placement(request, cluster, jobs))


# -- checks ---------------------------------------------------------------------------------------


def check_address(address: str) -> None:
    """Refuse what cannot be the address of a scheduler.

    Raises:
        UsageError: It has no scheme or no host.
    """
    scheme, _, rest = address.partition("://")
    if not scheme.isalnum() or not rest:
        raise UsageError(
            f"--cluster {address}: expected the address of a Dask scheduler",
            hint="--cluster tcp://HOST:8786",
        )


def _connect(address: str) -> Any:
    """Return a client of the scheduler."""
    check_address(address)
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise EnvironmentProblem(
            "--cluster needs the package 'distributed', which is not installed", hint=_INSTALL
        ) from error
    try:
        return distributed.Client(
            address, timeout=_CONNECT_S, set_as_default=False, name="sfuda-bench"
        )
    except (OSError, TimeoutError, ValueError) as error:
        raise EnvironmentProblem(
            f"--cluster {address}: no Dask scheduler answers there ({error})",
            hint="dask scheduler --port 8786, and check host, port and firewall",
        ) from error


def _device(asked: str, gpus: int) -> str:
    if asked == "cuda" and not gpus:
        raise EnvironmentProblem(
            f"--cluster with --device cuda: no worker announces the Dask resource {GPU}",
            hint=f'dask worker tcp://HOST:8786 --nthreads 1 --resources "{GPU}=1"',
        )
    return "cuda" if gpus and asked != "cpu" else "cpu"


def _check_dask(found: Mapping[str, Any]) -> None:
    """Refuse a scheduler or worker whose Dask or Python cannot talk to ours safely."""
    ours = _dask_versions(found["client"])
    others = {"the scheduler": found["scheduler"], **found["workers"]}
    for name, other in others.items():
        if wrong := different(ours, _dask_versions(other)):
            raise EnvironmentProblem(f"--cluster: {name} has {'; '.join(wrong)}", hint=SAME)


def _dask_versions(found: Mapping[str, Any]) -> dict[str, str]:
    python = ".".join(str(found["packages"]["python"]).split(".")[:2])
    return {"python": python, "distributed": str(found["packages"]["distributed"])}


def _check_worker(address: str, found: Mapping[str, Any], out: Path) -> None:
    where = f"--cluster: Dask worker {address}"
    if wrong := different(versions(), found["versions"]):
        raise EnvironmentProblem(f"{where} has {'; '.join(wrong)}", hint=SAME)
    if not found["sees_store"]:
        raise EnvironmentProblem(
            f"{where} does not see the store {out}",
            hint="choose a folder of a shared file system for --out",
        )
    if found["missing"]:
        raise EnvironmentProblem(
            f"{where} does not see {', '.join(found['missing'])}",
            hint="put plug-in files on the shared file system too",
        )

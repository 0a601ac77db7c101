"""Worker processes that outlive one plan: a study starts them once for all of its trials."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from sfuda_bench.running.workers import Worker, WorkerSettings

if TYPE_CHECKING:
    from types import TracebackType

    from sfuda_bench.running.engine import Job


class ProcessLike(Protocol):
    """What is asked of a worker's process."""

    def is_alive(self) -> bool:
        """Whether it can still be given a job."""
        ...

    @property
    def exitcode(self) -> int | None:
        """Exit code, ``-N`` after signal N, ``None`` while it lives."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...


class WorkerLike(Protocol):
    """What the engine asks of a worker, wherever its process runs.

    Its ``connection`` is anything that :func:`multiprocessing.connection.wait` takes. ``recv()``
    returns messages, dictionaries with ``kind``:

    - ``started``: the job begins to be computed (``--timeout`` counts from the first message);
    - ``alive``: it computes, or waits for what another process computes;
    - ``waiting``: its machine was lost, another one will start it again; ``text`` says so;
    - ``progress``: ``stage``, ``epoch``, ``epochs``;
    - ``done``: ``status`` (``computed``, ``reused`` or ``busy``), ``restart`` (why the process
      must not be given another job, or ``None``);
    - ``failed``: see :func:`sfuda_bench.running.workers.failed_message`.

    It raises EOFError when the worker is gone. A worker may have ``stack() -> str``, which says
    where its process is or was in the code.
    """

    settings: WorkerSettings

    @property
    def connection(self) -> Any:
        """What messages come through."""
        ...

    @property
    def process(self) -> ProcessLike:
        """Its process."""
        ...

    def submit(self, job: dict[str, Any]) -> None:
        """Give it one job; OSError when it is gone."""
        ...

    def stop(self, *, force: bool = False) -> None:
        """End it and whatever its jobs have started: after the running job, or at once."""
        ...


MakeWorker = Callable[[WorkerSettings], WorkerLike]


@dataclass
class Slot:
    """A share of the machine: at most one running job, one worker per role.

    Attributes:
        make_worker: Starts a worker.
        gpu: What its workers see of the GPUs, as ``CUDA_VISIBLE_DEVICES``; ``None``: everything.
        workers: Role to worker.
        job: What runs.
        worker: Where it runs.
        since: When the first message about the job came (monotonic seconds), if one came.
        heard: When the last message came, or when the job was handed over.
    """

    make_worker: MakeWorker = Worker
    gpu: str | None = None
    workers: dict[str, WorkerLike] = field(default_factory=dict)
    job: Job | None = None
    worker: WorkerLike | None = None
    since: float | None = None
    heard: float = 0.0

    def ready(self, settings: WorkerSettings) -> WorkerLike:
        """Return a living worker with these settings; one that has others is replaced."""
        worker = self.workers.get(settings.role)
        if worker is not None and (worker.settings != settings or not worker.process.is_alive()):
            self.workers.pop(settings.role).stop(force=not worker.process.is_alive())
            worker = None
        if worker is None:
            worker = self.workers[settings.role] = self.make_worker(settings)
        return worker

    def drop(self, worker: WorkerLike) -> None:
        """Forget a worker that is gone."""
        self.workers = {role: other for role, other in self.workers.items() if other is not worker}

    def stop(self, *, force: bool = False) -> None:
        """End the slot's workers."""
        workers, self.workers = self.workers, {}
        for worker in workers.values():
            worker.stop(force=force)


class WorkerPool:
    """Slots and their workers; leaving the context ends the processes.

    Args:
        make_worker: Starts a worker; by default a process on this machine.
    """

    def __init__(self, make_worker: MakeWorker = Worker) -> None:
        self._make_worker = make_worker
        self._slots: list[Slot] = []

    def slots(self, count: int, gpus: Sequence[str] = ()) -> list[Slot]:
        """Return the first ``count`` slots, whose workers start when they are needed.

        Args:
            count: How many jobs may run at once.
            gpus: ``CUDA_VISIBLE_DEVICES`` of the slots, dealt out in turn.
        """
        self._slots += [Slot(self._make_worker) for _ in range(count - len(self._slots))]
        for number, slot in enumerate(self._slots[:count]):
            slot.gpu = gpus[number % len(gpus)] if gpus else None
        return self._slots[:count]

    def stop(self, *, force: bool = False) -> None:
        """End all worker processes; the pool can be used again."""
        slots, self._slots = self._slots, []
        if force:  # all of them before any is waited for: a second interrupt finds nothing alive
            for slot in slots:
                for worker in slot.workers.values():
                    worker.process.kill()
        for slot in slots:
            slot.stop(force=force)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(force=error is not None)

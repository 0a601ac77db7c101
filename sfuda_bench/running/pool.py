"""Worker processes that outlive one plan: a study starts them once for all of its trials."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sfuda_bench.running.workers import Worker, WorkerSettings

if TYPE_CHECKING:
    from types import TracebackType

    from sfuda_bench.running.engine import Job


@dataclass
class Slot:
    """A share of the machine: at most one running job, one worker per role."""

    workers: dict[str, Worker] = field(default_factory=dict)
    job: Job | None = None
    worker: Worker | None = None

    def ready(self, settings: WorkerSettings) -> Worker:
        """Return a living worker with these settings; one that has others is replaced."""
        worker = self.workers.get(settings.role)
        if worker is not None and (worker.settings != settings or not worker.process.is_alive()):
            self.workers.pop(settings.role).stop(force=not worker.process.is_alive())
            worker = None
        if worker is None:
            worker = self.workers[settings.role] = Worker(settings)
        return worker

    def drop(self, worker: Worker) -> None:
        """Forget a worker that is gone."""
        self.workers = {role: other for role, other in self.workers.items() if other is not worker}


class WorkerPool:
    """Slots and their workers; leaving the context ends the processes."""

    def __init__(self) -> None:
        self._slots: list[Slot] = []

    def slots(self, count: int) -> list[Slot]:
        """Return the first ``count`` slots, whose workers start when they are needed."""
        self._slots += [Slot() for _ in range(count - len(self._slots))]
        return self._slots[:count]

    def stop(self, *, force: bool = False) -> None:
        """End all worker processes; the pool can be used again."""
        for slot in self._slots:
            for worker in slot.workers.values():
                worker.stop(force=force)
        self._slots = []

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(force=error is not None)

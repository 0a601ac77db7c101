"""Where results come from: a bench per condition, each result computed when it is first asked for.

Cells run in the process of the caller, or, as a run would do it, in adapt workers that can open
no mask.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol

from sfuda_bench.contract.bench import UNADAPTED, Bench, Outcome, Stopped
from sfuda_bench.contract.conditions import INTERRUPTED, PLAIN, Condition
from sfuda_bench.contract.interruption import STAND_INS, stand_in_job
from sfuda_bench.errors import CheckFailed
from sfuda_bench.running.plan import CellPlan, Plan
from sfuda_bench.running.store import Store
from sfuda_bench.running.workers import Worker, WorkerSettings

_WORKERS_KEPT = 2


class Broken(CheckFailed):
    """An invariant does not hold; the message says what was seen."""


class Compute(Protocol):
    """Computes the cells of a plan.

    Attributes:
        left: What methods left behind in their process, by name; such a process gets no more cells.
        shared: Whether all benches share one process.
    """

    left: dict[str, str]
    shared: bool

    def __call__(self, bench: Bench, plan: Plan) -> None:
        """Compute the cells of a plan."""
        ...

    def interrupt(self, bench: Bench, plan: Plan) -> None:
        """Compute the only cell of a plan until its second epoch begins."""
        ...


class InProcess:
    """Computes cells in this process: fast, and without a firewall."""

    shared = True

    def __init__(self) -> None:
        self.left: dict[str, str] = {}

    def __call__(self, bench: Bench, plan: Plan) -> None:
        """Compute the cells of a plan, then their scores."""
        bench.compute(plan)

    def interrupt(self, bench: Bench, plan: Plan) -> None:
        """Compute the only cell of a plan until its second epoch begins."""
        bench.interrupt(plan.cells[0].job, "adapting", 2)


@dataclass
class Laboratory:
    """Results of methods under conditions.

    Args:
        trained: A bench with source models; it stays as it is.
        folder: Where its changed copies go.
        compute: Computes the cells of a plan.
    """

    trained: Bench
    folder: Path
    compute: Compute = field(default_factory=InProcess)
    _benches: dict[str, Bench] = field(default_factory=dict)
    _results: dict[tuple[Any, ...], Outcome] = field(default_factory=dict)
    _fresh_seeds: Iterator[int] = field(default_factory=lambda: count(100))

    def bench(self, condition: Condition) -> Bench:
        """Return the bench of a condition."""
        if condition.name not in self._benches:
            bench = self.trained.copy_to(self.folder / f"bench-{len(self._benches)}")
            condition.change(bench)
            self._benches[condition.name] = bench
        return self._benches[condition.name]

    def result(
        self,
        condition: Condition,
        method: str,
        *,
        protocol: str | None = None,
        seed: int = 0,
        overrides: Sequence[str] = (),
    ) -> Outcome:
        """Return the result of a method under a condition.

        Raises:
            Broken: Its worker died, hung, or could not compute it.
        """
        asked = (condition.name, method, protocol, seed, *overrides)
        if asked not in self._results:
            bench = self.bench(condition)
            plan = bench.plan(
                method,
                overrides=overrides,
                protocol=protocol,
                seeds=(seed,),
                record=condition.record,
            )
            self.compute(bench, plan)
            self._results[asked] = bench.outcome(plan)
        return self._results[asked]

    def resumed(self, method: str, *, overrides: Sequence[str] = ()) -> Outcome | None:
        """Return the result of a method that is stopped as its second epoch begins, and goes on.

        Returns:
            ``None`` if it left nothing to go on from.

        Raises:
            Broken: Its worker died, hung, or could not compute it.
        """
        bench = self.bench(INTERRUPTED)
        plan = bench.plan(method, overrides=overrides, checkpoint_every=0.0)
        self.compute.interrupt(bench, plan)
        attempt = Store.open(bench.out).attempt(plan.cells[0].key)
        if not any(attempt.glob("checkpoint/*")):
            return None
        self.compute(bench, plan)
        return bench.outcome(plan)

    def unadapted(self, condition: Condition = PLAIN) -> Outcome:
        """Return the result of the source model itself."""
        return self.result(condition, UNADAPTED)

    def unadapted_after(self, condition: Condition, method: str) -> Outcome:
        """Return the result of the source model, computed by a process that has run a method."""
        bench, seed = self.bench(condition), next(self._fresh_seeds)
        if not self.compute.shared:
            self.compute(bench, bench.plan(method, seeds=(seed,)))
        return self.result(condition, UNADAPTED, seed=seed)


class _QuickWorker(Worker):
    """A worker that starts in a fraction of a second: its server has imported torch already."""

    start_method = "forkserver"


class Workers:
    """Computes cells in worker processes, each with the firewall of its role.

    Every bench has its own processes, so that nothing which a method remembers reaches the cells
    of another condition.

    Args:
        timeout: Seconds that one cell may take.
    """

    shared = False

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.left: dict[str, str] = {}
        multiprocessing.set_forkserver_preload(["sfuda_bench.running.jobs"])
        self._workers: dict[WorkerSettings, Worker] = {}

    def __call__(self, bench: Bench, plan: Plan) -> None:
        """Compute the cells of a plan, then their scores in this process.

        Raises:
            Broken: A cell failed.
        """
        for cell in plan.cells:
            if cell.state != "done":
                self._compute(bench, plan, cell)
        bench.compute(plan)

    def interrupt(self, bench: Bench, plan: Plan) -> None:
        """Compute the only cell of a plan until its second epoch begins, and end the process.

        Raises:
            Broken: The cell failed before.
        """
        (cell,) = plan.cells
        stand_ins = replace(bench, plugins=(*bench.plugins, STAND_INS))
        worker = self._worker(stand_ins, plan, cell.role)
        message = self._ask(worker, cell, stand_in_job(cell.job))
        self._drop(worker)
        if message["kind"] == "failed" and message["class"] != Stopped.__name__:
            raise Broken(_failure(message))

    def _compute(self, bench: Bench, plan: Plan, cell: CellPlan) -> None:
        message = self._ask(self._worker(bench, plan, cell.role), cell, cell.job)
        if message["kind"] == "failed":
            raise Broken(_failure(message))

    def _ask(self, worker: Worker, cell: CellPlan, job: Mapping[str, Any]) -> dict[str, Any]:
        """Have a job of a cell computed and return the last message about it."""
        try:
            worker.submit(dict(job))
            message = self._answer(worker, cell.method)
        except (EOFError, OSError) as error:
            worker.process.join(timeout=5)
            code = worker.process.exitcode
            self._drop(worker)
            raise Broken(f"its process died (exit code {code})") from error
        if message.get("restart"):
            self.left[cell.method] = message["restart"]
            self._drop(worker)
        return message

    def _answer(self, worker: Worker, method: str) -> dict[str, Any]:
        deadline = monotonic() + self.timeout
        while worker.connection.poll(max(0.0, deadline - monotonic())):
            message: dict[str, Any] = worker.connection.recv()
            if message["kind"] in ("done", "failed"):
                return message
        self._drop(worker)
        raise Broken(f"'{method}' was not done after {self.timeout:g} s")

    def _worker(self, bench: Bench, plan: Plan, role: str) -> Worker:
        settings = WorkerSettings(
            role=role,
            out=str(bench.out),
            device="cpu",
            threads=1,
            plugins=tuple(str(path) for path in bench.plugins),
            forbidden=tuple(str(folder) for folder in plan.forbidden),
        )
        if settings not in self._workers:
            while len(self._workers) >= _WORKERS_KEPT:
                self._drop(next(iter(self._workers.values())))
            self._workers[settings] = _QuickWorker(settings)
        self._workers[settings] = self._workers.pop(settings)  # used last, dropped last
        return self._workers[settings]

    def _drop(self, worker: Worker) -> None:
        if self._workers.get(worker.settings) is worker:
            del self._workers[worker.settings]
            worker.stop(force=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in list(self._workers.values()):
            self._drop(worker)


def _failure(message: Mapping[str, Any]) -> str:
    return f"{message['class']}: {message['message']}"

"""Running a plan: a few workers, one job each, in the order of what depends on what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from sfuda_bench.errors import DataError, EnvironmentProblem
from sfuda_bench.running.jobs import SCORING, describe_failure
from sfuda_bench.running.plan import (
    CellPlan,
    Plan,
    SourcePlan,
    check_disk,
    record_plan,
    scoring_todo,
)
from sfuda_bench.running.pool import Slot, WorkerPool
from sfuda_bench.running.store import read_json, write_json
from sfuda_bench.running.workers import WorkerSettings

_BUSY_PAUSE = 0.5  # seconds before asking again for a key that another process computes


class ProgressSink(Protocol):
    """What the engine tells about; see :class:`sfuda_bench.progress.Progress`."""

    def start(self, cells: list[tuple[str, str, str]]) -> None:
        """Announce (id, method or 'source model', pair or domain)."""
        ...

    def update(self, id: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """Report a stage and an epoch of an announced id."""
        ...

    def done(self, id: str, seconds: float, reused: bool = False) -> None:
        """Report that an id is finished."""
        ...

    def failed(self, id: str, message: str) -> None:
        """Report that an id failed."""
        ...

    def note(self, text: str) -> None:
        """Print one line."""
        ...


@dataclass(frozen=True)
class RunSummary:
    """What a run did: numbers of cells, and where they are."""

    cells: int
    computed: int
    reused: int
    failed: int
    out: Path

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``run --json`` prints."""
        return {
            "cells": self.cells,
            "computed": self.computed,
            "reused": self.reused,
            "failed": self.failed,
            "out": str(self.out),
        }


@dataclass
class Job:
    """One unit of work in the parent's queue."""

    id: str
    role: str
    payload: dict[str, Any]
    needs: str = ""
    cell: CellPlan | None = None
    started: float = 0.0
    not_before: float = 0.0


def execute(
    plan: Plan, progress: ProgressSink, pool: WorkerPool | None = None, *, remember: bool = True
) -> RunSummary:
    """Compute what a plan lacks and score it; a failing cell never stops the others.

    Args:
        plan: What is asked.
        progress: Where progress goes.
        pool: Workers that live on after this call; by default they end with it.
        remember: Make the plan the one that tables and ``status`` show.

    Raises:
        KeyboardInterrupt: After the workers are stopped; what was committed stays.
        DataError: No cell can run, because masks that source models need are missing.
        EnvironmentProblem: A problem of the machine that no cell could survive.
    """
    if plan.cells and all(cell.state == "blocked" for cell in plan.cells):
        raise DataError(plan.cells[0].reason, hint="sfuda-bench data verify --data-root DIR")
    check_disk(plan)
    if remember:
        record_plan(plan)
    return _Engine(plan, progress, pool).run()


class _Engine:
    def __init__(self, plan: Plan, progress: ProgressSink, pool: WorkerPool | None = None) -> None:
        self.plan = plan
        self.progress = progress
        self.pool = pool or WorkerPool()
        self.keep_workers = pool is not None
        self.slots = self.pool.slots(max(1, plan.request.jobs))
        self.queue: list[Job] = []
        self.unfinished: set[str] = set()
        self.broken: dict[str, str] = {}
        self.status: dict[str, str] = {}

    def run(self) -> RunSummary:
        self._enqueue()
        self._drain()
        return self._summary()

    def train_sources(self) -> RunSummary:
        """Train every missing source model of the plan, whether a cell waits for it or not."""
        sources = [source for source in self.plan.sources if not source.done]
        self.queue = [_source_job(source) for source in sources if not source.blocked]
        self.unfinished = {job.id for job in self.queue}
        self.progress.start([(_source_id(s), "source model", s.domain) for s in sources])
        for source in sources:
            if source.blocked:
                self.broken[_source_id(source)] = source.blocked
                self.progress.failed(_source_id(source), source.blocked)
        self._drain()
        return RunSummary(
            cells=len(self.plan.sources),
            computed=len(sources) - len(self.broken),
            reused=len(self.plan.sources) - len(sources),
            failed=len(self.broken),
            out=self.plan.request.out,
        )

    def _drain(self) -> None:
        """Work until the queue is empty; stop the workers whatever happens."""
        try:
            while self.queue or any(slot.job for slot in self.slots):
                self._dispatch()
                self._listen()
        except BaseException:
            self.pool.stop(force=True)
            raise
        if not self.keep_workers:
            self.pool.stop()

    # -- the queue --------------------------------------------------------------------------

    def _enqueue(self) -> None:
        announced: list[tuple[str, str, str]] = []
        needed = [s for s in self.plan.sources if not s.done and not s.blocked]
        wanted = {cell.source.key for cell in self.plan.cells if cell.state == "todo"}
        for source in needed:
            if source.key in wanted:
                announced.append((_source_id(source), "source model", source.domain))
                self.queue.append(_source_job(source))
        self.unfinished = {job.id for job in self.queue}
        for cell in self.plan.cells:
            announced.append((cell.key, cell.method, str(cell.pair)))
            if cell.state == "todo":
                needs = _source_id(cell.source)
                self.queue.append(Job(cell.key, cell.role, dict(cell.job), needs, cell))
        self.progress.start(announced)
        for cell in self.plan.cells:
            if cell.state == "done":
                self._cell_stored(cell, "reused", 0.0)
            elif cell.state == "blocked":
                self._cell_failed(cell, cell.reason)

    def _next(self) -> Job | None:
        now = monotonic()
        for position, job in enumerate(self.queue):
            if job.needs not in self.unfinished and job.not_before <= now:
                return self.queue.pop(position)
        return None

    def _dispatch(self) -> None:
        for slot in self.slots:
            while slot.job is None and (job := self._next()) is not None:
                if job.needs in self.broken:
                    self._fail(job, f"its source model failed: {self.broken[job.needs]}")
                    continue
                job.started = job.started or monotonic()
                self._submit(slot, job)

    def _submit(self, slot: Slot, job: Job) -> None:
        """Hand a job to the slot's worker."""
        slot.worker, slot.job = slot.ready(self.settings_of(job.role)), job
        try:
            slot.worker.submit(job.payload)
        except OSError:  # it died this instant
            self._worker_died(slot)

    def settings_of(self, role: str) -> WorkerSettings:
        """Return what a worker of this run is told."""
        request = self.plan.request
        return WorkerSettings(
            role=role,
            out=str(request.out),
            device=request.device,
            threads=max(1, _cores() // len(self.slots)),
            plugins=tuple(str(path) for path in request.plugins),
            forbidden=tuple(str(folder) for folder in self.plan.forbidden),
        )

    # -- messages ---------------------------------------------------------------------------

    def _listen(self) -> None:
        running = {slot.worker.connection: slot for slot in self.slots if slot.job and slot.worker}
        if not running:
            if self.queue:
                sleep(_BUSY_PAUSE)
            return
        for connection in wait(list(running), timeout=_BUSY_PAUSE):
            slot = running[connection]  # type: ignore[index]  # wait returns what it was given
            try:
                message = slot.worker.connection.recv()  # type: ignore[union-attr]  # running
            except (EOFError, OSError):
                self._worker_died(slot)
                continue
            self._handle(slot, message)

    def _handle(self, slot: Slot, message: Mapping[str, Any]) -> None:
        job = slot.job
        if job is None:
            return
        if message["kind"] == "progress":
            if job.payload["kind"] not in SCORING:
                self.progress.update(job.id, message["stage"], message["epoch"], message["epochs"])
            return
        slot.job = None
        if message["kind"] == "failed":
            self._failed_in_worker(job, message)
        elif message["status"] == "busy":
            job.not_before = monotonic() + _BUSY_PAUSE
            self.queue.append(job)
        else:
            self._done(job, message["status"])

    def _worker_died(self, slot: Slot) -> None:
        """Record the loss, drop the worker (a new one starts when needed) and go on."""
        job, worker = slot.job, slot.worker
        slot.job = slot.worker = None
        if worker is not None:
            slot.drop(worker)
            worker.process.join(timeout=5)
            code = worker.process.exitcode
            worker.stop(force=True)
            if job is not None:
                error = RuntimeError(f"the worker process died (exit code {code})")
                if job.payload["kind"] not in SCORING:
                    attempt = self.plan.store.attempt(job.payload["key"])
                    write_json(attempt / "error.json", describe_failure(job.payload, error))
                self._fail(job, str(error))

    def _failed_in_worker(self, job: Job, message: Mapping[str, Any]) -> None:
        text = message["message"]
        if message["class"] not in ("UsageError", "DataError", "StoreSchemaError"):
            text = f"{message['class']}: {text}"
        if message["hint"]:
            text = f"{text} ({message['hint']})"
        if message["exit_code"] == EnvironmentProblem.exit_code:
            raise EnvironmentProblem(message["message"], hint=message["hint"])
        self._fail(job, text)

    def _fail(self, job: Job, text: str) -> None:
        if job.cell is None:
            self.broken[job.id] = text
            self.unfinished.discard(job.id)
            self.progress.failed(job.id, text)
        else:
            self._cell_failed(job.cell, text)

    def _cell_failed(self, cell: CellPlan, text: str) -> None:
        self.status[cell.key] = "failed"
        self.progress.failed(cell.key, f"{cell.name}: {text}")

    def _done(self, job: Job, status: str) -> None:
        seconds = monotonic() - job.started
        if job.cell is None:
            self.unfinished.discard(job.id)
            self.progress.done(job.id, seconds, reused=status == "reused")
        elif job.payload["kind"] not in SCORING:
            self._cell_stored(job.cell, status, seconds)

    def _cell_stored(self, cell: CellPlan, status: str, seconds: float) -> None:
        """Queue the missing scores of a committed cell, before anything else."""
        self.status[cell.key] = status
        jobs = [Job(cell.key, "label", dict(job), cell=cell) for job in scoring_todo(cell)]
        self.queue[:0] = jobs
        if status == "computed":
            for warning in read_json(cell.folder / "run.json").get("warnings", []):
                self.progress.note(f"{cell.name}: warning: {warning}")
        if not cell.scoring:
            self.progress.note(f"{cell.name}: stored without scores, the test split has no masks")
        self.progress.done(cell.key, seconds, reused=status == "reused")

    # -- the end ----------------------------------------------------------------------------

    def _summary(self) -> RunSummary:
        values = [self.status.get(cell.key, "failed") for cell in self.plan.cells]
        return RunSummary(
            cells=len(values),
            computed=values.count("computed"),
            reused=values.count("reused"),
            failed=values.count("failed"),
            out=self.plan.request.out,
        )


def _cores() -> int:
    """Return how many cores this process may use; a scheduler may have granted fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _source_id(source: SourcePlan) -> str:
    return f"source:{source.key}"


def _source_job(source: SourcePlan) -> Job:
    return Job(_source_id(source), "label", dict(source.job))


def train_sources(plan: Plan, progress: ProgressSink) -> RunSummary:
    """Train the source models that a plan names, and nothing else."""
    return _Engine(plan, progress).train_sources()

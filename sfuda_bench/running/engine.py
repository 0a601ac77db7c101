"""Running a plan: a few workers, one job each, in the order of what depends on what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Protocol

from sfuda_bench.errors import DataError, EnvironmentProblem
from sfuda_bench.running.failures import BLOCKED, Failure, OnError, attempts, record_failure
from sfuda_bench.running.jobs import SCORING
from sfuda_bench.running.plan import (
    CellPlan,
    Plan,
    SourcePlan,
    check_disk,
    record_plan,
    scoring_todo,
)
from sfuda_bench.running.pool import Slot, WorkerLike, WorkerPool
from sfuda_bench.running.runtime import visible_gpus
from sfuda_bench.running.store import read_json
from sfuda_bench.running.trace import begin_run
from sfuda_bench.running.workers import WorkerSettings

_BUSY_PAUSE = 0.5  # seconds before asking again for a key that another process computes
_STOPPED_SECONDS = 10.0  # a longer gap means that this process itself was stopped
_BEATS = 4  # signs of life in the time after which a silent process is killed
_SLOWEST_BEAT = 5.0  # seconds


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
    """What a run did: numbers of cells, and where they are.

    Attributes:
        cells: How many were asked for.
        computed: How many were computed.
        reused: How many were stored already.
        failed: All others.
        out: The store.
        failures: For each that was not held back: ``cell``, ``key``, ``failure``, ``message``,
            ``attempts``, ``log`` (relative to the store).
        not_run: How many of ``failed`` were not tried, because of ``--on-error stop``.
    """

    cells: int
    computed: int
    reused: int
    failed: int
    out: Path
    failures: tuple[Mapping[str, Any], ...] = ()
    not_run: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``run --json`` prints."""
        return {
            "cells": self.cells,
            "computed": self.computed,
            "reused": self.reused,
            "failed": self.failed,
            "not_run": self.not_run,
            "failures": [dict(failure) for failure in self.failures],
            "out": str(self.out),
        }


@dataclass
class Job:
    """One unit of work in the parent's queue.

    Attributes:
        id: Key of a cell, or what stands for a source model.
        role: Of the worker that it needs.
        payload: What the worker is told.
        needs: Id of the job that must be done before.
        cell: The cell, unless it is a source model.
        started: When its first attempt began, in monotonic seconds; 0 before.
        not_before: When to try it again.
        retries: How often it was tried again because ``--on-error`` says so.
        alone: Whether nothing else may run beside it, since memory ran out.
    """

    id: str
    role: str
    payload: dict[str, Any]
    needs: str = ""
    cell: CellPlan | None = None
    started: float = 0.0
    not_before: float = 0.0
    retries: int = 0
    alone: bool = False

    @property
    def scores(self) -> bool:
        """Whether it scores a stored cell."""
        return self.payload["kind"] in SCORING


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
        request = plan.request
        self.plan = plan
        self.progress = progress
        self.on_error = OnError.parse(request.on_error)
        self.pool = pool or WorkerPool()
        self.keep_workers = pool is not None
        gpus = visible_gpus(request.gpus, request.device)
        self.slots = self.pool.slots(request.at_once, gpus)
        self.queue: list[Job] = []
        self.unfinished: set[str] = set()
        self.broken: dict[str, Failure] = {}
        self.status: dict[str, str] = {}
        self.failures: list[Mapping[str, Any]] = []
        self.stopped = False
        self.not_run: set[str] = set()
        self.looked = monotonic()

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
                self._fail(_source_job(source), _blocked(source.blocked))
        self._drain()
        failed = len(self.broken) + len(self.not_run)
        return RunSummary(
            cells=len(self.plan.sources),
            computed=len(sources) - failed,
            reused=len(self.plan.sources) - len(sources),
            failed=failed,
            out=self.plan.request.out,
            failures=tuple(self.failures),
            not_run=len(self.not_run),
        )

    def _drain(self) -> None:
        """Work until the queue is empty; stop the workers whatever happens."""
        begin_run(self.plan.store.root)
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
                job = Job(cell.key, cell.role, dict(cell.job), cell=cell)
                self._fail(job, _blocked(cell.reason))

    def _next(self) -> Job | None:
        """Take the first job that can start now; one that must be alone comes after all others."""
        running = [slot.job for slot in self.slots if slot.job is not None]
        if any(job.alone for job in running):
            return None
        now = monotonic()
        ready = [j for j in self.queue if j.needs not in self.unfinished and j.not_before <= now]
        together = [job for job in ready if not job.alone]
        chosen = together or ([] if running else ready)
        if not chosen:
            return None
        self.queue.remove(chosen[0])
        return chosen[0]

    def _dispatch(self) -> None:
        for slot in self.slots:
            while slot.job is None and (job := self._next()) is not None:
                if (cause := self.broken.get(job.needs)) is not None:
                    self._fail(job, replace(cause, text=f"its source model failed: {cause.text}"))
                    continue
                job.started = job.started or monotonic()
                self._submit(slot, job)

    def _submit(self, slot: Slot, job: Job) -> None:
        """Hand a job to the slot's worker."""
        if job.alone:
            for other in self.slots:  # idle workers hold memory, too
                other.stop()
        slot.worker, slot.job = slot.ready(self.settings_of(job.role, slot.gpu)), job
        slot.since, slot.heard = None, monotonic()
        try:
            slot.worker.submit(job.payload)
        except OSError:  # it died this instant
            self._worker_died(slot)

    def settings_of(self, role: str, gpu: str | None = None) -> WorkerSettings:
        """Return what a worker of this run is told."""
        request = self.plan.request
        beat = min(_SLOWEST_BEAT, request.hang_after / _BEATS or _SLOWEST_BEAT)
        return WorkerSettings(
            role=role,
            out=str(request.out),
            device=request.device if gpu is None else "cuda",
            threads=max(1, _cores() // len(self.slots)),
            plugins=tuple(str(path) for path in request.plugins),
            forbidden=tuple(str(folder) for folder in self.plan.forbidden),
            gpu=gpu,
            beat_seconds=beat,
        )

    # -- messages ---------------------------------------------------------------------------

    def _listen(self) -> None:
        running = {slot.worker.connection: slot for slot in self.slots if slot.job and slot.worker}
        if not running:
            if self.queue:
                sleep(_BUSY_PAUSE)
            return
        for connection in wait(list(running), timeout=_BUSY_PAUSE):
            slot = running[connection]
            try:
                message = slot.worker.connection.recv()  # type: ignore[union-attr]  # running
            except (EOFError, OSError):
                self._worker_died(slot)
                continue
            self._handle(slot, message)
        self._end_the_late()

    def _handle(self, slot: Slot, message: Mapping[str, Any]) -> None:
        job, worker = slot.job, slot.worker
        if job is None or worker is None:
            return
        slot.heard = monotonic()
        if message["kind"] in ("started", "progress"):
            slot.since = slot.since or slot.heard
        if message["kind"] == "waiting":
            slot.since = None
            self.progress.note(f"{self._name(job)}: {message['text']}")
        if message["kind"] == "progress" and not job.scores:
            self.progress.update(job.id, message["stage"], message["epoch"], message["epochs"])
        if message["kind"] not in ("done", "failed"):
            return
        slot.job = slot.worker = None
        restart = message.get("restart")
        if restart or message.get("failure") == "oom":  # what ran out of memory may still hold it
            slot.drop(worker)
            worker.stop(force=True)
        if restart:
            self.progress.note(f"{self._name(job)}: a new worker process starts: {restart}")
        if message["kind"] == "failed":
            self._failed_in_worker(job, message)
        elif message["status"] != "busy":
            self._done(job, message["status"])
        elif not self._held_back(job):
            job.not_before = monotonic() + _BUSY_PAUSE
            self.queue.append(job)

    def _end_the_late(self) -> None:
        """Kill workers that have computed for too long, or have been silent for too long."""
        now, request = monotonic(), self.plan.request
        gap, self.looked = now - self.looked, now
        for slot in self.slots:
            job, worker = slot.job, slot.worker
            if job is None or worker is None:
                continue
            if gap > _STOPPED_SECONDS:  # nobody listened in the meantime
                slot.heard += gap
                slot.since = slot.since and slot.since + gap
            if wait([worker.connection], timeout=0):
                continue  # it has something to say
            ran = 0.0 if slot.since is None or job.scores else now - slot.since
            begun = slot.since is not None or getattr(worker, "starts_at_once", False)
            if request.timeout and ran > request.timeout:
                text = f"not finished after {request.timeout:g} s (--timeout)"
                self._kill(slot, Failure("timeout", text))
            elif request.hang_after and begun and now - slot.heard > request.hang_after:
                text = f"no sign of life for {request.hang_after:g} s (--hang-after)"
                self._kill(slot, Failure("hung", text))

    def _kill(self, slot: Slot, failure: Failure) -> None:
        """End a worker whose job is given up; first it is asked where in the code it is."""
        job, worker = slot.job, slot.worker
        slot.job = slot.worker = None
        if job is not None and worker is not None:
            stack = _stack_of(worker)
            slot.drop(worker)
            worker.stop(force=True)
            self._lost(job, failure, stack)

    def _worker_died(self, slot: Slot) -> None:
        """Record the loss, drop the worker (a new one starts when needed) and go on."""
        job, worker = slot.job, slot.worker
        slot.job = slot.worker = None
        if job is None or worker is None:
            return
        slot.drop(worker)
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        stack = _stack_of(worker)
        worker.stop(force=True)
        failure = Failure("died", f"the worker process died (exit code {code})", exit_code=code)
        if failure.of_memory:
            failure = replace(failure, text=f"{failure.text}, perhaps out of memory")
        self._lost(job, failure, stack)

    def _failed_in_worker(self, job: Job, message: Mapping[str, Any]) -> None:
        text = message["message"]
        if message["class"] not in ("UsageError", "DataError", "StoreSchemaError"):
            text = f"{message['class']}: {text}"
        if message["hint"]:
            text = f"{text} ({message['hint']})"
        if message["exit_code"] == EnvironmentProblem.exit_code:
            raise EnvironmentProblem(message["message"], hint=message["hint"])
        kind, certain = message.get("failure", "raised"), message.get("certain", False)
        failure = Failure(kind, text, certain)
        if message.get("recorded", True):
            self._again_or_fail(job, failure)
        else:
            self._lost(job, failure, message["traceback"], message["class"])

    # -- failures ---------------------------------------------------------------------------

    def _lost(self, job: Job, failure: Failure, stack: str, kind: str = "") -> None:
        """Record a failure that the worker could not record itself."""
        if not job.scores:
            record_failure(self.plan.store, job.payload, failure, stack, kind)
        self._again_or_fail(job, failure)

    def _again_or_fail(self, job: Job, failure: Failure) -> None:
        """Queue a job once more, or give it up.

        What lacked memory is tried once more without others beside it, whatever ``--on-error``
        says; the rest as often as that says. An attempt goes on from the last checkpoint.
        """
        if failure.of_memory and not job.alone:
            job.alone, how = True, "alone"
        elif failure.of_memory or failure.certain or job.retries >= self.on_error.retries:
            self._fail(job, failure)
            return
        else:
            job.retries += 1
            how = f"attempt {job.retries + 1} of {self.on_error.retries + 1}"
        if self._held_back(job):
            return
        self.progress.note(f"{self._name(job)}: {failure.text}; tried again, {how}")
        job.started = 0.0
        self.queue.append(job)

    def _fail(self, job: Job, failure: Failure) -> None:
        tried = self.plan.store.attempt(job.payload["key"])
        is_own = job.needs not in self.broken and not job.scores
        self.failures.append(
            {
                "cell": self._name(job),
                "key": job.payload["key"],
                "failure": failure.kind,
                "message": failure.text,
                "attempts": attempts(tried) if is_own else 0,
                "log": str((tried / "log.txt").relative_to(self.plan.store.root)),
            }
        )
        if job.cell is None:
            self.broken[job.id] = failure
            self.unfinished.discard(job.id)
            self.progress.failed(job.id, failure.text)
        else:
            self._cell_failed(job.cell, failure.text)
        if self.on_error.stop and not self.stopped and failure.kind != BLOCKED:
            self._stop_early()

    def _stop_early(self) -> None:
        """Start nothing new. What runs is finished and scored: killing it would save nothing."""
        self.stopped = True
        self.queue = [job for job in self.queue if not self._held_back(job)]
        self.progress.note("--on-error stop: what runs is finished, nothing new is started")

    def _held_back(self, job: Job) -> bool:
        """Whether a job is not run because another one failed; it is counted then."""
        if not self.stopped or job.scores or job.needs in self.broken:
            return False
        self.not_run.add(job.id)
        return True

    def _name(self, job: Job) -> str:
        return job.cell.name if job.cell is not None else f"source model {job.payload['domain']}"

    def _cell_failed(self, cell: CellPlan, text: str) -> None:
        self.status[cell.key] = "failed"
        self.progress.failed(cell.key, f"{cell.name}: {text}")

    def _done(self, job: Job, status: str) -> None:
        seconds = monotonic() - job.started
        if job.cell is None:
            self.unfinished.discard(job.id)
            self.progress.done(job.id, seconds, reused=status == "reused")
        elif not job.scores:
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
            failures=tuple(self.failures),
            not_run=sum(cell.key in self.not_run for cell in self.plan.cells),
        )


def _blocked(reason: str) -> Failure:
    """Return the failure of what was never tried, because something that it needs is missing."""
    return Failure(BLOCKED, reason, certain=True)


def _stack_of(worker: WorkerLike) -> str:
    """Return where a worker's process is or was in the code, if it can be asked."""
    ask = getattr(worker, "stack", None)
    return "" if ask is None else str(ask())


def _cores() -> int:
    """Return how many cores this process may use; a scheduler may have granted fewer than exist."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _source_id(source: SourcePlan) -> str:
    return f"source:{source.key}"


def _source_job(source: SourcePlan) -> Job:
    return Job(_source_id(source), "label", dict(source.job))


def train_sources(plan: Plan, progress: ProgressSink, pool: WorkerPool | None = None) -> RunSummary:
    """Train the source models that a plan names, and nothing else."""
    return _Engine(plan, progress, pool).train_sources()

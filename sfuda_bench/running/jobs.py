"""What a worker does with a job: take its lock, compute, commit, and leave a trace if it fails."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sfuda_bench.running.adaptation import compute_cell
from sfuda_bench.running.failures import record_error
from sfuda_bench.running.funnel import score_labels
from sfuda_bench.running.keys import derive_seed
from sfuda_bench.running.process_state import MemoryWatch, ProcessState
from sfuda_bench.running.references import compute_reference
from sfuda_bench.running.runtime import resolve_device
from sfuda_bench.running.score import needs_scoring, score_cell
from sfuda_bench.running.sources import compute_source
from sfuda_bench.running.store import Busy, Store, read_json, stored_records, write_sealed
from sfuda_bench.running.train_scores import score_train
from sfuda_bench.running.workers import Orphaned, log_to

SCORING = {"score": score_cell, "score-train": score_train, "score-labels": score_labels}
_COMPUTE = {"source": compute_source, "cell": compute_cell, "reference": compute_reference}


class Listener(Protocol):
    """What progress is sent to."""

    def send(self, message: dict[str, Any]) -> None:
        """Take one message."""
        ...


class JobRunner:
    """Computes the jobs of one worker process.

    Args:
        out: The store.
        device: Device name.

    Attributes:
        clean: The state of the process before its first job; without it changes go unnoticed.
        recorded: Whether the last job's error is in its attempt folder.
    """

    def __init__(self, out: Path, device: str) -> None:
        self.store = Store.open(out)
        self.device = resolve_device(device)
        self.clean: ProcessState | None = None
        self.recorded = False
        self._memory = MemoryWatch()
        self._left: list[str] = []

    def restart(self) -> str | None:
        """Return why this process should not be given another job, or ``None``."""
        if self._left:
            return f"the job changed what all jobs of a process share: {'; '.join(self._left)}"
        grown = self._memory.grown()
        return grown and f"the process holds {grown}"

    def compute(self, job: dict[str, Any], connection: Listener) -> str:
        """Compute one job and return ``"computed"``, ``"reused"`` or ``"busy"``."""
        self.recorded = False
        if job["kind"] in SCORING:
            return self._score(job)

        def emit(stage: str, epoch: int, epochs: int) -> None:
            connection.send({"kind": "progress", "stage": stage, "epoch": epoch, "epochs": epochs})

        try:
            with self.store.lock(job["key"]) as attempt:
                reused = self._finished(job)
                if not reused:
                    self._locked(job, attempt, emit)
                self.store.clear_attempt(job["key"])
        except Busy:
            return "busy"
        return "reused" if reused else "computed"

    def _score(self, job: dict[str, Any]) -> str:
        """Score a committed cell, unless another process does or did it."""
        try:
            with self.store.lock(job["key"]):
                try:
                    missing = needs_scoring(Path(job["cell_dir"]), job)
                    if missing:
                        SCORING[job["kind"]](job)
                finally:
                    self.store.clear_attempt(job["key"])
        except Busy:
            return "busy"
        return "computed" if missing else "reused"

    def _finished(self, job: dict[str, Any]) -> bool:
        """Whether another process committed it in the meantime."""
        if job["kind"] == "source":
            return (Path(job["source_dir"]) / "card.json").is_file()
        stored = Path(job["cell_dir"]) / "cell.json"
        if not stored.is_file():
            return False
        before = stored_records(read_json(stored))
        asked = frozenset(job["record"])
        job["record"] = sorted(asked | before)  # what another process recorded stays recorded
        return asked <= before

    def _locked(
        self, job: dict[str, Any], attempt: Path, emit: Callable[[str, int, int], None]
    ) -> None:
        handler = log_to(attempt / "log.txt")
        _seed_others(job["key"])
        try:
            _COMPUTE[job["kind"]](job, self.store, self.device, emit)
            self._look_for_changes(job)
        except Orphaned:
            raise  # no fault of the job
        except BaseException as error:
            record_error(self.store, job, error)
            self.recorded = True
            self._look_for_changes(job)
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()

    def _look_for_changes(self, job: Mapping[str, Any]) -> None:
        """Notice what the job left behind in the process; a result says so in its run.json."""
        self._left = self.clean.changes() if self.clean is not None else []
        for change in self._left:
            logging.getLogger(__name__).warning("left behind in the process: %s", change)
        path = Path(job.get("cell_dir", "")) / "run.json"
        if not self._left or self.recorded or "cell_dir" not in job or not path.is_file():
            return
        record = read_json(path)
        text = f"the method changed what all cells of a process share: {'; '.join(self._left)}"
        write_sealed(path, {**record, "warnings": [*record.get("warnings", []), text]})


def _seed_others(key: str) -> None:
    """Seed the generators that are not torch's, for methods that draw from them."""
    random.seed(derive_seed(key, "python"))
    np.random.seed(derive_seed(key, "numpy") % 2**32)  # the one that others draw from

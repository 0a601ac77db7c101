"""What a worker does with a job: take its lock, compute, commit, and leave a trace if it fails."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sfuda_bench.running.adaptation import compute_cell
from sfuda_bench.running.funnel import score_labels
from sfuda_bench.running.references import compute_reference
from sfuda_bench.running.runtime import resolve_device
from sfuda_bench.running.score import score_cell
from sfuda_bench.running.sources import compute_source
from sfuda_bench.running.store import Busy, Store, stored_records, write_json
from sfuda_bench.running.train_scores import score_train
from sfuda_bench.running.workers import log_to

SCORING = {"score": score_cell, "score-train": score_train, "score-labels": score_labels}
_COMPUTE = {"source": compute_source, "cell": compute_cell, "reference": compute_reference}


class JobRunner:
    """Computes the jobs of one worker process.

    Args:
        out: The store.
        device: Device name.
    """

    def __init__(self, out: Path, device: str) -> None:
        self.store = Store.open(out)
        self.device = resolve_device(device)

    def compute(self, job: dict[str, Any], connection: Connection) -> str:
        """Compute one job and return ``"computed"``, ``"reused"`` or ``"busy"``."""
        if job["kind"] in SCORING:
            SCORING[job["kind"]](job)
            return "computed"

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

    def _finished(self, job: dict[str, Any]) -> bool:
        """Whether another process committed it in the meantime."""
        if job["kind"] == "source":
            return (Path(job["source_dir"]) / "card.json").is_file()
        stored = Path(job["cell_dir"]) / "cell.json"
        if not stored.is_file():
            return False
        before = stored_records(json.loads(stored.read_text("utf-8")))
        asked = frozenset(job["record"])
        job["record"] = sorted(asked | before)  # what another process recorded stays recorded
        return asked <= before

    def _locked(
        self, job: dict[str, Any], attempt: Path, emit: Callable[[str, int, int], None]
    ) -> None:
        handler = log_to(attempt / "log.txt")
        try:
            _COMPUTE[job["kind"]](job, self.store, self.device, emit)
        except BaseException as error:
            (attempt / "error.txt").write_text(traceback.format_exc(), "utf-8")
            write_json(attempt / "error.json", describe_failure(job, error))
            raise
        finally:
            logging.getLogger().removeHandler(handler)
            handler.close()


def describe_failure(job: dict[str, Any], error: BaseException) -> dict[str, Any]:
    """Return what ``error.json`` records of a failed job."""
    cell = job.get("cell", {})
    return {
        "key": job["key"],
        "kind": job["kind"],
        "method": cell.get("method", job["kind"]),
        "source": cell.get("source", job.get("domain")),
        "target": cell.get("target"),
        "seed": cell.get("seed"),
        "source_seed": cell.get("source_seed", job.get("source_seed")),
        "class": type(error).__name__,
        "message": str(error),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }

"""Workers that live on between plans, and plans that are joined into one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.running.engine import execute
from sfuda_bench.running.plan import merge_plans
from sfuda_bench.running.pool import Slot, WorkerPool
from sfuda_bench.running.store import read_json
from sfuda_bench.running.workers import WorkerSettings

EPOCHS = frozenset({"epochs"})
LABELS = frozenset({"labels"})


# -- the pool -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_outlive_a_plan_and_two_of_them_compute_an_artefact_once(
    bench: Any, progress: Any
) -> None:
    """Two cells that share every frozen step start at once; then one more, in the same workers."""
    for path in bench.images("toy_b", "test", "mask"):
        path.unlink()  # nothing is scored, so that only adapting workers start
    plans = [bench.plan("cpr", overrides=[f"cpr.lr={lr}"], jobs=2) for lr in (1e-4, 1e-3)]
    with WorkerPool() as pool:
        assert execute(merge_plans(plans), progress, pool).computed == 2
        before = [slot.workers["adapt"].process for slot in pool.slots(2)]
        more = execute(bench.plan("bn_adapt", jobs=2), progress, pool)
        assert more.computed == 1
        after = [slot.workers["adapt"].process for slot in pool.slots(2)]
        assert all(now is then for now, then in zip(after, before, strict=True))
        assert all(process.is_alive() for process in after)
    assert not any(process.is_alive() for process in before)
    steps = Counter(
        step["name"]
        for plan in plans
        for step in read_json(plan.cells[0].folder / "run.json")["artefacts_computed"]
    )
    assert steps == {"initial_labels": 1, "similarity_head": 1, "refined_labels": 1}


class FakeWorker:
    """Stands for a process."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.alive = True
        self.connection = None
        self.process = SimpleNamespace(
            is_alive=lambda: self.alive, kill=self.stop, exitcode=None, join=lambda _=None: None
        )

    def submit(self, job: dict[str, Any]) -> None: ...

    def stop(self, *, force: bool = False) -> None:
        self.alive = False


def settings(role: str = "adapt", **changes: Any) -> WorkerSettings:
    plain = WorkerSettings(role, "out", "cpu", 1, plugins=(), forbidden=("masks",))
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "changes", [{"forbidden": ("masks", "more masks")}, {"plugins": ("a.py",)}, {"threads": 2}]
)
def test_a_worker_that_was_told_something_else_is_replaced(changes: dict[str, Any]) -> None:
    """Above all one that would open what another plan forbids."""
    slot = Slot(FakeWorker)
    first = slot.ready(settings())
    assert slot.ready(settings()) is first
    assert slot.ready(settings("label")) is not first
    second = slot.ready(settings(**changes))
    assert second is not first and second.process.is_alive()
    assert not first.process.is_alive()


def test_a_dead_worker_is_replaced() -> None:
    slot = Slot(FakeWorker)
    first = slot.ready(settings())
    first.stop()
    assert slot.ready(settings()) is not first


def test_an_error_inside_the_context_ends_the_workers() -> None:
    pool = WorkerPool(FakeWorker)
    with pytest.raises(KeyError), pool:
        worker = pool.slots(3)[2].ready(settings())
        raise KeyError
    assert not worker.process.is_alive()


# -- merged plans ---------------------------------------------------------------------------------


def test_shared_cells_and_sources_are_in_a_merged_plan_once(bench: Any) -> None:
    first = bench.plan(["source_only", "dpl"])
    second = bench.plan(["dpl", "bn_adapt"], jobs=2, plugins=(Path(__file__),))
    merged = merge_plans([first, second])
    assert [cell.method for cell in merged.cells] == ["source_only", "dpl", "bn_adapt"]
    assert len(merged.sources) == 1
    assert merged.request.jobs == 2
    assert merged.request.plugins == (*first.request.plugins, Path(__file__))
    assert merged.forbidden == first.forbidden
    assert merged.disk_bytes == pytest.approx(
        (first.disk_bytes + second.disk_bytes) * 3 / 4, rel=0.01
    )


@pytest.mark.parametrize("turned", [False, True])
def test_a_shared_cell_records_and_is_scored_by_what_any_plan_asks(
    bench: Any, turned: bool
) -> None:
    asked: list[dict[str, Any]] = [
        {"record": EPOCHS, "profiles": ("standard",)},
        {"record": LABELS, "profiles": ("standard", "cpr-2023"), "keep_models": False},
    ]
    bench.run("dpl", record=LABELS)
    plans = [bench.plan("dpl", **one) for one in (reversed(asked) if turned else asked)]
    (cell,) = merge_plans(plans).cells
    assert (cell.state, cell.job["record"]) == ("todo", ["epochs", "labels"])
    assert cell.job["keep_model"]
    tracked = next(p for p in plans if p.request.track).cells[0].scoring[0]
    scoring = {job["record"]: job["key"] for job in cell.scoring}
    assert scoring.keys() == {"scores-standard.json", "scores-cpr-2023.json"}
    assert scoring["scores-standard.json"] == tracked["key"]
    assert [job["record"] for job in cell.oracle_scoring] == ["funnel.json"]


def test_plans_over_two_stores_are_not_merged(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = bench.with_out(tmp_path / "other").plan("source_only")
    with pytest.raises(UsageError, match="one store"):
        merge_plans([bench.plan("source_only"), other])
    with pytest.raises(UsageError, match="one store"):
        merge_plans([])

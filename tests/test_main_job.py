"""The main job end to end: real worker processes, every method, every pair, tables, resuming."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.methods import METHODS
from sfuda_bench.report.tables import write_tables
from sfuda_bench.running.engine import execute
from sfuda_bench.running.store import read_json

METHOD_NAMES = METHODS.names()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run everything over two domains, source training included, once for the module."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("main"))
    shutil.rmtree(bench.data / "toy_c")
    shutil.rmtree(bench.out / "sources")
    plan = plan_all(bench)
    display = _Display()
    return {"bench": bench, "plan": plan, "summary": execute(plan, display), "display": display}


def plan_all(bench: Any) -> Any:
    return bench.plan(METHOD_NAMES, pairs="all")


class _Display:
    """Remembers what the engine announced."""

    def __init__(self) -> None:
        self.announced: list[str] = []
        self.finished: dict[str, bool] = {}
        self.failures: dict[str, str] = {}
        self.stages: set[str] = set()

    def start(self, cells: list[tuple[str, str, str]]) -> None:
        self.announced = [cell[0] for cell in cells]

    def update(self, id: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        self.stages.add(stage)

    def done(self, id: str, seconds: float, reused: bool = False) -> None:
        self.finished[id] = reused

    def failed(self, id: str, message: str) -> None:
        self.failures[id] = message

    def note(self, text: str) -> None: ...


def test_every_cell_is_computed_scored_and_announced(done: dict[str, Any]) -> None:
    summary, display = done["summary"], done["display"]
    assert display.failures == {}
    cells = 2 * len(METHOD_NAMES)
    assert (summary.cells, summary.computed, summary.reused, summary.failed) == (cells, cells, 0, 0)
    assert set(display.finished) == set(display.announced)
    assert {"training", "adapting", "predicting"} <= display.stages
    for cell in done["plan"].cells:
        for profile in ("standard", "cpr-2023"):
            assert (cell.folder / f"scores-{profile}.json").is_file()
            assert (cell.folder / f"cases-{profile}.parquet").is_file()
        assert (cell.folder / "run.json").is_file()
    assert not list(summary.out.glob("attempts/*/error.*"))


def test_every_method_starts_from_the_one_source_model_of_its_domain(done: dict[str, Any]) -> None:
    assert len(list(done["bench"].out.glob("sources/*/*/card.json"))) == 2
    digests: dict[str, set[str]] = {}
    for position, cell in enumerate(done["plan"].cells):
        trained_on = cell.pair.target if METHODS.get(cell.method).oracle else cell.pair.source
        outcome = done["bench"].outcome(done["plan"], position)
        digests.setdefault(trained_on, set()).add(outcome.source_sha)
    assert {name: len(found) for name, found in digests.items()} == {"toy_a": 1, "toy_b": 1}


def test_worker_processes_and_this_process_give_the_same_keys_and_records(
    done: dict[str, Any], trained: Any
) -> None:
    """The source models were trained twice, here and in a worker, under the same keys."""
    ours = {path.parent.name for path in trained.out.glob("sources/toy_[ab]/*/card.json")}
    theirs = {path.parent.name for path in done["bench"].out.glob("sources/*/*/card.json")}
    assert ours == theirs


def test_the_tables_of_both_profiles_hold_every_method_and_pair(done: dict[str, Any]) -> None:
    out = done["bench"].out
    write_tables(out)
    for profile in ("standard", "cpr-2023"):
        for suffix in ("md", "tex", "csv"):
            assert (out / "tables" / f"main-{profile}.{suffix}").is_file()
        text = (out / "tables" / f"main-{profile}.md").read_text("utf-8")
        for cell in done["plan"].cells:
            assert METHODS.get(cell.method).title in text
    standard = (out / "tables" / "main-standard.md").read_text("utf-8")
    assert "\N{EN DASH}" not in standard  # no cell is missing


def test_the_same_command_computes_nothing_and_a_deleted_cell_alone(done: dict[str, Any]) -> None:
    bench = done["bench"]
    cells = 2 * len(METHOD_NAMES)
    before = _snapshot(bench.out)
    summary = execute(plan_all(bench), _Display())
    assert (summary.computed, summary.reused, summary.failed) == (0, cells, 0)
    assert _snapshot(bench.out) == before
    plan = plan_all(bench)
    victim = next(cell for cell in plan.cells if cell.method == "cpr_cbam")
    record = read_json(victim.folder / "cell.json")
    digest = read_json(victim.folder / "scores-standard.json")["digest"]
    shutil.rmtree(victim.folder)
    display = _Display()
    summary = execute(plan_all(bench), display)
    assert (summary.computed, summary.reused, summary.failed) == (1, cells - 1, 0)
    assert [key for key, reused in display.finished.items() if not reused] == [victim.key]
    assert read_json(victim.folder / "cell.json") == record
    assert read_json(victim.folder / "scores-standard.json")["digest"] == digest


def _snapshot(out: Path) -> dict[str, int]:
    """Return path and time of everything that a run computes."""
    kinds = ("sources", "cells", "artefacts")
    return {
        str(path): path.stat().st_mtime_ns
        for kind in kinds
        for path in (out / kind).rglob("*")
        if path.is_file()
    }

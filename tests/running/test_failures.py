"""A cell that fails leaves a trace, and every other cell is computed (real worker processes)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.running.engine import _Engine, execute
from sfuda_bench.running.store import read_json

FAILING = {
    "raises": "ZeroDivisionError",
    "dies": "RuntimeError",
    "diverges": "FloatingPointError",
    "cheats": "PermissionError",
    "oversteps": "UsageError",
}


@pytest.fixture(scope="module")
def run(
    trained: Any,
    copy_bench: Any,
    plugin_folder: Path,
    extra_methods: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Run the failing methods between two good ones, once for the module."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("failures"))
    progress = _progress()
    mask = bench.images("toy_b", "train", "mask")[0]
    plan = bench.plan(
        ["source_only", *FAILING, "bn_adapt"],
        overrides=[f"cheats.path={mask}"],
        plugins=(plugin_folder / "misbehaving.py",),
    )
    summary = execute(plan, progress)
    yield {"bench": bench, "plan": plan, "summary": summary, "progress": progress}


def _progress() -> Any:
    from types import SimpleNamespace

    failures: dict[str, str] = {}
    return SimpleNamespace(
        failures=failures,
        start=lambda cells: None,
        update=lambda *a, **k: None,
        done=lambda *a, **k: None,
        failed=failures.__setitem__,
        note=lambda text: None,
    )


def test_the_summary_counts_failed_cells_and_the_others_finish(run: dict[str, Any]) -> None:
    summary = run["summary"]
    counts = (summary.cells, summary.computed, summary.reused, summary.failed)
    assert counts == (7, 2, 0, len(FAILING))
    for cell in run["plan"].cells:
        stored = (cell.folder / "cell.json").is_file()
        assert stored == (cell.method not in FAILING)
        assert (cell.folder / "scores-standard.json").is_file() == stored


@pytest.mark.parametrize("method", FAILING)
def test_a_failed_cell_is_recorded_with_class_and_pair(run: dict[str, Any], method: str) -> None:
    cell = next(cell for cell in run["plan"].cells if cell.method == method)
    error = read_json(run["bench"].out / "attempts" / cell.key[:16] / "error.json")
    assert error["class"] == FAILING[method]
    found = (error["method"], error["source"], error["target"], error["seed"])
    assert found == (method, "toy_a", "toy_b", 0)
    assert method in run["progress"].failures[cell.key]


def test_a_traceback_is_kept_beside_the_error(run: dict[str, Any]) -> None:
    cell = next(cell for cell in run["plan"].cells if cell.method == "raises")
    text = (run["bench"].out / "attempts" / cell.key[:16] / "error.txt").read_text("utf-8")
    assert "Traceback" in text and "a bug of this method" in text


def test_a_method_that_opens_a_mask_is_told_why(run: dict[str, Any]) -> None:
    cell = next(cell for cell in run["plan"].cells if cell.method == "cheats")
    assert "label firewall" in run["progress"].failures[cell.key]


def test_the_death_of_a_worker_is_reported_with_its_exit_code(run: dict[str, Any]) -> None:
    cell = next(cell for cell in run["plan"].cells if cell.method == "dies")
    assert "exit code -9" in run["progress"].failures[cell.key]


def test_a_worker_that_cannot_start_fails_its_cells_and_not_the_run(
    bench: Any, plugin_folder: Path, extra_methods: None
) -> None:
    """Both cells fail with the reason; the summary is still returned."""
    plan = bench.plan(["source_only", "bn_adapt"], plugins=(plugin_folder / "only_in_parent.py",))
    progress = _progress()
    summary = execute(plan, progress)
    assert summary.failed == 2
    assert all("lacks a library" in text for text in progress.failures.values())


@pytest.mark.slow
def test_a_worker_that_died_between_two_jobs_is_replaced(bench: Any) -> None:
    """Nobody's job is lost when an idle worker is killed, for instance for its memory."""
    engine = _Engine(bench.plan("source_only"), _progress())
    worker = engine.slots[0].ready(engine.settings_of("adapt"))
    worker.process.kill()
    worker.process.join()
    summary = engine.run()
    assert (summary.computed, summary.failed) == (1, 0)


def test_a_source_model_that_cannot_be_trained_blocks_only_its_own_cells(
    bench: Any,
) -> None:
    """Without source masks the source's cells are blocked; the other direction is computed."""
    bench.images("toy_b", "train", "mask")[0].unlink()
    plan = bench.plan("source_only", pairs="toy_a:toy_b,toy_b:toy_a")
    states = {str(cell.pair): (cell.state, cell.reason) for cell in plan.cells}
    assert states["toy_a:toy_b"][0] == "todo"
    assert states["toy_b:toy_a"][0] == "blocked"
    assert "no source model of toy_b" in states["toy_b:toy_a"][1]
    assert "train_000.png" in states["toy_b:toy_a"][1]


def test_missing_test_masks_leave_a_cell_unscored(bench: Any) -> None:
    for path in bench.images("toy_b", "test", "mask"):
        path.unlink()
    result = bench.run("source_only")
    assert not list(result.folder.glob("scores-*.json"))
    assert len(result.codes()) == 8


def test_one_missing_test_mask_is_named_and_never_skipped(bench: Any) -> None:
    bench.images("toy_b", "test", "mask")[0].unlink()
    (cell,) = bench.plan("source_only").cells
    assert cell.state == "blocked"
    assert "test_000.png" in cell.reason

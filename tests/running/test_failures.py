"""A cell that fails leaves a trace, and every other cell is computed (real worker processes)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfuda_bench.report.status import render_status, status
from sfuda_bench.report.tables import write_tables
from sfuda_bench.running.engine import _cores, _Engine, execute
from sfuda_bench.running.store import read_json

FAILING = {
    "raises": ("ZeroDivisionError", "raised", 1),
    "dies": ("RuntimeError", "died", 2),
    "diverges": ("FloatingPointError", "not_finite", 1),
    "cheats": ("PermissionError", "refused", 1),
    "oversteps": ("UsageError", "raised", 1),
    "spins": ("TimeoutError", "timeout", 1),
    "waits": ("TimeoutError", "hung", 1),
}
"""Method to class of the error, kind of the failure, and attempts."""
GOOD = ["source_only", "meddles", "bn_adapt", "lacks_memory"]
TIMEOUT, HANG_AFTER = 6.0, 4.0


@pytest.fixture(scope="module")
def run(
    trained: Any,
    copy_bench: Any,
    plugin_folder: Path,
    extra_methods: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Any]]:
    """Run the failing methods between good ones, once for the module."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("failures"))
    counts = tmp_path_factory.mktemp("counts")
    progress = _progress()
    mask = bench.images("toy_b", "train", "mask")[0]
    plan = bench.plan(
        ["source_only", "lacks_memory", *FAILING, "meddles", "bn_adapt"],
        overrides=[
            f"cheats.path={mask}",
            f"waits.folder={counts}",
            f"lacks_memory.folder={counts}",
        ],
        plugins=(plugin_folder / "misbehaving.py", plugin_folder / "unruly.py"),
        timeout=TIMEOUT,
        hang_after=HANG_AFTER,
    )
    summary = execute(plan, progress)
    yield {"bench": bench, "plan": plan, "summary": summary, "progress": progress, "counts": counts}


def _progress() -> Any:
    from types import SimpleNamespace

    failures: dict[str, str] = {}
    notes: list[str] = []
    return SimpleNamespace(
        failures=failures,
        notes=notes,
        start=lambda cells: None,
        update=lambda *a, **k: None,
        done=lambda *a, **k: None,
        failed=failures.__setitem__,
        note=notes.append,
    )


def _cell(run: dict[str, Any], method: str) -> Any:
    return next(cell for cell in run["plan"].cells if cell.method == method)


def _attempt(run: dict[str, Any], method: str) -> Path:
    return run["plan"].store.attempt(_cell(run, method).key)  # type: ignore[no-any-return]  # a plan


def test_the_summary_counts_failed_cells_and_the_others_finish(run: dict[str, Any]) -> None:
    summary = run["summary"]
    counts = (summary.cells, summary.computed, summary.reused, summary.failed)
    assert run["progress"].failures.keys() == {_cell(run, method).key for method in FAILING}
    assert counts == (len(GOOD) + len(FAILING), len(GOOD), 0, len(FAILING))
    for cell in run["plan"].cells:
        stored = (cell.folder / "cell.json").is_file()
        assert stored == (cell.method not in FAILING)
        assert (cell.folder / "scores-standard.json").is_file() == stored


@pytest.mark.parametrize("method", FAILING)
def test_a_failed_cell_is_recorded_with_class_and_pair(run: dict[str, Any], method: str) -> None:
    error = read_json(_attempt(run, method) / "error.json")
    assert (error["class"], error["failure"], error["attempts"]) == FAILING[method]
    found = (error["method"], error["source"], error["target"], error["seed"])
    assert found == (method, "toy_a", "toy_b", 0)
    assert (run["plan"].store.root / error["log"]).is_file()
    assert method in run["progress"].failures[_cell(run, method).key]


def test_the_summary_lists_the_failures_as_they_are_recorded(run: dict[str, Any]) -> None:
    listed = {f["key"]: (f["failure"], f["attempts"]) for f in run["summary"].failures}
    assert listed == {_cell(run, m).key: (kind, n) for m, (_, kind, n) in FAILING.items()}
    assert len(run["summary"].to_json()["failures"]) == len(FAILING)


@pytest.mark.parametrize("method", ["waits", "spins"])
def test_a_killed_process_has_left_its_stack(run: dict[str, Any], method: str) -> None:
    """The line of the method that never came back, though it was killed from outside."""
    text = (_attempt(run, method) / "error.txt").read_text("utf-8")
    assert "unruly.py" in text and f" in {method}" in text


def test_what_a_killed_cell_has_started_ends_with_it(run: dict[str, Any]) -> None:
    path = run["counts"] / "child"
    if not path.is_file():
        pytest.skip("no Landlock here: an adapting process may not start others")
    status = Path(f"/proc/{path.read_text('ascii')}/status")
    assert not status.is_file() or "Z (zombie)" in status.read_text("ascii")


def test_what_ran_out_of_memory_succeeds_alone(run: dict[str, Any]) -> None:
    cell = _cell(run, "lacks_memory")
    assert len(list((run["counts"] / "lacks_memory").iterdir())) == 2
    assert any(n.startswith(cell.name) and "alone" in n for n in run["progress"].notes)
    assert not (run["plan"].store.attempt(cell.key)).exists()


def test_what_a_cell_changes_for_all_is_said_and_does_not_reach_the_next(
    run: dict[str, Any], copy_bench: Any, trained: Any, tmp_path: Path
) -> None:
    """The next cell has the bytes of one that never shared a process with it."""
    (warning,) = read_json(_cell(run, "meddles").folder / "run.json")["warnings"]
    for part in ("default dtype", "deterministic", "hooks of all modules", "functional.relu"):
        assert part in warning
    threads = torch.get_num_threads()
    torch.set_num_threads(_cores())
    try:
        clean = copy_bench(trained, tmp_path).run("bn_adapt")
    finally:
        torch.set_num_threads(threads)
    after = run["bench"].outcome(run["plan"], run["plan"].cells.index(_cell(run, "bn_adapt")))
    assert after.sha == clean.sha
    assert after.cell == clean.cell
    codes, expected = after.codes(), clean.codes()
    assert codes.keys() == expected.keys()
    assert all((codes[name] == expected[name]).all() for name in codes)


def test_status_shows_kind_message_attempts_and_log(run: dict[str, Any]) -> None:
    found = status(run["bench"].out)
    failures = {failure["method"]: failure for failure in found["failures"]}
    assert failures.keys() == FAILING.keys()
    assert (failures["dies"]["failure"], failures["dies"]["attempts"]) == ("died", 2)
    text = str(render_status(found, plain=True))
    assert "[died, 2 attempts, " in text
    assert f"--timeout) [timeout, {_attempt(run, 'spins') / 'log.txt'}]" in text


def test_tables_show_a_dash_for_a_failed_cell(run: dict[str, Any]) -> None:
    write_tables(run["bench"].out)
    (path,) = (run["bench"].out / "tables").glob("main-standard.md")
    rows = [line for line in path.read_text("utf-8").splitlines() if "raises" in line]
    assert rows and all("\u2013" in row for row in rows)


def test_a_traceback_is_kept_beside_the_error(run: dict[str, Any]) -> None:
    text = (_attempt(run, "raises") / "error.txt").read_text("utf-8")
    assert "Traceback" in text and "a bug of this method" in text


def test_a_method_that_opens_a_mask_is_told_why(run: dict[str, Any]) -> None:
    assert "label firewall" in run["progress"].failures[_cell(run, "cheats").key]


def test_the_death_of_a_worker_is_reported_with_its_exit_code(run: dict[str, Any]) -> None:
    said = run["progress"].failures[_cell(run, "dies").key]
    assert "exit code -9" in said and "perhaps out of memory" in said
    error = read_json(_attempt(run, "dies") / "error.json")
    assert (error["exit_code"], error["signal"]) == (-9, "SIGKILL")


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

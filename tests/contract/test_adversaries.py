"""A run with hostile methods in it: each is stopped, contained or finds nothing; others go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sfuda_bench.contract.conditions import AGAIN
from sfuda_bench.contract.laboratory import Broken, Laboratory, Workers
from sfuda_bench.contract.methods import INVARIANTS
from sfuda_bench.methods import METHODS
from sfuda_bench.running.engine import execute
from sfuda_bench.running.firewall import kernel_helps

CONTROL = "bn_adapt"
SEARCHERS = ["searches_the_task", "searches_the_process", "searches_descriptors"]
STOPPED = {
    "is_told_a_mask": ("PermissionError", "RuntimeError"),
    "guesses_test_images": ("label firewall: an adapting process may not open",),
    "spoils_images": ("method 'spoils_images' changed the target images",),
    "spoils_frozen_steps": ("method 'spoils_frozen_steps' changed the source model",),
    "spoils_the_source_file": ("label firewall: other cells read",),
    "spoils_packed_images": ("label firewall: other cells read",),
}
"""What each fails with, one of these."""
CONTAINED = ["spoils_the_process"]


def digests(bench: Any) -> dict[str, str]:
    """Digests of everything that cells share: source models and packed images."""
    files = [p for kind in ("sources", "packed/images") for p in (bench.out / kind).rglob("*.*")]
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def plugin(plugin_folder: Path) -> Path:
    return plugin_folder / "adversarial.py"


@pytest.fixture(scope="module")
def run(
    trained: Any,
    copy_bench: Any,
    plugin: Path,
    extra_methods: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    """Run the control, every hostile method, and the control again, in one worker."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("hostile"))
    mask = bench.images("toy_b", "test", "mask")[0]
    how = "torch" if kernel_helps() else "child"  # the hook alone never hears of torch
    hostile = [*SEARCHERS, *STOPPED, *CONTAINED]
    plan = bench.plan(
        [*hostile, CONTROL],
        plugins=(plugin,),
        overrides=[f"is_told_a_mask.path={mask}", f"is_told_a_mask.how={how}"],
        seeds=(0, 1),
    )
    cells = {(cell.method, cell.seed): cell for cell in plan.cells}
    before, after = cells[CONTROL, 0], cells[CONTROL, 1]
    plan.cells = [before, *(cells[name, 0] for name in hostile), after]
    shared = digests(bench)
    progress = _Remember()
    execute(plan, progress)
    return {
        "failures": {c.method: progress.failures.get(c.key, "") for c in plan.cells},
        "folders": {c.method: c.folder for c in plan.cells},
        "controls": [bench.outcome(plan, 0), bench.outcome(plan, len(plan.cells) - 1)],
        "shared": (shared, digests(bench)),
        "bench": bench,
    }


class _Remember:
    """A progress display that only remembers what failed."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}

    def failed(self, id: str, message: str) -> None:
        self.failures[id] = message

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_finds_no_mask_no_test_image_and_no_file_name(
    name: str, run: dict[str, Any]
) -> None:
    """Through the task, the epoch loop's frame, all frames, all objects, all open files."""
    assert run["failures"][name] == ""
    curve = pd.read_parquet(run["folders"][name] / "curve.parquet").set_index("name")["value"]
    assert curve["seen"] > 20
    assert curve[["masks", "other_images", "mask_files", "file_names"]].sum() == 0


@pytest.mark.parametrize("name", sorted(STOPPED))
def test_what_reads_or_spoils_ends_as_one_failed_cell(name: str, run: dict[str, Any]) -> None:
    said = run["failures"][name]
    assert any(text in said for text in STOPPED[name]), said
    assert not run["folders"][name].exists()


def test_nothing_that_cells_share_has_changed(run: dict[str, Any]) -> None:
    before, after = run["shared"]
    assert before == after
    assert run["bench"].artefacts("mean_of_the_source") == set()


def test_a_changed_process_is_said_and_restarted(run: dict[str, Any]) -> None:
    (name,) = CONTAINED
    record = json.loads((run["folders"][name] / "run.json").read_text("utf-8"))
    assert any("default dtype" in warning for warning in record["warnings"])


def test_the_next_cell_is_what_it_was_before_them_all(run: dict[str, Any]) -> None:
    """The control depends on no seed: before and after have the same bytes."""
    before, after = run["controls"]
    assert before.cell["key"] != after.cell["key"]
    assert after.sha == before.sha
    codes = before.codes()
    assert all((code == codes[name]).all() for name, code in after.codes().items())


@pytest.fixture
def workers_bench(trained: Any, plugin: Path, extra_methods: None, tmp_path: Path) -> Any:
    bench = trained.copy_to(tmp_path)
    bench.plugins = (*bench.plugins, plugin)
    bench.plan(CONTROL)  # loads the plug-in
    return bench


def test_the_contract_shows_what_is_left_behind(workers_bench: Any, tmp_path: Path) -> None:
    (invariant,) = [found for found in INVARIANTS if found.name == "leaves nothing behind"]
    with Workers(timeout=60) as workers:
        laboratory = Laboratory(workers_bench, tmp_path / "laboratory", workers)
        verdict = invariant.verdict(laboratory, METHODS.get("spoils_the_process"))
        fine = invariant.verdict(laboratory, METHODS.get(CONTROL))
    assert verdict.verdict == "failed" and "default dtype" in verdict.evidence
    assert fine.verdict == "passed"


def test_the_contract_outlives_a_method_that_hangs_or_dies(
    workers_bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    workers_bench.plugins = (*workers_bench.plugins, plugin_folder / "misbehaving.py")
    with Workers(timeout=4) as workers:
        laboratory = Laboratory(workers_bench, tmp_path / "laboratory", workers)
        with pytest.raises(Broken, match="not done after 4 s"):
            laboratory.result(AGAIN, "sleeps")
        with pytest.raises(Broken, match="died"):
            laboratory.result(AGAIN, "dies")

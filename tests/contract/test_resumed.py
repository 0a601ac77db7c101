"""The contract finds what a method carries from epoch to epoch without a word about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.contract.laboratory import Laboratory, Workers
from sfuda_bench.contract.methods import INVARIANTS
from sfuda_bench.contract.verdicts import Verdict
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import load_plugin_file

PLUGIN = Path(__file__).with_name("hidden_state.py")
(RESUMED,) = [invariant for invariant in INVARIANTS if invariant.name == "resumed, same bytes"]

Judge = Callable[[str], Verdict]


@pytest.fixture(scope="module")
def judge(trained: Any, extra_methods: None, tmp_path_factory: pytest.TempPathFactory) -> Judge:
    """Return a judge whose methods run in this process."""
    load_plugin_file(PLUGIN)
    laboratory = Laboratory(trained, tmp_path_factory.mktemp("resumed"))
    return lambda name: RESUMED.verdict(laboratory, METHODS.get(name))


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("hides_its_teacher", "deep.0.weight, deep.1.bias, deep.1.weight, fuse.0.weight and "),
        ("hides_its_counter", "head.bias;"),
    ],
)
def test_state_in_a_local_variable_is_found(name: str, tensors: str, judge: Judge) -> None:
    """The message says which tensors differ and where the state belongs."""
    verdict = judge(name)
    assert verdict.verdict == "failed"
    assert f"resumed after its first epoch, other bytes in {tensors}" in verdict.evidence
    assert "task.epochs(..., state={...})" in verdict.evidence


@pytest.mark.parametrize("name", ["hands_over_its_teacher", "hands_over_its_counter"])
def test_the_same_state_handed_over_is_in_order(name: str, judge: Judge) -> None:
    verdict = judge(name)
    assert verdict.verdict == "passed", verdict.evidence
    assert "in one go, and resumed after the first epoch" in verdict.evidence


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("has_no_epochs", "it begins no second epoch: "),
        ("has_one_epoch", "it begins no second epoch: "),
        ("stops_early", "it begins no second epoch with stops_early.epochs=2: "),
        ("says_nothing", "task.epochs is given no optimizer and no state"),
    ],
)
def test_what_has_nothing_to_go_on_from_is_told_why(name: str, reason: str, judge: Judge) -> None:
    verdict = judge(name)
    assert (verdict.verdict, reason in verdict.evidence) == ("not applicable", True), verdict


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hands_over_a_set", "a checkpoint cannot hold state.seen/ids: a set"),
        ("renames_its_state", "under the same names each time"),
    ],
)
def test_state_that_cannot_come_back_is_refused(name: str, said: str, judge: Judge) -> None:
    verdict = judge(name)
    assert verdict.verdict == "failed"
    assert said in verdict.evidence


def test_a_short_method_is_asked_for_a_second_epoch(judge: Judge) -> None:
    """One epoch hands nothing on, so the default of one would prove nothing."""
    assert METHODS.get("entropy_min").config().epochs == 1
    assert judge("entropy_min").verdict == "passed"


def test_workers_are_interrupted_at_the_same_place(
    trained: Any, extra_methods: None, tmp_path: Path
) -> None:
    """Nobody is there to kill a process in time: a stand-in of the method stops itself."""
    bench = trained.copy_to(tmp_path)
    bench.plugins = (*bench.plugins, PLUGIN)
    load_plugin_file(PLUGIN)
    before = METHODS.names()
    with Workers(timeout=60) as workers:
        laboratory = Laboratory(bench, tmp_path / "laboratory", workers)
        verdicts = {
            name: RESUMED.verdict(laboratory, METHODS.get(name))
            for name in ("hides_its_counter", "hands_over_its_counter")
        }
    assert [verdict.verdict for verdict in verdicts.values()] == ["failed", "passed"], verdicts
    assert "other bytes in head.bias;" in verdicts["hides_its_counter"].evidence
    assert METHODS.names() == before

"""Trials: each number once, whoever dies and whoever helps."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sfuda_bench.errors import CellsFailed, UsageError
from sfuda_bench.search.samplers import HISTORY_FREE
from sfuda_bench.search.study import Trials, differences, results_of

Command = tuple[list[str], dict[str, str]]


def silent(text: str) -> None: ...


def told(trials: Trials) -> list[Any]:
    """Return everything that must not depend on who ran the trials."""
    return [
        (t.number, t.state.name, t.params, t.value, t.intermediate_values, t.user_attrs["cells"])
        for t in trials.all()
    ]


def finished(stub: ModuleType, folder: Path, sampler: str, count: int, **more: Any) -> Trials:
    trials: Trials = stub.build(folder, sampler, count, **more)
    trials.run(stub.evaluate, silent)
    return trials


def start(command: Command, folder: Path, *words: object) -> subprocess.Popen[bytes]:
    arguments, environment = command
    return subprocess.Popen([*arguments, str(folder), *map(str, words)], env=environment)


@pytest.mark.parametrize("sampler", ["tpe"])
def test_killed_five_times_equals_undisturbed(
    stub: ModuleType, stub_command: Command, tmp_path: Path, sampler: str
) -> None:
    """Kill -9 at random moments; the same command goes on; numbers, points, values agree."""
    undisturbed = told(finished(stub, tmp_path / "a" / "s", sampler, 16))
    folder = tmp_path / "b" / "s"
    folder.parent.mkdir()
    moments = random.Random(sampler)
    for _ in range(5):
        process = start(stub_command, folder, sampler, 16, 0.05)
        evaluated = folder.parent / "evaluated.txt"
        before = evaluated.stat().st_size if evaluated.exists() else 0
        while process.poll() is None and (
            not evaluated.exists() or evaluated.stat().st_size == before
        ):
            time.sleep(0.005)  # until it works on a trial
        time.sleep(moments.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(stub_command, folder, sampler, 16, 0.0).wait() == 0
    assert told(finished(stub, folder, sampler, 16)) == undisturbed


def test_two_processes_finish_twenty_trials_once_each(
    stub: ModuleType, stub_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    words = ("qmc", 20, 0.05, "--together", 2)
    processes = [start(stub_command, folder, *words) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    trials = stub.build(folder, "qmc", 20)
    assert [t.number for t in trials.finished()] == list(range(20))
    lines = (tmp_path / "evaluated.txt").read_text("utf-8").splitlines()
    points = Counter(line.partition(" ")[2] for line in lines)
    assert len(points) == 20 and set(points.values()) == {1}
    assert len({line.partition(" ")[0] for line in lines}) == 2  # both worked
    assert told(trials) == told(finished(stub, tmp_path / "alone", "qmc", 20))


@pytest.mark.parametrize("sampler", HISTORY_FREE[:1])
def test_a_longer_budget_goes_on_with_the_same_trials(
    stub: ModuleType, tmp_path: Path, sampler: str
) -> None:
    short = told(finished(stub, tmp_path / "s", sampler, 5))
    long = told(finished(stub, tmp_path / "s", sampler, 9))
    assert long[:5] == short and len(long) == 9
    assert long == told(finished(stub, tmp_path / "t", sampler, 9))


def test_a_shorter_budget_is_refused(stub: ModuleType, tmp_path: Path) -> None:
    finished(stub, tmp_path / "s", "qmc", 5)
    with pytest.raises(UsageError, match="trials = 3, but trial 4 exists"):
        stub.build(tmp_path / "s", "qmc", 3)


def test_a_changed_study_is_refused_and_the_difference_named(
    stub: ModuleType, tmp_path: Path
) -> None:
    trials = finished(stub, tmp_path / "s", "qmc", 3)
    with pytest.raises(UsageError, match="seed: 7 -> 8"):
        trials.open({"seed": 8})


def test_differences_name_the_key_and_both_values() -> None:
    old = {"a": 1, "space": {"beta": {"low": 1.0}}, "settings": {"x": 1}}
    new = {"a": 1, "space": {"beta": {"low": 2.0}, "t": 3}, "settings": {"x": 1, "later": 0}}
    assert differences(old, new) == ["space.beta.low: 1.0 -> 2.0", "space.t: null -> 3"]
    assert differences(old, old) == []


def test_an_interrupted_trial_keeps_the_values_it_has(stub: ModuleType, tmp_path: Path) -> None:
    """Whatever stopped it: the point of a trial is not drawn twice."""
    trials = stub.build(tmp_path / "s", "qmc", 2)
    seen: list[Any] = []

    def interrupted(method: str, point: dict[str, Any], pairs: str) -> Any:
        seen.append(point)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trials.run(interrupted, silent)
    assert trials.all()[0].state.name == "RUNNING" and not trials.is_running(trials.all()[0])
    trials = finished(stub, tmp_path / "s", "qmc", 2)
    assert trials.all()[0].params == seen[0]


def test_failed_cells_fail_their_trial_and_no_other(stub: ModuleType, tmp_path: Path) -> None:
    trials = stub.build(tmp_path / "s", "qmc", 4)
    calls = iter(range(4))

    def second_fails(method: str, point: dict[str, Any], pairs: str) -> Any:
        if next(calls) == 1:
            raise CellsFailed("1 cells failed: out of memory")
        return stub.evaluate(method, point, pairs)

    notes: list[str] = []
    trials.run(second_fails, notes.append)
    states = [trial.state.name for trial in trials.all()]
    assert states == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert any("out of memory" in note for note in notes)
    assert trials.all()[1].user_attrs["error"] == "1 cells failed: out of memory"


def test_pruning_stops_bad_trials_after_the_first_pair(stub: ModuleType, tmp_path: Path) -> None:
    trials = finished(stub, tmp_path / "s", "qmc", 24, prune=True)
    pruned = [trial for trial in trials.all() if trial.state.name == "PRUNED"]
    assert pruned and all(len(results_of(trial)) == 1 for trial in pruned)
    assert all(len(results_of(trial)) == 2 for trial in trials.finished())
    assert len(trials.finished()) + len(pruned) == 24


def test_pair_values_are_intermediate_values(stub: ModuleType, tmp_path: Path) -> None:
    (trial,) = finished(stub, tmp_path / "s", "qmc", 1).finished()
    per_pair = [stub.OBJECTIVE.value([r]) for r in results_of(trial)]
    assert list(trial.intermediate_values.values()) == pytest.approx(per_pair)


def test_trials_of_another_folder_are_left_alone(stub: ModuleType, tmp_path: Path) -> None:
    """On a server, a trial whose lock lies on another machine is not free."""
    trials = stub.build(tmp_path / "s", "qmc", 1)
    (waiting,) = trials.all()
    trials.storage.set_trial_user_attr(waiting._trial_id, "place", "another machine")
    assert trials.storage.set_trial_state_values(waiting._trial_id, 0)
    notes: list[str] = []
    trials.run(stub.evaluate, notes.append)
    assert trials.all()[0].state.name == "RUNNING"
    assert notes == ["stub_study.stub: the rest is run from other folders"]


def test_the_document_survives_json(stub: ModuleType, tmp_path: Path) -> None:
    trials = stub.build(tmp_path / "s", "qmc", 1)
    assert json.loads(json.dumps(trials.study.user_attrs["document"])) == {"seed": 7}

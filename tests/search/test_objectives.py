"""Objectives: which trial is better, and for transfer which labels may say so."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, create_trial

from sfuda_bench.errors import DataError, StoreSchemaError
from sfuda_bench.frames import write_parquet
from sfuda_bench.search.choices import choose, probes, same_models
from sfuda_bench.search.objectives import CellResult, Objective, rank_mean

ORACLE = Objective("oracle_test", "oracle_test")
FREE = Objective("label-free:v", "label-free", "v", ("v", "w"))
TRANSFER = Objective("transfer", "transfer")


def result(pair: str = "a:b", adapted: str = "0", collapsed: bool = False, **scores: float) -> Any:
    return CellResult("k", "f", "m", pair, 0, 0, adapted, scores, collapsed)


def trial(number: int, value: float, results: list[Any], **params: float) -> FrozenTrial:
    found = create_trial(
        value=value,
        params=params,
        distributions={name: FloatDistribution(0.0, 10.0) for name in params},
        user_attrs={"cells": [one.to_json() for one in results]},
    )
    found.number = number
    return found


def test_rank_mean_is_free_of_scales() -> None:
    """Two components of very different scale count the same; ties share their rank."""
    found = rank_mean([{"a": 1e6, "b": 0.1}, {"a": 2e6, "b": 0.0}, {"a": 0.0, "b": 0.1}])
    assert found == pytest.approx([(2 + 2.5) / 6, (3 + 1) / 6, (1 + 2.5) / 6])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_worst(bad: float) -> None:
    found = rank_mean([{"a": bad}, {"a": -1e9}])
    assert found[0] < found[1]
    assert FREE.value([result(v=bad)]) == -math.inf


def test_a_collapsed_trial_is_preferred_to_none() -> None:
    good, bad = [result(v=-5.0)], [result(v=9.0, collapsed=True)]
    worse = [result(v=-9.0)]
    ranks = FREE.prefer([good, bad, worse])
    assert ranks[0] > ranks[2] > ranks[1]
    trials = [trial(0, 9.0, bad), trial(1, -5.0, good)]
    assert choose(trials, FREE, ["a:b"])[0].number == 1
    assert choose(trials[:1], FREE, ["a:b"]) == []


def test_the_earlier_of_equal_trials_is_chosen() -> None:
    trials = [trial(3, 1.0, [result(dice=0.5)]), trial(5, 1.0, [result(dice=0.5)])]
    assert choose(trials, ORACLE, ["a:b"])[0].number == 3


def test_transfer_never_reads_the_judged_target() -> None:
    """On a:b the choice is what is best on pairs with targets other than b."""
    first = [result("a:b", dice=0.9), result("c:b", dice=0.9), result("a:c", dice=0.1)]
    second = [result("a:b", dice=0.1), result("c:b", dice=0.1), result("a:c", dice=0.9)]
    trials = [trial(0, 0.5, first), trial(1, 0.5, second)]
    chosen = {c.pairs[0]: c.number for c in choose(trials, TRANSFER, ["a:b", "c:b", "a:c"])}
    assert chosen == {"a:b": 1, "c:b": 1, "a:c": 0}


def test_trials_with_the_same_models_are_named() -> None:
    trials = [
        trial(0, 1.0, [result(adapted="x")], beta=1.0, gamma=0.2),
        trial(1, 1.0, [result(adapted="y")], beta=2.0, gamma=0.2),
        trial(2, 1.0, [result(adapted="x")], beta=1.0, gamma=0.3),
        trial(3, 1.0, [result(adapted="y")], beta=3.0, gamma=0.4),
    ]
    assert same_models(trials) == [
        {"trials": [0, 2], "knobs": ["gamma"], "alone": True},
        {"trials": [1, 3], "knobs": ["beta", "gamma"], "alone": False},
    ]


def test_probes_move_one_setting_far_and_stay_feasible(stub: ModuleType) -> None:
    space = stub.stub_space()
    point = {"low": 0.2, "high": 0.3, "steps": 2, "mode": "x", "idle": 1.0}
    choice = choose([trial(0, 1.0, [result(dice=1.0)])], ORACLE, ["a:b"])[0]
    moved = probes(space, type(choice)(("a:b",), 0, point, 1.0, choice.results))
    assert set(moved) == set(space.knobs)
    for name, other in moved.items():
        assert [key for key in point if other[key] != point[key]] == [name]
        assert not space.refusal(other)
    assert moved["steps"]["steps"] == 64 and moved["mode"]["mode"] == "y"


def test_a_label_free_objective_reads_the_last_epoch_of_its_validators(tmp_path: Path) -> None:
    rows = [
        (epoch, name, structure, value + epoch)
        for epoch in (0, 3)
        for name, value in (("v", 0.1), ("w", 0.2), ("x", 0.3))
        for structure in ("cup", "disc")
    ]
    rows += [(3, "collapsed", "cup", 0.0), (3, "collapsed", "disc", 1.0)]
    frame = pd.DataFrame(rows, columns=["epoch", "validator", "structure", "value"])
    write_parquet(frame, tmp_path / "validators.parquet")
    scores, collapsed = FREE.read(tmp_path)
    assert scores == {"v/cup": 3.1, "v/disc": 3.1, "w/cup": 3.2, "w/disc": 3.2}
    assert collapsed
    with pytest.raises(StoreSchemaError, match="no values of y"):
        Objective("label-free:y", "label-free", "y", ("y",)).read(tmp_path)


def test_an_objective_with_labels_needs_scores(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs the masks of the target's test images"):
        ORACLE.read(tmp_path)


def test_dice_objectives_average_images_then_structures(tmp_path: Path) -> None:
    rows = [("i", "cup", 0.2), ("j", "cup", 0.4), ("i", "disc", 0.8), ("j", "disc", 0.6)]
    frame = pd.DataFrame(rows, columns=["image", "structure", "dice"]).assign(selection="last")
    write_parquet(frame, tmp_path / "cases-standard.parquet")
    scores, collapsed = ORACLE.read(tmp_path)
    assert scores == pytest.approx({"dice/cup": 0.3, "dice/disc": 0.7}) and not collapsed
    assert ORACLE.value([result(**scores)]) == pytest.approx(0.5)

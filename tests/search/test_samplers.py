"""Samplers: a trial's point follows from the study's seed and the trial's number."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from sfuda_bench.errors import UsageError
from sfuda_bench.search.samplers import HISTORY_FREE, STARTUP, derived_seed, points_of
from sfuda_bench.search.spaces import Constraint

GRID: dict[str, Any] = {
    "low": CategoricalDistribution([0.0, 0.3, 0.9]),
    "high": CategoricalDistribution([0.2, 0.5]),
    "steps": CategoricalDistribution([1, 2]),
    "idle": CategoricalDistribution([1.0]),
}


@pytest.mark.parametrize("sampler", HISTORY_FREE)
def test_a_point_depends_on_seed_and_number_only(stub: ModuleType, sampler: str) -> None:
    space = stub.stub_space(**(GRID if sampler == "grid" else {}))
    first = points_of(sampler, space, 3, 12)
    again = points_of(sampler, space, 3, 12)
    assert [first(n) for n in range(12)] == [again(n) for n in reversed(range(12))][::-1]
    assert [first(n) for n in range(12)] != [points_of(sampler, space, 4, 12)(n) for n in range(12)]


@pytest.mark.parametrize("sampler", HISTORY_FREE)
def test_a_longer_study_begins_with_the_shorter_one(stub: ModuleType, sampler: str) -> None:
    space = stub.stub_space(**(GRID if sampler == "grid" else {}))
    short, long = points_of(sampler, space, 3, 7), points_of(sampler, space, 3, 12)
    assert [short(n) for n in range(7)] == [long(n) for n in range(7)]


@pytest.mark.parametrize("sampler", HISTORY_FREE)
def test_no_point_breaks_a_constraint(stub: ModuleType, sampler: str) -> None:
    rule = Constraint("high", "<=", 0.8, "high <= 0.8")
    space = stub.stub_space(rule, **(GRID if sampler == "grid" else {}))
    for number in range(12):
        point = points_of(sampler, space, 0, 12)(number)
        assert point["low"] <= point["high"] <= 0.8


def test_sobol_points_fill_a_square_more_evenly_than_chance(stub: ModuleType) -> None:
    """One point in each of 16 cells of a 4 x 4 grid, in every pair of two unconstrained knobs."""
    knobs = {"low": FloatDistribution(0.0, 0.4), "high": FloatDistribution(0.5, 0.9)}
    space = stub.stub_space()
    space = type(space)("stub", knobs, (), space.base, 96)
    points = [points_of("qmc", space, 0, 16)(n) for n in range(16)]
    cells = {(int(p["low"] / 0.1), int((p["high"] - 0.5) / 0.1)) for p in points}
    assert len(cells) == 16


def test_a_grid_takes_every_point_once(stub: ModuleType) -> None:
    space = stub.stub_space(**GRID)
    size = len(list(space.grid()))
    points = [points_of("grid", space, 0, size)(n) for n in range(size)]
    assert sorted(map(str, points)) == sorted(map(str, space.grid()))
    with pytest.raises(UsageError, match=f"{size + 1} trials, but the grid of stub has {size}"):
        points_of("grid", space, 0, size + 1)


@pytest.mark.parametrize("sampler", ["qmc", "random"])
def test_constraints_that_nothing_satisfies_end_in_an_error(stub: ModuleType, sampler: str) -> None:
    space = stub.stub_space(Constraint("high", "<", 0.0, "high < 0"))
    with pytest.raises(UsageError, match="no point that can be run"):
        points_of(sampler, space, 0, 4)(0)


def test_seeds_differ_and_fit_every_generator() -> None:
    seeds = {derived_seed(0, "cpr", number) for number in range(1000)}
    assert len(seeds) == 1000
    assert all(np.random.RandomState(seed) is not None for seed in list(seeds)[:3])


def test_tpe_finds_better_points_than_those_it_starts_with(stub: ModuleType, tmp_path: Any) -> None:
    """On a smooth objective the later half must beat the first points on average."""
    trials = stub.build(tmp_path / "s", "tpe", 40)
    trials.run(stub.evaluate, lambda text: None)
    finished = trials.finished()
    value = trials._prefer(finished)
    assert np.mean(value[20:]) > np.mean(value[:STARTUP]) + 0.1
    assert all(t.params["low"] <= t.params["high"] for t in finished)

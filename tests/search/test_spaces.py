"""Search spaces: the declared range is the outer limit, constraints skip points."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.search.spaces import Space, read_space, value_at

UNITS = [place / 997 for place in range(997)]


def read(table: dict[str, Any], constraints: tuple[str, ...] = (), size: int = 256) -> Space:
    spec = METHODS.get("cpr")
    return read_space("FILE", spec, table, constraints, spec.config(radius=3), size)


def test_an_empty_table_means_the_declared_range() -> None:
    space = read({"beta": {}, "radius": {}})
    assert space.knobs["beta"] == FloatDistribution(0.25, 16.0, log=True)
    assert space.knobs["radius"] == IntDistribution(2, 12)


def test_a_range_may_be_narrowed_and_keeps_its_scale() -> None:
    space = read({"beta": {"low": 1, "high": 4}, "iterations": {"low": 2, "high": 8}})
    assert space.knobs["beta"] == FloatDistribution(1.0, 4.0, log=True)
    assert space.knobs["iterations"] == IntDistribution(2, 8, log=True)


def test_choices_are_checked_one_by_one() -> None:
    assert read({"radius": {"choices": [2, 4]}}).knobs["radius"] == CategoricalDistribution((2, 4))
    with pytest.raises(UsageError, match=r"radius.*13.*outside \[2, 12\]"):
        read({"radius": {"choices": [2, 13]}})


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"radus": {}}, "unknown setting 'radus' .did you mean 'radius'"),
        ({"gamma": {}}, "it is called 'threshold'"),
        ({"passes": {}}, "'passes' is a setting of cpr but not tunable"),
        ({"beta": {"low": 0.1}}, r"\[0.1, 16.0\] is not inside the declared range \[0.25, 16.0\]"),
        ({"beta": {"high": 20}}, "is not inside the declared range"),
        ({"beta": {"low": 4, "high": 2}}, "is not inside"),
        ({"beta": {"lo": 1}}, "unknown key 'lo'"),
        ({"beta": {"low": "x"}}, "expected a number"),
        ({"beta": [1, 2]}, "expected a table"),
        ({"radius": {"low": 2.5}}, "the setting is an integer"),
        ({"radius": {"choices": []}}, "expected a list of values"),
        ({"beta": {"points": 0}}, "points = 0"),
        ({}, "no setting to move"),
    ],
)
def test_what_cannot_be_searched_is_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(table)


@pytest.mark.parametrize("text", ["low <= hihg", "low high", "low == high", 3])
def test_a_constraint_that_cannot_be_read_is_refused(text: Any) -> None:
    with pytest.raises(UsageError, match=r"\[constraints\]"):
        read({"low": {}}, (text,))


def test_constraints_the_config_and_the_method_all_refuse_points() -> None:
    space = read({"low": {}, "high": {}, "radius": {}}, ("high < 0.9",))
    point = {"low": 0.3, "high": 0.8, "radius": 3}
    assert space.refusal(point) == ""
    assert "exceeds" in space.refusal({**point, "low": 0.85})
    assert "does not hold" in space.refusal({**point, "high": 0.95})
    assert "no pairs" in space.refusal({**point, "radius": 12})


def test_a_constraint_may_use_a_setting_that_is_not_searched() -> None:
    assert read({"low": {}}, ("low <= initial_threshold",)).refusal({"low": 0.8})
    assert not read({"low": {}}, ("low <= initial_threshold",)).refusal({"low": 0.7})


@pytest.mark.parametrize("log", [False, True])
def test_integers_get_equal_shares_of_a_linear_range(log: bool) -> None:
    values = [value_at(IntDistribution(1, 8, log=log), unit) for unit in UNITS]
    counts = [values.count(value) for value in range(1, 9)]
    assert sum(counts) == len(UNITS) and values == sorted(values)
    if log:
        assert counts == sorted(counts, reverse=True)
    else:
        assert max(counts) - min(counts) <= 2


def test_values_stay_on_steps_and_inside() -> None:
    stepped = [value_at(IntDistribution(2, 11, step=3), unit) for unit in UNITS]
    assert set(stepped) == {2, 5, 8, 11}
    floats = [value_at(FloatDistribution(1e-5, 1e-2, log=True), unit) for unit in (0.0, 0.5, 1.0)]
    assert floats == pytest.approx([1e-5, 10**-3.5, 1e-2])
    assert {value_at(CategoricalDistribution("ab"), unit) for unit in UNITS} == {"a", "b"}


def test_a_grid_is_the_feasible_product() -> None:
    space = read({"low": {"points": 3}, "high": {"choices": [0.4, 0.9]}})
    assert [(p["low"], p["high"]) for p in space.grid()] == [
        (0.0, 0.4), (0.0, 0.9), (0.5, 0.9),
    ]  # fmt: skip


def test_a_grid_cannot_enumerate_a_continuous_setting() -> None:
    with pytest.raises(UsageError, match=r"cannot enumerate cpr\.beta"):
        list(read({"beta": {}}).grid())


def test_labels_show_the_symbol_of_the_paper() -> None:
    space = read({"iterations": {}, "beta": {}})
    assert space.label("iterations") == "iterations (t)"
    assert space.label("beta") == "beta"

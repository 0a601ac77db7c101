"""One declaration gives default, check and search space."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.tunable import (
    bounds_of,
    build_config,
    checked_values,
    keyed_values,
    search_space,
    setting,
    tunable,
)


@dataclass(frozen=True)
class Knobs:
    count: int = tunable(4, 1, 64, log=True, symbol="t")
    share: float = tunable(0.5, 0.0, 1.0)
    kind: str = tunable("a", choices=("a", "b"))
    fixed: float = setting(1.0, 0.0, 2.0)
    level: Literal["low", "high"] = "low"
    weights: tuple[float, float] = setting((0.5, 0.5), 0.0, 1.0)
    sizes: tuple[int, ...] = (1,)
    limit: float | None = setting(None, 0.0, 1.0)
    on: bool = False


def test_an_empty_config_is_the_declared_defaults() -> None:
    assert build_config(Knobs, {}, owner="k") == Knobs()


def test_texts_and_values_give_the_same_config() -> None:
    values: dict[str, Any] = {
        "count": 8, "share": 0.25, "kind": "b", "level": "high",
        "weights": [0.1, 0.9], "sizes": [1, 2, 3], "limit": 0.5, "on": True,
    }  # fmt: skip
    texts = {
        "count": "8", "share": "0.25", "kind": "b", "level": "high",
        "weights": "0.1,0.9", "sizes": "1,2,3", "limit": "0.5", "on": "true",
    }  # fmt: skip
    assert build_config(Knobs, values, owner="k") == build_config(Knobs, texts, owner="k")
    assert build_config(Knobs, texts, owner="k").sizes == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("cont", 1, "unknown setting 'k.cont'.*did you mean 'count'"),
        ("count", 0, r"k\.count = 0 is outside \[1, 64\]"),
        ("count", True, r"k\.count = True: expected int"),
        ("count", None, r"k\.count = None: expected int"),
        ("count", float("inf"), r"k\.count = inf: expected int"),
        ("share", True, r"k\.share = True: expected float"),
        ("share", float("nan"), r"k\.share = nan is not a finite number"),
        ("kind", "c", r"k\.kind = 'c' is not one of: a, b"),
        ("kind", 3, r"k\.kind = 3: expected str"),
        ("level", "hihg", r"k\.level = 'hihg'.*did you mean 'high'"),
        ("weights", [0.5], r"k\.weights = \[0\.5\]: expected 2 values"),
        ("weights", [0.5, 1.5], r"k\.weights = .*is outside"),
        ("weights", 0.5, r"k\.weights = 0\.5: expected a list of values"),
        ("weights", "0.5,x", r"k\.weights = 'x': expected float"),
        ("limit", "much", r"k\.limit = 'much': expected float"),
        ("limit", 2, r"k\.limit = 2\.0 is outside"),
        ("on", "perhaps", r"k\.on = 'perhaps': expected bool"),
    ],
)
def test_a_bad_value_is_named(name: str, value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        build_config(Knobs, {name: value}, owner="k")


def test_values_are_checked_on_their_own_before_they_are_checked_together() -> None:
    kind = METHODS.get("cpr").config
    assert checked_values(kind, {"low": "0.9"}, owner="cpr") == {"low": 0.9}
    with pytest.raises(UsageError, match="exceeds"):
        build_config(kind, {"low": "0.9"}, owner="cpr")


def test_only_tunable_fields_are_searched_within_their_range() -> None:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    assert search_space(Knobs) == {
        "count": IntDistribution(1, 64, log=True),
        "share": FloatDistribution(0.0, 1.0),
        "kind": CategoricalDistribution(("a", "b")),
    }


def test_a_tunable_without_a_range_is_refused() -> None:
    @dataclass(frozen=True)
    class Endless:
        x: float = tunable(1.0)

    with pytest.raises(UsageError, match=r"Endless\.x is tunable but has no range"):
        search_space(Endless)


@pytest.mark.parametrize("name", METHODS.names())
def test_the_defaults_of_every_method_are_within_their_own_range(name: str) -> None:
    kind = METHODS.get(name).config
    defaults = {field.name: getattr(kind(), field.name) for field in fields(kind)}
    assert build_config(kind, defaults, owner=name) == kind()


@pytest.mark.parametrize("name", METHODS.names())
def test_every_number_of_a_method_has_a_range(name: str) -> None:
    """Without one, a typing error such as lr=30 would be found after hours, or never."""
    for field in fields(METHODS.get(name).config):
        if isinstance(field.default, bool) or not isinstance(field.default, int | float):
            continue
        bounds = bounds_of(field)
        assert bounds.choices or None not in (bounds.low, bounds.high), field.name


def test_the_knobs_of_context_similarity_can_be_searched() -> None:
    """r, beta, t, gamma and its two bounds; t = 32 is what the released code computes with."""
    space = search_space(METHODS.get("cpr").config)
    assert {"radius", "beta", "iterations", "threshold", "low", "high"} <= set(space)
    assert space["iterations"]._contains(32)
    assert "initial_threshold" not in space


def test_a_setting_added_later_changes_a_key_only_when_it_is_moved() -> None:
    @dataclass(frozen=True)
    class Grown:
        lr: float = setting(0.1, 0.0, 1.0)
        warmup: int = setting(0, 0, 10, added=True)

    assert keyed_values(Grown()) == {"lr": 0.1}
    assert keyed_values(Grown(warmup=3)) == {"lr": 0.1, "warmup": 3}

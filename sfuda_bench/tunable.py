"""A setting's default, range and symbol, declared once beside each other."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sfuda_bench.errors import UsageError
from sfuda_bench.registry import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

BELOW_ONE = 0.999999
"""Largest momentum: Adam refuses 1."""

_KEY = "sfuda_bench"
C = TypeVar("C")


@dataclass(frozen=True)
class Bounds:
    """What values a setting may take and how it is written in papers.

    Attributes:
        low: Smallest value, or ``None``.
        high: Largest value, or ``None``.
        log: Search on a logarithmic scale.
        choices: The allowed values, or ``()`` when a range applies.
        symbol: Name in the paper, e.g. ``"r"``.
        search: Whether a study may move it.
        added: Whether the setting came after results had been stored; see :func:`keyed_values`.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    symbol: str = ""
    search: bool = False
    added: bool = False


def tunable(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    log: bool = False,
    choices: tuple[Any, ...] = (),
    symbol: str = "",
    added: bool = False,
) -> Any:
    """Declare a config field that a study may search within the given range."""
    bounds = Bounds(low, high, log, choices, symbol, search=True, added=added)
    return dataclasses.field(default=default, metadata={_KEY: bounds})


def setting(
    default: Any,
    low: float | None = None,
    high: float | None = None,
    *,
    choices: tuple[Any, ...] = (),
    symbol: str = "",
    added: bool = False,
) -> Any:
    """Declare a config field with a valid range that studies leave alone by default.

    ``added=True`` marks a setting whose default repeats what was done before it existed.
    """
    bounds = Bounds(low, high, False, choices, symbol, added=added)
    return dataclasses.field(default=default, metadata={_KEY: bounds})


def bounds_of(field: dataclasses.Field[Any]) -> Bounds:
    """Return the declared bounds of a config field (none for a plain field)."""
    found = field.metadata.get(_KEY, Bounds())
    assert isinstance(found, Bounds)  # only tunable() and setting() write this key
    return found


def keyed_values(config: Any) -> dict[str, Any]:
    """Return the JSON-able values of a config that a content key depends on.

    A setting marked ``added`` is left out while it has its default: results that were stored
    before it existed keep their keys.
    """
    values = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if bounds_of(field).added and value == field.default:
            continue
        values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def search_space(config: type[Any]) -> dict[str, BaseDistribution]:
    """Return Optuna distributions of the tunable fields of a config class."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    space: dict[str, BaseDistribution] = {}
    for field in dataclasses.fields(config):
        bounds = bounds_of(field)
        if not bounds.search:
            continue
        if bounds.choices:
            space[field.name] = CategoricalDistribution(bounds.choices)
        elif bounds.low is None or bounds.high is None:
            raise UsageError(f"{config.__name__}.{field.name} is tunable but has no range")
        elif isinstance(field.default, int):
            space[field.name] = IntDistribution(int(bounds.low), int(bounds.high), log=bounds.log)
        else:
            space[field.name] = FloatDistribution(bounds.low, bounds.high, log=bounds.log)
    return space


def build_config(config: type[C], values: Mapping[str, Any], *, owner: str) -> C:
    """Build a config from loosely typed values and check every one of them, then all together.

    Args:
        config: A frozen dataclass whose fields are int, float, bool, str or tuples of these.
        values: Field name to value; strings are converted to the field's type.
        owner: Name used in messages, e.g. ``"cpr"``.

    Raises:
        UsageError: Unknown field, wrong type, a value outside its declared range, or values that
            exclude each other.
    """
    return config(**checked_values(config, values, owner=owner))


def checked_values(config: type[Any], values: Mapping[str, Any], *, owner: str) -> dict[str, Any]:
    """Convert and check values one by one; whether they go together is the config's business.

    Raises:
        UsageError: Unknown field, wrong type, or a value outside its declared range.
    """
    hints = typing.get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config)}
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            nearest = did_you_mean(name, list(fields))
            raise UsageError(
                f"unknown setting '{owner}.{name}'{nearest}; known: {', '.join(sorted(fields))}",
                hint="sfuda-bench plan --explain",
            )
        converted[name] = convert(value, hints[name], where=f"{owner}.{name}")
        _check_bounds(converted[name], bounds_of(fields[name]), where=f"{owner}.{name}")
    return converted


def convert(value: Any, hint: Any, *, where: str) -> Any:
    """Convert ``value`` (perhaps text from the command line) to the annotated type."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _convert_optional(value, hint, where=where)
    if origin is typing.Literal:
        return _convert_literal(value, typing.get_args(hint), where=where)
    if origin is tuple:
        return _convert_tuple(value, hint, where=where)
    try:
        return _convert_scalar(value, hint)
    except (TypeError, ValueError, OverflowError) as error:
        expected = getattr(hint, "__name__", str(hint))
        raise UsageError(f"{where} = {value!r}: expected {expected}") from error


def _convert_optional(value: Any, hint: Any, *, where: str) -> Any:
    inner = [arm for arm in typing.get_args(hint) if arm is not type(None)]
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
        return None
    return convert(value, inner[0], where=where)


def _convert_literal(value: Any, allowed: tuple[Any, ...], *, where: str) -> Any:
    for choice in allowed:
        if value == choice or str(value) == str(choice):
            return choice
    nearest = did_you_mean(str(value), [str(choice) for choice in allowed])
    known = ", ".join(str(choice) for choice in allowed)
    raise UsageError(f"{where} = {value!r} is not one of: {known}{nearest}")


def _convert_tuple(value: Any, hint: Any, *, where: str) -> tuple[Any, ...]:
    arms = typing.get_args(hint)
    if not isinstance(value, str | list | tuple):
        raise UsageError(f"{where} = {value!r}: expected a list of values")
    parts = value.split(",") if isinstance(value, str) else list(value)
    if arms[-1] is Ellipsis:
        arms = (arms[0],) * len(parts)
    if len(parts) != len(arms):
        raise UsageError(f"{where} = {value!r}: expected {len(arms)} values")
    return tuple(convert(part, arm, where=where) for part, arm in zip(parts, arms, strict=True))


def _convert_scalar(value: Any, hint: Any) -> Any:
    if hint is bool:
        return _convert_bool(value)
    if hint is int:
        number = float(value)
        if isinstance(value, bool) or number != int(number):
            raise ValueError(value)
        return int(number)
    if hint is float:
        if isinstance(value, bool):
            raise ValueError(value)
        return float(value)
    if hint is str:
        if not isinstance(value, str):
            raise ValueError(value)
        return value
    raise TypeError(f"unsupported annotation {hint}")


def _convert_bool(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True}
    words |= {"false": False, "no": False, "off": False, "0": False}
    if isinstance(value, bool):
        return value
    try:
        return words[str(value).lower()]
    except KeyError as error:
        raise ValueError(value) from error


def _check_bounds(value: Any, bounds: Bounds, *, where: str) -> None:
    if value is None:
        return
    if bounds.choices and value not in bounds.choices:
        nearest = did_you_mean(str(value), [str(c) for c in bounds.choices])
        allowed = ", ".join(str(c) for c in bounds.choices)
        raise UsageError(f"{where} = {value!r} is not one of: {allowed}{nearest}")
    for part in value if isinstance(value, tuple) else (value,):
        if isinstance(part, float) and not math.isfinite(part):
            raise UsageError(f"{where} = {value!r} is not a finite number")
        too_low = bounds.low is not None and part < bounds.low
        too_high = bounds.high is not None and part > bounds.high
        if too_low or too_high:
            raise UsageError(f"{where} = {value!r} is outside [{bounds.low}, {bounds.high}]")

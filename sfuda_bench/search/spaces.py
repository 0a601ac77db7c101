"""Search spaces: the tunable settings that a study moves, their ranges and what must hold."""

from __future__ import annotations

import dataclasses
import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from sfuda_bench.errors import UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.search.toml_file import check_keys
from sfuda_bench.tunable import bounds_of, checked_values, search_space

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from sfuda_bench.methods import MethodSpec

Point = dict[str, Any]
"""Setting to value."""

_KEYS = ("low", "high", "log", "step", "choices", "points")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONSTRAINT = re.compile(r"\s*([\w.+-]+)\s*(<=|>=|<|>)\s*([\w.+-]+)\s*")


@dataclass(frozen=True)
class Constraint:
    """``left <= right`` between settings or numbers; ``text`` is what the file says."""

    left: str | float
    relation: str
    right: str | float
    text: str

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it holds for the values of a config's settings."""
        ends = [values[e] if isinstance(e, str) else e for e in (self.left, self.right)]
        return _COMPARISONS[self.relation](*ends)


@dataclass(frozen=True)
class Space:
    """What a study moves of one method.

    Attributes:
        method: Registered name.
        knobs: Setting to its Optuna distribution, in the file's order.
        constraints: What must hold besides the rules of the config itself.
        base: The config that points are put on.
        image_size: Side of the model's input, px.
        check: The method's own check of (config, image size), or ``None``.
        points: Values that a grid takes of a continuous setting.
        pair_bases: The config of each pair whose other settings differ from ``base``.
    """

    method: str
    knobs: Mapping[str, BaseDistribution]
    constraints: tuple[Constraint, ...]
    base: Any
    image_size: int
    check: Callable[[Any, int], None] | None = None
    points: Mapping[str, int] = dataclasses.field(default_factory=dict)
    pair_bases: tuple[Any, ...] = ()

    def refusal(self, point: Point) -> str:
        """Return why a point cannot be run, or nothing."""
        try:
            values = checked_values(type(self.base), point, owner=self.method)
            configs = [dataclasses.replace(c, **values) for c in (self.base, *self.pair_bases)]
            for config in configs:
                if self.check is not None:
                    self.check(config, self.image_size)
        except UsageError as error:
            return error.message
        for constraint in self.constraints:
            if not all(constraint.holds(vars(config)) for config in configs):
                return f"{constraint.text} does not hold"
        return ""

    def at(self, unit: Sequence[float]) -> Point:
        """Return the point at a position of the unit cube.

        Args:
            unit: (d,) numbers in [0, 1), one per knob.
        """
        return {
            name: value_at(distribution, float(position))
            for (name, distribution), position in zip(self.knobs.items(), unit, strict=True)
        }

    def grid(self) -> Iterator[Point]:
        """Yield every feasible point of the grid, the last knob fastest.

        Raises:
            UsageError: A continuous setting without ``points``, ``step`` or ``choices``.
        """
        axes = [self.axis(name) for name in self.knobs]
        for values in product(*axes):
            point = dict(zip(self.knobs, values, strict=True))
            if not self.refusal(point):
                yield point

    def axis(self, name: str) -> list[Any]:
        """Return the values of one knob on the grid."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        knob = self.knobs[name]
        if isinstance(knob, CategoricalDistribution):
            return list(knob.choices)
        if name in self.points:
            count = self.points[name]
            ends = np.linspace(0.0, 1.0, count) if count > 1 else np.array([0.5])
            return list(dict.fromkeys(value_at(knob, float(end)) for end in ends))
        if isinstance(knob, IntDistribution):
            return list(range(knob.low, knob.high + 1, knob.step))
        step = getattr(knob, "step", None)
        if step is None:
            raise UsageError(
                f"sampler 'grid' cannot enumerate {self.method}.{name}, which is continuous",
                hint=f"{name} = {{ points = 5 }} or {{ choices = [...] }}",
            )
        count = round((knob.high - knob.low) / step) + 1  # type: ignore[attr-defined]  # a float's
        return [knob.low + step * place for place in range(count)]  # type: ignore[attr-defined]  # a float's

    def symbols(self) -> dict[str, str]:
        """Return each setting's symbol in papers, where it has one."""
        fields = {f.name: bounds_of(f).symbol for f in dataclasses.fields(self.base)}
        return {name: fields[name] for name in self.knobs if fields[name]}

    def label(self, name: str) -> str:
        """Return a setting's name with the paper's symbol, e.g. ``"iterations (t)"``."""
        symbol = self.symbols().get(name, name)
        return f"{name} ({symbol})" if symbol != name else name

    def to_json(self) -> dict[str, Any]:
        """Return the space as JSON, to tell whether a study file has changed."""
        from optuna.distributions import distribution_to_json

        return {
            "knobs": {n: json.loads(distribution_to_json(k)) for n, k in self.knobs.items()},
            "constraints": [constraint.text for constraint in self.constraints],
            "points": dict(self.points),
        }


def value_at(distribution: BaseDistribution, unit: float) -> Any:
    """Return the value of a distribution at a position in [0, 1].

    Integers and choices get equal shares of the interval, on a logarithmic scale where the
    distribution has one.
    """
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(distribution, CategoricalDistribution):
        count = len(distribution.choices)
        return distribution.choices[min(count - 1, int(unit * count))]
    if isinstance(distribution, IntDistribution):
        half = distribution.step / 2
        value = _between(distribution.low - half, distribution.high + half, distribution.log, unit)
        steps = round((value - distribution.low) / distribution.step)
        most = (distribution.high - distribution.low) // distribution.step
        return distribution.low + distribution.step * min(most, max(0, steps))
    if not isinstance(distribution, FloatDistribution):
        raise TypeError(f"unknown distribution {distribution}")
    value = _between(distribution.low, distribution.high, distribution.log, unit)
    if distribution.step is not None:
        steps = round((value - distribution.low) / distribution.step)
        value = distribution.low + distribution.step * steps
    return min(distribution.high, max(distribution.low, value))


def _between(low: float, high: float, log: bool, unit: float) -> float:
    if log:
        return float(np.exp(np.log(low) + unit * (np.log(high) - np.log(low))))
    return low + unit * (high - low)


def read_space(
    where: str,
    spec: MethodSpec,
    table: Mapping[str, Any],
    constraints: Sequence[str],
    base: Any,
    image_size: int,
) -> Space:
    """Check one ``[space.METHOD]`` table.

    Args:
        where: The file, for messages.
        spec: The method.
        table: Setting to ``{}`` (its whole declared range) or to a table of ``low``, ``high``,
            ``log``, ``step``, ``choices`` and ``points``.
        constraints: Texts like ``"low <= high"``.
        base: The config that points are put on.
        image_size: Side of the model's input, px.

    Raises:
        UsageError: A setting that is unknown or not tunable, a range outside the declared one,
            a constraint that cannot be read.
    """
    place = f"{where} [space.{spec.name}]"
    if not table:
        raise UsageError(f"{place}: no setting to move", hint="name one, e.g. lr = {}")
    declared = search_space(spec.config)
    knobs: dict[str, BaseDistribution] = {}
    points: dict[str, int] = {}
    for name, given in table.items():
        _check_tunable(place, spec, name, declared)
        if not isinstance(given, Mapping):
            raise UsageError(
                f"{place}: {name} = {given!r}: expected a table",
                hint=f"{name} = {{}} or {{ low = ..., high = ... }} or {{ choices = [...] }}",
            )
        check_keys(f"{place} {name}", given, _KEYS)
        knobs[name] = _narrowed(f"{place} {name}", spec, name, given, declared[name])
        if "points" in given:
            points[name] = _points(f"{place} {name}", given["points"])
    read = tuple(_constraint(f"{where} [constraints]", text, base) for text in constraints)
    return Space(spec.name, knobs, read, base, image_size, spec.check, points)


def _points(place: str, given: Any) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 1:
        raise UsageError(f"{place}: points = {given!r}: expected an integer of at least 1")
    return given


def _check_tunable(
    place: str, spec: MethodSpec, name: str, declared: Mapping[str, BaseDistribution]
) -> None:
    if name in declared:
        return
    fields = {field.name: bounds_of(field) for field in dataclasses.fields(spec.config)}
    if name in fields:
        raise UsageError(
            f"{place}: '{name}' is a setting of {spec.name} but not tunable; "
            f"tunable: {', '.join(declared) or 'none'}",
            hint=f"declare it with tunable(...) in {spec.origin}",
        )
    named = [field for field, bounds in fields.items() if bounds.symbol == name]
    near = f" (it is called '{named[0]}')" if named else did_you_mean(name, list(declared))
    raise UsageError(
        f"{place}: unknown setting '{name}'{near}; tunable: {', '.join(declared) or 'none'}",
        hint="sfuda-bench plan --explain",
    )


def _narrowed(
    place: str, spec: MethodSpec, name: str, given: Mapping[str, Any], declared: BaseDistribution
) -> BaseDistribution:
    """Return the distribution that the file asks for, inside the declared one."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in given:
        return CategoricalDistribution(_choices(place, spec, name, given["choices"]))
    if isinstance(declared, CategoricalDistribution):
        _refuse(place, given, ("low", "high", "log", "step", "points"), "it has choices")
        return declared
    if not isinstance(declared, IntDistribution | FloatDistribution):
        raise UsageError(f"{place}: cannot be searched")
    low, high = given.get("low", declared.low), given.get("high", declared.high)
    for value in (low, high):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{place}: {value!r}: expected a number")
    if not declared.low <= low <= high <= declared.high:
        raise UsageError(
            f"{place}: [{low}, {high}] is not inside the declared range "
            f"[{declared.low}, {declared.high}]",
            hint="narrow it, or declare a wider range beside the setting",
        )
    log = bool(given.get("log", declared.log and "step" not in given and low > 0))
    try:
        if isinstance(declared, IntDistribution):
            _check_whole(place, [low, high, given.get("step", 1)])
            return IntDistribution(int(low), int(high), log=log, step=int(given.get("step", 1)))
        return FloatDistribution(float(low), float(high), log=log, step=given.get("step"))
    except ValueError as error:
        raise UsageError(f"{place}: {error}", hint="low, high, log, step") from error


def _check_whole(place: str, values: Sequence[Any]) -> None:
    for value in values:
        if value != int(value):
            raise UsageError(f"{place}: {value!r}: the setting is an integer")


def _choices(place: str, spec: MethodSpec, name: str, given: Any) -> list[Any]:
    if not isinstance(given, list) or not given:
        raise UsageError(f"{place}: choices = {given!r}: expected a list of values")
    try:
        return [checked_values(spec.config, {name: v}, owner=spec.name)[name] for v in given]
    except UsageError as error:
        raise UsageError(f"{place}: {error.message}", hint=error.hint) from error


def _refuse(place: str, given: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
    for key in keys:
        if key in given:
            raise UsageError(f"{place}: '{key}' does not apply: {why}", hint="choices = [...]")


def _constraint(place: str, text: Any, base: Any) -> Constraint:
    match = _CONSTRAINT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise UsageError(
            f"{place}: {text!r}: expected two settings or numbers and one of <= >= < >",
            hint='"low <= high"',
        )
    names = [field.name for field in dataclasses.fields(base)]
    ends = [_end(place, text, end, names) for end in (match[1], match[3])]
    return Constraint(ends[0], match[2], ends[1], text)


def _end(place: str, text: str, end: str, names: Sequence[str]) -> str | float:
    if end in names:
        return end
    try:
        return float(end)
    except ValueError:
        near = did_you_mean(end, list(names))
        raise UsageError(
            f"{place}: '{text}': unknown setting '{end}'{near}", hint="sfuda-bench plan --explain"
        ) from None

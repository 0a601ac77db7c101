"""Names of derived domains: a generated domain with some of its knobs turned.

``BASE@KNOB=SEVERITY[+KNOB=SEVERITY]``, such as ``synthetic_a@blur=0.2+colour=0.4``, is an ordinary
domain name that any file system takes: knobs in alphabetical order, severities in [0, 1] with at
most three digits, none of them 0. ``BASE@0`` is the base domain under a second name, so that it
can be the target of its own source model: the left end of every curve.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfuda_bench.errors import UsageError

GRAMMAR = "BASE@KNOB=SEVERITY, BASE@KNOB=LOW..HIGH/STEPS, several joined by +; BASE@*=... for each"
_HINT = "synthetic_a@blur=0.4, synthetic_a@colour=0..1/5, synthetic_a@blur=0.2+noise=0..1/2"
_NUMBER = r"(?:0|1|0?\.\d{1,3}|1\.0{1,3})"
_LEVEL = re.compile(_NUMBER)
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})/([1-9]\d?)")
_NONE = "0"
_MOST = 10_000  # domains of one pattern: what is drawn and computed must end
UNTURNED = f"@{_NONE}"
"""Ends the second name of a base domain."""


@dataclass(frozen=True)
class Derived:
    """A base domain and the severities of its turned knobs, none of them 0."""

    base: str
    severity: Mapping[str, float]

    @property
    def name(self) -> str:
        """The domain's one name."""
        turned = sorted(self.severity.items())
        return f"{self.base}@{'+'.join(f'{k}={v:g}' for k, v in turned) or _NONE}"


def is_derived(name: str) -> bool:
    """Whether a name is that of a derived domain, or a pattern of such names."""
    return "@" in name


def base_of(name: str) -> str:
    """Return the base domain's name; a name without knobs is its own base."""
    return name.partition("@")[0]


def split_name(name: str) -> Derived:
    """Return base and severities of a name; without ``@`` nothing is turned.

    Raises:
        UsageError: Malformed, or a pattern that stands for several domains.
    """
    if not is_derived(name):
        return Derived(name, {})
    base, _, knobs = name.partition("@")
    severity = {} if knobs.strip() == _NONE else _one(name, knobs)
    return Derived(base.strip(), {knob: value for knob, value in severity.items() if value > 0})


def expand(pattern: str, knobs: Sequence[str]) -> list[Derived]:
    """Return the derived domains that a pattern stands for, in the order of its levels.

    Args:
        pattern: As :data:`GRAMMAR`: ``LOW..HIGH/STEPS`` are ``STEPS`` equal steps, both ends
            included; ``*`` as a knob stands for each knob alone; several knobs with several
            levels each stand for every combination.
        knobs: The knobs that the base domain has.

    Raises:
        UsageError: Malformed, an unknown knob, or a severity outside [0, 1].
    """
    base, _, text = (part.strip() for part in pattern.partition("@"))
    if text == _NONE:
        return [Derived(base, {})]
    levels = _levels(pattern, text)
    if unknown := [knob for knob in levels if knob not in (*knobs, "*")]:
        known = ", ".join(knobs) or f"{base} has none"
        near = difflib.get_close_matches(unknown[0], knobs, n=1)
        meant = f" (did you mean '{near[0]}'?)" if near else ""
        raise UsageError(f"{pattern}: no knob '{unknown[0]}'{meant}; knobs: {known}", hint=_HINT)
    if math.prod(map(len, levels.values())) > _MOST:
        raise UsageError(f"{pattern}: stands for more than {_MOST} domains", hint=_HINT)
    every = knobs if "*" in levels else [""]
    found = []
    for knob in every:
        if knob in levels:
            continue  # it is set by its own name
        named = {knob if k == "*" else k: values for k, values in levels.items()}
        for values in itertools.product(*named.values()):
            turned = dict(zip(named, values, strict=True))
            found.append(Derived(base, {k: v for k, v in turned.items() if v > 0}))
    return found


def _one(name: str, text: str) -> dict[str, float]:
    levels = _levels(name, text)
    if "*" in levels or any(len(values) != 1 for values in levels.values()):
        raise UsageError(f"{name}: stands for several domains, expected one", hint=_HINT)
    return {knob: values[0] for knob, values in levels.items()}


def _levels(pattern: str, text: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for part in text.split("+"):
        knob, equals, values = (piece.strip() for piece in part.partition("="))
        if not equals or not re.fullmatch(r"[a-z_]+|\*", knob):
            raise UsageError(
                f"{pattern}: '{part}': expected KNOB=SEVERITY, the knob in lower case", hint=_HINT
            )
        if knob in found:
            raise UsageError(f"{pattern}: knob '{knob}' is given twice", hint=_HINT)
        found[knob] = _values(pattern, values)
    return found


def _values(pattern: str, text: str) -> list[float]:
    if _LEVEL.fullmatch(text):
        return [float(text)]
    match = _RANGE.fullmatch(text)
    if match is None or float(match[1]) >= float(match[2]):
        raise UsageError(
            f"{pattern}: '{text}': expected 0 to 1 with at most three digits, or LOW..HIGH/STEPS "
            "with LOW below HIGH and 1 to 99 steps",
            hint=_HINT,
        )
    low, high, steps = float(match[1]), float(match[2]), int(match[3])
    return [round(low + (high - low) * step / steps, 3) for step in range(steps + 1)]

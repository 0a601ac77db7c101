"""The port of label-free validators: numbers that say how good a model is, without a label.

A validator is one function in a module of this package or in a plug-in file::

    @register_validator("entropy", version=1, source="...")
    def entropy(record: ValidationRecord) -> tuple[float, float]: ...

It returns one value for the cup and one for the disc, higher = better; NaN and infinity count as
the worst. The record holds what it declares with ``needs=`` and the probabilities, and no label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sfuda_bench.errors import UsageError
from sfuda_bench.registry import Registry, defining_file
from sfuda_bench.scoring.validators.collapse import COLLAPSE_NEEDS, collapsed
from sfuda_bench.scoring.validators.ranking import (
    COLLAPSED,
    PRIMARY,
    PRIMARY_NAME,
    choose,
    rank_mean,
    rows_of,
    weighted_spearman,
)
from sfuda_bench.scoring.validators.record import (
    NEEDS,
    BatchNormMoments,
    ValidationRecord,
    View,
)

__all__ = [
    "COLLAPSED",
    "COLLAPSE_NEEDS",
    "NEEDS",
    "PRIMARY",
    "PRIMARY_NAME",
    "VALIDATORS",
    "BatchNormMoments",
    "ValidationRecord",
    "ValidatorSpec",
    "View",
    "choose",
    "collapsed",
    "evaluate",
    "get_validator",
    "rank_mean",
    "register_validator",
    "rows_of",
    "weighted_spearman",
]

Validator = Callable[[ValidationRecord], tuple[float, float]]
STRICTNESS = ("S0", "S1", "S2")
"""S0 needs the source model alone, S1 a few scalars of source labels, S2 tensors."""
_S1_NEEDS = frozenset({"area_prior"})
_NOT_SOURCE_FREE = {
    "dev": "source features and labels",
    "iwcv": "source features and labels",
    "mmd": "source features",
    "knn": "source features and labels",
    "source_val": "labelled source images",
}
_RESERVED = (COLLAPSED, PRIMARY_NAME, *_NOT_SOURCE_FREE)


@dataclass(frozen=True)
class ValidatorSpec:
    """One registered validator.

    Attributes:
        name: Name in files, selections and tables.
        version: Integer; raise it when values change.
        function: Takes a record, returns the values of cup and disc, higher = better.
        needs: Fields of the record that it may see besides ``prob``.
        strictness: Widest class of source-side information that it uses.
        source: Where the formula comes from.
        description: First line of its docstring.
        origin: File that registered it.
    """

    name: str
    version: int
    function: Validator
    needs: frozenset[str]
    strictness: str
    source: str
    description: str
    origin: str


VALIDATORS: Registry[ValidatorSpec] = Registry("validators", __name__)


def register_validator(
    name: str,
    *,
    version: int,
    source: str,
    needs: Iterable[str] = (),
    strictness: str = "S0",
) -> Callable[[Validator], Validator]:
    """Register the decorated function as a validator.

    Args:
        name: Name in files, selections and tables.
        version: Integer; raise it when values change.
        source: Where the formula comes from.
        needs: Fields of the record that it may see besides ``prob``; see :data:`NEEDS`.
        strictness: ``"S0"``, ``"S1"`` (any that needs ``area_prior``) or ``"S2"``.

    Raises:
        UsageError: A name that is taken or reserved, an unknown need, or a class too narrow.
    """
    if name.lower() in _RESERVED:
        raise UsageError(f"validator '{name}': this name is reserved", hint="choose another name")
    unknown = sorted(set(needs := frozenset(needs)) - set(NEEDS))
    if unknown:
        raise UsageError(
            f"validator '{name}' needs an unknown '{unknown[0]}'; known: {', '.join(NEEDS)}",
            hint="see sfuda_bench.scoring.validators.ValidationRecord",
        )
    if strictness not in STRICTNESS or (needs & _S1_NEEDS and strictness == "S0"):
        raise UsageError(
            f"validator '{name}': strictness {strictness}; expected one of "
            f"{', '.join(STRICTNESS)}, and at least S1 with {', '.join(sorted(_S1_NEEDS))}"
        )

    def decorate(function: Validator) -> Validator:
        spec = ValidatorSpec(
            name=name,
            version=version,
            function=function,
            needs=needs,
            strictness=strictness,
            source=source,
            description=(function.__doc__ or "").strip().partition("\n")[0],
            origin=defining_file(function),
        )
        VALIDATORS.add(name, spec, origin=spec.origin)
        return function

    return decorate


def get_validator(name: str) -> ValidatorSpec:
    """Return a registered validator.

    Raises:
        UsageError: The name is unknown, or of a validator that needs source images.
    """
    wanted = _NOT_SOURCE_FREE.get(name.lower())
    if wanted is not None:
        raise UsageError(
            f"validator '{name}' is not source-free: it needs {wanted}",
            hint="sfuda-bench ls validators",
        )
    return VALIDATORS.get(name)


def evaluate(record: ValidationRecord, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return the values of cup and disc of each named validator.

    Args:
        record: Of one model; each validator is handed the part that it declares.
        names: Registered validators.

    Undefined:
        NaN, the worst, where something that a validator needs was not recorded, e.g. two dropout
        passes of a network without dropout.
    """
    found: dict[str, tuple[float, float]] = {}
    for name in names:
        spec = get_validator(name)
        if record.lacks(spec.needs):
            found[spec.name] = (math.nan, math.nan)
            continue
        cup, disc = spec.function(record.only(spec.needs))
        found[spec.name] = (float(cup), float(disc))
    return found

"""Source model or adapted model: what the label-free validators say, and the advice from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.scoring.validators import COLLAPSED, PRIMARY, PRIMARY_NAME, choose

if TYPE_CHECKING:
    import pandas as pd

KEEP = "keep the source model"
USE = "use the adapted model"
UNCHANGED = "nothing changed: the adapted model is the source model"
LIMITS = (
    "No label was used: these numbers only order two models, they measure no accuracy, and they "
    "can agree on a model that is wrong; look at some predicted masks before you rely on one."
)


def evidence(frame: pd.DataFrame, *, unchanged: bool = False) -> dict[str, Any]:
    """Set the adapted model beside the source model, and say which one to use.

    Args:
        frame: ``epoch`` (0 is the source model, the last one the adapted model), ``validator``,
            ``structure``, ``value`` (higher is better).
        unchanged: Both models have the same bytes.

    Returns:
        A JSON-able document: ``validators`` (rows of validator, structure, source, adapted, and
        which of the two it prefers), ``collapsed`` (model to the structures whose masks have
        degenerated), ``primary`` (the preferred model of the validators fixed in advance, without
        the collapse filter), ``prefer_adapted`` and ``asked`` (validators by themselves),
        ``advice``, ``keep`` (whether it is to keep the source model),
        ``reason``, ``limits``.

    Undefined:
        A value that is not finite is ``None``; it counts as the worst.
    """
    last = int(frame["epoch"].max())
    frame = frame[frame["epoch"].isin((0, last))]
    columns = (frame[name].tolist() for name in ("epoch", "validator", "structure", "value"))
    values = {
        (e, name, structure): value for e, name, structure, value in zip(*columns, strict=True)
    }
    names = sorted(set(frame["validator"]) - {COLLAPSED}, key=lambda n: (n not in PRIMARY, n))
    rows = [
        {
            "validator": name,
            "structure": structure,
            "source": _finite(values[0, name, structure]),
            "adapted": _finite(values[last, name, structure]),
            "primary": name in PRIMARY,
        }
        for name in names
        for structure in STRUCTURES
    ]
    collapsed = {
        model: [s for s in STRUCTURES if values.get((epoch, COLLAPSED, s), 0.0) > 0]
        for model, epoch in (("source", 0), ("adapted", last))
    }
    votes = {name: _choice(frame, name) for name in names}
    primary = _choice(frame, PRIMARY_NAME)
    advice, reason = _advice(primary, collapsed, unchanged)
    return {
        "validators": rows,
        "collapsed": collapsed,
        "primary": primary,
        "prefer_adapted": sum(choice == "adapted" for choice in votes.values()),
        "asked": len(votes),
        "advice": advice,
        "keep": advice == KEEP,
        "reason": reason,
        "limits": LIMITS,
    }


def _choice(frame: pd.DataFrame, name: str) -> str:
    """Return which model a validator prefers; of equal ones the source model."""
    return "adapted" if choose(frame, name, filtered=False) else "source"


def _advice(primary: str, collapsed: dict[str, list[str]], unchanged: bool) -> tuple[str, str]:
    """Return the advice and its reason; the collapse filter comes before any preference."""
    if unchanged:
        return UNCHANGED, "their weights are equal, byte for byte"
    if lost := collapsed["adapted"]:
        also = "; those of the source model have too" if collapsed["source"] else ""
        return KEEP, f"the adapted model's {' and '.join(lost)} masks have collapsed{also}"
    members = ", ".join(PRIMARY)
    if collapsed["source"]:
        lost = collapsed["source"]
        return USE, f"the source model's {' and '.join(lost)} masks have collapsed here"
    if primary == "source":
        return KEEP, f"the validators fixed in advance ({members}) do not prefer the adapted one"
    return USE, f"the validators fixed in advance ({members}) prefer it"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

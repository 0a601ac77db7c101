"""What finished trials say: which one is chosen for which pair, and which settings are inert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from sfuda_bench.search.objectives import CellResult, Objective
from sfuda_bench.search.spaces import Point, Space, value_at
from sfuda_bench.search.study import results_of

_PROBES = (0.0, 0.999999, 0.25, 0.75, 0.5)  # positions in a setting's range


@dataclass(frozen=True)
class Choice:
    """The settings that an objective chooses for some pairs.

    Attributes:
        pairs: For which pairs, ``source:target``.
        number: Of the trial.
        point: Its settings.
        value: What Optuna stores of it.
        results: Its cells of these pairs.
    """

    pairs: tuple[str, ...]
    number: int
    point: Point
    value: float
    results: tuple[CellResult, ...]


def choose(
    trials: Sequence[FrozenTrial], objective: Objective, pairs: Sequence[str]
) -> list[Choice]:
    """Return the choice of an objective: one for all pairs, or one per pair for ``transfer``.

    Equal trials: the earlier one.

    Args:
        trials: Completed trials of one method.
        objective: The selection rule.
        pairs: Of the study.

    Returns:
        Nothing when every trial collapsed: then no adaptation is chosen.
    """
    if not trials:
        return []
    if objective.kind != "transfer":
        usable = [t for t in trials if not (objective.label_free and collapsed(t))]
        if not usable:
            return []
        preference = objective.prefer([results_of(trial) for trial in usable])
        return [_choice(usable[int(np.argmax(preference))], pairs)]
    found = []
    for pair in pairs:
        others = [[r for r in results_of(t) if _target(r.pair) != _target(pair)] for t in trials]
        best = int(np.argmax([objective.value(results) for results in others]))
        found.append(_choice(trials[best], [pair]))
    return found


def collapsed(trial: FrozenTrial) -> bool:
    """Whether the degeneracy filter rejects a trial's model on any pair."""
    return any(result.collapsed for result in results_of(trial))


def _choice(trial: FrozenTrial, pairs: Sequence[str]) -> Choice:
    results = tuple(r for r in results_of(trial) if r.pair in pairs)
    value = float(trial.value) if trial.value is not None else float("nan")
    return Choice(tuple(pairs), trial.number, dict(trial.params), value, results)


def _target(pair: str) -> str:
    return pair.partition(":")[2]


# -- settings that change nothing -----------------------------------------------------------------


def models_of(results: Sequence[CellResult]) -> tuple[tuple[str, str], ...]:
    """Return what identifies the adapted models of a trial, in the order of their places."""
    return tuple(sorted((result.place, result.adapted) for result in results))


def same_models(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    """Return the sets of trials whose adapted models are byte for byte the same.

    Returns:
        One entry per set: ``trials`` (numbers), ``knobs`` (settings that differ among them),
        ``alone`` (whether that is a single setting, which is then inert between these values).
    """
    groups: dict[tuple[tuple[str, str], ...], list[FrozenTrial]] = {}
    for trial in trials:
        groups.setdefault(models_of(results_of(trial)), []).append(trial)
    found = []
    for group in groups.values():
        if len(group) < 2:
            continue
        names = list(group[0].params)
        knobs = [n for n in names if len({repr(trial.params[n]) for trial in group}) > 1]
        entry = {"trials": [t.number for t in group], "knobs": knobs, "alone": len(knobs) == 1}
        found.append(entry)
    return found


def probes(space: Space, choice: Choice) -> dict[str, Point]:
    """Return, for each setting, the chosen point with that setting alone moved far away.

    A setting that cannot be moved alone is left out.
    """
    found = {}
    for name, knob in space.knobs.items():
        moved = [{**choice.point, name: value_at(knob, unit)} for unit in _PROBES]
        usable = [
            point
            for point in moved
            if point[name] != choice.point[name] and not space.refusal(point)
        ]
        if usable:
            found[name] = max(usable, key=lambda point: _distance(point, choice.point, name))
    return found


def _distance(first: Mapping[str, Any], second: Mapping[str, Any], name: str) -> float:
    ends = first[name], second[name]
    if all(isinstance(end, int | float) for end in ends):
        return abs(float(ends[0]) - float(ends[1]))
    return 1.0


def inert_sentences(
    method: str, sets: Sequence[Mapping[str, Any]], probed: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Say in words which settings changed nothing."""
    sentences = []
    for entry in sets:
        numbers = ", ".join(map(str, entry["trials"]))
        which = " and ".join(entry["knobs"]) or "no setting"
        sentences.append(
            f"{method}: trials {numbers} differ in {which} and give byte-identical models"
            + ("; it is inert there." if entry["alone"] else ".")
        )
    for entry in probed:
        if not entry["changed"]:
            sentences.append(
                f"{method}: {entry['knob']} is inert at the chosen point: moving it alone from "
                f"{_short(entry['from'])} to {_short(entry['to'])} gives byte-identical models."
            )
    return sentences


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

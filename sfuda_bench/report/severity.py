"""Scores over severity: which pairs of derived domains make a curve, and what each method does.

A curve has one source, one base domain and one knob; the other knobs stay where they are. Its left
end is the base domain itself. What a method repairs or harms is read from its change against the
unadapted source model at the same severity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.records import CellRecord, read_cases
from sfuda_bench.report.rows import MethodRow, Pair
from sfuda_bench.report.scope import SYNTHETIC_MARK, Scope, chosen
from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.severity import is_derived, split_name

PARTS = (*STRUCTURES, "avg")


@dataclass(frozen=True)
class Curve:
    """The pairs over which one knob is turned.

    Attributes:
        source: Source domain.
        base: Base of the target domains.
        knob: What is turned.
        fixed: The other knobs of every target, as in its name; empty if all stand at 0.
        points: Severity and pair, from the least severe.
    """

    source: str
    base: str
    knob: str
    fixed: str
    points: tuple[tuple[float, Pair], ...]

    @property
    def label(self) -> str:
        """The knob, with what else is turned."""
        return f"{self.knob} (with {self.fixed})" if self.fixed else self.knob


@dataclass(frozen=True)
class Point:
    """What one row scores at one severity.

    Attributes:
        severity: Of the curve's knob.
        means: Mean Dice of every run (seed and source seed) in percent, by part.
        gain: Mean change against the unadapted source model of the same source seed, in Dice
            points, by part; NaN where it is unknown.
    """

    severity: float
    means: Mapping[str, tuple[float, ...]]
    gain: Mapping[str, float]

    def mean(self, part: str) -> float:
        """Return the mean over runs."""
        return float(np.mean(self.means[part]))


def find_curves(pairs: Iterable[Pair]) -> list[Curve]:
    """Return every curve of at least two severities among the pairs.

    Args:
        pairs: Source and target; those that belong to no curve are passed over.
    """
    families: dict[tuple[str, str], dict[tuple[tuple[str, float], ...], Pair]] = {}
    for pair in sorted(set(pairs)):
        parsed = _severity(pair[1])
        if parsed is not None:
            base, severity = parsed
            families.setdefault((pair[0], base), {})[tuple(sorted(severity.items()))] = pair
    curves = []
    for (source, base), family in families.items():
        for knob in sorted({name for severity in family for name, _ in severity}):
            curves += _curves_of(source, base, knob, family)
    return curves


def _severity(target: str) -> tuple[str, Mapping[str, float]] | None:
    try:
        derived = split_name(target)
    except UsageError:
        return None  # a folder whose name merely looks like one
    return derived.base, derived.severity


def _curves_of(
    source: str, base: str, knob: str, family: Mapping[tuple[tuple[str, float], ...], Pair]
) -> list[Curve]:
    groups: dict[str, list[tuple[float, Pair]]] = {}
    for severity, pair in family.items():
        others = "+".join(f"{name}={value:g}" for name, value in severity if name != knob)
        groups.setdefault(others, []).append((dict(severity).get(knob, 0.0), pair))
    return [
        Curve(source, base, knob, fixed, tuple(sorted(points)))
        for fixed, points in sorted(groups.items())
        if len(points) > 1
    ]


def on_curves(pairs: Iterable[Pair]) -> set[Pair]:
    """Return the pairs with derived targets that some curve shows."""
    points = [pair for curve in find_curves(pairs) for _, pair in curve.points]
    return {pair for pair in points if is_derived(pair[1])}


class SeverityScores:
    """Dice of every run of a report's rows at the points of its curves.

    Args:
        scope: The cells.
        profile: Name of the scoring profile.

    Attributes:
        curves: In alphabetical order of source, base and knob.
        rows: In table order.
    """

    def __init__(self, scope: Scope, profile: str) -> None:
        self.scope = scope
        self.rows = scope.rows
        self.curves = find_curves(scope.pairs)
        wanted = {pair for curve in self.curves for _, pair in curve.points}
        cells = [c for c in scope.stored.values() if (c.source, c.target) in wanted]
        self._means = _cell_means(read_cases(cells, profile), scope)

    def points(self, curve: Curve, row: MethodRow) -> list[Point]:
        """Return a row's points; a severity of which any run is missing is left out."""
        found = []
        for severity, pair in curve.points:
            runs = self._runs(row, pair)
            if runs:
                baseline = self.scope.baseline(pair)
                before = self._runs(baseline, pair) if baseline is not None else {}
                means = {part: tuple(run[part] for run in runs.values()) for part in PARTS}
                found.append(Point(severity, means, _gain(runs, before)))
        return found

    def _runs(self, row: MethodRow, pair: Pair) -> dict[tuple[int, int], Mapping[str, float]]:
        """Return the means of each run by its seeds, or nothing if any run is missing."""
        cells: Sequence[CellRecord] = self.scope.cells_of(row, pair) or ()
        if not cells or any(cell.key not in self._means for cell in cells):
            return {}
        return {(c.source_seed, c.seed): self._means[c.key] for c in cells}


def _cell_means(cases: pd.DataFrame, scope: Scope) -> dict[str, dict[str, float]]:
    """Return the mean Dice of each cell over its images, by part, in percent."""
    wanted = {key: chosen(cell, scope.selection) for key, cell in scope.stored.items()}
    kept = cases[cases["selection"] == cases["key"].map(wanted)]
    ordered = kept.sort_values(["key", "structure", "image"])
    means: dict[str, dict[str, float]] = {}
    averages = ordered.groupby(["key", "structure"], as_index=False)["dice"].mean()
    for key, structure, dice in averages[["key", "structure", "dice"]].to_numpy():
        means.setdefault(str(key), {})[str(structure)] = 100.0 * float(dice)
    for found in means.values():
        found["avg"] = float(np.mean([found.get(name, np.nan) for name in STRUCTURES]))
    return means


def _gain(
    runs: Mapping[tuple[int, int], Mapping[str, float]],
    before: Mapping[tuple[int, int], Mapping[str, float]],
) -> dict[str, float]:
    """Return the mean change of runs against the unadapted model of the same source seed."""
    models: dict[int, list[Mapping[str, float]]] = {}
    for (source_seed, _), means in before.items():
        models.setdefault(source_seed, []).append(means)
    if any(source_seed not in models for source_seed, _ in runs):
        return dict.fromkeys(PARTS, float("nan"))
    return {
        part: float(
            np.mean(
                [
                    run[part] - np.mean([model[part] for model in models[source_seed]])
                    for (source_seed, _), run in runs.items()
                ]
            )
        )
        for part in PARTS
    }


# -- table -----------------------------------------------------------------------------------

_COLUMNS = (
    PlainColumn("source", "source"),
    PlainColumn("base", "base"),
    PlainColumn("knob", "knob"),
    PlainColumn("severity", "severity"),
    PlainColumn("method", "method"),
    *(PlainColumn(f"dice_{part}", part) for part in PARTS),
    PlainColumn("dice_avg_low", "lowest run", printed=False),
    PlainColumn("dice_avg_high", "highest run", printed=False),
    *(PlainColumn(f"gain_{part}", f"gain {part}", signed=True) for part in PARTS),
    PlainColumn("runs", "runs"),
)


def severity_table(scope: Scope, profile: str) -> PlainTable | None:
    """Build the table of one profile, or ``None`` when no knob was turned.

    Args:
        scope: The cells.
        profile: Name of the profile.
    """
    scores = SeverityScores(scope, profile)
    rows = [line for curve in scores.curves for line in _lines(scores, curve)]
    if not rows:
        return None
    caption = (
        f"Dice in percent, mean over test images and runs; scoring profile {profile}, selection "
        f"{scope.selection}.",
        "Gain: Dice points above the unadapted source model at the same severity; below zero the "
        "method harms. At severity 0 the target is the base domain itself.",
        f"{SYNTHETIC_MARK} synthetic images, not of patients: when a method fails, not how well "
        "it does.",
        *(sentence for sentence in scope.marks if not sentence.startswith(SYNTHETIC_MARK)),
    )
    title = "Dice over the severity of one knob of the synthetic world."
    return PlainTable(f"severity-{profile}", title, caption, _COLUMNS, tuple(rows), keys=5)


def _lines(scores: SeverityScores, curve: Curve) -> list[tuple[Value, ...]]:
    lines: list[tuple[Value, ...]] = []
    head = (f"{curve.source} {SYNTHETIC_MARK}", f"{curve.base} {SYNTHETIC_MARK}", curve.label)
    found = {
        (point.severity, place): point
        for place, row in enumerate(scores.rows)
        for point in scores.points(curve, row)
    }
    for (severity, place), point in sorted(found.items()):
        runs = point.means["avg"]
        lines.append(
            (
                *head,
                f"{severity:g}",
                scores.scope.row_name(scores.rows[place]),
                *(point.mean(part) for part in PARTS),
                min(runs),
                max(runs),
                *(None if np.isnan(point.gain[part]) else point.gain[part] for part in PARTS),
                len(runs),
            )
        )
    return lines

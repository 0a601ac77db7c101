"""Dice over thresholds: how much of a gain is left once every method has the best common one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfuda_bench.frames import read_parquet
from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.records import CellRecord
from sfuda_bench.report.rows import Pair
from sfuda_bench.report.scope import Scope
from sfuda_bench.running.store import read_json
from sfuda_bench.scoring.codes import STRUCTURES

_USUAL = (0.5, 0.75)
_PRINTED_STEP = 1 / 8
_TIE = 1e-9  # percent; a tie goes to the threshold nearest 0.5

Curve = Mapping[float, float]
"""Mean Dice in percent by threshold."""


@dataclass(frozen=True)
class Measured:
    """One row of a pair and structure: its curve and calibration error (percent)."""

    curve: Curve
    ece: float


def best_threshold(curves: Sequence[Curve]) -> float:
    """Return the threshold of the highest mean over curves; a tie goes to the one nearest 0.5.

    Args:
        curves: At least one, all over the same thresholds.
    """
    means = {t: math.fsum(curve[t] for curve in curves) / len(curves) for t in sorted(curves[0])}
    top = max(means.values())
    tied = [t for t, mean in means.items() if mean >= top - _TIE]
    return min(tied, key=lambda t: (abs(t - 0.5), t))


def threshold_table(scope: Scope) -> PlainTable | None:
    """Build the table, or ``None`` when no cell has Dice over thresholds.

    Args:
        scope: The cells.
    """
    found = {
        (pair, row.label): measured
        for pair in scope.pairs
        for row in scope.rows
        if (cells := scope.cells_of(row, pair)) and (measured := _measure(cells))
    }
    if not found:
        return None
    thresholds = sorted(next(iter(found.values()))["cup"].curve)
    rows = [
        row
        for pair in scope.pairs
        for structure in STRUCTURES
        for row in _rows(scope, pair, structure, thresholds, found)
    ]
    caption = (
        "Dice in percent over the probability threshold, without smoothing; ECE: expected "
        "calibration error of the foreground probability, in percentage points; last epoch.",
        "Best common: the threshold of the highest mean Dice over the methods of a pair and "
        "structure that use no target labels. It is chosen on the test labels: a diagnosis, "
        "not a result.",
        "Gain: over the unadapted source model at the same threshold. What is left at the best "
        "common threshold is not owed to where the threshold happens to lie.",
        *scope.marks,
    )
    title = "Dice over thresholds, calibration, and the gain left at the best common threshold."
    return PlainTable("thresholds", title, caption, _columns(thresholds), tuple(rows), keys=3)


def _columns(thresholds: Sequence[float]) -> tuple[PlainColumn, ...]:
    head = [PlainColumn(name, name) for name in ("pair", "structure", "method")]
    curve = [
        PlainColumn(f"dice_at_{t:g}", f"{t:g}", 1, printed=(t / _PRINTED_STEP).is_integer())
        for t in thresholds
    ]
    gains = [
        PlainColumn(f"gain_at_{t:g}", f"gain at {t:g}", 1, signed=True)
        for t in _USUAL
        if t in thresholds
    ]
    return (
        *head,
        *curve,
        PlainColumn("ece_percent", "ECE", 2),
        PlainColumn("own_best_threshold", "own best", 3),
        PlainColumn("common_threshold", "best common", 3),
        PlainColumn("dice_at_common", "Dice there", 1),
        *gains,
        PlainColumn("gain_left", "gain left", 1, signed=True),
    )


def _rows(
    scope: Scope,
    pair: Pair,
    structure: str,
    thresholds: Sequence[float],
    found: Mapping[tuple[Pair, str], Mapping[str, Measured]],
) -> list[tuple[Value, ...]]:
    usual = [t for t in _USUAL if t in thresholds]
    width = len(_columns(thresholds)) - 3
    measured = {
        row.label: found[pair, row.label][structure]
        for row in scope.rows
        if (pair, row.label) in found
    }
    ranked = [measured[row.label] for row in scope.rows if row.label in measured and not row.oracle]
    common = best_threshold([one.curve for one in ranked]) if ranked else None
    baseline = scope.baseline(pair)
    reference = measured.get(baseline.label) if baseline else None
    rows: list[tuple[Value, ...]] = []
    for row in scope.rows:
        head = (scope.pair_name(pair), structure, scope.row_name(row))
        one = measured.get(row.label)
        if one is None:
            rows.append((*head, *([None] * width)))
            continue
        gain_at: list[Value] = [
            None
            if reference is None or t is None or row is baseline
            else one.curve[t] - reference.curve[t]
            for t in (*usual, common)
        ]
        there = None if common is None else one.curve[common]
        own = best_threshold([one.curve])
        dices = [one.curve[t] for t in thresholds]
        rows.append((*head, *dices, one.ece, own, common, there, *gain_at))
    return rows


def _measure(cells: Sequence[CellRecord]) -> dict[str, Measured] | None:
    """Return the mean over cells of curve and calibration error, or ``None`` if one lacks them."""
    if any(not (cell.folder / "thresholds.json").is_file() for cell in cells):
        return None
    curves: dict[str, dict[float, list[float]]] = {name: {} for name in STRUCTURES}
    errors: dict[str, list[float]] = {name: [] for name in STRUCTURES}
    for cell in cells:
        frame = read_parquet(cell.folder / "thresholds.parquet")
        for structure, threshold, dice in zip(
            *(frame[name].tolist() for name in ("structure", "threshold", "dice")), strict=True
        ):
            curves[structure].setdefault(threshold, []).append(100 * dice)
        for structure, value in read_json(cell.folder / "thresholds.json")["ece"].items():
            errors[structure].append(100 * value)
    return {
        name: Measured(
            {t: math.fsum(values) / len(values) for t, values in sorted(curves[name].items())},
            math.fsum(errors[name]) / len(errors[name]),
        )
        for name in STRUCTURES
    }

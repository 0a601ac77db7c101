"""Protocol x-ray: which scoring rule moves a number by how much, from stored records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.records import CellRecord, read_cases, read_cells, read_scoring
from sfuda_bench.report.scope import Scope, chosen
from sfuda_bench.report.summary import ASD_COLUMNS
from sfuda_bench.scoring.codes import STRUCTURES

DICE_STEPS = ("threshold", "smoothing", "empty masks")
ASD_STEPS = ("threshold", "empty masks", "definition")

Row = dict[str, Any]
"""One case: the columns of ``cases-<profile>.parquet``."""


@dataclass(frozen=True)
class Decomposition:
    """How one number becomes another, rule by rule; the steps add up exactly.

    Attributes:
        structure: ``cup`` or ``disc``.
        metric: ``dice`` (percent) or ``asd`` (pixels).
        start: Mean over cases under the first profile.
        steps: Change by each rule, in the order applied.
        end: Mean under the second profile.
    """

    structure: str
    metric: str
    start: float
    steps: dict[str, float]
    end: float


def decompose(
    first: Sequence[Row],
    second: Sequence[Row],
    before: Row,
    after: Row,
    grid: int,
) -> list[Decomposition]:
    """Return the way from one profile's means to another's, per structure and metric.

    Areas undo and redo the smoothing of Dice; the flags of empty masks undo and redo their
    worth. Only the threshold needs the second profile's own scores, taken without both.

    Args:
        first: Cases of a cell under the first profile, one selection.
        second: The same cases under the second profile.
        before: The first profile's fields: ``smooth``, ``empty_policy``, ``asd_definition``.
        after: The second profile's.
        grid: Side of the evaluation grid in pixels.

    Undefined:
        A mean without a defined case is NaN, and so are its steps.
    """
    found = []
    for structure in STRUCTURES:
        a = [row for row in first if row["structure"] == structure]
        b = [row for row in second if row["structure"] == structure]
        old, new = float(before["smooth"]), float(after["smooth"])

        def dice(rows: Sequence[Row], stored: float, smooth: float, policy: str) -> float:
            return _mean([100 * _dice(row, stored, smooth, policy, grid) for row in rows])

        def asd(rows: Sequence[Row], policy: str, definition: str) -> float:
            return _mean([_distance(row, policy, definition, grid) for row in rows])

        policies = (before["empty_policy"], after["empty_policy"])
        names = (before["asd_definition"], after["asd_definition"])
        chain = [
            dice(a, old, old, policies[0]),
            dice(b, new, old, policies[0]),
            dice(b, new, new, policies[0]),
            dice(b, new, new, policies[1]),
        ]
        found.append(_decomposition(structure, "dice", DICE_STEPS, chain))
        chain = [
            asd(a, policies[0], names[0]),
            asd(b, policies[0], names[0]),
            asd(b, policies[1], names[0]),
            asd(b, policies[1], names[1]),
        ]
        found.append(_decomposition(structure, "asd", ASD_STEPS, chain))
    return found


def xray(
    cell: CellRecord, first: str, second: str, selection: str = "last"
) -> list[Decomposition] | None:
    """Decompose the difference of one cell's numbers under two profiles.

    Args:
        cell: Scored under both.
        first: Name of a profile.
        second: Name of another.
        selection: Which epoch counts.

    Returns:
        ``None`` when the cell lacks a profile, the selection or the evaluation grid.
    """
    scorings = [read_scoring([cell], name) for name in (first, second)]
    if any(not fields.get("evaluation_grid") for fields in scorings):
        return None
    pick = chosen(cell, selection)
    cases = [_by_selection(cell, name).get(pick, []) for name in (first, second)]
    if not all(cases):
        return None
    before, after = scorings
    return decompose(cases[0], cases[1], before, after, int(before["evaluation_grid"]))


def xray_table(scope: Scope, first: str, second: str) -> PlainTable | None:
    """Build the table between two profiles, or ``None`` when no row was scored under both.

    Args:
        scope: The cells; a row is the mean over its cells.
        first: Name of a profile.
        second: Name of another.
    """
    rows: list[tuple[Value, ...]] = []
    siblings = _by_all_but_inference(read_cells(scope.out))
    for pair in scope.pairs:
        for row in scope.rows:
            cells = scope.cells_of(row, pair) or []
            parts = [xray(cell, first, second, scope.selection) for cell in cells]
            known = [part for part in parts if part is not None]
            if not known or len(known) < len(parts):
                continue
            later = _later_selections(cells, second)
            inference, gains = _other_inference(cells, siblings, second)
            for position in range(len(known[0])):
                same = [part[position] for part in known]
                place = (same[0].structure, same[0].metric)
                rows.append(
                    (
                        scope.pair_name(pair),
                        scope.row_name(row),
                        *_entries(same, later),
                        inference,
                        _defined(gains.get(place)),
                    )
                )
    if not rows:
        return None
    caption = (
        f"From profile {first} to profile {second}, one rule at a time in the order of the "
        "columns; another order would give other shares, and the steps add up to the difference. "
        "Dice in percent, ASD in pixels of the evaluation grid, means over images and runs.",
        f"Right: what another selection of the epoch adds under profile {second} (the oracle's "
        "uses the test labels), and what another way to run the same adapted network at test time "
        "adds, from stored cells that differ in nothing else.",
        *scope.marks,
    )
    title = "Protocol x-ray: what each scoring rule contributes."
    return PlainTable(f"xray-{first}-{second}", title, caption, _columns(), tuple(rows), keys=4)


_STEPS = ("threshold", "smoothing", "empty masks", "definition")
_LATER = ("average", "oracle")


def _columns() -> tuple[PlainColumn, ...]:
    head = [PlainColumn(name, name) for name in ("pair", "method", "structure", "metric")]
    steps = [PlainColumn(f"step_{name.replace(' ', '_')}", name, signed=True) for name in _STEPS]
    later = [PlainColumn(f"selection_{name}", f"{name} epoch", signed=True) for name in _LATER]
    ends = (PlainColumn("start", "start"), PlainColumn("end", "end"))
    inference = (
        PlainColumn("other_inference", "other inference"),
        PlainColumn("inference_gain", "adds", signed=True),
    )
    return (*head, ends[0], *steps, ends[1], *later, *inference)


def _entries(
    same: Sequence[Decomposition], later: dict[tuple[str, str, str], float]
) -> list[Value]:
    first = same[0]
    steps = [
        _defined(_mean([part.steps[name] for part in same])) if name in first.steps else None
        for name in _STEPS
    ]
    gains = [_defined(later.get((name, first.structure, first.metric))) for name in _LATER]
    start, end = (
        _defined(_mean([getattr(part, name) for part in same])) for name in ("start", "end")
    )
    return [first.structure, first.metric, start, *steps, end, *gains]


def _later_selections(
    cells: Sequence[CellRecord], profile: str
) -> dict[tuple[str, str, str], float]:
    """Return what the average and the oracle's epoch add to the last, by structure and metric."""
    columns = _readers(cells, profile)
    stored = [_by_selection(cell, profile) for cell in cells]
    found: dict[tuple[str, str, str], float] = {}
    for name in _LATER:
        picked = [next((s for s in sorted(rows) if s.startswith(name)), "") for rows in stored]
        if not all(picked):
            continue
        for structure in STRUCTURES:
            for metric, read in columns.items():
                gains = [
                    _selected(rows[pick], structure, read)
                    - _selected(rows["last"], structure, read)
                    for rows, pick in zip(stored, picked, strict=True)
                ]
                found[name, structure, metric] = _mean(gains)
    return found


def _readers(cells: Sequence[CellRecord], profile: str) -> dict[str, Callable[[Row], float]]:
    """Return how each metric is read from a case: Dice in percent, ASD in pixels."""
    definition = read_scoring(cells, profile).get("asd_definition", "directed")
    return {
        "dice": lambda row: 100 * float(row["dice"]),
        "asd": lambda row: float(row[ASD_COLUMNS[definition]]),
    }


def _by_all_but_inference(cells: Sequence[CellRecord]) -> dict[str, list[CellRecord]]:
    """Group cells that differ in nothing but how the adapted network is run at test time."""
    groups: dict[str, list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault(_all_but_inference(cell), []).append(cell)
    return groups


def _all_but_inference(cell: CellRecord) -> str:
    names = ("method", "method_version", "source", "target", "source_seed", "seed", "protocol")
    same = {name: getattr(cell, name) for name in (*names, "image_size", "precision")}
    parts = {"network": cell.network, "config": cell.config, "key": cell.record.get("source_key")}
    return json.dumps({**same, **parts}, sort_keys=True, default=str)


def _other_inference(
    cells: Sequence[CellRecord], siblings: Mapping[str, Sequence[CellRecord]], profile: str
) -> tuple[str | None, dict[tuple[str, str], float]]:
    """Return the first other inference that every cell has a sibling of, and what it adds."""
    found: dict[str, list[tuple[CellRecord, CellRecord]]] = {}
    for cell in cells:
        for other in siblings.get(_all_but_inference(cell), ()):
            changed = _changed(cell.inference, other.inference)
            if changed and profile in other.profiles:
                found.setdefault(changed, []).append((cell, other))
    complete = sorted(name for name, pairs in found.items() if len(pairs) == len(cells))
    if not complete:
        return None, {}
    pairs, readers = found[complete[0]], _readers(cells, profile)
    gains = {}
    for structure in STRUCTURES:
        for metric, read in readers.items():
            gains[structure, metric] = _mean(
                [
                    _selected(_by_selection(other, profile).get("last", []), structure, read)
                    - _selected(_by_selection(cell, profile).get("last", []), structure, read)
                    for cell, other in pairs
                ]
            )
    return complete[0], gains


def _changed(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    names = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
    return ", ".join(f"{name}={theirs.get(name)}" for name in names)


def _selected(rows: Sequence[Row], structure: str, read: Callable[[Row], float]) -> float:
    return _mean([read(row) for row in rows if row["structure"] == structure])


def _by_selection(cell: CellRecord, profile: str) -> dict[str, list[Row]]:
    """Return a cell's cases by selection; none where areas were not recorded."""
    frame = read_cases([cell], profile)
    if not {"area_prediction", "area_truth"} <= set(frame.columns):
        return {}
    names = [str(name) for name in frame.columns]
    rows: dict[str, list[Row]] = {}
    for values in zip(*(frame[name].tolist() for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        rows.setdefault(row["selection"], []).append(row)
    return rows


def _decomposition(
    structure: str, metric: str, names: Sequence[str], chain: Sequence[float]
) -> Decomposition:
    steps = {name: chain[i + 1] - chain[i] for i, name in enumerate(names)}
    return Decomposition(structure, metric, chain[0], steps, chain[-1])


def _dice(row: Row, stored: float, smooth: float, policy: str, grid: int) -> float:
    """Return a case's Dice with another smoothing and worth of empty masks than stored."""
    empty = (bool(row["empty_prediction"]), bool(row["empty_truth"]))
    if all(empty):
        return 1.0
    area = grid * grid * (float(row["area_prediction"]) + float(row["area_truth"]))
    if any(empty):
        return 0.0 if policy == "worst" else smooth / (area + smooth)
    twice_shared = float(row["dice"]) * (area + stored) - stored
    return (twice_shared + smooth) / (area + smooth)


def _distance(row: Row, policy: str, definition: str, grid: int) -> float:
    empty = (bool(row["empty_prediction"]), bool(row["empty_truth"]))
    if not any(empty):
        return float(row[ASD_COLUMNS[definition]])
    if policy == "exclude":
        return math.nan
    return 0.0 if all(empty) else math.hypot(grid, grid)


def _mean(values: Sequence[float]) -> float:
    """Return the mean of the defined values, equal in any order; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value

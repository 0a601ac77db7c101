"""Which epoch is scored: last, average of the last ones, label-free, against the oracle's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from sfuda_bench.frames import read_parquet
from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.records import CellRecord, read_cases, read_scoring
from sfuda_bench.report.rows import MethodRow, Pair
from sfuda_bench.report.scope import ORACLE_MARK, Scope
from sfuda_bench.report.summary import Statistic, cases_by_cell, summarise
from sfuda_bench.running.store import read_json
from sfuda_bench.scoring.scorer import oracle_epoch

ORACLE = "oracle"
LAST = "last"
LABEL_FREE = "label-free:"
_METRICS = ("dice_cup", "dice_disc", "dice_avg")

Found = Mapping[str, Mapping[str, Statistic]]
"""Statistics of one row in one pair: by selection, then by column."""


def selection_table(scope: Scope, profile: str) -> PlainTable | None:
    """Build the table of one profile, or ``None`` when only the last epoch was stored.

    One line per pair, row and selection, so that any number of validators stays readable.

    Args:
        scope: The cells.
        profile: Name of the profile.
    """
    cells = list(scope.stored.values())
    cases = read_cases(cells, profile)
    selections = _ordered(cases)
    if len(selections) < 2:
        return None
    definition = read_scoring(cells, profile).get("asd_definition", "directed")
    by_selection = {
        name: cases_by_cell(cases, scope.stored, name, definition) for name in selections
    }
    rows: list[tuple[Value, ...]] = []
    for pair in scope.pairs:
        for row in scope.rows:
            trained = _trained(scope, row, pair)
            if not trained:
                continue
            found = {
                name: summarise(row.of_pair(pair), by_selection[name]) or {} for name in selections
            }
            head = (scope.pair_name(pair), scope.row_name(row))
            for name, entries in _lines(found):
                marked = f"{name} {ORACLE_MARK}" if name == ORACLE else name
                rows.append((*head, marked, *entries, _epochs(trained, name, profile)))
    caption = (
        f"Dice in percent, scoring profile {profile}; methods that train in epochs only.",
        f"{ORACLE_MARK} the best epoch on the target test labels: an upper bound and no result.",
        "Label-free selections see unlabelled target train images only; epoch 0, the unadapted "
        "source model, is always a candidate.",
        "Regret: Dice of the oracle's epoch minus Dice of this selection, mean of cup and disc.",
        *(sentence for sentence in scope.marks if not sentence.startswith(ORACLE_MARK)),
    )
    title = "Dice by the rule that selects the scored epoch."
    return PlainTable(f"selection-{profile}", title, caption, _COLUMNS, tuple(rows), keys=3)


_COLUMNS = (
    PlainColumn("pair", "pair"),
    PlainColumn("method", "method"),
    PlainColumn("selection", "selection"),
    *(PlainColumn(metric, metric.removeprefix("dice_")) for metric in _METRICS),
    PlainColumn("regret", "regret", signed=True),
    PlainColumn("epoch", "epoch"),
)


def _ordered(cases: pd.DataFrame) -> list[str]:
    """Return the stored selections: last, averages, label-free ones, the oracle last."""
    return sorted({str(name) for name in cases["selection"].tolist()}, key=_place)


def _place(name: str) -> tuple[bool, bool, bool, bool, list[tuple[int, str]]]:
    """Return a key: among label-free selections the primary one comes first."""
    free = name.startswith(LABEL_FREE)
    primary = name == f"{LABEL_FREE}primary"
    return (name == ORACLE, name != LAST, free, free and not primary, _natural(name))


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that puts average-last-5 before average-last-10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _lines(found: Found) -> list[tuple[str, list[Value]]]:
    """Return each selection with its Dice of cup, disc and average, and its regret."""
    best = found.get(ORACLE, {}).get("dice_avg", Statistic()).mean
    lines: list[tuple[str, list[Value]]] = []
    for name, statistics in found.items():
        means = [statistics.get(metric, Statistic()).mean for metric in _METRICS]
        average = means[-1]
        regret = None
        if best is not None and average is not None and name != ORACLE:
            regret = best - average
        lines.append((name, [*means, regret]))
    return lines


def _epochs(cells: Iterable[CellRecord], selection: str, profile: str) -> str | None:
    """Return the epoch that a selection chose; of several runs each one that occurs."""
    chosen = sorted({e for cell in cells if (e := _epoch(cell, selection, profile)) is not None})
    return ", ".join(map(str, chosen)) or None


def _epoch(cell: CellRecord, selection: str, profile: str) -> int | None:
    if selection == LAST:
        return cell.epochs
    if selection == ORACLE:
        path = cell.folder / f"epochs-{profile}.parquet"
        return oracle_epoch(read_parquet(path)) if path.is_file() else None
    path = cell.folder / "selections.json"
    if not path.is_file():
        return None
    epoch = read_json(path).get(selection)
    return epoch if isinstance(epoch, int) else None


def _trained(scope: Scope, row: MethodRow, pair: Pair) -> list[CellRecord]:
    """Return the finished cells of a row, if any of them trained in epochs."""
    finished = [scope.stored.get(cell.key) for cell in row.of_pair(pair)]
    cells = [cell for cell in finished if cell is not None]
    return cells if any(cell.epochs for cell in cells) else []

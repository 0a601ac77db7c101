"""Which epoch is scored: last, average of the last ones, label-free, against the oracle's."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pandas as pd

from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.records import read_cases, read_scoring
from sfuda_bench.report.rows import MethodRow, Pair
from sfuda_bench.report.scope import Scope
from sfuda_bench.report.summary import Statistic, cases_by_cell, summarise

ORACLE = "oracle"
_METRICS = ("dice_cup", "dice_disc", "dice_avg")

Found = Mapping[str, Mapping[str, Statistic]]
"""Statistics of one row in one pair: by selection, then by column."""


def selection_table(scope: Scope, profile: str) -> PlainTable | None:
    """Build the table of one profile, or ``None`` when only the last epoch was stored.

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
            if not _trained(scope, row, pair):
                continue
            found = {
                name: summarise(row.of_pair(pair), by_selection[name]) or {} for name in selections
            }
            rows.append((scope.pair_name(pair), scope.row_name(row), *_entries(found)))
    caption = (
        f"Dice in percent, scoring profile {profile}; methods that train in epochs only.",
        "Oracle: the best epoch on the target test labels, an upper bound and no result.",
        "Regret: Dice of the oracle's epoch minus Dice of this selection, mean of cup and disc.",
        *scope.marks,
    )
    title = "Dice by the rule that selects the scored epoch."
    columns = _columns(selections)
    return PlainTable(f"selection-{profile}", title, caption, columns, tuple(rows))


def _ordered(cases: pd.DataFrame) -> list[str]:
    """Return the stored selections: last first, averages, label-free ones, the oracle last."""
    return sorted(
        {str(name) for name in cases["selection"].tolist()},
        key=lambda name: (name == ORACLE, name != "last", _natural(name)),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that puts average-last-5 before average-last-10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]


def _columns(selections: list[str]) -> tuple[PlainColumn, ...]:
    head = [PlainColumn("pair", "pair"), PlainColumn("method", "method")]
    dice = [
        PlainColumn(f"{metric}_{name}", f"{metric.removeprefix('dice_')} {name}")
        for name in selections
        for metric in _METRICS
    ]
    regret = [
        PlainColumn(f"regret_{name}", f"regret {name}", signed=True)
        for name in selections
        if name != ORACLE and ORACLE in selections
    ]
    return (*head, *dice, *regret)


def _entries(found: Found) -> list[Value]:
    means: dict[tuple[str, str], float | None] = {
        (name, metric): statistics.get(metric, Statistic()).mean
        for name, statistics in found.items()
        for metric in _METRICS
    }
    best = means.get((ORACLE, "dice_avg"))
    regrets: list[Value] = []
    for name in found:
        if name != ORACLE and ORACLE in found:
            mean = means[name, "dice_avg"]
            regrets.append(None if best is None or mean is None else best - mean)
    return [*means.values(), *regrets]


def _trained(scope: Scope, row: MethodRow, pair: Pair) -> bool:
    finished = [scope.stored.get(cell.key) for cell in row.of_pair(pair)]
    return any(cell is not None and cell.epochs for cell in finished)

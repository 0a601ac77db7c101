"""Severity curves of an ablation whose pairs turn knobs: the table and figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import row_lines
from sfuda_bench.report.figures_severity import TITLES, families, severity_curves
from sfuda_bench.report.plain import PlainTable, write_texts
from sfuda_bench.report.plain import to_csv as plain_csv
from sfuda_bench.report.records import AskedCell, read_cells
from sfuda_bench.report.rows import MethodRow
from sfuda_bench.report.scope import Scope
from sfuda_bench.report.severity import SeverityScores, severity_table
from sfuda_bench.search.pictures import save

if TYPE_CHECKING:
    from sfuda_bench.running.plan import Plan


def write_severity(
    names: Sequence[str], plans: Sequence[Plan], folder: Path, profiles: Sequence[str]
) -> tuple[list[PlainTable], list[Path]]:
    """Write ``severity-<profile>`` tables, and figures of the first profile.

    Args:
        names: Of the rows.
        plans: The plan of each row.
        folder: Where files go.
        profiles: Scoring profiles.

    Returns:
        The tables and the files; none when no pair turns a knob.
    """
    scope = _scope(names, plans)
    tables, paths = [], []
    for profile in profiles:
        table = severity_table(scope, profile)
        if table is not None:
            tables.append(table)
            paths += write_texts(folder, table.name, table, plain_csv(table))
    if tables:
        paths += _figures(scope, profiles[0], folder)
    return tables, paths


def _scope(names: Sequence[str], plans: Sequence[Plan]) -> Scope:
    """Return an ablation's cells as a report's: one row per row of the study."""
    from sfuda_bench.running.plan import asked_record

    known = [field.name for field in fields(AskedCell)]
    rows = []
    for name, plan in zip(names, plans, strict=True):
        planned = [asked_record(cell) for cell in plan.cells]
        asked = tuple(AskedCell(**{key: cell[key] for key in known}) for cell in planned)
        if asked:
            first = asked[0]
            rows.append(
                MethodRow(first.method, name, first.protocol, first.oracle, first.strictness, asked)
            )
    every = tuple(dict.fromkeys(cell for row in rows for cell in row.cells))
    keys, out = {cell.key for cell in every}, plans[0].store.root
    stored = {cell.key: cell for cell in read_cells(out) if cell.key in keys}
    pairs = tuple(dict.fromkeys(cell.pair for cell in every))
    return Scope(out, "last", every, stored, tuple(rows), pairs)


def _figures(scope: Scope, profile: str, folder: Path) -> list[Path]:
    scores = SeverityScores(scope, profile)
    lines = row_lines(scope.rows, scope.stored)
    paths: list[Path] = []
    for family in families(scores.curves):
        for part in TITLES:
            with style.figure_style():
                figure = severity_curves(scores, lines, family, part)
            if figure is not None:
                paths += save(figure, folder, f"severity-{part}-{profile}-{'-'.join(family)}")
    return paths

"""Every table beyond the main one, written at once; what has no records is named, not invented."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from sfuda_bench.report.cost import cost_table
from sfuda_bench.report.numbers import write_numbers
from sfuda_bench.report.plain import PlainTable, write_plain
from sfuda_bench.report.reproduce import ALL, NOT_COMPARABLE, reproduce, reproduce_table
from sfuda_bench.report.scope import Scope, read_scope
from sfuda_bench.report.selection import selection_table
from sfuda_bench.report.severity import severity_table
from sfuda_bench.report.thresholds import threshold_table
from sfuda_bench.report.vcdr import vcdr_table
from sfuda_bench.report.xray import xray_table
from sfuda_bench.running.store import write_bytes

NOTES = "not-written"
_LESS_STRICT, _STRICT = "standard", "cpr-2023"


def write_extra_tables(out: Path, selection: str = "last") -> list[Path]:
    """Write the tables of vCDR, thresholds, cost, selection, x-ray, published numbers, commands.

    Args:
        out: The store.
        selection: Which epoch counts; any but ``last`` is named in the files' names.

    Returns:
        Files written into ``DIR/tables``, the last of them ``not-written.md``: which tables lack
        records, and what would give them.

    Raises:
        UsageError: There is no store, or nothing comparable in it.
        StoreSchemaError: It has another schema or is damaged.
    """
    scope = read_scope(out, selection)
    tables, notes = extra_tables(scope)
    suffix = "" if selection == "last" else f"-{selection.replace(':', '-')}"
    written = [path for table in tables for path in write_plain(out, table, suffix)]
    written += write_numbers(out, selection)
    path = out / "tables" / f"{NOTES}{suffix}.md"
    write_bytes(path, "".join(f"- {note}\n" for note in notes).encode())
    return [*written, path]


def extra_tables(scope: Scope) -> tuple[list[PlainTable], list[str]]:
    """Build the tables that the records allow.

    Args:
        scope: The cells.

    Returns:
        The tables, and a sentence for each that could not be made.
    """
    makers: list[tuple[str, Callable[[], PlainTable | None], str]] = [
        ("cost", partial(cost_table, scope), "no finished cell has a run.json"),
        (
            "thresholds",
            partial(threshold_table, scope),
            "no Dice over thresholds; sfuda-bench rescore --thresholds",
        ),
        (
            f"xray-{_LESS_STRICT}-{_STRICT}",
            partial(xray_table, scope, _LESS_STRICT, _STRICT),
            "needs scores with areas under both profiles; sfuda-bench rescore --profile NAME",
        ),
        (
            "reproduce-all",
            partial(_published, scope),
            "no published number has our pair and method",
        ),
    ]
    for name in scope.profiles:
        makers += [
            (f"vcdr-{name}", partial(vcdr_table, scope, name), "no eye was scored"),
            (
                f"selection-{name}",
                partial(selection_table, scope, name),
                "only the last epoch was scored; sfuda-bench run --track epochs",
            ),
            (
                f"severity-{name}",
                partial(severity_table, scope, name),
                "no knob was turned; sfuda-bench run --pairs 'synthetic_a:synthetic_a@blur=0..1/5'",
            ),
        ]
    tables: list[PlainTable] = []
    notes: list[str] = []
    for name, make, reason in makers:
        table = make()
        if table is None:
            notes.append(f"{name}: {reason}")
        else:
            tables.append(table)
    return tables, notes


def _published(scope: Scope) -> PlainTable | None:
    """Return the comparisons that have a number of ours, comparable or not."""
    found = [
        one for one in reproduce(scope) if one.verdict != NOT_COMPARABLE or one.ours is not None
    ]
    return reproduce_table(found, ALL) if found else None

"""The main table: stored scores to a :class:`Table` value, and the files made from it.

The table is a value without any markup, so it can be tested and rendered in several forms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.report.caption import Facts, caption_sentences
from sfuda_bench.report.records import (
    AskedCell,
    CellRecord,
    asked_from,
    check_store,
    read_cases,
    read_cells,
    read_plan,
    read_scoring,
)
from sfuda_bench.report.rows import MethodRow, Pair, method_rows
from sfuda_bench.report.scope import LABEL_CENTER_MARK, SYNTHETIC_MARK
from sfuda_bench.report.summary import (
    METRICS,
    MISSING,
    CellCases,
    Statistic,
    cases_by_cell,
    statistic,
    summarise,
)
from sfuda_bench.running.store import write_bytes
from sfuda_bench.scoring.codes import STRUCTURES

if TYPE_CHECKING:
    from rich.console import Console

DECIMALS = 2
"""Digits after the point in a printed table; ties are ties of printed means."""

AVERAGE_LABEL = "Average over pairs"
TIE = "\N{ALMOST EQUAL TO}"
"""What follows a number that is not distinguishable from the best of its column."""
COLLAPSE = "‡"
"""What follows a method whose predictions look collapsed in a pair."""


@dataclass(frozen=True)
class Evidence:
    """What tests and label-free checks say about the rows of one table.

    Attributes:
        ties: (source, target, structure, metric, label) of what is not distinguishable from the
            best; see ``comparison.indistinguishable_from_best``.
        collapsed: (source, target, label) of rows with a cell whose predictions look collapsed;
            see ``harm.collapse_warnings``.
    """

    ties: Set[tuple[str, str, str, str, str]] = frozenset()
    collapsed: Set[tuple[str, str, str]] = frozenset()


_TIES = (
    f"{TIE} not distinguishable from the best of its pair and column (paired sign-flip test over "
    "images, Holm-adjusted over the table, 5 % level): no worse as far as these images can tell."
)
_COLLAPSED = (
    f"{COLLAPSE} looks collapsed in that pair, judged without labels: a predicted area below 10 % "
    "or above 400 % of the source model's, or more than 20 % empty predictions."
)
_GROUPS = {"dice": ("Dice [%]", True), "asd": ("ASD [px]", False)}


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    Attributes:
        key: ``dice_cup``, ``dice_disc``, ``dice_avg``, ``asd_cup``, ...
        group: Header over several columns, with the unit.
        name: Header of this column.
        higher_is_better: Which end of the column is marked.
    """

    key: str
    group: str
    name: str
    higher_is_better: bool


COLUMNS = tuple(
    Column(f"{metric}_{part}", *_GROUPS[metric][:1], part, _GROUPS[metric][1])
    for metric in METRICS
    for part in (*STRUCTURES, "avg")
)


@dataclass(frozen=True)
class Cell:
    """One entry: what is printed, and how it is marked.

    Attributes:
        mean: ``None`` prints an en dash: a cell is missing, failed or unscored.
        std: Sample standard deviation; ``None`` for fewer than two values.
        n: Number of values: images, or pairs in the average over pairs.
        marks: ``best``, ``second`` and ``tied`` (with the best, by a test).
    """

    mean: float | None = None
    std: float | None = None
    n: int = 0
    marks: frozenset[str] = frozenset()

    @property
    def mean_text(self) -> str:
        """The mean as printed."""
        return MISSING if self.mean is None else f"{self.mean:.{DECIMALS}f}"

    @property
    def std_text(self) -> str:
        """The deviation as printed, empty if there is none."""
        return "" if self.mean is None or self.std is None else f"{self.std:.{DECIMALS}f}"


@dataclass(frozen=True)
class Row:
    """One method in one block.

    Attributes:
        method: Registered name.
        label: What is printed.
        protocol: The cells' protocol.
        oracle: Whether target labels were used; such a row is never ranked.
        strictness: The widest class of source-side information.
        cells: One entry per column.
        runs: Number of finished and scored cells behind the row.
        runs_asked: Number of cells asked for.
        empty_predictions: Cases (structures of images of cells) without prediction.
        empty_truths: Cases without truth.
        undefined_asd: Cases whose distance is undefined and left out.
        collapsed: Whether the predictions of one of its cells look collapsed.
    """

    method: str
    label: str
    protocol: str
    oracle: bool
    strictness: str
    cells: tuple[Cell, ...]
    runs: int = 0
    runs_asked: int = 0
    empty_predictions: int = 0
    empty_truths: int = 0
    undefined_asd: int = 0
    collapsed: bool = False


@dataclass(frozen=True)
class Block:
    """The rows of one pair, oracle rows last.

    Attributes:
        label: Printed above the rows.
        pair: Source and target; ``None`` for the average over pairs.
        synthetic: Whether either domain is synthetic.
        rows: One per method.
        positions_from_labels: Whether the crops of either domain are centred on annotations.
    """

    label: str
    pair: Pair | None
    synthetic: bool
    rows: tuple[Row, ...]
    positions_from_labels: bool = False

    @property
    def marked_label(self) -> str:
        """The label as printed, with its marks."""
        marks = SYNTHETIC_MARK * self.synthetic + LABEL_CENTER_MARK * self.positions_from_labels
        return f"{self.label} {marks}".rstrip()


@dataclass(frozen=True)
class Table:
    """A table before rendering.

    Attributes:
        title: First sentence of the caption.
        caption: Further sentences: everything needed to read the numbers.
        profile: Name of the scoring profile.
        selection: Name of the selection.
        columns: Columns of numbers.
        blocks: Pairs in order, then the average over pairs if there is more than one.
    """

    title: str
    caption: tuple[str, ...]
    profile: str
    selection: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]


def main_table(
    cells: Sequence[CellRecord],
    cases: pd.DataFrame,
    profile: str,
    selection: str = "last",
    asked: Sequence[AskedCell] | None = None,
    evidence: Evidence | None = None,
) -> Table:
    """Build the main table of one profile: Dice and ASD of every method in every pair.

    Args:
        cells: Finished cells, from ``read_cells``.
        cases: Their scores, from ``read_cases``.
        profile: Name of the profile.
        selection: Which epoch counts; with ``oracle`` every row is an oracle row.
        asked: The cells that one run asked for, in table order. Those that are missing print
            an en dash. ``None``: all stored cells, each configuration in its own row.
        evidence: What tests and checks say; ``None``: nothing was tested.

    Raises:
        UsageError: The cells were scored in different ways, or none has the selection.
    """
    stored = {cell.key: cell for cell in cells}
    planned = asked is not None
    wanted = list(asked) if asked is not None else asked_from(cells)
    used = [stored[cell.key] for cell in wanted if cell.key in stored]
    scoring = read_scoring(used, profile)
    definition = scoring.get("asd_definition", "directed")
    found = cases_by_cell(cases, stored, selection, definition)
    found = {cell.key: found[cell.key] for cell in wanted if cell.key in found}
    _check_selection(selection, cases)
    rows = method_rows(wanted, stored, planned=planned)
    if selection == "oracle":
        rows = [replace(row, oracle=True) for row in rows]
    blocks = [_pair_block(pair, wanted, rows, found) for pair in _pairs(wanted, planned)]
    if len(blocks) > 1:
        blocks.append(_average_block(rows, blocks))
    facts = Facts(wanted, rows, used, found, scoring)
    sentences = caption_sentences(facts, profile=profile, selection=selection)
    title = "Dice and average surface distance (ASD) of optic cup and disc per domain pair."
    if evidence is not None:
        sentences.append(_TIES)
        if evidence.collapsed:
            sentences.append(_COLLAPSED)
    marked = tuple(_with_marks(block, evidence or Evidence()) for block in blocks)
    return Table(title, tuple(sentences), profile, selection, COLUMNS, marked)


def store_tables(
    out: Path,
    selection: str = "last",
    profiles: Iterable[str] | None = None,
    evidence: Mapping[str, Evidence] | None = None,
) -> list[Table]:
    """Build the main table of every profile from a store.

    Args:
        out: The store.
        selection: Which epoch counts.
        profiles: Names of profiles, or ``None`` for those that any wanted cell was scored under.
        evidence: By profile, what tests and checks say.

    Raises:
        UsageError: There is no store, or nothing comparable in it.
        StoreSchemaError: It has another schema or is damaged.
    """
    check_store(out)
    cells = read_cells(out)
    asked = read_plan(out)
    if asked is not None:
        keys = {cell.key for cell in asked}
        cells = [cell for cell in cells if cell.key in keys]
    names = sorted({name for cell in cells for name in cell.profiles})
    return [
        main_table(
            cells,
            read_cases(cells, profile),
            profile,
            selection,
            asked,
            None if evidence is None else evidence.get(profile),
        )
        for profile in (names if profiles is None else profiles)
    ]


def write_tables(
    out: Path,
    selection: str = "last",
    profiles: Iterable[str] | None = None,
    evidence: Mapping[str, Evidence] | None = None,
) -> list[Path]:
    """Write the main table of every profile into ``DIR/tables``; equal scores, equal bytes.

    Args:
        out: The store.
        selection: Which epoch counts; any but ``last`` is named in the file name, so that it
            never takes the place of the main table.
        profiles: Names of profiles, or ``None`` for those found.
        evidence: By profile, what tests and checks say.

    Returns:
        Files written: ``main-<profile>.tex`` (fragment), ``.md``, ``.csv`` and
        ``standalone/main-<profile>.tex`` (a whole document).

    Raises:
        UsageError: There is no store, or nothing comparable in it.
        StoreSchemaError: It has another schema or is damaged.
    """
    from sfuda_bench.report import render

    written: list[Path] = []
    for table in store_tables(out, selection, profiles, evidence):
        suffix = "" if selection == "last" else f"-{selection.replace(':', '-')}"
        name = f"main-{table.profile}{suffix}"
        folder = out / "tables"
        files = {
            folder / f"{name}.tex": render.to_latex(table, label=f"tab:{name}"),
            folder / f"{name}.md": render.to_markdown(table),
            folder / f"{name}.csv": render.to_csv(table),
            folder / "standalone" / f"{name}.tex": render.to_standalone(table, label=f"tab:{name}"),
        }
        for path, text in files.items():
            write_bytes(path, text.encode())
        written += files
    return written


def print_tables(
    out: Path,
    console: Console,
    selection: str = "last",
    evidence: Mapping[str, Evidence] | None = None,
) -> None:
    """Print the main tables: drawn on a terminal, plain Markdown when piped."""
    from sfuda_bench.report import render

    for table in store_tables(out, selection, evidence=evidence):
        if console.is_terminal:
            console.print(render.to_rich(table))
        else:
            # No wrapping, markup or highlighting: what is piped is data.
            text = render.to_markdown(table)
            console.print(text, soft_wrap=True, markup=False, highlight=False, emoji=False)


def _check_selection(selection: str, cases: pd.DataFrame) -> None:
    present = sorted(cases["selection"].unique())
    if selection not in present and present and selection != "last":
        raise UsageError(
            f"no stored score has the selection '{selection}', there are: {', '.join(present)}",
            hint="run with --track epochs, or choose another --selection",
        )


def _pairs(asked: Iterable[AskedCell], planned: bool) -> list[Pair]:
    pairs = dict.fromkeys(cell.pair for cell in asked)
    return list(pairs) if planned else sorted(pairs)


def _pair_block(
    pair: Pair,
    asked: Iterable[AskedCell],
    rows: Iterable[MethodRow],
    cases: Mapping[str, CellCases],
) -> Block:
    cells = [cell for cell in asked if cell.pair == pair]
    return Block(
        f"{pair[0]} → {pair[1]}",
        pair,
        any(cell.synthetic for cell in cells),
        tuple(_pair_row(row, pair, cases) for row in rows),
        any(cell.positions_from_labels for cell in cells),
    )


def _pair_row(row: MethodRow, pair: Pair, cases: Mapping[str, CellCases]) -> Row:
    asked = row.of_pair(pair)
    finished = [cases[cell.key] for cell in asked if cell.key in cases]
    counted = [case for cell in finished for case in cell.values()]
    statistics = summarise(asked, cases) or {}
    return _row(
        row,
        [statistics.get(column.key, Statistic()) for column in COLUMNS],
        runs=len(finished),
        runs_asked=len(asked),
        empty_predictions=sum(case.empty_prediction for case in counted),
        empty_truths=sum(case.empty_truth for case in counted),
        undefined_asd=sum(case.asd != case.asd for case in counted),  # only NaN differs from itself
    )


def _average_block(rows: Sequence[MethodRow], blocks: Sequence[Block]) -> Block:
    """Average each row over the pairs; a row that lacks any pair has no average."""
    averaged: list[Row] = []
    for position, row in enumerate(rows):
        in_pairs = [block.rows[position] for block in blocks]
        columns = zip(*(pair_row.cells for pair_row in in_pairs), strict=True)
        averaged.append(_row(row, [_average([cell.mean for cell in column]) for column in columns]))
    synthetic = any(block.synthetic for block in blocks)
    from_labels = any(block.positions_from_labels for block in blocks)
    return Block(AVERAGE_LABEL, None, synthetic, tuple(averaged), from_labels)


def _average(means: Sequence[float | None]) -> Statistic:
    defined = [mean for mean in means if mean is not None]
    return statistic(defined) if len(defined) == len(means) else Statistic()


def _row(row: MethodRow, statistics: Iterable[Statistic], **counts: Any) -> Row:
    return Row(
        method=row.method,
        label=row.label,
        protocol=row.protocol,
        oracle=row.oracle,
        strictness=row.strictness,
        cells=tuple(Cell(found.mean, found.std, found.n) for found in statistics),
        **counts,
    )


def _with_marks(block: Block, evidence: Evidence) -> Block:
    """Mark the best and the second of every column, among two or more ranked methods.

    Ranks are those of the printed means, and equal means share a rank: after two best there is no
    second.
    """
    marks: dict[tuple[int, int], set[str]] = {}
    for c, column in enumerate(COLUMNS):
        means = {
            r: round(mean, DECIMALS) * (-1 if column.higher_is_better else 1)
            for r, row in enumerate(block.rows)
            if not row.oracle and (mean := row.cells[c].mean) is not None
        }
        metric, structure = column.key.split("_", 1)
        for r, mean in means.items():
            rank = sum(other < mean for other in means.values())
            if rank < 2 and len(means) > 1:
                marks.setdefault((r, c), set()).add(("best", "second")[rank])
            if (
                rank
                and (*(block.pair or ()), structure, metric, block.rows[r].label) in evidence.ties
            ):
                marks.setdefault((r, c), set()).add("tied")
    rows = tuple(
        replace(
            row,
            collapsed=(*(block.pair or ()), row.label) in evidence.collapsed,
            cells=tuple(
                replace(cell, marks=frozenset(marks.get((r, c), ())))
                for c, cell in enumerate(row.cells)
            ),
        )
        for r, row in enumerate(block.rows)
    )
    return replace(block, rows=rows)

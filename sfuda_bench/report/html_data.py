"""What the HTML report shows: table rows with the cells behind them, and what is not finished."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from sfuda_bench.frames import read_parquet
from sfuda_bench.report.comparison import (
    Comparison,
    Scores,
    compare_store,
    comparison_table,
    file_name,
)
from sfuda_bench.report.extra import extra_tables
from sfuda_bench.report.figures_data import DEFAULT_PROFILE
from sfuda_bench.report.harm import evidence, harm, harm_table
from sfuda_bench.report.plain import PlainTable, printed
from sfuda_bench.report.ranking_table import ranking_tables
from sfuda_bench.report.records import (
    AskedCell,
    CellRecord,
    asked_from,
    read_cases,
    read_cells,
    read_plan,
    read_scoring,
)
from sfuda_bench.report.rows import method_rows
from sfuda_bench.report.scope import LABEL_CENTER_MARK, Scope, read_scope
from sfuda_bench.report.status import status
from sfuda_bench.report.summary import cases_by_cell, summarise
from sfuda_bench.report.tables import Block, Row, Table, store_tables
from sfuda_bench.running.store import read_json

_LOG_CHARACTERS = 3000
_STATES = ("finished", "unscored", "failed", "missing")
_RUN_FIELDS = ("started", "finished", "seconds", "device", "threads", "precision", "python")
_TOP_FIELDS = (
    "method",
    "method_version",
    "title",
    "parent",
    "citation",
    "strictness",
    "oracle",
    "protocol",
    "source",
    "target",
    "source_seed",
    "seed",
    "source_selection",
    "synthetic",
    "image_size",
    "precision",
    "epochs",
    "tracked",
)
_DIGEST_FIELDS = (
    "key",
    "source_key",
    "source_model_sha256",
    "adapted_model_sha256",
    "code_digest",
)


@dataclass(frozen=True)
class HtmlRow:
    """One row of a table.

    Attributes:
        block: The pair's part of the table.
        row: Its numbers.
        keys: Keys of the cells behind it.
        first: Whether it is the first of its block.
    """

    block: Block
    row: Row
    keys: tuple[str, ...]
    first: bool


@dataclass(frozen=True)
class HtmlTable:
    """One main table, flat.

    Attributes:
        table: Its title, caption and columns.
        rows: All rows, pair by pair.
    """

    table: Table
    rows: tuple[HtmlRow, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headers over several columns and how many these are, in the order of the columns."""
        grouped = groupby(self.table.columns, key=lambda column: column.group)
        return [(group, len(list(columns))) for group, columns in grouped]


@dataclass(frozen=True)
class FurtherTable:
    """A table beyond the main ones: title, caption, headers and texts; the first are its keys."""

    name: str
    title: str
    caption: tuple[str, ...]
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int


@dataclass(frozen=True)
class ReportData:
    """All that the page shows beside the figures.

    Attributes:
        tables: One per profile.
        cells: Details of every asked cell by key; JSON-able, free of NaN.
        unfinished: Asked cells without a result: ``key``, ``state`` and what they are.
        other_failures: Failures of what is no asked cell, such as a source model.
        counts: Number of asked cells by state.
        further: Every other table, in print's form.
    """

    tables: tuple[HtmlTable, ...]
    cells: Mapping[str, Mapping[str, Any]]
    unfinished: tuple[Mapping[str, Any], ...]
    other_failures: tuple[Mapping[str, Any], ...]
    counts: Mapping[str, int]
    further: tuple[FurtherTable, ...] = ()


def report_data(
    out: Path,
    selection: str = "last",
    compared: Mapping[str, tuple[Scores, Comparison]] | None = None,
    rankings: Iterable[PlainTable] | None = None,
) -> ReportData:
    """Collect what the page shows.

    Args:
        out: The store.
        selection: Which epoch counts in the tables.
        compared: From ``comparison.compare_store``, if it was called before.
        rankings: From ``ranking_table.ranking_tables``, likewise.

    Raises:
        UsageError: There is no store, or nothing comparable in it.
        StoreSchemaError: It has another schema or is damaged.
    """
    if compared is None:
        compared = compare_store(out, selection)
    # The figures' profile comes first.
    tables = sorted(
        store_tables(out, selection, evidence=evidence(compared)),
        key=lambda t: t.profile != DEFAULT_PROFILE,
    )
    cells = read_cells(out)
    plan = read_plan(out)
    asked = asked_from(cells) if plan is None else plan
    stored = {cell.key: cell for cell in cells}
    failures = [_local(failure) for failure in status(out)["failures"]]
    by_folder = {failure["folder"]: failure for failure in failures}
    scores = _scores(asked, stored, tables, selection)
    details = {
        cell.key: _details(out, cell, stored.get(cell.key), scores.get(cell.key, {}), by_folder)
        for cell in asked
    }
    folders = {_attempt(cell.key) for cell in asked}
    unfinished = [
        details[key] for key in details if details[key]["state"] not in ("finished", "unscored")
    ]
    states = [detail["state"] for detail in details.values()]
    return ReportData(
        tables=tuple(_flat(table, asked, stored, planned=plan is not None) for table in tables),
        cells=details,
        unfinished=tuple(unfinished),
        other_failures=tuple(f for f in failures if f["folder"] not in folders),
        counts={state: states.count(state) for state in _STATES if state in states},
        further=tuple(_further(read_scope(out, selection), compared, rankings)),
    )


def _further(
    scope: Scope,
    compared: Mapping[str, tuple[Scores, Comparison]],
    rankings: Iterable[PlainTable] | None,
) -> Iterator[FurtherTable]:
    tables, _ = extra_tables(scope)
    for profile, (scores, comparison) in compared.items():
        if not comparison.frame.empty:
            name = file_name("comparison", profile, scope.selection)
            tables.append(comparison_table(comparison, name, scores.marks))
        harmed = harm(scores)
        if not harmed.empty:
            tables.append(harm_table(harmed, scores, file_name("harm", profile, scope.selection)))
    if rankings is None:
        rankings = ranking_tables({name: scores for name, (scores, _) in compared.items()})
    tables += rankings
    for table in tables:
        headers, rows = printed(table)
        texts = tuple(tuple(row) for row in rows)
        yield FurtherTable(
            table.name, table.title, tuple(table.caption), tuple(headers), texts, table.keys
        )


def _flat(
    table: Table, asked: Sequence[AskedCell], stored: Mapping[str, CellRecord], *, planned: bool
) -> HtmlTable:
    """Join every row with its cells: a block's rows stand in the order of the method rows."""
    rows = method_rows(asked, stored, planned=planned)
    flat = []
    for block in table.blocks:
        for method, row in zip(rows, block.rows, strict=True):
            of_row = method.cells if block.pair is None else method.of_pair(block.pair)
            keys = tuple(cell.key for cell in of_row)
            flat.append(HtmlRow(block, row, keys, first=row is block.rows[0]))
    return HtmlTable(table, tuple(flat))


def _scores(
    asked: Iterable[AskedCell],
    stored: Mapping[str, CellRecord],
    tables: Iterable[Table],
    selection: str,
) -> dict[str, dict[str, Any]]:
    """Return each cell's own means by profile: name of the column to mean and n."""
    found: dict[str, dict[str, Any]] = {}
    used = [stored[cell.key] for cell in asked if cell.key in stored]
    for table in tables:
        scoring = read_scoring(used, table.profile)
        cases = cases_by_cell(
            read_cases(used, table.profile),
            stored,
            selection,
            scoring.get("asd_definition", "directed"),
        )
        for cell in asked:
            statistics = summarise([cell], cases)
            if statistics is not None:
                found.setdefault(cell.key, {})[table.profile] = {
                    f"{column.group} {column.name}": _rounded(statistics[column.key].mean)
                    for column in table.columns
                }
    return found


def _rounded(mean: float | None) -> str:
    return "undefined" if mean is None else f"{mean:.2f}"


def _details(
    out: Path,
    asked: AskedCell,
    cell: CellRecord | None,
    scores: Mapping[str, Any],
    failures: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what the panel of one cell shows, in the order shown."""
    mark = f" {LABEL_CENTER_MARK}" if asked.positions_from_labels else ""
    name = f"{asked.title}, {asked.source} → {asked.target}{mark}"
    name += f", seed {asked.seed}, source seed {asked.source_seed}"
    shown: dict[str, Any] = {"name": name, "key": asked.key}
    if cell is None:
        identity = {field: getattr(asked, field, None) for field in _TOP_FIELDS}
        failure = failures.get(_attempt(asked.key))
        shown["state"] = "missing" if failure is None else "failed"
        shown["sections"] = {
            "Cell": {key: value for key, value in identity.items() if value is not None},
            "Failure": dict(failure or {}),
        }
        shown["log"] = _tail(out / _attempt(asked.key) / "error.txt") if failure else ""
        return _plain_fields(shown)
    record, run = cell.record, _run_record(cell.folder)
    warnings = [*record.get("warnings", ()), *run.get("warnings", ())]
    shown["state"] = "finished" if scores else "unscored"
    shown["sections"] = {
        "Warnings": {str(number): text for number, text in enumerate(dict.fromkeys(warnings), 1)},
        **{f"Scores, profile {profile}": means for profile, means in scores.items()},
        "Cell": {
            field: record.get(field) for field in _TOP_FIELDS if record.get(field) is not None
        },
        "Method settings": dict(cell.config),
        "Inference": dict(cell.inference),
        "Network": dict(cell.network),
        "Keys and digests": {
            **{field: record.get(field) for field in _DIGEST_FIELDS},
            **record.get("digests", {}),
            **_score_digests(cell),
        },
        "Scalars of one epoch": _scalars(cell.folder),
        "Run": {
            **{field: run[field] for field in _RUN_FIELDS if field in run},
            **run.get("versions", {}),
            "folder": cell.folder.relative_to(out).as_posix(),
        },
    }
    shown["log"] = _tail(cell.folder / "log.txt")
    return _plain_fields(shown)


def _run_record(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    return read_json(path) if path.is_file() else {}


def _score_digests(cell: CellRecord) -> dict[str, Any]:
    found = {}
    for profile in cell.profiles:
        record = read_json(cell.folder / f"scores-{profile}.json")
        for name in ("mask_digest", "score_key", "digest", "scorer_version"):
            if name in record:
                found[f"{name} ({profile})"] = record[name]
    return found


def _scalars(folder: Path) -> dict[str, Any]:
    """Return the scalars that were tracked in one epoch only; the others are curves."""
    path = folder / "curve.parquet"
    curve = read_parquet(path) if path.is_file() else pd.DataFrame()
    if not {"epoch", "name", "value"} <= set(curve.columns):
        return {}
    once = curve[~curve["name"].duplicated(keep=False)].sort_values(["epoch", "name"])
    return {
        f"{name} (epoch {epoch})": f"{value:.6g}"
        for epoch, name, value in once[["epoch", "name", "value"]].itertuples(index=False)
    }


def _tail(path: Path) -> str:
    """Return the end of a log, from the start of a line."""
    if not path.is_file():
        return ""
    text = path.read_text("utf-8", errors="replace")
    if len(text) <= _LOG_CHARACTERS:
        return text
    return "…\n" + text[-_LOG_CHARACTERS:].partition("\n")[2]


def _attempt(key: str) -> str:
    return f"attempts/{key[:16]}"


def _local(failure: Mapping[str, Any]) -> dict[str, Any]:
    """Name the folder inside the store: where the store lies is nobody's business."""
    return {**failure, "folder": f"attempts/{Path(failure['folder']).name}"}


def _plain_fields(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a JSON-able copy without empty sections."""
    return {str(key): _plain(part) for key, part in fields.items() if part != {}}


def _plain(value: Any) -> Any:
    """Return a JSON-able copy; what JSON cannot say becomes text."""
    if isinstance(value, Mapping):
        return _plain_fields(value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

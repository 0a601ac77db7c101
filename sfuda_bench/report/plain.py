"""A table of plain columns as Markdown, LaTeX and CSV: the form of every table but the main one."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.report.render import escape_latex
from sfuda_bench.report.scope import ORACLE_MARK, SYNTHETIC_MARK
from sfuda_bench.report.summary import MISSING
from sfuda_bench.running.store import write_bytes

Value = str | int | float | None
_CSV_DECIMALS = 6
_MARKDOWN = str.maketrans({"|": r"\|", "*": r"\*", "<": "&lt;", "`": r"\`", "\n": " "})


@dataclass(frozen=True)
class PlainColumn:
    """One column.

    Attributes:
        key: Name in the CSV, with the unit.
        header: What is printed above it.
        decimals: Digits after the point in print; the CSV has six.
        printed: Whether it appears in print, or in the CSV only.
        signed: Whether a positive number is printed with its sign.
    """

    key: str
    header: str
    decimals: int = 2
    printed: bool = True
    signed: bool = False


@dataclass(frozen=True)
class PlainTable:
    """A table of text and numbers; ``None`` prints an en dash and is empty in the CSV.

    Attributes:
        name: Stem of its files.
        title: First sentence of the caption.
        caption: What a reader must know of the numbers.
        columns: One per entry of a row.
        rows: In print, leading entries equal to those of the row above are left blank.
        keys: How many leading columns identify a row.
    """

    name: str
    title: str
    caption: tuple[str, ...]
    columns: tuple[PlainColumn, ...]
    rows: tuple[tuple[Value, ...], ...]
    keys: int = 2


def write_plain(out: Path, table: PlainTable, suffix: str = "") -> list[Path]:
    """Write ``DIR/tables/<name>.{csv,md,tex}``; the LaTeX is a fragment. Equal values, equal bytes.

    Args:
        out: The store.
        table: The table.
        suffix: Goes between its name and the ending.
    """
    texts = {"csv": to_csv(table), "md": to_markdown(table), "tex": to_latex(table)}
    paths = []
    for ending, text in texts.items():
        path = out / "tables" / f"{table.name}{suffix}.{ending}"
        write_bytes(path, text.encode())
        paths.append(path)
    return paths


def to_csv(table: PlainTable) -> str:
    """Return every column for machines: six digits, nothing where undefined, no marks."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([column.key for column in table.columns])
    for row in table.rows:
        writer.writerow([_machine(value) for value in row])
    return stream.getvalue()


def to_markdown(table: PlainTable) -> str:
    """Return a Markdown document: title, table, caption."""
    headers, rows = _printed(table)
    marks = ["---" if place < table.keys else "---:" for place in range(len(headers))]
    lines = [_pipe([text.translate(_MARKDOWN) for text in headers]), _pipe(marks)]
    lines += [_pipe([text.translate(_MARKDOWN) for text in row]) for row in rows]
    sentences = [text.translate(_MARKDOWN) for text in table.caption]
    return "\n".join([f"**{table.title}**", "", *lines, "", *sentences, ""])


def to_latex(table: PlainTable) -> str:
    r"""Return a ``table`` float for ``\input``, which needs ``booktabs``."""
    headers, rows = _printed(table)
    kinds = "".join("l" if place < table.keys else "r" for place in range(len(headers)))
    body = [" & ".join(escape_latex(text) for text in row) + r" \\" for row in rows]
    lines = [
        r"% Needs \usepackage{booktabs}",
        r"\begin{table}[tbp]",
        r"\centering",
        r"\caption{%",
        *(escape_latex(sentence) for sentence in (table.title, *table.caption)),
        r"}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
        r"\toprule",
        " & ".join(escape_latex(header) for header in headers) + r" \\",
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _printed(table: PlainTable) -> tuple[list[str], list[list[str]]]:
    places = [place for place, column in enumerate(table.columns) if column.printed]
    rows = []
    above: Sequence[Value] = ()
    for row in table.rows:
        shared = 0
        # The last of the identifying columns is always printed.
        while shared < table.keys - 1 and row[: shared + 1] == above[: shared + 1]:
            shared += 1
        rows.append([_text(row[p], table.columns[p]) if p >= shared else "" for p in places])
        above = row
    return [table.columns[place].header for place in places], rows


def _text(value: Value, column: PlainColumn) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float):
        sign = "+" if column.signed else ""
        # Adding 0.0 after rounding keeps a minus sign off a zero.
        return f"{round(value, column.decimals) + 0.0:{sign}.{column.decimals}f}"
    return str(value)


def _machine(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.{_CSV_DECIMALS}f}"
    return str(value).removesuffix(f" {ORACLE_MARK}").removesuffix(f" {SYNTHETIC_MARK}")


def _pipe(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"

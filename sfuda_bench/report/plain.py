"""A table of plain columns as Markdown, LaTeX and CSV: the form of every table but the main one."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.report.render import escape_latex, escape_markdown
from sfuda_bench.report.scope import LABEL_CENTER_MARK, ORACLE_MARK, SYNTHETIC_MARK
from sfuda_bench.report.summary import MISSING
from sfuda_bench.running.store import write_bytes

Value = str | int | float | None
_CSV_DECIMALS = 6
_MARKS = {ORACLE_MARK, SYNTHETIC_MARK, LABEL_CENTER_MARK}
_LONG, _WIDE = 40, 8  # rows that fit a page, columns that fit its width
_MM_PER_LETTER, _MM_PER_COLUMN = 1.9, 5.0


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
    """Write ``DIR/tables/<name>.{csv,md,tex}`` and ``standalone/<name>.tex``, a whole document.

    Equal values give equal bytes.

    Args:
        out: The store.
        table: The table.
        suffix: Goes between its name and the ending.
    """
    return write_texts(out / "tables", f"{table.name}{suffix}", table, to_csv(table))


def write_texts(folder: Path, name: str, table: PlainTable, csv_text: str) -> list[Path]:
    """Write a table's four files; its CSV may hold more than :func:`to_csv` gives."""
    texts = {
        folder / f"{name}.csv": csv_text,
        folder / f"{name}.md": to_markdown(table),
        folder / f"{name}.tex": to_latex(table),
        folder / "standalone" / f"{name}.tex": to_standalone(table),
    }
    for path, text in texts.items():
        write_bytes(path, text.encode())
    return list(texts)


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
    headers, rows = printed(table)
    marks = ["---" if place < table.keys else "---:" for place in range(len(headers))]
    lines = [_pipe([*map(escape_markdown, headers)]), _pipe(marks)]
    lines += [_pipe([*map(escape_markdown, row)]) for row in rows]
    sentences = [*map(escape_markdown, table.caption)]
    return "\n".join([f"**{escape_markdown(table.title)}**", "", *lines, "", *sentences, ""])


def to_latex(table: PlainTable) -> str:
    r"""Return a fragment for ``\input``, which needs ``booktabs``, ``longtable`` and ``siunitx``.

    A table of more than forty rows breaks over pages; one of more than eight columns is set small.
    """
    headers, rows = printed(table)
    numeric = _numeric_formats(table, rows)
    body = [" & ".join(map(_latex_entry, row, numeric)) + r" \\" for row in rows]
    titles = [
        f"{{{escape_latex(header)}}}" if form else escape_latex(header)
        for header, form in zip(headers, numeric, strict=True)
    ]
    header = [r"\toprule", " & ".join(titles) + r" \\", r"\midrule"]
    caption = [
        r"\caption{%",
        *(escape_latex(sentence) for sentence in (table.title, *table.caption)),
    ]
    kinds = "".join(form or "l" for form in numeric)
    small = [r"\footnotesize", r"\setlength{\tabcolsep}{3pt}"] if len(headers) > _WIDE else []
    label = rf"\label{{tab:{table.name}}}"
    needs = r"% Needs \usepackage{booktabs,longtable,siunitx}"
    if len(rows) > _LONG:
        lines = [
            needs,
            r"\begingroup",
            *small,
            r"\setlength{\LTcapwidth}{\linewidth}",
            rf"\begin{{longtable}}{{{kinds}}}",
            *caption,
            rf"}}{label} \\",
            *(*header, r"\endfirsthead"),
            *(*header, r"\endhead"),
            *(r"\bottomrule", r"\endfoot"),
            *body,
            r"\end{longtable}",
            r"\endgroup",
        ]
    else:
        lines = [
            needs,
            r"\begin{table}[tbp]",
            r"\centering",
            *small,
            *caption,
            r"}",
            label,
            rf"\begin{{tabular}}{{{kinds}}}",
            *header,
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    return "\n".join([*lines, ""])


def to_standalone(table: PlainTable) -> str:
    """Return a whole LaTeX document with the fragment inside, on paper as wide as the table."""
    headers, rows = printed(table)
    letters = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    width = max(170, round(sum(letters) * _MM_PER_LETTER + len(letters) * _MM_PER_COLUMN + 40))
    height = min(80 + 6 * len(rows) + 4 * len(table.caption), 420)
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage[utf8]{inputenc}",
            r"\usepackage{booktabs,longtable,siunitx}",
            rf"\usepackage[paperwidth={width}mm,paperheight={height}mm,margin=15mm]{{geometry}}",
            r"\pagestyle{empty}",
            r"\begin{document}",
            to_latex(table) + r"\end{document}",
            "",
        ]
    )


def _numeric_formats(table: PlainTable, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return siunitx's column type of every printed column of numbers, and nothing of texts."""
    formats = []
    places = [place for place, column in enumerate(table.columns) if column.printed]
    for position, place in enumerate(places):
        values = [row[place] for row in table.rows]
        numbers = all(value is None or isinstance(value, int | float) for value in values)
        texts = [row[position] for row in rows if row[position] != MISSING]
        if position < table.keys or not numbers or not texts:
            formats.append("" if position < table.keys or not numbers else "c")
            continue
        whole = max(len(text.lstrip("+-").partition(".")[0]) for text in texts)
        decimals = max(len(text.partition(".")[2]) for text in texts)
        sign = "+" if any(text[0] in "+-" for text in texts) else ""
        shape = f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"
        formats.append(f"S[table-format={shape},retain-explicit-plus]")
    return formats


def _latex_entry(text: str, form: str) -> str:
    if form.startswith("S"):
        return text if text != MISSING else f"{{{escape_latex(text)}}}"
    return escape_latex(text)


def printed(table: PlainTable) -> tuple[list[str], list[list[str]]]:
    """Return the headers and the entries that are printed, repeated keys left blank."""
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
    text, space, marks = str(value).rpartition(" ")
    return text if space and marks and set(marks) <= _MARKS else str(value)


def _pipe(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"

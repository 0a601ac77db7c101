"""A :class:`~sfuda_bench.report.tables.Table` as LaTeX, Markdown, CSV or on a terminal."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from sfuda_bench.report.tables import COLLAPSE, TIE, Block, Cell, Column, Row, Table

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "→": r"$\rightarrow$",
    "±": r"$\pm$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "≥": r"$\geq$",
    "\N{EN DASH}": "--",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "§": r"\S{}",
    "¶": r"\P{}",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "\N{GREEK SMALL LETTER BETA}": r"$\beta$",
    "\N{GREEK SMALL LETTER GAMMA}": r"$\gamma$",
    "\N{GREEK SMALL LETTER LAMDA}": r"$\lambda$",
    "\N{GREEK SMALL LETTER TAU}": r"$\tau$",
}
_CONTROL = {code: " " for code in (*range(32), *range(127, 160))}
_ESCAPES = {**_CONTROL, **str.maketrans(_LATEX)}
_MARKDOWN = {
    **_CONTROL,
    **str.maketrans({"\\": r"\\", "|": r"\|", "*": r"\*", "<": "&lt;", "`": r"\`"}),
}

# Millimetres of a page that holds a standalone table on one sheet: numbers, caption and margins,
# and what a row adds in height and a letter of the longest label in width.
_PAGE_WIDTH, _PAGE_HEIGHT, _PER_ROW, _PER_LETTER = 210, 110, 6, 2.5


def escape_latex(text: str) -> str:
    """Return text that LaTeX prints as it stands."""
    return text.translate(_ESCAPES)


def to_latex(table: Table, *, label: str) -> str:
    r"""Return a LaTeX fragment: a ``table`` float for ``\input``, which needs ``booktabs``.

    Args:
        table: The table.
        label: For ``\ref``.
    """
    width = len(table.columns) + 1
    lines = [
        r"% Needs \usepackage{booktabs}",
        r"\begin{table}[tbp]",
        r"\centering",
        r"\caption{%",
        *(escape_latex(sentence) for sentence in (table.title, *table.caption)),
        r"}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        *_latex_header(table.columns),
    ]
    for block in table.blocks:
        lines += _latex_block(block, width)
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def to_standalone(table: Table, *, label: str) -> str:
    """Return a whole LaTeX document with the fragment inside, on a page that fits it.

    Args:
        table: The table.
        label: As in the fragment.
    """
    rows = sum(len(block.rows) + 2 for block in table.blocks)
    letters = max((len(row.label) for block in table.blocks for row in block.rows), default=0)
    height, width = _PAGE_HEIGHT + _PER_ROW * rows, _PAGE_WIDTH + round(_PER_LETTER * letters)
    return "\n".join(
        [
            r"\documentclass{article}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage[utf8]{inputenc}",
            r"\usepackage{booktabs}",
            rf"\usepackage[paperwidth={width}mm,paperheight={height}mm,margin=15mm]{{geometry}}",
            r"\pagestyle{empty}",
            r"\begin{document}",
            to_latex(table, label=label) + r"\end{document}",
            "",
        ]
    )


def to_markdown(table: Table) -> str:
    """Return a Markdown document: title, table, caption."""
    columns = [f"{column.group} {column.name}" for column in table.columns]
    header = ["pair", "method", *columns]
    lines = [
        f"**{escape_markdown(table.title)}**",
        "",
        _markdown_row(header),
        _markdown_row(["---", "---", *["---:"] * len(columns)]),
    ]
    for block in table.blocks:
        for position, row in enumerate(block.rows):
            pair = escape_markdown(block.marked_label) if position == 0 else ""
            entries = [_markdown_cell(cell) for cell in row.cells]
            lines.append(_markdown_row([pair, escape_markdown(_row_label(row)), *entries]))
    return "\n".join([*lines, "", *(escape_markdown(sentence) for sentence in table.caption), ""])


def to_csv(table: Table) -> str:
    """Return CSV for machines: one row per pair and method, without the average over pairs.

    Dice in percent, ASD in pixels; six digits after the point; nothing where a cell is missing.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    statistics = [
        f"{column.key}_{part}" for column in table.columns for part in ("mean", "std", "n")
    ]
    writer.writerow([*_CSV_COLUMNS, *statistics])
    for block in table.blocks:
        if block.pair is None:
            continue
        for row in block.rows:
            numbers = [
                text
                for cell in row.cells
                for text in (_number(cell.mean), _number(cell.std), str(cell.n))
            ]
            writer.writerow([*_csv_identity(table, block, row), *numbers])
    return stream.getvalue()


def to_rich(table: Table) -> RichTable:
    """Return the table for a terminal."""
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = RichTable(
        title=Text(f"{table.title} Profile: {table.profile}."),
        caption=Text(" ".join(table.caption)),
        caption_justify="left",
    )
    drawn.add_column("method", no_wrap=True)
    for column in table.columns:
        drawn.add_column(
            f"{column.group.replace('[', '(').replace(']', ')')}\n{column.name}", justify="right"
        )
    for block in table.blocks:
        drawn.add_section()
        drawn.add_row(Text(block.marked_label, style="italic"))
        for row in block.rows:
            drawn.add_row(Text(f"  {_row_label(row)}"), *(_rich_cell(cell) for cell in row.cells))
    return drawn


_CSV_COLUMNS = (
    "profile",
    "selection",
    "source",
    "target",
    "method",
    "label",
    "protocol",
    "oracle",
    "synthetic",
    "positions_from_labels",
    "strictness",
    "runs",
    "runs_asked",
    "empty_predictions",
    "empty_truths",
    "undefined_asd",
)


def _csv_identity(table: Table, block: Block, row: Row) -> list[str]:
    source, target = block.pair or ("", "")
    values = (
        table.profile,
        table.selection,
        source,
        target,
        row.method,
        row.label,
        row.protocol,
        str(row.oracle).lower(),
        str(block.synthetic).lower(),
        str(block.positions_from_labels).lower(),
        row.strictness,
        row.runs,
        row.runs_asked,
        row.empty_predictions,
        row.empty_truths,
        row.undefined_asd,
    )
    return [str(value) for value in values]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _row_label(row: Row) -> str:
    marks = ("†" if row.oracle else "") + (COLLAPSE if row.collapsed else "")
    return f"{row.label} {marks}" if marks else row.label


def _latex_header(columns: tuple[Column, ...]) -> list[str]:
    groups: dict[str, list[int]] = {}
    for position, column in enumerate(columns, start=2):
        groups.setdefault(column.group, []).append(position)
    better = {column.group: column.higher_is_better for column in columns}
    heads = [
        rf"\multicolumn{{{len(places)}}}{{c}}{{{escape_latex(group)} "
        rf"$\{'uparrow' if better[group] else 'downarrow'}$}}"
        for group, places in groups.items()
    ]
    rules = [rf"\cmidrule(lr){{{places[0]}-{places[-1]}}}" for places in groups.values()]
    names = [escape_latex(column.name) for column in columns]
    return [
        " & ".join(["", *heads]).strip() + r" \\",
        " ".join(rules),
        " & ".join(["Method", *names]) + r" \\",
    ]


def _latex_block(block: Block, width: int) -> list[str]:
    label = escape_latex(block.marked_label)
    lines = [r"\midrule", rf"\multicolumn{{{width}}}{{l}}{{\textit{{{label}}}}} \\"]
    ranked = [row for row in block.rows if not row.oracle]
    oracle = [row for row in block.rows if row.oracle]
    lines += [_latex_row(row) for row in ranked]
    if ranked and oracle:
        lines.append(rf"\cmidrule{{1-{width}}}")
    return lines + [_latex_row(row) for row in oracle]


def _latex_row(row: Row) -> str:
    entries = [_latex_cell(cell) for cell in row.cells]
    return " & ".join([rf"\quad {escape_latex(_row_label(row))}", *entries]) + r" \\"


def _latex_cell(cell: Cell) -> str:
    mean = escape_latex(cell.mean_text)
    if "best" in cell.marks:
        mean = rf"\textbf{{{mean}}}"
    elif "second" in cell.marks:
        mean = rf"\underline{{{mean}}}"
    tie = r"\rlap{$^{\approx}$}" if "tied" in cell.marks else ""
    return rf"{mean} $\pm$ {cell.std_text}{tie}" if cell.std_text else f"{mean}{tie}"


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it stands."""
    # Square brackets stay readable; a link needs a parenthesis right after them.
    return text.translate(_MARKDOWN).replace("](", "]\\(")


def _markdown_row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _markdown_cell(cell: Cell) -> str:
    mean = cell.mean_text
    if "best" in cell.marks:
        mean = f"**{mean}**"
    elif "second" in cell.marks:
        mean = f"<ins>{mean}</ins>"
    tie = f" {TIE}" if "tied" in cell.marks else ""
    return f"{mean} ± {cell.std_text}{tie}" if cell.std_text else f"{mean}{tie}"


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    style = "bold" if "best" in cell.marks else "underline" if "second" in cell.marks else ""
    text = Text(cell.mean_text, style=style)
    spread = f" ± {cell.std_text}" if cell.std_text else ""
    return Text.assemble(text, spread, f" {TIE}" if "tied" in cell.marks else "")

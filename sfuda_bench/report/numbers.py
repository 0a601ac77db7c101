r"""One LaTeX command for every number of the main tables, so that a text never retypes one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfuda_bench.report.render import escape_latex
from sfuda_bench.report.rows import split
from sfuda_bench.report.summary import MISSING
from sfuda_bench.report.tables import Table, store_tables
from sfuda_bench.running.store import write_bytes

PREFIX = "Sf"
_DIGITS = ("Zero", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine")


def command_name(*parts: str) -> str:
    r"""Return a LaTeX command name: letters only, each word and digit spelled in camel case.

    ``("standard", "rim_one_r3")`` gives ``SfStandardRimOneRThree``.

    Args:
        parts: Words with any characters; those that are no ASCII letter or digit separate words.
    """
    words = re.findall(r"[A-Za-z]+|\d", " ".join(parts))
    return PREFIX + "".join(
        _DIGITS[int(word)] if word.isdecimal() else word[0].upper() + word[1:] for word in words
    )


def numbers_tex(tables: Sequence[Table]) -> str:
    r"""Return ``\newcommand`` lines for the mean, deviation and count of every entry.

    Args:
        tables: Main tables. A number that is missing prints an en dash.
    """
    lines = [
        rf"% \{PREFIX} + profile + source + target + method + metric + structure + Mean, Std or N",
        "% Dice in percent, ASD in pixels of the evaluation grid; digits are spelled out.",
    ]
    named = [item for table in tables for item in _numbers(table)]
    for group in split(named, lambda item: item[0]):
        for position, (name, text) in enumerate(group):
            # Names that differ in punctuation only are told apart by a last letter.
            suffix = "" if len(group) == 1 else f"Variant{_letters(position)}"
            lines.append(rf"\newcommand{{\{name}{suffix}}}{{{escape_latex(text)}}}")
    return "\n".join([*lines, ""])


def write_numbers(out: Path, selection: str = "last") -> list[Path]:
    """Write ``DIR/tables/numbers.tex`` (with the selection in its name unless it is ``last``).

    Args:
        out: The store.
        selection: Which epoch counts.
    """
    tables = store_tables(out, selection)
    if not tables:
        return []
    suffix = "" if selection == "last" else f"-{selection.replace(':', '-')}"
    path = out / "tables" / f"numbers{suffix}.tex"
    write_bytes(path, numbers_tex(tables).encode())
    return [path]


def _numbers(table: Table) -> Iterator[tuple[str, str]]:
    selection = [] if table.selection == "last" else [table.selection]
    for block in table.blocks:
        where = block.pair or ("average",)
        for row in block.rows:
            for column, cell in zip(table.columns, row.cells, strict=True):
                name = command_name(table.profile, *selection, *where, row.label, column.key)
                yield f"{name}Mean", cell.mean_text
                yield f"{name}Std", cell.std_text or MISSING
                yield f"{name}N", str(cell.n)


def _letters(number: int) -> str:
    """Return A, B, ..., Z, AA, AB, ... for 0, 1, ..."""
    text = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        text = chr(ord("A") + rest) + text
    return text

"""The user's own tables: one row per eye, found by its name."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from sfuda_bench.errors import DataError

_SUFFIX = re.compile(r"\.(?:png|jpe?g|tiff?|bmp)$", re.IGNORECASE)


def read_table(path: Path, flag: str, columns: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read a CSV whose first line names its columns, in any order.

    Args:
        path: The file, UTF-8 with or without a byte-order mark.
        flag: What the user gave it with, for messages.
        columns: Columns that must be there; ``name`` is one of them.

    Returns:
        Rows by the eye's name; the suffix of an image file is dropped from it.

    Raises:
        DataError: The file cannot be read, a column is missing, a row is short, or two rows of
            one name differ.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            header, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeError, csv.Error) as error:
        raise _foreign(path, flag, columns, str(error)) from error
    if not {*columns} <= {*header}:
        raise _foreign(path, flag, columns, f"its first line is '{','.join(header)[:60]}'")
    table: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows, 2):
        wanted = {column: row[column] for column in columns}
        if any(value is None for value in wanted.values()):
            raise _foreign(path, flag, columns, f"row {number} is too short")
        kept = {column: value.strip() for column, value in wanted.items()}
        name = eye_name(kept.pop("name"))
        if table.setdefault(name, kept) != kept:
            raise DataError(
                f"{flag} {path}: two different rows for {name}", hint="keep the one that is meant"
            )
    return table


def eye_name(text: str) -> str:
    """Return a name as it is compared: without the suffix of an image, composed Unicode."""
    return unicodedata.normalize("NFC", _SUFFIX.sub("", text.strip()))


def _foreign(path: Path, flag: str, columns: Sequence[str], reason: str) -> DataError:
    listed = f"{', '.join(columns[:-1])} and {columns[-1]}"
    return DataError(
        f"{flag} {path}: not a CSV with the columns {listed} ({reason})",
        hint=f"commas between the columns, {','.join(columns)} in the first line",
    )

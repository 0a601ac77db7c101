"""Study files: one TOML file is one question."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from sfuda_bench._checkout import plugin_path
from sfuda_bench.errors import UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.tunable import build_config

_HINT = "studies/README.md lists the keys"
T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def shipped_studies() -> dict[str, Path]:
    """Return the study files that come with the package or lie in the checkout, by name."""
    folders = [Path(folder) for folder in plugin_path("studies")]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def find_study(given: str | Path) -> Path:
    """Return the file that a path or the name of a shipped study means.

    Raises:
        UsageError: Neither an existing file nor a shipped study.
    """
    path = Path(given)
    if path.is_file():
        return path
    shipped = shipped_studies()
    name = path.stem if path.suffix == ".toml" else str(given)
    # "studies/NAME.toml" also works where only the package is installed.
    if name in shipped and path.parent.name in ("", "studies"):
        return shipped[name]
    raise UsageError(
        f"{given}: no such file and no shipped study{did_you_mean(name, sorted(shipped))}; "
        f"shipped: {', '.join(sorted(shipped)) or 'none'}",
        hint="sfuda-bench study ls",
    )


def read_study_tables(given: str | Path) -> tuple[str, dict[str, Any], str]:
    """Read a study file.

    Args:
        given: A path, or the name of a shipped study.

    Returns:
        Its name (the file's stem), its tables, and the sha256 hex digest of its text.

    Raises:
        UsageError: No such study, a name that cannot be a folder's, or no TOML.
    """
    path = find_study(given)
    if not _NAME.fullmatch(path.stem):
        raise UsageError(
            f"{path}: a study is called like its file; expected letters, digits, '_', '-', '.'",
            hint="rename the file",
        )
    try:
        data = path.read_bytes()
        tables = tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint="sfuda-bench study ls") from error
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise UsageError(f"{path}: not TOML: {error}", hint="sfuda-bench study ls") from error
    return path.stem, tables, hashlib.sha256(data).hexdigest()


def check_keys(where: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuse keys that are not known.

    Args:
        where: The file and table, for messages.
        given: What was found there.
        known: What may be there.

    Raises:
        UsageError: An unknown key; the message suggests the nearest known one.
    """
    known = sorted(known)
    for key in given:
        if key not in known:
            raise UsageError(
                f"{where}: unknown key '{key}'{did_you_mean(key, known)}; "
                f"known: {', '.join(known) or '-'}",
                hint=_HINT,
            )


def table_of(where: str, tables: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return one table of a study file; an absent one is empty.

    Raises:
        UsageError: The key holds something else than a table.
    """
    found = tables.get(key, {})
    if not isinstance(found, Mapping):
        raise UsageError(f"{where}: '{key}' must be a table of keys and values", hint=f"[{key}]")
    return found


def build_table(kind: type[T], where: str, name: str, table: Mapping[str, Any]) -> T:
    """Build the dataclass that describes one table of a study file.

    Args:
        kind: A dataclass whose fields are the table's keys.
        where: The file, for messages.
        name: Of the table.
        table: What was found there.

    Raises:
        UsageError: An unknown key, or a value of another type or out of its range.
    """
    check_keys(f"{where} [{name}]", table, [f.name for f in dataclasses.fields(cast(Any, kind))])
    try:
        return build_config(kind, table, owner=f"{where}: {name}")
    except UsageError as error:
        raise UsageError(error.message, hint=error.hint or _HINT) from error

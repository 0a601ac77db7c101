"""How far a store is: what is done, running, failed and still to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.report.records import (
    AskedCell,
    asked_from,
    check_store,
    read_cells,
    read_plan,
)
from sfuda_bench.running.store import Store, lock_owner, read_json

if TYPE_CHECKING:
    from rich.table import Table as RichTable

STATES = ("done", "running", "failed", "todo")
_ERROR_FIELDS = (
    "method",
    "source",
    "target",
    "source_seed",
    "seed",
    "failure",
    "class",
    "message",
    "attempts",
    "time",
)
_STYLES = {"done": "green", "running": "cyan", "failed": "red", "todo": "dim"}


def status(out: Path) -> dict[str, Any]:
    """Return the state of a store, without opening a score or importing torch.

    Args:
        out: The store. Without ``plans/last.json`` the stored cells and the failed attempts
            are what counts.

    Returns:
        JSON-able: ``out``; ``planned`` (whether a plan was found); ``total`` (counts by
        state: ``done``, ``running``, ``failed``, ``todo``); ``methods`` and ``pairs`` in table
        order; ``matrix``, one entry per method and pair with the same counts; ``failures``
        with ``failure`` (the kind), ``class``, ``message``, ``attempts``, ``time`` and the paths
        ``folder`` and ``log``; ``sources``, the finished source models by domain and short key.

    Raises:
        UsageError: There is no store.
        StoreSchemaError: It has another schema or is damaged.
    """
    check_store(out)
    store = Store(out)
    plan = read_plan(out)
    asked = asked_from(read_cells(out)) if plan is None else plan
    matrix: dict[tuple[str, str], dict[str, int]] = {}
    failures: list[dict[str, Any]] = []
    for cell in asked:
        state = _state(store, cell)
        counts = matrix.setdefault((_name(cell), _pair(cell)), dict.fromkeys(STATES, 0))
        counts[state] += 1
        if state == "failed":
            failures.append(_failure(store.attempt(cell.key)))
    folders = {store.attempt(cell.key).name for cell in asked}
    failures += _other_failures(store, folders, matrix, planned=plan is not None)
    entries = list(matrix.items())
    return {
        "out": str(out),
        "planned": plan is not None,
        "total": {state: sum(counts[state] for _, counts in entries) for state in STATES},
        "methods": list(dict.fromkeys(method for (method, _), _ in entries)),
        "pairs": list(dict.fromkeys(pair for (_, pair), _ in entries)),
        "matrix": [{"method": key[0], "pair": key[1], **counts} for key, counts in entries],
        "failures": failures,
        "sources": _sources(out),
    }


def render_status(found: Mapping[str, Any], *, plain: bool = False) -> RichTable | str:
    """Return a matrix of pairs by methods.

    Args:
        found: From :func:`status`.
        plain: Whether to return lines of text for a pipe instead of a rich table.
    """
    return _plain(found) if plain else _drawn(found)


def _plain(found: Mapping[str, Any]) -> str:
    lines = [f"{entry['method']}  {entry['pair']}  {_counts(entry)}" for entry in found["matrix"]]
    lines += [f"failed: {text}" for text in _failure_lines(found["failures"])]
    return "\n".join([*lines, f"{found['out']}: {_counts(found['total'])}"])


def _drawn(found: Mapping[str, Any]) -> RichTable:
    from rich.table import Table
    from rich.text import Text

    caption = "\n".join([_counts(found["total"]), *_failure_lines(found["failures"])])
    table = Table(title=Text(found["out"]), caption=Text(caption), caption_justify="left")
    table.add_column("pair")
    for method in found["methods"]:
        table.add_column(Text(method))
    entries = {(entry["method"], entry["pair"]): entry for entry in found["matrix"]}
    for pair in found["pairs"]:
        row = [_drawn_entry(entries.get((method, pair))) for method in found["methods"]]
        table.add_row(Text(pair), *row)
    return table


def _drawn_entry(entry: Mapping[str, Any] | None) -> Any:
    from rich.text import Text

    if entry is None:
        return Text("")
    parts = [(f"{entry[state]} {state}", _STYLES[state]) for state in STATES if entry[state]]
    return Text("\n").join(Text(text, style=style) for text, style in parts)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]) or "no cells"


def _failure_lines(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for failure in failures:
        target = "" if failure["target"] is None else f" → {failure['target']}"
        seed = "" if failure["seed"] is None else f", seed {failure['seed']}"
        tries = "" if failure["attempts"] in (1, "?") else f", {failure['attempts']} attempts"
        lines.append(
            f"{failure['method']} {failure['source']}{target} "
            f"(source seed {failure['source_seed']}{seed}): "
            f"{failure['class']}: {failure['message']} "
            f"[{failure['failure']}{tries}, {failure['log'] or failure['folder']}]"
        )
    return lines


def _name(cell: AskedCell) -> str:
    return cell.method if cell.protocol == "offline" else f"{cell.method} ({cell.protocol})"


def _pair(cell: AskedCell) -> str:
    return f"{cell.source}:{cell.target}"


def _state(store: Store, cell: AskedCell) -> str:
    if (store.cell(cell.method, cell.source, cell.target, cell.key) / "cell.json").is_file():
        return "done"
    attempt = store.attempt(cell.key)
    if lock_owner(attempt / "lock") is not None:
        return "running"
    return "failed" if (attempt / "error.json").is_file() else "todo"


def _failure(attempt: Path) -> dict[str, Any]:
    try:
        error = read_json(attempt / "error.json")
    except StoreSchemaError:  # it is being written, or the disk is full: the state still counts
        error = {"message": "its error.json cannot be read"}
    known = {name: error.get(name, "?") for name in _ERROR_FIELDS}
    if known["failure"] == "?":  # written by an earlier version
        known["failure"], known["attempts"] = "raised", 1
    log = attempt / "log.txt"
    return {**known, "folder": str(attempt), "log": str(log) if log.is_file() else None}


def _other_failures(
    store: Store,
    asked: set[str],
    matrix: dict[tuple[str, str], dict[str, int]],
    *,
    planned: bool,
) -> list[dict[str, Any]]:
    """Return failures of what no asked cell stands for: source models, and without a plan cells.

    Args:
        store: Where the attempts lie.
        asked: Attempt folders of the asked cells.
        matrix: Without a plan, the failed cells are counted here.
        planned: Whether the plan is known; then failures of other cells are history.
    """
    failures = []
    for path in sorted((store.root / "attempts").glob("*/error.json")):
        if path.parent.name in asked or lock_owner(path.with_name("lock")) is not None:
            continue
        failure = _failure(path.parent)
        is_cell = failure["target"] not in (None, "?")
        short_key = path.parent.name
        stored = (
            f"cells/*/*/{short_key}/cell.json" if is_cell else f"sources/*/{short_key}/card.json"
        )
        if (is_cell and planned) or any(store.root.glob(stored)):
            continue
        if is_cell:
            key = (failure["method"], f"{failure['source']}:{failure['target']}")
            matrix.setdefault(key, dict.fromkeys(STATES, 0))["failed"] += 1
        failures.append(failure)
    return failures


def _sources(out: Path) -> list[dict[str, str]]:
    cards = sorted((out / "sources").glob("*/*/card.json"))
    return [{"domain": card.parent.parent.name, "key": card.parent.name} for card in cards]

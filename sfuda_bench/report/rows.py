"""Which cells share a row of a table: one method under one protocol and one configuration."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sfuda_bench.report.records import AskedCell, CellRecord

Pair = tuple[str, str]
Item = TypeVar("Item")

_PARTS = ("network", "inference", "config")


@dataclass(frozen=True)
class MethodRow:
    """One method's row, the same in every pair.

    Attributes:
        method: Registered name.
        label: What the table prints: title, protocol unless offline, differing settings.
        protocol: The cells' protocol.
        oracle: Whether it uses target labels.
        strictness: The widest class of source-side information among its cells.
        cells: The cells asked for, over all pairs and seeds.
    """

    method: str
    label: str
    protocol: str
    oracle: bool
    strictness: str
    cells: tuple[AskedCell, ...]

    def of_pair(self, pair: Pair) -> list[AskedCell]:
        """Return its cells of one pair: one per source seed and seed."""
        return [cell for cell in self.cells if cell.pair == pair]


def method_rows(
    asked: Sequence[AskedCell], stored: Mapping[str, CellRecord], *, planned: bool
) -> list[MethodRow]:
    """Group cells into rows, so that a mean never mixes configurations.

    One run resolves one configuration per method (a preset may make it depend on the pair), so
    planned cells of a method and protocol share a row. Cells whose plan is unknown share one
    only if every setting is equal; otherwise each configuration has its own row and its label
    names the settings that differ.

    Args:
        asked: Cells in table order.
        stored: Finished cells by key.
        planned: Whether ``asked`` comes from one run.

    Returns:
        Rows in the order of their first cell, oracle rows last.
    """
    names = _names(asked)
    rows: list[MethodRow] = []
    for group in split(asked, lambda cell: (cell.method, cell.protocol)):
        variants = [group]
        if not planned or _collides(group):
            variants = split(group, lambda cell: _signature(stored.get(cell.key)))
        suffixes = _suffixes([dict(_signature(stored.get(cells[0].key))) for cells in variants])
        for cells, suffix in zip(variants, suffixes, strict=True):
            rows += _rows(cells, names[cells[0].method], suffix)
    return sorted(rows, key=lambda row: row.oracle)


def split(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Split items into lists of equal key, in the order of each key's first item."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


def _names(asked: Iterable[AskedCell]) -> dict[str, str]:
    """Return what a table calls each method; two methods of one title show their names too."""
    titles = {cell.method: cell.title for cell in asked}
    shared = list(titles.values())
    return {
        method: f"{title} [{method}]" if shared.count(title) > 1 else title
        for method, title in titles.items()
    }


def _rows(cells: list[AskedCell], name: str, suffix: list[str]) -> list[MethodRow]:
    """Return one row, or one per cell if two cells differ in nothing that is recorded."""
    if not _collides(cells):
        return [_row(cells, name, suffix)]
    return [_row([cell], name, [*suffix, f"key {cell.key[:8]}"]) for cell in cells]


def _row(cells: list[AskedCell], name: str, suffix: list[str]) -> MethodRow:
    first = cells[0]
    protocol = [] if first.protocol == "offline" else [first.protocol]
    marks = ", ".join([*protocol, *suffix])
    return MethodRow(
        method=first.method,
        label=f"{name} ({marks})" if marks else name,
        protocol=first.protocol,
        oracle=any(cell.oracle for cell in cells),
        strictness=max(cell.strictness for cell in cells),
        cells=tuple(cells),
    )


def _collides(cells: Sequence[AskedCell]) -> bool:
    """Whether two cells claim the same pair and seeds."""
    slots = {(cell.pair, cell.source_seed, cell.seed) for cell in cells}
    return len(slots) < len(cells)


def _signature(cell: CellRecord | None) -> tuple[tuple[str, str], ...]:
    """Return every setting that may change a number, as sorted (name, text)."""
    if cell is None:
        return ()
    settings: dict[str, Any] = {
        "version": cell.method_version,
        "precision": cell.precision,
        "image_size": cell.image_size,
    }
    for part in _PARTS:
        prefix = "" if part == "config" else f"{part}."
        settings |= {f"{prefix}{name}": value for name, value in getattr(cell, part).items()}
    return tuple(sorted((name, str(value)) for name, value in settings.items()))


def _suffixes(signatures: list[dict[str, str]]) -> list[list[str]]:
    """Return, per configuration, its values of the settings in which they differ."""
    names = sorted({name for signature in signatures for name in signature})
    differing = [n for n in names if len({signature.get(n) for signature in signatures}) > 1]
    return [
        [f"{name}={signature[name]}" for name in differing if name in signature]
        for signature in signatures
    ]

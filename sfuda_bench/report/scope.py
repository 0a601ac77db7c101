"""What the tables of a report are about: the asked cells of a store, their rows and pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.report.records import (
    AskedCell,
    CellRecord,
    asked_from,
    check_store,
    read_cells,
    read_plan,
)
from sfuda_bench.report.rows import MethodRow, Pair, method_rows

ORACLE_MARK = "†"
SYNTHETIC_MARK = "§"
SYNTHETIC_WORDS = "synthetic images, not of patients"
LABEL_CENTER_MARK = "¶"
LABEL_CENTER_WORDS = "crops centred on annotated discs: position comes from labels"
LABEL_CENTER_SENTENCE = f"{LABEL_CENTER_MARK} {LABEL_CENTER_WORDS}."


@dataclass(frozen=True)
class Scope:
    """The cells of a report.

    Attributes:
        out: The store.
        selection: Which epoch counts.
        asked: Cells in table order, finished or not.
        stored: The finished ones by key.
        rows: One per method and configuration, oracle rows last.
        pairs: In table order.
    """

    out: Path
    selection: str
    asked: tuple[AskedCell, ...]
    stored: Mapping[str, CellRecord]
    rows: tuple[MethodRow, ...]
    pairs: tuple[Pair, ...]

    @property
    def profiles(self) -> list[str]:
        """Names of the profiles that any finished cell was scored under."""
        return sorted({name for cell in self.stored.values() for name in cell.profiles})

    @property
    def marks(self) -> tuple[str, ...]:
        """Sentences that explain the marks of pairs and methods, for a caption."""
        sentences = []
        if self.selection == "oracle" or any(row.oracle for row in self.rows):
            sentences.append(f"{ORACLE_MARK} uses target labels (oracle).")
        return (*sentences, *explained(self.pair_marks))

    @property
    def pair_marks(self) -> dict[Pair, str]:
        """The marks of those pairs that have any."""
        return pair_marks(self.asked)

    def pair_name(self, pair: Pair) -> str:
        """Return how tables print a pair, with its marks."""
        return f"{pair_label(pair)} {self.pair_marks.get(pair, '')}".rstrip()

    def row_name(self, row: MethodRow) -> str:
        """Return how tables print a row, marked if it uses target labels."""
        oracle = row.oracle or self.selection == "oracle"
        return f"{row.label} {ORACLE_MARK}" if oracle else row.label

    def cells_of(self, row: MethodRow, pair: Pair) -> list[CellRecord] | None:
        """Return a row's finished cells of one pair, or ``None`` if any is missing."""
        keys = [cell.key for cell in row.of_pair(pair)]
        if not keys or any(key not in self.stored for key in keys):
            return None
        return [self.stored[key] for key in keys]

    def baseline(self, pair: Pair) -> MethodRow | None:
        """Return the row of the unadapted source model in a pair, if it was run."""
        for row in self.rows:
            cells = self.cells_of(row, pair)
            if cells and not row.oracle and all(_is_unadapted(cell) for cell in cells):
                return row
        return None


def read_scope(out: Path, selection: str = "last") -> Scope:
    """Read what a store's newest run asked for, or every cell when that is unknown.

    Args:
        out: The store.
        selection: Which epoch counts.

    Raises:
        UsageError: There is no store.
        StoreSchemaError: It has another schema or is damaged.
    """
    check_store(out)
    cells = read_cells(out)
    plan = read_plan(out)
    asked = asked_from(cells) if plan is None else plan
    keys = {cell.key for cell in asked}
    stored = {cell.key: cell for cell in cells if cell.key in keys}
    rows = method_rows(asked, stored, planned=plan is not None)
    pairs = list(dict.fromkeys(cell.pair for cell in asked))
    if plan is None:
        pairs.sort()
    return Scope(out, selection, tuple(asked), stored, tuple(rows), tuple(pairs))


def chosen(cell: CellRecord, selection: str) -> str:
    """Return the selection to read: a cell without a trained epoch has its last one only."""
    return selection if cell.epochs else "last"


def pair_marks(asked: Iterable[AskedCell]) -> dict[Pair, str]:
    """Return the marks of those pairs whose images are synthetic or cut out by labels."""
    found: dict[Pair, str] = {}
    for cell in asked:
        marks = marks_of(synthetic=cell.synthetic, positions_from_labels=cell.positions_from_labels)
        if marks:
            found[cell.pair] = marks
    return found


def marks_of(*, synthetic: bool, positions_from_labels: bool) -> str:
    """Return the marks of a domain or pair: of synthetic images, and of crops cut by labels."""
    return SYNTHETIC_MARK * synthetic + LABEL_CENTER_MARK * positions_from_labels


def mark_words(*, synthetic: bool, positions_from_labels: bool) -> tuple[str, ...]:
    """Return what these marks mean, each as the mark and its words, for a figure's title."""
    meanings = (
        (synthetic, f"{SYNTHETIC_MARK} {SYNTHETIC_WORDS}"),
        (positions_from_labels, f"{LABEL_CENTER_MARK} {LABEL_CENTER_WORDS}"),
    )
    return tuple(words for marked, words in meanings if marked)


def explained(marks: Mapping[Pair, str]) -> tuple[str, ...]:
    """Return what the marks of pairs mean, for a caption."""
    used = "".join(marks.values())
    words = mark_words(
        synthetic=SYNTHETIC_MARK in used, positions_from_labels=LABEL_CENTER_MARK in used
    )
    return tuple(f"{text}." for text in words)


def pair_label(pair: Pair) -> str:
    """Return how tables print a pair."""
    return f"{pair[0]} → {pair[1]}"


def _is_unadapted(cell: CellRecord) -> bool:
    before = cell.record.get("source_model_sha256")
    unchanged = before is not None and before == cell.record.get("adapted_model_sha256")
    # A method may adapt at test time only, and leave the weights as they were.
    plain = cell.protocol == "offline" and cell.inference.get("batch_norm") == "running"
    return unchanged and plain and not cell.oracle

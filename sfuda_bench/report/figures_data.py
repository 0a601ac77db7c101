"""What figures are drawn from: stored records as frames, equal whatever the order of the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sfuda_bench.errors import UsageError, spoilt
from sfuda_bench.frames import read_parquet
from sfuda_bench.report.records import (
    AskedCell,
    CellRecord,
    asked_from,
    check_store,
    read_cases,
    read_cells,
    read_plan,
    read_scoring,
)
from sfuda_bench.report.rows import MethodRow, method_rows
from sfuda_bench.report.scope import mark_words, marks_of, pair_label
from sfuda_bench.report.style import (
    BASELINE_COLOUR,
    DASHES,
    ORACLE_COLOUR,
    PALETTE,
    short_digest,
    slug,
)

DEFAULT_PROFILE = "standard"
HARM_POINTS = (1, 5)
"""Dice points by which an image must be worse to count as harmed."""
_EYES = ("image", "selection", "vcdr_prediction", "vcdr_truth")
_CURVE = ("epoch", "name", "value")
_THRESHOLDS = ("threshold", "structure", "image", "dice")
_EPOCHS = ("epoch", "structure", "image", "dice")


@dataclass(frozen=True)
class FigurePair:
    """One pair.

    Attributes:
        source: Source domain.
        target: Target domain.
        synthetic: Whether either domain is synthetic.
        positions_from_labels: Whether the crops of either domain are centred on annotations.
    """

    source: str
    target: str
    synthetic: bool
    positions_from_labels: bool = False

    @property
    def marks(self) -> str:
        """What follows its name wherever it is shown."""
        return marks_of(synthetic=self.synthetic, positions_from_labels=self.positions_from_labels)

    @property
    def label(self) -> str:
        """Its name with its marks."""
        return f"{pair_label((self.source, self.target))} {self.marks}".rstrip()

    @property
    def title(self) -> str:
        """Its name in a figure's title, where each mark is explained."""
        words = mark_words(
            synthetic=self.synthetic, positions_from_labels=self.positions_from_labels
        )
        note = f" ({'; '.join(words)})" if words else ""
        return f"{pair_label((self.source, self.target))}{note}"

    @property
    def slug(self) -> str:
        """Its name in file names."""
        name = slug(f"{self.source}-{self.target}")
        if "-" not in self.source + self.target:
            return name
        # a-b to c and a to b-c are two pairs of one name.
        return f"{name}-{short_digest(repr((self.source, self.target)))}"


@dataclass(frozen=True)
class Line:
    """How one row looks in every figure.

    Attributes:
        label: Its name, with the mark of oracle rows.
        oracle: Whether it uses target labels.
        baseline: Whether it is the unadapted source model.
        colour: Hex colour.
        dash: Line style.
    """

    label: str
    oracle: bool
    baseline: bool
    colour: str
    dash: object


@dataclass(frozen=True)
class FigureData:
    """All records that figures need, under one profile and selection.

    Every frame has the integer columns ``pair`` and ``row`` (positions in ``pairs`` and
    ``lines``) and holds only rows all of whose runs are there: a mean over some of the seeds
    would be a mean of something else.

    Attributes:
        profile: Name of the scoring profile.
        selection: Name of the selection.
        thresholds_used: Thresholds of the profiles that the store was scored under.
        pairs: In table order.
        lines: In table order, oracle rows last.
        cases: ``structure``, ``image``, ``dice`` [%]: means over runs.
        eyes: ``image``, ``vcdr_prediction``, ``vcdr_truth``: means over runs.
        thresholds: ``threshold``, ``structure``, ``dice`` [%]: means over runs and images.
        curves: ``key``, ``epoch``, ``name``, ``value``: single runs.
        epochs: ``epoch``, means over runs, structures and images: ``dice`` [%], and ``worse_1``
            and ``worse_5`` [%], the share of images that are worse than before adaptation (epoch
            0) by more than 1 and 5 Dice points.
        average_last: The k of a stored ``average-last-k``, or 0.
    """

    profile: str
    selection: str
    thresholds_used: Mapping[str, float]
    pairs: tuple[FigurePair, ...]
    lines: tuple[Line, ...]
    cases: pd.DataFrame
    eyes: pd.DataFrame
    thresholds: pd.DataFrame
    curves: pd.DataFrame
    epochs: pd.DataFrame
    average_last: int

    @property
    def baseline(self) -> int | None:
        """Position of the unadapted source model."""
        return next((i for i, line in enumerate(self.lines) if line.baseline), None)

    @property
    def mark_words(self) -> tuple[str, ...]:
        """What the marks of its pairs mean."""
        return mark_words(
            synthetic=any(pair.synthetic for pair in self.pairs),
            positions_from_labels=any(pair.positions_from_labels for pair in self.pairs),
        )

    def rows_of(self, frame: pd.DataFrame, pair: int) -> list[int]:
        """Return the rows that ``frame`` holds for a pair, in table order."""
        return sorted(int(row) for row in set(frame.loc[frame["pair"] == pair, "row"]))


def load(out: Path, selection: str = "last", profile: str | None = None) -> FigureData:
    """Read what figures are drawn from.

    Args:
        out: The store.
        selection: Which epoch counts.
        profile: Name of the profile; ``None``: ``standard``, or else the first that was used.

    Raises:
        UsageError: There is no store, nothing is scored, or nothing has the selection.
        StoreSchemaError: It has another schema or is damaged.
    """
    check_store(out)
    cells = read_cells(out)
    plan = read_plan(out)
    asked = asked_from(cells) if plan is None else plan
    stored = {cell.key: cell for cell in cells}
    used = [stored[key] for key in dict.fromkeys(cell.key for cell in asked) if key in stored]
    profile = _profile(out, used, profile)
    rows = method_rows(asked, stored, planned=plan is not None)
    pairs = _pairs(asked, planned=plan is not None)
    places = _places(rows, pairs)
    cases = read_cases(used, profile)
    found = sorted(set(cases["selection"]))
    if selection not in found and selection != "last":
        raise UsageError(
            f"no stored score has the selection '{selection}', there are: {', '.join(found)}",
            hint="run with --track epochs, or choose another --selection",
        )
    eyes = _read_all(used, f"eyes-{profile}.parquet", _EYES)
    return FigureData(
        profile=profile,
        selection=selection,
        thresholds_used=_thresholds_used(used),
        pairs=pairs,
        lines=row_lines(rows, stored, all_oracle=selection == "oracle"),
        cases=_cases(_selected(cases, stored, selection), places),
        eyes=_means(
            _complete(_selected(eyes, stored, selection), places),
            ["image"],
            ["vcdr_prediction", "vcdr_truth"],
        ),
        thresholds=_threshold_means(_read_all(used, "thresholds.parquet", _THRESHOLDS), places),
        curves=_curves(used, places),
        epochs=_epoch_means(_read_all(used, f"epochs-{profile}.parquet", _EPOCHS), places),
        average_last=max((_average_last(name) for name in found), default=0),
    )


def _profile(out: Path, cells: Sequence[CellRecord], wanted: str | None) -> str:
    names = sorted({name for cell in cells for name in cell.profiles})
    if not names or (wanted is not None and wanted not in names):
        known = f"there are: {', '.join(names)}" if names else "no finished cell has scores"
        raise UsageError(
            f"{out}: nothing is scored under the profile '{wanted or DEFAULT_PROFILE}', {known}",
            hint=f"sfuda-bench rescore --out {out} --profile {wanted or DEFAULT_PROFILE}",
        )
    return wanted or (DEFAULT_PROFILE if DEFAULT_PROFILE in names else names[0])


def _thresholds_used(cells: Sequence[CellRecord]) -> dict[str, float]:
    names = sorted({name for cell in cells for name in cell.profiles})
    scoring = {name: read_scoring(cells, name) for name in names}
    return {name: float(s["threshold"]) for name, s in scoring.items() if "threshold" in s}


def _pairs(asked: Sequence[AskedCell], *, planned: bool) -> tuple[FigurePair, ...]:
    names = list(dict.fromkeys(cell.pair for cell in asked))
    synthetic = {cell.pair for cell in asked if cell.synthetic}
    from_labels = {cell.pair for cell in asked if cell.positions_from_labels}
    ordered = names if planned else sorted(names)
    return tuple(FigurePair(*pair, pair in synthetic, pair in from_labels) for pair in ordered)


def row_lines(
    rows: Sequence[MethodRow], stored: Mapping[str, CellRecord], *, all_oracle: bool = False
) -> tuple[Line, ...]:
    """Return how each row looks.

    Args:
        rows: In table order.
        stored: Finished cells by key.
        all_oracle: Whether the selection itself uses target labels.
    """
    return tuple(_lines(rows, stored, all_oracle=all_oracle))


def _lines(
    rows: Sequence[MethodRow], stored: Mapping[str, CellRecord], *, all_oracle: bool
) -> Iterable[Line]:
    baseline = next((row for row in rows if _is_baseline(row, stored)), None)
    colours = 0
    for row in rows:
        oracle = row.oracle or all_oracle
        # Joined by a space that no line is broken at.
        label = f"{row.label}\N{NO-BREAK SPACE}†" if oracle else row.label
        if row is baseline:
            colour, dash = BASELINE_COLOUR, DASHES[0]
        elif row.oracle:
            colour, dash = ORACLE_COLOUR, DASHES[1]
        else:
            colour = PALETTE[colours % len(PALETTE)]
            dash = DASHES[colours // len(PALETTE) % len(DASHES)]
            colours += 1
        yield Line(label, oracle, row is baseline, colour, dash)


def _is_baseline(row: MethodRow, stored: Mapping[str, CellRecord]) -> bool:
    """Whether a row is the unadapted source model: every adapted model equals its source."""
    records = [stored[cell.key].record for cell in row.cells if cell.key in stored]
    return bool(records) and all(
        record.get("source_model_sha256") is not None
        and record.get("source_model_sha256") == record.get("adapted_model_sha256")
        for record in records
    )


def _places(rows: Sequence[MethodRow], pairs: Sequence[FigurePair]) -> pd.DataFrame:
    """Return the pair and row of every asked cell."""
    position = {(pair.source, pair.target): index for index, pair in enumerate(pairs)}
    places = [
        (cell.key, position[cell.pair], index)
        for index, row in enumerate(rows)
        for cell in row.cells
    ]
    return pd.DataFrame(places, columns=["key", "pair", "row"]).drop_duplicates()


def _selected(
    frame: pd.DataFrame, stored: Mapping[str, CellRecord], selection: str
) -> pd.DataFrame:
    """Keep the selection; a cell without a trained epoch has one model only."""
    untrained = {key for key, cell in stored.items() if not cell.epochs}
    wanted = [
        chosen == ("last" if key in untrained else selection)
        for key, chosen in zip(frame["key"], frame["selection"], strict=True)
    ]
    return frame.loc[wanted]


def _complete(frame: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    """Add pair and row, and drop what belongs to a row of which a run is missing."""
    place = ["pair", "row"]
    asked = places.groupby(place).size()
    there = places[places["key"].isin(set(frame["key"]))].groupby(place).size()
    full = asked.index[there.reindex(asked.index, fill_value=0) == asked]
    merged = frame.merge(places, on="key")
    return merged[pd.MultiIndex.from_frame(merged[place]).isin(full)]


def _means(frame: pd.DataFrame, by: list[str], values: list[str]) -> pd.DataFrame:
    """Average over what is not in ``by``; sorted first, so that every sum has one order."""
    keys = ["pair", "row", *by]
    others = [name for name in ("key", "structure", "image") if name in frame and name not in by]
    ordered = frame.sort_values([*keys, *others])
    return ordered.groupby(keys, as_index=False)[values].mean()


def _cases(frame: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    found = frame[["key", "structure", "image", "dice"]].assign(dice=100 * frame["dice"])
    return _means(_complete(found, places), ["structure", "image"], ["dice"])


def _threshold_means(frame: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    found = frame.assign(dice=100 * frame["dice"])
    if "selection" in found:
        found = found[found["selection"] == "last"]
    return _means(_complete(found, places), ["structure", "threshold"], ["dice"])


def _epoch_means(frame: pd.DataFrame, places: pd.DataFrame) -> pd.DataFrame:
    found = frame.assign(dice=100 * frame["dice"])
    case = ["key", "structure", "image"]
    before = found.loc[found["epoch"] == 0, [*case, "dice"]]
    found = found.merge(before, on=case, how="left", suffixes=("", "_before"))
    lost = found["dice_before"] - found["dice"]
    for points in HARM_POINTS:
        # NaN, not 0, where epoch 0 was not recorded.
        found[f"worse_{points}"] = (100.0 * (lost > points)).where(lost.notna())
    names = ["dice", *(f"worse_{points}" for points in HARM_POINTS)]
    return _means(_complete(found, places), ["epoch"], names)


def _curves(cells: Iterable[CellRecord], places: pd.DataFrame) -> pd.DataFrame:
    merged = _read_all(cells, "curve.parquet", _CURVE).merge(places, on="key")
    return merged.sort_values(["pair", "row", "name", "key", "epoch"], ignore_index=True)


def _average_last(selection: str) -> int:
    number = selection.removeprefix("average-last-")
    return int(number) if number != selection and number.isdecimal() else 0


def _read_all(cells: Iterable[CellRecord], name: str, columns: Sequence[str]) -> pd.DataFrame:
    """Read one file of every cell that has it, with the cell's key.

    Raises:
        StoreSchemaError: A file is damaged or lacks a column.
    """
    parts = []
    for cell in cells:
        path = cell.folder / name
        if not path.is_file():
            continue
        frame = read_parquet(path)
        missing = [column for column in columns if column not in frame.columns]
        if missing:
            raise spoilt(path, f"lacks the columns {', '.join(missing)}")
        parts.append(frame.assign(key=cell.key))
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=[*columns, "key"])
    return pd.concat(parts, ignore_index=True)

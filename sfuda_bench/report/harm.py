"""Harm: what adaptation made worse, image by image; and a warning that needs no label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from sfuda_bench.report.comparison import (
    Comparison,
    Panel,
    Scores,
    file_name,
    indistinguishable_from_best,
    pair_text,
    panels,
    plain_value,
    read_scores,
)
from sfuda_bench.report.plain import PlainColumn, PlainTable, write_plain
from sfuda_bench.report.rows import Pair
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.tables import Evidence
from sfuda_bench.scoring.codes import STRUCTURES

HARM_POINTS = (1.0, 5.0)
WORST_SHARE = 0.05
AREA_LIMITS = (0.1, 4.0)
"""Predicted area over the source model's: outside of these a cell has probably collapsed."""
EMPTY_LIMIT = 0.2

HARM_COLUMNS = (
    "source",
    "target",
    "structure",
    "method",
    "label",
    "reference",
    "harmed_1",
    "harmed_5",
    "worst_change",
    "worst_dice",
    "reference_worst_dice",
    "mean_change",
    "n_images",
)


@dataclass(frozen=True)
class CollapseWarning:
    """A cell whose predictions look collapsed, judged without any label.

    Attributes:
        key: Adaptation key of the cell.
        label: The method's row.
        pair: Source and target.
        source_seed: Seed of the source model.
        seed: Seed of the adaptation.
        structure: ``cup`` or ``disc``.
        area_ratio: Mean predicted area over that of the unadapted source model; NaN if unknown.
        empty_share: Share of images without prediction.
        text: What happened, for people.
    """

    key: str
    label: str
    pair: Pair
    source_seed: int
    seed: int
    structure: str
    area_ratio: float
    empty_share: float
    text: str


def harm(scores: Scores) -> pd.DataFrame:
    """Return how many images each method made worse than the unadapted source model.

    Per image, scores are first averaged over seeds, as in every table.

    Args:
        scores: From ``read_scores``; without a baseline there is nothing to compare with.

    Returns:
        One row per pair, structure (cup, disc, avg) and method: ``harmed_1`` and ``harmed_5``
        (share of images worse by more than 1 and 5 Dice points, in percent), ``worst_change``
        (mean change of the most harmed 5 % of images, at least one), ``worst_dice`` (mean Dice
        of the method's worst 5 %), ``reference_worst_dice``, ``mean_change`` (Dice points) and
        ``n_images``. NaN where the seeds differ from the baseline's.

    Raises:
        UsageError: The methods of a pair were scored on different images.
    """
    rows = []
    for panel in panels(scores, ["dice"]):
        if scores.baseline is None or scores.baseline not in panel.scores:
            continue
        for entrant in scores.entrants:
            if entrant.label in panel.scores and entrant.label != scores.baseline:
                identity = (*panel.pair, panel.structure, entrant.method, entrant.label)
                rows.append(
                    (*identity, scores.baseline, *_harm(panel, entrant.label, scores.baseline))
                )
    return pd.DataFrame(rows, columns=list(HARM_COLUMNS))


def worst_mean(values: ArrayLike, share: float = WORST_SHARE) -> float:
    """Return the mean of the lowest share of values, at least one; NaN if there is none.

    Args:
        values: NaN is left out.
        share: The number of values is rounded up.
    """
    found = np.asarray(values, dtype=np.float64)
    found = np.sort(found[~np.isnan(found)])
    # The margin keeps 0.05 x 20 from being a little more than one.
    count = max(math.ceil(share * len(found) - 1e-9), 1)
    return float(found[:count].mean()) if len(found) else math.nan


def collapse_warnings(scores: Scores) -> list[CollapseWarning]:
    """Return which cells look collapsed: a check that reads predictions only, never a label.

    Warned of: a mean predicted area below 10 % or above 400 % of the source model's on the same
    images (same pair, source seed, and seed where the source model was run with it), or more
    than 20 % empty predictions. The source model itself is judged by its empty predictions, and
    where it fails that, methods are judged by theirs alone.

    Args:
        scores: From ``read_scores``.
    """
    frame = scores.frame[scores.frame["structure"].isin(STRUCTURES)]
    if frame.empty or "empty_prediction" not in frame.columns:
        return []
    if "area_prediction" not in frame.columns:
        frame = frame.assign(area_prediction=math.nan)
    keys = ["source", "target", "label", "source_seed", "seed", "key", "structure"]
    # Sorted, so that sums have the same bits whatever the order of rows.
    ordered = frame.sort_values([*keys, "image"], kind="stable")
    grouped = ordered.groupby(keys, sort=True).agg(
        area=("area_prediction", "mean"), empty=("empty_prediction", "mean")
    )
    cells = grouped.reset_index()
    areas = _baseline_areas(cells, scores.baseline)
    order = {entrant.label: position for position, entrant in enumerate(scores.entrants)}
    found = [_warning(row, areas) for row in cells.to_dict("records")]
    warnings = [warning for warning in found if warning is not None]
    pairs = {pair: position for position, pair in enumerate(scores.pairs)}
    return sorted(warnings, key=lambda w: (pairs[w.pair], order[w.label], w.source_seed, w.seed))


def evidence(compared: Mapping[str, tuple[Scores, Comparison]]) -> dict[str, Evidence]:
    """Return, by profile, what the tests and the collapse check say about the main table."""
    found = {}
    for profile, (scores, comparison) in compared.items():
        warnings = collapse_warnings(scores)
        collapsed = frozenset((*warning.pair, warning.label) for warning in warnings)
        found[profile] = Evidence(indistinguishable_from_best(comparison), collapsed)
    return found


def harm_table(frame: pd.DataFrame, scores: Scores, name: str) -> PlainTable:
    """Return the harm of every method as a table, with the collapse warnings in its caption.

    Args:
        frame: From :func:`harm`.
        scores: What it was made from.
        name: Stem of its files.
    """
    rows = [
        tuple(
            pair_text((row["source"], row["target"]), scores.marks)
            if column.key == "pair"
            else plain_value(row[column.key])
            for column in _TABLE
        )
        for row in frame.to_dict("records")
    ]
    caption = [
        f"Against {scores.baseline}, per test image after averaging over seeds: share of images "
        "worse by more than 1 and 5 Dice points; mean change of the most harmed 5 % of images; "
        "mean Dice of each method's own worst 5 %, and of the baseline's.",
        f"Profile: {scores.profile}. Selection: {scores.selection}.",
    ]
    warnings = collapse_warnings(scores)
    caption += [f"Collapse warning: {warning.text}." for warning in warnings]
    if not warnings:
        caption.append(
            "No cell looks collapsed (predicted area within 10 % to 400 % of the source model's, "
            "at most 20 % empty predictions; no label is read for this)."
        )
    caption += scores.explanations
    title = "Harm: images that adaptation made worse."
    return PlainTable(name, title, tuple(caption), _TABLE, tuple(rows), keys=3)


def write_harm(
    out: Path,
    selection: str = "last",
    profiles: Iterable[str] | None = None,
    scores: Mapping[str, Scores] | None = None,
) -> list[Path]:
    """Write the harm table of every profile into ``DIR/tables``; equal scores, equal bytes.

    Args:
        out: The store.
        selection: Which epoch counts.
        profiles: Names of profiles, or ``None`` for those found.
        scores: Scores by profile, if they were read before.

    Returns:
        Files written: ``harm-<profile>.csv``, ``.md``, ``.tex``; none for a profile without
        the unadapted source model or without another method.

    Raises:
        UsageError: There is no store, or the methods of a pair were scored on different images.
        StoreSchemaError: It has another schema or is damaged.
    """
    written: list[Path] = []
    if scores is None:
        names = read_scope(out, selection).profiles if profiles is None else profiles
        scores = {profile: read_scores(out, profile, selection) for profile in names}
    for profile, found in scores.items():
        frame = harm(found)
        if not frame.empty:
            name = file_name("harm", profile, selection)
            written += write_plain(out, harm_table(frame, found, name))
    return written


_TABLE = (
    PlainColumn("pair", "Pair"),
    PlainColumn("structure", "Structure"),
    PlainColumn("label", "Method"),
    *(PlainColumn(name, "", printed=False) for name in ("source", "target", "method", "reference")),
    PlainColumn("harmed_1", "Worse by > 1 [%]", 1),
    PlainColumn("harmed_5", "Worse by > 5 [%]", 1),
    PlainColumn("worst_change", "Worst 5 % change", signed=True),
    PlainColumn("worst_dice", "Worst 5 % Dice"),
    PlainColumn("reference_worst_dice", "Baseline's"),
    PlainColumn("mean_change", "Mean change", signed=True),
    PlainColumn("n_images", "Images"),
)


def _harm(panel: Panel, label: str, baseline: str) -> tuple[float, ...]:
    if not panel.same_runs(label, baseline):
        return (*[math.nan] * 6, 0)
    change = panel.gains(label, baseline)
    change = change[~np.isnan(change)]
    if not len(change):
        return (*[math.nan] * 6, 0)
    # The margin keeps a loss of exactly one point from being more in its last bits.
    shares = [100 * float((change < -points - 1e-9).mean()) for points in HARM_POINTS]
    return (
        *shares,
        worst_mean(change),
        worst_mean(panel.image_means(label)),
        worst_mean(panel.image_means(baseline)),
        float(change.mean()),
        len(change),
    )


_Place = tuple[str, str, int, str]
"""Source, target, source seed, structure."""


def _baseline_areas(
    cells: pd.DataFrame, baseline: str | None
) -> dict[tuple[_Place, int | None], float]:
    """Return the source model's mean predicted area per place and seed, and per place alone.

    A source model with many empty predictions is no measure of area, so it is left out.
    """
    areas: dict[tuple[_Place, int | None], float] = {}
    by_place: dict[_Place, list[float]] = {}
    usable = (cells["label"] == baseline) & (cells["empty"] <= EMPTY_LIMIT)
    for row in cells[usable].to_dict("records"):
        place = _place(row)
        areas[place, int(row["seed"])] = float(row["area"])
        by_place.setdefault(place, []).append(float(row["area"]))
    for place, found in by_place.items():
        areas[place, None] = math.fsum(found) / len(found)
    return areas


def _place(row: Mapping[object, object]) -> _Place:
    return (
        str(row["source"]),
        str(row["target"]),
        int(str(row["source_seed"])),
        str(row["structure"]),
    )


def _warning(
    row: Mapping[object, object], areas: Mapping[tuple[_Place, int | None], float]
) -> CollapseWarning | None:
    place, seed = _place(row), int(str(row["seed"]))
    area, empty = float(str(row["area"])), float(str(row["empty"]))
    reference = areas.get((place, seed), areas.get((place, None), math.nan))
    ratio = area / reference if reference > 0 else math.nan
    reasons = []
    if ratio < AREA_LIMITS[0] or ratio > AREA_LIMITS[1]:
        reasons.append(f"predicted area is {100 * ratio:.0f} % of the source model's")
    if empty > EMPTY_LIMIT:
        reasons.append(f"{100 * empty:.0f} % of the predictions are empty")
    if not reasons:
        return None
    source, target, source_seed, structure = place
    where = f"{row['label']}, {source} → {target}, source seed {source_seed}, seed {seed}"
    return CollapseWarning(
        key=str(row["key"]),
        label=str(row["label"]),
        pair=(source, target),
        source_seed=source_seed,
        seed=seed,
        structure=structure,
        area_ratio=ratio,
        empty_share=empty,
        text=f"{where}: {structure} {' and '.join(reasons)}",
    )

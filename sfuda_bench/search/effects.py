"""What each part is worth: contrasts of configurations, paired by image, with intervals.

A contrast is a weighted sum of configurations whose weights add to zero. It is taken image by
image and run by run, on equal sets only: where a configuration lacks a run, the contrast is
undefined and says so. Scores are Dice points (percent).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.report.statistics import (
    Array,
    Interval,
    check_same_images,
    hierarchical_interval,
    holm,
    interval_over_pairs,
    mean_interval,
    resampled_means,
    sign_flip_p,
)
from sfuda_bench.scoring.codes import STRUCTURES

PARTS = (*STRUCTURES, "avg")
LEAST_GAIN = 0.5
"""Dice points: a share of a smaller gain is a ratio of noise, so none is given."""
KINDS = ("effect", "interaction", "step", "versus")
SCORE_COLUMNS = ("row", "source", "target", "source_seed", "seed", "image", "structure", "dice")
EFFECT_COLUMNS = (
    "kind",
    "name",
    "title",
    "source",
    "target",
    "structure",
    "effect",
    "ci_low",
    "ci_high",
    "p_permutation",
    "p_holm",
    "n_images",
    "runs",
    "note",
)


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of configurations.

    Attributes:
        kind: ``effect`` (with minus without), ``interaction`` (difference of two effects),
            ``step`` (a row minus the one above) or ``versus`` (a row minus the reference).
        name: Key.
        title: What tables print.
        weights: Row to weight; they add to zero.
        pairs: Rows that differ in this part only, with it and without it.
    """

    kind: str
    name: str
    title: str
    weights: Mapping[str, float]
    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def effect(cls, name: str, title: str, pairs: Sequence[tuple[str, str]]) -> Contrast:
        """Return the mean difference over pairs of rows, first minus second."""
        share = 1.0 / len(pairs)
        weights = {row: 0.0 for pair in pairs for row in pair}
        for first, second in pairs:
            weights[first] += share
            weights[second] -= share
        return cls("effect", name, title, weights, tuple(pairs))

    @classmethod
    def interaction(
        cls, name: str, title: str, equal: Sequence[str], unequal: Sequence[str]
    ) -> Contrast:
        """Return how much larger one part's effect is with the other part than without it.

        Args:
            name: Key.
            title: What tables print.
            equal: Rows with both parts or with neither.
            unequal: As many rows with exactly one of them.
        """
        weight = 2.0 / len(equal)
        weights = dict.fromkeys(equal, weight) | dict.fromkeys(unequal, -weight)
        return cls("interaction", name, title, weights)

    @classmethod
    def difference(cls, kind: str, row: str, reference: str) -> Contrast:
        """Return one row minus another."""
        weights = {row: 1.0, reference: -1.0}
        return cls(kind, row, row, weights, ((row, reference),))


@dataclass(frozen=True)
class Share:
    """How much of a gain a part of the mechanism has by itself.

    Attributes:
        name: What tables print.
        baseline: The row from which gains count.
        full: The whole method.
        control: The part alone, with everything else switched off.
        without: The method without that part, or ``None``.
    """

    name: str
    baseline: str
    full: str
    control: str
    without: str | None = None


def with_average(scores: pd.DataFrame) -> pd.DataFrame:
    """Return scores with the structure ``avg`` added, each image's mean of cup and disc.

    Undefined:
        An image that lacks a structure, or whose score of one is NaN, has a NaN average.
    """
    keys = [column for column in scores.columns if column not in ("structure", "dice")]
    wide = scores.pivot_table(
        index=keys, columns="structure", values="dice", dropna=False, observed=True
    )
    present = wide.reindex(columns=list(STRUCTURES))
    average = present.mean(axis=1, skipna=False).rename("dice").reset_index()
    known = scores[keys].drop_duplicates()
    average = known.merge(average, on=keys, how="left").assign(structure="avg")
    return pd.concat([scores, average[scores.columns.tolist()]], ignore_index=True)


def effects(
    scores: pd.DataFrame, contrasts: Sequence[Contrast], *, level: float = 0.95, seed: int = 0
) -> pd.DataFrame:
    """Return every contrast in every pair of domains, and over pairs where all have it.

    Per image, runs (source seed, seed) are averaged. The interval is a t interval over images
    with a single run and the hierarchical bootstrap (source seeds, seeds, images) with several.
    The p values are those of the sign-flip test over images, Holm's correction covers all rows
    of one kind.

    Args:
        scores: The columns ``SCORE_COLUMNS``; ``dice`` in percent.
        contrasts: What to report.
        level: Of the intervals.
        seed: Of resamples and flips.

    Returns:
        One row per contrast, pair and structure (cup, disc, avg), with ``source`` and
        ``target`` ``all`` for the mean over pairs, whose interval needs 6 distinct targets.

    Raises:
        UsageError: Two configurations of a pair were scored on different images.

    Undefined:
        A configuration or a run of it is missing: NaN, and ``note`` names it.
    """
    panels = _panels(with_average(scores))
    rows: list[dict[str, Any]] = []
    for contrast in contrasts:
        for (source, target, structure), panel in panels.items():
            identity = {"kind": contrast.kind, "name": contrast.name, "title": contrast.title}
            place = {"source": source, "target": target, "structure": structure}
            rows.append({**identity, **place, **_estimate(panel, contrast, level, seed)})
    frame = pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))
    for kind in KINDS:
        family = frame["kind"] == kind
        frame.loc[family, "p_holm"] = holm(frame.loc[family, "p_permutation"].to_numpy(float))
    overall = _over_pairs(frame, contrasts, seed)
    return pd.concat([frame, overall], ignore_index=True) if len(overall) else frame


Panel = dict[str, tuple[tuple[tuple[int, int], ...], tuple[str, ...], Array]]
"""Scores of one structure in one pair by row: runs, images and (runs, images) Dice."""


def _panels(scores: pd.DataFrame) -> dict[tuple[str, str, str], Panel]:
    """Return one panel per pair and structure, pairs sorted, structures in their order."""
    panels: dict[tuple[str, str, str], Panel] = {}
    for (source, target), pair in scores.groupby(["source", "target"], sort=True):
        for structure in PARTS:
            panel: Panel = {}
            for row, cases in pair[pair["structure"] == structure].groupby("row", sort=False):
                wide = cases.pivot(index=["source_seed", "seed"], columns="image", values="dice")
                wide = wide.sort_index(axis=0).sort_index(axis=1)
                runs = tuple((int(first), int(second)) for first, second in wide.index)
                panel[str(row)] = (runs, tuple(map(str, wide.columns)), wide.to_numpy(float))
            images = {row: found for row, (_, found, _) in panel.items()}
            check_same_images(images, f"{source}:{target}")
            panels[str(source), str(target), structure] = panel
    return panels


def _combined(panel: Panel, weights: Mapping[str, float]) -> tuple[Array, tuple[int, ...]]:
    """Return the weighted sum (runs, images) and the runs' source seeds.

    Raises:
        UsageError: A row or a run of it is missing.
    """
    missing = sorted(set(weights) - set(panel))
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}")
    runs = {panel[row][0] for row in weights}
    if len(runs) > 1:
        raise UsageError("the seeds of its rows differ")
    total = sum(weight * panel[row][2] for row, weight in weights.items())
    return np.asarray(total, dtype=np.float64), tuple(run[0] for run in runs.pop())


def _estimate(panel: Panel, contrast: Contrast, level: float, seed: int) -> dict[str, Any]:
    try:
        values, source_seeds = _combined(panel, contrast.weights)
    except UsageError as error:
        return {"note": error.message, "runs": 0, "n_images": 0}
    means = image_means(values)
    mean, interval = interval_of(values, source_seeds, level=level, seed=seed)
    return {
        "effect": mean,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "p_permutation": sign_flip_p(means, seed=seed),
        "n_images": int((~np.isnan(means)).sum()),
        "runs": len(values),
        "note": "",
    }


def image_means(values: Array) -> Array:
    """Return the mean over runs of each image, (images,); NaN where no run defines it."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=0)
    total = np.where(defined, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def interval_of(
    values: Array, source_seeds: Sequence[int], *, level: float = 0.95, seed: int = 0
) -> tuple[float, Interval]:
    """Return the mean over images and its interval: t for one run, else hierarchical.

    Args:
        values: (runs, images) paired differences; NaN where undefined.
        source_seeds: (runs,) the source seed of each run.
        level: Of the interval.
        seed: Of the resamples.

    Undefined:
        No difference: NaN. One image: an interval of NaN.
    """
    mean, interval = mean_interval(image_means(values), level)
    if len(values) > 1:
        interval = hierarchical_interval(values, source_seeds, level=level, seed=seed)
    return mean, interval


def _over_pairs(frame: pd.DataFrame, contrasts: Sequence[Contrast], seed: int) -> pd.DataFrame:
    """Return the mean over pairs of every contrast that all pairs have; none for one pair."""
    rows = []
    for contrast in contrasts:
        for structure in PARTS:
            same = (frame["kind"] == contrast.kind) & (frame["name"] == contrast.name)
            found = frame[same & (frame["structure"] == structure)]
            if len(found) < 2:
                continue
            row: dict[str, Any] = {"kind": contrast.kind, "name": contrast.name}
            row |= {"title": contrast.title, "source": "all", "target": "all"}
            row |= {"structure": structure, "n_images": int(found["n_images"].sum())}
            values = found["effect"].to_numpy(float)
            if np.isnan(values).any():
                rows.append({**row, "note": "not in every pair"})
                continue
            interval = interval_over_pairs(list(values), found["target"].tolist(), seed=seed)
            row |= {"effect": float(values.mean()), "runs": int(found["runs"].min())}
            if interval is None:
                row["note"] = "fewer than 6 targets: no interval"
            else:
                row |= {"ci_low": interval.low, "ci_high": interval.high, "note": ""}
            rows.append(row)
    return pd.DataFrame(rows, columns=list(EFFECT_COLUMNS))


def means(scores: pd.DataFrame, rows: Sequence[str], *, seed: int = 0) -> pd.DataFrame:
    """Return the mean Dice of every row in every pair with its interval.

    Args:
        scores: The columns ``SCORE_COLUMNS``; ``dice`` in percent.
        rows: In table order.
        seed: Of the resamples.

    Returns:
        ``row``, ``source``, ``target``, ``structure``, ``dice``, ``ci_low``, ``ci_high``,
        ``n_images``, ``runs``; NaN where a row is missing.
    """
    found = []
    for (source, target, structure), panel in _panels(with_average(scores)).items():
        for row in rows:
            place = {"row": row, "source": source, "target": target, "structure": structure}
            if row not in panel:
                found.append({**place, "n_images": 0, "runs": 0})
                continue
            runs, images, values = panel[row]
            mean, interval = interval_of(values, [run[0] for run in runs], seed=seed)
            ends = {"ci_low": interval.low, "ci_high": interval.high}
            counts = {"n_images": len(images), "runs": len(runs)}
            found.append({**place, "dice": mean, **ends, **counts})
    columns = ["row", "source", "target", "structure", "dice", "ci_low", "ci_high"]
    return pd.DataFrame(found, columns=[*columns, "n_images", "runs"])


# -- shares of a gain ---------------------------------------------------------------------------


_GAINS = ("gain", "control", "rest", "without", "share")
SHARE_COLUMNS = (
    *("name", "source", "target", "structure"),
    *(f"{part}{end}" for part in _GAINS for end in ("", "_low", "_high")),
    *("n_images", "runs", "note"),
)


def shares(scores: pd.DataFrame, wanted: Sequence[Share], *, seed: int = 0) -> pd.DataFrame:
    """Return how much of each gain its control has already, per pair and structure.

    ``gain`` is full - baseline, ``control`` control - baseline, ``rest`` full - control,
    ``without`` without - baseline, each with its interval as in :func:`effects`; ``share`` is
    100 control / gain with a paired bootstrap interval.

    Args:
        scores: The columns ``SCORE_COLUMNS``; ``dice`` in percent.
        wanted: Which gains.
        seed: Of the resamples.

    Returns:
        One row per share, pair and structure, the columns ``SHARE_COLUMNS``.

    Undefined:
        ``share`` where the gain is below 0.5 points or its interval includes zero: NaN, and
        ``note`` says so. A missing row: NaN throughout.
    """
    panels = _panels(with_average(scores))
    rows = []
    for share in wanted:
        for (source, target, structure), panel in panels.items():
            place = {"source": source, "target": target, "structure": structure}
            rows.append({"name": share.name, **place, **_share(panel, share, seed)})
    return pd.DataFrame(rows, columns=list(SHARE_COLUMNS))


def _share(panel: Panel, share: Share, seed: int) -> dict[str, Any]:
    ends = {
        "gain": (share.full, share.baseline),
        "control": (share.control, share.baseline),
        "rest": (share.full, share.control),
        "without": (share.without, share.baseline),
    }
    found: dict[str, Any] = {"note": "", "n_images": 0, "runs": 0}
    values: dict[str, Array] = {}
    source_seeds: tuple[int, ...] = ()
    for part, (row, reference) in ends.items():
        if row is None:
            continue
        try:
            values[part], source_seeds = _combined(panel, {row: 1.0, reference: -1.0})
        except UsageError as error:
            found["note"] = error.message
            continue
        mean, interval = interval_of(values[part], source_seeds, seed=seed)
        found |= {part: mean, f"{part}_low": interval.low, f"{part}_high": interval.high}
        found |= {"n_images": values[part].shape[1], "runs": len(values[part])}
    if {"gain", "control"} <= set(values):
        found |= _ratio(found, values["control"], values["gain"], source_seeds, seed)
    return found


def _ratio(
    found: Mapping[str, Any], part: Array, gain: Array, source_seeds: Sequence[int], seed: int
) -> dict[str, Any]:
    """Return the share in percent with its interval, or why there is none."""
    if not found["gain"] >= LEAST_GAIN:
        return {"note": f"gain below {LEAST_GAIN} points: no share"}
    if not found["gain_low"] > 0:
        return {"note": "the gain's interval includes zero: no share"}
    parts = resampled_means(part, source_seeds, seed=seed)
    gains = resampled_means(gain, source_seeds, seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = 100 * parts / gains
    ratios = ratios[np.isfinite(ratios) & (gains > 0)]
    low, high = np.quantile(ratios, [0.025, 0.975]) if len(ratios) else (math.nan, math.nan)
    share = 100 * found["control"] / found["gain"]
    return {"share": share, "share_low": float(low), "share_high": float(high)}


# -- switches that change nothing -----------------------------------------------------------------


def inert(cells: pd.DataFrame, contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """Return how often a part left the adapted network bit for bit as it was.

    Args:
        cells: ``row``, ``source``, ``target``, ``source_seed``, ``seed``, ``key`` (the cell's)
            and ``digest`` (of the adapted network), one line per stored cell.
        contrasts: Those of the kinds ``effect``, ``step`` and ``versus`` are looked at.

    Returns:
        ``kind``, ``name``, ``title``, ``identical`` and ``compared`` (numbers of cells with and
        without the part), ``same_key`` (of those identical, how many are one cell: the settings
        were equal) and ``verdict``: ``inert``, ``partly inert``, ``acts`` or ``unknown``.
    """
    places = ["source", "target", "source_seed", "seed"]
    by_row = {str(row): part[[*places, "key", "digest"]] for row, part in cells.groupby("row")}
    rows = []
    for contrast in contrasts:
        if not contrast.pairs:
            continue
        compared = identical = same_key = 0
        for first, second in contrast.pairs:
            if first not in by_row or second not in by_row:
                continue
            both = by_row[first].merge(by_row[second], on=places, suffixes=("", "_other"))
            equal = both["digest"] == both["digest_other"]
            compared += len(both)
            identical += int(equal.sum())
            same_key += int((equal & (both["key"] == both["key_other"])).sum())
        verdict = "inert" if identical == compared else "partly inert" if identical else "acts"
        rows.append(
            {
                "kind": contrast.kind,
                "name": contrast.name,
                "title": contrast.title,
                "identical": identical,
                "compared": compared,
                "same_key": same_key,
                "verdict": verdict if compared else "unknown",
            }
        )
    columns = ["kind", "name", "title", "identical", "compared", "same_key", "verdict"]
    return pd.DataFrame(rows, columns=columns)

"""Every method against the unadapted source model and against the best, on the same images.

:func:`read_scores` gives the scores behind a table, :func:`panels` aligns them by image key, and
:func:`compare` tests them. Differences are *gains*: positive means that the method is better,
for Dice and for distances alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.report.plain import PlainColumn, PlainTable, Value, write_texts
from sfuda_bench.report.records import read_cases, read_scoring
from sfuda_bench.report.rows import MethodRow, Pair
from sfuda_bench.report.scope import Scope, chosen, explained, pair_label, read_scope
from sfuda_bench.report.statistics import (
    ALPHA,
    FEWEST_TARGETS,
    FLIPS,
    Array,
    analyse,
    check_same_images,
    hierarchical_interval,
    holm,
    interval_over_pairs,
)
from sfuda_bench.report.summary import ASD_COLUMNS, METRICS
from sfuda_bench.scoring.codes import STRUCTURES

Run = tuple[int, int]
"""Source seed and seed."""

PARTS = (*STRUCTURES, "avg")
UNITS = {"dice": "points", "asd": "px", "hd95": "px", "nsd": "points"}
NAMES = {"dice": "Dice", "asd": "ASD", "hd95": "HD95", "nsd": "NSD"}
HIGHER_IS_BETTER = {"dice": True, "asd": False, "hd95": False, "nsd": True}
_RUN_COLUMNS = ["label", "source_seed", "seed"]


@dataclass(frozen=True)
class Entrant:
    """One row of the table.

    Attributes:
        label: What tables print; unique.
        method: Registered name.
        oracle: Whether it uses target labels; such a row is in no family of tests.
        missing: Pairs in which a cell of it is missing, failed or unscored.
    """

    label: str
    method: str
    oracle: bool = False
    missing: frozenset[Pair] = frozenset()


@dataclass(frozen=True)
class Scores:
    """Per-image scores of several methods.

    Attributes:
        frame: One row per run, image and structure: ``label``, ``source``, ``target``,
            ``source_seed``, ``seed``, ``image``, ``structure``; ``dice`` and ``nsd`` in
            percent; ``asd`` and ``hd95`` in pixels; and whatever else was stored.
        entrants: Methods in table order.
        pairs: Pairs in table order.
        profile: Name of the scoring profile.
        selection: Name of the selection.
        baseline: Label of the row whose model is the source model unchanged, if there is one.
        synthetic: Pairs of synthetic images.
        marks: What tables print behind a pair, for those pairs that have any mark.
        explanations: What the marks mean, for captions.
    """

    frame: pd.DataFrame
    entrants: tuple[Entrant, ...]
    pairs: tuple[Pair, ...]
    profile: str
    selection: str
    baseline: str | None = None
    synthetic: frozenset[Pair] = frozenset()
    marks: Mapping[Pair, str] = field(default_factory=dict)
    explanations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One structure and metric in one pair: the scores of every complete method, aligned.

    Attributes:
        pair: Source and target.
        structure: ``cup``, ``disc`` or ``avg`` (the image's mean of both).
        metric: ``dice``, ``asd``, ``hd95`` or ``nsd``.
        images: Image keys, sorted.
        runs: Runs by label, sorted.
        scores: (runs, images) by label; NaN where the profile leaves a score undefined.
    """

    pair: Pair
    structure: str
    metric: str
    images: tuple[str, ...]
    runs: Mapping[str, tuple[Run, ...]]
    scores: Mapping[str, Array]

    def image_means(self, label: str) -> Array:
        """Return each image's mean over runs, NaN where no run defines it."""
        scores = self.scores[label]
        defined = ~np.isnan(scores)
        count = defined.sum(axis=0)
        total = np.where(defined, scores, 0.0).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def mean(self, label: str) -> float:
        """Return the mean over images of :meth:`image_means`; NaN if nothing is defined."""
        means = self.image_means(label)
        return float(np.nanmean(means)) if not np.isnan(means).all() else math.nan

    def gains(self, label: str, reference: str) -> Array:
        """Return per image how much better ``label`` is than ``reference``."""
        return self._sign * (self.image_means(label) - self.image_means(reference))

    def run_gains(self, label: str, reference: str) -> Array:
        """Return the same per run and image, (runs, images)."""
        return self._sign * (self.scores[label] - self.scores[reference])

    def same_runs(self, label: str, reference: str) -> bool:
        """Return whether both have the same source seeds and seeds."""
        return self.runs[label] == self.runs[reference]

    @property
    def _sign(self) -> int:
        return 1 if HIGHER_IS_BETTER[self.metric] else -1


@dataclass(frozen=True)
class Comparison:
    """The tests of one table.

    Attributes:
        frame: One row per reference (``against``: ``baseline``, ``best``), pair, structure,
            metric and method, and one per method over all pairs (source and target ``all``).
        profile: Name of the scoring profile.
        selection: Name of the selection.
        baseline: Label of the baseline, if there is one.
        sentences: What a reader needs to know about the numbers.
    """

    frame: pd.DataFrame
    profile: str
    selection: str
    baseline: str | None
    sentences: tuple[str, ...]


COLUMNS = (
    "against",
    "source",
    "target",
    "structure",
    "metric",
    "method",
    "label",
    "reference",
    "mean",
    "reference_mean",
    "difference",
    "ci_low",
    "ci_high",
    "bootstrap_low",
    "bootstrap_high",
    "p_permutation",
    "p_wilcoxon",
    "p_holm",
    "effect",
    "superiority",
    "p_false",
    "mdd",
    "n_images",
    "n_undefined",
    "runs",
    "note",
)


# -- scores -------------------------------------------------------------------------------------


def read_scores(
    out: Path, profile: str, selection: str = "last", baseline: str | None = None
) -> Scores:
    """Read the per-image scores behind the main table of a store.

    Args:
        out: The store.
        profile: Name of the profile.
        selection: Which epoch counts; a cell without a trained epoch has one model only.
        baseline: Method or label to compare with; ``None`` finds the unadapted source model.

    Raises:
        UsageError: There is no store, the cells were scored in different ways, or the
            baseline is unknown.
        StoreSchemaError: The store has another schema or is damaged.
    """
    scope = read_scope(out, selection)
    stored = scope.stored
    definition = read_scoring(stored.values(), profile).get("asd_definition", "directed")
    cases = read_cases(stored.values(), profile)
    wanted = {key: chosen(cell, selection) for key, cell in stored.items()}
    cases = cases[cases["selection"] == cases["key"].map(wanted)]
    labels = {cell.key: row.label for row in scope.rows for cell in row.cells}
    frame = _in_table_units(cases.assign(label=cases["key"].map(labels)), ASD_COLUMNS[definition])
    scored = set(frame["key"])
    entrants = tuple(_entrant(row, scored, selection, scope.pairs) for row in scope.rows)
    return Scores(
        frame=frame,
        entrants=entrants,
        pairs=scope.pairs,
        profile=profile,
        selection=selection,
        baseline=find_entrant(entrants, baseline).label if baseline else _unadapted(scope),
        synthetic=frozenset(cell.pair for cell in scope.asked if cell.synthetic),
        marks=scope.pair_marks,
        explanations=explained(scope.pair_marks),
    )


def find_entrant(entrants: Iterable[Entrant], name: str) -> Entrant:
    """Return the entrant with this method name or label, whatever the case of its letters.

    Raises:
        UsageError: There is none, or several configurations share the name.
    """
    entrants = list(entrants)
    wanted = name.strip().casefold()
    exact = [e for e in entrants if e.label.casefold() == wanted]
    found = exact or [e for e in entrants if e.method.casefold() == wanted]
    if len(found) == 1:
        return found[0]
    labels = ", ".join(f"'{e.label}'" for e in found or entrants) or "none"
    if found:
        raise UsageError(
            f"'{name}' names {len(found)} rows: {labels}", hint="use the label of one of them"
        )
    methods = ", ".join(dict.fromkeys(e.method for e in entrants)) or "none"
    raise UsageError(
        f"no scores of a method '{name}'; there are: {methods}",
        hint="sfuda-bench status shows what is stored, sfuda-bench run computes what is missing",
    )


def _entrant(
    row: MethodRow, scored: set[str], selection: str, pairs: Iterable[tuple[str, str]]
) -> Entrant:
    """Return a row as an entrant; a pair that it was not asked for counts as missing."""
    missing = {cell.pair for cell in row.cells if cell.key not in scored}
    missing |= {pair for pair in pairs if not row.of_pair(pair)}
    return Entrant(row.label, row.method, row.oracle or selection == "oracle", frozenset(missing))


def _in_table_units(cases: pd.DataFrame, asd_column: str) -> pd.DataFrame:
    """Return the cases with ``dice``, ``asd`` and, where stored, ``hd95`` and ``nsd``."""
    units: dict[str, Any] = {"dice": 100 * cases["dice"], "asd": cases[asd_column]}
    if "hd95_px" in cases:
        units["hd95"] = cases["hd95_px"]
    if "nsd" in cases:
        units["nsd"] = 100 * cases["nsd"]
    return cases.assign(**units)


def _unadapted(scope: Scope) -> str | None:
    found = (scope.baseline(pair) for pair in scope.pairs)
    return next((row.label for row in found if row is not None), None)


# -- alignment ----------------------------------------------------------------------------------


def panels(
    scores: Scores, metrics: Sequence[str] = METRICS, structures: Sequence[str] = PARTS
) -> Iterator[Panel]:
    """Yield the aligned scores of every pair, structure and metric, in table order.

    A method that lacks a cell in a pair is left out of that pair. The average of cup and disc
    is formed per run and image.

    Raises:
        UsageError: The methods of a pair were scored on different images, an image is named
            twice, or a metric was not stored.
    """
    for metric in metrics:
        if metric not in scores.frame.columns:
            raise UsageError(
                f"the scores of profile '{scores.profile}' hold no {metric}",
                hint=f"sfuda-bench rescore --profile {scores.profile}",
            )
    complete = {
        pair: [e.label for e in scores.entrants if pair not in e.missing] for pair in scores.pairs
    }
    by_pair = dict(iter(scores.frame.groupby(["source", "target"], sort=False)))
    for pair in scores.pairs:
        rows = by_pair.get(pair)
        if rows is None or not complete[pair]:
            continue
        yield from _pair_panels(rows, pair, complete[pair], metrics, structures)


def _pair_panels(
    rows: pd.DataFrame,
    pair: Pair,
    labels: Sequence[str],
    metrics: Sequence[str],
    structures: Sequence[str],
) -> Iterator[Panel]:
    rows = rows[rows["label"].isin(labels)]
    direct = set(rows["structure"])
    needed = [s for s in (*STRUCTURES, "avg") if s in structures and s in direct]
    if "avg" in structures and "avg" not in direct:
        needed = [s for s in STRUCTURES if s in direct]
    blocks = {s: _block(rows[rows["structure"] == s], pair, s, labels) for s in needed}
    if "avg" in structures and set(STRUCTURES) <= set(blocks) and "avg" not in direct:
        check_same_images({s: blocks[s].images for s in STRUCTURES}, f"{pair[0]}:{pair[1]}")
    for structure in structures:
        for metric in metrics:
            if structure in blocks:
                block = blocks[structure]
                values = {label: block.values(label, metric) for label in labels}
            elif structure == "avg" and set(STRUCTURES) <= set(blocks):
                block = blocks[STRUCTURES[0]]
                both = [blocks[s] for s in STRUCTURES]
                values = {
                    label: (both[0].values(label, metric) + both[1].values(label, metric)) / 2
                    for label in labels
                }
            else:
                continue
            yield Panel(pair, structure, metric, block.images, block.runs, values)


@dataclass(frozen=True)
class _Block:
    """The rows of one pair and structure, sorted by label, run and image."""

    images: tuple[str, ...]
    runs: Mapping[str, tuple[Run, ...]]
    rows: Mapping[str, pd.DataFrame]

    def values(self, label: str, metric: str) -> Array:
        column = self.rows[label][metric].to_numpy(dtype=np.float64)
        return column.reshape(len(self.runs[label]), len(self.images))


def _block(rows: pd.DataFrame, pair: Pair, structure: str, labels: Sequence[str]) -> _Block:
    where = f"{pair[0]}:{pair[1]} {structure}"
    rows = rows.sort_values([*_RUN_COLUMNS, "image"], kind="stable")
    twice = rows.duplicated([*_RUN_COLUMNS, "image"])
    if twice.any():
        label, image = rows.loc[twice, ["label", "image"]].iloc[0]
        raise UsageError(f"{where}: {label} scores image {image} twice in one run")
    images = tuple(sorted(set(rows["image"])))
    by_label = {str(label): group for label, group in rows.groupby("label", sort=False)}
    found = {str(label): by_label[label] for label in labels if label in by_label}
    check_same_images({n: set(found[n]["image"]) if n in found else set() for n in labels}, where)
    runs: dict[str, tuple[Run, ...]] = {}
    for label, group in found.items():
        seeds = group[["source_seed", "seed"]].drop_duplicates()
        runs[label] = tuple((int(a), int(b)) for a, b in seeds.itertuples(index=False))
        if len(group) != len(runs[label]) * len(images):
            by_run = group.groupby(["source_seed", "seed"])["image"]
            sets = {f"{label}, run {run}": set(part) for run, part in by_run}
            check_same_images(sets, where)
    return _Block(images, runs, found)


# -- tests --------------------------------------------------------------------------------------


def compare(scores: Scores, metrics: Sequence[str] = METRICS, seed: int = 0) -> Comparison:
    """Test every method against the baseline, and against the best of its column.

    Each image's scores are first averaged over seeds, because images are the units; the
    bootstrap keeps source seeds, seeds and images apart. Holm's family is everything the table
    compares with one kind of reference: methods x pairs x structures x metrics.

    Args:
        scores: From :func:`read_scores`.
        metrics: Metrics of the table.
        seed: Seed of flips and resamples.
    """
    entrants = {e.label: e for e in scores.entrants}
    rows: list[dict[str, Any]] = []
    for panel in panels(scores, metrics):
        ranked = [e for e in entrants.values() if e.label in panel.scores and not e.oracle]
        best = _best(panel, [e.label for e in ranked])
        for against, reference in (("baseline", scores.baseline), ("best", best)):
            if reference not in panel.scores or reference is None:
                continue
            rows += [
                {"against": against, **_test(panel, entrant, reference, seed)}
                for entrant in ranked
                if entrant.label != reference
            ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    for against in ("baseline", "best"):
        family = frame["against"] == against
        frame.loc[family, "p_holm"] = holm(frame.loc[family, "p_permutation"].to_numpy(float))
    overall = _over_pairs(frame, scores, seed)
    sentences = _sentences(frame, scores)
    if overall:
        frame = pd.concat([frame, pd.DataFrame(overall, columns=list(COLUMNS))], ignore_index=True)
    return Comparison(frame, scores.profile, scores.selection, scores.baseline, sentences)


def indistinguishable_from_best(
    comparison: Comparison, alpha: float = ALPHA
) -> set[tuple[str, str, str, str, str]]:
    """Return what a table marks as not distinguishable from the best of its column.

    Args:
        comparison: From :func:`compare`.
        alpha: Level of the Holm-adjusted test against the best.

    Returns:
        (source, target, structure, metric, label) of every best method and of those whose
        difference from it is not significant. The best is the best of these very images, so a
        mark says "no worse as far as these images can tell", not "equal".
    """
    frame = comparison.frame
    frame = frame[(frame["against"] == "best") & (frame["source"] != "all")]
    places = ["source", "target", "structure", "metric"]
    close = frame[~(frame["p_holm"] <= alpha)]
    marked = set(close[[*places, "label"]].itertuples(index=False, name=None))
    return marked | set(frame[[*places, "reference"]].itertuples(index=False, name=None))


def _best(panel: Panel, labels: Sequence[str]) -> str | None:
    sign = 1 if HIGHER_IS_BETTER[panel.metric] else -1
    means = {label: sign * panel.mean(label) for label in labels}
    means = {label: mean for label, mean in means.items() if not math.isnan(mean)}
    return max(means, key=lambda label: means[label]) if means else None


def _test(panel: Panel, entrant: Entrant, reference: str, seed: int) -> dict[str, Any]:
    label = entrant.label
    row: dict[str, Any] = {
        "source": panel.pair[0],
        "target": panel.pair[1],
        "structure": panel.structure,
        "metric": panel.metric,
        "method": entrant.method,
        "label": label,
        "reference": reference,
        "mean": panel.mean(label),
        "reference_mean": panel.mean(reference),
        "runs": len(panel.runs[label]),
        "note": "",
    }
    if not panel.same_runs(label, reference):
        return row | {"n_images": 0, "n_undefined": 0, "note": "other seeds than the reference"}
    gains = panel.gains(label, reference)
    found = analyse(gains, seed=seed)
    source_seeds = [source_seed for source_seed, _ in panel.runs[label]]
    bootstrap = hierarchical_interval(panel.run_gains(label, reference), source_seeds, seed=seed)
    return row | {
        "difference": found.difference,
        "ci_low": found.ci.low,
        "ci_high": found.ci.high,
        "bootstrap_low": bootstrap.low,
        "bootstrap_high": bootstrap.high,
        "p_permutation": found.p_permutation if found.n_images else math.nan,
        "p_wilcoxon": found.p_wilcoxon if found.n_images else math.nan,
        "effect": found.effect,
        "superiority": found.superiority,
        "p_false": found.p_false,
        "mdd": found.mdd,
        "n_images": found.n_images,
        "n_undefined": len(gains) - found.n_images,
    }


def _over_pairs(frame: pd.DataFrame, scores: Scores, seed: int) -> list[dict[str, Any]]:
    """Return the mean gain over all pairs per method, only where every pair has one."""
    rows: list[dict[str, Any]] = []
    if len(scores.pairs) < 2:
        return rows
    order = {pair: position for position, pair in enumerate(scores.pairs)}
    against = frame[frame["against"] == "baseline"]
    keys = ["structure", "metric", "method", "label", "reference"]
    for values, group in against.groupby(keys, sort=False):
        columns = [group[name].tolist() for name in ("source", "target", "difference")]
        gains = {(source, target): gain for source, target, gain in zip(*columns, strict=True)}
        pairs = sorted(gains, key=lambda pair: order[pair])
        if len(pairs) < len(scores.pairs) or any(math.isnan(gains[pair]) for pair in pairs):
            continue
        in_order = [gains[pair] for pair in pairs]
        interval = interval_over_pairs(in_order, [target for _, target in pairs], seed=seed)
        rows.append(
            {
                "against": "baseline",
                "source": "all",
                "target": "all",
                **dict(zip(keys, values, strict=True)),
                "difference": math.fsum(in_order) / len(in_order),
                "ci_low": interval.low if interval else math.nan,
                "ci_high": interval.high if interval else math.nan,
                "n_images": 0,
                "n_undefined": 0,
                "runs": 0,
                "note": f"mean over {len(pairs)} pairs",
            }
        )
    return rows


def _sentences(frame: pd.DataFrame, scores: Scores) -> tuple[str, ...]:
    counts = {name: int((frame["against"] == name).sum()) for name in ("baseline", "best")}
    targets = len({target for _, target in scores.pairs})
    missing = [
        f"{entrant.label} ({source} → {target})"
        for entrant in scores.entrants
        for source, target in scores.pairs
        if (source, target) in entrant.missing
    ]
    sentences = [
        "Gain: mean over test images of the paired difference, positive when the method is "
        "better (higher Dice, lower distance), with its 95 % t interval; each image's scores "
        "are first averaged over seeds.",
        f"Profile: {scores.profile}. Selection: {scores.selection}. "
        f"Baseline: {scores.baseline or 'none stored'}.",
        f"p: two-sided sign-flip test on the mean difference (exact up to 13 images, else "
        f"{FLIPS:,} flips, far tails by saddlepoint); Wilcoxon with zeros after Pratt; 0.0000 is "
        "below 0.00005. Holm over methods x pairs x structures x metrics: "
        f"{counts['baseline']} tests against the baseline, "
        f"{counts['best']} against the best of each column, which these images chose.",
        "Effect: matched rank-biserial correlation. P(false): probability that the true gain "
        "is zero or less. MDD: smallest true gain found with 80 % power at 5 %, two-sided.",
        "Bootstrap: 95 % percentile interval over source seeds, seeds within them, and images; "
        "a level with one member adds no variance.",
    ]
    if targets < FEWEST_TARGETS:
        sentences.append(
            f"No interval over pairs: {targets} distinct targets, {FEWEST_TARGETS} are needed."
        )
    if missing:
        sentences.append(f"Left out, cells missing or unscored: {', '.join(missing)}.")
    return (*sentences, *scores.explanations)


# -- files --------------------------------------------------------------------------------------


_TABLE = (
    PlainColumn("pair", "Pair"),
    PlainColumn("score", "Score"),
    PlainColumn("comparison", "Comparison"),
    PlainColumn("difference", "Gain", signed=True),
    PlainColumn("ci_low", "Low", signed=True),
    PlainColumn("ci_high", "High", signed=True),
    PlainColumn("p_permutation", "p flip", 4),
    PlainColumn("p_wilcoxon", "p Wilcoxon", 4),
    PlainColumn("p_holm", "p Holm", 4),
    PlainColumn("effect", "Effect", signed=True),
    PlainColumn("p_false", "P(false)", 4),
    PlainColumn("mdd", "MDD"),
    PlainColumn("n_images", "Images"),
)


def comparison_table(
    comparison: Comparison, name: str, marks: Mapping[Pair, str] | None = None
) -> PlainTable:
    """Return a comparison as a table.

    Args:
        comparison: From :func:`compare`.
        name: Stem of its files.
        marks: What to print behind a pair.
    """
    rows = []
    for row in comparison.frame.to_dict("records"):
        unit = UNITS[row["metric"]]
        best = " (best)" if row["against"] == "best" else ""
        entries = {
            **row,
            "pair": pair_text((row["source"], row["target"]), marks or {}),
            "score": f"{NAMES[row['metric']]} {row['structure']} [{unit}]",
            "comparison": f"{row['label']} vs {row['reference']}{best}",
            "n_images": row["n_images"] or None,
        }
        rows.append(tuple(plain_value(entries[column.key]) for column in _TABLE))
    title = "Paired comparisons of methods per domain pair."
    return PlainTable(name, title, comparison.sentences, _TABLE, tuple(rows), keys=3)


def plain_value(value: Any) -> Value:
    """Return a frame's value as a table's: ``None`` for NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def pair_text(pair: Pair, marks: Mapping[Pair, str]) -> str:
    """Return a pair as printed, with its marks."""
    text = "all pairs" if pair == ("all", "all") else pair_label(pair)
    return f"{text} {marks.get(pair, '')}".rstrip()


def file_name(kind: str, profile: str, selection: str) -> str:
    """Return a file's stem; a selection other than ``last`` is named in it."""
    suffix = "" if selection == "last" else f"-{selection.replace(':', '-')}"
    return f"{kind}-{profile}{suffix}"


def compare_store(
    out: Path, selection: str = "last", profiles: Iterable[str] | None = None
) -> dict[str, tuple[Scores, Comparison]]:
    """Read and compare the scores of every profile; arguments and errors as below."""
    names = read_scope(out, selection).profiles if profiles is None else profiles
    scores = {profile: read_scores(out, profile, selection) for profile in names}
    return {profile: (found, compare(found)) for profile, found in scores.items()}


def write_comparisons(
    out: Path,
    selection: str = "last",
    profiles: Iterable[str] | None = None,
    compared: Mapping[str, tuple[Scores, Comparison]] | None = None,
) -> list[Path]:
    """Write the comparisons of every profile into ``DIR/tables``; equal scores, equal bytes.

    Args:
        out: The store.
        selection: Which epoch counts.
        profiles: Names of profiles, or ``None`` for those found.
        compared: From :func:`compare_store`, if it was called before.

    Returns:
        Files written: ``comparison-<profile>.csv``, ``.md``, ``.tex`` and ``standalone/``; none for
        a profile with nothing to compare.

    Raises:
        UsageError: There is no store, or the methods of a pair were scored on different images.
        StoreSchemaError: It has another schema or is damaged.
    """
    written: list[Path] = []
    if compared is None:
        compared = compare_store(out, selection, profiles)
    for profile, (scores, comparison) in compared.items():
        if comparison.frame.empty:
            continue
        name = file_name("comparison", profile, selection)
        table = comparison_table(comparison, name, scores.marks)
        # Every column, p values with all their digits.
        numbers = comparison.frame.to_csv(index=False, float_format="%.8g", lineterminator="\n")
        written += write_texts(out / "tables", name, table, numbers)
    return written

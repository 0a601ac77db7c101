"""Does the evidence support "A > B on cup dice"? On a store, or on anyone's CSV."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.report.comparison import (
    NAMES,
    PARTS,
    UNITS,
    Entrant,
    Panel,
    Scores,
    find_entrant,
    panels,
    read_scores,
)
from sfuda_bench.report.rows import Pair
from sfuda_bench.report.scope import LABEL_CENTER_MARK
from sfuda_bench.report.statistics import (
    ALPHA,
    FEWEST_TARGETS,
    ROPE,
    Array,
    Interval,
    Paired,
    analyse,
    holm,
    interval_over_pairs,
    p_false_of,
    practically_equal,
    sign_flip_p,
    units_needed,
)
from sfuda_bench.report.summary import ASD_COLUMNS

SUPPORTED = "supported"
NOT_SUPPORTED = "not supported"
EQUAL = "practically equal"
GRAMMAR = "'A > B on (cup|disc|avg) (dice|asd|hd95|nsd)'"
_CLAIM = re.compile(
    r"\s*(?P<better>[^>]+?)\s*>\s*(?P<worse>[^>]+?)\s+on\s+"
    r"(?P<structure>cup|disc|avg)\s+(?P<metric>dice|asd|hd95|nsd)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Claim:
    """``better`` beats ``worse`` on a structure and metric: higher Dice or NSD, lower distance."""

    better: str
    worse: str
    structure: str
    metric: str

    def __str__(self) -> str:
        return f"{self.better} > {self.worse} on {self.structure} {self.metric}"


@dataclass(frozen=True)
class PairVerdict:
    """What one pair says about a claim.

    Attributes:
        source: Source domain.
        target: Target domain.
        verdict: ``supported``, ``not supported`` or ``practically equal``.
        difference: Mean gain of the first method over the second, positive when it is better.
        ci_low: Lower end of its t interval.
        ci_high: Upper end.
        p: Two-sided sign-flip test.
        p_holm: The same, adjusted over the pairs of the claim.
        p_false: Probability that the true gain is zero or less.
        effect: Matched rank-biserial correlation.
        n_images: Number of images.
        n_undefined: Images left out because a score is undefined.
        runs: Number of runs (source seeds x seeds) that were averaged.
        images_needed: Images for 80 % power if the observed gain were the true one, or ``None``.
        seeds_needed: The same for runs as units; ``None`` also when there is one run only.
    """

    source: str
    target: str
    verdict: str
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_holm: float
    p_false: float
    effect: float
    n_images: int
    n_undefined: int
    runs: int
    images_needed: int | None
    seeds_needed: int | None


@dataclass(frozen=True)
class Overall:
    """What all pairs of a claim say together.

    Attributes:
        verdict: As in a pair.
        difference: Mean of the pairs' gains, each pair counting the same.
        ci_low: Lower end of its interval: over images, for these very pairs.
        ci_high: Upper end.
        p: Two-sided sign-flip test; an image flips in every pair that it belongs to at once.
        p_false: Probability that the true mean gain over these pairs is zero or less.
        pairs_low: Lower end of the interval over pairs; NaN with fewer than 6 targets.
        pairs_high: Upper end.
        targets: Number of distinct targets.
    """

    verdict: str
    difference: float
    ci_low: float
    ci_high: float
    p: float
    p_false: float
    pairs_low: float
    pairs_high: float
    targets: int


@dataclass(frozen=True)
class ClaimResult:
    """A claim and what the evidence says.

    Attributes:
        claim: The claim.
        overall: Over all pairs.
        pairs: Per pair.
        alpha: Level of the tests.
        rope: Half-width of the region of practical equivalence.
        unit: ``points`` or ``px``.
        profile: Scoring profile, or the file the scores came from.
        selection: Which epoch counts.
        notes: What a reader must know.
    """

    claim: Claim
    overall: Overall
    pairs: tuple[PairVerdict, ...]
    alpha: float
    rope: float
    unit: str
    profile: str
    selection: str
    notes: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Whether the claim holds over all its pairs."""
        return self.overall.verdict == SUPPORTED

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document; undefined numbers are null."""
        document = asdict(self)
        document["claim"] = str(self.claim)
        document["verdict"] = self.overall.verdict
        plain: dict[str, Any] = _without_nan(document)
        return plain

    def text(self) -> str:
        """Return the verdict for people."""
        overall = self.overall
        name = f"{NAMES[self.claim.metric]} {self.claim.structure}"
        lines = [f"{self.claim}: {overall.verdict}", ""]
        lines += [_pair_line(pair, name, self.unit) for pair in self.pairs]
        if len(self.pairs) > 1:
            lines.append(
                f"all {len(self.pairs)} pairs: {overall.verdict}; "
                f"{_gain(overall.difference, overall.ci_low, overall.ci_high, self.unit)}, "
                f"p {_p(overall.p)}, P(false claim) {_p(overall.p_false)}"
            )
        return "\n".join([*lines, "", *self.notes])


def parse_claim(text: str) -> Claim:
    """Return the claim that a sentence makes.

    Raises:
        UsageError: The sentence does not follow the grammar.
    """
    found = _CLAIM.fullmatch(text)
    if found is None:
        raise UsageError(
            f"claim '{text}': expected {GRAMMAR}",
            hint='sfuda-bench claim "method_a > method_b on cup dice"',
        )
    better, worse = found["better"].strip(), found["worse"].strip()
    if better.casefold() == worse.casefold():
        raise UsageError(f"claim '{text}': compares '{better}' with itself", hint=GRAMMAR)
    return Claim(better, worse, found["structure"].lower(), found["metric"].lower())


def check_claim(
    claim: Claim,
    scores: Scores,
    *,
    pairs: Sequence[Pair] | None = None,
    rope: float = ROPE,
    alpha: float = ALPHA,
    seed: int = 0,
) -> ClaimResult:
    """Judge a claim on per-image scores.

    A pair supports it when the gain is positive, its Holm-adjusted two-sided p value is at most
    ``alpha`` and its interval is not wholly inside the region of practical equivalence; inside
    it, the pair says practically equal, significant or not. All pairs together support it under
    the same rule for their mean gain, unless one pair shows the opposite significantly; from 6
    distinct targets up the interval over pairs must be above zero as well.

    Args:
        claim: From :func:`parse_claim`.
        scores: From ``read_scores`` or :func:`read_csv_scores`.
        pairs: The pairs that the claim is about; ``None`` for all.
        rope: Half-width of the region of practical equivalence, in points or pixels.
        alpha: Level of the tests; intervals have the level 1 - alpha.
        seed: Seed of flips and resamples.

    Raises:
        UsageError: A method, pair or metric has no scores, or the two methods were scored on
            different images or with different seeds.
    """
    if not 0 < alpha < 1 or rope < 0:
        raise UsageError(
            f"--alpha {alpha:g} --rope {rope:g}: expected 0 < alpha < 1 and rope >= 0",
            hint="the defaults are --alpha 0.05 --rope 0.5",
        )
    first, second = (find_entrant(scores.entrants, n) for n in (claim.better, claim.worse))
    wanted = tuple(scores.pairs if pairs is None else pairs)
    usable = [pair for pair in wanted if pair not in first.missing | second.missing]
    only = Scores(
        frame=scores.frame[scores.frame["label"].isin([first.label, second.label])],
        entrants=(first, second),
        pairs=tuple(usable),
        profile=scores.profile,
        selection=scores.selection,
    )
    found = list(panels(only, [claim.metric], [claim.structure]))
    if not found:
        raise UsageError(
            f"claim '{claim}': no pair has {claim.structure} {claim.metric} of both methods",
            hint="sfuda-bench status shows which cells are missing",
        )
    gains = [_gains(panel, first, second) for panel in found]
    results = [analyse(values, alpha=alpha, seed=seed) for values in gains]
    adjusted = holm([result.p_permutation for result in results])
    verdicts = tuple(
        _judge_pair(panel, result, float(p_holm), first, second, alpha, rope)
        for panel, result, p_holm in zip(found, results, adjusted, strict=True)
    )
    overall = _judge_all(found, gains, verdicts, alpha, rope, seed)
    left_out = [pair for pair in wanted if pair not in {panel.pair for panel in found}]
    return ClaimResult(
        claim=claim,
        overall=overall,
        pairs=verdicts,
        alpha=alpha,
        rope=rope,
        unit=UNITS[claim.metric],
        profile=scores.profile,
        selection=scores.selection,
        notes=tuple(_notes(scores, verdicts, overall, left_out, (first, second), alpha, rope)),
    )


def claim_from(
    text: str,
    *,
    out: Path,
    csv: Path | None = None,
    pairs: str = "all",
    profile: str = "standard",
    selection: str = "last",
    rope: float = ROPE,
    alpha: float = ALPHA,
) -> ClaimResult:
    """Judge the claim of a command line.

    Args:
        text: The sentence.
        out: The store.
        csv: Read this file instead of a store.
        pairs: Selector of pairs, as in ``run``.
        profile: Name of the scoring profile; a CSV has none.
        selection: Which epoch counts; a CSV has none.
        rope: Half-width of the region of practical equivalence.
        alpha: Level of the tests.

    Raises:
        UsageError: As :func:`check_claim`, or there is no store or file.
        StoreSchemaError: The store has another schema or is damaged.
    """
    claim = parse_claim(text)
    if csv is not None:
        scores = read_csv_scores(csv, claim.structure, claim.metric)
    else:
        scores = read_scores(out, profile, selection)
        if scores.frame.empty:
            raise UsageError(
                f"{out}: no score of profile '{profile}' and selection '{selection}'",
                hint=f"sfuda-bench rescore --out {out} --profile {profile}",
            )
    chosen = _chosen_pairs(pairs, scores.pairs, known=csv is None)
    return check_claim(claim, scores, pairs=chosen, rope=rope, alpha=alpha)


def read_csv_scores(path: Path, structure: str, metric: str) -> Scores:
    """Read scores written by any other program.

    Args:
        path: CSV with the columns ``method``, ``source``, ``target``, ``image``, ``structure``
            and the metric (``dice``, ``asd``, ``hd95``, ``nsd``, or a column name of our own
            records); ``seed`` and ``source_seed`` are optional. Or challengeR's ``Task``,
            ``TestCase``, ``Algorithm``, ``MetricValue``: a task may name its pair, structure and
            metric (``a:b cup dice``).
        structure: What a challengeR task is about that does not say so.
        metric: What is read; Dice and NSD may be fractions (none above 1) or percent.

    Raises:
        UsageError: The file cannot be read, or lacks a column or the metric.
    """
    try:
        frame = pd.read_csv(path, dtype={"image": str, "TestCase": str, "Algorithm": str})
    except (OSError, ValueError) as error:
        raise UsageError(f"--csv {path}: {error}", hint="expected a CSV file") from error
    if {"Task", "TestCase", "Algorithm", "MetricValue"} <= set(frame.columns):
        frame = _from_challenge(frame, structure, metric, path)
    column = next((name for name in _csv_names(metric) if name in frame.columns), None)
    lacking = [n for n in ("method", "source", "target", "image", "structure") if n not in frame]
    if lacking or column is None:
        names = [*lacking, *([metric] if column is None else [])]
        raise UsageError(
            f"--csv {path}: lacks the column{'s' if len(names) > 1 else ''} {', '.join(names)}; "
            f"there are: {', '.join(map(str, frame.columns))}",
            hint="columns: method,source,target,image,structure,dice",
        )
    values = pd.to_numeric(frame[column], errors="coerce")
    if UNITS[metric] == "points" and not (values > 1).any():
        values = 100 * values  # fractions
    frame = frame.assign(**{metric: values, "label": frame["method"].astype(str)})
    for name in ("source_seed", "seed"):
        frame[name] = frame[name] if name in frame.columns else 0
    for name in ("source", "target", "image"):
        frame[name] = frame[name].astype(str)
    pairs = sorted(set(zip(frame["source"], frame["target"], strict=True)))
    entrants = []
    for label, rows in frame.groupby("label", sort=True):
        present = set(zip(rows["source"], rows["target"], strict=True))
        entrants.append(Entrant(str(label), str(label), missing=frozenset(set(pairs) - present)))
    return Scores(frame, tuple(entrants), tuple(pairs), path.name, "as given")


def _csv_names(metric: str) -> tuple[str, ...]:
    records = {"asd": (*ASD_COLUMNS.values(), "asd_px"), "hd95": ("hd95_px",)}
    return (metric, *records.get(metric, ()))


def _from_challenge(frame: pd.DataFrame, structure: str, metric: str, path: Path) -> pd.DataFrame:
    tasks = {str(task): _task(str(task), structure, metric) for task in set(frame["Task"])}
    names = frame["Task"].astype(str)
    frame = frame[[tasks[name].metric == metric for name in names]]
    if frame.empty:
        raise UsageError(
            f"--csv {path}: no Task is about {metric}",
            hint="a Task may name structure, metric and pair, as in 'source:target cup dice'",
        )
    places = [tasks[str(name)] for name in frame["Task"]]
    return pd.DataFrame(
        {
            "method": frame["Algorithm"].to_numpy(),
            "source": [place.source for place in places],
            "target": [place.target for place in places],
            "image": frame["TestCase"].to_numpy(),
            "structure": [place.structure for place in places],
            metric: frame["MetricValue"].to_numpy(),
        }
    )


@dataclass(frozen=True)
class _Task:
    source: str
    target: str
    structure: str
    metric: str


def _task(name: str, structure: str, metric: str) -> _Task:
    """Return what a Task's name says; what it does not say is what was asked for."""
    words = name.replace("->", ":").replace("→", ":").replace("/", " ").replace("|", " ").split()
    known = {word.lower() for word in words}
    rest = "_".join(word for word in words if word.lower() not in (*PARTS, *UNITS))
    source, colon, target = rest.partition(":")
    return _Task(
        source=source if colon else "",
        target=target if colon else source or "all",
        structure=next((part for part in PARTS if part in known), structure),
        metric=next((unit for unit in UNITS if unit in known), metric),
    )


def _chosen_pairs(text: str, present: Sequence[Pair], *, known: bool) -> list[Pair] | None:
    if text.strip() == "all":
        return None
    from sfuda_bench.datasets import canonical_name
    from sfuda_bench.selectors import parse_pairs

    domains = sorted({domain for pair in present for domain in pair})
    names = parse_pairs(text, domains, canonical_name if known else str)
    wanted = {(pair.source, pair.target) for pair in names}
    chosen = [pair for pair in present if pair in wanted]
    if not chosen:
        raise UsageError(
            f"--pairs {text}: no scores; there are: {', '.join(map(':'.join, present))}",
            hint="--pairs all",
        )
    return chosen


# -- judging ------------------------------------------------------------------------------------


def _gains(panel: Panel, first: Entrant, second: Entrant) -> Array:
    if not panel.same_runs(first.label, second.label):
        seeds = [sorted(panel.runs[entrant.label]) for entrant in (first, second)]
        raise UsageError(
            f"{panel.pair[0]}:{panel.pair[1]}: the methods have different (source seed, seed): "
            f"{first.label} {seeds[0]}, {second.label} {seeds[1]}",
            hint="run both with the same --seeds and --source-seeds",
        )
    return panel.gains(first.label, second.label)


def _verdict(difference: float, ci: Interval, p: float, alpha: float, rope: float) -> str:
    if practically_equal(ci, rope):
        return EQUAL
    return SUPPORTED if difference > 0 and p <= alpha else NOT_SUPPORTED


def _judge_pair(
    panel: Panel,
    result: Paired,
    p_holm: float,
    first: Entrant,
    second: Entrant,
    alpha: float,
    rope: float,
) -> PairVerdict:
    runs = len(panel.runs[first.label])
    by_run = [float(np.nanmean(run)) for run in panel.run_gains(first.label, second.label)
              if not np.isnan(run).all()]  # fmt: skip
    seeds_needed = None
    if len(by_run) > 1:
        seeds_needed = units_needed(float(np.mean(by_run)), float(np.std(by_run, ddof=1)), alpha)
    return PairVerdict(
        source=panel.pair[0],
        target=panel.pair[1],
        verdict=_verdict(result.difference, result.ci, p_holm, alpha, rope),
        difference=result.difference,
        ci_low=result.ci.low,
        ci_high=result.ci.high,
        p=result.p_permutation,
        p_holm=p_holm,
        p_false=result.p_false,
        effect=result.effect,
        n_images=result.n_images,
        n_undefined=len(panel.images) - result.n_images,
        runs=runs,
        images_needed=units_needed(result.difference, result.sd, alpha),
        seeds_needed=seeds_needed,
    )


def _judge_all(
    found: Sequence[Panel],
    gains: Sequence[Array],
    verdicts: Sequence[PairVerdict],
    alpha: float,
    rope: float,
    seed: int,
) -> Overall:
    shares = _image_shares(found, gains)
    difference, ci, p_false = _stratified(shares, alpha)
    p = sign_flip_p(np.concatenate(shares), seed=seed)
    targets = [panel.pair[1] for panel in found]
    per_pair = [verdict.difference for verdict in verdicts]
    over_pairs = interval_over_pairs(per_pair, targets, level=1 - alpha, seed=seed)
    if len(found) == 1:  # equal but for the last bits
        one = verdicts[0]
        difference, p_false, p = one.difference, one.p_false, one.p
        ci = Interval(one.ci_low, one.ci_high)
    verdict = _verdict(difference, ci, p, alpha, rope)
    opposed = any(v.difference < 0 and v.p_holm <= alpha and v.verdict != EQUAL for v in verdicts)
    if verdict == SUPPORTED and (opposed or (over_pairs is not None and over_pairs.low <= 0)):
        verdict = NOT_SUPPORTED
    return Overall(
        verdict=verdict,
        difference=difference,
        ci_low=ci.low,
        ci_high=ci.high,
        p=p,
        p_false=p_false,
        pairs_low=over_pairs.low if over_pairs else math.nan,
        pairs_high=over_pairs.high if over_pairs else math.nan,
        targets=len(set(targets)),
    )


def _image_shares(found: Sequence[Panel], gains: Sequence[Array]) -> list[Array]:
    """Return per target each image's share of the mean gain over pairs.

    Pairs of one target share its images, so an image's gains are added before anything is
    tested. All shares together sum to the mean of the pairs' mean gains.
    """
    by_target: dict[str, dict[str, float]] = {}
    for panel, values in zip(found, gains, strict=True):
        defined = ~np.isnan(values)
        weight = 1 / (max(int(defined.sum()), 1) * len(found))
        shares = by_target.setdefault(panel.pair[1], {})
        for image, value in zip(panel.images, values, strict=True):
            if not math.isnan(value):
                shares[image] = shares.get(image, 0.0) + weight * float(value)
    return [
        np.array([shares[image] for image in sorted(shares)])
        for _, shares in sorted(by_target.items())
    ]


def _stratified(shares: Sequence[Array], alpha: float) -> tuple[float, Interval, float]:
    """Return mean gain, t interval (Welch-Satterthwaite, targets as strata) and P(false)."""
    from scipy.special import stdtrit

    difference = math.fsum(math.fsum(part) for part in shares)
    if any(len(part) < 2 for part in shares):
        return difference, Interval(math.nan, math.nan), math.nan
    variances = [len(part) * float(part.var(ddof=1)) for part in shares]
    total = math.fsum(variances)
    if total == 0:
        return difference, Interval(difference, difference), p_false_of(difference, 0.0, 2)
    terms = [v**2 / (len(part) - 1) for v, part in zip(variances, shares, strict=True)]
    freedom = total**2 / math.fsum(terms)
    half = float(stdtrit(freedom, 1 - alpha / 2)) * math.sqrt(total)
    # P(false) of n units with deviation sd has n - 1 degrees of freedom and error sd / sqrt(n).
    n = freedom + 1
    p_false = p_false_of(difference, math.sqrt(total * n), n)
    return difference, Interval(difference - half, difference + half), p_false


def _notes(
    scores: Scores,
    verdicts: Sequence[PairVerdict],
    overall: Overall,
    left_out: Sequence[Pair],
    entrants: Sequence[Entrant],
    alpha: float,
    rope: float,
) -> list[str]:
    notes = [
        f"Scores: {scores.profile}, {scores.selection}. Gains are positive when the first method "
        f"is better; intervals {100 * (1 - alpha):g} %; p: sign-flip test, two-sided, Holm over "
        f"{len(verdicts)} pair{'s' if len(verdicts) > 1 else ''}; practically equal within "
        f"±{rope:g}."
    ]
    if len(verdicts) > 1 and overall.targets < FEWEST_TARGETS:
        notes.append(
            f"The overall result is about these pairs: {overall.targets} distinct targets allow "
            f"no statement about other domains ({FEWEST_TARGETS} are needed)."
        )
    if overall.targets >= FEWEST_TARGETS:
        ends = f"[{overall.pairs_low:+.2f}, {overall.pairs_high:+.2f}]"
        notes.append(f"Interval over pairs (targets resampled): {ends}.")
    if any(verdict.runs == 1 for verdict in verdicts):
        notes.append("One run per method: the intervals hold for this seed's models only.")
    if left_out:
        pairs = ", ".join(map(":".join, left_out))
        notes.append(f"Left out, cells missing or unscored: {pairs}.")
    oracle = [entrant.label for entrant in entrants if entrant.oracle]
    if oracle:
        notes.append(f"Uses target labels (oracle): {', '.join(oracle)}.")
    synthetic = [v for v in verdicts if (v.source, v.target) in scores.synthetic]
    if synthetic:
        notes.append(f"Synthetic images, not of patients, in {len(synthetic)} pairs.")
    notes += [text for text in scores.explanations if text.startswith(LABEL_CENTER_MARK)]
    return notes


# -- text ---------------------------------------------------------------------------------------


def _pair_line(pair: PairVerdict, name: str, unit: str) -> str:
    needed = []
    if pair.verdict == NOT_SUPPORTED:
        needed.append(_needed(pair.images_needed, "images", pair.n_images))
        if pair.runs > 1:
            needed.append(_needed(pair.seeds_needed, "seeds", pair.runs))
    return "; ".join(
        [
            f"{pair.source}:{pair.target}: {pair.verdict}",
            f"{name} {_gain(pair.difference, pair.ci_low, pair.ci_high, unit)}, "
            f"p Holm {_p(pair.p_holm)}, P(false claim) {_p(pair.p_false)}, "
            f"{pair.n_images} images, {pair.runs} run{'s' if pair.runs > 1 else ''}",
            *needed,
        ]
    )


def _needed(count: int | None, unit: str, present: int) -> str:
    if count is None:
        return f"no number of {unit} would support it with this difference"
    return f"would need about {count} {unit} (has {present})"


def _gain(difference: float, low: float, high: float, unit: str) -> str:
    ends = "no interval" if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"
    return f"{difference:+.2f} {unit} {ends}"


def _p(p: float) -> str:
    return "undefined" if math.isnan(p) else f"{p:.4f}"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value

"""Paired statistics of two methods on the same images: tests, intervals, effects, power.

Images are the units. Scores are paired by image key and differences are sorted by it, so that
no result depends on the order of stored rows. Random parts are seeded: equal scores, equal
numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sfuda_bench.errors import UsageError

Array = NDArray[np.float64]

ALPHA = 0.05
POWER = 0.8
ROPE = 0.5
"""Region of practical equivalence: Dice points (percent) or pixels, to either side of zero."""
EXACT_UP_TO = 13
"""Largest number of images whose sign flips are all enumerated."""
FLIPS = 10_000
RESAMPLES = 2_000
FEWEST_TARGETS = 6
"""With fewer distinct target domains no interval over pairs is given."""
ZERO_METHOD = "pratt"
"""Zero differences are ranked and then dropped: unchanged images count as no difference."""
_MOST_UNITS = 1_000_000
_FEWEST_EXTREME = 11  # the observed one and ten flips
_STEEPEST = 300.0  # cosh is finite, and smaller differences are all but zero


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float

    def within(self, rope: float) -> bool:
        """Return whether it lies inside ``[-rope, rope]``; never for an undefined interval."""
        return -rope <= self.low and self.high <= rope


@dataclass(frozen=True)
class Paired:
    """What a paired comparison says.

    Attributes:
        difference: Mean difference.
        ci: Its t interval.
        p_permutation: Two-sided sign-flip test on the mean difference.
        p_wilcoxon: Two-sided Wilcoxon signed-rank test.
        effect: Matched rank-biserial correlation, -1 to 1.
        superiority: Share of images with a positive difference, ties counting one half.
        p_false: Probability that the true difference is at most zero.
        mdd: Smallest true difference found with power 0.8.
        sd: Sample standard deviation of the differences.
        n_images: Number of differences.
    """

    difference: float
    ci: Interval
    p_permutation: float
    p_wilcoxon: float
    effect: float
    superiority: float
    p_false: float
    mdd: float
    sd: float
    n_images: int


def check_same_images(images: Mapping[str, Collection[str]], where: str) -> None:
    """Refuse score sets that do not cover the same images.

    Args:
        images: Image keys by the name of the set.
        where: What is compared, for the message.

    Raises:
        UsageError: A set lacks images that another has; it names them.
    """
    everything = set().union(*images.values())
    for name, found in images.items():
        missing = sorted(everything - set(found))
        if missing:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise UsageError(
                f"{where}: {name} has no score for {', '.join(missing[:5])}{more}; "
                "methods are compared on equal sets of images only",
                hint="run or score the missing images, or leave the method out",
            )


def paired(first: pd.Series, second: pd.Series, where: str = "comparison") -> pd.DataFrame:
    """Pair two series of scores by image key.

    Args:
        first: Scores indexed by image key, in any order.
        second: The same for the other method.
        where: What is compared, for messages.

    Returns:
        Columns ``first``, ``second``, ``difference`` (first - second), indexed by image and
        sorted by it.

    Raises:
        UsageError: The sets of images differ, or an image occurs twice.
    """
    for series in (first, second):
        twice = series.index[series.index.duplicated()]
        if len(twice):
            raise UsageError(f"{where}: image {twice[0]} occurs twice", hint="average over seeds")
    sets = {"the first method": set(first.index), "the second method": set(second.index)}
    check_same_images(sets, where)
    frame = pd.merge(
        first.rename("first"), second.rename("second"), left_index=True, right_index=True
    ).sort_index()
    return frame.assign(difference=frame["first"] - frame["second"])


def analyse(differences: ArrayLike, *, alpha: float = ALPHA, seed: int = 0) -> Paired:
    """Return every statistic of paired differences (see :class:`Paired`).

    Args:
        differences: (n,) differences sorted by image key; NaN (undefined scores) is left out.
        alpha: One minus the interval's level; also the level of the detectable difference.
        seed: Seed of the random sign flips.

    Undefined:
        No difference: everything is NaN and p values are 1. One difference: no interval.
    """
    values = _defined(differences)
    n = len(values)
    mean, ci = mean_interval(values, 1 - alpha)
    sd = float(values.std(ddof=1)) if n > 1 else math.nan
    return Paired(
        difference=mean,
        ci=ci,
        p_permutation=sign_flip_p(values, seed=seed),
        p_wilcoxon=wilcoxon_p(values),
        effect=rank_biserial(values),
        superiority=superiority(values),
        p_false=p_false(values),
        mdd=minimum_detectable(sd, n, alpha),
        sd=sd,
        n_images=n,
    )


# -- tests --------------------------------------------------------------------------------------


def sign_flip_p(differences: ArrayLike, *, flips: int = FLIPS, seed: int = 0) -> float:
    """Return the two-sided p value of the paired sign-flip test on the mean difference.

    All 2^n flips up to n = 13, which is exact; else ``flips`` random ones and the observed one,
    p = (1 + as extreme) / (1 + flips). Where fewer than 10 of these are as extreme, the
    saddlepoint approximation of the exact p value takes their place: the smallest p of 10,000
    flips times a family of 500 tests would be 0.05, so nothing could be significant.

    Args:
        differences: (n,) sorted by image key; NaN is left out.
        flips: Number of random flips.
        seed: Their seed; tests of equal n share their flips, which keeps each of them valid.

    Source:
        Saddlepoint for sign flips: Robinson, JRSS B 1982; tail after Lugannani and Rice, 1980.

    Undefined:
        No difference at all, or only zeros: 1.
    """
    values = _defined(differences)
    return float(sign_flip_p_values(values[None], flips=flips, seed=seed)[0])


def sign_flip_p_values(differences: Array, *, flips: int = FLIPS, seed: int = 0) -> Array:
    """Return :func:`sign_flip_p` of many tests at once.

    Args:
        differences: (tests, n) without NaN.
        flips: Number of random flips.
        seed: Their seed.

    Returns:
        (tests,) p values.
    """
    tests, n = differences.shape
    if n == 0:
        return np.ones(tests)
    signs = _signs(n, flips, seed)
    exact = n <= EXACT_UP_TO
    found = np.empty(tests)
    for start in range(0, tests, 128):  # bounds the memory of the products
        block = differences[start : start + 128]
        observed = np.abs(block.sum(axis=1))
        # Sums of equal value must tie in spite of their last bits.
        limit = observed - 1e-12 * np.abs(block).sum(axis=1)
        extreme = (np.abs(signs @ block.T) >= limit).sum(axis=0)
        found[start : start + 128] = extreme / len(signs) if exact else (1 + extreme) / (1 + flips)
    if not exact:
        for position in np.flatnonzero(found < _FEWEST_EXTREME / (1 + flips)):
            found[position] = _saddlepoint_p(differences[position])
    return found


def _saddlepoint_p(differences: Array) -> float:
    """Return the two-sided sign-flip p value of one far tail.

    The sum of randomly signed differences d has the cumulant function K(t) = sum log cosh(t d).
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    values = differences[differences != 0]
    size = np.abs(values) / np.abs(values).max()
    if (values > 0).all() or (values < 0).all():
        return 2.0 ** (1 - len(size))  # the observed signs and their opposites
    fewest = 2.0 ** (2 - len(size))  # all signs equal are as extreme, too
    # Half a step of the sums' grid, if they have one; next to nothing if they have none.
    observed = abs(float(values.sum())) / float(np.abs(values).max()) - float(size.min())
    top = 1.0
    while top < _STEEPEST and float((size * np.tanh(top * size)).sum()) < observed:
        top *= 2
    if top >= _STEEPEST:
        return fewest
    t = float(brentq(lambda s: float((size * np.tanh(s * size)).sum()) - observed, 0.0, top))
    cumulant = float((t * size + np.log1p(np.exp(-2 * t * size)) - math.log(2)).sum())
    w = math.sqrt(2 * (t * observed - cumulant))
    u = t * math.sqrt(float((size**2 / np.cosh(t * size) ** 2).sum()))
    density = math.exp(-(w**2) / 2) / math.sqrt(2 * math.pi)
    tail = float(ndtr(-w)) + density * (1 / u - 1 / w)
    return min(max(2 * tail, fewest), 1.0)


@lru_cache(maxsize=4)
def _signs(n: int, flips: int, seed: int) -> Array:
    if n <= EXACT_UP_TO:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    drawn = np.random.default_rng([seed, n]).integers(0, 2, (flips, n))
    return np.where(drawn, 1.0, -1.0)


def wilcoxon_p(differences: ArrayLike) -> float:
    """Return the two-sided p value of the Wilcoxon signed-rank test.

    ``scipy.stats.wilcoxon`` with ``zero_method="pratt"``; exact for few differences without
    ties and zeros, else the normal approximation.

    Undefined:
        No difference at all, or only zeros: 1.
    """
    from scipy.stats import wilcoxon

    values = _defined(differences)
    if not values.any():
        return 1.0
    return float(wilcoxon(values, zero_method="pratt").pvalue)


def holm(p_values: ArrayLike) -> Array:
    """Return Holm's step-down adjusted p values, in the order given.

    Args:
        p_values: (..., k); the last axis is one family. NaN is no test: it stays NaN and does
            not count.
    """
    p: Array = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=-1, kind="stable")  # NaN last
    ordered = np.take_along_axis(p, order, axis=-1)
    tests = (~np.isnan(p)).sum(axis=-1, keepdims=True)
    scaled = ordered * np.maximum(tests - np.arange(p.shape[-1]), 1)
    stepped = np.minimum(np.maximum.accumulate(scaled, axis=-1), 1.0)
    adjusted = np.empty(p.shape)
    np.put_along_axis(adjusted, order, stepped, axis=-1)
    return adjusted


# -- intervals ----------------------------------------------------------------------------------


def mean_interval(differences: ArrayLike, level: float = 0.95) -> tuple[float, Interval]:
    """Return the mean difference and its two-sided t interval over images.

    Undefined:
        No difference: NaN. One: an interval of NaN.
    """
    from scipy.special import stdtrit

    values = _defined(differences)
    n = len(values)
    if n < 2:
        return (float(values[0]) if n else math.nan), Interval(math.nan, math.nan)
    mean = float(values.mean())
    half = float(stdtrit(n - 1, (1 + level) / 2) * values.std(ddof=1) / math.sqrt(n))
    return mean, Interval(mean - half, mean + half)


def hierarchical_interval(
    differences: Array,
    source_seeds: Sequence[int],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a bootstrap interval of the mean difference within one pair of domains.

    Source seeds are resampled, then seeds within each drawn source seed, and images. Every run
    sees the same images, so images are crossed with runs and drawn once per resample. A level
    with a single member adds no variance: the interval then says nothing about it.

    Args:
        differences: (runs, images) differences; NaN where undefined.
        source_seeds: (runs,) the source seed of each run; runs of one source seed differ in
            their seed.
        level: Of the percentile interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws.

    Undefined:
        Nothing to resample (one run on one image, or nothing defined): NaN.
    """
    if differences.size < 2 or np.isnan(differences).all():
        return Interval(math.nan, math.nan)
    means = _defined(resampled_means(differences, source_seeds, resamples=resamples, seed=seed))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def resampled_means(
    values: Array, source_seeds: Sequence[int], *, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """Return the means of the bootstrap behind :func:`hierarchical_interval`.

    Equal shapes, source seeds and ``seed`` give equal draws, so that the resamples of two
    quantities of the same runs and images are paired.

    Args:
        values: (runs, images); NaN where undefined.
        source_seeds: (runs,) the source seed of each run.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws.

    Returns:
        (resamples,) means; NaN where a resample drew nothing that is defined.
    """
    defined = ~np.isnan(values)
    runs, images = _weights(tuple(source_seeds), values.shape[1], resamples, seed)
    total = ((runs @ np.where(defined, values, 0.0)) * images).sum(axis=1)
    count = ((runs @ defined.astype(np.float64)) * images).sum(axis=1)
    return np.where(count > 0, total / np.where(count > 0, count, 1.0), np.nan)


@lru_cache(maxsize=8)
def _weights(
    source_seeds: tuple[int, ...], n: int, resamples: int, seed: int
) -> tuple[Array, Array]:
    """Return weights of runs and of images, (resamples, runs) and (resamples, images)."""
    generator = np.random.default_rng([seed, len(source_seeds), n])
    runs = _run_weights(generator, np.asarray(source_seeds), resamples)
    images = generator.multinomial(n, np.full(n, 1 / n), size=resamples)
    return runs, images.astype(np.float64)


def _run_weights(
    generator: np.random.Generator, source_seeds: NDArray[np.int_], resamples: int
) -> Array:
    """Return (resamples, runs) weights: source seeds drawn, then seeds within each draw."""
    present = np.unique(source_seeds)
    drawn = generator.multinomial(
        len(present), np.full(len(present), 1 / len(present)), size=resamples
    )
    weights = np.zeros((resamples, len(source_seeds)))
    for position, source_seed in enumerate(present):
        members = np.flatnonzero(source_seeds == source_seed)
        size = len(members)
        # A source seed drawn m times draws its seeds m times: m * size draws in all.
        counts = generator.multinomial(drawn[:, position] * size, np.full(size, 1 / size))
        weights[:, members] = counts / size
    return weights


def interval_over_pairs(
    differences: Sequence[float],
    targets: Sequence[str],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """Return a cluster-bootstrap interval of the mean over pairs, or ``None`` if too few.

    Pairs of one target share its images and are no independent evidence, so whole targets are
    resampled; with fewer than 6 distinct targets no such interval is honest.

    Args:
        differences: (pairs,) mean differences in a fixed order of pairs.
        targets: (pairs,) each pair's target domain.
        level: Of the percentile interval.
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws.
    """
    names = sorted(set(targets))
    if len(names) < FEWEST_TARGETS:
        return None
    values = np.asarray(differences, dtype=np.float64)
    sums = np.array([values[[t == name for t in targets]].sum() for name in names])
    sizes = np.array([sum(t == name for t in targets) for name in names])
    k = len(names)
    draws = np.random.default_rng([seed, k]).multinomial(k, np.full(k, 1 / k), size=resamples)
    means = (draws @ sums) / (draws @ sizes)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def p_false(differences: ArrayLike) -> float:
    """Return the probability that the true difference is zero or less: of a false claim.

    With mean d, sample deviation s and n images, the true difference is taken as
    d + T s / sqrt(n), T of Student's t with n - 1 degrees of freedom:
    P = 1 - F(n-1; d sqrt(n) / s). It equals the one-sided p value of the paired t test.

    Source:
        "Claims Reloaded" (arXiv 2505.04720), with the paired deviation itself where the paper
        has to approximate it from published means.

    Undefined:
        Fewer than two differences: NaN. No deviation: 0, 0.5 or 1 by the sign of the mean.
    """
    values = _defined(differences)
    n = len(values)
    return p_false_of(float(values.mean()), float(values.std(ddof=1)), n) if n > 1 else math.nan


def p_false_of(mean: float, sd: float, n: float) -> float:
    """Return :func:`p_false` from a mean, a sample deviation and a number of images."""
    from scipy.special import stdtr

    if sd <= 1e-12 * abs(mean) or sd == 0:
        return 0.5 - 0.5 * float(np.sign(mean))
    return float(stdtr(n - 1, -mean * math.sqrt(n) / sd))


# -- effects ------------------------------------------------------------------------------------


def rank_biserial(differences: ArrayLike) -> float:
    """Return the matched rank-biserial correlation of paired differences.

    (sum of ranks of positive - of negative differences) / sum of ranks; zeros are left out.

    Undefined:
        Only zeros, or nothing: 0.
    """
    from scipy.stats import rankdata

    values = _defined(differences)
    values = values[values != 0]
    if not len(values):
        return 0.0
    ranks = rankdata(np.abs(values))
    return float((ranks * np.sign(values)).sum() / ranks.sum())


def superiority(differences: ArrayLike) -> float:
    """Return the share of positive differences, zeros counting one half; NaN for none."""
    values = _defined(differences)
    if not len(values):
        return math.nan
    return float(((values > 0) + 0.5 * (values == 0)).mean())


def practically_equal(interval: Interval, rope: float = ROPE) -> bool:
    """Return whether the whole interval lies inside the region of practical equivalence.

    With a 95 % interval this is stricter than two one-sided tests at 5 %.
    """
    return interval.within(rope)


# -- power --------------------------------------------------------------------------------------


def power_of(effect: float, n: int, alpha: float = ALPHA) -> float:
    """Return the power of the two-sided paired t test.

    Args:
        effect: True mean difference over its standard deviation.
        n: Number of images, at least 2.
        alpha: Level of the test.
    """
    from scipy.special import ncfdtr, stdtrit

    # The square of a noncentral t is a noncentral F, which scipy computes without gaps.
    limit = float(stdtrit(n - 1, 1 - alpha / 2))
    return 1.0 - float(ncfdtr(1, n - 1, n * effect**2, limit**2))


def minimum_detectable(sd: float, n: int, alpha: float = ALPHA, power: float = POWER) -> float:
    """Return the smallest true mean difference that the paired t test finds with ``power``.

    Args:
        sd: Standard deviation of the differences, in the unit of the result.
        n: Number of images.
        alpha: Two-sided level.
        power: Wanted power.

    Undefined:
        Fewer than two images: NaN.
    """
    return sd * _effect_needed(n, alpha, power) if n > 1 else math.nan


@lru_cache(maxsize=1024)
def _effect_needed(n: int, alpha: float, power: float) -> float:
    from scipy.optimize import brentq

    top = 1.0
    while power_of(top, n, alpha) < power:
        top *= 2
    return float(brentq(lambda effect: power_of(effect, n, alpha) - power, 0.0, top, xtol=1e-10))


def units_needed(mean: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Return how many units (images, or seeds) the paired t test would need.

    It takes the observed mean and deviation for the true ones, so it is a planning number.

    Args:
        mean: Mean difference; the claim needs it positive.
        sd: Sample standard deviation of the units' differences.
        alpha: Two-sided level.
        power: Wanted power.

    Returns:
        At least 2; ``None`` where no number would help (a mean of zero or less), it exceeds a
        million, or it is not known (NaN).
    """
    if not (mean > 0 and sd >= 0):
        return None
    if sd <= 1e-12 * mean or power_of(mean / sd, 2, alpha) >= power:
        return 2
    low, high = 2, _MOST_UNITS
    if power_of(mean / sd, high, alpha) < power:
        return None
    while high - low > 1:  # power(low) < wanted <= power(high)
        middle = (low + high) // 2
        if power_of(mean / sd, middle, alpha) >= power:
            high = middle
        else:
            low = middle
    return high


def _defined(values: ArrayLike) -> Array:
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]

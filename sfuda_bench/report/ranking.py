"""Rankings of methods in three schemes, how stable they are, and the critical difference.

Source: Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing
challenge results", 2021 (schemes and bootstrap); Demšar, JMLR 2006 (Friedman, Nemenyi).
Departure: an undefined score is the worst of its image, or refused, never dropped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfuda_bench.errors import UsageError
from sfuda_bench.report.comparison import HIGHER_IS_BETTER, Panel
from sfuda_bench.report.statistics import ALPHA, Array, holm

Scheme = Literal["aggregate-then-rank", "rank-then-aggregate", "test-then-rank"]
SCHEMES: tuple[Scheme, ...] = ("aggregate-then-rank", "rank-then-aggregate", "test-then-rank")
RERANKINGS = 1_000
_BLOCK = 250  # resamples held in memory at once


@dataclass(frozen=True)
class Ranking:
    """One ranking and its stability under resampled images.

    Attributes:
        scheme: How it was made.
        labels: Methods, in the order given.
        values: What was ranked: the mean score, the mean rank, or the number of methods it
            beats significantly.
        ranks: 1 is the best; equal values share the better rank.
        rank_low: Lower end of each rank's 95 % bootstrap interval.
        rank_high: Upper end.
        taus: (resamples,) Kendall's tau-b between this and each bootstrap ranking; NaN where
            either ranks all methods the same.
        frequency: (methods, methods) share of resamples in which a method had rank 1, 2, ...
    """

    scheme: Scheme
    labels: tuple[str, ...]
    values: Array
    ranks: NDArray[np.int_]
    rank_low: Array
    rank_high: Array
    taus: Array
    frequency: Array


@dataclass(frozen=True)
class CriticalDifference:
    """The numbers of a critical-difference figure.

    Attributes:
        labels: Methods, best mean rank first.
        mean_ranks: Their mean ranks over blocks (ties get the mean of their ranks).
        critical_difference: Nemenyi: mean ranks that differ by less are not distinguishable.
        chi2: Friedman's statistic, corrected for ties.
        p: Its p value with k - 1 degrees of freedom.
        p_iman_davenport: Of the less conservative F form.
        groups: Maximal runs (first, last position) of methods within one critical difference.
        blocks: Number of blocks.
    """

    labels: tuple[str, ...]
    mean_ranks: Array
    critical_difference: float
    chi2: float
    p: float
    p_iman_davenport: float
    groups: tuple[tuple[int, int], ...]
    blocks: int


def rank_panel(panel: Panel, scheme: Scheme, labels: Sequence[str] | None = None) -> Ranking:
    """Rank the methods of one pair, structure and metric.

    Args:
        panel: Aligned scores; each image's are averaged over runs first.
        scheme: One of :data:`SCHEMES`.
        labels: Methods to rank, e.g. without oracles; ``None`` for all.
    """
    names = tuple(panel.scores if labels is None else labels)
    scores = np.stack([panel.image_means(name) for name in names], axis=1)
    return rank(scores, names, scheme, higher_is_better=HIGHER_IS_BETTER[panel.metric])


def rank(
    scores: ArrayLike,
    labels: Sequence[str],
    scheme: Scheme = "aggregate-then-rank",
    *,
    higher_is_better: bool = True,
    undefined: Literal["worst", "refuse"] = "worst",
    resamples: int = RERANKINGS,
    alpha: float = ALPHA,
    seed: int = 0,
) -> Ranking:
    """Rank methods on one set of images, and again on bootstrap samples of the images.

    - aggregate-then-rank: mean over images, then rank;
    - rank-then-aggregate: rank in each image (ties share the better rank), mean rank, rank;
    - test-then-rank: one-sided Wilcoxon signed-rank test of every ordered pair of methods
      (normal approximation), Holm over all of them, rank by the number of methods beaten.

    Args:
        scores: (images, methods), images sorted by key.
        labels: (methods,) names.
        scheme: One of :data:`SCHEMES`.
        higher_is_better: False for distances.
        undefined: NaN counts as the worst defined score of the whole set, or is refused.
        resamples: Number of bootstrap rankings.
        alpha: Level of the tests.
        seed: Seed of the resamples; schemes share them.

    Raises:
        UsageError: Nothing to rank, an unknown scheme, or an undefined score to refuse.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"ranking '{scheme}': expected one of {', '.join(SCHEMES)}")
    gains = _gains(scores, higher_is_better=higher_is_better, undefined=undefined)
    n, methods = gains.shape
    if methods != len(labels) or not n or not methods:
        raise UsageError(f"ranking: {len(labels)} labels for scores of shape {gains.shape}")
    values = _values(gains[None], scheme, alpha)[0]
    ranks = _ranks(values[None])[0]
    drawn = np.random.default_rng([seed, n]).integers(0, n, (resamples, n))
    again = np.concatenate(
        [
            _ranks(_values(gains[drawn[start : start + _BLOCK]], scheme, alpha))
            for start in range(0, resamples, _BLOCK)
        ]
    )
    low, high = np.quantile(again, [0.025, 0.975], axis=0, method="inverted_cdf")
    places = np.arange(1, methods + 1)
    sign = -1 if scheme == "rank-then-aggregate" or not higher_is_better else 1
    shown = values * (sign if scheme != "test-then-rank" else 1)
    return Ranking(
        scheme=scheme,
        labels=tuple(labels),
        values=shown,
        ranks=ranks,
        rank_low=low.astype(np.float64),
        rank_high=high.astype(np.float64),
        taus=kendall_tau(ranks, again),
        frequency=(again[:, :, None] == places).mean(axis=0),
    )


def kendall_tau(reference: ArrayLike, others: ArrayLike) -> Array:
    """Return Kendall's tau-b of one ranking with each of many.

    Args:
        reference: (methods,) ranks.
        others: (rankings, methods) ranks.

    Undefined:
        A ranking in which all methods tie: NaN.
    """
    first = np.asarray(reference, dtype=np.float64)
    second = np.asarray(others, dtype=np.float64)
    upper = np.triu_indices(len(first), 1)
    a = np.sign(first[:, None] - first[None, :])[upper]
    b = np.sign(second[:, :, None] - second[:, None, :])[:, upper[0], upper[1]]
    scale = np.sqrt((a != 0).sum() * (b != 0).sum(axis=1).astype(np.float64))
    with np.errstate(invalid="ignore"):
        tau: Array = (b @ a) / scale
    return tau


def critical_difference(
    scores: ArrayLike,
    labels: Sequence[str],
    *,
    higher_is_better: bool = True,
    alpha: float = ALPHA,
) -> CriticalDifference:
    """Return Friedman's test and Nemenyi's critical difference over blocks (pairs).

    Pairs share source and target images, so their ranks are not independent: this belongs in a
    figure, and is no evidence by itself.

    Args:
        scores: (blocks, methods) mean scores, without NaN.
        labels: (methods,) names.
        higher_is_better: False for distances.
        alpha: Level of the critical difference.

    Raises:
        UsageError: Fewer than two blocks or methods, or an undefined score.
    """
    from scipy.stats import chi2 as chi2_distribution
    from scipy.stats import f as f_distribution
    from scipy.stats import rankdata

    gains = _gains(scores, higher_is_better=higher_is_better, undefined="refuse")
    blocks, k = gains.shape
    if blocks < 2 or k < 2 or k != len(labels):
        raise UsageError(
            f"critical difference: {blocks} blocks of {k} methods, {len(labels)} labels; "
            "expected at least two of both"
        )
    ranks = rankdata(-gains, axis=1)
    means = ranks.mean(axis=0)
    chi2 = _friedman(ranks)
    rest = blocks * (k - 1) - chi2
    f_value = (blocks - 1) * chi2 / rest if rest > 0 else math.inf
    order = np.argsort(means, kind="stable")
    distance = nemenyi_quantile(k, alpha) * math.sqrt(k * (k + 1) / (6 * blocks))
    return CriticalDifference(
        labels=tuple(labels[position] for position in order),
        mean_ranks=means[order],
        critical_difference=distance,
        chi2=chi2,
        p=float(chi2_distribution.sf(chi2, k - 1)),
        p_iman_davenport=float(f_distribution.sf(f_value, k - 1, (k - 1) * (blocks - 1))),
        groups=_groups(means[order], distance),
        blocks=blocks,
    )


def nemenyi_quantile(k: int, alpha: float = ALPHA) -> float:
    """Return the studentized range quantile of k methods over the square root of two."""
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(1 - alpha, k, math.inf))
    return quantile / math.sqrt(2)


def _friedman(ranks: Array) -> float:
    blocks, k = ranks.shape
    spread = float(((ranks - (k + 1) / 2) ** 2).sum())
    if spread == 0:  # every block ties all methods
        return 0.0
    between = float(((ranks.mean(axis=0) - (k + 1) / 2) ** 2).sum())
    return float(blocks**2 * (k - 1)) * between / spread


def _groups(means: Array, distance: float) -> tuple[tuple[int, int], ...]:
    """Return the maximal runs of at least two sorted means within one distance."""
    found: list[tuple[int, int]] = []
    for first in range(len(means)):
        last = int(np.searchsorted(means, means[first] + distance, side="left")) - 1
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return tuple(found)


def _gains(scores: ArrayLike, *, higher_is_better: bool, undefined: str) -> Array:
    """Return scores of which higher is better, without NaN."""
    gains: Array = np.asarray(scores, dtype=np.float64) * (1.0 if higher_is_better else -1.0)
    missing = np.isnan(gains)
    if missing.any():
        if undefined == "refuse" or missing.all():
            raise UsageError(f"ranking: {int(missing.sum())} undefined scores")
        gains = np.where(missing, gains[~missing].min(), gains)
    return gains


def _values(gains: Array, scheme: Scheme, alpha: float) -> Array:
    """Return (resamples, methods) values of (resamples, images, methods); higher is better."""
    if scheme == "aggregate-then-rank":
        return np.asarray(gains.mean(axis=1))
    if scheme == "rank-then-aggregate":
        better = gains[:, :, None, :] > gains[:, :, :, None]
        ranks = (1 + better.sum(axis=3)).astype(np.float64)
        return np.asarray(-ranks.mean(axis=1))
    return _wins(gains, alpha)


def _wins(gains: Array, alpha: float) -> Array:
    """Return per resample how many methods each method beats significantly."""
    resamples, _, k = gains.shape
    pairs = [(a, b) for a in range(k) for b in range(a + 1, k)]
    wins = np.zeros((resamples, k))
    if not pairs:
        return wins
    p_better = []
    for a, b in pairs:
        p_better += list(_one_sided(gains[:, :, a] - gains[:, :, b]))
    adjusted = holm(np.stack(p_better, axis=1))
    for position, (a, b) in enumerate(pairs):
        wins[:, a] += adjusted[:, 2 * position] <= alpha
        wins[:, b] += adjusted[:, 2 * position + 1] <= alpha
    return wins


def _one_sided(differences: Array) -> tuple[Array, Array]:
    """Return the one-sided Wilcoxon p values of each row, for greater and for less than zero.

    Normal approximation with zeros dropped and a correction for ties, as in
    ``scipy.stats.wilcoxon(method="asymptotic")``; rows of zeros only have p = 1.
    """
    from scipy.special import ndtr
    from scipy.stats import rankdata

    size = np.abs(differences)
    zero = size == 0
    # Zeros come first in order; taking their number off the other ranks drops them.
    ranks = np.where(zero, 0.0, rankdata(size, axis=1) - zero.sum(axis=1, keepdims=True))
    positive = (ranks * (differences > 0)).sum(axis=1)
    total = ranks.sum(axis=1)
    # Under the null hypothesis W has variance sum(ranks^2) / 4, which is the tie correction.
    deviation = np.sqrt((ranks**2).sum(axis=1)) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        z: Any = (positive - total / 2) / deviation
    flat = deviation == 0
    greater: Array = np.where(flat, 1.0, ndtr(-z))
    less: Array = np.where(flat, 1.0, ndtr(z))
    return greater, less


def _ranks(values: Array) -> NDArray[np.int_]:
    """Return ranks along the last axis, 1 for the highest value; ties share the better rank."""
    # Means of equal scores must tie in spite of their last bits.
    rounded = np.round(values, 9)
    ranks: NDArray[np.int_] = 1 + (rounded[:, None, :] > rounded[:, :, None]).sum(axis=2)
    return ranks

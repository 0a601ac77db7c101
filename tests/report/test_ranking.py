from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sfuda_bench.errors import UsageError
from sfuda_bench.report.comparison import Panel, read_scores
from sfuda_bench.report.ranking import (
    SCHEMES,
    _one_sided,
    critical_difference,
    kendall_tau,
    nemenyi_quantile,
    rank,
    rank_panel,
)
from sfuda_bench.report.ranking_table import ranking_table
from tests.report.rich_store import RichStore

LABELS = ("a", "b", "c")
# c is far ahead on one image of three and behind on the others.
SCORES = np.array([[80.0, 70.0, 60.0], [80.0, 70.0, 60.0], [50.0, 60.0, 100.0]])


def separated(n: int = 51, gap: float = 3.0) -> NDArray[np.float64]:
    noise = np.random.default_rng(0).normal(0, 1, (n, 3))
    return np.asarray(noise + np.array([0.0, gap, 2 * gap]))


def test_aggregating_first_lets_one_image_decide() -> None:
    found = rank(SCORES, LABELS, "aggregate-then-rank")
    assert found.values == pytest.approx([70, 200 / 3, 220 / 3])
    assert list(found.ranks) == [2, 3, 1]


def test_ranking_first_counts_images() -> None:
    """Ranks per image: 1 2 3, 1 2 3, 3 2 1."""
    found = rank(SCORES, LABELS, "rank-then-aggregate")
    assert found.values == pytest.approx([5 / 3, 2, 7 / 3])
    assert list(found.ranks) == [1, 2, 3]


def test_testing_first_ranks_by_the_methods_beaten() -> None:
    found = rank(separated(), LABELS, "test-then-rank", resamples=50)
    assert list(found.values) == [0, 1, 2]
    assert list(found.ranks) == [3, 2, 1]
    # Three images prove nothing: everyone shares the first rank.
    assert list(rank(SCORES, LABELS, "test-then-rank", resamples=10).ranks) == [1, 1, 1]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lower_distances_rank_better(scheme: str) -> None:
    found = rank(separated(), LABELS, scheme, higher_is_better=False, resamples=20)  # type: ignore[arg-type]  # each is a scheme
    assert list(found.ranks) == [1, 2, 3]
    if scheme == "aggregate-then-rank":
        assert found.values == pytest.approx(separated().mean(axis=0))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_far_apart_methods_have_a_stable_ranking(scheme: str) -> None:
    found = rank(separated(gap=5.0), LABELS, scheme, resamples=200)  # type: ignore[arg-type]  # each is a scheme
    assert list(found.taus) == [1.0] * 200
    assert list(found.rank_low) == list(found.rank_high) == [3, 2, 1]
    assert found.frequency[2] == pytest.approx([1, 0, 0])


def test_close_methods_have_an_unstable_one() -> None:
    found = rank(separated(n=10, gap=0.0), LABELS, resamples=500)
    assert (found.rank_low <= found.ranks).all()
    assert (found.ranks <= found.rank_high).all()
    assert found.rank_high.max() - found.rank_low.min() == 2
    assert np.nanmean(found.taus) < 0.9
    assert found.frequency.sum(axis=1) == pytest.approx([1, 1, 1])


def test_the_seed_decides_and_nothing_else() -> None:
    first, second = (rank(separated(gap=0.1), LABELS, seed=4) for _ in range(2))
    assert np.array_equal(first.taus, second.taus, equal_nan=True)
    assert len(first.taus) == 1000
    other = rank(separated(gap=0.1), LABELS, seed=5)
    assert not np.array_equal(first.taus, other.taus, equal_nan=True)


def test_equal_scores_share_the_better_rank() -> None:
    found = rank(np.array([[0.1 + 0.2, 0.3, 0.2]]), LABELS, resamples=5)
    assert list(found.ranks) == [1, 1, 3]


def test_kendalls_tau_equals_scipys() -> None:
    reference = np.array([1, 2, 2, 4, 5])
    others = np.random.default_rng(0).integers(1, 5, (30, 5))
    others[0] = 3
    found = kendall_tau(reference, others)
    expected = [stats.kendalltau(reference, other).statistic for other in others]
    assert math.isnan(found[0])
    assert found == pytest.approx(np.array(expected), nan_ok=True)


def test_the_one_sided_test_equals_scipys() -> None:
    values = np.round(np.random.default_rng(0).normal(0.2, 1, (20, 30)), 1)
    greater, less = _one_sided(values)
    for row, p_greater, p_less in zip(values, greater, less, strict=True):
        above = stats.wilcoxon(row, method="approx", alternative="greater")
        below = stats.wilcoxon(row, method="approx", alternative="less")
        assert (p_greater, p_less) == pytest.approx((above.pvalue, below.pvalue))
    assert [float(p[0]) for p in _one_sided(np.zeros((1, 5)))] == [1.0, 1.0]


def test_undefined_scores_are_the_worst_or_refused() -> None:
    scores = np.array([[10.0, 20.0], [np.nan, 30.0]])
    found = rank(scores, ("a", "b"), higher_is_better=False, resamples=5)
    assert found.values == pytest.approx([20, 25])  # NaN counts as 30, the largest distance
    with pytest.raises(UsageError, match="1 undefined score"):
        rank(scores, ("a", "b"), undefined="refuse")
    with pytest.raises(UsageError, match="undefined"):
        rank(np.full((2, 2), np.nan), ("a", "b"))


def test_labels_must_fit_and_schemes_exist() -> None:
    with pytest.raises(UsageError, match="2 labels"):
        rank(SCORES, ("a", "b"))
    with pytest.raises(UsageError, match="expected one of"):
        rank(SCORES, LABELS, "best")  # type: ignore[arg-type]  # the point of the test


def test_a_panel_is_ranked_on_means_over_runs() -> None:
    runs = {"a": ((0, 0), (0, 1)), "b": ((0, 0), (0, 1)), "o": ((0, 0), (0, 1))}
    scores = {
        "a": np.array([[1.0, 2.0], [3.0, 4.0]]),
        "b": np.array([[9.0, 9.0], [0.0, 0.0]]),
        "o": np.full((2, 2), 99.0),
    }
    panel = Panel(("s", "t"), "cup", "dice", ("i", "j"), runs, scores)
    found = rank_panel(panel, "aggregate-then-rank", ["a", "b"])
    assert found.labels == ("a", "b")
    assert found.values == pytest.approx([2.5, 4.5])
    assert list(found.ranks) == [2, 1]


# -- critical difference ------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "quantile"), [(2, 1.960), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_nemenyi_quantiles_of_demsar_2006(k: int, quantile: float) -> None:
    assert nemenyi_quantile(k) == pytest.approx(quantile, abs=0.001)


def test_critical_difference_of_demsars_example() -> None:
    """Four methods on 14 data sets: 2.569 sqrt(4 x 5 / (6 x 14)) = 1.25."""
    scores = np.random.default_rng(0).normal(size=(14, 4))
    found = critical_difference(scores, tuple("abcd"))
    assert found.critical_difference == pytest.approx(1.25, abs=0.005)
    assert found.blocks == 14


def test_friedman_equals_scipys_with_ties() -> None:
    normal = np.random.default_rng(1).normal(size=(12, 4))
    scores = np.round(normal + np.array([0, 0, 0.5, 1.0]), 0)
    found = critical_difference(scores, tuple("abcd"))
    expected = stats.friedmanchisquare(*scores.T)
    assert (found.chi2, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found.p_iman_davenport < found.p


def test_groups_are_what_one_critical_difference_spans() -> None:
    """Twelve blocks, all alike: mean ranks 1, 2, 3 and a distance of 0.957."""
    scores = np.tile([1.0, 3.0, 2.0], (12, 1))
    found = critical_difference(scores, LABELS)
    assert found.labels == ("b", "c", "a")
    assert list(found.mean_ranks) == [1, 2, 3]
    assert found.groups == ()
    few = critical_difference(scores[:3], LABELS)
    assert few.critical_difference == pytest.approx(1.913, abs=0.002)
    assert few.groups == ((0, 1), (1, 2))


def test_a_critical_difference_needs_complete_blocks() -> None:
    with pytest.raises(UsageError, match="undefined"):
        critical_difference([[1.0, np.nan], [1.0, 2.0]], ("a", "b"))
    with pytest.raises(UsageError, match="at least two"):
        critical_difference([[1.0, 2.0]], ("a", "b"))


def test_the_table_ranks_every_pair_and_structure_without_the_oracle(tmp_path: Path) -> None:
    methods = ("source_only", "bn_adapt", "cpr", "upper")
    store = RichStore(
        tmp_path / "s", methods=methods, images=8, seeds=1, profiles=("standard",), lost=()
    )
    scores = read_scores(store.out, "standard")
    table = ranking_table(scores, "ranking-standard")
    assert table is not None
    assert len(table.rows) == len(store.pairs) * 3 * 3
    assert not any("supervised" in str(row[2]) for row in table.rows)
    first = [row for row in table.rows if row[3].startswith("1 ")]
    cup = {row[2] for row in first if row[1] == "Dice cup"}
    assert cup == {"CPR"}, "the fabricated gain in the cup exceeds the noise"
    mixed = RichStore(
        tmp_path / "m",
        methods=methods,
        images=8,
        seeds=1,
        profiles=("standard",),
        lost=(),
        shuffle=3,
    )
    again = ranking_table(read_scores(mixed.out, "standard"), "ranking-standard")
    assert again == table, "the order of stored rows changes nothing"

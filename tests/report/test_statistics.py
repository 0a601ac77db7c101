from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from sfuda_bench.errors import UsageError
from sfuda_bench.report.statistics import (
    Interval,
    analyse,
    check_same_images,
    hierarchical_interval,
    holm,
    interval_over_pairs,
    mean_interval,
    minimum_detectable,
    p_false,
    p_false_of,
    paired,
    power_of,
    practically_equal,
    rank_biserial,
    sign_flip_p,
    sign_flip_p_values,
    superiority,
    units_needed,
    wilcoxon_p,
)

REPEATS = 2_000
N = 51


def draw(n: int, shift: float = 0.0, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, 1.0, n)


# -- sign flips ---------------------------------------------------------------------------------


def mean_of(values: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    return np.asarray(np.mean(values, axis=axis))


@pytest.mark.parametrize(("n", "shift"), [(5, 1.0), (8, 0.3), (13, 0.5)])
def test_the_exact_test_equals_scipys(n: int, shift: float) -> None:
    values = draw(n, shift)
    expected = stats.permutation_test(
        (values,), mean_of, permutation_type="samples", n_resamples=2**20, vectorized=True
    )
    assert sign_flip_p(values) == pytest.approx(expected.pvalue, abs=1e-12)


def test_random_flips_approach_the_exact_normal_limit() -> None:
    values = draw(51, 0.25, seed=3)
    z = values.sum() / math.sqrt((values**2).sum())
    assert sign_flip_p(values) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.015)


def test_hand_worked_flips() -> None:
    """All of (1, 2, 3) positive: only the two extreme ones of eight flips are as extreme."""
    assert sign_flip_p([1.0, 2.0, 3.0]) == 2 / 8
    # |±1 ±2 ±3| >= 0 always.
    assert sign_flip_p([1.0, 2.0, -3.0]) == 1.0


def test_ties_are_ties_in_spite_of_the_last_bits() -> None:
    """0.1 + 0.2 and 0.3 differ in bits; equal flips must count as equal."""
    values = [0.1, 0.2, 0.3, 0.1 + 0.2]
    flips = [sum(s * v for s, v in zip(signs, (1, 2, 3, 3), strict=True))
             for signs in itertools.product((1, -1), repeat=4)]  # fmt: skip
    assert sign_flip_p(values) == sum(abs(f) >= 9 for f in flips) / 16


def exact_p(values: NDArray[np.float64]) -> float:
    """Enumerate all flips."""
    numbers = np.arange(2 ** len(values))
    sums = np.zeros(len(numbers))
    for place, value in enumerate(values):
        sums += np.where(numbers >> place & 1, value, -value)
    return float((np.abs(sums) >= abs(values.sum()) - 1e-9).mean())


@pytest.mark.parametrize("shape", ["normal", "heavy", "half steps", "with zeros"])
def test_far_tails_are_close_to_the_exact_test(shape: str) -> None:
    """Where 10,000 flips find nothing: within a factor of two of all 2^18 flips."""
    for seed in range(12):
        values = draw(18, 1.3, seed)
        if shape == "heavy":
            values = np.sign(values) * np.abs(values) ** 3
        elif shape == "half steps":
            values = np.round(2 * values) / 2
        elif shape == "with zeros":
            values[:3] = 0
        if exact_p(values) < 5e-4:
            assert 0.5 < sign_flip_p(values) / exact_p(values) < 2


def test_one_sign_throughout_leaves_two_flips_as_extreme() -> None:
    """So that Holm over hundreds of tests can find anything."""
    values = np.abs(draw(51)) + 0.1
    assert sign_flip_p(values) == sign_flip_p(-values) == 2.0**-50
    assert holm(np.full(1000, sign_flip_p(values)))[0] < 1e-9


def test_a_random_p_depends_on_the_seed_only() -> None:
    weak = draw(60, 0.2)
    assert sign_flip_p(weak, seed=1) == sign_flip_p(weak, seed=1)
    assert sign_flip_p(weak, seed=1) != sign_flip_p(weak, seed=2)


def test_many_tests_at_once_equal_single_ones() -> None:
    values = np.random.default_rng(1).normal(0.2, 1, (300, 20))
    many = sign_flip_p_values(values)
    assert [sign_flip_p(row) for row in values[::50]] == list(many[::50])


def test_nothing_and_only_zeros_are_no_evidence() -> None:
    for values in ([], [0.0] * 5, [0.0] * 40):
        assert sign_flip_p(values) == 1.0
        assert wilcoxon_p(values) == 1.0


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_type_one_error_at_51_images(shape: str) -> None:
    generator = np.random.default_rng(7)
    values = generator.normal(size=(2 * REPEATS, N))
    if shape == "skewed":  # symmetric about zero, as the hypothesis says, and heavy-tailed
        values = np.sign(values) * np.abs(values) ** 3
    rejected = (sign_flip_p_values(values) <= 0.05).mean()
    assert rejected == pytest.approx(0.05, abs=0.01)


def test_type_one_error_of_the_wilcoxon_test_at_51_images() -> None:
    values = np.random.default_rng(8).normal(size=(REPEATS, N))
    rejected = np.mean([wilcoxon_p(row) <= 0.05 for row in values])
    assert rejected == pytest.approx(0.05, abs=0.01)


# -- other tests --------------------------------------------------------------------------------


def test_wilcoxon_equals_scipys_with_pratts_zeros() -> None:
    values = np.round(draw(30, 0.3), 1)
    values[:4] = 0
    expected = stats.wilcoxon(values, zero_method="pratt").pvalue
    assert wilcoxon_p(np.append(values, np.nan)) == expected


def test_hand_worked_holm() -> None:
    """0.01 x 4, 0.02 x 3, max with 0.03 x 2, 0.04 x 1."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])


def test_holm_equals_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest", reason="statsmodels is optional")
    p = np.random.default_rng(0).uniform(size=40) ** 3
    assert holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1], abs=1e-15)


def test_a_missing_test_does_not_count_in_the_family() -> None:
    found = holm([0.01, math.nan, 0.04])
    assert found[[0, 2]] == pytest.approx([0.02, 0.04])
    assert math.isnan(found[1])


def test_holm_of_many_families_is_holm_of_each() -> None:
    p = np.random.default_rng(0).uniform(size=(5, 6))
    assert np.array_equal(holm(p), np.stack([holm(row) for row in p]))


# -- intervals ----------------------------------------------------------------------------------


def test_the_t_interval_equals_scipys() -> None:
    values = draw(20, 0.3)
    mean, found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_half_width_on_51_images_with_the_cup_deviation_of_published_logs() -> None:
    """A cup Dice deviation of 0.127 on 51 images leaves +-0.036."""
    values = draw(51)
    values = 0.127 * (values - values.mean()) / values.std(ddof=1)
    _, found = mean_interval(values)
    assert found.high == pytest.approx(0.036, abs=0.0005)


def test_coverage_of_the_t_interval_at_51_images() -> None:
    values = np.random.default_rng(2).gamma(2.0, 1.0, (REPEATS, N))  # skewed, mean 2
    covered = [low <= 2.0 <= high for low, high in
               ((i.low, i.high) for _, i in map(mean_interval, values))]  # fmt: skip
    assert np.mean(covered) >= 0.93


def test_coverage_of_the_hierarchical_bootstrap_at_51_images() -> None:
    values = np.random.default_rng(3).normal(1.0, 1.0, (600, 1, N))
    found = [hierarchical_interval(sample, [0], resamples=1_000) for sample in values]
    assert np.mean([i.low <= 1.0 <= i.high for i in found]) >= 0.93


def test_seeds_widen_the_bootstrap_when_they_differ() -> None:
    """Runs that disagree by a constant add variance that images alone do not show."""
    images = draw(40)
    agreeing = np.tile(images, (4, 1))
    differing = agreeing + np.array([[-2.0], [2.0], [-2.0], [2.0]])
    runs = [0, 0, 1, 1]
    narrow = hierarchical_interval(agreeing, runs)
    wide = hierarchical_interval(differing, runs)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_source_seeds_are_a_level_of_their_own() -> None:
    """The same eight runs: two source seeds that differ, or one source seed with eight seeds."""
    values = np.tile(draw(40), (8, 1)) + np.repeat([-2.0, 2.0], 4)[:, None]
    by_source = hierarchical_interval(values, [0] * 4 + [1] * 4)
    by_seed = hierarchical_interval(values, [0] * 8)
    assert by_source.high - by_source.low > 1.2 * (by_seed.high - by_seed.low)


def test_undefined_scores_leave_the_bootstrap() -> None:
    values = np.full((2, 10), 3.0)
    values[0, 4] = np.nan
    assert hierarchical_interval(values, [0, 0]) == Interval(3.0, 3.0)
    nothing = hierarchical_interval(np.full((2, 10), np.nan), [0, 0])
    assert math.isnan(nothing.low)


def test_no_interval_over_pairs_below_six_targets() -> None:
    assert interval_over_pairs([1.0] * 12, ["a", "b", "c", "d"] * 3) is None
    assert interval_over_pairs([1.0] * 6, list("abcdef")) == Interval(1.0, 1.0)


def test_pairs_of_one_target_are_resampled_together() -> None:
    """Six targets, two pairs each: doubling the pairs adds no information."""
    gains = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    once = interval_over_pairs(gains, list("abcdef"))
    twice = interval_over_pairs(gains * 2, list("abcdef") * 2)
    assert once is not None
    assert twice is not None
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))


@pytest.mark.parametrize(
    ("deviation", "correlation", "expected"), [(0.127, 0.7, 0.24), (0.127, 0.9, 0.11)]
)
def test_probability_of_a_false_claim_of_published_logs(
    deviation: float, correlation: float, expected: float
) -> None:
    """A gain of 0.01 cup Dice on 51 images."""
    sd = deviation * math.sqrt(2 * (1 - correlation))
    assert p_false_of(0.01, sd, 51) == pytest.approx(expected, abs=0.005)


def test_probability_of_a_false_claim_is_the_one_sided_t_test() -> None:
    values = draw(17, 0.4)
    assert p_false(values) == pytest.approx(
        stats.ttest_1samp(values, 0, alternative="greater").pvalue
    )
    assert p_false([2.0, 2.0, 2.0]) == 0.0
    assert p_false([-2.0, -2.0]) == 1.0
    assert p_false([0.0, 0.0]) == 0.5
    assert math.isnan(p_false([1.0]))


# -- effects and power --------------------------------------------------------------------------


def test_hand_worked_effects() -> None:
    """|d| 1, 2, 3 have ranks 1, 2, 3; the positive ones sum to 4, the negative one is 2."""
    assert rank_biserial([1.0, -2.0, 3.0, 0.0]) == pytest.approx((4 - 2) / 6)
    assert superiority([1.0, -2.0, 3.0, 0.0]) == pytest.approx(2.5 / 4)
    assert rank_biserial([0.0, 0.0]) == 0.0


def test_power_at_the_detectable_difference_is_eighty_percent() -> None:
    for n in (2, 10, 51, 400):
        assert power_of(minimum_detectable(1.0, n), n) == pytest.approx(0.8, abs=1e-6)


def test_detectable_difference_on_51_images() -> None:
    """Deviation 0.127, correlation 0.9: (t(0.975) + t(0.8)) s / sqrt(n) is 0.0227."""
    sd = 0.127 * math.sqrt(0.2)
    assert minimum_detectable(sd, 51) == pytest.approx(0.0227, abs=0.0003)


def test_images_needed_are_the_fewest_with_enough_power() -> None:
    needed = units_needed(0.5, 1.0)
    assert needed == 34  # the classical answer for d = 0.5, two-sided 5 %, power 0.8
    assert power_of(0.5, 34) >= 0.8 > power_of(0.5, 33)
    assert units_needed(10.0, 0.1) == 2
    assert units_needed(-0.5, 1.0) is None
    assert units_needed(1e-6, 1.0) is None
    assert units_needed(math.nan, 1.0) is None


def test_equivalence_needs_the_whole_interval() -> None:
    assert practically_equal(Interval(-0.4, 0.5), 0.5)
    assert not practically_equal(Interval(-0.4, 0.51), 0.5)
    assert not practically_equal(Interval(math.nan, math.nan), 0.5)


def test_an_analysis_leaves_undefined_differences_out() -> None:
    found = analyse([1.0, 2.0, math.nan, 3.0])
    assert (found.difference, found.n_images, found.sd) == (2.0, 3, 1.0)
    assert found == analyse([1.0, 2.0, 3.0])
    assert analyse([math.nan]).n_images == 0


# -- pairing ------------------------------------------------------------------------------------


def test_pairing_is_by_key_whatever_the_order() -> None:
    first = pd.Series({"a": 1.0, "b": 2.0, "c": 3.0})
    second = pd.Series({"c": 2.0, "a": 1.0, "b": 0.0})
    found = paired(first, second)
    assert found["difference"].to_dict() == {"a": 0.0, "b": 2.0, "c": 1.0}
    again = paired(first.sample(frac=1, random_state=1), second.sample(frac=1, random_state=2))
    assert list(again["difference"]) == list(found["difference"])


def test_unequal_sets_of_images_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="second method has no score for c"):
        paired(pd.Series({"a": 1.0, "c": 2.0}), pd.Series({"a": 1.0}))
    with pytest.raises(UsageError, match="image a occurs twice"):
        paired(pd.Series([1.0, 2.0], ["a", "a"]), pd.Series({"a": 1.0}))
    with pytest.raises(UsageError, match="cup: y has no score for 1, 2, 3, 4, 5 and 2 more"):
        check_same_images({"x": set("1234567"), "y": set()}, "cup")

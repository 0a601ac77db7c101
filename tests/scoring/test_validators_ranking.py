"""Ranks over validators, the epoch they choose, and the correlation that judges them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.scoring.validators import (
    COLLAPSED,
    PRIMARY,
    choose,
    rank_mean,
    weighted_spearman,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [((1, 2, 3, 4, 5), 1.0), ((2, 1, 3, 4, 5), 0.953339), ((1, 2, 3, 5, 4), 0.573447)],
)
def test_errors_at_the_top_hurt_most(scores: tuple[int, ...], expected: float) -> None:
    assert weighted_spearman((1, 2, 3, 4, 5), scores) == pytest.approx(expected, abs=1e-6)
    assert weighted_spearman(scores, (1, 2, 3, 4, 5)) == pytest.approx(expected, abs=1e-6)


def test_the_correlation_knows_ranks_only_and_counts_what_is_not_finite_as_worst() -> None:
    assert weighted_spearman((1, 10, 100), (0.1, 0.2, 0.3)) == pytest.approx(1)
    assert weighted_spearman((np.nan, 2, 3), (1, 2, 3)) == pytest.approx(1)
    assert weighted_spearman((np.inf, 2, 3), (1, 2, 3)) == pytest.approx(1)
    assert np.isnan(weighted_spearman((1, 1, 1), (1, 2, 3)))


def test_rank_means_are_free_of_scale_and_share_ties() -> None:
    values = np.array([[1.0, 300], [2, 100], [3, 200], [3, np.nan]])
    ranks = rank_mean(values)
    assert ranks.tolist() == [(1 + 4) / 8, (2 + 2) / 8, (3.5 + 3) / 8, (3.5 + 1) / 8]
    assert rank_mean(values * [5, 0.01]).tolist() == ranks.tolist()
    assert rank_mean(np.full((2, 1), np.inf)).tolist() == [0.75, 0.75]
    assert rank_mean(np.empty((3, 0))).tolist() == [0, 0, 0]


def frame(**values: dict[int, tuple[float, float]]) -> pd.DataFrame:
    rows = [
        (epoch, name, structure, value)
        for name, epochs in values.items()
        for epoch, pair in epochs.items()
        for structure, value in zip(("cup", "disc"), pair, strict=True)
    ]
    return pd.DataFrame(rows, columns=["epoch", "validator", "structure", "value"])


def test_the_best_mean_rank_over_structures_is_chosen() -> None:
    found = frame(v={0: (0.1, 0.3), 5: (0.9, 0.1), 10: (0.8, 0.9)})
    assert choose(found, "v") == 10


def test_of_equal_epochs_the_earlier_one_is_chosen() -> None:
    assert choose(frame(v={0: (0, 0), 1: (1, 2), 2: (2, 1)}), "v") == 1
    assert choose(frame(v={2: (1, 1), 0: (1, 1), 1: (1, 1)}), "v") == 0


def test_a_rejected_epoch_is_not_chosen_and_none_left_means_no_adaptation() -> None:
    v = {0: (0.0, 0.0), 1: (1.0, 1.0), 2: (2.0, 2.0)}
    one = frame(v=v, **{COLLAPSED: {0: (0.0, 0.0), 1: (0.0, 0.0), 2: (0.0, 1.0)}})
    assert choose(one, "v") == 1
    assert choose(one, "v", filtered=False) == 2
    every = frame(v=v, **{COLLAPSED: dict.fromkeys(v, (1.0, 0.0))})
    assert choose(every, "v") == 0


def test_what_is_not_a_number_is_never_preferred() -> None:
    assert choose(frame(v={0: (0.0, 0.0), 1: (np.nan, np.nan), 2: (np.inf, np.inf)}), "v") == 0


def test_the_primary_choice_is_the_rank_mean_of_its_members() -> None:
    best = dict(zip(PRIMARY, (1, 1, 2), strict=True))
    values = {name: {e: (float(e == best[name]),) * 2 for e in range(3)} for name in PRIMARY}
    assert choose(frame(**values), "primary") == 1
    with pytest.raises(UsageError, match="no values of the validator 'anatomy'"):
        choose(frame(**{n: values[n] for n in PRIMARY[:2]}), "primary")

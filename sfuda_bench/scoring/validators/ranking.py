"""Choosing among candidates by validators that share no scale, and judging such a choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfuda_bench.errors import UsageError
from sfuda_bench.scoring.codes import STRUCTURES

if TYPE_CHECKING:
    import pandas as pd

COLLAPSED = "collapsed"
"""The pseudo-validator of the collapse filter: above 0 rejects."""
PRIMARY = ("consistency", "imp_rev", "anatomy")
"""The validators behind the selection ``primary``, fixed in advance."""
PRIMARY_NAME = "primary"


def rank_mean(values: ArrayLike) -> NDArray[np.float64]:
    """Return each candidate's mean rank over components; higher is better.

    Args:
        values: (candidates, components) float, higher is better; what is not finite is the worst
            of its component.

    Returns:
        (candidates,) float64 in (0, 1]; equal values share the mean of their ranks.

    Undefined:
        No components: 0 for everyone.
    """
    from scipy.stats import rankdata

    table = np.asarray(values, dtype=np.float64)
    if not table.size:
        return np.zeros(len(table))
    table = np.where(np.isfinite(table), table, -np.inf)
    ranks: NDArray[np.float64] = (rankdata(table, axis=0) / len(table)).mean(axis=1)
    return ranks


def choose(frame: pd.DataFrame, validator: str, *, filtered: bool = True) -> int:
    """Return the epoch that a validator prefers.

    The best mean rank over cup and disc wins; of equal ones the earlier epoch.

    Args:
        frame: ``epoch``, ``validator``, ``structure``, ``value`` (higher is better).
        validator: A validator of the frame, or ``primary``: :data:`PRIMARY` together.
        filtered: Leave out the epochs that the collapse filter rejects.

    Returns:
        An epoch of the frame, or 0, the unadapted model, when every epoch is rejected.

    Raises:
        UsageError: The frame has no values of it.
    """
    members = PRIMARY if validator == PRIMARY_NAME else (validator,)
    for name in members:
        if not (frame["validator"] == name).any():
            known = sorted(set(frame["validator"]) - {COLLAPSED})
            raise UsageError(
                f"no values of the validator '{name}' were recorded; recorded: {', '.join(known)}",
                hint="sfuda-bench run --record validators",
            )
    epochs = np.array(sorted(frame["epoch"].unique()))
    wide = frame.pivot(index="epoch", columns=["validator", "structure"], values="value")
    columns = [(name, structure) for name in members for structure in STRUCTURES]
    # Rounded, so that a tie is a tie in spite of a sum's last bits.
    order = rank_mean(wide.reindex(columns=columns).loc[epochs].to_numpy(float)).round(10)
    if filtered and COLLAPSED in wide.columns.get_level_values(0):
        rejected = (wide[COLLAPSED].loc[epochs].to_numpy(float) > 0).any(axis=1)
        if rejected.all():
            return 0
        order = np.where(rejected, -np.inf, order)
    return int(epochs[int(order.argmax())])


def weighted_spearman(scores: ArrayLike, targets: ArrayLike) -> float:
    """Return a rank correlation in which the top counts most.

    It is the weighted Pearson correlation of dense ranks divided by their maximum, with weights
    max(rank of the score, rank of the target)^2.

    Args:
        scores: (candidates,) float; what is not finite is the worst.
        targets: (candidates,) float, e.g. Dice.

    Undefined:
        NaN when either is constant.

    Source: Musgrave et al., Three New Validators and a Large-Scale Benchmark Ranking for
        Unsupervised Domain Adaptation, 2022. Departure: the ranks are ours (dense), the published
        code hands raw values to another package.
    """
    first, second = _dense_ranks(scores), _dense_ranks(targets)
    weights = np.maximum(first, second) ** 2
    weights /= weights.sum()
    first, second = first - (weights * first).sum(), second - (weights * second).sum()
    spread = float((weights * first**2).sum() * (weights * second**2).sum())
    if spread < 1e-24:
        return float("nan")
    return float((weights * first * second).sum() / np.sqrt(spread))


def _dense_ranks(values: ArrayLike) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    finite = np.asarray(values, dtype=np.float64)
    finite = np.where(np.isfinite(finite), finite, -np.inf)
    ranks = rankdata(finite, method="dense").astype(np.float64)
    return np.asarray(ranks / ranks.max())


def rows_of(scores: Mapping[str, tuple[float, float]]) -> list[tuple[str, str, float]]:
    """Return (validator, structure, value) rows of the values per validator."""
    pairs: list[tuple[str, str, float]] = []
    for name, values in scores.items():
        both: Any = zip(STRUCTURES, values, strict=True)
        pairs += [(name, structure, float(value)) for structure, value in both]
    return pairs

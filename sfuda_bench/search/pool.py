"""A fixed pool of configurations and epochs, evaluated once; every way to choose judged afterwards.

A candidate is one configuration (trial) at the end of one epoch. Epoch 0, the unadapted source
model, is one candidate that all configurations share, so "do not adapt" can always be chosen.
Nothing here computes a cell: frames in, frames out. Dice is in percent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import read_parquet
from sfuda_bench.report.statistics import Array, hierarchical_interval, interval_over_pairs
from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.scoring.validators import (
    COLLAPSED,
    PRIMARY,
    PRIMARY_NAME,
    rank_mean,
    weighted_spearman,
)
from sfuda_bench.search.effects import LEAST_GAIN, PARTS, image_means

SOURCE = -1
"""Trial number of the unadapted source model."""
TOP = 5
ORACLES = ("oracle_test", "oracle_train")
LABEL_FREE = "label-free"
_RUN = ("source_seed", "seed")
_PLACE = ("method", "source", "target")
RESULT_COLUMNS = (
    *_PLACE,
    "objective",
    "filtered",
    "oracle",
    "structure",
    "trial",
    "epoch",
    "dice",
    "regret",
    "regret_low",
    "regret_high",
    "gain",
    "gain_low",
    "gain_high",
    "relative_regret",
    "harm",
    "spearman",
    "weighted_spearman",
    "top_5",
    "candidates",
    "n_images",
    "note",
)


@dataclass(frozen=True)
class Pool:
    """What a finished pool study recorded.

    Attributes:
        dice: Per image on target test: ``method``, ``source``, ``target``, ``source_seed``,
            ``seed``, ``trial``, ``epoch``, ``image``, ``structure``, ``dice`` (percent).
        train: The same on target train, or an empty frame; of final models, as cells record it.
        validators: The same places and ``validator``, ``structure``, ``value`` (higher is
            better); the pseudo-validator ``collapsed`` is 1 for what the filter rejects.
        defaults: Method to the trial of its default settings, where the pool has it.
        synthetic: Pairs of synthetic images.
    """

    dice: pd.DataFrame
    train: pd.DataFrame
    validators: pd.DataFrame
    defaults: Mapping[str, int] = field(default_factory=dict)
    synthetic: frozenset[tuple[str, str]] = frozenset()


def read_pool(cells: pd.DataFrame, profile: str) -> Pool:
    """Read what a pool study stored.

    Args:
        cells: ``method``, ``trial``, ``source``, ``target``, ``source_seed``, ``seed``,
            ``folder`` of each stored cell; ``default`` (bool) marks default settings and
            ``synthetic`` (bool) synthetic images, if there.
        profile: Scoring profile.

    Raises:
        UsageError: No cell at all.
        StoreSchemaError: A cell was stored without its epochs or validators.
    """
    if cells.empty:
        raise UsageError("the pool has no finished trial", hint="sfuda-bench study run NAME")
    parts: dict[str, list[pd.DataFrame]] = {"dice": [], "train": [], "validators": []}
    for cell in cells.to_dict("records"):
        folder = Path(str(cell["folder"]))
        place = {name: cell[name] for name in (*_PLACE, *_RUN, "trial")}
        epochs = read_parquet(folder / f"epochs-{profile}.parquet")
        parts["dice"].append(epochs.assign(**place, dice=100 * epochs["dice"]))
        values = read_parquet(folder / "validators.parquet")
        parts["validators"].append(values.assign(**place))
        path = folder / f"train-{profile}.parquet"
        if path.is_file():  # of the final model alone
            train = read_parquet(path)[["image", "structure", "dice"]]
            last = int(epochs["epoch"].max())
            parts["train"].append(train.assign(**place, epoch=last, dice=100 * train["dice"]))
    frames = {
        name: pd.concat(found, ignore_index=True) if found else pd.DataFrame()
        for name, found in parts.items()
    }
    marked = _marked(cells, "default").drop_duplicates("method")
    synthetic = _marked(cells, "synthetic")
    return Pool(
        **frames,
        defaults={str(m): int(t) for m, t in zip(marked["method"], marked["trial"], strict=True)},
        synthetic=frozenset(zip(synthetic["source"], synthetic["target"], strict=True)),
    )


def _marked(cells: pd.DataFrame, column: str) -> pd.DataFrame:
    return cells[cells[column].astype(bool)] if column in cells.columns else cells.iloc[:0]


def analyse(pool: Pool, *, seed: int = 0) -> pd.DataFrame:
    """Judge every way to choose a candidate, per method and pair.

    Objectives: ``oracle_test`` (best mean Dice on target test, an upper bound), ``oracle_train``
    (the same on target train, among final models), ``transfer`` (best on average over pairs with
    another target), ``label-free:V`` for each recorded validator and for ``primary`` (several
    combined), with and without the collapse filter, ``default`` (default settings, last epoch)
    and ``last`` (mean over all configurations of their last epochs: one picked blindly).

    Args:
        pool: From :func:`read_pool`.
        seed: Of the bootstrap.

    Returns:
        One row per method, pair, objective, filter and structure, the columns
        ``RESULT_COLUMNS``. ``regret`` is the Dice of the oracle's candidate minus that of the
        chosen one, ``gain`` chosen minus source model, each with a paired bootstrap interval
        over images that holds both candidates fixed. The oracle's candidate is the one with
        the best mean of cup and disc, so a structure's regret may be negative.
        ``spearman`` and ``weighted_spearman`` compare a validator with Dice over all
        candidates; ``top_5`` is the mean Dice of its five best candidates.

    Undefined:
        ``relative_regret`` = gain / oracle's gain where the oracle gains less than 0.5 points:
        NaN. An objective that lacks its records: NaN, and ``note`` says why.
    """
    sets = {place: candidates for place, candidates in _candidate_sets(pool)}
    rows: list[dict[str, Any]] = []
    for place, candidates in sets.items():
        named = dict(zip(_PLACE, place, strict=True))
        for choice in _choices(place, candidates, sets, pool):
            rows += [{**named, **line} for line in _judge(candidates, choice, seed)]
    return pd.DataFrame(rows, columns=list(RESULT_COLUMNS))


# -- candidates -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidates:
    """All candidates of one method in one pair, the source model first, then by epoch.

    Attributes:
        keys: (trial, epoch) each.
        dice: Structure (cup, disc, avg) to (candidates, runs, images).
        source_seeds: (runs,).
        values: Validator to (candidates, 2), NaN where it was not recorded.
        collapsed: (candidates,) what the filter rejects.
        train: (candidates,) mean Dice on target train, NaN where unknown.
    """

    keys: tuple[tuple[int, int], ...]
    dice: Mapping[str, Array]
    source_seeds: tuple[int, ...]
    values: Mapping[str, Array]
    collapsed: np.ndarray
    train: Array

    def means(self, structure: str) -> Array:
        """Return the mean Dice of every candidate."""
        return np.array([_mean(scores) for scores in self.dice[structure]])

    def last_epochs(self) -> list[int]:
        """Return the position of every configuration's last epoch."""
        last: dict[int, int] = {}
        for position, (trial, _) in enumerate(self.keys):
            if trial != SOURCE:
                last[trial] = position  # epochs ascend
        return sorted(last.values())


def _mean(scores: Array) -> float:
    means = image_means(scores)
    return float(np.nanmean(means)) if not np.isnan(means).all() else math.nan


def _candidate_sets(pool: Pool) -> Iterator[tuple[tuple[str, str, str], _Candidates]]:
    for place, cases in pool.dice.groupby(list(_PLACE), sort=True):
        names = (str(place[0]), str(place[1]), str(place[2]))
        validators = _at(pool.validators, names)
        yield names, _candidates(cases, validators, _at(pool.train, names), names)


def _at(frame: pd.DataFrame, place: Sequence[str]) -> pd.DataFrame:
    if frame.empty:
        return frame
    here = np.logical_and.reduce(
        [frame[name] == value for name, value in zip(_PLACE, place, strict=True)]
    )
    return frame[here]


def _shared_source(frame: pd.DataFrame) -> pd.DataFrame:
    """Give epoch 0 of all configurations one number, and keep it once."""
    frame = frame.assign(trial=frame["trial"].where(frame["epoch"] > 0, SOURCE))
    keys = [name for name in frame.columns if name not in ("dice", "value")]
    return frame.drop_duplicates(keys)


def _candidates(
    cases: pd.DataFrame, validators: pd.DataFrame, train: pd.DataFrame, place: Sequence[str]
) -> _Candidates:
    cases = _shared_source(cases)
    wide = cases.pivot(
        index=["epoch", "trial"], columns=["structure", *_RUN, "image"], values="dice"
    ).sort_index(axis=0)
    recorded = cases.assign(dice=1.0).pivot(
        index=["epoch", "trial"], columns=["structure", *_RUN, "image"], values="dice"
    )
    # A candidate that lacks a run or an image is compared with nothing.
    wide = wide[recorded.notna().all(axis=1).reindex(wide.index)]
    if (0, SOURCE) not in wide.index:
        raise UsageError(
            f"{place[0]} {place[1]}:{place[2]}: no scores of the unadapted source model (epoch 0)",
            hint='record = ["epochs", "validators"]',
        )
    runs = sorted(set(cases[list(_RUN)].itertuples(index=False, name=None)))
    dice = {name: _cube(wide, name, runs) for name in STRUCTURES}
    dice["avg"] = sum(dice.values()) / len(STRUCTURES)  # type: ignore[assignment]  # of arrays
    index = wide.index
    values = _validator_values(validators, index)
    collapsed = values.pop(COLLAPSED, np.zeros((len(index), 1)))
    return _Candidates(
        keys=tuple((int(trial), int(epoch)) for epoch, trial in index),
        dice=dice,
        source_seeds=tuple(int(run[0]) for run in runs),
        values=values,
        collapsed=np.nanmax(np.nan_to_num(collapsed), axis=1) > 0,
        train=_train_means(train, index),
    )


def _cube(wide: pd.DataFrame, structure: str, runs: Sequence[tuple[Any, ...]]) -> Array:
    """Return (candidates, runs, images) of one structure, images sorted."""
    parts = [wide[(structure, *run)].sort_index(axis=1).to_numpy(float) for run in runs]
    return np.stack(parts, axis=1)


def _validator_values(frame: pd.DataFrame, index: pd.Index) -> dict[str, Array]:
    """Return each validator's (candidates, 2) values, averaged over runs."""
    if frame.empty:
        return {}
    means = (
        _shared_source(frame)
        .groupby(["validator", "epoch", "trial", "structure"])["value"]
        .mean()
        .unstack("structure")
        .reindex(columns=list(STRUCTURES))
    )
    return {
        str(name): part.droplevel("validator").reindex(index).to_numpy(float)
        for name, part in means.groupby(level="validator", sort=True)
    }


def _train_means(frame: pd.DataFrame, index: pd.Index) -> Array:
    if frame.empty:
        return np.full(len(index), np.nan)
    by_image = _shared_source(frame).groupby(["epoch", "trial", "structure", *_RUN])["dice"].mean()
    means = by_image.groupby(["epoch", "trial"]).mean()
    return means.reindex(index).to_numpy(float)


# -- choices --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Choice:
    """What one objective chose.

    Attributes:
        objective: Its name.
        chosen: Positions whose mean Dice counts: one, or several for ``last``; none if unknown.
        preference: (candidates,) higher is preferred; ``None`` where there is no order.
        scores: Structure to the (candidates,) values to correlate; none for other objectives.
        filtered: Whether the collapse filter was applied.
        note: Why nothing was chosen.
    """

    objective: str
    chosen: tuple[int, ...]
    preference: Array | None = None
    scores: Mapping[str, Array] = field(default_factory=dict)
    filtered: bool = False
    note: str = ""


def _choices(
    place: tuple[str, str, str],
    candidates: _Candidates,
    sets: Mapping[tuple[str, str, str], _Candidates],
    pool: Pool,
) -> Iterator[_Choice]:
    yield _best("oracle_test", candidates.means("avg"))
    if np.isnan(candidates.train).all():
        yield _Choice("oracle_train", (), note="Dice on target train was not recorded")
    else:
        known = np.isfinite(candidates.train)
        note = "" if known.all() else "among final models: Dice on train is not tracked by epoch"
        yield _best("oracle_train", candidates.train, note=note)
    yield _transfer(place, candidates, sets)
    for name, values in candidates.values.items():
        yield from _label_free(name, [values], candidates)
    members = [candidates.values[name] for name in PRIMARY if name in candidates.values]
    if len(members) == len(PRIMARY):
        yield from _label_free(PRIMARY_NAME, members, candidates)
    last = candidates.last_epochs()
    default = pool.defaults.get(place[0])
    found = [position for position in last if candidates.keys[position][0] == default]
    note = "" if found else "the pool has no trial with the default settings"
    yield _Choice("default", tuple(found), note=note)
    yield _Choice("last", tuple(last), note="" if last else "no configuration has an epoch")


def _best(objective: str, values: Array, **more: Any) -> _Choice:
    """Choose the highest value; of equal ones the earliest candidate."""
    preference = np.where(np.isfinite(values), values, -np.inf)
    # Rounded, so that a tie is a tie in spite of a sum's last bits.
    return _Choice(objective, (int(preference.round(10).argmax()),), preference, **more)


def _transfer(
    place: tuple[str, str, str],
    candidates: _Candidates,
    sets: Mapping[tuple[str, str, str], _Candidates],
) -> _Choice:
    """Choose what is best on average over this method's pairs with another target."""
    others = [found for other, found in sets.items() if other[0] == place[0]
              and other[2] != place[2]]  # fmt: skip
    if not others:
        return _Choice("transfer", (), note="no pair with another target")
    shared = set(candidates.keys).intersection(*(set(other.keys) for other in others))
    total = np.full(len(candidates.keys), -np.inf)
    means = [dict(zip(other.keys, other.means("avg"), strict=True)) for other in others]
    for position, key in enumerate(candidates.keys):
        if key in shared:
            total[position] = float(np.mean([found[key] for found in means]))
    return _best("transfer", total)


def _label_free(name: str, members: Sequence[Array], candidates: _Candidates) -> Iterator[_Choice]:
    """Choose by the rank-mean over validators and structures, with the filter and without."""
    order = rank_mean(np.concatenate(members, axis=1))
    scores = {
        structure: rank_mean(np.stack([member[:, place] for member in members], axis=1))
        for place, structure in enumerate(STRUCTURES)
    } | {"avg": order}
    yield _best(f"{LABEL_FREE}:{name}", order, scores=scores)
    kept = np.where(candidates.collapsed, -np.inf, order)
    # If everything is rejected all are equal and the first one, the source model, is chosen.
    yield _best(f"{LABEL_FREE}:{name}", kept, scores=scores, filtered=True)


def _judge(candidates: _Candidates, choice: _Choice, seed: int) -> Iterator[dict[str, Any]]:
    """Give one row per structure."""
    oracle = int(candidates.means("avg").round(10).argmax())
    common = {
        "objective": choice.objective,
        "filtered": choice.filtered,
        "oracle": choice.objective in ORACLES,
        "candidates": len(candidates.keys),
        "note": choice.note,
    }
    if len(choice.chosen) == 1:
        trial, epoch = candidates.keys[choice.chosen[0]]
        common |= {"trial": trial, "epoch": epoch}
    for structure in PARTS:
        dice = candidates.dice[structure]
        row: dict[str, Any] = {**common, "structure": structure, "n_images": dice.shape[2]}
        if choice.chosen:
            chosen = dice[list(choice.chosen)].mean(axis=0)
            row |= _scores(dice[0], dice[oracle], chosen, candidates.source_seeds, seed)
        row |= _agreement(candidates, choice, structure)
        yield row


def _scores(
    source: Array, oracle: Array, chosen: Array, source_seeds: Sequence[int], seed: int
) -> dict[str, Any]:
    dice = _mean(chosen)
    regret, gain = _mean(oracle - chosen), _mean(chosen - source)
    best_gain = _mean(oracle - source)
    ends = hierarchical_interval(oracle - chosen, source_seeds, seed=seed)
    gains = hierarchical_interval(chosen - source, source_seeds, seed=seed)
    return {
        "dice": dice,
        "regret": regret,
        "regret_low": ends.low,
        "regret_high": ends.high,
        "gain": gain,
        "gain_low": gains.low,
        "gain_high": gains.high,
        "relative_regret": gain / best_gain if best_gain >= LEAST_GAIN else math.nan,
        "harm": gain < -1e-9,
    }


def _agreement(candidates: _Candidates, choice: _Choice, structure: str) -> dict[str, Any]:
    """Return how well a validator orders all candidates, and the Dice of its best ones."""
    from scipy.stats import spearmanr

    found: dict[str, Any] = {}
    dice = candidates.means(structure)
    if choice.preference is not None:
        allowed = np.flatnonzero(np.isfinite(choice.preference))
        # Stable, so that of equal candidates the earlier ones count.
        order = allowed[np.argsort(-choice.preference[allowed], kind="stable")]
        found["top_5"] = float(dice[order[:TOP]].mean()) if len(order) else float(dice[0])
    if structure in choice.scores and len(dice) > 2:
        scores = choice.scores[structure]
        constant = len(set(scores.tolist())) < 2 or len(set(dice.tolist())) < 2
        if not constant:
            found["spearman"] = float(spearmanr(scores, dice).statistic)
            found["weighted_spearman"] = weighted_spearman(scores, dice)
    return found


# -- over pairs -----------------------------------------------------------------------------------


def summary(results: pd.DataFrame, *, structure: str = "avg", seed: int = 0) -> pd.DataFrame:
    """Return each objective's regret and harm over pairs, per method.

    Args:
        results: From :func:`analyse`.
        structure: ``cup``, ``disc`` or ``avg``.
        seed: Of the bootstrap over targets.

    Returns:
        ``method``, ``objective``, ``filtered``, ``pairs``, ``mean_regret`` with an interval
        from 6 distinct targets on, ``median_regret``, ``worst_regret``, ``harm_rate`` (share
        of pairs whose choice is worse than the source model), ``median_relative_regret`` (over
        the pairs that have one) and ``mean_spearman``, ``mean_weighted_spearman``.

    Undefined:
        An objective that chose nothing in some pair: NaN, never a mean over fewer pairs.
    """
    chosen = results[results["structure"] == structure]
    rows = []
    for (method, objective, filtered), part in chosen.groupby(
        ["method", "objective", "filtered"], sort=False
    ):
        row = {"method": method, "objective": objective, "filtered": filtered}
        row |= {"oracle": bool(part["oracle"].iloc[0]), "pairs": len(part)}
        regret = part["regret"].to_numpy(float)
        if not np.isnan(regret).any():
            row |= _over_pairs(part, regret, seed)
        rows.append(row)
    columns = ["method", "objective", "filtered", "oracle", "pairs", *_SUMMARY]
    return pd.DataFrame(rows, columns=columns)


_SUMMARY = (
    "mean_regret",
    "regret_low",
    "regret_high",
    "median_regret",
    "worst_regret",
    "harm_rate",
    "median_relative_regret",
    "mean_spearman",
    "mean_weighted_spearman",
)


def _over_pairs(part: pd.DataFrame, regret: Array, seed: int) -> dict[str, Any]:
    interval = interval_over_pairs(list(regret), part["target"].tolist(), seed=seed)
    return {
        "mean_regret": float(regret.mean()),
        "regret_low": interval.low if interval else math.nan,
        "regret_high": interval.high if interval else math.nan,
        "median_regret": float(np.median(regret)),
        "worst_regret": float(regret.max()),
        "harm_rate": float(part["harm"].astype(bool).mean()),
        "median_relative_regret": float(part["relative_regret"].median()),
        "mean_spearman": float(part["spearman"].mean(skipna=False)),
        "mean_weighted_spearman": float(part["weighted_spearman"].mean(skipna=False)),
    }

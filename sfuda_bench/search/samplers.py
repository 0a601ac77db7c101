"""Samplers seeded per trial number: what a trial gets does not depend on who runs it.

``qmc``, ``grid`` and ``random`` map a trial's number to a point and know nothing of other
trials. ``tpe`` starts with the points of ``qmc`` and then learns from the finished trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from sfuda_bench.errors import UsageError
from sfuda_bench.search.spaces import value_at

if TYPE_CHECKING:
    from optuna.study import Study

    from sfuda_bench.search.spaces import Point, Space

SAMPLERS = ("tpe", "qmc", "grid", "random")
HISTORY_FREE = ("qmc", "grid", "random")
"""Samplers whose points do not depend on what other trials found."""

STARTUP = 10
"""Trials of ``tpe`` that take the points of ``qmc``: nothing can be learnt from fewer."""

_MOST_REDRAWS = 4096
_TPE_REDRAWS = 100
Points = Callable[[int], "Point"]
"""From a trial's number to its point."""


class Preference(Protocol):
    """Says which of the finished trials are better."""

    def __call__(self, trials: Sequence[FrozenTrial]) -> Sequence[float]:
        """Return one number per trial; higher is better."""
        ...


def derived_seed(*parts: object) -> int:
    """Return a seed in [0, 2**32) that depends on every part."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def points_of(sampler: str, space: Space, seed: int, trials: int) -> Points:
    """Return the function from a trial's number to its point for a history-free sampler.

    Args:
        sampler: ``qmc``, ``grid`` or ``random``; ``tpe`` gives the points it starts with.
        space: What is searched; infeasible points are skipped.
        seed: Of the study.
        trials: How many points are wanted.

    Raises:
        UsageError: A grid with fewer points than trials, or constraints that nearly nothing
            satisfies.
    """
    if sampler == "random":
        return lambda number: _random(space, seed, number)
    found = _grid(space, seed, trials) if sampler == "grid" else _sobol(space, seed, trials)
    return found.__getitem__


def _random(space: Space, seed: int, number: int) -> Point:
    generator = np.random.default_rng(derived_seed(seed, space.method, number))
    for _ in range(_MOST_REDRAWS):
        point = space.at(generator.random(len(space.knobs)).tolist())
        if not space.refusal(point):
            return point
    raise _nothing_feasible(space, point)


def _sobol(space: Space, seed: int, trials: int) -> list[Point]:
    """Return the first feasible points of a scrambled Sobol sequence."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(
        len(space.knobs), scramble=True, rng=np.random.default_rng(derived_seed(seed, space.method))
    )
    found: list[Point] = []
    seen = 0
    exponent = max(4, (trials - 1).bit_length())
    while len(found) < trials:
        for unit in sequence.random_base2(exponent).tolist():
            point = space.at(unit)
            if not space.refusal(point):
                found.append(point)
        seen = sequence.num_generated
        if seen >= _MOST_REDRAWS and len(found) * 1000 < seen:
            raise _nothing_feasible(space, point)
        exponent = seen.bit_length() - 1  # the balance holds for powers of two only
    return found[:trials]


def _grid(space: Space, seed: int, trials: int) -> list[Point]:
    """Return points of the grid in a seeded order, so that more trials only add some."""
    points = list(space.grid())
    if len(points) < trials:
        raise UsageError(
            f"sampler 'grid': {trials} trials, but the grid of {space.method} has "
            f"{len(points)} points",
            hint=f"trials = {len(points)}",
        )
    generator = np.random.default_rng(derived_seed(seed, space.method))
    return [points[place] for place in generator.permutation(len(points))[:trials].tolist()]


def _nothing_feasible(space: Space, point: Point) -> UsageError:
    return UsageError(
        f"the space of {space.method} has (nearly) no point that can be run; the last one drawn "
        f"fails because {space.refusal(point)}",
        hint="narrow the ranges so that the constraints can hold",
    )


class NumberedSampler(BaseSampler):
    """Draws the point of a trial from the study's seed and the trial's number.

    Args:
        space: What is searched.
        points: Points of a history-free sampler, by trial number.
        seed: Of the study.
        prefer: Says which finished trials are better; ``None`` for a history-free sampler.
    """

    def __init__(
        self, space: Space, points: Points, seed: int, prefer: Preference | None = None
    ) -> None:
        self._space = space
        self._points = points
        self._seed = seed
        self._prefer = prefer

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the whole space, whatever was tried before."""
        return dict(self._space.knobs)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the trial's point; values it already has stay."""
        if self._prefer is None or trial.number < STARTUP:
            point = self._points(trial.number)
        else:
            point = self._learnt(study, trial)
        return {**point, **trial.params}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """Refuse: every setting belongs to the space."""
        raise RuntimeError(f"{param_name} is not part of the space")

    def _learnt(self, study: Study, trial: FrozenTrial) -> Point:
        """Ask TPE, on a copy of the finished trials, until a point can be run."""
        mirror = self._mirror(study)
        if not mirror.trials:
            return self._points(trial.number)
        sampler = TPESampler(
            seed=derived_seed(self._seed, self._space.method, trial.number),
            n_startup_trials=1,
            multivariate=True,
            constant_liar=False,  # what others are trying now must not change this trial
        )
        knobs = self._space.knobs
        fixed = {name: value_at(knob, 0.0) for name, knob in knobs.items() if knob.single()}
        free = {name: knob for name, knob in knobs.items() if not knob.single()}
        for _ in range(_TPE_REDRAWS):
            point = fixed | sampler.sample_relative(mirror, trial, free)
            if not self._space.refusal({**point, **trial.params}):
                return point
        return self._points(trial.number)

    def _mirror(self, study: Study) -> Study:
        """Return an in-memory study of the finished trials, valued as they compare today."""
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        finished = sorted(finished, key=lambda found: found.number)
        mirror = optuna.create_study(direction="maximize")
        values = self._prefer(finished) if self._prefer is not None and finished else ()
        for found, value in zip(finished, values, strict=True):
            mirror.add_trial(
                optuna.trial.create_trial(
                    params=found.params, distributions=found.distributions, value=float(value)
                )
            )
        return mirror

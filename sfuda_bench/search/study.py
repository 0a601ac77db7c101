"""Running the trials of one method: each number once, whoever dies and whoever helps.

An Optuna study is created with all its trials waiting. Processes take them in the order of
their numbers; while one works on a trial it holds the lock of that number. A trial that is
marked as running but whose lock is free belonged to a process that died: it is taken up again
with the values it already has.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from sfuda_bench.errors import CellsFailed, UsageError
from sfuda_bench.search.objectives import CellResult, Objective
from sfuda_bench.search.samplers import HISTORY_FREE, NumberedSampler, points_of
from sfuda_bench.search.storage import is_locked, place_of, study_lock, trial_lock

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sfuda_bench.search.spaces import Point, Space

DEFAULT_CELLS = "default cells"
"""Entry of a study's document that follows from everything a result depends on."""

Evaluate = Callable[[str, "Point", str], list[CellResult]]
"""Compute the cells of (method, point, pair selector)."""

_POLL = 0.2  # seconds between looks at what other processes are doing
_SETTLED = 10.0  # seconds after which a trial on a server has told whose it is
_DOCUMENT, _CELLS, _PLACE, _ERROR, _SECONDS = "document", "cells", "place", "error", "seconds"


@dataclass(frozen=True)
class Budget:
    """How many trials, drawn how.

    Attributes:
        trials: Their number.
        sampler: Name of the sampler.
        seed: Of the sampler.
        prune: Stop trials whose first pairs do worse than the median of the others.
    """

    trials: int
    sampler: str
    seed: int
    prune: bool = False


class Trials:
    """The trials of one method.

    Args:
        name: Of the study file.
        space: What is searched.
        objective: The selection rule.
        budget: How many trials, drawn how.
        pairs: Of every trial, in order.
        folder: The study's folder.
        storage: Where trials are kept.
        shared: Whether the storage is used by machines that may not share the folder.
    """

    def __init__(
        self,
        name: str,
        space: Space,
        objective: Objective,
        budget: Budget,
        pairs: Sequence[str],
        folder: Path,
        storage: BaseStorage,
        *,
        shared: bool = False,
    ) -> None:
        self.space = space
        self.objective = objective
        self.budget = budget
        self.pairs = tuple(pairs)
        self.folder = folder
        self.storage = storage
        self._name = optuna_name(name, space.method)
        self._shared = shared
        self._place = ""
        self._study: optuna.Study | None = None

    @property
    def study(self) -> optuna.Study:
        """The Optuna study; :meth:`open` comes first."""
        if self._study is None:
            raise RuntimeError("open() comes first")
        return self._study

    # -- opening ----------------------------------------------------------------------------

    def open(self, document: Mapping[str, Any]) -> None:
        """Create the study with all its trials waiting, or check that it is the same one.

        Args:
            document: What must not change between processes and between calls.

        Raises:
            UsageError: The study exists and was made from something else, or is longer.
        """
        with study_lock(self.folder):
            self._place = place_of(self.folder)
            self._study = optuna.create_study(
                storage=self.storage,
                study_name=self._name,
                direction="maximize",
                sampler=self._sampler(),
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=0),
                load_if_exists=True,
            )
            stored = self._study.user_attrs.get(_DOCUMENT)
            if stored is None:
                self._study.set_user_attr(_DOCUMENT, json.loads(json.dumps(document)))
            else:
                self._check_unchanged(stored, document)
            self._top_up()

    def _sampler(self) -> NumberedSampler:
        budget = self.budget
        points = points_of(budget.sampler, self.space, budget.seed, budget.trials)
        learns = budget.sampler not in HISTORY_FREE
        return NumberedSampler(self.space, points, budget.seed, self._prefer if learns else None)

    def _prefer(self, trials: Sequence[FrozenTrial]) -> list[float]:
        return self.objective.prefer([results_of(trial) for trial in trials])

    def _check_unchanged(self, stored: Mapping[str, Any], document: Mapping[str, Any]) -> None:
        changes = differences(stored, json.loads(json.dumps(document)))
        named = [text for text in changes if not text.startswith(DEFAULT_CELLS)]
        if changes:
            what = "; ".join(named) or "images, source models or a version (other cell keys)"
            raise UsageError(
                f"study {self._name}: it has trials that were made from something else: {what}",
                hint="undo the change, rename the study file, or remove the study's folder "
                f"{self.folder} (the cells stay)",
            )
        longer = [t for t in self.study.get_trials(deepcopy=False) if _counts(t, self.budget)]
        if longer:
            raise UsageError(
                f"study {self._name}: trials = {self.budget.trials}, but trial "
                f"{longer[-1].number} exists already",
                hint=f"trials = {longer[-1].number + 1} or more",
            )

    def _top_up(self) -> None:
        """Add waiting trials up to the budget; more of them (a race on a server) are never run."""
        for _ in range(len(self.study.get_trials(deepcopy=False)), self.budget.trials):
            self.study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))

    # -- working ----------------------------------------------------------------------------

    def run(self, evaluate: Evaluate, note: Callable[[str], None]) -> None:
        """Work until every trial is finished, here or in other processes on this folder.

        A trial whose cells fail is marked as failed and the next one is taken; every other
        error ends the run and leaves the trial to the next call.

        Args:
            evaluate: Computes the cells of a trial.
            note: Gets one line per finished trial.
        """
        while unfinished := [t for t in self.all() if not t.state.is_finished()]:
            worked = False
            for frozen in unfinished:
                with trial_lock(self.folder, self._lock_name(frozen.number)) as free:
                    if free and self._claim(frozen):
                        self._work(frozen, evaluate, note)
                        worked = True
            if worked:
                continue
            if not any(is_locked(self.folder, self._lock_name(t.number)) for t in unfinished):
                if all(self._is_elsewhere(trial) for trial in self.all()):
                    note(f"{self._name}: the rest is run from other folders")
                    return
            time.sleep(_POLL)

    def all(self) -> list[FrozenTrial]:
        """Return the trials of the budget in order, whatever their state."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial for trial in trials if trial.number < self.budget.trials]

    def is_running(self, trial: FrozenTrial) -> bool:
        """Whether a living process on this folder works on a trial."""
        return is_locked(self.folder, self._lock_name(trial.number))

    def _lock_name(self, number: int) -> str:
        return f"{self.space.method}-{number}"

    def _is_elsewhere(self, trial: FrozenTrial) -> bool:
        place = trial.user_attrs.get(_PLACE)
        return trial.state.is_finished() or (
            trial.state == TrialState.RUNNING and place is not None and place != self._place
        )

    def _claim(self, frozen: FrozenTrial) -> bool:
        """Take a trial whose lock we hold, unless it is finished or belongs elsewhere."""
        fresh = self.storage.get_trial(frozen._trial_id)
        if fresh.state.is_finished():
            return False
        if fresh.state == TrialState.RUNNING:
            mine = fresh.user_attrs.get(_PLACE) == self._place
            return mine and (not self._shared or _age(fresh) > _SETTLED)
        # Said before it is taken: whoever dies in between leaves a trial that knows its place.
        self.storage.set_trial_user_attr(fresh._trial_id, _PLACE, self._place)
        try:
            taken = self.storage.set_trial_state_values(fresh._trial_id, TrialState.RUNNING)
        except UpdateFinishedTrialError:
            return False
        if taken:
            self.storage.set_trial_user_attr(fresh._trial_id, _PLACE, self._place)
        return taken

    def _work(self, frozen: FrozenTrial, evaluate: Evaluate, note: Callable[[str], None]) -> None:
        began = time.monotonic()
        trial = optuna.trial.Trial(self.study, frozen._trial_id)
        point = {name: _suggest(trial, name, knob) for name, knob in self.space.knobs.items()}
        name = f"{self._name} trial {frozen.number}"
        try:
            results, pruned = self._evaluated(trial, point, evaluate)
        except CellsFailed as error:
            trial.set_user_attr(_ERROR, error.message)
            self.study.tell(trial, state=TrialState.FAIL)
            note(f"{name} failed: {error.message}")
            return
        trial.set_user_attr(_CELLS, [result.to_json() for result in results])
        trial.set_user_attr(_SECONDS, round(time.monotonic() - began, 3))
        if pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
            note(f"{name} pruned after {len({r.pair for r in results})} pairs")
            return
        value = self.objective.value(results)
        self.study.tell(trial, value)
        note(f"{name}: {self.objective.text} {value:.4f}  {_point_text(point)}")

    def _evaluated(
        self, trial: optuna.trial.Trial, point: Point, evaluate: Evaluate
    ) -> tuple[list[CellResult], bool]:
        """Return the cells of a trial, pair by pair when it may be stopped early."""
        known = self.storage.get_trial(trial._trial_id).intermediate_values
        if not self.budget.prune:
            results = evaluate(self.space.method, point, ",".join(self.pairs))
            for step, pair in enumerate(self.pairs):
                self._report(trial, step, [r for r in results if r.pair == pair], known)
            return results, False
        results = []
        for step, pair in enumerate(self.pairs):
            found = evaluate(self.space.method, point, pair)
            results += found
            self._report(trial, step, found, known)
            if step + 1 < len(self.pairs) and trial.should_prune():
                return results, True
        return results, False

    def _report(
        self,
        trial: optuna.trial.Trial,
        step: int,
        results: Sequence[CellResult],
        known: Mapping[int, float],
    ) -> None:
        if step not in known:  # a trial that is taken up again has told some already
            trial.report(self.objective.value(results), step)

    # -- results ----------------------------------------------------------------------------

    def finished(self) -> list[FrozenTrial]:
        """Return the completed trials in order, neither failed nor pruned."""
        return [trial for trial in self.all() if trial.state == TrialState.COMPLETE]


def optuna_name(study: str, method: str) -> str:
    """Return the name of a method's Optuna study, as dashboards show it."""
    return f"{study}.{method}"


def results_of(trial: FrozenTrial) -> list[CellResult]:
    """Return the cells of a finished trial."""
    return [CellResult.from_json(document) for document in trial.user_attrs.get(_CELLS, [])]


def seconds_of(trial: FrozenTrial) -> float | None:
    """Return how long a trial took in the process that finished it."""
    seconds = trial.user_attrs.get(_SECONDS)
    return None if seconds is None else float(seconds)


def error_of(trial: FrozenTrial) -> str:
    """Return why a trial failed, or nothing."""
    return str(trial.user_attrs.get(_ERROR, ""))


def differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Name what differs between two JSON documents, as ``key: old -> new``.

    Settings that a later version of the program added are not differences.
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in sorted({*old, *new}):
            where = f"{at}.{key}" if at else str(key)
            if key not in old and at.startswith("settings"):
                continue
            found += differences(old.get(key), new.get(key), where)
        return found
    return [] if old == new else [f"{at}: {json.dumps(old)} -> {json.dumps(new)}"]


def _counts(trial: FrozenTrial, budget: Budget) -> bool:
    """Whether a trial beyond the budget has been worked on."""
    return trial.number >= budget.trials and trial.state != TrialState.WAITING


def _age(trial: FrozenTrial) -> float:
    if trial.datetime_start is None:
        return 0.0
    return (datetime.now() - trial.datetime_start).total_seconds()


def _suggest(trial: optuna.trial.Trial, name: str, knob: Any) -> Any:
    if isinstance(knob, CategoricalDistribution):
        return trial.suggest_categorical(name, knob.choices)
    if isinstance(knob, IntDistribution):
        return trial.suggest_int(name, knob.low, knob.high, step=knob.step, log=knob.log)
    if isinstance(knob, FloatDistribution):
        return trial.suggest_float(name, knob.low, knob.high, step=knob.step, log=knob.log)
    raise TypeError(f"unknown distribution {knob}")


def _point_text(point: Point) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in point.items()
    )

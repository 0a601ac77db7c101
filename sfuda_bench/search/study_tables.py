"""Tables of a study: the chosen settings beside baselines, and every trial."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.scope import LABEL_CENTER_SENTENCE, ORACLE_MARK, SYNTHETIC_MARK
from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.search.choices import Choice, collapsed
from sfuda_bench.search.effects import interval_of
from sfuda_bench.search.objectives import CellResult
from sfuda_bench.search.session import Session
from sfuda_bench.search.study import Trials, results_of, seconds_of

if TYPE_CHECKING:
    import pandas as pd

UNADAPTED, DEFAULT, SELECTED = "not adapted", "defaults", "selected"
FRESH = "fresh seeds"
ALL_PAIRS = "mean of pairs"


@dataclass
class Row:
    """Cells that the comparison shows under one name.

    Attributes:
        method: Registered name.
        name: ``not adapted``, ``defaults`` or ``selected``, perhaps with ``fresh seeds``.
        trial: Numbers of the trials it comes from.
        results: Its cells.
        oracle: Whether labels of the judged target chose it.
    """

    method: str
    name: str
    trial: str
    results: list[CellResult]
    oracle: bool = False


def comparison_table(session: Session, rows: Sequence[Row], unchosen: Sequence[str]) -> PlainTable:
    """Return test Dice of every row and pair, with paired differences to the baselines.

    Args:
        session: The work on the study.
        rows: The unadapted model first.
        unchosen: Methods of which every trial is rejected.
    """
    dice = [session.image_dice(row.results) for row in rows]
    lines: list[tuple[Value, ...]] = []
    for row, found in zip(rows, dice, strict=True):
        references = [0, _defaults_of(rows, row)]
        over = [
            {} if place is None or rows[place] is row else gains(found, dice[place])
            for place in references
        ]
        for pair in session.pairs:
            lines.append(_line(session, row, pair, found[found["pair"] == pair], over))
        if len(session.pairs) > 1:
            lines.append(_line(session, row, ALL_PAIRS, found, [{}, {}]))
    columns = (
        PlainColumn("method", "Method"),
        PlainColumn("row", "Settings"),
        PlainColumn("trial", "Trial"),
        PlainColumn("pair", "Pair"),
        *(PlainColumn(f"{s}_dice_percent", f"{s.capitalize()} Dice %") for s in STRUCTURES),
        PlainColumn("mean_dice_percent", "Mean Dice %"),
        PlainColumn("over_not_adapted_points", "Over not adapted"),
        PlainColumn("over_defaults_points", "Over defaults"),
        PlainColumn("objective", "Objective", decimals=4),
    )
    title = f"Study {session.file.name}: {session.file.question}".removesuffix(": ")
    caption = _caption(session, rows, unchosen)
    return PlainTable("comparison", title, caption, columns, tuple(lines), keys=4)


def _defaults_of(rows: Sequence[Row], row: Row) -> int | None:
    """Return where the defaults stand that were run with the seeds of a selected row."""
    if not row.name.startswith(SELECTED):
        return None
    wanted = (row.method, row.name.replace(SELECTED, DEFAULT))
    return next((n for n, other in enumerate(rows) if (other.method, other.name) == wanted), None)


def _line(
    session: Session, row: Row, pair: str, dice: pd.DataFrame, over: Sequence[Mapping[str, str]]
) -> tuple[Value, ...]:
    means: dict[str, float] = {}
    if len(dice):
        cells = dice.groupby(["structure", "pair", "source_seed", "seed"])["dice"].mean()
        by_pair = cells.groupby(["structure", "pair"]).mean().groupby("structure").mean()
        means = {str(name): float(value) for name, value in by_pair.items()}
    results = [r for r in row.results if pair in (r.pair, ALL_PAIRS)]
    value = session.file.objective.value(results)
    return (
        f"{row.method} {ORACLE_MARK}" if row.oracle else row.method,
        row.name,
        row.trial,
        f"{pair} {SYNTHETIC_MARK}" if session.synthetic else pair,
        *(means.get(structure) for structure in STRUCTURES),
        sum(means.values()) / len(means) if means else None,
        *(found.get(pair) for found in over),
        value if math.isfinite(value) else None,
    )


def gains(dice: pd.DataFrame, reference: pd.DataFrame) -> dict[str, str]:
    """Return the mean paired difference by pair, with its 95 % interval over images.

    Args:
        dice: From :meth:`Session.image_dice`.
        reference: The same images; runs with the same seeds.

    Undefined:
        Runs that differ from those of the reference: nothing.
    """
    runs = ["pair", "source_seed", "seed"]
    tables = [
        frame.groupby([*runs, "image"])["dice"].mean().unstack("image")
        for frame in (dice, reference)
    ]
    if tables[0].empty or not tables[0].index.equals(tables[1].index):
        return {}
    found = {}
    for pair, differences in (tables[0] - tables[1]).groupby(level="pair"):
        seeds = [int(seed) for seed in differences.index.get_level_values("source_seed")]
        images = differences.dropna(axis=1, how="all")
        mean, interval = interval_of(images.to_numpy(float), seeds)
        found[str(pair)] = f"{mean:+.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    return found


def _caption(session: Session, rows: Sequence[Row], unchosen: Sequence[str]) -> tuple[str, ...]:
    file = session.file
    how = ", compared between trials by rank" if file.objective.label_free else ""
    sentences = [
        f"Selected: {file.objective.information}; {file.trials} trials per method, sampler "
        f"{file.search.sampler}.",
        f"Dice of the target test images, profile {file.objective.profile}; objective: mean of "
        f"its parts, higher is better{how}.",
        "Differences: Dice points (mean of cup and disc), paired by image, with 95 % intervals "
        "over test images.",
    ]
    for method in unchosen:
        sentences.append(
            f"{method}: every trial is rejected as collapsed; the choice is not to adapt."
        )
    if file.confirm_seeds:
        sentences.append(
            f"Fresh seeds ({', '.join(map(str, file.confirm_seeds))}) took no part in the choice: "
            "what the selected rows lose with them is what choosing inflated."
        )
    if any(row.oracle for row in rows):
        sentences.append(f"{ORACLE_MARK} uses target labels (oracle).")
    if session.synthetic:
        sentences.append(f"{SYNTHETIC_MARK} synthetic images, not of patients.")
    if session.positions_from_labels:
        sentences.append(LABEL_CENTER_SENTENCE)
    return tuple(sentences)


# -- trials ---------------------------------------------------------------------------------------


def trials_table(session: Session, trials: Trials, choices: Sequence[Choice]) -> PlainTable:
    """Return every trial of a method: settings, objective, and whether it is chosen."""
    space = trials.space
    chosen = {choice.number for choice in choices}
    preference = preferences(trials)
    rows: list[tuple[Value, ...]] = []
    for trial in trials.all():
        value = trial.value if trial.state == TrialState.COMPLETE else None
        rows.append(
            (
                trial.number,
                trial.state.name.lower(),
                *(_shown(trial.params.get(name)) for name in space.knobs),
                value if value is not None and math.isfinite(value) else None,
                preference.get(trial.number),
                "yes" if collapsed(trial) else "",
                "yes" if trial.number in chosen else "",
                seconds_of(trial),
            )
        )
    columns = (
        PlainColumn("trial", "Trial"),
        PlainColumn("state", "State"),
        *(PlainColumn(name, space.label(name), decimals=4) for name in space.knobs),
        PlainColumn("objective", "Objective", decimals=4),
        PlainColumn("preference", "Preference", decimals=4),
        PlainColumn("collapsed", "Collapsed"),
        PlainColumn("selected", "Selected"),
        PlainColumn("seconds", "Seconds", decimals=1, printed=False),
    )
    title = f"Trials of {space.method} in study {session.file.name}"
    mark = f" {ORACLE_MARK} uses target labels (oracle)." if session.file.objective.oracle else ""
    caption = (f"Selected: {session.file.objective.information}.{mark}",)
    return PlainTable(f"trials-{space.method}", title, caption, columns, tuple(rows), keys=1)


def preferences(trials: Trials) -> dict[int, float]:
    """Return how completed trials compare, by number; higher is better."""
    finished: Sequence[FrozenTrial] = trials.finished()
    values = trials.objective.prefer([results_of(trial) for trial in finished])
    return {trial.number: value for trial, value in zip(finished, values, strict=True)}


def _shown(value: Any) -> Value:
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        return json.dumps(value)
    return value

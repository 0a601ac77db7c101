"""What a study maximises, what that needs to know, and how finished trials compare."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sfuda_bench.errors import DataError, StoreSchemaError, UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.search.cells import cell_dice

LABEL_FREE = "label-free"
PRIMARY = "primary"
KINDS = ("oracle_test", "oracle_train", "transfer", f"{LABEL_FREE}:<validator>")
_BELOW = 2.0  # more than any rank-mean: puts collapsed trials behind all others

_INFORMATION = {
    "oracle_test": "ORACLE: chosen by the labels of the target test images",
    "oracle_train": "ORACLE: chosen by the labels of the target train images",
    "transfer": "chosen by the labels of other targets, never of the judged one",
    LABEL_FREE: "chosen without labels, by {validator} on the unlabelled target train images",
}


@dataclass(frozen=True)
class CellResult:
    """What a study keeps of one stored cell.

    Attributes:
        key: The cell's key.
        folder: Its folder, relative to the store.
        method: Registered name.
        pair: ``source:target``.
        source_seed: Seed of the source model.
        seed: Adaptation seed.
        adapted: Digest of the adapted model.
        scores: Component of the objective to its value, higher is better.
        collapsed: Whether the degeneracy filter rejects the model.
    """

    key: str
    folder: str
    method: str
    pair: str
    source_seed: int
    seed: int
    adapted: str
    scores: Mapping[str, float] = field(default_factory=dict)
    collapsed: bool = False

    @property
    def place(self) -> str:
        """Where it was run: pair and seeds."""
        return f"{self.pair}/{self.source_seed}/{self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Return what the trial's attributes hold."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CellResult:
        """Read what :meth:`to_json` wrote."""
        return cls(**document)


@dataclass(frozen=True)
class Objective:
    """A selection rule.

    Attributes:
        text: As the file writes it, e.g. ``"label-free:entropy"``.
        kind: ``oracle_test``, ``oracle_train``, ``transfer`` or ``label-free``.
        validator: Of a label-free objective: a validator or ``primary``.
        members: The validators it reads.
        profile: Scoring profile of an objective that needs labels.
    """

    text: str
    kind: str
    validator: str = ""
    members: tuple[str, ...] = ()
    profile: str = "standard"

    @property
    def oracle(self) -> bool:
        """Whether labels of the judged target choose: an upper bound, never a result."""
        return self.kind.startswith("oracle")

    @property
    def label_free(self) -> bool:
        """Whether no target label is read at all."""
        return self.kind == LABEL_FREE

    @property
    def record(self) -> frozenset[str]:
        """What cells must keep for it."""
        needed = {"oracle_train": {"train"}, LABEL_FREE: {"validators"}}
        return frozenset(needed.get(self.kind, ()))

    @property
    def information(self) -> str:
        """What the choice used, for tables."""
        return _INFORMATION[self.kind].format(validator=self.validator)

    def read(self, folder: Path) -> tuple[dict[str, float], bool]:
        """Return the components of a stored cell, and whether the filter rejects it.

        Raises:
            DataError: The objective needs masks that the cell was not scored with.
        """
        if self.kind == LABEL_FREE:
            return _validator_scores(folder, self.members)
        return _dice_scores(folder, self), False

    def value(self, results: Iterable[CellResult]) -> float:
        """Return the mean of the components of a trial's cells: what Optuna stores."""
        values = [float(v) for result in results for v in result.scores.values()]
        if not values or not all(math.isfinite(v) for v in values):
            return -math.inf
        return float(np.mean(values))

    def prefer(self, trials: Sequence[Sequence[CellResult]]) -> list[float]:
        """Return how finished trials compare: higher is better.

        With labels that is the mean Dice. Without, it is the mean rank over validators,
        structures, pairs and seeds, since validators have no common scale; a trial that
        collapsed anywhere comes after every other one.
        """
        if self.kind != LABEL_FREE:
            return [self.value(results) for results in trials]
        ranks = rank_mean([_components(results) for results in trials])
        collapsed = [any(result.collapsed for result in results) for results in trials]
        return [rank - _BELOW * lost for rank, lost in zip(ranks, collapsed, strict=True)]


def parse_objective(where: str, text: str, profile: str) -> Objective:
    """Read an objective.

    Args:
        where: The file, for messages.
        text: ``oracle_test``, ``oracle_train``, ``transfer`` or ``label-free:<validator>``.
        profile: Scoring profile for objectives that need labels.

    Raises:
        UsageError: An unknown objective or validator, or one that needs source images.
    """
    kind, colon, validator = text.partition(":")
    if kind == LABEL_FREE and colon:
        return Objective(text, kind, validator, _members(where, validator), profile)
    if colon or text not in ("oracle_test", "oracle_train", "transfer"):
        known = [*(k for k in KINDS if ":" not in k), LABEL_FREE]
        raise UsageError(
            f"{where}: objective '{text}'{did_you_mean(kind, known)}; known: {', '.join(KINDS)}",
            hint=f'objective = "{LABEL_FREE}:{PRIMARY}"',
        )
    return Objective(text, text, profile=profile)


def _members(where: str, validator: str) -> tuple[str, ...]:
    from sfuda_bench.scoring.validators import PRIMARY as MEMBERS
    from sfuda_bench.scoring.validators import get_validator

    if validator == PRIMARY:
        return tuple(MEMBERS)
    try:
        return (get_validator(validator).name,)
    except UsageError as error:
        raise UsageError(f"{where}: objective: {error.message}", hint=error.hint) from error


def _validator_scores(folder: Path, members: Sequence[str]) -> tuple[dict[str, float], bool]:
    from sfuda_bench.frames import read_parquet
    from sfuda_bench.scoring.validators import COLLAPSED

    frame = read_parquet(folder / "validators.parquet")
    last = frame[frame["epoch"] == frame["epoch"].max()]
    found = {
        f"{row.validator}/{row.structure}": float(row.value)
        for row in last.itertuples()
        if row.validator in members
    }
    missing = set(members) - {name.partition("/")[0] for name in found}
    if missing:
        raise StoreSchemaError(
            f"{folder / 'validators.parquet'}: no values of {', '.join(sorted(missing))}",
            hint=f"delete the folder {folder} and run the same command again",
        )
    collapsed = last.loc[last["validator"] == COLLAPSED, "value"]
    return found, bool((collapsed > 0).any())


def _dice_scores(folder: Path, objective: Objective) -> dict[str, float]:
    from sfuda_bench.frames import read_parquet

    split = "train" if objective.kind == "oracle_train" else "test"
    name = "train" if split == "train" else "cases"
    path = folder / f"{name}-{objective.profile}.parquet"
    if not path.is_file():
        raise DataError(
            f"objective '{objective.text}' needs the masks of the target's {split} images; "
            f"{folder.name} was not scored with them",
            hint=f'objective = "{LABEL_FREE}:{PRIMARY}" needs none',
        )
    if split == "test":
        cases = cell_dice(folder, objective.profile)
    else:
        frame = read_parquet(path)
        cases = frame[frame["selection"] == "last"]
    means = cases.groupby("structure")["dice"].mean()
    return {f"dice/{structure}": float(value) for structure, value in means.items()}


def _components(results: Sequence[CellResult]) -> dict[str, float]:
    return {
        f"{result.place}/{name}": value
        for result in results
        for name, value in result.scores.items()
    }


def rank_mean(candidates: Sequence[Mapping[str, float]]) -> list[float]:
    """Return each candidate's mean rank over components, in (0, 1]; higher is better.

    Args:
        candidates: Component to value, higher is better; a value that is missing, infinite or
            not a number counts as the worst.

    Undefined:
        No candidates give an empty list; no components give 0 for everyone.
    """
    from sfuda_bench.scoring.validators import rank_mean as ranked

    names = sorted({name for candidate in candidates for name in candidate})
    table = [[float(c.get(name, np.nan)) for name in names] for c in candidates]
    # Rounded, so that a tie is a tie in spite of a sum's last bits.
    return [float(value) for value in ranked(table).round(10)] if candidates else []

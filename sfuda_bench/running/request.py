"""What the user asked for, resolved and checked, before anything is planned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.errors import UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.settings import Settings

RECORDS = {
    "epochs": "the test predictions of every epoch, for other selections than the last",
    "validators": "label-free validators on unlabelled target train images",
    "train": "the predictions on target train, scored where it has masks",
    "labels": "the pseudo-labels of each stage, judged where target train has masks",
    "pictures": "what figures of a method need from the networks",
}
"""What a cell can keep besides its result; none of it changes the result."""


HANG_AFTER = 900.0
"""Seconds. Nothing that computes, or waits for another's result, is silent this long."""


@dataclass(frozen=True)
class RunRequest:
    """One ``run`` or ``plan`` command.

    Attributes:
        methods: Registered method names, in table order.
        pairs: Pair selector text, e.g. ``"all"``.
        seeds: Adaptation seeds.
        source_seeds: Seeds of the source models.
        settings: Resolved settings with origins.
        data_root: Folder of domains, or ``None`` for the built-in synthetic ones.
        out: The store.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        jobs: Cells computed at once.
        protocol: Protocol for every method, or ``None`` for each method's default.
        record: What cells keep besides their result, of :data:`RECORDS`.
        profiles: Scoring profiles.
        average_last: k of the selection ``average-last-k``.
        keep_models: Store adapted models.
        plugins: Python files that register further plug-ins.
        source_models: (domain, file or key) of source models that are not trained here.
        checkpoint_every: Seconds between two checkpoints of a long computation.
        timeout: Seconds that a cell or a source model may take, or ``None``.
        hang_after: Seconds without a sign of life after which a process is killed; 0: never.
        on_error: ``"stop"``, ``"continue"`` or ``"retry:N"``.
        gpus: GPUs to use, as ``CUDA_VISIBLE_DEVICES`` names them; instead of ``jobs``.
        per_gpu: Cells computed at once on each of ``gpus``.
    """

    methods: tuple[str, ...]
    pairs: str
    seeds: tuple[int, ...]
    source_seeds: tuple[int, ...]
    settings: Settings
    data_root: Path | None
    out: Path
    device: str = "auto"
    jobs: int = 1
    protocol: str | None = None
    record: frozenset[str] = frozenset()
    profiles: tuple[str, ...] = ("standard", "cpr-2023")
    average_last: int = 5
    keep_models: bool = True
    plugins: tuple[Path, ...] = ()
    source_models: tuple[tuple[str, str], ...] = ()
    checkpoint_every: float = 5.0
    timeout: float | None = None
    hang_after: float = HANG_AFTER
    on_error: str = "continue"
    gpus: tuple[str, ...] = ()
    per_gpu: int = 1

    @property
    def at_once(self) -> int:
        """How many cells are computed at once."""
        return max(1, len(self.gpus) * self.per_gpu or self.jobs)

    @property
    def track(self) -> bool:
        """Whether the predictions of every epoch are kept."""
        return "epochs" in self.record


def recordable(protocol: str) -> frozenset[str]:
    """Return what cells of a protocol can record.

    An ``episodic`` method has one model per batch, hence none to validate or to run on train.
    """
    alone = {"validators", "train"} if protocol == "episodic" else set()
    return frozenset(RECORDS.keys() - alone)


def check_records(names: Iterable[str]) -> frozenset[str]:
    """Return the records of these names.

    Raises:
        UsageError: There is no such record.
    """
    found = frozenset(names)
    for name in sorted(found - RECORDS.keys()):
        raise UsageError(
            f"--record {name}: unknown{did_you_mean(name, list(RECORDS))}; known: "
            f"{', '.join(RECORDS)}",
            hint="sfuda-bench run --record validators",
        )
    return found

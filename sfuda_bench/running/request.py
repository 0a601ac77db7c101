"""What the user asked for, resolved and checked, before anything is planned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.settings import Settings


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
        track: Keep the predictions of every epoch.
        profiles: Scoring profiles.
        average_last: k of the selection ``average-last-k``.
        keep_models: Store adapted models.
        plugins: Python files that register further plug-ins.
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
    track: bool = False
    profiles: tuple[str, ...] = ("standard", "cpr-2023")
    average_last: int = 5
    keep_models: bool = True
    plugins: tuple[Path, ...] = ()

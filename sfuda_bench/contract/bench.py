"""A bench: three toy domains, a network that trains in milliseconds, and a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sfuda_bench.methods import METHODS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.plan import Plan, build_plan, scoring_todo
from sfuda_bench.running.request import RunRequest
from sfuda_bench.running.store import read_json
from sfuda_bench.settings import resolve
from sfuda_bench.tunable import bounds_of

SIZE = 96
SOURCE, TARGET = "toy_a", "toy_b"
SETTINGS = (
    "network.name=tiny",
    f"data.image_size={SIZE}",
    f"data.evaluation_grid={SIZE}",
    "source.epochs=30",
    "source.min_updates=0",
    "source.validate_every=10",
    "source.lr=0.01",
    "source.augment=flip",
)
DOMAINS = {SOURCE: (1.0, (0, 0, 0)), TARGET: (0.7, (30, 10, 40)), "toy_c": (1.1, (-20, 5, 0))}
"""Gain and offset of the colours of each domain."""
SHORT = {"epochs": 2, "head_epochs": 1, "passes": 3, "radius": 2, "batch_size": 4}
"""What larger settings of these names become: few epochs, a neighbourhood for a small grid."""
UNADAPTED = "source_only"
"""The method that changes nothing; inert settings of any other must equal it."""
Array = np.ndarray[Any, Any]


def toy_image(rng: np.random.Generator, gain: float, offset: Sequence[int]) -> tuple[Array, Array]:
    """Draw a bright disc with a brighter cup and two dark vessels; return image and gray mask."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    cy, cx = SIZE / 2 + rng.uniform(-6, 6, 2)
    radius, squeeze = rng.uniform(24, 30), rng.uniform(0.9, 1.1)
    distance = np.hypot((x - cx) * squeeze, y - cy)
    disc, cup = distance < radius, distance < radius * rng.uniform(0.45, 0.6)
    base = np.stack([90 + 60 * disc + 40 * cup, 50 + 50 * disc + 60 * cup, 40 + 30 * disc], -1)
    for phase in rng.uniform(-8, 8, 2):
        vessel = np.abs(x - cx - phase - 6 * np.sin(y / 15 + phase)) < 1.5
        base = np.where(vessel[..., None], 0.6 * base, base)
    noisy = gain * (base + rng.normal(0, 6, base.shape)) + np.asarray(offset)
    mask = np.where(cup, 0, np.where(disc, 128, 255))
    return np.clip(noisy, 0, 255).astype(np.uint8), mask.astype(np.uint8)


def write_domain(root: Path, name: str, counts: tuple[int, int] = (8, 4), seed: int = 0) -> None:
    """Write one of :data:`DOMAINS` in the ROI layout."""
    gain, offset = DOMAINS[name]
    toy_domain(root, name, gain, offset, counts, seed)


def toy_domain(
    root: Path,
    name: str,
    gain: float = 1.0,
    offset: Sequence[int] = (0, 0, 0),
    counts: tuple[int, int] = (8, 4),
    seed: int = 0,
) -> None:
    """Write toy images and masks in the ROI layout.

    Args:
        root: Folder that holds one folder per domain.
        name: Of the domain; its images follow from it.
        gain: Factor of the gray values.
        offset: Added to red, green and blue.
        counts: Number of train and test images.
        seed: For other images of the same name.
    """
    rng = np.random.default_rng([seed, *name.encode()])
    for split, count in zip(("train", "test"), counts, strict=True):
        folders = [root / name / split / "ROIs" / kind for kind in ("image", "mask")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            for array, folder in zip(toy_image(rng, gain, offset), folders, strict=True):
                Image.fromarray(array).save(folder / f"{split}_{number:03d}.png")


@dataclass
class Outcome:
    """What the store holds of one cell."""

    folder: Path
    cell: dict[str, Any]

    @property
    def sha(self) -> str:
        """Digest of the adapted model."""
        return str(self.cell["adapted_model_sha256"])

    @property
    def source_sha(self) -> str:
        """Digest of the source model."""
        return str(self.cell["source_model_sha256"])

    def codes(self) -> dict[str, Array]:
        """Return the stored predictions, (H, W) uint8 by file name."""
        files = sorted((self.folder / "predictions").glob("*.png"))
        return {path.name: np.asarray(Image.open(path)) for path in files}

    def scores(self, profile: str = "standard") -> dict[str, Any]:
        """Return the scores under a profile."""
        return read_json(self.folder / f"scores-{profile}.json")


class Stopped(BaseException):
    """Stands for the death of a process: nothing between it and the top may catch it."""


class Listener:
    """Stands for the pipe of a worker when a job runs in this process.

    Args:
        stop_at: The stage and the epoch whose report ends the job.

    Attributes:
        seen: The stages and epochs that were reported.
    """

    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.seen: list[tuple[str, int]] = []
        self._stop_at = stop_at

    def send(self, message: dict[str, Any]) -> None:
        """Take a message.

        Raises:
            Stopped: It reports the epoch that must not begin.
        """
        if message["kind"] != "progress":
            return
        self.seen.append((message["stage"], message["epoch"]))
        if self.seen[-1] == self._stop_at:
            raise Stopped


@dataclass
class Bench:
    """A data root and a store, with short ways to plan and to compute.

    Attributes:
        data: Folder of domains.
        out: The store.
        base: Settings of every plan.
        short: What larger settings of a method become, by name.
        plugins: Files of further plug-ins.
    """

    data: Path
    out: Path
    base: tuple[str, ...] = SETTINGS
    short: Mapping[str, int] = field(default_factory=lambda: SHORT)
    plugins: tuple[Path, ...] = field(default=())

    def plan(
        self,
        methods: Sequence[str] | str,
        pairs: str = f"{SOURCE}:{TARGET}",
        overrides: Sequence[str] = (),
        **request: Any,
    ) -> Plan:
        """Build a plan; ``request`` takes further fields of the request."""
        names = (methods,) if isinstance(methods, str) else tuple(methods)
        plugins = (*self.plugins, *request.pop("plugins", ()))
        for plugin in plugins:
            load_plugin_file(plugin)
        overrides = [*short_settings(names, self.short), *self.base, *overrides]
        settings = resolve("small", overrides=overrides, methods=names)
        defaults: dict[str, Any] = {"seeds": (0,), "source_seeds": (0,), "device": "cpu"}
        return build_plan(
            RunRequest(
                methods=names,
                pairs=pairs,
                settings=settings,
                data_root=self.data,
                out=self.out,
                plugins=plugins,
                **{**defaults, **request},
            )
        )

    def compute(self, plan: Plan) -> dict[str, str]:
        """Compute sources, cells and scores in this process; return the status of each cell."""
        runner, pipe = JobRunner(self.out, "cpu"), Listener()

        def run(job: Any) -> str:
            return runner.compute(dict(job), pipe)

        for source in plan.sources:
            if not source.done and not source.blocked:
                run(source.job)
        statuses = {}
        for cell in plan.cells:
            statuses[cell.method] = run(cell.job)
            for job in scoring_todo(cell):
                run(job)
        return statuses

    def interrupt(self, job: Mapping[str, Any], stage: str, epoch: int) -> bool:
        """Compute a job in this process, and stop it as a stage begins an epoch.

        Returns:
            Whether it got so far; otherwise it is finished.
        """
        try:
            JobRunner(self.out, "cpu").compute(dict(job), Listener(stop_at=(stage, epoch)))
        except Stopped:
            return True
        return False

    def run(self, method: str, *args: Any, **kwargs: Any) -> Outcome:
        """Plan and compute one cell."""
        plan = self.plan(method, *args, **kwargs)
        self.compute(plan)
        return self.outcome(plan)

    def outcome(self, plan: Plan, position: int = 0) -> Outcome:
        """Read one committed cell of a plan."""
        folder = plan.cells[position].folder
        return Outcome(folder, read_json(folder / "cell.json"))

    def artefacts(self, function: str) -> set[str]:
        """Return the short keys of the stored artefacts of a frozen function."""
        return {path.parent.name for path in self.out.glob(f"artefacts/{function}/*/meta.json")}

    def images(self, domain: str, split: str, kind: str = "image") -> list[Path]:
        """Return the files of a split."""
        return sorted((self.data / domain / split / "ROIs" / kind).glob("*.png"))

    def with_out(self, out: Path) -> Bench:
        """Return the same data with another store that holds the trained source models."""
        shutil.copytree(self.out / "sources", out / "sources")
        shutil.copy(self.out / "store.json", out / "store.json")
        return replace(self, out=out)

    def copy_to(self, folder: Path) -> Bench:
        """Copy data and source models into ``folder``."""
        shutil.copytree(self.data, folder / "data")
        (folder / "store").mkdir()
        return replace(self.with_out(folder / "store"), data=folder / "data")


def short_settings(methods: Sequence[str], short: Mapping[str, int]) -> list[str]:
    """Return overrides that shorten whatever method has larger settings of these names."""
    return [
        f"{name}.{setting.name}={short[setting.name]}"
        for name in methods
        for setting in fields(METHODS.get(name).config)
        if setting.name in short
        and isinstance(setting.default, int)
        and setting.default > short[setting.name] >= (bounds_of(setting).low or 0)
    ]


def trained_bench(
    folder: Path,
    domains: Sequence[str] = tuple(DOMAINS),
    prepare: Callable[[Bench], None] = lambda bench: None,
    **fields: Any,
) -> Bench:
    """Write toy domains and train the source model of each.

    Args:
        folder: Where data and store go.
        domains: Which of :data:`DOMAINS`.
        prepare: Called with the bench before it is trained.
        **fields: Further fields of the bench.
    """
    for name in domains:
        write_domain(folder / "data", name)
    bench = Bench(folder / "data", folder / "store", **fields)
    prepare(bench)
    plan = bench.plan(UNADAPTED, pairs="all")
    plan.cells.clear()
    bench.compute(plan)
    return bench

"""A whole pair: CPR with preset ``small``, files to scores, against four plain scripts.

Both start from the same trained source model and the same PNG files and end with scores of the
test split at thresholds 0.5 and 0.75. Ours packs, plans, runs the four stages, predicts, scores
and stores everything that a run stores; both run in this process.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from sfuda_bench.frames import read_parquet
from sfuda_bench.images.packed import read_names
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.plan import CellPlan, build_plan, scoring_todo
from sfuda_bench.running.request import RunRequest
from sfuda_bench.settings import resolve
from tests.benchmarks import world
from tests.benchmarks.harness import Row, Timing, plain_torch
from tests.benchmarks.reference.pipeline import Pair, Recipe, train_plainly

AIM = 3.0
METHOD = "cpr"
PROFILES = {"dice-0.5": "standard", "dice-0.75": "cpr-2023"}


@dataclass(frozen=True)
class Sizes:
    """How much is done."""

    native: int = 800
    size: int = 256
    counts: tuple[int, int] = (16, 16)  # as even as Drishti-GS's 50 and 51
    updates: int = 80
    batch: int = 8  # of both trainings: the process has its full size before time is taken
    passes: int = 20
    head_epochs: int = 4
    epochs: int = 4
    radius: int = 4
    allowed: float = 0.1


SMALL = Sizes(64, 64, (4, 2), updates=2, passes=2, head_epochs=1, epochs=1, radius=2, allowed=1.0)


class Pipe:
    """Stands for a worker's pipe."""

    def send(self, message: Any) -> None:
        """Forget a message."""


class Ours:
    """One cell, planned and computed as a run does, in a store of its own."""

    def __init__(self, root: Path, model: Path, network: str, sizes: Sizes) -> None:
        self.root, self.model, self.network, self.sizes = root, model, network, sizes

    def __call__(self, out: Path) -> CellPlan:
        plan = build_plan(self._request(out))
        (cell,) = plan.cells
        runner, pipe = JobRunner(out, "cpu"), cast(Any, Pipe())
        runner.compute(dict(cell.job), pipe)
        for job in scoring_todo(cell):
            runner.compute(dict(job), pipe)
        return cell

    def _request(self, out: Path) -> RunRequest:
        sizes = self.sizes
        overrides = [
            f"network.name={self.network}",
            f"data.image_size={sizes.size}",
            f"data.evaluation_grid={2 * sizes.size}",
            f"{METHOD}.passes={sizes.passes}",
            f"{METHOD}.head_epochs={sizes.head_epochs}",
            f"{METHOD}.epochs={sizes.epochs}",
            f"{METHOD}.radius={sizes.radius}",
        ]
        return RunRequest(
            methods=(METHOD,),
            pairs=f"{world.SOURCE}:{world.TARGET}",
            seeds=(0,),
            source_seeds=(0,),
            settings=resolve("small", overrides=overrides, methods=(METHOD,)),
            data_root=self.root,
            out=out,
            device="cpu",
            source_models=((world.SOURCE, str(self.model)),),
        )


def dice_of(cell: CellPlan) -> dict[str, list[float]]:
    """Return the mean Dice of cup and disc at each threshold."""
    found = {}
    for name, profile in PROFILES.items():
        cases = read_parquet(cell.folder / f"cases-{profile}.parquet")
        mean = cases.groupby("structure")["dice"].mean()
        found[name] = [float(mean["cup"]), float(mean["disc"])]
    return found


def share_of_moved_labels(cell: CellPlan, folder: Path) -> float:
    """Return the share of pixels whose refined label differs between the two ways."""
    (stored,) = (folder / "store").glob("artefacts/refined_labels/*/tensors.safetensors")
    prob = load_file(stored)["prob"].numpy()
    images = cell.job["images"]["train"]
    names = read_names(folder / "store" / "packed", Path(images["images"]).stem)
    theirs = np.load(folder / "stages" / "refined_label.npz")
    plain = np.stack([theirs[names[opaque]] for opaque in images["ids"]])
    return float(((prob > cell.job["cell"]["config"]["threshold"]) != (plain > 0.5)).mean())


def _recipe(config: Any, sizes: Sizes) -> Recipe:
    """Return the reference's settings, taken from the resolved ones."""
    return Recipe(
        size=sizes.size,
        grid=2 * sizes.size,
        passes=config.passes,
        quantile=config.uncertainty_quantile,
        eta=config.uncertainty_threshold,
        threshold=config.threshold,
        mc_batch=config.mc_batch,
        head_epochs=config.head_epochs,
        epochs=config.epochs,
        batch=config.batch_size,
        head_lr=config.head_lr,
        lr=config.lr,
        radius=config.radius,
        beta=config.beta,
        logt=round(np.log2(config.iterations)),
        low=config.low,
        high=config.high,
    )


def _row(name: str, folder: Path, sizes: Sizes) -> Row:
    root = world.domains(folder / "data", sizes.native, sizes.counts)
    source = train_plainly(
        world.network_of(name), root / world.SOURCE, sizes.size, sizes.updates, sizes.batch
    )
    save_file(
        {k: v.contiguous() for k, v in source.state_dict().items()}, folder / "source.safetensors"
    )
    ours = Ours(root, folder / "source.safetensors", name, sizes)
    started = time.perf_counter()
    cell = ours(folder / "store")
    middle = time.perf_counter()
    settings = ours._request(folder / "store").settings
    pair = Pair(
        copy.deepcopy(source),
        root / world.TARGET,
        folder / "stages",
        _recipe(settings.methods[METHOD], sizes),
    )
    with plain_torch():
        theirs = pair.run()
    ended = time.perf_counter()
    mine = dice_of(cell)
    difference = max(
        abs(a - b) for key in PROFILES for a, b in zip(mine[key], theirs[key], strict=True)
    )
    moved = share_of_moved_labels(cell, folder)
    both = ", ".join(
        f"{which} {'/'.join(f'{value:.3f}' for value in scores['dice-0.5'])}"
        for which, scores in (("reference", theirs), ("ours", mine))
    )
    return Timing((ended - middle,), (middle - started,)).row(
        f"a whole pair ({METHOD}, {name})",
        aim=AIM,
        difference=max(difference, moved),
        allowed=sizes.allowed,
        note=f"{sizes.counts[0]}+{sizes.counts[1]} images of {sizes.native} px "
        f"at {sizes.size} px, T={sizes.passes}, "
        f"{sizes.head_epochs}+{sizes.epochs} epochs; {moved:.2%} of the refined labels "
        f"differ; mean Dice, "
        f"cup/disc at 0.5: {both}",
    )


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        return [_row("deeplabv3plus", Path(folder), Sizes() if full else SMALL)]

"""A study of 24 trials of CPR in one store, against 24 runs that share nothing but images.

Trials that differ in late settings share the stages before them: labels are made once, a head is
trained once per radius. Adapted models must have the same bytes either way. The network is the
smallest that has all stages, so what is compared is the harness.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.plan import build_plan, scoring_todo
from sfuda_bench.running.request import RunRequest
from sfuda_bench.running.store import read_json
from sfuda_bench.search.cells import requests_for
from sfuda_bench.settings import resolve
from tests.benchmarks import world
from tests.benchmarks.bench_pair import Pipe
from tests.benchmarks.harness import Row, Timing, seconds

TINY = Path(__file__).parents[1] / "plugins" / "tiny.py"
METHOD = "cpr"
STAGES = 3
SPACE: dict[str, tuple[Any, ...]] = {
    "radius": (2, 3),
    "beta": (1.0, 2.0),
    "threshold": (0.5, 0.6, 0.7),
    "high": (0.85, 0.95),
}


def points(count: int) -> list[dict[str, Any]]:
    """Return the first points of the grid over the space."""
    grid = itertools.product(*SPACE.values())
    return [dict(zip(SPACE, values, strict=True)) for values in itertools.islice(grid, count)]


def base_request(root: Path, model: Path, size: int, passes: int) -> RunRequest:
    """Return the request that every trial overrides."""
    values = {
        "network.name": "tiny",
        "data.image_size": size,
        "data.evaluation_grid": size,
        f"{METHOD}.passes": passes,
        f"{METHOD}.head_epochs": 4,
        f"{METHOD}.epochs": 2,
        f"{METHOD}.radius": 2,
    }
    overrides = [f"{name}={value}" for name, value in values.items()]
    return RunRequest(
        methods=(METHOD,),
        pairs=f"{world.SOURCE}:{world.TARGET}",
        seeds=(0,),
        source_seeds=(0,),
        settings=resolve("small", overrides=overrides, methods=(METHOD,)),
        data_root=root,
        out=Path(),
        device="cpu",
        profiles=("standard",),
        keep_models=False,
        plugins=(TINY,),
        source_models=((world.SOURCE, str(model)),),
    )


@dataclasses.dataclass
class Runs:
    """Computes trials and remembers what each cell did."""

    base: RunRequest
    bytes: list[str] = dataclasses.field(default_factory=list)
    stages: int = 0

    def trial(self, out: Path, point: Mapping[str, Any]) -> None:
        """Compute and score the cell of one trial in a store."""
        request = requests_for(dataclasses.replace(self.base, out=out), {METHOD: point})
        plan = build_plan(request)
        runner, pipe = JobRunner(out, "cpu"), cast(Any, Pipe())
        for cell in plan.cells:
            if cell.state == "todo":
                runner.compute(dict(cell.job), pipe)
            for job in scoring_todo(cell):
                runner.compute(dict(job), pipe)
            self.bytes.append(read_json(cell.folder / "cell.json")["adapted_model_sha256"])
            self.stages += len(read_json(cell.folder / "run.json")["artefacts_computed"])


def _compare(folder: Path, size: int, images: int, count: int, passes: int) -> Iterator[Row]:
    load_plugin_file(TINY)
    root = world.domains(folder / "data", size, (images, 2))
    torch.manual_seed(0)
    model = folder / "source.safetensors"
    save_file(NETWORKS.get("tiny").build("mobilenet_v2", None).state_dict(), model)
    base = base_request(root, model, size, passes)
    study, alone = Runs(base), Runs(base)
    times = []
    for number, point in enumerate(points(count)):
        before = seconds(lambda: alone.trial(folder / f"alone{number}", point))  # noqa: B023  # called at once
        times.append((before, seconds(lambda: study.trial(folder / "study", point))))  # noqa: B023
    apart = sum(a != b for a, b in zip(study.bytes, alone.bytes, strict=True))
    note = f"{images} x {size} px, T={passes}; difference: models with other bytes"
    whole = Timing((sum(a for a, _ in times),), (sum(b for _, b in times),))
    yield whole.row(f"{count} trials", difference=float(apart), allowed=0.0, note=note)
    yield Row(
        f"{count} trials, stages run",
        alone.stages,
        study.stages,
        alone.stages / study.stages,
        unit="stages",
        note="of three per trial: initial labels, similarity head, refined labels",
    )


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        if full:
            return [*_compare(Path(folder), 128, 16, 24, 20)]
        return [*_compare(Path(folder), 64, 4, 3, 2)]

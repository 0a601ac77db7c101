"""Many small cells: two workers against one, and what the harness adds to a cell in a warm worker.

The network is the smallest that has all stages and the methods train nothing, so nearly all of the
time is the harness. Workers are warm: they have computed the same cells before. A cell's own work
is the method's call and the prediction, with network, images and task already in memory.
"""

from __future__ import annotations

import cProfile
import pstats
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, cast
from unittest.mock import patch

import torch
from safetensors.torch import save_file

from sfuda_bench.methods import METHODS
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.running import engine
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.keys import model_sha256
from sfuda_bench.running.plan import CellPlan, Plan, build_plan, scoring_todo
from sfuda_bench.running.pool import WorkerPool
from sfuda_bench.running.predict import predict
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.request import RunRequest
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import read_json
from sfuda_bench.settings import Inference, NetworkSettings, resolve
from sfuda_bench.tunable import build_config
from tests.benchmarks import world
from tests.benchmarks.bench_pair import Pipe
from tests.benchmarks.harness import Row, Timing, interleaved

METHOD_NAMES = ("source_only", "bn_adapt")
ALLOWED_S = 0.05
"""What the harness may add to a cell."""
PARTS = {
    "predictions (PNG)": "write_predictions",
    "commit (fsync, rename)": "commit",
    "source model read": "load_source_model",
    "task (copies, images)": "make_task",
    "machine's record": "environment",
    "model written": "save_file",
    "curve (parquet)": "_write_curve",
}
"""Functions that a cell spends its time in, none of which calls another one of them."""


@dataclass(frozen=True)
class Sizes:
    """How much is computed: seeds per method, images, side, repetitions; by which network."""

    seeds: int = 20
    images: int = 8
    size: int = 96
    repeats: int = 3
    network: str = "tiny"


SMALL = Sizes(seeds=2, images=4, size=64, repeats=1)
LARGER = Sizes(seeds=4, network="deeplabv3plus")


class Silence:
    """Stands for the progress of a run; a failure is an error of the benchmark."""

    def start(self, cells: object) -> None:
        """Ignore what is to come."""

    def update(self, id: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        """Ignore a stage."""

    def done(self, id: str, seconds: float, reused: bool = False) -> None:
        """Ignore an end."""

    def failed(self, id: str, message: str) -> None:
        """Stop."""
        raise RuntimeError(f"{id}: {message}")

    def note(self, text: str) -> None:
        """Ignore a line."""


class Cells:
    """The same cells again and again, in one store."""

    def __init__(self, folder: Path, sizes: Sizes) -> None:
        folder.mkdir()
        self.out = folder / "store"
        root = world.domains(folder / "data", sizes.size, (sizes.images, sizes.images))
        model = folder / "source.safetensors"
        torch.manual_seed(0)
        save_file(NETWORKS.get(sizes.network).build("mobilenet_v2", None).state_dict(), model)
        overrides = [
            f"network.name={sizes.network}",
            f"data.image_size={sizes.size}",
            f"data.evaluation_grid={sizes.size}",
        ]
        self.request = RunRequest(
            methods=METHOD_NAMES,
            pairs=f"{world.SOURCE}:{world.TARGET}",
            seeds=tuple(range(sizes.seeds)),
            source_seeds=(0,),
            settings=resolve("small", overrides=overrides, methods=METHOD_NAMES),
            data_root=root,
            out=self.out,
            device="cpu",
            profiles=("standard",),
            source_models=((world.SOURCE, str(model)),),
        )

    def plan(self, jobs: int = 1) -> Plan:
        """Plan all of them anew: nothing is stored but the source model."""
        for folder in self.out.glob("cells/*"):  # workers must find the folder itself
            shutil.rmtree(folder)
        return build_plan(RunRequest(**{**vars(self.request), "jobs": jobs}))

    def run(self, jobs: int, pool: WorkerPool) -> None:
        """Compute and score all of them with some workers, one thread each."""
        with patch.object(engine, "_cores", return_value=jobs):
            engine.execute(self.plan(jobs), Silence(), pool, remember=False)

    def bytes(self) -> list[str]:
        """Return the digests of the stored models."""
        found = sorted(self.out.glob("cells/*/*/*/cell.json"))
        return [read_json(path)["adapted_model_sha256"] for path in found]


def _workers(cells: Cells, sizes: Sizes) -> Row:
    """Compare one warm worker with two."""
    seen: dict[int, list[str]] = {}
    with WorkerPool() as one, WorkerPool() as two:

        def run(jobs: int, pool: WorkerPool) -> Callable[[], None]:
            def timed() -> None:
                cells.run(jobs, pool)
                seen[jobs] = cells.bytes()

            return timed

        timing = interleaved(run(1, one), run(2, two), sizes.repeats)
    count = len(METHOD_NAMES) * sizes.seeds
    rates = [60 * count / statistics.median(times) for times in (timing.reference, timing.ours)]
    apart = sum(a != b for a, b in zip(seen[1], seen[2], strict=True))
    return timing.row(
        f"{count} cells: 1 worker / 2 workers",
        difference=float(apart),
        allowed=0.0,
        note=f"{rates[0]:.0f} / {rates[1]:.0f} cells per minute, computed and scored; "
        f"{sizes.images}+{sizes.images} images of {sizes.size} px; difference: models with other "
        "bytes",
    )


# -- one cell -------------------------------------------------------------------------------------


class Bare:
    """A cell's own work, everything that it needs being in memory."""

    def __init__(self, cell: CellPlan, runner: JobRunner) -> None:
        job = self.job = cell.job
        self.spec = METHODS.get(cell.method)
        network = NetworkSettings(**job["network"])
        source = load_source_model(Path(job["source_dir"]), network, world.CPU)
        self.test = ImageSet.load(job["images"]["test"], world.CPU)
        train = ImageSet.load(job["images"]["train"], world.CPU)
        self.config = build_config(self.spec.config, job["cell"]["config"], owner=cell.method)
        self.task = make_task(
            job, self.spec, source, train, runner.store, world.CPU, lambda *_: None
        )

    def __call__(self) -> str:
        """Adapt and predict; return the digest of the model."""
        adapt = self.spec.adapt
        if adapt is None:
            raise TypeError(f"{self.spec.name} has no offline form")
        model = adapt(self.task, self.config).eval()
        predict(model, self.test.images, Inference(**self.job["inference"]), self.job["precision"])
        return model_sha256(model.state_dict())


def _overhead(cells: Cells, sizes: Sizes, aim: float | None) -> Row:
    """Measure every cell in this process, as a warm worker computes it, after its own work."""
    plan, profile = cells.plan(), cProfile.Profile()
    runner, pipe = JobRunner(cells.out, "cpu"), cast(Any, Pipe())
    first, *others = plan.cells
    runner.compute(dict(first.job), pipe)
    own, whole, busy, scoring, apart = [], [], [], [], 0
    for number, cell in enumerate(others):
        bare = Bare(cell, runner)
        started = perf_counter()
        sha = bare()
        own.append(perf_counter() - started)
        started, began = perf_counter(), process_time()
        runner.compute(dict(cell.job), pipe)
        whole.append(perf_counter() - started)
        busy.append(process_time() - began)
        apart += sha != read_json(cell.folder / "cell.json")["adapted_model_sha256"]
        for job in scoring_todo(cell):
            started = perf_counter()
            runner.compute(dict(job), pipe)
            scoring.append(perf_counter() - started)
        if number % 2:  # the other half again, watched
            shutil.rmtree(cell.folder)
            profile.runcall(runner.compute, dict(cell.job), pipe)
    added = tuple(max(w - o, 1e-9) for w, o in zip(whole, own, strict=True))
    return Timing((ALLOWED_S,) * len(added), added).row(
        f"harness per cell in a warm worker ({sizes.network})",
        aim=aim,
        difference=float(apart),
        allowed=0.0,
        note=f"reference: what is allowed; a cell takes {_ms(whole)} ({_ms(busy)} of CPU time), of "
        f"which {_ms(own)} is the method and the prediction; scoring, a job of its own, "
        f"{_ms(scoring)} per profile; of a cell watched by cProfile: {_parts(profile)}; "
        "difference: models with other bytes",
    )


def _ms(seconds: list[float]) -> str:
    return f"{1000 * statistics.median(seconds):.1f} ms"


def _parts(profile: cProfile.Profile) -> str:
    """Return the shares of a watched cell, largest first."""
    found: dict[str, float] = {}
    stats = cast(Any, pstats.Stats(profile)).stats
    for (file, _, name), (_, _, _, cumulative, _) in stats.items():
        if "sfuda_bench" in file or "safetensors" in file:
            found[name] = found.get(name, 0.0) + cumulative
    shares = {part: found.get(name, 0.0) / found["compute"] for part, name in PARTS.items()}
    ordered = sorted(shares.items(), key=lambda one: -one[1])
    return ", ".join(f"{part} {share:.0%}" for part, share in ordered)


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    sizes = Sizes() if full else SMALL
    with tempfile.TemporaryDirectory() as folder:
        small = Cells(Path(folder) / "small", sizes)
        found = [_overhead(small, sizes, aim=1.0), _workers(small, sizes)]
        if full:
            larger = Cells(Path(folder) / "larger", LARGER)
            found.insert(1, _overhead(larger, LARGER, aim=None))
        return found

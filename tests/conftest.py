"""Three toy domains, a network that trains in milliseconds, and runs inside the test process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.methods import METHODS

PLUGINS = Path(__file__).parent / "plugins"
TINY = PLUGINS / "tiny.py"
SIZE = 96
SMALL = (
    "network.name=tiny",
    f"data.image_size={SIZE}",
    f"data.evaluation_grid={SIZE}",
    "source.epochs=30",
    "source.min_updates=0",
    "source.validate_every=10",
    "source.lr=0.01",
    "source.augment=flip",
    "entropy_min.batch_size=4",
    "dpl.passes=3",
    "dpl.epochs=1",
    "cpr.passes=3",
    "cpr.radius=2",
    "cpr.head_epochs=1",
    "cpr.epochs=1",
)
DOMAINS = {"toy_a": (1.0, (0, 0, 0)), "toy_b": (0.7, (30, 10, 40)), "toy_c": (1.1, (-20, 5, 0))}


def toy_image(rng: np.random.Generator, gain: float, offset: Sequence[int]) -> tuple[Any, Any]:
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
    """Write one toy domain in the ROI layout."""
    gain, offset = DOMAINS[name]
    rng = np.random.default_rng([seed, *name.encode()])
    for split, count in zip(("train", "test"), counts, strict=True):
        folders = [root / name / split / "ROIs" / kind for kind in ("image", "mask")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            for array, folder in zip(toy_image(rng, gain, offset), folders, strict=True):
                Image.fromarray(array).save(folder / f"{split}_{number:03d}.png")


class Silence:
    """Stands for a worker's pipe and for a progress display; remembers what failed."""

    def __init__(self) -> None:
        self.failures: dict[str, str] = {}
        self.computed: list[str] = []

    def send(self, message: Any) -> None: ...

    def start(self, cells: Any) -> None: ...

    def update(self, id: str, stage: str, epoch: int = 0, epochs: int = 0) -> None: ...

    def done(self, id: str, seconds: float, reused: bool = False) -> None:
        if not reused:
            self.computed.append(id)

    def failed(self, id: str, message: str) -> None:
        self.failures[id] = message

    def note(self, text: str) -> None: ...


def _few_epochs(methods: Sequence[str]) -> list[str]:
    """Return overrides that shorten whatever method has a setting called ``epochs``."""
    return [
        f"{name}.epochs=2"
        for name in methods
        for setting in fields(METHODS.get(name).config)
        if setting.name == "epochs" and isinstance(setting.default, int) and setting.default > 2
    ]


@dataclass
class Outcome:
    """What the store holds of one cell."""

    folder: Path
    cell: dict[str, Any]

    @property
    def sha(self) -> str:
        return str(self.cell["adapted_model_sha256"])

    @property
    def source_sha(self) -> str:
        return str(self.cell["source_model_sha256"])

    def codes(self) -> dict[str, Any]:
        files = sorted((self.folder / "predictions").glob("*.png"))
        return {path.name: np.asarray(Image.open(path)) for path in files}

    def scores(self, profile: str = "standard") -> dict[str, Any]:
        from sfuda_bench.running.store import read_json

        return read_json(self.folder / f"scores-{profile}.json")


@dataclass
class Bench:
    """A data root and a store, with short ways to plan and to compute."""

    data: Path
    out: Path
    base: tuple[str, ...] = field(default=SMALL)

    def plan(
        self,
        methods: Sequence[str] | str,
        pairs: str = "toy_a:toy_b",
        overrides: Sequence[str] = (),
        **request: Any,
    ) -> Any:
        """Build a plan; ``request`` takes further fields of the request."""
        from sfuda_bench.registry import load_plugin_file
        from sfuda_bench.running.plan import build_plan
        from sfuda_bench.running.request import RunRequest
        from sfuda_bench.settings import resolve

        names = (methods,) if isinstance(methods, str) else tuple(methods)
        plugins = (TINY, *request.pop("plugins", ()))
        for plugin in plugins:
            load_plugin_file(plugin)
        overrides = [*_few_epochs(names), *self.base, *overrides]
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

    def compute(self, plan: Any) -> dict[str, str]:
        """Compute sources, cells and scores in this process; return the status of each cell."""
        from sfuda_bench.running.jobs import JobRunner
        from sfuda_bench.running.plan import scoring_todo

        runner, pipe = JobRunner(self.out, "cpu"), Silence()
        for source in plan.sources:
            if not source.done and not source.blocked:
                runner.compute(dict(source.job), pipe)  # type: ignore[arg-type]  # only send is used
        statuses = {}
        for cell in plan.cells:
            statuses[cell.method] = runner.compute(dict(cell.job), pipe)  # type: ignore[arg-type]  # only send is used
            for job in scoring_todo(cell):
                runner.compute(dict(job), pipe)  # type: ignore[arg-type]  # only send is used
        return statuses

    def run(self, method: str, *args: Any, **kwargs: Any) -> Outcome:
        """Plan and compute one cell."""
        plan = self.plan(method, *args, **kwargs)
        self.compute(plan)
        return self.outcome(plan)

    def outcome(self, plan: Any, position: int = 0) -> Outcome:
        """Read one committed cell of a plan."""
        from sfuda_bench.running.store import read_json

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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a bench with trained source models of every toy domain; tests must not change it."""
    root = tmp_path_factory.mktemp("trained")
    for name in DOMAINS:
        write_domain(root / "data", name)
    bench = Bench(root / "data", root / "store")
    plan = bench.plan("source_only", pairs="all")
    plan.cells.clear()
    bench.compute(plan)
    return bench


@pytest.fixture
def bench(trained: Bench, tmp_path: Path) -> Bench:
    """Return a private copy: data, and a store that holds the source models only."""
    return copy_of(trained, tmp_path)


def copy_of(trained: Bench, folder: Path) -> Bench:
    """Copy data and source models into ``folder``."""
    shutil.copytree(trained.data, folder / "data")
    (folder / "store").mkdir()
    return replace(trained.with_out(folder / "store"), data=folder / "data")


@pytest.fixture(scope="session")
def copy_bench() -> Any:
    """Return the function behind ``bench``, for fixtures of a wider scope."""
    return copy_of


@pytest.fixture
def progress() -> Silence:
    """Return a progress display that only remembers."""
    return Silence()


@pytest.fixture(scope="session")
def plugin_folder() -> Path:
    """Return the folder of the test plug-ins."""
    return PLUGINS


@pytest.fixture(scope="module")
def extra_methods() -> Iterator[None]:
    """Forget the methods that a test module registers once it is done."""
    METHODS.load()
    before = {name: dict(getattr(METHODS, name)) for name in ("_values", "_origins", "_aliases")}
    yield
    import sys

    for name, values in before.items():
        table = getattr(METHODS, name)
        table.clear()
        table.update(values)
    for module in [m for m in sys.modules if m.startswith("sfuda_bench_plugin_")]:
        if module != f"sfuda_bench_plugin_{TINY.stem}":
            del sys.modules[module]

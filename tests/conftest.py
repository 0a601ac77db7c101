"""The toy bench of the contract, with short settings for the built-in methods."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from sfuda_bench.contract.bench import SETTINGS, Bench, trained_bench
from sfuda_bench.methods import METHODS

# The same cases everywhere, however slow the machine is, and nothing left in the checkout.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("same")
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "sfuda-bench-hypothesis")

PLUGINS = Path(__file__).parent / "plugins"
TINY = PLUGINS / "tiny.py"
SMALL = (
    *SETTINGS,
    "entropy_min.batch_size=4",
    "dpl.passes=3",
    "dpl.epochs=1",
    "cpr.passes=3",
    "cpr.radius=2",
    "cpr.head_epochs=1",
    "cpr.epochs=1",
)


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return a bench with trained source models of every toy domain; tests must not change it."""
    return trained_bench(
        tmp_path_factory.mktemp("trained"), base=SMALL, short={"epochs": 2}, plugins=(TINY,)
    )


@pytest.fixture
def bench(trained: Bench, tmp_path: Path) -> Bench:
    """Return a private copy: data, and a store that holds the source models only."""
    return trained.copy_to(tmp_path)


@pytest.fixture(scope="session")
def copy_bench() -> Any:
    """Return the function behind ``bench``, for fixtures of a wider scope."""
    return Bench.copy_to


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

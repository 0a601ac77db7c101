"""A study whose cells are a formula: run it as a process that can be killed.

python stub_study.py FOLDER SAMPLER TRIALS SECONDS [--storage URL]
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfuda_bench.errors import UsageError
from sfuda_bench.search.objectives import CellResult, Objective
from sfuda_bench.search.spaces import Constraint, Space
from sfuda_bench.search.storage import open_storage
from sfuda_bench.search.study import Budget, Trials
from sfuda_bench.tunable import search_space, tunable

PAIRS = ("a:b", "b:c")


@dataclass(frozen=True, kw_only=True)
class StubConfig:
    """Two ends that must be in order, an integer, a choice, and a knob that does nothing."""

    low: float = tunable(0.4, 0.0, 1.0, symbol="gamma_low")
    high: float = tunable(0.6, 0.0, 1.0)
    steps: int = tunable(4, 1, 64, log=True, symbol="t")
    mode: str = tunable("x", choices=("x", "y"))
    idle: float = tunable(1.0, 0.25, 16.0, log=True)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UsageError("stub.low exceeds stub.high")


OBJECTIVE = Objective("label-free:stub", "label-free", "stub", ("near", "small"))


def stub_space(*constraints: Constraint, **changes: Any) -> Space:
    knobs = {**search_space(StubConfig), **changes}
    return Space("stub", knobs, constraints, StubConfig(), 96)


def evaluate(method: str, point: dict[str, Any], pairs: str) -> list[CellResult]:
    """Return what cells of this point would tell; ``idle`` changes nothing."""
    results = []
    for pair in pairs.split(","):
        near = -abs(point["low"] - 0.3) - abs(point["high"] - 0.7) - len(pair.split(":")[0]) / 9
        small = -float(point["steps"]) if point["mode"] == "x" else -100.0
        told = {name: value for name, value in point.items() if name != "idle"}
        results.append(
            CellResult(
                key=f"{pair}{sorted(told.items())}",
                folder="cells/none",
                method=method,
                pair=pair,
                source_seed=0,
                seed=0,
                adapted=f"{pair}{sorted(told.items())}",
                scores={"near/cup": near, "near/disc": near, "small/cup": small},
                collapsed=point["steps"] > 60,
            )
        )
    return results


def build(
    folder: Path, sampler: str, trials: int, *, prune: bool = False, storage: str | None = None
) -> Trials:
    found = Trials(
        "stub_study",
        stub_space(),
        OBJECTIVE,
        Budget(trials, sampler, seed=7, prune=prune),
        PAIRS,
        folder,
        open_storage(folder, storage),
        shared=storage is not None,
    )
    found.open({"seed": 7})
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("sampler")
    parser.add_argument("trials", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--storage")
    parser.add_argument("--together", type=int, default=1, help="processes that begin at once")
    given = parser.parse_args()

    def slow(method: str, point: dict[str, Any], pairs: str) -> list[CellResult]:
        with (given.folder.parent / "evaluated.txt").open("a") as file:
            file.write(f"{os.getpid()} {sorted(point.items())}\n")
        time.sleep(given.seconds)
        return evaluate(method, point, pairs)

    trials = build(given.folder, given.sampler, given.trials, storage=given.storage)
    ready = given.folder.parent / "ready"
    ready.mkdir(exist_ok=True)
    (ready / str(os.getpid())).touch()
    while len(list(ready.iterdir())) < given.together:
        time.sleep(0.01)
    trials.run(slow, lambda text: None)


if __name__ == "__main__":
    main()

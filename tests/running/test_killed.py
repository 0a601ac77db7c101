"""A run that is killed again and again ends in the store of a run that nobody disturbed.

Real processes: the whole group of the run is killed at random instants. SFUDA_KILLS=200 asks for
more of them than the default.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.running.store_digest import store_contents, store_digest

KILLS = int(os.environ.get("SFUDA_KILLS", "25"))
METHODS = "source_only,bn_adapt,entropy_min,dpl,cpr"
INTERRUPTED = 130
LIMIT = 120  # seconds until something must have happened, however slow the machine is


class Runs:
    """Starts the same command over one data root and any store."""

    def __init__(self, bench: Any, tiny: Path) -> None:
        settings = [*bench.base, "entropy_min.epochs=3", "dpl.epochs=3", "cpr.head_epochs=3"]
        self.arguments = [
            *("--methods", METHODS, "--pairs", "toy_a:toy_b,toy_b:toy_a"),
            *("--data-root", str(bench.data), "--plugin", str(tiny), "--preset", "small"),
            *("--device", "cpu", "--jobs", "1", "--track", "epochs", "--checkpoint-every", "0"),
            *(word for setting in settings for word in ("--set", setting)),
        ]

    def start(self, out: Path) -> subprocess.Popen[bytes]:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "sfuda_bench", "run", *self.arguments, "--out", str(out)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def finish(self, out: Path) -> None:
        process = self.start(out)
        assert process.wait(timeout=2 * LIMIT) == 0, out.with_suffix(".log").read_text()[-3000:]


def _began(out: Path, process: subprocess.Popen[bytes], before: set[Path]) -> None:
    """Wait until this process works on something, or is over."""
    end = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < end:
        if set(out.glob("attempts/*/log.txt")) - before:
            return
        time.sleep(0.01)


def _kill(runs: Runs, out: Path, draw: random.Random, seconds: float) -> bool:
    """Start the run and kill its group at a random instant; False when it ended before."""
    before = set(out.glob("attempts/*/log.txt"))
    process = runs.start(out)
    if draw.random() < 0.8:  # the rest dies at any time, while it starts too
        _began(out, process, before)
    time.sleep(draw.uniform(0, seconds))
    with_mercy = draw.random() < 0.2
    if process.poll() is not None:
        assert process.returncode == 0, out.with_suffix(".log").read_text()[-3000:]
        return False
    os.killpg(process.pid, signal.SIGTERM if with_mercy else signal.SIGKILL)
    code = process.wait(timeout=LIMIT)
    assert code in ((INTERRUPTED, 0, -signal.SIGTERM) if with_mercy else (-signal.SIGKILL,))
    _alone(process.pid)
    return True


def _alone(group: int) -> None:
    """Wait until every process of a group is gone: none may go on computing for nobody."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError(f"processes of group {group} live on")


@pytest.fixture(scope="module")
def undisturbed(
    trained: Any, plugin_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Runs, dict[str, str], str, float]:
    """Return the command, what its store holds, as one digest too, and how long its work took."""
    runs = Runs(trained, plugin_folder / "tiny.py")
    out = tmp_path_factory.mktemp("undisturbed") / "store"
    process = runs.start(out)
    _began(out, process, set())
    started = time.monotonic()
    assert process.wait(timeout=2 * LIMIT) == 0, out.with_suffix(".log").read_text()[-3000:]
    return runs, store_contents(out), store_digest(out), time.monotonic() - started


def test_killed_at_random_instants_the_store_ends_the_same(
    undisturbed: tuple[Runs, dict[str, str], str, float], tmp_path: Path, record_property: Any
) -> None:
    runs, expected, digest, seconds = undisturbed
    draw = random.Random(int(os.environ.get("SFUDA_KILL_SEED", "0")))
    killed, stores = 0, [tmp_path / "store-0"]
    while killed < KILLS:
        if _kill(runs, stores[-1], draw, seconds * 0.7):
            killed += 1
        else:
            stores.append(tmp_path / f"store-{len(stores)}")
    for out in stores:
        runs.finish(out)
        assert store_contents(out) == expected
        assert store_digest(out) == digest
        assert _left_over(out) == []
    record_property("kills", killed)
    record_property("stores", len(stores))


def _left_over(out: Path) -> Sequence[Path]:
    """Return temporary files and attempts that a finished run must not leave."""
    temporary = [path for path in out.rglob(".*.tmp") if path.is_file()]
    return [*temporary, *out.glob("attempts/*/checkpoint"), *out.glob("attempts/*/cell")]

"""A run that is killed again and again ends in the store of a run that nobody disturbed.

Real processes: the whole group of the run, or one of its workers, is killed at random instants.
SFUDA_KILLS=200 asks for more kills than the default, SFUDA_KILL_SEED=1 for other instants.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.running.store_digest import store_contents, store_digest

KILLS = int(os.environ.get("SFUDA_KILLS", "8"))
METHODS = "source_only,entropy_min,cpr"
EPOCHS = ("entropy_min.epochs", "cpr.epochs", "cpr.head_epochs")
INTERRUPTED = 130
LIMIT = 120  # seconds until something must have happened, however slow the machine is


class Runs:
    """Starts the same command over one data root and any store."""

    def __init__(self, bench: Any, tiny: Path) -> None:
        settings = [*bench.base, *(f"{name}=3" for name in EPOCHS)]
        self.arguments = [
            *("--methods", METHODS, "--pairs", "toy_a:toy_b"),
            *("--data-root", str(bench.data), "--plugin", str(tiny), "--preset", "small"),
            *("--device", "cpu", "--jobs", "1", "--record", "epochs", "--checkpoint-every", "0"),
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
    kind = draw.choices(["group", "mercy", "worker"], [0.55, 0.2, 0.25])[0]
    children = _children(process.pid)
    if process.poll() is not None or (kind == "worker" and not children):
        assert process.wait(timeout=2 * LIMIT) == 0, out.with_suffix(".log").read_text()[-3000:]
        return False
    if kind == "worker":  # the run must survive that by itself
        _kill_one(draw.choice(children))
    else:
        os.killpg(process.pid, signal.SIGTERM if kind == "mercy" else signal.SIGKILL)
    code = process.wait(timeout=2 * LIMIT)
    assert code in EXPECTED[kind], out.with_suffix(".log").read_text()[-3000:]
    _gone(children)
    return True


EXPECTED = {
    "group": (-signal.SIGKILL,),
    "mercy": (
        INTERRUPTED,
        0,
        -signal.SIGTERM,
    ),  # at the very end, or before anything could catch it
    "worker": (0,),
}


def _children(pid: int) -> list[int]:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [int(word) for word in words]


def _kill_one(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _gone(pids: Sequence[int]) -> None:
    """Wait until these processes are gone: none may go on computing for nobody."""
    end = time.monotonic() + LIMIT
    while alive := [pid for pid in pids if _lives(pid)]:
        assert time.monotonic() < end, f"processes {alive} live on"
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # a zombie waits for its parent and computes nothing


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


@pytest.mark.timeout(60 + 120 * KILLS)  # a busy machine takes its time; a hang still ends
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

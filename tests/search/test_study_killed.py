"""The real thing, killed: worker processes, cells and trials."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.running.store import read_json

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "plugins" / "tiny.py"
STUDY = """
kind = "search"
question = "which?"
[run]
methods = ["entropy_min"]
pairs = "toy_a:toy_b"
preset = "small"
profiles = ["standard"]
[search]
trials = 14
sampler = "tpe"
objective = "label-free:primary"
[space.entropy_min]
lr = { low = 1e-4, high = 1e-2, log = true }
epochs = { low = 1, high = 4 }
"""


def command(bench: Any, file: Path) -> list[str]:
    words = [sys.executable, "-m", "sfuda_bench", "study", "run", str(file), "--json"]
    words += ["--data-root", str(bench.data), "--out", str(bench.out), "--plugin", str(TINY)]
    for text in bench.base:
        words += ["--set", text]
    return [*words, "--device", "cpu"]


def told(out: Path) -> list[Any]:
    trials = read_json(out / "studies" / "asked" / "trials.json")["trials"]
    return [
        (t["number"], t["state"], t["point"], t["value"], [c["adapted"] for c in t["cells"]])
        for t in trials
    ]


@pytest.mark.slow
def test_a_study_killed_five_times_equals_the_undisturbed_one(
    trained: Any, copy_bench: Any, tmp_path: Path
) -> None:
    """Kill -9 at random moments, in trials, between them, in the middle of a cell."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    file = tmp_path / "asked.toml"
    file.write_text(STUDY)
    benches = []
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
        benches.append(copy_bench(trained, tmp_path / name))
    first, second = benches
    subprocess.run(command(first, file), env=environment, check=True, stdout=subprocess.DEVNULL)
    moments = random.Random(0)
    journal = second.out / "studies" / "asked" / "journal.log"
    for _ in range(5):
        before = journal.stat().st_size if journal.exists() else 0
        process = subprocess.Popen(
            command(second, file), env=environment, stdout=subprocess.DEVNULL
        )
        while process.poll() is None and (not journal.exists() or journal.stat().st_size == before):
            time.sleep(0.05)
        time.sleep(moments.uniform(0.0, 5.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(second, file), env=environment, check=True, stdout=subprocess.DEVNULL)
    assert told(second.out) == told(first.out)
    assert [number for number, *_ in told(first.out)] == list(range(14))

"""Several processes on one store: nothing is computed twice, and the end is that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.running.store import Store, lock_owner, read_json
from sfuda_bench.running.store_check import verify_store
from sfuda_bench.running.store_digest import store_contents

ROOT = Path(__file__).resolve().parents[2]
KEY = "ab" * 32
METHODS = ["source_only", "bn_adapt", "dpl"]
_HOLDER = """
import platform, sys
from pathlib import Path
from sfuda_bench.running.store import Store
platform.node = lambda: sys.argv[3]
with Store(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start another process of this package."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("host", ["this-machine", "another-machine"])
def test_the_lock_of_an_owner_that_is_killed_is_free_within_a_second(
    tmp_path: Path, host: str
) -> None:
    """Two more processes wait for the lock; one of them gets it, as soon as the owner is gone."""
    store = Store.open(tmp_path / "store")
    owner = start(_HOLDER, str(store.root), KEY, host)
    waiting = []
    try:
        assert said(owner) == "held"
        assert lock_owner(store.attempt(KEY) / "lock") == f"{host} process {owner.pid}"
        waiting.append(start(_HOLDER.replace(".lock(sys.argv[2])", ".lock(sys.argv[2], wait=True)"),
                             str(store.root), KEY, "a-third-machine"))  # fmt: skip
        deadline = time.monotonic() + 20
        while not blocked(waiting[0].pid) and time.monotonic() < deadline:
            time.sleep(0.02)
        owner.kill()
        owner.wait()
        killed = time.monotonic()
        assert said(waiting[0]) == "held"
        assert time.monotonic() - killed < 1
        owner_now = lock_owner(store.attempt(KEY) / "lock")
        assert owner_now == f"a-third-machine process {waiting[0].pid}"
    finally:
        for process in (owner, *waiting):
            process.kill()
            process.communicate()


def blocked(pid: int) -> bool:
    """Whether a process waits for a lock, as far as the system tells."""
    locks = Path("/proc/locks")
    if not locks.is_file():
        return True
    return any("->" in line and f" {pid} " in line for line in locks.read_text().splitlines())


_WORKERS = """
import json, os, platform, sys, time
from pathlib import Path
import torch
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running import store as stores
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.runtime import configure

about = json.loads(sys.argv[1])
configure(1)
METHODS.load()
load_plugin_file(Path(about["plugin"]))


class Pipe:
    def send(self, message):
        pass


def trace(*words):
    with open(about["trace"], "a") as stream:
        stream.write(" ".join(words) + "\\n")


def work(number):
    platform.node = lambda: f"machine-{number}"
    commit = stores.Store.commit
    stores.Store.commit = lambda self, staged, final: (
        trace("commit", str(final.relative_to(self.root))), commit(self, staged, final))
    runner = JobRunner(Path(about["out"]), "cpu")
    todo = [json.loads(json.dumps(job)) for job in about["jobs"]]
    while todo:
        later = []
        for job in todo:
            ready = not job["kind"].startswith("score") or (
                Path(job["cell_dir"]) / "cell.json").is_file()
            status = runner.compute(job, Pipe()) if ready else "busy"
            trace(status, job["kind"], job["key"], str(number))
            if status == "busy":
                later.append(job)
        time.sleep(0.01)
        todo = later


children = []
for number in range(3):
    child = os.fork()
    if child == 0:
        try:
            work(number)
        except BaseException as error:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(codes, key=abs))
"""


def jobs_of(plan: Any) -> list[dict[str, Any]]:
    """Return the jobs of a plan in the order of what depends on what."""
    jobs = [dict(source.job) for source in plan.sources if not source.done]
    jobs += [dict(cell.job) for cell in plan.cells]
    return jobs + [dict(job) for cell in plan.cells for job in cell.scoring]


def test_three_machines_compute_nothing_twice_and_end_in_the_digest_of_one(
    trained: Any, copy_bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    """Three processes under three host names work through the same jobs, scoring included."""
    alone = copy_bench(trained, tmp_path / "alone")
    plan = alone.plan(METHODS)
    alone.compute(plan)
    shared = copy_bench(trained, tmp_path / "shared")
    jobs = jobs_of(shared.plan(METHODS))
    about = {
        "out": str(shared.out),
        "trace": str(tmp_path / "trace.txt"),
        "plugin": str(plugin_folder / "tiny.py"),
        "jobs": jobs,
    }
    done = subprocess.run(
        [sys.executable, "-c", _WORKERS, json.dumps(about)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in (tmp_path / "trace.txt").read_text().splitlines()]
    commits = Counter(words[1] for words in lines if words[0] == "commit")
    assert set(commits.values()) == {1}, commits
    computed = Counter(words[2] for words in lines if words[0] == "computed")
    assert computed == Counter({job["key"]: 1 for job in jobs})
    reused = Counter(words[2] for words in lines if words[0] == "reused")
    assert reused == Counter({job["key"]: 2 for job in jobs})
    assert store_contents(shared.out) == store_contents(alone.out)
    assert not verify_store(shared.out).mismatches
    assert not list(shared.out.glob("attempts/*"))


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_three_commands_started_together_end_in_the_digest_of_one(
    bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    """The real command, three times at once, from nothing: sources, cells, artefacts, scores."""
    flags = ["--plugin", str(plugin_folder / "tiny.py"), "--data-root", str(bench.data)]
    flags += ["--preset", "small", "--device", "cpu", "--pairs", "toy_a:toy_b", "--json"]
    flags += [part for text in bench.base for part in ("--set", text)]
    flags += ["--methods", ",".join(METHODS)]

    def command(out: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sfuda_bench", "run", *flags, "--out", str(out)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    alone = command(tmp_path / "alone")
    assert alone.wait(120) == 0, alone.communicate()
    together = [command(tmp_path / "shared") for _ in range(3)]
    outputs = [process.communicate(timeout=200) for process in together]
    assert [process.returncode for process in together] == [0, 0, 0], outputs
    summaries = [json.loads(output) for output, _ in outputs]
    assert sum(summary["computed"] for summary in summaries) == len(METHODS)
    assert sum(summary["reused"] for summary in summaries) == 2 * len(METHODS)
    assert store_contents(tmp_path / "shared") == store_contents(tmp_path / "alone")
    runs = {read_json(path)["run"] for path in (tmp_path / "shared").glob("cells/*/*/*/run.json")}
    known = {path.stem for path in (tmp_path / "shared" / "runs").glob("*.json")}
    assert runs <= known and len(known) == 3
    for path in (tmp_path / "shared").glob("cells/*/*/*/run.json"):
        assert read_json(path)["determinism"]["deterministic_algorithms"] is True
        assert read_json(path)["determinism"]["cudnn_benchmark"] is False
        assert read_json(path)["determinism"]["cublas_workspace"] == ":4096:8"

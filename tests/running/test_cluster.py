"""Jobs on Dask workers: a real scheduler and two real worker processes on the loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sfuda_bench.cli import main
from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.running import cluster as module
from sfuda_bench.running.cluster import Cluster, ClusterWorker, on_cluster, threads_per_slot
from sfuda_bench.running.cluster_worker import Ticket, describe, run_job, versions
from sfuda_bench.running.engine import execute
from sfuda_bench.running.pool import WorkerPool
from sfuda_bench.running.store_digest import store_contents
from sfuda_bench.running.workers import WorkerSettings

pytest.importorskip("distributed")

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 60
SEEDS = (0, 1, 2)
LONG = "patient.epochs=3000"  # ten minutes, unless it is ended


@dataclass
class Dask:
    """A scheduler and its workers, as processes of their own."""

    address: str
    folder: Path
    processes: dict[str, subprocess.Popen[bytes]]

    def start_worker(self, name: str, *flags: str) -> None:
        self.processes[name] = _dask(
            self.folder, "worker", self.address, "--name", name, "--nthreads", "1", *flags
        )

    def cluster(self, out: Path, **more: Any) -> Cluster:
        return Cluster(self.address, out, device="cpu", **more)


def _dask(folder: Path, kind: str, *flags: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.dask_{kind}", *flags, "--no-dashboard"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"},
        stdout=(folder / f"{kind}-{len(list(folder.iterdir()))}.log").open("wb"),
        stderr=subprocess.STDOUT,
    )


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """Start a scheduler, a worker below a nanny that announces a GPU, and one without a nanny."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    flags = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    running = Dask("", folder, {"scheduler": _dask(folder, "scheduler", *flags)})
    try:
        running.address = str(_wait(lambda: _address(file)))
        running.start_worker("nanny", "--resources", "GPU=1")
        running.start_worker("bare", "--no-nanny")
        distributed: Any = pytest.importorskip("distributed")

        with distributed.Client(running.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=TIMEOUT_S)
        yield running
    finally:
        for process in running.processes.values():
            process.kill()  # what is below them ends with them
            process.wait()


def _address(file: Path) -> str:
    try:
        return str(json.loads(file.read_text("utf-8"))["address"])
    except (OSError, ValueError):
        return ""  # not written yet, or not wholly


def _wait(ready: Any) -> Any:
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        if value := ready():
            return value
        time.sleep(0.05)
    raise TimeoutError("it did not happen")


class Watcher:
    """A progress display that kills a Dask worker in the middle of its first patient cell."""

    def __init__(self, cluster: Cluster, victim: subprocess.Popen[bytes] | None = None) -> None:
        self.cluster, self.victim = cluster, victim
        self.failures: dict[str, str] = {}
        self.notes: list[str] = []
        self.places: set[str] = set()

    def start(self, cells: Any) -> None: ...

    def update(self, id: str, stage: str, epoch: int = 0, epochs: int = 0) -> None:
        self.places |= {worker.where for worker in self.cluster.busy() if worker.where}
        if self.victim is None or stage != "adapting":
            return
        pids = self.cluster.client.run(os.getpid)
        if pids.get(self._place_of(id)) == self.victim.pid:
            self.victim.send_signal(signal.SIGKILL)
            self.victim = None

    def _place_of(self, id: str) -> str | None:
        found = [w.where for w in self.cluster.busy() if w.job.get("key") == id]
        return found[0] if found else None

    def done(self, id: str, seconds: float, reused: bool = False) -> None: ...

    def failed(self, id: str, message: str) -> None:
        self.failures[id] = message

    def note(self, text: str) -> None:
        self.notes.append(text)


# -- runs -----------------------------------------------------------------------------------------


def _plan(bench: Any, plugin_folder: Path, *methods: str, **more: Any) -> Any:
    plugins = (plugin_folder / "patient.py",)
    return bench.plan(methods, seeds=SEEDS, plugins=plugins, **more)


def test_a_lost_worker_costs_nothing_and_the_store_is_that_of_one_machine(
    dask: Dask, trained: Any, copy_bench: Any, plugin_folder: Path, extra_methods: None,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Two workers compute nine cells; one of them is killed (-9) in the middle of a cell.

    A tenth cell ends its own process. Nothing is wrong with the machine then, so it just fails.
    """
    here, there = (copy_bench(trained, tmp_path / name) for name in ("here", "there"))
    methods = ("patient", "source_only", "bn_adapt")
    plan = _plan(there, plugin_folder, *methods, "vanishes", jobs=2)
    plan.cells = [cell for cell in plan.cells if cell.method != "vanishes" or cell.seed == 0]
    with dask.cluster(there.out) as cluster, WorkerPool(cluster.worker) as pool:
        assert cluster.slots == 2
        watcher = Watcher(cluster, dask.processes["bare"])
        summary = execute(plan, watcher, pool)
    _compute_with(cluster.threads, here, _plan(here, plugin_folder, *methods))
    assert watcher.victim is None and len(watcher.places) >= 2
    assert (summary.computed, summary.failed) == (9, 1)
    (failure,) = watcher.failures.values()
    assert "vanishes" in failure and "exit code 3" in failure
    (lost,) = (note for note in watcher.notes if "lost with" in note)
    assert lost.startswith("patient toy_a:toy_b seed ") and ": lost with Dask worker tcp://" in lost
    assert store_contents(there.out) == store_contents(here.out)
    assert not list(there.out.glob(".visible-*"))


def _compute_with(threads: int, bench: Any, plan: Any) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        bench.compute(plan)
    finally:
        torch.set_num_threads(before)


def test_killing_a_worker_ends_its_process_over_there(
    dask: Dask, bench: Any, plugin_folder: Path, extra_methods: None
) -> None:
    """The engine sees the pipe end at once; the job does not go on for nobody."""
    plan = _plan(bench, plugin_folder, "patient", overrides=[LONG])
    with dask.cluster(bench.out) as cluster:
        worker = cluster.worker(_settings(plan))
        worker.submit(dict(plan.cells[0].job))
        while (message := worker.connection.recv())["kind"] != "progress":
            assert message["kind"] not in ("failed", "done"), message
        assert cluster.client.run(_busy, workers=[worker.where]) == {worker.where: 1}
        worker.process.kill()
        with pytest.raises(EOFError):
            while worker.connection.poll(10):
                worker.connection.recv()
        assert (worker.process.exitcode, worker.process.is_alive()) == (-9, False)
        _wait(lambda: sum(cluster.client.run(_busy).values()) == 0)
        worker.stop(force=True)
        with pytest.raises(OSError):
            worker.submit(dict(plan.cells[0].job))


def _busy() -> int:
    from sfuda_bench.running.cluster_worker import _PROCESSES

    return len(_PROCESSES._busy)


def _settings(plan: Any) -> WorkerSettings:
    from sfuda_bench.running.engine import _Engine

    return _Engine(plan, None).settings_of("adapt")  # type: ignore[arg-type]  # nothing is told


# -- machines -------------------------------------------------------------------------------------


def test_workers_that_announce_gpus_are_the_slots_and_set_the_precision(
    dask: Dask, bench: Any
) -> None:
    request = bench.plan("source_only").request
    settings = replace(request.settings, precision="auto")
    request = replace(request, out=Path(os.path.relpath(bench.out)), settings=settings)
    with Cluster(dask.address, bench.out) as cluster:
        assert (cluster.slots, cluster.device) == (1, "cuda")
        seen = on_cluster(request, cluster, jobs=None)
        assert (seen.jobs, seen.device, seen.settings.precision) == (1, "auto", "bfloat16")
        assert seen.out == bench.out.resolve()
    with dask.cluster(bench.out) as cluster:
        assert cluster.device == "cpu"
        seen = on_cluster(request, cluster, jobs=7)
        assert (seen.jobs, seen.device, seen.settings.precision) == (7, "cpu", "float32")


def test_a_machine_that_sees_another_folder_is_named(dask: Dask, bench: Any) -> None:
    with dask.cluster(bench.out) as cluster:
        lacking = str(bench.out / "nothing.py")
        found = cluster.client.run(describe, str(bench.out / "absent"), (lacking,), 0.0)
        for address, description in found.items():
            with pytest.raises(EnvironmentProblem, match="does not see the store") as caught:
                module._check_worker(address, description, bench.out)
            assert address in caught.value.message
            seen = {**description, "sees_store": True}
            with pytest.raises(EnvironmentProblem, match=r"does not see .*nothing\.py"):
                module._check_worker(address, seen, bench.out)
    with pytest.raises(EnvironmentProblem, match=r"plugin\.py"):
        dask.cluster(bench.out, files=(bench.out / "plugin.py",))


def test_a_machine_with_other_versions_is_refused_also_when_it_joins_late(
    dask: Dask, bench: Any
) -> None:
    other = {**versions(), "torch": "1.0"}
    description = {"versions": other, "sees_store": True, "missing": []}
    with pytest.raises(EnvironmentProblem, match=r"torch 1\.0, expected"):
        module._check_worker("tcp://other:1", description, bench.out)
    settings = WorkerSettings("adapt", str(bench.out), "cpu", 1, plugins=(), forbidden=())
    with dask.cluster(bench.out) as cluster:
        for code, out, why in (
            (other, bench.out, r"torch .* expected 1\.0"),
            (versions(), bench.out / "elsewhere", "not visible"),
        ):
            ticket = Ticket(f"late-{why}", "topic", code)
            future = cluster.client.submit(run_job, ticket, replace(settings, out=str(out)), {})
            message = future.result(timeout=TIMEOUT_S)
            assert message["exit_code"] == EnvironmentProblem.exit_code
            assert re.search(why, message["message"])


def test_another_dask_version_is_refused_by_name() -> None:
    ours = {"packages": {"python": "3.11.4.final.0", "distributed": "2026.8.0"}}
    old = {"packages": {"python": "3.11.9.final.0", "distributed": "2024.1.0"}}
    module._check_dask({"client": ours, "scheduler": ours, "workers": {}})
    for found in ({"scheduler": old, "workers": {}}, {"scheduler": ours, "workers": {"w": old}}):
        with pytest.raises(EnvironmentProblem, match=r"distributed 2024\.1\.0, expected 2026"):
            module._check_dask({"client": ours, **found})


def test_a_job_has_the_threads_that_the_most_crowded_host_can_give() -> None:
    """One number for all: a cell must have the same bytes wherever it is computed."""
    one = {"host": "a", "cores": [0, 1, 2, 3, 4, 5, 6, 7], "threads": 1, "gpus": 0}
    two = {"host": "b", "cores": [0, 1, 2, 3], "threads": 2, "gpus": 1}
    other = {**two, "cores": [4, 5, 6, 7]}
    assert threads_per_slot([one], "threads") == 8
    assert threads_per_slot([one, two, other], "threads") == 2
    assert threads_per_slot([one, one], "threads") == 4
    assert threads_per_slot([one, two, other], "gpus") == 4
    assert threads_per_slot([{**one, "threads": 16}], "threads") == 1


# -- no scheduler ---------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["host:8786", "tcp://", "tcp", ""])
def test_what_is_no_address_is_a_usage_error(tmp_path: Path, address: str) -> None:
    with pytest.raises(UsageError, match="expected the address of a Dask scheduler"):
        Cluster(address, tmp_path)


def test_a_scheduler_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CONNECT_S", 0.5)
    with pytest.raises(EnvironmentProblem, match=r"tcp://127\.0\.0\.1:9.*no Dask scheduler"):
        Cluster("tcp://127.0.0.1:9", tmp_path)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EnvironmentProblem, match="not installed") as caught:
        Cluster("tcp://127.0.0.1:9", tmp_path)
    assert caught.value.hint == 'pip install "sfuda-bench[cluster]"'


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("--cluster host:8786", 2, "expected the address"),
        ("--cluster tcp://host:8786 --gpus 0", 2, "leave out --gpus"),
        ("--cluster tcp://127.0.0.1:9", 5, "no Dask scheduler answers"),
    ],
)
@pytest.mark.parametrize("command", ["run", "source train", "study run cpr_refinement", "ablate x"])
def test_the_command_line_explains_what_is_wrong_with_the_cluster(
    command: str, words: str, code: int, text: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_CONNECT_S", 0.3)
    assert main([*command.split(), *words.split(), "--out", str(tmp_path)]) == code
    assert text in capsys.readouterr().err


# -- lost jobs, without a scheduler ---------------------------------------------------------------


class KilledWorker(Exception):  # noqa: N818  # named like Dask's
    """What a future raises whose task was lost with one worker too many."""


@dataclass
class FakeFuture:
    status: str = "pending"
    error: BaseException | None = None
    callback: Any = None

    def add_done_callback(self, callback: Any) -> None:
        self.callback = callback

    def exception(self) -> BaseException | None:
        return self.error

    def cancel(self) -> None:
        self.status = "cancelled"

    def end(self, status: str, error: BaseException | None = None) -> None:
        self.status, self.error = status, error
        self.callback(self)


class FakeCluster:
    """Remembers what is submitted."""

    def __init__(self) -> None:
        self.futures: list[FakeFuture] = []

    def submit(self, worker: ClusterWorker, job: dict[str, Any]) -> tuple[str, FakeFuture]:
        self.futures.append(FakeFuture())
        return f"ticket {len(self.futures)}", self.futures[-1]

    def forget(self, ticket_id: str) -> None: ...


@pytest.fixture
def lonely() -> ClusterWorker:
    settings = WorkerSettings("adapt", "out", "cpu", 1, plugins=(), forbidden=())
    worker = ClusterWorker(FakeCluster(), settings)  # type: ignore[arg-type]  # a fake
    worker.submit({"kind": "cell", "cell": {"method": "cpr", "source": "a", "target": "b"}})
    return worker


def test_a_job_that_loses_every_worker_is_given_up_after_three(lonely: Any) -> None:
    cluster = lonely._cluster
    for count in (1, 2, 3):
        assert len(cluster.futures) == count
        lonely.hear(f"ticket {count}", {"kind": "placed", "worker": f"tcp://{count}"})
        cluster.futures[-1].end("error", KilledWorker())
        message = lonely.connection.recv()
        assert message["kind"] == "waiting" and f"tcp://{count};" in message["text"]
    assert len(cluster.futures) == 3
    message = lonely.connection.recv()
    assert (message["kind"], message["failure"], message["recorded"]) == ("failed", "died", False)
    assert message["message"].startswith("3 Dask workers were lost")


def test_the_end_of_the_scheduler_is_a_problem_of_the_environment(lonely: Any) -> None:
    lonely._cluster.futures[-1].end("cancelled")
    message = lonely.connection.recv()
    assert (message["kind"], message["exit_code"]) == ("failed", EnvironmentProblem.exit_code)


def test_messages_of_an_earlier_job_are_dropped(lonely: Any) -> None:
    progress = {"kind": "progress", "stage": "adapting", "epoch": 1, "epochs": 2}
    lonely.hear("ticket 0", progress)
    lonely.hear("ticket 1", {"kind": "placed", "worker": "tcp://one"})
    lonely.hear("ticket 1", progress)
    assert lonely.connection.recv() == progress
    assert not lonely.connection.poll(0)
    lonely.lost("tcp://three")
    assert lonely.where == "tcp://one" and not lonely.connection.poll(0)
    lonely.lost("tcp://one")
    assert lonely.where is None and lonely.connection.recv()["kind"] == "waiting"

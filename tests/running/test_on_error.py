"""What the engine does when jobs fail, with scripted workers instead of processes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sfuda_bench.cli import _parser
from sfuda_bench.commands.shared import limits_of
from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.running import engine as module
from sfuda_bench.running.engine import execute
from sfuda_bench.running.failures import OnError, classify
from sfuda_bench.running.pool import WorkerPool
from sfuda_bench.running.process_state import MemoryWatch, ProcessState
from sfuda_bench.running.request import HANG_AFTER
from sfuda_bench.running.store import Store, read_json, write_json
from sfuda_bench.running.workers import (
    Orphaned,
    WorkerSettings,
    _Heart,
    _worker_environment,
    broken_device,
    failed_message,
)

METHODS = ("source_only", "bn_adapt", "entropy_min")


class Script:
    """Answers of all workers: method to what happens at its first attempt, its second, ..."""

    def __init__(self, **answers: list[str]) -> None:
        self.answers = answers
        self.tries: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.beside: dict[str, list[int]] = defaultdict(list)
        self.started: list[ScriptedWorker] = []
        self.running = 0

    def __call__(self, settings: WorkerSettings) -> ScriptedWorker:
        self.started.append(ScriptedWorker(settings, self))
        return self.started[-1]

    @property
    def alive(self) -> list[ScriptedWorker]:
        return [worker for worker in self.started if worker.alive]


class ScriptedWorker:
    """Stands for a process."""

    starts_at_once = True

    def __init__(self, settings: WorkerSettings, script: Script) -> None:
        self.settings, self.script, self.alive = settings, script, True
        self.connection, self.child = Pipe()
        self.process = SimpleNamespace(
            is_alive=lambda: self.alive, exitcode=-9, join=lambda timeout=None: None, kill=self.end
        )

    def submit(self, job: dict[str, Any]) -> None:
        name = job["cell"]["method"] if "cell" in job else job["kind"]
        attempt = len(self.script.tries[name])
        self.script.tries[name].append(job)
        self.script.beside[name].append(self.script.running)
        self.script.running += 1
        answer = self.script.answers.get(name, ["ok"])[attempt]
        getattr(self, f"_{answer}")(job)

    def stack(self) -> str:
        return "where it was"

    def stop(self, *, force: bool = False) -> None:
        self.end()

    def end(self) -> None:
        self.alive = False
        self.child.close()

    def _say(self, **message: Any) -> None:
        self.script.running -= message["kind"] in ("done", "failed")
        self.child.send(message)

    def _ok(self, job: dict[str, Any], **more: Any) -> None:
        folder = Path(job["cell_dir"])
        write_json(folder / "run.json", {})
        write_json(folder / "cell.json", {"tracked": False})
        self._say(kind="done", status="computed", **more)

    def _late(self, job: dict[str, Any]) -> None:
        threading.Timer(0.6, self._ok, [job]).start()

    def _beating(self, job: dict[str, Any]) -> None:
        for tenth in range(1, 8):
            threading.Timer(tenth / 10, self._say, kwargs={"kind": "alive"}).start()
        threading.Timer(0.8, self._ok, [job]).start()

    def _changed(self, job: dict[str, Any]) -> None:
        self._ok(job, restart="it changed something")

    def _dies(self, job: dict[str, Any]) -> None:
        self.script.running -= 1
        self.end()

    def _silent(self, job: dict[str, Any]) -> None:
        self.script.running -= 1

    def _endless(self, job: dict[str, Any]) -> None:
        self.script.running -= 1
        self._say(kind="started")

    def _interrupted(self, job: dict[str, Any]) -> None:
        self._say(kind="progress", stage="interrupt", epoch=0, epochs=0)

    def _fails(self, error: BaseException) -> None:
        self._say(**failed_message(error))

    def _oom(self, job: dict[str, Any]) -> None:
        self._fails(torch.cuda.OutOfMemoryError("CUDA out of memory"))

    def _raises(self, job: dict[str, Any]) -> None:
        self._fails(ConnectionError("try again"))

    def _refused(self, job: dict[str, Any]) -> None:
        self._fails(PermissionError("label firewall: no"))


@pytest.fixture
def run(bench: Any, progress: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs three cells, unscored, with scripted workers."""
    monkeypatch.setattr(module, "_BUSY_PAUSE", 0.05)
    for path in bench.images("toy_b", "test", "mask"):
        path.unlink()

    def run(script: Script, methods: tuple[str, ...] = METHODS, **request: Any) -> Any:
        plan = bench.plan(methods, **request)
        with WorkerPool(script) as pool:
            summary = execute(plan, progress, pool)
        failures = {failure["cell"].split()[0]: failure for failure in summary.failures}
        errors = {
            cell.method: read_json(path)
            for cell in plan.cells
            if (path := plan.store.attempt(cell.key) / "error.json").is_file()
        }
        return SimpleNamespace(summary=summary, failures=failures, errors=errors, plan=plan)

    return run


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["continue", "retry:3"])
def test_what_lacks_memory_is_tried_once_more_with_nothing_beside_it(
    run: Any, on_error: str
) -> None:
    """The very same job, after all others, in a process that never held anything else."""
    script = Script(source_only=["oom", "oom"], bn_adapt=["late"])
    found = run(script, jobs=2, on_error=on_error)
    assert script.tries["source_only"][0] == script.tries["source_only"][1]
    assert script.beside["source_only"] == [0, 0]
    assert (found.summary.computed, found.summary.failed) == (2, 1)
    error = found.errors["source_only"]
    assert (error["failure"], error["attempts"]) == ("oom", 2)
    assert not script.alive


def test_idle_workers_give_their_memory_back_before_a_job_runs_alone(run: Any) -> None:
    script = Script(bn_adapt=["oom", "ok"])
    run(script, methods=METHODS[:2], jobs=2)
    alone = script.started[-1]
    assert len(script.started) == 3
    assert alone.settings == script.started[0].settings


def test_what_finds_memory_when_it_is_alone_is_a_result(run: Any) -> None:
    found = run(Script(bn_adapt=["oom", "ok"]), jobs=2)
    assert (found.summary.computed, found.summary.failed) == (3, 0)
    assert not found.failures


def test_a_killed_worker_is_suspected_to_have_lacked_memory(run: Any) -> None:
    script = Script(source_only=["dies", "dies"], bn_adapt=["dies", "ok"])
    found = run(script)
    assert found.failures.keys() == {"source_only"}
    error = found.errors["source_only"]
    assert (error["failure"], error["attempts"], error["signal"]) == ("died", 2, "SIGKILL")
    assert "perhaps out of memory" in error["message"]


# -- --on-error ---------------------------------------------------------------------------------


def test_by_default_nothing_else_is_tried_again(run: Any) -> None:
    found = run(Script(bn_adapt=["raises"]))
    assert (found.summary.computed, found.summary.failed, found.summary.not_run) == (2, 1, 0)
    assert found.failures["bn_adapt"]["failure"] == "raised"


def test_retry_counts_attempts_and_keeps_the_last_error(run: Any) -> None:
    script = Script(source_only=["raises", "raises", "ok"], bn_adapt=["raises"] * 3)
    found = run(script, on_error="retry:2")
    assert {name: len(tries) for name, tries in script.tries.items()} == {
        "source_only": 3, "bn_adapt": 3, "entropy_min": 1,
    }  # fmt: skip
    assert found.failures.keys() == {"bn_adapt"}
    assert found.errors["bn_adapt"]["attempts"] == found.failures["bn_adapt"]["attempts"] == 3


def test_what_would_end_the_same_way_is_not_tried_again(run: Any) -> None:
    script = Script(bn_adapt=["refused"])
    found = run(script, on_error="retry:2")
    assert found.failures["bn_adapt"]["failure"] == "refused"
    assert len(script.tries["bn_adapt"]) == 1


def test_a_checkpoint_outlives_a_failed_attempt(run: Any, bench: Any) -> None:
    plan = bench.plan("bn_adapt")
    checkpoint = plan.store.attempt(plan.cells[0].key) / "checkpoint" / "loop-1.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"weights")
    run(Script(bn_adapt=["raises", "dies", "dies"]), methods=("bn_adapt",), on_error="retry:1")
    assert checkpoint.read_bytes() == b"weights"


def test_stop_finishes_what_runs_and_starts_nothing_new(run: Any, progress: Any) -> None:
    script = Script(source_only=["raises"], bn_adapt=["late"])
    found = run(script, jobs=2, on_error="stop")
    assert set(script.tries) == {"source_only", "bn_adapt"}
    summary = found.summary
    assert (summary.computed, summary.failed, summary.not_run) == (1, 2, 1)
    assert found.failures.keys() == {"source_only"}
    assert progress.failures.keys() == {found.plan.cells[0].key}


def test_a_failed_source_model_fails_its_cells_also_when_the_run_stops(
    run: Any, bench: Any
) -> None:
    for path in (bench.out / "sources").glob("toy_a/*/card.json"):
        path.unlink()
    found = run(Script(source=["raises"]), on_error="stop")
    assert (found.summary.failed, found.summary.not_run) == (3, 0)
    assert "its source model failed: ConnectionError" in found.failures["bn_adapt"]["message"]


@pytest.mark.parametrize("text", ["retry", "retry:0", "retry:-1", "go on", ""])
def test_what_on_error_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match="--on-error"):
        OnError.parse(text)


# -- time ---------------------------------------------------------------------------------------


def test_what_takes_too_long_is_killed_and_leaves_its_stack(run: Any) -> None:
    script = Script(source_only=["endless"])
    found = run(script, timeout=0.3)
    assert (found.summary.computed, found.summary.failed) == (2, 1)
    error = found.errors["source_only"]
    assert (error["failure"], error["class"]) == ("timeout", "TimeoutError")
    attempt = found.plan.store.attempt(found.plan.cells[0].key)
    assert "where it was" in (attempt / "error.txt").read_text("utf-8")
    assert not script.started[0].alive and len(script.started) == 2


def test_the_start_of_a_process_is_not_part_of_the_time(run: Any) -> None:
    assert run(Script(source_only=["late"]), timeout=0.2).summary.failed == 0


def test_silence_is_hanging_and_a_sign_of_life_is_not(run: Any) -> None:
    found = run(Script(source_only=["silent"], bn_adapt=["beating"]), hang_after=0.4)
    assert {name: failure["failure"] for name, failure in found.failures.items()} == {
        "source_only": "hung"
    }


def test_a_job_that_waits_in_a_queue_elsewhere_does_not_hang(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScriptedWorker, "starts_at_once", False)
    assert run(Script(source_only=["late"]), hang_after=0.3).summary.failed == 0


def test_an_interrupt_ends_every_worker(run: Any, progress: Any) -> None:
    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    progress.update = interrupt
    script = Script(source_only=["silent"], bn_adapt=["interrupted"])
    with pytest.raises(KeyboardInterrupt):
        run(script, jobs=2)
    assert len(script.started) == 2 and not script.alive


# -- processes ----------------------------------------------------------------------------------


def test_a_process_that_a_job_changed_gets_no_other_job(run: Any) -> None:
    script = Script(source_only=["changed"])
    assert run(script).summary.computed == 3
    assert len(script.started) == 2


def test_each_slot_sees_one_gpu_and_its_share_of_the_cores(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of --gpus count what a scheduler has left visible."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(module, "_cores", lambda: 13)
    methods = (*METHODS, "dpl")
    script = Script(**{name: ["late"] for name in methods})
    given = {"device": "auto", "gpus": ("0", "1"), "per_gpu": 2, "jobs": 7}
    assert run(script, methods, **given, overrides=["run.precision=float32"]).summary.failed == 0
    adapt = [w.settings for w in script.started if w.settings.role == "adapt"]
    assert [settings.gpu for settings in adapt] == ["4", "7", "4", "7"]
    assert {(settings.device, settings.threads) for settings in adapt} == {("cuda", 3)}


def test_a_gpu_is_set_before_the_process_starts_and_only_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with _worker_environment(3, "1"):
        assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ["OMP_NUM_THREADS"]) == ("1", "3")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpus_that_are_not_there_are_a_problem_of_the_machine(bench: Any, device: str) -> None:
    with pytest.raises(EnvironmentProblem, match=r"--gpus 64: torch .* sees") as caught:
        bench.plan("source_only", gpus=("64",), device=device)
    assert "nvidia-smi" in str(caught.value.hint)


@pytest.mark.parametrize(("gpus", "device"), [(("0", "0"), "auto"), (("0",), "cpu")])
def test_gpus_that_contradict_themselves_are_refused(
    bench: Any, gpus: tuple[str, ...], device: str
) -> None:
    with pytest.raises(UsageError, match="--gpus 0"):
        bench.plan("source_only", gpus=gpus, device=device)


# -- kinds of failures, and what is left behind -------------------------------------------------


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ZeroDivisionError(), "raised"),
        (MemoryError(), "oom"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "oom"),
        (OSError(12, "Cannot allocate memory"), "oom"),
        (caused(ValueError("a step failed"), MemoryError()), "oom"),
        (FloatingPointError("'x' is not finite"), "not_finite"),
        (PermissionError("label firewall: no"), "refused"),
        (PermissionError(13, "Permission denied"), "raised"),
    ],
)
def test_the_kind_of_an_error(error: BaseException, kind: str) -> None:
    assert classify(error) == kind


def test_a_gpu_error_ends_the_process_that_met_it() -> None:
    """A failed check inside a kernel makes every later call of the process fail."""
    asserted = RuntimeError("CUDA error: device-side assert triggered\nmore")
    assert broken_device(asserted) == "the GPU reported: CUDA error: device-side assert triggered"
    assert broken_device(RuntimeError("shapes differ")) is None


class Beats:
    """Stands for the pipe."""

    count = 0

    def beat(self) -> None:
        self.count += 1


def beats_while(what: Callable[[], Any], seconds: float = 0.2) -> int:
    """Return how many signs of life a process gives meanwhile, at most one in so many seconds.

    Looking costs a little processor time itself, which counts in a pause that is too short.
    """
    channel = Beats()
    heart = _Heart(channel, seconds)  # type: ignore[arg-type]  # only beat is used
    threading.Thread(target=heart.run, daemon=True).start()
    what()
    found = channel.count
    channel.beat = _leave  # type: ignore[method-assign]  # ends the thread
    return found


def _leave() -> None:
    raise Orphaned


def spin(seconds: float = 1.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_a_process_that_computes_is_alive_and_one_that_waits_is_not() -> None:
    assert beats_while(spin) >= 2
    assert beats_while(lambda: time.sleep(1.0)) <= 1


def test_waiting_for_what_another_process_computes_is_a_sign_of_life(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with store.lock("key") as folder:
        theirs = os.open(folder / "lock", os.O_RDWR)
    fcntl.flock(theirs, fcntl.LOCK_EX)
    threading.Timer(0.5, os.close, [theirs]).start()

    def wait_for_it() -> None:
        with store.lock("key", wait=True):
            pass

    assert beats_while(wait_for_it, seconds=0.05) >= 4


def test_built_in_methods_leave_nothing_behind(bench: Any) -> None:
    """Otherwise every cell would cost the start of a process."""
    for method in ("cpr", "dpl", "entropy_min", "bn_adapt"):
        bench.run(method)  # libraries may change settings when they are first imported
        before = ProcessState()
        bench.run(method, overrides=[f"{method}.batch_size=2"], record=frozenset({"validators"}))
        assert before.changes() == []


def test_what_a_job_may_change_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ProcessState()
    monkeypatch.setenv("A_SETTING", "1")
    monkeypatch.setattr(torch.nn.functional, "interpolate", lambda *a, **k: None)
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark)
    monkeypatch.setattr("sfuda_bench.running.predict.predict", lambda *a: None)
    with torch.no_grad(), torch.autograd.set_detect_anomaly(True):
        found = "\n".join(before.changes())
    for part in (
        "environment variables", "functional.interpolate", "cudnn.benchmark",
        "running.predict.predict", "grad mode", "anomaly mode",
    ):  # fmt: skip
        assert part in found


def test_memory_counts_from_the_end_of_the_first_job() -> None:
    sizes = iter([100, 140, 300, 120, 300, 300])
    watch = MemoryWatch(limit=100, measure=lambda: next(sizes))
    assert watch.grown() is None  # what the first job loaded
    assert watch.grown() is None  # below the limit
    assert watch.grown() is None  # garbage that could be collected: 300, then 120
    assert "more memory than after its first job" in str(watch.grown())


@pytest.mark.parametrize(
    "command", [["run"], ["source", "train"], ["study", "run", "x"], ["ablate", "x"]]
)
def test_the_flags_of_every_command_that_computes(command: list[str]) -> None:
    flags = ["--gpus", "0, 1", "--per-gpu", "2", "--timeout", "60", "--on-error", "retry:2"]
    assert limits_of(_parser().parse_args([*command, *flags])) == {
        "gpus": ("0", "1"), "per_gpu": 2, "timeout": 60.0, "hang_after": HANG_AFTER,
        "on_error": "retry:2",
    }  # fmt: skip
    assert limits_of(_parser().parse_args(command))["timeout"] is None
    with pytest.raises(UsageError, match="--on-error"):
        limits_of(_parser().parse_args([*command, "--on-error", "panic"]))


def test_a_request_computes_as_much_at_once_as_its_slots(bench: Any) -> None:
    request = bench.plan("source_only", jobs=3).request
    assert request.at_once == 3
    assert replace(request, gpus=("0", "1"), per_gpu=3).at_once == 6

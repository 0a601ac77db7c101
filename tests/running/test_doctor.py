"""``doctor``: a healthy machine passes, and each ailment is found, named and given a hint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.cli import main
from sfuda_bench.running import doctor
from sfuda_bench.running.doctor import OK, PROBLEM, WARNING, Check, Mount

HEALTHY = {
    "torch": "2.14.0",
    "torch_cuda": None,
    "torchvision": "0.29.0",
    "available": False,
    "weights": ["/cache", False],
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import no framework in another process."""
    monkeypatch.setattr(doctor, "probe_libraries", lambda: dict(HEALTHY))
    monkeypatch.setattr(doctor, "_WRITTEN", 2 * doctor._MB)


def test_a_healthy_folder_passes_and_is_left_as_it_was(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "not" / "yet" / "there"
    assert main(["doctor", "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    names = {check["name"] for check in document["checks"]}
    assert {"Python", "locks", "renames", "writing", "disk", "torch", "CUDA", "memory"} <= names
    assert not list(tmp_path.iterdir())


def test_it_says_what_keeps_masks_from_methods() -> None:
    """A kernel without Landlock is no fault, but a method may start no process there."""
    with_kernel, without = doctor.check_firewall(True), doctor.check_firewall(False)
    assert {with_kernel.state, without.state} == {doctor.OK}
    assert "Landlock" in with_kernel.found
    assert "may not start processes" in without.found


def test_this_machine_has_frameworks_that_fit_each_other() -> None:
    found = doctor.probe_libraries()
    assert found["torch"] and "torchvision_error" not in found and "weights_error" not in found
    assert not doctor.failed(doctor.check_libraries(found))


def test_locks_that_exclude_nobody_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = doctor._HOLD.replace("fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass")
    monkeypatch.setattr(doctor, "_HOLD", without)
    check = doctor.check_locks(tmp_path)
    assert check.state == PROBLEM and "a second process gets a lock" in check.found and check.hint


def test_locks_that_the_file_system_refuses_are_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = doctor._HOLD.replace(
        "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "raise OSError(37, 'No locks')"
    )
    monkeypatch.setattr(doctor, "_HOLD", refused)
    assert doctor.check_locks(tmp_path).state == PROBLEM


def test_a_lock_that_outlives_its_owner_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that waits for a lease to run out: here a forked child holds it."""
    outliving = doctor._HOLD.replace(
        'print("held", flush=True)',
        'os.fork() or (os.close(0), os.close(1), os.close(2), __import__("time").sleep(3), '
        'os._exit(0)); print("held", flush=True)',
    )
    monkeypatch.setattr(doctor, "_HOLD", outliving)
    check = doctor.check_locks(tmp_path)
    assert check.state == PROBLEM and "dead owner" in check.found


def test_a_file_that_is_seen_half_replaced_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.replace

    def in_place(self: Path, target: Any) -> Any:
        """Replace as a bad file system does: the reader meets a file of another length."""
        if Path(target).name != "replaced" or self.name != "new":
            return real(self, target)
        Path(target).write_bytes(self.read_bytes()[:100])
        return Path(target)

    monkeypatch.setattr(Path, "replace", in_place)
    check = doctor.check_replacing(tmp_path)
    assert check.state == PROBLEM and "torn" in check.found


def test_a_folder_that_cannot_be_written_is_a_problem_with_exit_code_five(
    tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main(["doctor", "--out", str(tmp_path / "file" / "store")]) == 5
    captured = capsys.readouterr()
    assert "cannot be written" in captured.out and "store" in captured.err


@pytest.mark.parametrize(
    ("free", "files", "state"),
    [
        (50e9, 10**7, OK),
        (50e9, None, OK),
        (1e9, 10**7, WARNING),
        (50e9, 10, WARNING),
        (1e8, 10**7, PROBLEM),
        (50e9, 0, PROBLEM),
    ],
)
def test_free_space_and_free_files(free: float, files: int | None, state: str) -> None:
    check = doctor.check_space(int(free), files)
    assert check.state == state and bool(check.hint) == (state != OK)


@pytest.mark.parametrize(
    ("options", "state"),
    [
        ("rw,relatime", OK),
        ("rw,vers=4.2", OK),
        ("rw,vers=3,nolock", WARNING),
        ("rw,local_lock=all", WARNING),
        ("rw,localflock", WARNING),
    ],
)
def test_locks_that_stay_on_one_machine_are_a_warning(options: str, state: str) -> None:
    assert doctor.check_mount(Mount("/x", "nfs", frozenset(options.split(",")))).state == state


def test_the_file_system_of_a_path_is_the_innermost(tmp_path: Path) -> None:
    mounts = [Mount(place, place, frozenset()) for place in ("/", str(tmp_path), "/other")]
    found = doctor.mount_of(tmp_path / "store", mounts)
    assert found is not None and found.place == str(tmp_path)


@pytest.mark.parametrize(
    ("variables", "state"),
    [({}, OK), ({"OMP_NUM_THREADS": "2"}, OK), ({"OMP_NUM_THREADS": "64"}, WARNING),
     ({"MKL_NUM_THREADS": "all"}, WARNING)],
)  # fmt: skip
def test_more_threads_than_cores_are_a_warning(variables: dict[str, str], state: str) -> None:
    assert doctor.check_threads(variables, 2).state == state


def test_little_memory_is_a_warning() -> None:
    states = [doctor.check_memory(value).state for value in (10**9, 64 * 10**9, None)]
    assert states == [WARNING, OK, OK]


def by_name(found: dict[str, Any]) -> dict[str, Check]:
    return {check.name: check for check in doctor.check_libraries(found)}


def test_frameworks_that_do_not_fit_are_a_problem() -> None:
    broken = {**HEALTHY, "torchvision_error": "RuntimeError: operator torchvision::nms"}
    assert by_name(broken)["torchvision"].state == PROBLEM
    assert by_name({"error": "ImportError: libcudart"})["torch"].state == PROBLEM
    assert "libcudart" in by_name({"error": "ImportError: libcudart"})["torch"].found
    assert by_name({**HEALTHY, "error": "RuntimeError: CUDA"})["CUDA"].state == PROBLEM


@pytest.mark.parametrize(
    ("built_for", "hidden", "hint"),
    [(None, None, "built for CUDA"), ("13.0", "", "hides"), ("13.0", None, "driver")],
)
def test_a_card_that_torch_does_not_see_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, hidden: str | None, hint: str
) -> None:
    monkeypatch.setattr(doctor, "nvidia_cards", lambda: ["A card"])
    monkeypatch.setattr(doctor, "nvidia_driver", lambda: "470.1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    check = by_name({**HEALTHY, "torch_cuda": built_for})["CUDA"]
    assert check.state == WARNING and hint in check.hint and "A card" in check.found


def test_a_framework_whose_import_kills_the_process_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_PROBE", "import os; os.abort()")
    check = next(iter(doctor.check_libraries(doctor.probe_libraries())))
    assert (check.name, check.state) == ("torch", PROBLEM)
    assert "died" in check.found


def test_the_checks_before_the_libraries_need_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from sfuda_bench.running import doctor; "
        "doctor.probe_libraries = dict; from pathlib import Path; "
        f"doctor.examine(Path({str(tmp_path)!r})); assert 'torch' not in sys.modules"
    )
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)

"""Traceability: which run, code and machine a result comes from, and no secrets."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.running import trace
from sfuda_bench.running.store import read_json
from sfuda_bench.running.store_digest import store_digest


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget which run this process began."""
    monkeypatch.setenv(trace.RUN_VARIABLE, "")
    monkeypatch.setattr(trace, "_begun", {})


def test_a_run_is_described_once_and_every_cell_refers_to_it(bench: Any) -> None:
    assert trace.begin_run(bench.out) == trace.begin_run(bench.out)
    plan = bench.plan(["source_only", "bn_adapt"])
    bench.compute(plan)
    (run,) = (bench.out / "runs").glob("*.json")
    document = read_json(run)
    assert document["id"] == run.stem
    assert document["packages"]["torch"] and document["machine"]["host"]
    assert set(document["code"]) == {"version", "commit", "dirty", "diff_sha256"}
    for cell in plan.cells:
        record = read_json(cell.folder / "run.json")
        assert record["run"] == run.stem
        assert {"deterministic_algorithms", "cudnn_benchmark"} <= record["determinism"].keys()


def test_the_description_is_outside_the_digest(bench: Any) -> None:
    before = store_digest(bench.out)
    trace.begin_run(bench.out)
    assert store_digest(bench.out) == before


def test_passwords_in_addresses_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "--storage=postgresql://me:secret@host/db"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/sfuda-bench", "study", "run", address])
    assert trace.command_line() == "sfuda-bench study run --storage=postgresql://***@host/db"


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git work tree that this package seems to lie in."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    (tmp_path / "sfuda_bench").mkdir()
    (tmp_path / "sfuda_bench" / "__init__.py").write_text("")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.setattr(trace, "_PACKAGE", tmp_path / "sfuda_bench")
    monkeypatch.setattr(trace, "code_version", trace.code_version.__wrapped__)
    return tmp_path


def test_a_clean_checkout_has_a_commit_and_no_difference(checkout: Path) -> None:
    found = trace.code_version()
    assert len(found["commit"]) == 40
    assert found["dirty"] is False and found["diff_sha256"] is None


def test_changed_and_new_code_is_dirty_and_has_its_own_digest(checkout: Path) -> None:
    digests = []
    for name in ("__init__.py", "new.py"):
        (checkout / "sfuda_bench" / name).write_text("x = 1\n")
        found = trace.code_version()
        assert found["dirty"] is True
        digests.append(found["diff_sha256"])
    (checkout / "sfuda_bench" / "new.py").write_text("x = 2\n")
    digests.append(trace.code_version()["diff_sha256"])
    assert len(set(digests)) == 3
    (checkout / "notes.txt").write_text("not code\n")
    assert trace.code_version()["diff_sha256"] == digests[-1]


def test_a_package_that_merely_lies_in_a_work_tree_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout / "venv" / "sfuda_bench"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    monkeypatch.setattr(trace, "_PACKAGE", installed)
    assert trace.code_version()["commit"] is None


def test_without_git_the_version_is_what_is_known(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    found = trace.code_version()
    assert found["version"] and found["commit"] is None and found["dirty"] is None

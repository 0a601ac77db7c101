"""The store: locks, atomic commits, and damage that is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.running.store import Busy, Store, read_json, write_json

KEY = "ab" * 32
_HOLDER = """
import sys
from pathlib import Path
from sfuda_bench.running.store import Store
with Store.open(Path(sys.argv[1])).lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def hold(store: Store) -> subprocess.Popen[str]:
    """Start another process that holds the lock of KEY."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(store.root), KEY],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_key_that_another_process_computes_is_busy_until_that_process_dies(store: Store) -> None:
    process = hold(store)
    try:
        with pytest.raises(Busy), store.lock(KEY):
            pass
        with store.lock("cd" * 32):
            pass  # another key is free
    finally:
        process.kill()
        process.wait()
    with store.lock(KEY) as attempt:
        assert attempt.is_dir()


def test_a_cell_that_is_computed_elsewhere_is_answered_busy_and_then_reused(
    bench: Any, progress: Any
) -> None:
    from sfuda_bench.running.jobs import JobRunner

    plan = bench.plan("source_only")
    runner, job = JobRunner(bench.out, "cpu"), dict(plan.cells[0].job)
    with Store(bench.out).lock(job["key"]):
        assert runner.compute(job, progress) == "busy"
    assert runner.compute(job, progress) == "computed"
    assert not Store(bench.out).attempt(job["key"]).exists()
    assert runner.compute(job, progress) == "reused"


@pytest.mark.parametrize("content", ['{"schema": 99}', "{not json", "[1]"])
def test_a_store_of_another_schema_or_a_damaged_marker_has_exit_code_seven(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "store.json").write_text(content, "utf-8")
    with pytest.raises(StoreSchemaError, match=r"store\.json") as caught:
        Store.open(tmp_path)
    assert caught.value.exit_code == 7
    assert caught.value.hint
    assert "delete the folder" not in caught.value.hint  # that would be the whole store


def test_an_unwritable_folder_is_a_problem_of_the_machine(tmp_path: Path) -> None:
    from sfuda_bench.errors import EnvironmentProblem

    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        Store.open(tmp_path / "file" / "store")


def test_a_commit_replaces_an_earlier_folder_as_a_whole(store: Store) -> None:
    final = store.cell("m", "a", "b", KEY)
    for number in (1, 2):
        staged = store.staging(KEY, "cell")
        write_json(staged / "cell.json", {"number": number})
        (staged / f"only-{number}").touch()
        assert number == 1 or (final / "only-1").is_file()
        store.commit(staged, final)
    assert sorted(path.name for path in final.iterdir()) == [
        "cell.json",
        "manifest.json",
        "only-2",
    ]
    assert read_json(final / "cell.json") == {"number": 2}
    assert not list(store.attempt(KEY).glob("cell*"))


@pytest.mark.parametrize(
    "text",
    ["{}", '{"staged": "cell", "final": "../../elsewhere", "manifest": "0", "seal": "0"}'],
    ids=["empty", "edited"],
)
def test_a_damaged_note_of_a_commit_moves_nothing(store: Store, text: str) -> None:
    """What says where a finished folder goes has a seal: it could send it anywhere."""
    staged = store.staging(KEY, "cell")
    write_json(staged / "cell.json", {"number": 1})
    (staged.parent / "committing.json").write_text(text, "utf-8")
    with pytest.raises(StoreSchemaError, match=r"committing\.json") as caught:
        Store.open(store.root)
    assert str(staged.parent) in str(caught.value.hint)
    assert staged.is_dir()


def test_a_commit_waits_for_every_folder_on_the_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder outlives a loss of power once its parent was brought to the disk."""
    synced = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(_path(handle)), real(handle)))
    staged = store.staging(KEY, "cell")
    write_json(staged / "cell.json", {"number": 1})
    final = store.cell("m", "a", "b", KEY)
    store.commit(staged, final)
    ways = (*final.parents, staged, *staged.parents)
    expected = {path for path in ways if path.is_relative_to(store.root)} - {staged}
    assert {str(path) for path in expected} <= synced


def _path(handle: int) -> str:
    return os.readlink(f"/proc/self/fd/{handle}")


def test_what_was_left_half_built_is_thrown_away(store: Store) -> None:
    (store.staging(KEY, "cell") / "half").touch()
    assert not list(store.staging(KEY, "cell").iterdir())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, empty])
def test_a_damaged_record_of_a_cell_is_named(bench: Any, damage: Callable[[Path], None]) -> None:
    result = bench.run("source_only")
    damage(result.folder / "cell.json")
    with pytest.raises(StoreSchemaError, match=r"cell\.json") as caught:
        bench.plan("source_only")
    assert str(result.folder) in str(caught.value.hint)


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_a_damaged_source_model_is_named(bench: Any, damage: Callable[[Path], None]) -> None:
    plan = bench.plan("source_only")
    path = plan.sources[0].folder / "model.safetensors"
    damage(path)
    with pytest.raises(StoreSchemaError) as caught:
        bench.compute(plan)
    assert str(path) in caught.value.message and caught.value.hint


def test_a_source_model_of_another_network_is_named(bench: Any) -> None:
    import torch
    from safetensors.torch import save_file

    plan = bench.plan("source_only")
    path = plan.sources[0].folder / "model.safetensors"
    path.with_name("manifest.json").unlink()  # as a store of an earlier version has none
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(StoreSchemaError) as caught:
        bench.compute(plan)
    assert str(path) in caught.value.message and "tiny" in caught.value.message


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink])
def test_a_damaged_prediction_is_named(bench: Any, damage: Callable[[Path], None]) -> None:
    result = bench.run("source_only")
    path = sorted((result.folder / "predictions").glob("*-cup.png"))[0]
    damage(path)
    (result.folder / "scores-standard.json").unlink()
    with pytest.raises(StoreSchemaError) as caught:
        bench.compute(bench.plan("source_only"))
    assert str(path) in caught.value.message and caught.value.hint


@pytest.mark.parametrize("damage", [truncate, empty])
def test_a_damaged_artefact_is_named(bench: Any, damage: Callable[[Path], None]) -> None:
    bench.run("dpl")
    path = next(bench.out.glob("artefacts/initial_labels/*/tensors.safetensors"))
    damage(path)
    plan = bench.plan("dpl", overrides=["dpl.epochs=2"])
    with pytest.raises(StoreSchemaError, match="damaged") as caught:
        bench.compute(plan)
    assert str(path.parent) in caught.value.message and str(path.parent) in str(caught.value.hint)


@pytest.mark.parametrize("damage", [truncate, empty])
def test_damaged_packed_images_are_named(bench: Any, damage: Callable[[Path], None]) -> None:
    plan = bench.plan("source_only")
    path = Path(plan.cells[0].job["images"]["test"]["images"])
    damage(path)
    with pytest.raises(StoreSchemaError) as caught:
        bench.plan("source_only")
    assert str(path) in caught.value.message


def test_a_damaged_score_record_is_named(bench: Any) -> None:
    result = bench.run("source_only")
    truncate(result.folder / "scores-standard.json")
    with pytest.raises(StoreSchemaError, match=r"scores-standard\.json"):
        bench.compute(bench.plan("source_only"))


def test_json_records_do_not_depend_on_the_order_of_insertion(tmp_path: Path) -> None:
    for name, value in (("a", {"x": 1, "y": 2}), ("b", {"y": 2, "x": 1})):
        write_json(tmp_path / name, value)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads((tmp_path / "a").read_text()) == {"x": 1, "y": 2}

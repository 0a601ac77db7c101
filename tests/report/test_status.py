from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sfuda_bench.errors import UsageError
from sfuda_bench.report.status import render_status, status

Make = Callable[..., Any]
REAL = ("drishti_gs", "rim_one_r3")
SYNTHETIC = ("syn_a", "syn_b")


def entry(found: dict[str, Any], method: str, pair: str) -> dict[str, Any]:
    (one,) = [e for e in found["matrix"] if (e["method"], e["pair"]) == (method, pair)]
    return {state: one[state] for state in ("done", "running", "failed", "todo")}


def test_done_failed_and_todo_are_counted_per_method_and_pair(make_store: Make) -> None:
    found = status(make_store().out)

    assert {"done": 13, "running": 0, "failed": 1, "todo": 2} == found["total"]
    failed = {"done": 1, "running": 0, "failed": 1, "todo": 0}
    assert failed == entry(found, "tent (online)", "drishti_gs:rim_one_r3")
    todo = {"done": 0, "running": 0, "failed": 0, "todo": 2}
    assert todo == entry(found, "source_only", "syn_a:syn_b")
    assert [("tent", "RuntimeError", "out of memory")] == [
        (failure["method"], failure["class"], failure["message"]) for failure in found["failures"]
    ]
    assert found == json.loads(json.dumps(found))


def test_a_held_lock_means_running_and_a_free_one_does_not(make_store: Make) -> None:
    store = make_store()
    cell = store.asked("source_only", SYNTHETIC, 0)
    lock = store.out / "attempts" / cell["key"][:16] / "lock"
    lock.parent.mkdir(parents=True)
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    assert status(store.out)["total"]["running"] == 0

    fcntl.flock(handle, fcntl.LOCK_EX)
    running = status(store.out)["total"]
    os.close(handle)

    assert {"done": 13, "running": 1, "failed": 1, "todo": 1} == running
    assert status(store.out)["total"]["running"] == 0


def test_a_retry_that_holds_the_lock_is_running_and_not_failed(make_store: Make) -> None:
    store = make_store()
    cell = store.asked("tent", REAL, 1)
    handle = os.open(store.out / "attempts" / cell["key"][:16] / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    found = status(store.out)
    os.close(handle)

    assert (1, 0) == (found["total"]["running"], found["total"]["failed"])
    assert [] == found["failures"]


def test_without_a_plan_stored_cells_and_failures_count(make_store: Make) -> None:
    store = make_store()
    (store.out / "plans" / "last.json").unlink()

    found = status(store.out)

    assert found["planned"] is False
    assert {"done": 13, "running": 0, "failed": 1, "todo": 0} == found["total"]


def test_an_unreadable_error_record_still_counts_as_failed(make_store: Make) -> None:
    store = make_store()
    (path,) = (store.out / "attempts").glob("*/error.json")
    path.write_text("{")

    assert status(store.out)["total"]["failed"] == 1


def test_a_failed_source_model_is_listed_until_it_is_finished(make_store: Make) -> None:
    store = make_store()
    error: dict[str, Any] = {"method": "source", "source": "syn_a", "target": None, "seed": None}
    error |= {"source_seed": 0, "class": "DataError", "message": "no masks", "time": ""}
    store.write("attempts/0123456789abcdef/error.json", error)

    found = status(store.out)
    text = render_status(found, plain=True)
    store.write("sources/syn_a/0123456789abcdef/card.json", {})

    assert found["total"]["failed"] == 1  # cells only
    assert "failed: source syn_a (source seed 0): DataError: no masks [" in str(text)
    assert ["tent"] == [failure["method"] for failure in status(store.out)["failures"]]


def test_finished_source_models_are_listed(make_store: Make) -> None:
    store = make_store()
    store.write("sources/syn_a/0123456789abcdef/card.json", {})

    assert [{"domain": "syn_a", "key": "0123456789abcdef"}] == status(store.out)["sources"]


def test_plain_text_names_every_pair_and_the_failure(make_store: Make) -> None:
    store = make_store()
    text = render_status(status(store.out), plain=True)

    assert isinstance(text, str)
    lines = text.splitlines()
    assert "tent (online)  drishti_gs:rim_one_r3  1 done, 1 failed" in lines
    assert f"{store.out}: 13 done, 1 failed, 2 todo" == lines[-1]
    assert "RuntimeError: out of memory" in text


@pytest.mark.parametrize("width", [1, 20, 200])
def test_the_drawn_matrix_fits_any_width(make_store: Make, width: int) -> None:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_status(status(make_store().out)))

    if width == 200:
        assert "1 failed" in console.export_text()


def test_no_store_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        status(tmp_path)

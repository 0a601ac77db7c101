"""What the command line writes where: data on stdout, messages on stderr, tracebacks in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench import cli
from sfuda_bench.errors import DataError, EnvironmentProblem, SfudaError, StoreSchemaError
from sfuda_bench.report.write import Written
from sfuda_bench.running.engine import RunSummary


@dataclass
class FakePlan:
    """A plan without cells, as the commands see it."""

    warnings: list[str] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        counts = {"todo": 0, "done": 0, "blocked": 0}
        return {**counts, "disk_bytes": 0, "seconds_estimate": None, "warnings": []}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a folder that is a store."""
    (tmp_path / "store.json").write_text('{"schema": 1}')
    return tmp_path


@pytest.fixture(autouse=True)
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Plan nothing, write no tables, and remember what was requested."""
    seen: list[Any] = []

    def build_plan(request: Any) -> FakePlan:
        seen.append(request)
        return FakePlan()

    monkeypatch.delenv("SFUDA_DATA_ROOT", raising=False)
    monkeypatch.setattr("sfuda_bench.running.plan.build_plan", build_plan)
    written = Written((), {})
    monkeypatch.setattr("sfuda_bench.report.write.write_report", lambda *_: written)
    monkeypatch.setattr("sfuda_bench.report.tables.print_tables", lambda *_: None)
    yield seen


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None], int], None]:
    """Return a function that replaces the engine by an action and a number of failed cells."""

    def install(action: Callable[[], None], failed: int = 0) -> None:
        def execute(plan: Any, progress: Any, pool: Any = None) -> RunSummary:
            action()
            return RunSummary(3, 2 - failed, 1, failed, Path("somewhere"))

        monkeypatch.setattr("sfuda_bench.running.engine.execute", execute)

    return install


def raising(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


def chatter() -> None:
    """Print as a careless plug-in does: from this process, and from a child that inherits."""
    os.write(1, b"written below python\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)


def test_run_json_is_one_document_whatever_plugins_and_workers_print(
    engine: Any, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine(chatter)
    assert cli.main(["run", "--out", str(out), "--json"]) == 0
    captured = capfd.readouterr()
    expected = {"cells": 3, "computed": 2, "reused": 1, "failed": 0, "out": "somewhere"}
    assert expected.items() <= json.loads(captured.out).items()
    assert "written below python" in captured.err
    assert "from a child" in captured.err


def test_stdout_is_given_back_after_an_error_in_the_engine(
    engine: Any, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    engine(raising(DataError("x.png: truncated", hint="replace it")))
    assert cli.main(["run", "--out", str(out)]) == 3
    os.write(1, b"data again\n")
    captured = capfd.readouterr()
    assert captured.out == "data again\n"
    assert "error: x.png: truncated\nhint: replace it\n" in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SfudaError("general"), 1),
        (DataError("data"), 3),
        (EnvironmentProblem("machine"), 5),
        (StoreSchemaError("schema"), 7),
        (OSError(28, "No space left on device", "cell.json"), 5),
        (KeyboardInterrupt(), 130),
        (RuntimeError("boom"), 1),
    ],
)
def test_an_error_in_the_engine_has_its_exit_code_and_no_traceback_on_screen(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    engine(raising(error))
    assert cli.main(["run", "--out", str(out)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_a_run_with_failed_cells_exits_with_4_and_still_prints_its_document(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(lambda: None, failed=1)
    assert cli.main(["run", "--out", str(out), "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["failed"] == 1


def test_a_full_disk_names_the_file_and_what_helps(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(raising(OSError(28, "No space left on device", "cell.json")))
    cli.main(["run", "--out", str(out)])
    shown = capsys.readouterr().err
    assert "the disk is full: cell.json" in shown
    assert "hint: free some space" in shown


def test_an_unexpected_error_keeps_its_traceback_in_the_store(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(raising(RuntimeError("boom")))
    cli.main(["run", "--out", str(out)])
    log = out / "log" / "errors.txt"
    assert "RuntimeError: boom" in log.read_text()
    shown = capsys.readouterr().err
    assert "error: unexpected RuntimeError: boom" in shown
    assert str(log) in shown


def test_a_broken_pipe_to_a_worker_is_not_taken_for_a_reader_that_left(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(raising(BrokenPipeError()))
    assert cli.main(["run", "--out", str(out)]) == 1
    assert "pipe to a worker process broke" in capsys.readouterr().err


def test_verbose_shows_the_traceback_instead(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(raising(RuntimeError("boom")))
    cli.main(["run", "--out", str(out), "-v"])
    assert "Traceback" in capsys.readouterr().err
    assert not (out / "log").exists()


def test_a_folder_that_is_no_store_is_not_turned_into_one_by_an_error(
    engine: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(raising(RuntimeError("boom")))
    cli.main(["run", "--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    assert "add -v for the traceback" in capsys.readouterr().err


@pytest.mark.parametrize("more", [[], ["--preset", "small"]])
def test_without_a_data_root_it_says_that_the_images_are_synthetic(
    engine: Any, out: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    engine(lambda: None)
    cli.main(["run", "--out", str(out), *more])
    assert "synthetic domains" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "preset"),
    [([], "quick"), (["--data-root", "."], "reproduction"), (["--preset", "small"], "small")],
)
def test_the_default_preset_follows_the_data(
    engine: Any, requests: list[Any], out: Path, more: list[str], preset: str
) -> None:
    engine(lambda: None)
    cli.main(["run", "--methods", "source_only", "--out", str(out), *more])
    assert requests[0].settings.preset == preset


def test_the_environment_may_name_the_data_root(
    engine: Any, requests: list[Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(lambda: None)
    monkeypatch.setenv("SFUDA_DATA_ROOT", "/some/where")
    cli.main(["run", "--methods", "source_only", "--out", str(out)])
    assert requests[0].data_root == Path("/some/where")
    assert requests[0].settings.preset == "reproduction"


def test_plan_shows_where_every_setting_came_from(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text, defaults are left out unless asked for; as JSON nothing is."""
    plan = ["plan", "--out", str(out), "--methods", "cpr", "--set", "cpr.beta=3"]
    assert cli.main(plan) == 0
    short = capsys.readouterr().out
    assert "cpr.beta = 3.0  [--set]" in short
    assert "data.image_size = 128  [preset quick]" in short
    assert "cpr.temperature" not in short
    assert cli.main([*plan, "--explain"]) == 0
    assert "cpr.temperature = 2.0  [plug-in default]" in capsys.readouterr().out
    assert cli.main([*plan, "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["cpr.temperature"] == {"value": 2.0, "origin": "plug-in default"}


def test_a_reader_that_leaves_early_is_no_crash(out: Path) -> None:
    """As with ``| head``: exit code 1, nothing on stderr, also not while the interpreter ends."""
    program = "import sys; from sfuda_bench.cli import main; sys.exit(main(['ls', 'datasets']))"
    read, write = os.pipe()
    os.close(read)
    found = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert (found.returncode, found.stderr) == (1, "")

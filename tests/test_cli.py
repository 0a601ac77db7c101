"""The command line: exit codes, what goes to stdout and stderr, and what is not imported."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench import cli
from sfuda_bench.errors import (
    CheckFailed,
    DataError,
    EnvironmentProblem,
    StoreSchemaError,
    UsageError,
)
from sfuda_bench.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
SHARED = ("run", "plan", "source train")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run the command line in this process, without a data root of the environment."""
    monkeypatch.delenv("SFUDA_DATA_ROOT", raising=False)

    def run(*arguments: str | Path) -> Result:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Result(code, captured.out, captured.err)

    return run


def write_tree(root: Path, domains: tuple[str, ...] = ("alpha", "beta")) -> Path:
    """Write a tiny correct data root: two images per split, cup inside disc."""
    y, x = np.mgrid[0:64, 0:64]
    distance = np.hypot(x - 32, y - 32)
    mask = np.where(distance < 9, 0, np.where(distance < 20, 128, 255)).astype(np.uint8)
    rng = np.random.default_rng(0)
    for domain in domains:
        for split in ("train", "test"):
            for number in range(2):
                image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
                for kind, array in (("image", image), ("mask", mask)):
                    path = root / domain / split / "ROIs" / kind / f"{split}{number}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(path)
    return root


def write_store(root: Path) -> Path:
    """Write a store with one source model and one failed attempt, by hand."""
    card = {
        "domain": "alpha",
        "source_seed": 0,
        "key": "a" * 64,
        "network": {"name": "deeplabv3plus", "encoder": "mobilenet_v2", "encoder_weights": "none"},
        "image_size": 128,
        "updates": 150,
        "test_dice": {"0.5": {"cup": 0.8, "disc": 0.9}, "0.75": {"cup": 0.7, "disc": 0.85}},
    }
    documents = {"store.json": {"schema": 1}, "sources/alpha/aaaaaaaaaaaaaaaa/card.json": card}
    for name, document in documents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    return root


# -- the running functions, replaced ----------------------------------------------------------


@dataclass
class FakePlan:
    request: Any
    warnings: list[str] = field(default_factory=list)
    cells: list[Any] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        counts = {"todo": 2, "done": 1, "blocked": 0}
        costs = {"disk_bytes": 5e7, "seconds_estimate": 90.0}
        return {**counts, **costs, "warnings": [], "out": str(self.request.out)}


@dataclass
class Engine:
    """Stands for planning and running; ``outcome`` is a summary's numbers or an exception."""

    outcome: Any = (3, 2, 1, 0)
    plans: list[FakePlan] = field(default_factory=list)

    def build_plan(self, request: Any) -> FakePlan:
        self.plans.append(FakePlan(request, ["something to know"]))
        return self.plans[-1]

    def execute(self, plan: FakePlan, progress: Any, pool: Any = None) -> Any:
        from sfuda_bench.running.engine import RunSummary

        if isinstance(self.outcome, BaseException):
            raise self.outcome
        write_store(plan.request.out)
        cells, computed, reused, failed = self.outcome
        return RunSummary(cells, computed, reused, failed, plan.request.out)

    @property
    def request(self) -> Any:
        return self.plans[-1].request


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    fake = Engine()
    monkeypatch.setattr("sfuda_bench.running.plan.build_plan", fake.build_plan)
    monkeypatch.setattr("sfuda_bench.running.engine.execute", fake.execute)
    monkeypatch.setattr("sfuda_bench.running.engine.train_sources", fake.execute)
    return fake


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        ((3, 2, 1, 0), 0),
        ((3, 0, 3, 0), 0),
        ((3, 1, 1, 1), 4),
        ((3, 0, 0, 3), 4),
        (UsageError("u", hint="h"), 2),
        (DataError("d", hint="h"), 3),
        (EnvironmentProblem("e", hint="h"), 5),
        (CheckFailed("c", hint="h"), 6),
        (StoreSchemaError("s", hint="h"), 7),
        (KeyboardInterrupt(), 130),
        (RuntimeError("r"), 1),
    ],
)
@pytest.mark.parametrize("command", ["run", "source train"])
def test_exit_codes(
    call: Call, engine: Engine, tmp_path: Path, command: str, outcome: Any, code: int
) -> None:
    engine.outcome = outcome
    result = call(*command.split(), "--out", tmp_path / "o", "--json")
    assert result.code == code
    if isinstance(outcome, tuple):
        assert len(result.out.strip().splitlines()) == 1
    else:
        assert result.out == ""  # a document is whole, or not there
        assert result.err.strip()


def test_the_document_of_run(call: Call, engine: Engine, tmp_path: Path) -> None:
    engine.outcome = (4, 2, 1, 1)
    out = tmp_path / "o"
    result = call("run", "--out", out, "--json")
    expected = {"cells": 4, "computed": 2, "reused": 1, "failed": 1, "out": str(out)}
    assert expected.items() <= result.document.items()
    assert "something to know" in result.err


def test_run_without_json_keeps_messages_off_stdout(
    call: Call, engine: Engine, tmp_path: Path
) -> None:
    result = call("run", "--out", tmp_path / "o")
    assert "3 cells: 2 computed, 1 reused, 0 failed" in result.err
    assert "computed" not in result.out
    assert "synthetic domains" in result.err


def test_an_error_is_a_message_and_a_hint(call: Call, engine: Engine, tmp_path: Path) -> None:
    engine.outcome = DataError("file.png: broken", hint="sfuda-bench data verify")
    result = call("run", "--out", tmp_path / "o")
    assert "error: file.png: broken\nhint: sfuda-bench data verify\n" in result.err


def test_a_defect_of_ours_is_one_line_unless_asked(
    call: Call, engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.outcome = RuntimeError("odd")
    result = call("run", "--out", tmp_path / "o")
    assert "error: unexpected RuntimeError: odd" in result.err
    assert "add -v for the traceback" in result.err
    assert cli.main(["run", "-v", "--out", str(tmp_path / "o")]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_says_that_nothing_finished_is_lost(
    call: Call, engine: Engine, tmp_path: Path
) -> None:
    engine.outcome = KeyboardInterrupt()
    result = call("run", "--out", tmp_path / "o")
    assert result.code == 130
    assert "what was finished is kept" in result.err


# -- flags become a request -------------------------------------------------------------------


def test_the_defaults_of_a_fresh_machine(call: Call, engine: Engine, tmp_path: Path) -> None:
    """Without a data root: synthetic domains, preset quick, one seed, all main methods."""
    call("run", "--out", tmp_path)
    request = engine.request
    assert request.data_root is None
    assert request.settings.preset == "quick"
    assert request.pairs == "all"
    assert (request.seeds, request.source_seeds) == ((0,), (0,))
    assert {"cpr", "cpr_cbam", "source_only", "target_supervised"} <= set(request.methods)
    assert request.profiles == ("standard", "cpr-2023")


def test_a_data_root_changes_the_default_preset(
    call: Call, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("run", "--out", tmp_path, "--data-root", tmp_path)
    assert engine.request.settings.preset == "reproduction"
    monkeypatch.setenv("SFUDA_DATA_ROOT", str(tmp_path))
    call("run", "--out", tmp_path, "--preset", "small")
    assert engine.request.data_root == tmp_path
    assert engine.request.settings.preset == "small"


def test_every_flag_reaches_the_request(call: Call, engine: Engine, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text("[methods.cpr]\nbeta = 3\n")
    call(
        *"run --methods cpr,source_only --pairs a:b --seeds 0..2 --source-seeds 1,3".split(),
        *"--preset small --set cpr.radius=6 --image-size 192 --device cpu --jobs 2".split(),
        *"--protocol offline --track epochs --average-last 3 --profiles standard".split(),
        *"--no-models --precision bfloat16 --encoder resnet18 --encoder-weights none".split(),
        *("--out", tmp_path, "--data-root", tmp_path, "--config", config),
    )
    request = engine.request
    assert request.methods == ("cpr", "source_only")
    assert (request.pairs, request.seeds, request.source_seeds) == ("a:b", (0, 1, 2), (1, 3))
    assert (request.device, request.jobs, request.protocol) == ("cpu", 2, "offline")
    assert (request.track, request.average_last) == (True, 3)
    assert (request.profiles, request.keep_models) == (("standard",), False)
    settings = request.settings
    assert (settings.data.image_size, settings.precision) == (192, "bfloat16")
    assert (settings.network.encoder, settings.network.encoder_weights) == ("resnet18", "none")
    assert (settings.methods["cpr"].radius, settings.methods["cpr"].beta) == (6, 3.0)


@pytest.mark.parametrize("command", SHARED)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--methods crp", "did you mean 'cpr'"),
        ("--methods ,", "--methods names no method"),
        ("--metods cpr", "unrecognized arguments: --metods.*did you mean '--methods'"),
        ("--pair all", "unrecognized arguments: --pair.*did you mean '--pairs'"),
        ("--seeds one", "--seeds one: expected integers"),
        ("--source-seeds -1", "--source-seeds"),
        ("--set cpr.radios=3", "did you mean 'radius'"),
        ("--set methods.cpr=3", "--set methods.cpr=3"),
        ("--set cpr.radius=0", "cpr.radius = 0 is outside"),
        ("--preset smal", "did you mean 'small'"),
        ("--config none.toml", "--config none.toml"),
        ("--image-size 200", "image_size = 200"),
        ("--image-size big", "--image-size"),
        ("--device gpu", "--device"),
        ("--jobs 0", "--jobs: '0': expected an integer of at least 1"),
        ("--jobs many", "--jobs: 'many': expected an integer of at least 1"),
        ("--average-last 0", "--average-last: '0': expected an integer of at least 1"),
        ("--profiles standrad", "did you mean 'standard'"),
        ("--profiles ,", "profile"),
        ("--protocol onlin", "did you mean 'online'"),
        ("--plugin none.py", "--plugin .*none.py: no such Python file"),
        ("--set", "--set: expected one argument"),
    ],
)
def test_bad_usage_is_2_and_names_the_flag(
    call: Call, engine: Engine, tmp_path: Path, command: str, arguments: str, says: str
) -> None:
    result = call(*command.split(), "--out", tmp_path, *arguments.split())
    assert result.code == 2
    assert result.out == ""
    assert result.err.splitlines()[-2 if "hint: " in result.err else -1].startswith("error: ")
    assert re.search(says, result.err), result.err
    assert not engine.plans, "nothing may be planned on a bad command"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "required: COMMAND"),
        ("rnu", "invalid choice: 'rnu'"),
        ("statsu", "did you mean 'status'"),
        ("source", "required: {train,ls,import}"),
        ("source trian", "did you mean 'train'"),
        ("data verfy", "did you mean 'verify'"),
        ("ls method", "did you mean 'methods'"),
        ("ls", "required: what"),
        ("data verify", "needs --data-root"),
        ("rescore --jobs 0", "--jobs"),
        ("rescore --profile standrad --out {store}", "did you mean 'standard'"),
        ("rescore --engine medpi --out {store}", "--engine medpi"),
        ("rescore --out {store}", "holds no cells"),
        ("status --out {none}", "no store at"),
        ("report --out {none}", "no store at"),
        ("rescore --out {none}", "no store at"),
        ("source ls --out {none}", "no store at"),
    ],
)
def test_bad_commands_are_2(call: Call, tmp_path: Path, arguments: str, says: str) -> None:
    store = write_store(tmp_path / "store")
    result = call(*arguments.format(store=store, none=tmp_path / "none").split())
    assert result.code == 2
    assert result.out == ""
    assert "error: " in result.err
    assert says in result.err
    assert not (tmp_path / "none").exists(), "reading must not create a store"


# -- plan -------------------------------------------------------------------------------------


def test_plan_prints_counts_and_estimates(call: Call, engine: Engine, tmp_path: Path) -> None:
    result = call("plan", "--out", tmp_path)
    assert result.code == 0
    assert result.out.splitlines()[-1] == (
        "2 todo, 1 done, 0 blocked; disk about 50 MB; time about 2 min"
    )


def test_plan_explains_where_values_come_from(call: Call, engine: Engine, tmp_path: Path) -> None:
    arguments = ["plan", "--out", tmp_path, "--explain", "--set", "cpr.radius=6"]
    text = call(*arguments).out
    assert "cpr.radius = 6  [--set]" in text
    assert "cpr_cbam.radius = 6  [--set (inherited from cpr)]" in text
    document = call(*arguments, "--json").document
    assert document["settings"]["cpr.radius"] == {"value": 6, "origin": "--set"}
    assert document["todo"] == 2
    assert document["pair_settings"] == {}


def test_plan_explains_what_depends_on_the_pair(call: Call, engine: Engine, tmp_path: Path) -> None:
    """The two pairs for which released code has settings of their own."""
    arguments = ["plan", "--out", tmp_path, "--preset", "official", "--explain"]
    lines = call(*arguments).out.splitlines()
    for pair, iterations, epochs in (
        ("drishti_gs:rim_one_r3", 4, 10),
        ("refuge_val:drishti_gs", 32, 20),
    ):
        origin = f"[preset official [pair {pair}]]"
        assert f"{pair}: cpr.iterations = {iterations}  {origin}" in lines
        assert f"{pair}: cpr.epochs = {epochs}  {origin}" in lines
        document = call(*arguments, "--json").document["pair_settings"]
        assert document[pair]["cpr.iterations"]["value"] == iterations


# -- data -------------------------------------------------------------------------------------


def test_verify_accepts_a_correct_tree(call: Call, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    result = call("data", "verify", "--data-root", root)
    assert (result.code, result.out.splitlines()[-1].split(",")[0]) == (0, "0 errors")
    assert call("data", "verify", "--data-root", root, "--json").document["errors"] == 0


def test_verify_refuses_a_bad_tree_and_names_the_file(call: Call, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data")
    bad = root / "beta/test/ROIs/image/test1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    result = call("data", "verify", "--data-root", root)
    assert result.code == 3
    assert any(line.startswith("error: ") and str(bad) in line for line in result.out.splitlines())
    document = call("data", "verify", "--data-root", root, "--json").document
    assert document["errors"] == len([f for f in document["findings"] if f["severity"] == "error"])
    assert document["errors"] >= 1


@pytest.mark.parametrize(
    "command", ["data verify", "ls pairs", "run --device cpu", "plan --device cpu"]
)
def test_a_data_root_that_is_missing_is_3(call: Call, tmp_path: Path, command: str) -> None:
    out = ["--out", tmp_path / "out"] if command.startswith(("run", "plan")) else []
    result = call(*command.split(), *out, "--data-root", tmp_path / "nowhere")
    assert result.code == 3
    assert result.out == ""
    assert "nowhere" in result.err
    assert "hint: " in result.err


def test_a_data_root_without_domains_is_3(call: Call, tmp_path: Path) -> None:
    result = call("ls", "pairs", "--data-root", tmp_path)
    assert result.code == 3
    assert "no domain found" in result.err


# -- lists ------------------------------------------------------------------------------------


def test_ls_methods(call: Call) -> None:
    rows = call("ls", "methods", "--json").document
    assert [row["name"] for row in rows] == METHODS.names()
    assert all(row["title"] and row["source"] for row in rows)
    assert {row["strictness"] for row in rows if row["name"] == "target_supervised"} == {"oracle"}
    text = call("ls", "methods").out.splitlines()
    assert [line.split()[0] for line in text] == METHODS.names()


def test_ls_datasets(call: Call) -> None:
    rows = {row["name"]: row for row in call("ls", "datasets", "--json").document}
    assert {"drishti_gs", "rim_one_r3", "refuge_train", "refuge_val"} <= set(rows)
    assert "Domain1" in rows["drishti_gs"]["aliases"]
    assert rows["drishti_gs"]["published"] == "50/51"
    text = call("ls", "datasets").out.splitlines()
    assert [line.split()[0] for line in text] == sorted(rows)


def test_ls_networks(call: Call) -> None:
    rows = call("ls", "networks", "--json").document
    assert "deeplabv3plus" in {row["name"] for row in rows}
    assert "deeplabv3plus" in call("ls", "networks").out


def test_ls_pairs(call: Call, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "data", ("alpha", "beta", "gamma"))
    rows = call("ls", "pairs", "--data-root", root, "--json").document
    assert len(rows) == 6
    assert rows[0] == {"pair": "alpha:beta", "source": "alpha", "target": "beta"}
    synthetic = call("ls", "pairs", "--json").document
    assert len(synthetic) == 6  # three built-in domains
    assert call("ls", "pairs").out.splitlines()[0].split()[0] == synthetic[0]["pair"]


def test_a_plugin_file_adds_to_the_lists(call: Call, plugin_folder: Path) -> None:
    rows = call("ls", "networks", "--plugin", plugin_folder / "tiny.py", "--json").document
    assert "tiny_of_a_file" in {row["name"] for row in rows}


# -- stores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "report", "rescore", "run --device cpu"])
@pytest.mark.parametrize("text", ['{"schema": 99}', "{", "[]"])
def test_a_store_of_another_schema_or_damaged_is_7(
    call: Call, tmp_path: Path, command: str, text: str
) -> None:
    (tmp_path / "store.json").write_text(text)
    result = call(*command.split(), "--out", tmp_path)
    assert result.code == 7
    assert result.out == ""
    assert "store.json" in result.err
    assert (tmp_path / "store.json").read_text() == text, "a foreign store is left as it is"


def test_source_ls(call: Call, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    (row,) = call("source", "ls", "--out", store, "--json").document
    assert (row["domain"], row["test_dice"]["0.5"]["cup"]) == ("alpha", 0.8)
    text = call("source", "ls", "--out", store).out
    assert "alpha" in text
    assert "cup 0.800 disc 0.900" in text


@pytest.mark.parametrize("command", ["status", "report"])
def test_commands_that_read_print_one_document(call: Call, tmp_path: Path, command: str) -> None:
    store = write_store(tmp_path / "store")
    result = call(command, "--out", store, "--json")
    assert result.code == 0
    assert isinstance(result.document, dict)
    assert call(command, "--out", store).code == 0


# -- what a shell sees ------------------------------------------------------------------------


def shell(arguments: list[str], tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process that reports whether it imported torch."""
    code = (
        "import sys, atexit\n"
        "from sfuda_bench.cli import main\n"
        "heavy = lambda: sorted({'torch', 'torchvision', 'segmentation_models_pytorch'}"
        " & set(sys.modules))\n"
        "atexit.register(lambda: print('HEAVY', heavy(), file=sys.stderr))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )


@pytest.mark.parametrize(
    "command",
    ["--help", "run --help", "--version", "status --out s", "status --json --out s",
     "report --out s", "source ls --out s"],
)  # fmt: skip
def test_quick_commands_import_no_torch(tmp_path: Path, command: str) -> None:
    write_store(tmp_path / "s")
    done = shell(command.split(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stderr


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sfuda_bench", "nonsense"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")


@contextlib.contextmanager
def leaving(code: int) -> Iterator[None]:
    with pytest.raises(SystemExit) as caught:
        yield
    assert caught.value.code == code


@pytest.mark.parametrize(
    "command", ["", "run", "plan", "status", "ls", "report", "rescore", "source train",
                "source ls", "data verify"],
)  # fmt: skip
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with leaving(0):
        cli.main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: sfuda-bench {command}".rstrip())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with leaving(0):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("sfuda-bench ")


def test_every_documented_flag_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with leaving(0):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for flag in ("--methods", "--pairs", "--seeds", "--source-seeds", "--preset", "--set",
                 "--config", "--image-size", "--device", "--jobs", "--out", "--json",
                 "--data-root", "--track", "--encoder-weights", "--plugin"):  # fmt: skip
        assert flag in text

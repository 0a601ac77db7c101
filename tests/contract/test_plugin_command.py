"""``plugin new`` and ``plugin test``: what they write, print and answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.cli import main
from sfuda_bench.contract.check import KINDS, check_plugin, find
from sfuda_bench.contract.laboratory import Laboratory
from sfuda_bench.contract.methods import INVARIANTS
from sfuda_bench.contract.new import new_plugin
from sfuda_bench.contract.verdicts import Invariants, failed
from sfuda_bench.datasets import DATASETS
from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.scoring.validators import VALIDATORS

TABLES = dict(zip(KINDS, (METHODS, DATASETS, NETWORKS, VALIDATORS), strict=True))


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    for table in TABLES.values():
        table.load()
        for name in ("_values", "_origins", "_aliases"):
            monkeypatch.setattr(table, name, dict(getattr(table, name)))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "method"])
def test_what_plugin_new_writes_passes_plugin_test(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plugin", "new", "fresh_one", "--kind", kind, "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["file"] == "fresh_one.py" and Path("test_fresh_one.py").is_file()
    assert "fresh_one" in written["next"][0]
    assert main(["plugin", "test", "fresh_one", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] and document["kind"] == kind
    assert document["file"] == str(tmp_path / "fresh_one.py")
    assert {row["verdict"] for row in document["verdicts"]} <= {"passed", "not applicable"}


def test_the_new_method_keeps_every_invariant(
    trained: Any, tmp_path: Path, extra_methods: None
) -> None:
    """In this process; in processes of their own it takes longer, see below."""
    path, _ = new_plugin("fresh_method", "method", tmp_path)
    assert len(path.read_text("utf-8").splitlines()) < 60
    load_plugin_file(path)
    laboratory = Laboratory(trained, tmp_path / "laboratory")
    verdicts = list(INVARIANTS.judge(laboratory, METHODS.get("fresh_method")))
    assert failed(verdicts) == []
    assert (verdicts[0].invariant, verdicts[0].verdict) == ("label-blind verified", "passed")


@pytest.mark.slow
def test_the_written_test_runs_the_contract(tmp_path: Path) -> None:
    new_plugin("fresh_view", "validator", tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_fresh_view.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    assert "1 passed" in result.stdout


@pytest.mark.slow
def test_plugin_new_demo_and_plugin_test_demo(tmp_path: Path) -> None:
    """From a folder with nothing in it, in processes that can open no mask."""
    path = os.pathsep.join(p for p in sys.path if p)
    for words in (["new", "demo"], ["test", "demo"]):
        result = subprocess.run(
            [sys.executable, "-m", "sfuda_bench", "plugin", *words],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
    assert "label-blind verified" in result.stdout and "failed" not in result.stdout


def test_an_existing_file_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for existing in ("mine.py", "test_mine.py"):
        folder = tmp_path / existing
        folder.mkdir()
        (folder / existing).write_text("work of a week")
        assert main(["plugin", "new", "mine", "--out", str(folder)]) == 2
        assert f"{folder / existing} exists already" in capsys.readouterr().err
        assert [path.name for path in folder.iterdir()] == [existing]


@pytest.mark.parametrize("name", ["My-Method", "class", "1st", "ä", "a b", "", "../evil", "_x"])
def test_a_name_that_is_no_word_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", "new", "--out", str(tmp_path), "--", name]) == 2
    assert "is no name for a plug-in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_and_its_file_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", "new", "cpr", "--out", str(tmp_path)]) == 2
    assert "the method 'cpr' exists already: " in capsys.readouterr().err


def test_the_commands_that_come_next_name_the_written_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plugin", "new", "fresh_method", "--out", str(tmp_path / "a")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    path = tmp_path / "a" / "fresh_method.py"
    assert first == f"sfuda-bench plugin test fresh_method --plugin {path}"
    assert second == f"sfuda-bench run --methods source_only,fresh_method --plugin {path}"


BAD_VIEW = '''
import numpy as np
from sfuda_bench.scoring.validators import ValidationRecord, register_validator


@register_validator("bad_view", version=1, source="a test", needs={"reference"})
def bad_view(record: ValidationRecord) -> tuple[float, float]:
    """Random, and rude to the record."""
    record.prob[:] = 0
    return float(np.random.rand()), float("nan")
'''


def test_a_broken_invariant_is_exit_code_6_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad_view.py"
    path.write_text(BAD_VIEW)
    assert main(["plugin", "test", "bad_view", "--plugin", str(path), "--json"]) == 6
    said = capsys.readouterr()
    document = json.loads(said.out)
    found = {row["invariant"]: row["verdict"] for row in document["verdicts"]}
    assert not document["passed"]
    assert found == {
        "finite": "failed",
        "deterministic": "failed",
        "label-free": "failed",
        "leaves the record alone": "failed",
        "says what it is": "passed",
    }
    assert f"error: {path}: 'bad_view' does not keep: finite" in said.err
    assert main(["plugin", "test", "bad_view", "--plugin", str(path)]) == 6
    assert "leaves the record" in capsys.readouterr().out


BAD_NET = '''
import torch
from torch import nn
from sfuda_bench.networks.registry import NetworkSpec, register_network
from sfuda_bench.networks.tiny import Tiny


class Bad(Tiny):
    """Forward is not what the taps compose to, and something is missing from the state."""

    def __init__(self):
        super().__init__()
        self.hidden = torch.randn(1)

    def checked_size(self, image):
        return image.shape[-2:]

    def forward(self, image):
        return super().forward(image) + self.hidden


register_network(NetworkSpec("bad_net", 1, lambda encoder, encoder_weights: Bad(), "x", True))
'''


def test_a_network_fails_what_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "bad_net.py"
    path.write_text(BAD_NET)
    broken = failed(check_plugin("bad_net", plugins=[path]))
    assert {verdict.invariant for verdict in broken} == {
        "taps compose to forward",
        "state dict is strict",
        "finite on a constant image",
        "announces its pooling norm",
    }


BAD_DATA = """
import os
from pathlib import Path
from PIL import Image
from sfuda_bench.datasets import DatasetSpec, register


def materialise(root, *, size=256, counts=(40, 20), **knobs):
    for split in ("train", "test"):
        for kind in ("image", "mask"):
            folder = Path(root) / "bad_data" / split / "ROIs" / kind
            folder.mkdir(parents=True, exist_ok=True)
            level = int.from_bytes(os.urandom(1))
            color = (level,) * 3 if kind == "image" else 77
            Image.new("RGB" if kind == "image" else "L", (size, size), color).save(folder / "a.png")


register(
    DatasetSpec("bad_data", "Bad", "", "free", "", "none", synthetic=True, materialise=materialise)
)
"""


def test_a_data_set_fails_what_it_breaks(tmp_path: Path) -> None:
    path = tmp_path / "bad_data.py"
    path.write_text(BAD_DATA)
    broken = failed(check_plugin("bad_data", plugins=[path]))
    names = {verdict.invariant for verdict in broken}
    assert names == {"says what it is", "passes data verify", "generates the same bytes"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "method"])
def test_a_registered_plugin_of_each_kind_keeps_its_contract(kind: str) -> None:
    name = {"dataset": DATASETS, "network": NETWORKS, "validator": VALIDATORS}[kind].names()[0]
    assert failed(check_plugin(name, kind)) == []


def test_an_unknown_name_is_a_usage_error_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plugin", "test", "bn_adabt"]) == 2
    assert "did you mean 'bn_adapt'" in capsys.readouterr().err


def test_a_name_of_two_kinds_asks_for_the_kind(tmp_path: Path) -> None:
    path, _ = new_plugin("both", "validator", tmp_path / "a")
    load_plugin_file(path)
    load_plugin_file(new_plugin("both", "dataset", tmp_path / "b")[0])
    with pytest.raises(UsageError, match="'both' is a dataset and a validator"):
        find("both")
    assert find("both", "dataset") == "dataset"


def test_whatever_a_check_raises_is_evidence() -> None:
    invariants: Invariants[str, None] = Invariants()

    @invariants.add("works")
    def works(laboratory: None, spec: str) -> str:
        """It works."""
        raise ZeroDivisionError("by nothing")

    (verdict,) = invariants.judge(None, "x")
    assert (verdict.verdict, verdict.evidence) == ("failed", "ZeroDivisionError: by nothing")
    assert verdict.says == "It works."

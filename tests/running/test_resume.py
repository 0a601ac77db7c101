"""What is killed between two epochs goes on after the last finished one, to the same bytes."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfuda_bench.contract.bench import Bench, Listener
from sfuda_bench.methods import METHODS
from sfuda_bench.running.checkpoint import Checkpoints, Parts
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.plan import Plan
from sfuda_bench.running.request import RECORDS
from sfuda_bench.running.store import read_json

EPOCHS = 3
TRAINED = [
    name
    for name in METHODS.names()
    if not METHODS.get(name).oracle
    and METHODS.get(name).updates & {"bn_affine", "whole"}
    and "offline" in METHODS.get(name).protocols
]


def _epochs(name: str) -> list[str]:
    values = [f"{name}.epochs={EPOCHS}"]
    settings = METHODS.get(name).config.__dataclass_fields__
    return [*values, *([f"{name}.head_epochs={EPOCHS}"] if "head_epochs" in settings else [])]


def _stopped_and_resumed(bench: Bench, plan: Plan, stage: str, epoch: int) -> Listener:
    """Compute a plan's only cell twice: stopped at an epoch's begin, then to the end."""
    (cell,) = plan.cells
    assert bench.interrupt(cell.job, stage, epoch)
    assert not (cell.folder / "cell.json").exists()
    again = Listener()
    assert JobRunner(bench.out, "cpu").compute(dict(cell.job), again) == "computed"
    return again


def _results(folder: Path) -> dict[str, bytes]:
    """Return a cell's files but its record of the run and its log."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", "log.txt")
    }


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("record", [frozenset(), frozenset(RECORDS)], ids=["plain", "recorded"])
def test_a_cell_goes_on_after_its_last_epoch_with_the_same_bytes(
    name: str, record: frozenset[str], trained: Any, copy_bench: Any, tmp_path: Path
) -> None:
    one, other = (copy_bench(trained, _made(tmp_path / part)) for part in ("one", "other"))
    request = {"overrides": _epochs(name), "record": record, "checkpoint_every": 0.0}
    whole = one.run(name, **request)
    plan = other.plan(name, **request)
    again = _stopped_and_resumed(other, plan, "adapting", EPOCHS)
    assert [epoch for stage, epoch in again.seen if stage == "adapting"] == [EPOCHS]
    assert read_json(plan.cells[0].folder / "run.json")["resumed_after_epoch"] == [EPOCHS - 1]
    found, expected = _results(plan.cells[0].folder), _results(whole.folder)
    scores = {path for path in expected if path.startswith(_SCORED)}
    assert found == {path: data for path, data in expected.items() if path not in scores}
    assert not (other.out / "attempts" / plan.cells[0].key[:16]).exists()


_SCORED = ("cases-", "eyes-", "scores-", "epochs-", "train-", "selections", "funnel")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_frozen_step_goes_on_after_its_last_epoch(bench: Any, tmp_path: Path) -> None:
    whole = bench.with_out(_made(tmp_path / "whole"))
    request = {"overrides": _epochs("cpr"), "checkpoint_every": 0.0}
    expected = whole.run("cpr", **request)
    plan = bench.plan("cpr", **request)
    again = _stopped_and_resumed(bench, plan, "similarity head", EPOCHS)
    heads = [epoch for stage, epoch in again.seen if stage == "similarity head"]
    assert heads == [0, EPOCHS]
    assert bench.outcome(plan).sha == expected.sha
    for folder in whole.out.glob("artefacts/*/*"):
        tensors = folder / "tensors.safetensors"
        assert (bench.out / tensors.relative_to(whole.out)).read_bytes() == tensors.read_bytes()


def test_a_source_model_goes_on_after_its_last_epoch(bench: Any, tmp_path: Path) -> None:
    settings = {"overrides": ["source.epochs=7", "source.validate_every=2"]}
    cards = []
    for kill in (False, True):
        out = _made(tmp_path / f"store-{kill}")
        plan = bench.plan("source_only", **settings, checkpoint_every=0.0)
        job = {**plan.sources[0].job, "source_dir": str(out / "sources/toy_a/x")}
        if kill:
            assert replace(bench, out=out).interrupt(job, "training", 5)
        pipe = Listener()
        assert JobRunner(out, "cpu").compute(job, pipe) == "computed"
        # The message of an epoch comes before its checkpoint.
        assert pipe.seen[0] == ("training", 5 if kill else 1)
        (card,) = out.glob("sources/*/*/card.json")
        cards.append({k: v for k, v in read_json(card).items() if k != "seconds"})
    assert cards[0] == cards[1]


def test_a_method_that_names_no_state_starts_over(bench: Any) -> None:
    plan = bench.plan("bn_adapt", checkpoint_every=0.0)
    job = dict(plan.cells[0].job)
    assert bench.interrupt(job, "storing", 0)
    pipe = Listener()
    JobRunner(bench.out, "cpu").compute(job, pipe)
    assert ("adapting", 1) in pipe.seen
    assert read_json(plan.cells[0].folder / "run.json")["resumed_after_epoch"] == []


# -- the checkpoint itself --------------------------------------------------------------------


def _loop(checkpoints: Checkpoints, epochs: int, start: int = 0) -> dict[str, Any]:
    """Train a small network; return its weights, and what else the loop carries."""
    torch.manual_seed(start)
    random.seed(start)
    np.random.seed(start)
    network = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    group = optimizer.param_groups[0]
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    total = torch.zeros(2)
    parts: Parts = {"n": network, "o": optimizer, "s": scheduler, "t": total}
    done = checkpoints.begin(parts)
    for epoch in range(done + 1, epochs + 1):
        loss = network(torch.rand(4, 3)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.detach()
        checkpoints.offer(epoch, parts)
    draws = torch.cat([torch.rand(2), torch.tensor([random.random(), np.random.rand()])])
    return {"weight": network.weight, "total": total, "draws": draws, "lr": group["lr"]}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "checkpoint"


def test_weights_optimiser_schedule_and_random_state_come_back(folder: Path) -> None:
    expected = _loop(Checkpoints(folder / "whole", {}, 0), 5)
    _loop(Checkpoints(folder, {"of": "this"}, 0), 3)
    found = _loop(Checkpoints(folder, {"of": "this"}, 0), 5, start=99)
    for name in ("weight", "total", "draws"):
        assert torch.equal(found[name], expected[name])
    assert found["lr"] == expected["lr"] == 0.1 * 0.5**2


def test_a_finished_loop_is_not_repeated_and_the_next_one_follows(folder: Path) -> None:
    first = Checkpoints(folder, {}, 0)
    expected = [_loop(first, 2)["draws"], _loop(first, 3)["draws"]]
    again = Checkpoints(folder, {}, 0)
    found = [_loop(again, 2, 7)["draws"], _loop(again, 3, 7)["draws"]]
    assert again.resumed == [2, 3]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("damage", ["half", "flipped", "other identity", "no safetensors"])
def test_a_checkpoint_that_cannot_be_trusted_is_not_used(folder: Path, damage: str) -> None:
    _loop(Checkpoints(folder, {"code": 1}, 0), 2)
    path = folder / "loop-1.safetensors"
    data = path.read_bytes()
    if damage == "half":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no safetensors":
        path.write_bytes(json.dumps({"epoch": 2}).encode())
    identity = {"code": 2 if damage == "other identity" else 1}
    checkpoints = Checkpoints(folder, identity, 0)
    assert checkpoints.begin({"t": torch.zeros(2)}) == 0
    assert checkpoints.resumed == []


def test_what_another_identity_left_is_removed(folder: Path) -> None:
    _loop(Checkpoints(folder, {"code": 1}, 0), 2)
    assert Checkpoints(folder, {"code": 1}, 0).exist()
    assert not Checkpoints(folder, {"code": 2}, 0).exist()
    assert not folder.exists()


def test_young_work_is_not_written(folder: Path) -> None:
    _loop(Checkpoints(folder, {}, 3600), 3)
    assert not folder.exists()

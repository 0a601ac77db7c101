"""Checkpoints from strangers: no code of theirs runs, and none is misread."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfuda_bench.errors import DataError
from sfuda_bench.networks.state_files import read_state
from sfuda_bench.running.keys import model_sha256
from sfuda_bench.running.own.models import OwnModel, find_model
from sfuda_bench.running.store import write_json, write_sealed
from tests.fuzz.mutations import flipped, other_json
from tests.fuzz.outcome import command, only_our_errors
from tests.fuzz.weights import Payload, attack, check_read, check_refused, crooked, good, malicious


def test_the_payload_of_these_tests_does_run_when_a_pickle_is_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(os.system, f"touch '{mark}'")))
    assert mark.exists()


def test_no_malicious_file_is_taken_and_none_runs_its_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    files = malicious(mark)
    assert len(files) > 200
    for name, data in files.items():
        check_refused(tmp_path / name, data, mark)


@pytest.mark.parametrize("name", sorted(crooked()))
def test_a_safetensors_file_that_lies_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "crooked.safetensors"
    data = crooked()[name]
    check_read(path, data)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"crooked\.safetensors"):
        read_state(path, "--model", "check the path")


@given(st.randoms(use_true_random=False))
def test_damaged_weights_are_refused_or_read_in_one_way(folder: Path, rng: random.Random) -> None:
    attack(rng, folder)


@pytest.mark.parametrize("ending", ["pth", "safetensors", "pth.tar"])
def test_the_commands_that_take_weights_refuse_a_pickle(tmp_path: Path, ending: str) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / f"model.{ending}"
    path.write_bytes(pickle.dumps({"state_dict": Payload(os.system, f"touch '{mark}'")}))
    (tmp_path / "images").mkdir()
    out = ["--out", str(tmp_path / "out")]
    network = ["--network", "tiny"]
    commands = (
        ["source", "import", str(path), "--domain", "refuge_train", *network, *out],
        ["predict", "--model", str(path), "--images", str(tmp_path / "images"), *network, *out],
        [
            *("adapt", "--method", "bn_adapt", "--model", str(path)),
            *("--images", str(tmp_path / "images"), *network),
            *("--out", str(tmp_path / "adapted.safetensors")),
        ],
    )
    for arguments in commands:
        assert command(arguments).code == 3
        assert not mark.exists()


CARD = {
    "kind": "adapted model",
    "network": {"name": "tiny", "encoder": "mobilenet_v2", "encoder_weights": "none"},
    "image_size": 96,
    "roi_crop_px": 0,
    "inference": {"batch_norm": "running", "dropout": False, "pooling_bn": True},
    "inference_seed": 7,
    "precision": "float32",
}


@pytest.mark.parametrize("seal", [True, False])
def test_a_damaged_card_is_named_or_changes_nothing(tmp_path: Path, seal: bool) -> None:
    """Without a seal, as earlier versions wrote it, only what has another kind can be told."""
    model, card = tmp_path / "own.safetensors", tmp_path / "own.json"
    model.write_bytes(good())
    state = read_state(model, "--model", "check the path")
    (write_sealed if seal else write_json)(
        card, {**CARD, "adapted_model_sha256": model_sha256(state)}
    )
    data, before = card.read_bytes(), _run_as(find_model(model))
    for number in range(150):
        rng = random.Random(number)
        card.write_bytes(other_json(data, rng) if number % 2 else flipped(data, rng))
        found = only_our_errors(lambda: _run_as(find_model(model)), str(tmp_path))
        if seal and not isinstance(found, Exception):
            assert found == before or b"adapted model" not in card.read_bytes()


def _run_as(model: OwnModel) -> object:
    return model.network, model.image_size, model.inference, model.card.get("precision")


def test_good_weights_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(good())
    assert read_state(path, "--model", "check the path")

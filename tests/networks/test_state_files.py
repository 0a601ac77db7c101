"""State dicts from files: plain data is read, nothing is executed, and differences are named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfuda_bench.errors import DataError
from sfuda_bench.networks.state_files import fit_state, read_state


def tensors() -> dict[str, Tensor]:
    return {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"model_state_dict": state, "epoch": 3, "optim_state_dict": {"state": {}}},
        lambda state: {"model_state_dict": state, "best_mean_dice": np.float64(0.9)},
        lambda state: {"model_state_dict": {f"module.{k}": v for k, v in state.items()}},
    ],
    ids=["plain", "state_dict", "checkpoint", "numpy_score", "parallel"],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_checkpoints_are_opened(tmp_path: Path, wrap: Callable[[Any], Any], legacy: bool) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(wrap(tensors()), path, _use_new_zipfile_serialization=not legacy)
    assert same(read_state(path, "weights", "hint"), tensors())


def test_safetensors_are_read(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "weights.safetensors")
    assert same(read_state(tmp_path / "weights.safetensors", "weights", "hint"), tensors())


class Malicious:
    """An object whose unpickling would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_wants_to_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"model_state_dict": tensors(), "extra": Malicious(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(DataError, match=r"weights '.*evil\.pth' cannot be read"):
        read_state(path, "weights", "hint")
    assert not trace.exists()


@pytest.mark.parametrize("content", [{"model": 3}, [1, 2], {"state_dict": {"a": "text"}}])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DataError, match="not a state dict"):
        read_state(tmp_path / "other.pth", "weights", "hint")


def test_a_missing_file_is_named_with_the_hint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as error:
        read_state(tmp_path / "absent.pth", "weights", "look elsewhere")
    assert error.value.hint == "look elsewhere"


def test_differences_are_named_by_kind_and_nothing_is_loaded() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {**before, "2.weight": torch.zeros(1), "0.bias": torch.zeros(5)}
    del state["1.running_mean"]
    with pytest.raises(DataError) as error:
        fit_state(module, state, "it does not fit", "hint")
    assert error.value.message == (
        "it does not fit: missing keys 1.running_mean; unexpected keys 2.weight; "
        "other shapes 0.bias (5,) instead of (2,)"
    )
    assert same(module.state_dict(), before)


def test_only_batch_counters_may_be_missing() -> None:
    module = nn.BatchNorm1d(2)
    state = {"weight": torch.ones(2), "bias": torch.ones(2)}
    state |= {"running_mean": torch.ones(2), "running_var": torch.ones(2)}
    fit_state(module, state, "it", "hint")
    assert torch.equal(module.bias, torch.ones(2))


def test_a_long_list_is_cut() -> None:
    with pytest.raises(DataError, match=r"missing keys 0\.weight, 0\.bias, 1\.weight and 5 more"):
        fit_state(nn.Sequential(*(nn.Linear(1, 1) for _ in range(4))), {}, "it", "hint")

"""Checkpoints inside a long computation: the last finished epoch, so that a kill loses little.

What goes on from a checkpoint ends with the bytes of what was never interrupted: weights,
optimiser, batch-norm statistics, random state and records are restored exactly, or the checkpoint
is not used at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sfuda_bench.running.keys import digest, model_sha256
from sfuda_bench.running.runtime import environment
from sfuda_bench.running.store import Store, write_bytes

EVERY_SECONDS = 5.0
"""Work that is younger is computed again after a kill: it costs less than keeping it."""
_WRITING_SHARE = 0.05  # of the time that may go into checkpoints
_DAMAGED = (OSError, SafetensorError, ValueError, KeyError, TypeError)
_log = logging.getLogger(__name__)


class Stateful(Protocol):
    """What a checkpoint can hold besides tensors: modules, optimisers and the like."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return nested dicts, lists and tuples of tensors and JSON scalars."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Take such a state back."""
        ...


Parts = Mapping[str, "Stateful | Tensor"]


class Checkpoints:
    """The checkpoints of one key: one file per loop over epochs, the newest epoch in it.

    Args:
        folder: Where they lie: in the attempt's folder, which ends with the commit.
        identity: What the bytes of the result depend on, the machine included; a checkpoint of
            another identity is ignored.
        every: Seconds between two checkpoints; 0 writes one after every epoch. However short,
            about a twentieth of the time goes into writing.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], every: float = EVERY_SECONDS
    ) -> None:
        self._folder, self._identity, self._every = folder, digest(identity), every
        self._loop = 0
        self._written = time.monotonic()
        self._pause = every
        self.resumed: list[int] = []
        """Epochs after which this process went on, one per loop that did."""

    def exist(self) -> bool:
        """Whether there is something to go on from; what another identity left is removed."""
        found = [path for path in self._folder.glob("loop-*") if self._about(path)]
        if not found:
            shutil.rmtree(self._folder, ignore_errors=True)
        return bool(found)

    def begin(self, parts: Parts) -> int:
        """Begin the next loop over epochs.

        Args:
            parts: All that one epoch hands to the next; restored in place.

        Returns:
            The last epoch that need not be computed again; 0 without a checkpoint.
        """
        self._loop += 1
        found = self._read()
        if found is None:
            return 0
        epoch, states = found
        if states.keys() != {*parts, "random"}:
            return 0
        for name, part in parts.items():
            _restore(part, states[name])
        _set_random_state(states["random"])
        self.resumed.append(epoch)
        _log.info("going on after epoch %d of loop %d", epoch, self._loop)
        return epoch

    def offer(self, epoch: int, parts: Parts) -> None:
        """Write the loop's checkpoint if the last one is old enough."""
        now = time.monotonic()
        if now - self._written < self._pause:
            return
        states = {name: _state_of(part) for name, part in parts.items()}
        tensors: dict[str, Tensor] = {}
        skeleton = _flatten({**states, "random": _random_state()}, tensors, "")
        about = {
            "identity": self._identity,
            "epoch": epoch,
            "sha256": _sum(epoch, skeleton, tensors),
            "skeleton": skeleton,
        }
        write_bytes(self._path, save(tensors, metadata={"checkpoint": json.dumps(about)}))
        self._written = time.monotonic()
        self._pause = max(self._every, (self._written - now) / _WRITING_SHARE * (self._every > 0))

    @property
    def _path(self) -> Path:
        return self._folder / f"loop-{self._loop}.safetensors"

    def _about(self, path: Path) -> dict[str, Any] | None:
        """Return what a checkpoint says of itself, if it is there and of this identity."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                about: dict[str, Any] = json.loads(file.metadata()["checkpoint"])
            return about if about["identity"] == self._identity else None
        except _DAMAGED as error:
            _log.warning("%s is not used: %s", path, error)
            return None

    def _read(self) -> tuple[int, dict[str, Any]] | None:
        about = self._about(self._path)
        if about is None:
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            if _sum(about["epoch"], about["skeleton"], tensors) != about["sha256"]:
                raise ValueError("other bytes than were written")
            return int(about["epoch"]), _unflatten(about["skeleton"], tensors)
        except _DAMAGED as error:
            _log.warning("%s is not used: %s", self._path, error)
            return None


def checkpoints_of(
    job: Mapping[str, Any], store: Store, device: torch.device, code: str, key: str | None = None
) -> Checkpoints:
    """Return the checkpoints of a job, or of an artefact that it needs.

    Args:
        job: A cell's or a source model's job.
        store: Where the attempt's folder is.
        device: Where it computes.
        code: Digest of the code that computes.
        key: The artefact's key; the job's by default.
    """
    machine = environment(device)
    identity = {
        "key": key or job["key"],
        "record": job.get("record"),
        "code": code,
        **{name: machine[name] for name in ("python", "device", "threads", "versions")},
    }
    folder = store.attempt(key or job["key"]) / "checkpoint"
    return Checkpoints(folder, identity, job.get("checkpoint_every", EVERY_SECONDS))


def _state_of(part: Stateful | Tensor) -> Any:
    return part if isinstance(part, Tensor) else part.state_dict()


def _restore(part: Stateful | Tensor, state: Any) -> None:
    if isinstance(part, Tensor):
        with torch.no_grad():
            part.copy_(state)
        return
    if isinstance(part, torch.optim.Optimizer):
        groups = list(part.param_groups)
        part.load_state_dict(state)
        _same_groups(part, groups)
        _same_layout(part)
    else:
        part.load_state_dict(state)


def _same_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Put the loaded groups into the old dictionaries: a method may hold on to one of them."""
    for old, loaded in zip(groups, optimizer.param_groups, strict=True):
        old.clear()
        old.update(loaded)
    optimizer.param_groups[:] = groups


def _same_layout(optimizer: torch.optim.Optimizer) -> None:
    """Lay an optimiser's tensors out like their parameters, as it did when it made them.

    Other strides can choose other kernels, which round in another order.
    """
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _random_state() -> dict[str, Any]:
    name, words, *rest = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "cpu": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(name), torch.from_numpy(np.asarray(words).astype(np.int64)), *rest),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    random.setstate(state["python"])
    name, words, *rest = state["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _sum(epoch: int, skeleton: Any, tensors: Mapping[str, Tensor]) -> str:
    """Return the digest of all that a checkpoint holds; its scalars may be NaN."""
    text = json.dumps([epoch, skeleton, model_sha256(tensors)])
    return hashlib.sha256(text.encode()).hexdigest()


def _flatten(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """Return JSON that stands for a nested state; its tensors go into ``tensors`` by path.

    Containers become ``[kind, content]``: keys may be integers, and tuples stay tuples.
    """
    if isinstance(value, Tensor):
        name = f"{len(tensors)}{path}"  # unique also where keys hold slashes, or are 1 and "1"
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return ["tensor", name]
    if isinstance(value, Mapping):
        items = [[key, _flatten(v, tensors, f"{path}/{key}")] for key, v in value.items()]
        return ["dict", items]
    if isinstance(value, list | tuple):
        content = [_flatten(v, tensors, f"{path}/{n}") for n, v in enumerate(value)]
        return ["tuple" if isinstance(value, tuple) else "list", content]
    if value is None or isinstance(value, bool | int | float | str):
        return ["scalar", value]
    raise TypeError(f"a checkpoint cannot hold {path.lstrip('/')}: a {type(value).__name__}")


def _unflatten(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    kind, content = node
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unflatten(value, tensors) for key, value in content}
    if kind == "scalar":
        return content
    values = [_unflatten(value, tensors) for value in content]
    return tuple(values) if kind == "tuple" else values

"""Frozen artefacts: results of module-level functions, computed once per content key."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.methods import Carried
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.checkpoint import Checkpoints
from sfuda_bench.running.counting import ImageCount
from sfuda_bench.running.keys import derive_seed, digest
from sfuda_bench.running.runtime import autocast
from sfuda_bench.running.seals import check_listed_file
from sfuda_bench.running.store import Store, write_json, write_sealed
from sfuda_bench.running.streams import Streams, forked
from sfuda_bench.running.target import TargetImages


@dataclass(frozen=True)
class FrozenArtefact:
    """Named tensors in a file, with the key they were computed under; read when asked for."""

    key: str
    path: Path
    device: torch.device

    def names(self) -> list[str]:
        """Return the names of the tensors, sorted."""
        with safe_open(self.path, framework="pt") as file:
            return sorted(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor onto the device.

        Raises:
            KeyError: There is no such tensor.
            StoreSchemaError: The file is damaged.
        """
        try:
            with safe_open(self.path, framework="pt", device=str(self.device)) as file:
                if name not in file.keys():
                    raise KeyError(name)
                tensor: Tensor = file.get_tensor(name)
                return tensor
        except (OSError, SafetensorError) as error:
            raise StoreSchemaError(
                f"{self.path}: damaged artefact ({error})",
                hint=f"delete {self.path.parent} and run the same command again",
            ) from error


@dataclass
class FrozenContext:
    """What a frozen function may use (see :class:`sfuda_bench.methods.FrozenTask`)."""

    _source_model: SegmentationNetwork
    target: TargetImages
    device: torch.device
    precision: str
    streams: Streams
    emit: Callable[[str, int, int], None]
    stage: str
    count: ImageCount
    checkpoints: Checkpoints | None = None

    @property
    def source_model(self) -> SegmentationNetwork:
        """Return a fresh copy of the source model in eval mode."""
        return copy.deepcopy(self._source_model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the mixed-precision context of this run."""
        return autocast(self.device, self.precision)

    def epochs(self, count: int, *, state: Carried | None = None) -> Iterator[int]:
        """Yield 1..count, seeding each epoch's streams from the artefact's key."""
        checkpoints = None if state is None else self.checkpoints
        parts: dict[str, Any] = {"streams": self.streams, "count": self.count}
        parts |= {f"state.{name}": part for name, part in (state or {}).items()}
        done = 0 if checkpoints is None else checkpoints.begin(parts)
        for epoch in range(done + 1, count + 1):
            self.streams.begin(epoch)
            self.emit(self.stage, epoch, count)
            yield epoch
            if checkpoints is not None:
                checkpoints.offer(epoch, parts)


@dataclass
class ArtefactCache:
    """Computes, stores and loads the artefacts of one (source model, target, seed).

    Args:
        store: Where artefacts are kept.
        base: Everything outside the function's parameters that its result depends on.
        source_model: Pristine source model; functions get copies.
        target: The unlabelled images.
        device: Where results are returned.
        precision: Autocast precision.
        emit: Progress callback.
        count: Images through the source model and its copies.
        checkpoints: Makes the checkpoints of an artefact's key.
        check_inputs: Raises when a method has changed what artefacts are computed from.
    """

    store: Store
    base: Mapping[str, Any]
    source_model: SegmentationNetwork
    target: TargetImages
    device: torch.device
    precision: str
    emit: Callable[[str, int, int], None]
    count: ImageCount = field(default_factory=ImageCount)
    computed: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: Callable[[str], Checkpoints] | None = None
    check_inputs: Callable[[], None] = lambda: None

    def get(
        self, function: Callable[..., dict[str, Tensor]], parameters: Mapping[str, Any]
    ) -> FrozenArtefact:
        """Return the artefact of ``function(**parameters)``, computing it if it is missing.

        Raises:
            UsageError: The function is not a marked module-level function, or a parameter is
                neither a JSON scalar nor another artefact.
        """
        key = digest(self.key_fields(function, parameters))
        name = function.__name__
        folder = self.store.artefact(name, key)
        if not (folder / "meta.json").is_file():
            # Whoever comes second waits here and finds the artefact written.
            with self.store.lock(key, wait=True):
                if not (folder / "meta.json").is_file():
                    self._compute(function, parameters, key, folder)
                self.store.clear_attempt(key)
        check_listed_file(folder / "tensors.safetensors")
        return FrozenArtefact(key, folder / "tensors.safetensors", self.device)

    def key_fields(
        self, function: Callable[..., Any], parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what the artefact's key is the digest of."""
        frozen_version = getattr(function, "frozen_version", None)
        if frozen_version is None or "<locals>" in function.__qualname__:
            raise UsageError(
                f"task.frozen({function.__qualname__}): expected a module-level function marked "
                "with @frozen_step(version=...)"
            )
        values: dict[str, Any] = {}
        defaults = inspect.signature(function).parameters
        for name, value in sorted(parameters.items()):
            if name in defaults and value == defaults[name].default:
                continue  # a step may gain parameters: what was stored before keeps its key
            if isinstance(value, FrozenArtefact):
                values[name] = {"artefact": value.key}
            elif value is None or isinstance(value, bool | int | float | str):
                values[name] = value
            else:
                raise UsageError(
                    f"task.frozen({function.__name__}): parameter '{name}' is a "
                    f"{type(value).__name__}; expected a JSON scalar or an artefact"
                )
        return {
            "frozen": function.__name__,
            "version": frozen_version,
            "parameters": values,
            **self.base,
        }

    def _compute(
        self,
        function: Callable[..., dict[str, Tensor]],
        parameters: Mapping[str, Any],
        key: str,
        folder: Path,
    ) -> None:
        self.check_inputs()
        stage = function.__name__.replace("_", " ")
        # Variants of a step (other radius, attention, ...) see the same augmentations.
        shared = digest({"frozen": function.__name__, **self.base})
        target = self.target.with_streams(Streams(key, shared))
        context = FrozenContext(
            _source_model=self.source_model,
            target=target,
            device=self.device,
            precision=self.precision,
            streams=target.streams,
            emit=self.emit,
            stage=stage,
            count=self.count,
            checkpoints=None if self.checkpoints is None else self.checkpoints(key),
        )
        self.emit(stage, 0, 0)
        started, before = time.monotonic(), self.count.copy()
        # A forked generator: a cache hit changes no later draw of the method.
        with forked(derive_seed(key, "frozen")):
            tensors = function(context, **parameters)
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        for name, value in tensors.items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise FloatingPointError(f"{function.__name__}: '{name}' is not finite")
        staged = self.store.staging(key, "artefact")
        save_file(tensors, staged / "tensors.safetensors")
        write_json(staged / "meta.json", self.key_fields(function, parameters))
        seconds = round(time.monotonic() - started, 3)
        write_sealed(staged / "cost.json", {"seconds": seconds, **self.count.since(before)})
        self.computed.append({"name": function.__name__, "key": key, "seconds": seconds})
        self.store.commit(staged, folder)

"""The task a method works on: everything it can reach, and nothing with a label in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import Carried
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.checkpoint import Checkpoints, Stateful
from sfuda_bench.running.frozen import ArtefactCache, FrozenArtefact
from sfuda_bench.running.runtime import autocast
from sfuda_bench.running.target import TargetImages

Observer = Callable[[int, nn.Module], None]


class Task:
    """Implements :class:`sfuda_bench.methods.AdaptationTask`.

    Args:
        source_model: The method's own copy, eval mode, on the device.
        target: Unlabelled images with the adaptation's streams.
        aux: The declared source-side extras.
        artefacts: Cache behind :meth:`frozen`.
        precision: ``"float32"`` or ``"bfloat16"``.
        observe: Called with (epoch, model) at each epoch's end; it must change nothing.
        keep_labels: Keep the pseudo-labels that the method hands in.
        emit: Progress callback (stage, epoch, epochs).
        checkpoints: Where finished epochs are kept until the cell is committed.
        carried: What of the harness goes on from a checkpoint, besides the task's own records.
    """

    def __init__(
        self,
        *,
        source_model: SegmentationNetwork,
        target: TargetImages,
        aux: Mapping[str, Any],
        artefacts: ArtefactCache,
        precision: str,
        observe: Observer,
        emit: Callable[[str, int, int], None],
        keep_labels: bool = False,
        checkpoints: Checkpoints | None = None,
        carried: Mapping[str, Stateful] | None = None,
    ) -> None:
        self.source_model = source_model
        self.target = target
        self.aux = aux
        self.device: torch.device = artefacts.device
        self.artefacts = artefacts
        self._precision = precision
        self._observe = observe
        self._emit = emit
        self._epoch = 0
        self.curve: list[tuple[int, str, float]] = []
        self.used: list[str] = []
        self.labels: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = {}
        self._keep_labels = keep_labels
        self._checkpoints = checkpoints
        self._carried = dict(carried or {})

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the mixed-precision context of this run."""
        return autocast(self.device, self._precision)

    def frozen(
        self, function: Callable[..., dict[str, Tensor]], **parameters: Any
    ) -> FrozenArtefact:
        """Return the result of a frozen step, computed once per content key."""
        artefact = self.artefacts.get(function, parameters)
        self.used.append(f"{function.__name__}/{artefact.key}")
        return artefact

    def epochs(
        self,
        count: int,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        state: Carried | None = None,
    ) -> Iterator[int]:
        """Yield 1..count (a second call goes on counting); each epoch is seeded and observed.

        Raises:
            FloatingPointError: A weight or buffer of ``model`` is no longer finite.
        """
        last = self._epoch + count
        parts = self._parts(model, optimizer, state)
        if parts and self._checkpoints is not None:
            self._epoch = self._checkpoints.begin(parts) or self._epoch
        for epoch in range(self._epoch + 1, last + 1):
            self._epoch = epoch
            self.target.streams.begin(epoch)
            self._emit("adapting", epoch, count)
            yield epoch
            check_finite(model)
            self._observe(epoch, model)
            if parts and self._checkpoints is not None:
                self._checkpoints.offer(epoch, parts)

    def _parts(self, model: nn.Module, optimizer: Any, state: Carried | None) -> dict[str, Any]:
        """Return all that an epoch hands to the next; nothing when the method does not say."""
        if optimizer is None and state is None:
            return {}
        parts = {"model": model, "records": _Records(self), **self._carried}
        if optimizer is not None:
            parts["optimizer"] = optimizer
        return parts | {f"state.{name}": part for name, part in (state or {}).items()}

    def track(self, **values: float) -> None:
        """Record label-free scalars for the current epoch."""
        self.curve += [(self._epoch, name, float(value)) for name, value in values.items()]

    def pseudo_labels(self, stage: str, label: Tensor, keep: Tensor | None = None) -> None:
        """Keep the pseudo-labels of one stage when that was asked for; the first ones count.

        Raises:
            UsageError: A stage's name with a dot, or maps that are no bool (N, 2, S, S).
        """
        kept = torch.ones_like(label) if keep is None else keep
        shape = (len(self.target), 2, *self.target.images.shape[-2:])
        for name, value in (("label", label), ("keep", kept)):
            if value.shape != shape or value.dtype != torch.bool:
                raise UsageError(
                    f"task.pseudo_labels('{stage}'): {name} is {value.dtype} "
                    f"{tuple(value.shape)}; expected torch.bool {shape}"
                )
        if "." in stage:
            raise UsageError(f"task.pseudo_labels('{stage}'): expected a name without dots")
        if self._keep_labels and stage not in self.labels:
            self.labels[stage] = (label.cpu().numpy(), kept.cpu().numpy())

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """Keep what the block asks of the task out of the cell's records."""
        used, curve = list(self.used), list(self.curve)
        try:
            yield
        finally:
            self.used, self.curve = used, curve
            self.artefacts.computed = [c for c in self.artefacts.computed if _name(c) in used]

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch (0 when nothing was trained in epochs)."""
        return self._epoch


@dataclass
class _Records:
    """What a task has recorded so far, as a part of checkpoints."""

    task: Task

    def state_dict(self) -> dict[str, Any]:
        labels = {
            stage: (torch.from_numpy(label), torch.from_numpy(keep))
            for stage, (label, keep) in self.task.labels.items()
        }
        return {"curve": self.task.curve, "labels": labels}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.task.curve = state["curve"]
        self.task.labels = {
            stage: (label.numpy(), keep.numpy()) for stage, (label, keep) in state["labels"].items()
        }


def _name(computed: Mapping[str, Any]) -> str:
    return f"{computed['name']}/{computed['key']}"


def check_finite(model: nn.Module) -> None:
    """Raise when a weight or buffer is NaN or infinite.

    Raises:
        FloatingPointError: Names the first tensor that is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise FloatingPointError(f"'{name}' is not finite: the adaptation diverged")

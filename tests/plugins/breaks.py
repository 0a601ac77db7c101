"""Methods that break one invariant of the contract each, some only without a firewall."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.tunable import setting, tunable

Adapt = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """``size``: how far the weights move."""

    size: float = tunable(1e-3, 0.0, 1.0)
    batch_size: int = setting(4, 1, 64)


@dataclass(frozen=True, kw_only=True)
class OutOfRange:
    """A default that its own range excludes."""

    size: float = tunable(5.0, 0.0, 1.0)


def _method(name: str, **declared: Any) -> Callable[[Adapt], Adapt]:
    defaults: dict[str, Any] = {"config": StepConfig, "updates": {"whole"}, "source": "a test"}
    return register(name, version=1, **{**defaults, **declared})


def _noise(model: nn.Module, size: float) -> nn.Module:
    """Move the weights by seeded noise: what a trained method does, in short."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return model


def _job(task: Any) -> dict[str, Any]:
    job: dict[str, Any] = task._observe.__self__._job
    return job


@_method("keeps_everything", inert={"size": 0.0})
def keeps_everything(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Break nothing: the control of the others."""
    return _noise(task.source_model, config.size)


@_method("sees_names")
def sees_names(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Use the order of the file names."""
    images = Path(_job(task)["images"]["train"]["images"])
    names = [json.loads(p.read_text("utf-8")) for p in images.parents[1].glob("names/*.json")]
    return _noise(task.source_model, config.size + 1e-4 * ("g0_" in json.dumps(names)))


@_method("sees_the_record")
def sees_the_record(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Do something else when more is recorded."""
    return _noise(task.source_model, config.size * (1 + len(_job(task)["record"])))


@_method("ignores_the_seed")
def ignores_the_seed(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Seed itself."""
    torch.manual_seed(0)
    return _noise(task.source_model, config.size)


@_method("draws_from_the_system")
def draws_from_the_system(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Draw where nobody seeds."""
    torch.manual_seed(int.from_bytes(os.urandom(4)))
    return _noise(task.source_model, config.size)


@_method("does_nothing")
def does_nothing(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Declare an update and make none."""
    return task.source_model


@_method("changes_more", updates={"bn_affine"})
def changes_more(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Declare less than it changes."""
    return _noise(task.source_model, config.size)


@_method("is_not_inert", inert={"size": 1e-6})
def is_not_inert(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Move under its inert settings, a little."""
    return _noise(task.source_model, config.size)


@_method("divides_by_contrast")
def divides_by_contrast(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Divide by what a constant image has none of."""
    contrast = torch.stack([b.image.std(dim=(2, 3)) for b in task.target.batches(1)]).mean()
    return _noise(task.source_model, config.size / float(contrast))


@_method("hides_a_layer")
def hides_a_layer(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Return a network whose weights are not all that it computes with."""
    model = _noise(task.source_model, config.size)
    forward = model.forward
    model.forward = lambda image: forward(image) + 1  # type: ignore[method-assign]  # the trick
    return model


_visits: list[int] = []


def remembering_step(task: AdaptationTask, config: StepConfig) -> Callable[[Tensor], Tensor]:
    """Carry the brightness of earlier batches along."""

    def visit(image: Tensor) -> Tensor:
        _visits.append(int(image.mean() * 1e6))
        logits: Tensor = task.source_model(image)
        return logits + 1e-6 * sum(_visits)

    return visit


@_method("remembers_batches", online=remembering_step, protocols=("offline", "episodic"))
def remembers_batches(task: AdaptationTask, config: StepConfig) -> nn.Module:
    """Offline it is in order."""
    return _noise(task.source_model, config.size)


@_method("has_a_wrong_default", config=OutOfRange)
def has_a_wrong_default(task: AdaptationTask, config: OutOfRange) -> nn.Module:
    """Never get so far."""
    return task.source_model

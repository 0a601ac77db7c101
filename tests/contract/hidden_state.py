"""Methods that carry something from one epoch to the next, and say so or do not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfuda_bench.blocks.entropy import binary_entropy
from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.tunable import setting

Adapt = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """``epochs``: how often all images are seen."""

    epochs: int = setting(2, 1, 10)


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True, kw_only=True)
class OneEpoch:
    """A setting that allows nothing else."""

    epochs: int = setting(1, 1, 1)


def _method(name: str, config: type[Any] = Epochs) -> Callable[[Adapt], Adapt]:
    return register(name, version=1, config=config, updates={"whole"}, source="a test")


def _train(
    task: AdaptationTask,
    epochs: int,
    after_epoch: Callable[[], None] = lambda: None,
    **state: Any,
) -> nn.Module:
    """Make predictions more certain; the optimiser and ``state`` are handed over."""
    optimizer = _optimizer(task)
    loop = task.epochs(epochs, model=task.source_model, optimizer=optimizer, state=state)
    return _steps(task, loop, optimizer, after_epoch)


def _optimizer(task: AdaptationTask) -> torch.optim.Optimizer:
    return torch.optim.SGD(task.source_model.parameters(), lr=0.01)


def _steps(
    task: AdaptationTask,
    loop: Iterable[int],
    optimizer: torch.optim.Optimizer,
    after_epoch: Callable[[], None] = lambda: None,
) -> nn.Module:
    for _ in loop:
        for batch in task.target.batches(4, shuffle=True):
            optimizer.zero_grad()
            binary_entropy(task.source_model(batch.image)).mean().backward()
            optimizer.step()
        after_epoch()
    return task.source_model


def _teach(task: AdaptationTask, epochs: int, *, said: bool) -> nn.Module:
    """Return the mean of the networks of all epochs."""
    teacher = copy.deepcopy(task.source_model)

    def follow() -> None:
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), task.source_model.parameters(), strict=True):
                old.lerp_(new, 0.5)

    _train(task, epochs, follow, **({"teacher": teacher} if said else {}))
    return teacher


@_method("hides_its_teacher")
def hides_its_teacher(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Keep a network in a local variable."""
    return _teach(task, config.epochs, said=False)


@_method("hands_over_its_teacher")
def hands_over_its_teacher(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Do the same, and say so."""
    return _teach(task, config.epochs, said=True)


def _slow_down(task: AdaptationTask, epochs: int, *, said: bool) -> nn.Module:
    """Count the epochs: the head moves less and less."""
    seen, bias = torch.zeros(()), dict(task.source_model.named_parameters())["head.bias"]

    def count() -> None:
        seen.add_(1)
        with torch.no_grad():
            bias.add_(0.01 / seen)

    return _train(task, epochs, count, **({"seen": seen} if said else {}))


@_method("hides_its_counter")
def hides_its_counter(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Keep a number in a local variable."""
    return _slow_down(task, config.epochs, said=False)


@_method("hands_over_its_counter")
def hands_over_its_counter(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Do the same, and say so."""
    return _slow_down(task, config.epochs, said=True)


@_method("hands_over_a_set")
def hands_over_a_set(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Hand over what no checkpoint can hold."""

    class Seen:
        def state_dict(self) -> dict[str, Any]:
            return {"ids": set(task.target.ids)}

        def load_state_dict(self, state: dict[str, Any]) -> None: ...

    return _train(task, config.epochs, seen=Seen())


_calls: list[Tensor] = []


@_method("renames_its_state")
def renames_its_state(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Hand something over under another name in every call."""
    _calls.append(torch.zeros(1))
    state: dict[str, Any] = {f"bank_{len(_calls)}": _calls[-1]}
    return _train(task, config.epochs, **state)


@_method("says_nothing")
def says_nothing(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Let the harness know of no optimiser: it starts over."""
    return _steps(task, task.epochs(config.epochs, model=task.source_model), _optimizer(task))


@_method("has_no_epochs", NoSettings)
def has_no_epochs(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Move the weights once."""
    with torch.no_grad():
        for parameter in task.source_model.parameters():
            parameter.mul_(1.01)
    return task.source_model


@_method("has_one_epoch", OneEpoch)
def has_one_epoch(task: AdaptationTask, config: OneEpoch) -> nn.Module:
    """Allow no second epoch."""
    return _train(task, config.epochs)


@_method("stops_early")
def stops_early(task: AdaptationTask, config: Epochs) -> nn.Module:
    """Take one epoch, whatever it is asked for."""
    return _train(task, 1)

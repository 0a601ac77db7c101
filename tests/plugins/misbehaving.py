"""Methods that do what they must not; each has to end as one failed cell."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfuda_bench.methods import AdaptationTask, register

Adapt = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True, kw_only=True)
class CheatConfig:
    """``path``: what to open."""

    path: str = ""


def _register(name: str, config: type[Any] = NoSettings) -> Callable[[Adapt], Adapt]:
    return register(name, version=1, config=config, updates={"whole"}, source="a test")


@_register("raises")
def raises(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Fail like a bug."""
    raise ZeroDivisionError("a bug of this method")


@_register("dies")
def dies(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Vanish like a process that ran out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return task.source_model


@_register("diverges")
def diverges(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Return a network that is not finite."""
    with torch.no_grad():
        next(task.source_model.parameters()).fill_(float("nan"))
    return task.source_model


@_register("cheats", CheatConfig)
def cheats(task: AdaptationTask, config: CheatConfig) -> nn.Module:
    """Read a mask."""
    Path(config.path).read_bytes()
    return task.source_model


@register("oversteps", version=1, config=NoSettings, updates={"bn_stats"}, source="a test")
def oversteps(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Change more than it declares."""
    with torch.no_grad():
        for parameter in task.source_model.parameters():
            parameter.mul_(1.01)
    return task.source_model


@register("peeks", version=1, config=NoSettings, source="a test")
def peeks(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Use an aux field that it did not declare."""
    task.track(cup=task.aux["area_prior"]["cup"]["mean"])
    return task.source_model


@register("asks", version=1, config=NoSettings, requires={"area_prior"}, source="a test")
def asks(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Use an aux field that it declared, and nothing else is there."""
    if list(task.aux) != ["area_prior"]:
        raise ValueError(f"aux holds {list(task.aux)}")
    task.track(cup=task.aux["area_prior"]["cup"]["mean"])
    return task.source_model

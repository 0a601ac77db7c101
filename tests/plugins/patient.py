"""A method that takes its time, so that a test can interfere, and one that ends its process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from torch import nn

from sfuda_bench.methods import AdaptationTask, register


@dataclass(frozen=True, kw_only=True)
class PatientConfig:
    """How long it takes, and where it ends.

    Attributes:
        epochs: Number of epochs.
        seconds: Pause in each of them.
        shift: What the head's bias gains per epoch.
    """

    epochs: int = 3
    seconds: float = 0.2
    shift: float = 0.01


@register("patient", version=1, config=PatientConfig, updates={"whole"}, source="a test")
def patient(task: AdaptationTask, config: PatientConfig) -> nn.Module:
    """Wait, and move a little."""
    model = task.source_model
    for _ in task.epochs(config.epochs, model=model):
        time.sleep(config.seconds)
        with torch.no_grad():
            model.head.bias += config.shift  # type: ignore[operator,union-attr]  # the tiny network
    return model


@dataclass(frozen=True, kw_only=True)
class VanishConfig:
    """``exit_code``: of the process."""

    exit_code: int = 3


@register("vanishes", version=1, config=VanishConfig, source="a test")
def vanishes(task: AdaptationTask, config: VanishConfig) -> nn.Module:
    """End the process in the middle of the cell."""
    os._exit(config.exit_code)

"""Methods whose records need care."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from sfuda_bench.methods import AdaptationTask, register


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing to set."""


@register("returns_another", version=1, config=NoSettings, updates={"whole"}, source="a test")
def returns_another(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Change one network for two epochs and return an untouched copy."""
    model = copy.deepcopy(task.source_model)
    for _ in task.epochs(2, model=model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
    return task.source_model


@register("hands_in_numbers", version=1, config=NoSettings, updates={"whole"}, source="a test")
def hands_in_numbers(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Hand in probabilities where labels are expected."""
    batch = next(iter(task.target.batches(len(task.target))))
    task.pseudo_labels("initial", batch.image[:, :2])
    return task.source_model

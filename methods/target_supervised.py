"""Target supervised: the network trained with the target's own labels, an upper reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sfuda_bench.methods import SupervisedTask, register


@dataclass(frozen=True, kw_only=True)
class TargetSupervisedConfig:
    """It follows the source recipe and has nothing of its own to set."""


@register(
    "target_supervised",
    version=1,
    config=TargetSupervisedConfig,
    supervised=True,
    updates={"whole"},
    protocols=("offline",),
    title="Target supervised",
    source="supervised training on the target train split with the recipe of the source models",
)
def train(task: SupervisedTask, config: TargetSupervisedConfig) -> nn.Module:
    """Return the network that was trained on the target's ``train`` split with labels."""
    return task.target_model

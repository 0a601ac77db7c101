"""Template name: a first version that makes predictions more certain; put your idea here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from sfuda_bench.blocks.entropy import binary_entropy
from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.networks.batch_norm import train_batch_norm_only
from sfuda_bench.tunable import setting, tunable


@dataclass(frozen=True, kw_only=True)
class TemplateNameConfig:
    """Settings; ``tunable`` ones can be searched by a study."""

    lr: float = tunable(1e-3, 0.0, 1e-1, symbol="lr")
    epochs: int = tunable(2, 1, 50)
    batch_size: int = setting(8, 1, 1024)


@register(
    "template_name",
    version=1,  # raise it when results change
    config=TemplateNameConfig,
    updates={"bn_affine"},  # what may differ from the source model afterwards
    inert={"lr": 0.0},  # with these settings it must equal the source model
    title="Template name",
    source="not published",
)
def adapt(task: AdaptationTask, config: TemplateNameConfig) -> nn.Module:
    """Lower the entropy of the predictions by the scale and shift of batch norm."""
    model = task.source_model
    optimizer = torch.optim.Adam(train_batch_norm_only(model), lr=config.lr)
    for _ in task.epochs(config.epochs, model=model, optimizer=optimizer):
        for batch in task.target.batches(config.batch_size, shuffle=True):
            loss = binary_entropy(model(batch.image)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            task.track(entropy=float(loss.detach()))
    return model

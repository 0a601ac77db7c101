"""Source only: no adaptation, the row that every method has to beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.tunable import setting


@dataclass(frozen=True, kw_only=True)
class SourceOnlyConfig:
    """Source only has nothing to set; the batch size only groups images online."""

    batch_size: int = setting(8, 1, 1024)


def step(task: AdaptationTask, config: SourceOnlyConfig) -> Callable[[Tensor], Tensor]:
    """Return the source model itself."""
    return task.source_model


@register(
    "source_only",
    version=1,
    config=SourceOnlyConfig,
    inert={},
    online=step,
    protocols=("offline", "transductive", "online", "episodic"),
    title="Source only",
    source="the source model, running batch-norm statistics, dropout off",
)
def adapt(task: AdaptationTask, config: SourceOnlyConfig) -> nn.Module:
    """Return the source model unchanged."""
    return task.source_model

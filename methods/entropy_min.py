"""Tent: minimise the entropy of the predictions by moving batch-norm scale and shift only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfuda_bench.blocks.entropy import binary_entropy, foreground_only_entropy, nested_entropy
from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.networks.batch_norm import (
    estimate_statistics,
    train_batch_norm_only,
    use_batch_statistics,
)
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.tunable import setting, tunable

_ENTROPIES = {
    "bernoulli": binary_entropy,
    "nested": nested_entropy,
    "foreground_only": foreground_only_entropy,
}


@dataclass(frozen=True, kw_only=True)
class EntropyMinConfig:
    """Settings of entropy minimisation.

    Attributes:
        lr: Learning rate; the authors use 1e-3 for classification.
        epochs: Passes over the target images (offline).
        batch_size: Images per step.
        steps: Steps per test batch (online).
        bn_mode: Normalise by the batch (authors) or by the source statistics.
        entropy: ``bernoulli`` per channel, ``nested`` over background / rim / cup, or
            ``foreground_only``, -p ln p, which some released code uses by mistake.
        region: Every pixel, or only the ``band`` of undecided ones (0.05 < p < 0.95).
        score_output: Online, score the output before the update (authors) or after it.
        min_samples: A layer that sees fewer values per channel keeps its source statistics.
        beta1: First momentum of Adam.
        beta2: Second momentum of Adam.
    """

    lr: float = tunable(1e-4, 0.0, 1e-2, symbol="lr")
    epochs: int = tunable(1, 1, 50)
    batch_size: int = setting(8, 1, 1024)
    steps: int = tunable(1, 1, 10)
    bn_mode: Literal["batch", "source"] = "batch"
    entropy: Literal["bernoulli", "nested", "foreground_only"] = "bernoulli"
    region: Literal["all", "band"] = "all"
    score_output: Literal["before", "after"] = "before"
    min_samples: int = setting(32, 2, 1_000_000)
    beta1: float = setting(0.9, 0.0, 1.0)
    beta2: float = setting(0.999, 0.0, 1.0)


def mean_entropy(logits: Tensor, config: EntropyMinConfig) -> Tensor:
    """Return the mean entropy in nats over the chosen region (0 when the region is empty)."""
    entropy = _ENTROPIES[config.entropy](logits.float())
    if config.region == "all":
        return entropy.mean()
    prob = torch.sigmoid(logits.detach().float())
    band = (prob > 0.05) & (prob < 0.95)
    if config.entropy == "nested":
        band = band.any(dim=1)
    band = band.view_as(entropy)
    return (entropy * band).sum() / band.sum().clamp(min=1)


class _Minimiser:
    """The trainable batch norm, its optimiser, and the mode in which it normalises."""

    def __init__(self, task: AdaptationTask, config: EntropyMinConfig) -> None:
        self.task, self.config = task, config
        self.model: SegmentationNetwork = task.source_model
        parameters = train_batch_norm_only(self.model)
        self.optimizer = torch.optim.Adam(
            parameters, lr=config.lr, betas=(config.beta1, config.beta2)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return logits under the configured statistics."""
        batch = self.config.bn_mode == "batch"
        with use_batch_statistics(self.model, self.config.min_samples) if batch else nullcontext():
            logits: Tensor = self.model(image)
        return logits

    @torch.enable_grad()
    def update(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Take one step; return the logits before it and the loss."""
        with self.task.autocast():
            logits = self.forward(image)
        loss = mean_entropy(logits, self.config)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return logits.detach(), loss.detach()


def step(task: AdaptationTask, config: EntropyMinConfig) -> Callable[[Tensor], Tensor]:
    """Return Tent's online step: predict, then update (or update, then predict)."""
    minimiser = _Minimiser(task, config)

    def visit(image: Tensor) -> Tensor:
        for _ in range(config.steps):
            logits, loss = minimiser.update(image)
            task.track(entropy=float(loss))
        if config.score_output == "after":
            with torch.no_grad():
                return minimiser.forward(image)
        return logits

    return visit


@register(
    "entropy_min",
    version=1,
    config=EntropyMinConfig,
    updates={"bn_affine", "bn_stats"},
    inert={"lr": 0.0, "bn_mode": "source"},
    online=step,
    protocols=("offline", "transductive", "online", "episodic"),
    title="Tent",
    source="Wang et al., Tent, ICLR 2021; github.com/DequanWang/tent@e9e926a",
)
def adapt(task: AdaptationTask, config: EntropyMinConfig) -> nn.Module:
    """Minimise the mean pixel entropy over the target, then re-estimate the statistics.

    Source:
        Tent, section 3. Departures: two sigmoid channels instead of a soft-max; dropout stays
        off; offline the stored statistics are re-estimated (pooled, one pass) with the adapted
        scale and shift, because the authors' code has none to fall back on.
    """
    minimiser = _Minimiser(task, config)
    model = minimiser.model

    def images() -> Iterator[Tensor]:
        for batch in task.target.batches(config.batch_size):
            yield batch.image

    for _ in task.epochs(config.epochs, model=model, optimizer=minimiser.optimizer):
        total = 0.0
        for batch in task.target.batches(config.batch_size, shuffle=True):
            _, loss = minimiser.update(batch.image)
            total += float(loss) * len(batch.image)
        task.track(entropy=total / len(task.target))
        if config.bn_mode == "batch":
            with torch.no_grad(), task.autocast():
                estimate_statistics(model, images, min_samples=config.min_samples)
    return model.requires_grad_(True)

"""Tent: minimise the entropy of the predictions by moving batch-norm scale and shift only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfuda_bench.blocks.bn_training import BatchNormTrainer
from sfuda_bench.blocks.entropy import binary_entropy, foreground_only_entropy, nested_entropy
from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.tunable import BELOW_ONE, setting, tunable

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
    beta1: float = setting(0.9, 0.0, BELOW_ONE)
    beta2: float = setting(0.999, 0.0, BELOW_ONE)


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


def _trainer(task: AdaptationTask, config: EntropyMinConfig) -> BatchNormTrainer:
    def terms_of(logits: Tensor) -> dict[str, Tensor]:
        entropy = mean_entropy(logits, config)
        return {"loss": entropy, "entropy": entropy}

    return BatchNormTrainer(
        task,
        terms_of,
        part="bn_affine",
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        bn_mode=config.bn_mode,
        min_samples=config.min_samples,
    )


def step(task: AdaptationTask, config: EntropyMinConfig) -> Callable[[Tensor], Tensor]:
    """Return Tent's online step: predict, then update (or update, then predict)."""
    trainer = _trainer(task, config)

    def visit(image: Tensor) -> Tensor:
        for _ in range(config.steps):
            logits, terms = trainer.update(image)
            task.track(entropy=float(terms["entropy"]))
        if config.score_output == "after":
            with torch.no_grad():
                return trainer.forward(image)
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
    return _trainer(task, config).fit(epochs=config.epochs, batch_size=config.batch_size)

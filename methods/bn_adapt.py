"""Batch-norm adaptation: new statistics, no gradient, no other weight touched.

The family that every loss-based method has to beat, because fine-tuning in train mode contains it:

- ``bn_adapt``: AdaBN, statistics re-estimated over the target ``train`` images, then frozen;
- ``ema_bn``: what train-mode forwards at learning rate 0 do (the control of the other methods);
- ``ptbn``: prediction-time batch norm, each test batch by its own statistics (episodic);
- ``alpha_bn``: a fixed mixture of source and test-batch statistics (episodic).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.networks.batch_norm import (
    Estimator,
    estimate_statistics,
    mixed_statistics,
    prior_alpha,
)
from sfuda_bench.tunable import setting, tunable


@dataclass(frozen=True, kw_only=True)
class BnAdaptConfig:
    """Settings of batch-norm adaptation.

    Attributes:
        estimator: Offline estimator; ``source`` keeps the source statistics.
        passes: Passes over the target images for ``ema``.
        batch_size: Images per forward; online, images per test batch.
        momentum: Weight of a new batch for ``ema``.
        min_samples: A layer that sees fewer values per channel keeps its source statistics.
        alpha: Weight of the batch statistics online: 0 source, 1 batch.
        prior_strength: N of the N-prior; replaces ``alpha`` by n / (N + n) for a batch of n.
        mixture_variance: Add the between-means term to the mixed variance (not published).
    """

    estimator: Literal[Estimator, "source"] = "onepass_pooled"
    passes: int = setting(1, 1, 1000)
    batch_size: int = setting(8, 1, 1024)
    momentum: float = setting(0.1, 0.0, 1.0)
    min_samples: int = setting(32, 2, 1_000_000)
    alpha: float = tunable(1.0, 0.0, 1.0, symbol="alpha")
    prior_strength: float | None = setting(None, 0.0, 1e6, symbol="N")
    mixture_variance: bool = False


def step(task: AdaptationTask, config: BnAdaptConfig) -> Callable[[Tensor], Tensor]:
    """Return a forward under mixed statistics; nothing is carried from batch to batch."""
    model = task.source_model

    def forward(image: Tensor) -> Tensor:
        alpha = config.alpha
        if config.prior_strength is not None:
            alpha = prior_alpha(config.prior_strength, len(image))
        with mixed_statistics(
            model, alpha, config.min_samples, mixture_variance=config.mixture_variance
        ):
            logits: Tensor = model(image)
        return logits

    return forward


@dataclass(frozen=True, kw_only=True)
class EmaBnConfig(BnAdaptConfig):
    """EMA-BN: the running statistics after train-mode forwards, the lr-0 control."""

    estimator: Literal[Estimator, "source"] = "ema"


@dataclass(frozen=True, kw_only=True)
class AlphaBnConfig(BnAdaptConfig):
    """Alpha-BN: a small share of the batch statistics, one test image at a time."""

    batch_size: int = setting(1, 1, 1024)
    alpha: float = tunable(0.1, 0.0, 1.0, symbol="alpha")


@register(
    "bn_adapt",
    version=1,
    config=BnAdaptConfig,
    updates={"bn_stats"},
    inert={"estimator": "source", "alpha": 0.0},
    online=step,
    protocols=("offline", "transductive", "episodic"),
    title="AdaBN",
    source="Li et al., Revisiting Batch Normalization for Practical Domain Adaptation, 2016",
)
@register(
    "ema_bn",
    version=1,
    config=EmaBnConfig,
    parent="bn_adapt",
    updates={"bn_stats"},
    inert={"momentum": 0.0, "alpha": 0.0},
    protocols=("offline", "transductive"),
    title="EMA-BN",
    source="running statistics of train-mode forwards, the learning-rate-0 control",
)
@register(
    "ptbn",
    version=1,
    config=BnAdaptConfig,
    parent="bn_adapt",
    inert={"alpha": 0.0},
    online=step,
    protocols=("episodic",),
    title="PTBN",
    source="Nado et al., Evaluating Prediction-Time Batch Normalization, 2020",
)
@register(
    "alpha_bn",
    version=1,
    config=AlphaBnConfig,
    parent="bn_adapt",
    inert={"alpha": 0.0},
    online=step,
    protocols=("episodic",),
    title="alpha-BN",
    source="Schneider et al., Improving robustness against common corruptions, NeurIPS 2020",
)
def adapt(task: AdaptationTask, config: BnAdaptConfig) -> nn.Module:
    """Re-estimate the running statistics on the target images and freeze them.

    Source:
        Default estimator: one pass, sample-weighted moments pooled over batches by the law of
        total variance, so the result depends on the batch size only through earlier layers.
    """
    model = task.source_model
    if config.estimator == "source":
        return model

    def images() -> Iterator[Tensor]:
        for _ in range(config.passes if config.estimator == "ema" else 1):
            for batch in task.target.batches(config.batch_size):
                yield batch.image

    for _ in task.epochs(1, model=model):
        with torch.no_grad(), task.autocast():
            report = estimate_statistics(
                model,
                images,
                estimator=config.estimator,
                momentum=config.momentum,
                min_samples=config.min_samples,
            )
        task.track(layers_kept_at_source=len(report.kept_source))
    return model

"""DUA: move the batch-norm statistics image by image, each step smaller than the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.methods import AdaptationTask, register
from sfuda_bench.networks.batch_norm import estimate_statistics
from sfuda_bench.tunable import setting, tunable


@dataclass(frozen=True, kw_only=True)
class DuaConfig:
    """Settings of DUA.

    Attributes:
        momentum: m_0, where the momentum starts before its first decay.
        decay: omega, factor on the momentum at every image.
        min_momentum: zeta, added to the decayed momentum.
        max_images: Images that are learnt from; later ones are only predicted.
        copies: Augmented copies of an image, whose moments make one step.
        rotation_deg: Largest rotation of a copy, degrees.
        scale_range: Largest change of a copy's size, as a share.
        gamma_range: Largest change of a copy's gamma from 1.
        batch_size: Test images predicted together (online); each is learnt from alone.
        score_output: Online, score the output before the update or after it.
        min_samples: A layer that sees fewer values per channel keeps its source statistics.
    """

    momentum: float = tunable(0.1, 0.0, 1.0, symbol="m_0")
    decay: float = tunable(0.94, 0.0, 1.0, symbol="omega")
    min_momentum: float = tunable(0.005, 0.0, 0.1, symbol="zeta")
    max_images: int = setting(80, 1, 1_000_000)
    copies: int = setting(64, 1, 1024)
    rotation_deg: float = setting(15.0, 0.0, 180.0)
    scale_range: float = setting(0.1, 0.0, 0.9)
    gamma_range: float = setting(0.2, 0.0, 0.9)
    batch_size: int = setting(1, 1, 1024)
    score_output: Literal["before", "after"] = "before"
    min_samples: int = setting(32, 2, 1_000_000)


def momenta(config: DuaConfig) -> Iterator[float]:
    """Yield the weight rho_k = m_0 omega^k + zeta of the k-th image, k = 1, 2, ..., max_images."""
    for k in range(1, config.max_images + 1):
        yield min(config.momentum * config.decay**k + config.min_momentum, 1.0)


def augmented_copies(image: Tensor, config: DuaConfig) -> Tensor:
    """Return random copies of one image: flipped, rotated, scaled, with another gamma.

    Drawn from the global CPU generator, so the draws are the same on every device. What a copy
    shows beyond the image's edge repeats that edge.

    Args:
        image: (3, H, W) float in [-1, 1].
        config: Number of copies and ranges; 0 switches a part off.

    Returns:
        (copies, 3, H, W) float in [-1, 1].
    """
    draw = torch.rand(4, config.copies)
    spread = 2 * draw[1:] - 1
    mirror = torch.where(draw[0] < 0.5, -1.0, 1.0)
    angle = math.radians(config.rotation_deg) * spread[0]
    zoom = 1 + config.scale_range * spread[1]
    gamma = 1 + config.gamma_range * spread[2]
    sin, cos, ratio = angle.sin() / zoom, angle.cos() / zoom, image.shape[-1] / image.shape[-2]
    zero = torch.zeros_like(angle)
    rows = [
        torch.stack([mirror * cos, -sin / ratio, zero], dim=1),
        torch.stack([mirror * sin * ratio, cos, zero], dim=1),
    ]
    affine = torch.stack(rows, dim=1).to(image.device)
    size = [config.copies, *image.shape]
    copies = F.grid_sample(
        image.expand(*size),
        F.affine_grid(affine, size, align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    unit = ((copies + 1) / 2).clamp(0, 1)
    return 2 * unit ** gamma.to(image.device).view(-1, 1, 1, 1) - 1


class _Stream:
    """The network along a stream of images, and the momenta that are left."""

    def __init__(self, task: AdaptationTask, config: DuaConfig) -> None:
        self.task, self.config = task, config
        self.model = task.source_model
        self.momenta = momenta(config)

    @torch.no_grad()
    def learn(self, image: Tensor) -> None:
        """Move the running statistics towards those of one image (3, H, W)."""
        momentum = next(self.momenta, None)
        if momentum is None:
            return
        copies = augmented_copies(image, self.config)
        with self.task.autocast():
            estimate_statistics(
                self.model,
                [copies],
                estimator="ema",
                momentum=momentum,
                min_samples=self.config.min_samples,
            )


def step(task: AdaptationTask, config: DuaConfig) -> Callable[[Tensor], Tensor]:
    """Return the online step: predict, then learn from each image (or the other way round)."""
    stream = _Stream(task, config)

    def visit(image: Tensor) -> Tensor:
        logits: Tensor | None = stream.model(image) if config.score_output == "before" else None
        for one in image:
            stream.learn(one)
        return stream.model(image) if logits is None else logits

    return visit


@register(
    "dua",
    version=1,
    config=DuaConfig,
    updates={"bn_stats"},
    inert={"momentum": 0.0, "min_momentum": 0.0},
    online=step,
    protocols=("offline", "transductive", "online"),
    title="DUA",
    source="Mirza et al., The Norm Must Go On, CVPR 2022; github.com/jmiemirza/DUA@5a21971",
)
def adapt(task: AdaptationTask, config: DuaConfig) -> nn.Module:
    """Walk once over the target images in a seeded order, then freeze the statistics.

    Source:
        ``methods/dua.py`` and ``main.py`` at 5a21971: omega 0.94, zeta 0.005, 80 images, 64
        copies. Departures: copies are flipped, rotated, scaled and given another gamma instead
        of being cropped; layers with few values per channel keep the source statistics; the
        state after the last image counts, where the released code reports the lowest error over
        all steps, which takes labels.
    """
    stream = _Stream(task, config)
    for _ in task.epochs(1, model=stream.model):
        for batch in task.target.batches(1, shuffle=True):
            for image in batch.image:
                stream.learn(image)
    return stream.model

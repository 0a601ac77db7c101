"""AdaEnt and AdaMI: sharpen the predictions while their area stays near a prior.

Both minimise a class-weighted entropy plus a divergence between predicted and expected area
ratios; they differ in its direction. AdaEnt's KL(prior || prediction) cannot be escaped by an
empty mask but trusts the prior; AdaMI's KL(prediction || prior) is gentle with a wrong prior, and
bounded: see ``collapse_bound``.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sfuda_bench.blocks.area_prior import (
    Direction,
    Ratio,
    area_kl,
    area_ratio,
    collapse_bound,
    weighted_entropy,
)
from sfuda_bench.blocks.bn_training import BatchNormTrainer, BnMode, Part, Terms
from sfuda_bench.errors import MethodWarning, UsageError
from sfuda_bench.methods import (
    AdaptationTask,
    FrozenTask,
    Photometric,
    frozen_step,
    register,
)
from sfuda_bench.networks.batch_norm import estimate_statistics
from sfuda_bench.tunable import setting, tunable

_STRUCTURES = ("cup", "disc")


@dataclass(frozen=True, kw_only=True)
class AdaMiConfig:
    """Settings of AdaMI; the defaults are the released code's unless the method says otherwise.

    Attributes:
        direction: ``pred_prior``, KL(prediction || prior), or ``prior_pred``, the reverse.
        ratio: Predicted area: mean probability, or the released code's ``nss`` (softened count).
        prior: Expected area: ``global_source``, the mean over source training labels, or
            ``pred_mean``, the mean over the target as AdaBN predicts it (no source label).
        prior_scale: Multiplies the prior, to study what a wrong one costs.
        lam: Weight of the divergence.
        kl_norm: Divide the divergence by what it charges an empty mask, so that both structures
            resist collapse alike.
        nu_fg: Weight of the foreground term of the entropy.
        nu_bg: Weight of its background term; ``none`` is 1 - nu_fg.
        updates_part: Train every weight, or scale and shift of batch norm only.
        bn_mode: Normalise by the batch, or by the source statistics.
        min_samples: A layer that sees fewer values per channel keeps its source statistics.
        lr: Learning rate of Adam.
        lr_decay: Factor on the learning rate ...
        lr_decay_every: ... after every so many epochs.
        weight_decay: L2 penalty of Adam.
        epochs: Passes over the target images.
        batch_size: Images per step.
        shuffle: Draw the order of each epoch.
        augment: Photometric augmentation of the images.
        beta1: First momentum of Adam.
        beta2: Second momentum of Adam.
    """

    direction: Direction = "pred_prior"
    ratio: Ratio = "mean"
    prior: Literal["global_source", "pred_mean"] = "global_source"
    prior_scale: float = setting(1.0, 0.0, 10.0)
    lam: float = tunable(1.0, 0.0, 10.0, symbol="lambda")
    kl_norm: bool = False
    nu_fg: float = tunable(0.9, 0.0, 1.0, symbol="nu")
    nu_bg: float | None = setting(None, 0.0, 1.0)
    updates_part: Part = "whole"
    bn_mode: BnMode = "batch"
    min_samples: int = setting(32, 2, 1_000_000)
    lr: float = tunable(1e-6, 0.0, 1e-2, symbol="lr")
    lr_decay: float = setting(0.9, 0.0, 1.0)
    lr_decay_every: int = setting(20, 1, 1000)
    weight_decay: float = setting(1e-4, 0.0, 1.0)
    epochs: int = tunable(100, 1, 200)
    batch_size: int = setting(8, 1, 1024)
    shuffle: bool = True
    augment: Photometric = "none"
    beta1: float = setting(0.9, 0.0, 1.0)
    beta2: float = setting(0.999, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AdaEntConfig(AdaMiConfig):
    """Settings of AdaEnt: the reverse divergence, a small weight, a larger learning rate."""

    direction: Direction = "prior_pred"
    lam: float = tunable(1e-2, 0.0, 10.0, symbol="lambda")
    lr: float = tunable(1e-3, 0.0, 1e-2, symbol="lr")
    lr_decay: float = setting(1.0, 0.0, 1.0)
    weight_decay: float = setting(0.0, 0.0, 1.0)


@frozen_step(version=1)
def adabn_area(task: FrozenTask, *, batch_size: int, min_samples: int) -> dict[str, Tensor]:
    """Return the mean predicted area ratio over the target, ``ratio`` (2,) float32, under AdaBN.

    Args:
        task: The frozen task.
        batch_size: Images per forward.
        min_samples: A layer that sees fewer values per channel keeps its source statistics.
    """
    model = task.source_model

    def images() -> Iterator[Tensor]:
        for batch in task.target.batches(batch_size):
            yield batch.image

    ratios = []
    with torch.no_grad():
        with task.autocast():
            estimate_statistics(model, images, min_samples=min_samples)
        for batch in task.target.batches(batch_size):
            with task.autocast():
                logits = model(batch.image)
            ratios.append(area_ratio(torch.sigmoid(logits.float())))
    return {"ratio": torch.cat(ratios).mean(dim=0)}


def expected_area(task: AdaptationTask, config: AdaMiConfig) -> Tensor:
    """Return the prior area ratios of cup and disc, (2,) float32.

    Raises:
        UsageError: The scaled prior of a structure is not a share of the image.
    """
    if config.prior == "global_source":
        summary = task.aux["area_prior"]
        means = [float(summary[structure]["mean"]) for structure in _STRUCTURES]
        prior = torch.tensor(means, device=task.device)
    else:
        artefact = task.frozen(
            adabn_area, batch_size=config.batch_size, min_samples=config.min_samples
        )
        prior = artefact["ratio"].float()
    prior = config.prior_scale * prior
    if float(prior.max()) >= 1:
        raise UsageError(
            f"prior_scale = {config.prior_scale} makes the expected area {prior.tolist()} "
            "(cup, disc); expected shares below 1",
            hint="lower prior_scale",
        )
    return prior


def entropy_of(logits: Tensor, config: AdaMiConfig) -> Tensor:
    """Return the class-weighted entropy of each pixel, same shape as ``logits``, in nats."""
    nu_bg = 1 - config.nu_fg if config.nu_bg is None else config.nu_bg
    return weighted_entropy(logits, config.nu_fg, nu_bg)


def terms_of(logits: Tensor, prior: Tensor, config: AdaMiConfig) -> Terms:
    """Return the loss and its parts, means over images and structures.

    Args:
        logits: (B, 2, H, W) float32.
        prior: Expected area ratios of cup and disc, (2,).
        config: Weights and variants.
    """
    ratio = area_ratio(torch.sigmoid(logits), config.ratio)
    divergence = area_kl(ratio, prior, config.direction)
    if config.kl_norm:
        divergence = divergence / collapse_bound(prior)
    entropy, kl = entropy_of(logits, config).mean(), divergence.mean()
    cup, disc = ratio.detach().mean(dim=0)
    loss = entropy + config.lam * kl
    return {"loss": loss, "entropy": entropy, "kl": kl, "cup_area": cup, "disc_area": disc}


def warn_about_collapse(trainer: BatchNormTrainer, prior: Tensor, config: AdaMiConfig) -> None:
    """Warn when an empty mask would have a lower loss than a mask as soft as today's.

    Compares, for each structure, the mean entropy at the start with all that the prior charges an
    empty prediction, and tracks both. The other direction charges without limit.
    """
    if config.direction == "prior_pred":
        return
    task = trainer.task
    total = torch.zeros(2, device=task.device)
    with torch.no_grad():
        for batch in task.target.batches(config.batch_size):
            entropy = entropy_of(trainer.forward(batch.image).float(), config)
            total += entropy.mean(dim=(2, 3)).sum(dim=0)
    start = total / len(task.target)
    bound = torch.ones_like(prior) if config.kl_norm else collapse_bound(prior)
    for structure, now, limit in zip(_STRUCTURES, start.tolist(), bound.tolist(), strict=True):
        task.track(
            **{f"{structure}_start_entropy": now, f"{structure}_empty_cost": config.lam * limit}
        )
        if now > config.lam * limit:
            warnings.warn(
                f"an empty {structure} would have the lower loss: the mean entropy at the start "
                f"is {now:.4f}, and the prior charges an empty prediction only "
                f"{config.lam * limit:.4f}; lam >= {2 * now / limit:.3g}, kl_norm = true or "
                "direction = prior_pred would guard against it",
                MethodWarning,
                stacklevel=2,
            )


@register(
    "ada_ent",
    version=1,
    config=AdaEntConfig,
    updates={"whole"},
    requires={"area_prior"},
    inert={"lr": 0.0, "bn_mode": "source"},
    title="AdaEnt",
    source="Bateson et al., Source-Relaxed Domain Adaptation, MICCAI 2020; mathilde-b/SFDA@fdcd141",
    frozen_steps=(adabn_area,),
)
@register(
    "ada_mi",
    version=1,
    config=AdaMiConfig,
    updates={"whole"},
    requires={"area_prior"},
    inert={"lr": 0.0, "bn_mode": "source"},
    title="AdaMI",
    source="Bateson et al., Source-Free Domain Adaptation, MedIA 2022; mathilde-b/SFDA@fdcd141",
    frozen_steps=(adabn_area,),
)
def adapt(task: AdaptationTask, config: AdaMiConfig) -> nn.Module:
    """Minimise the weighted entropy plus the divergence of the area from its prior.

    Source:
        AdaMI: ``losses.py`` (``EntKLProp``) and the makefiles at fdcd141: nu (0.1, 0.9), lambda 1,
        Adam 1e-6 with decay 1e-4, times 0.9 every 20 epochs, 100 epochs. AdaEnt: its paper:
        lambda 1e-2, Adam 1e-3, 100 epochs; its weights nu are taken from AdaMI's code.
        Departures: two sigmoid structures, each a two-class problem, averaged, instead of one
        softmax; one prior for all images instead of one per image (AdaEnt's comes from a
        regression network); the mean probability as area unless ``ratio`` is ``nss``; batches of
        8 instead of 24 and 12; dropout off and batch statistics while training, running
        statistics re-estimated (pooled, one pass) at each epoch's end, where the released code
        trains in train mode; the last epoch, not the best one on labelled validation images.
    """
    prior = expected_area(task, config)
    trainer = BatchNormTrainer(
        task,
        lambda logits: terms_of(logits, prior, config),
        part=config.updates_part,
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        bn_mode=config.bn_mode,
        min_samples=config.min_samples,
    )
    warn_about_collapse(trainer, prior, config)
    return trainer.fit(
        epochs=config.epochs,
        batch_size=config.batch_size,
        shuffle=config.shuffle,
        augment=config.augment,
        lr_decay=config.lr_decay,
        lr_decay_every=config.lr_decay_every,
    )

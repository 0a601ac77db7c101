"""Entropies and divergences of two sigmoid channels, in nats, stable from logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.precision import full_precision

_EPS = 1e-6


@full_precision
def binary_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each sigmoid, H(p) = -p ln p - (1-p) ln(1-p).

    It equals the two-class softmax entropy of ``[0, logits]``; its derivative is
    -z sigma(z) sigma(-z), zero at z = 0.

    Args:
        logits: Any shape, float.

    Returns:
        Same shape, 0..ln 2 nats.
    """
    size = logits.abs()
    return F.softplus(-size) + size * torch.sigmoid(-size)


@full_precision
def foreground_only_entropy(logits: Tensor) -> Tensor:
    """Return -p ln p alone, the form that several released codes use as an entropy.

    It is not one: its stationary point is p = 1/e, so every pixel above is pushed up and masks
    grow. Kept to reproduce such rows.

    Args:
        logits: Any shape, float.

    Returns:
        Same shape, 0..1/e nats.
    """
    return torch.sigmoid(logits) * F.softplus(-logits)


def nested_simplex(logits: Tensor) -> Tensor:
    """Return the probabilities (B, 3, H, W) of background, rim and cup, with cup inside disc.

    A cup probability above the disc's counts as the disc's.

    Args:
        logits: (B, 2, H, W) float, cup first.
    """
    cup, disc = torch.sigmoid(logits).unbind(dim=1)
    cup = torch.minimum(cup, disc)
    return torch.stack([1 - disc, disc - cup, cup], dim=1)


@full_precision
def nested_entropy(logits: Tensor) -> Tensor:
    """Return the entropy (B, H, W) over background, rim and cup, 0..ln 3 nats.

    Args:
        logits: (B, 2, H, W) float, cup first.
    """
    prob = nested_simplex(logits)
    return -(prob * (prob + _EPS).log()).sum(dim=1)  # the rim can be exactly 0


@full_precision
def soft_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Return the elementwise cross-entropy of ``sigmoid(logits)`` against soft targets in 0..1.

    Minus the target's own entropy it is ``bernoulli_kl(target, sigmoid(logits))``.
    """
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")


@full_precision
def bernoulli_kl(a: Tensor, b: Tensor) -> Tensor:
    """Return kl(a || b) = a ln(a/b) + (1-a) ln((1-a)/(1-b)) elementwise, in nats.

    ``b`` is clamped to [1e-6, 1 - 1e-6]; a = 0 and a = 1 contribute 0 ln 0 = 0.
    """
    b = b.clamp(_EPS, 1 - _EPS)
    return torch.xlogy(a, a / b) + torch.xlogy(1 - a, (1 - a) / (1 - b))

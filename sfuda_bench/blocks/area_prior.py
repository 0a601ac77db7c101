"""How large a prediction is, how far that is from a prior, and the entropy that goes with it.

Each structure is its own two-class problem (foreground p, background 1 - p); everything is in nats
and per image and structure, so that the caller chooses the mean.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from sfuda_bench.blocks.entropy import bernoulli_kl, binary_entropy, foreground_only_entropy
from sfuda_bench.blocks.precision import full_precision

Ratio = Literal["mean", "nss"]
Direction = Literal["prior_pred", "pred_prior"]
_EPS = 1e-6


@full_precision
def area_ratio(prob: Tensor, ratio: Ratio = "mean") -> Tensor:
    """Return the share of the image that each structure takes, from soft predictions.

    Args:
        prob: (B, C, H, W) float, probabilities of C independent structures.
        ratio: ``"mean"``, the mean probability, or ``"nss"``, the foreground share of
            :func:`norm_soft_size` over the two classes of each structure.

    Returns:
        (B, C) float in [0, 1].
    """
    if ratio == "mean":
        return prob.mean(dim=(-2, -1))
    return norm_soft_size(torch.stack([1 - prob, prob], dim=-3))[..., 1]


@full_precision
def norm_soft_size(prob: Tensor) -> Tensor:
    """Return class shares in which each pixel's likeliest class counts as one.

    Every pixel's probabilities are divided by their maximum, summed over pixels, and normalised
    over classes. Of hard predictions it is the count; an undecided pixel weighs more than a
    decided one (up to K times), so it need not lie nearer to the argmax count than the mean.

    Args:
        prob: (..., K, H, W) float, a distribution over K classes at every pixel.

    Returns:
        (..., K) float that sums to 1.

    Source:
        AdaMI's released code, ``utils.py`` at fdcd141.
    """
    size = (prob / prob.amax(dim=-3, keepdim=True)).sum(dim=(-2, -1))
    return size / size.sum(dim=-1, keepdim=True)


@full_precision
def area_kl(ratio: Tensor, prior: Tensor, direction: Direction) -> Tensor:
    """Return the two-class divergence between predicted and expected area ratios, elementwise.

    The direction decides how an empty prediction is charged. ``"prior_pred"``, KL(prior || ratio),
    has the derivative (ratio - prior) / (ratio (1 - ratio)), which explodes as the ratio falls to
    0; ``"pred_prior"``, KL(ratio || prior), has logit(ratio) - logit(prior), and its value at 0
    is only :func:`collapse_bound`.

    Args:
        ratio: Predicted ratios, (B, C) float.
        prior: Expected ratios, broadcastable to ``ratio``.
        direction: ``"prior_pred"`` (AdaEnt) or ``"pred_prior"`` (AdaMI).

    Returns:
        Same shape as ``ratio``, nats, at least 0.

    Undefined:
        Both arguments are clamped to [1e-6, 1 - 1e-6]; beyond, the gradient is 0.
    """
    ratio = ratio.clamp(_EPS, 1 - _EPS)
    prior = prior.to(ratio.dtype).clamp(_EPS, 1 - _EPS)
    if direction == "prior_pred":
        return bernoulli_kl(prior.expand_as(ratio), ratio)
    return bernoulli_kl(ratio, prior)


@full_precision
def collapse_bound(prior: Tensor) -> Tensor:
    """Return KL(0 || prior) = -ln(1 - prior), all that AdaMI's prior can charge an empty mask.

    An empty, confident prediction has no entropy, so it beats the correct mask as soon as that
    one's mean entropy exceeds the weight of the prior times this bound.

    Args:
        prior: Expected area ratios, any shape, clamped to [1e-6, 1 - 1e-6].
    """
    return -torch.log1p(-prior.clamp(_EPS, 1 - _EPS))


@full_precision
def weighted_entropy(logits: Tensor, nu_fg: float, nu_bg: float) -> Tensor:
    """Return -nu_fg p ln p - nu_bg (1 - p) ln(1 - p) elementwise, p = sigmoid(logits).

    With nu_fg above nu_bg its turning point lies below p = 0.5, so masks grow; (1, 1) is the
    ordinary entropy, bit for bit.

    Args:
        logits: Any shape, float.
        nu_fg: Weight of the foreground term.
        nu_bg: Weight of the background term.
    """
    entropy = nu_bg * binary_entropy(logits)
    if nu_fg == nu_bg:
        return entropy
    return entropy + (nu_fg - nu_bg) * foreground_only_entropy(logits)

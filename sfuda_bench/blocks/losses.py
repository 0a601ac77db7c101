"""Losses on pseudo-labels: masked, and focal-weighted."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.precision import full_precision
from sfuda_bench.errors import UsageError

Reduction = Literal["mean", "sum"]


@full_precision
def masked_bce(
    logits: Tensor, label: Tensor, mask: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """Return the binary cross-entropy over the pixels of ``mask``, a scalar.

    Args:
        logits: (B, 2, H, W) float.
        label: (B, 2, H, W), 0 or 1 of any dtype.
        mask: (B, 2, H, W) bool; one count over batch, structures and pixels.
        reduction: ``"mean"`` over the kept pixels, or ``"sum"``.

    Undefined:
        An empty mask gives 0 with zero gradient.

    Source: DPL, MICCAI 2021, equation 4 and released code.
    """
    return focal_masked_bce(logits, label, mask, focal_exponent=0.0, reduction=reduction)


@full_precision
def focal_masked_bce(
    logits: Tensor,
    label: Tensor,
    mask: Tensor,
    focal_exponent: float = 2.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """Return the masked cross-entropy, each pixel weighted by (1 - p of its label)^exponent.

    The gradient flows through the weight, as in the released code.

    Args:
        logits: (B, 2, H, W) float.
        label: (B, 2, H, W), 0 or 1 of any dtype.
        mask: (B, 2, H, W) bool.
        focal_exponent: 0 is the plain cross-entropy.
        reduction: ``"mean"`` over the kept pixels (weights are not renormalised), or ``"sum"``.

    Undefined:
        An empty mask gives 0 with zero gradient.

    Source: CPR, MICCAI 2023, released code; the paper's formula has neither weight nor mean.
    """
    if focal_exponent < 0 or reduction not in ("mean", "sum"):
        raise UsageError(
            f"focal_exponent={focal_exponent}, reduction='{reduction}': expected an exponent of at "
            "least 0, and 'mean' or 'sum'"
        )
    keep = mask.bool()
    wrong = torch.where(label.bool(), -logits, logits)  # logit of the other class
    wrong = torch.where(keep, wrong, torch.zeros_like(wrong))  # what is masked has no gradient
    loss = F.softplus(wrong)
    if focal_exponent:
        loss = loss * torch.exp(focal_exponent * F.logsigmoid(wrong))
    total = torch.where(keep, loss, torch.zeros_like(loss)).sum()
    return total if reduction == "sum" else total / keep.sum().clamp(min=1)


def confident_pixels(prob: Tensor, low: float, high: float) -> Tensor:
    """Return the bool mask of pixels with prob < low or prob > high, both strict.

    Raises:
        UsageError: ``low`` is above ``high``.
    """
    if low > high:
        raise UsageError(f"low={low} is above high={high}; expected low <= high")
    return (prob < low) | (prob > high)

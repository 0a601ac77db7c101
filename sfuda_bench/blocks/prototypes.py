"""Class prototypes in feature space, and the pixels whose pseudo-label they confirm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.precision import full_precision
from sfuda_bench.blocks.resample import nearest
from sfuda_bench.errors import UsageError


@dataclass(frozen=True)
class Prototypes:
    """Mean features of object and background of each structure over one mini-batch.

    Args:
        object: (2, C) float, cup first; NaN where no pixel was eligible.
        background: (2, C) float, likewise.
    """

    object: Tensor
    background: Tensor

    @property
    def missing(self) -> Tensor:
        """(2,) bool: structures of which one prototype had no eligible pixel."""
        return self.object.isnan().any(dim=1) | self.background.isnan().any(dim=1)


@full_precision
def class_prototypes(
    feature: Tensor,
    pseudo_label: Tensor,
    prob: Tensor,
    uncertainty: Tensor,
    eta: float | Tensor = 0.05,
) -> Prototypes:
    """Return the prototypes of one mini-batch, weighted by probability, certain pixels only.

    The sums run over batch and space together, so they depend on which images share a batch.
    Labels go to the feature's size by nearest, probability and uncertainty by bilinear
    (align_corners=True).

    Args:
        feature: (B, C, h, w) float.
        pseudo_label: (B, 2, H, W), 0 or 1 of any dtype, cup first.
        prob: (B, 2, H, W) float, 0..1.
        uncertainty: (B, 2, H, W) float.
        eta: Pixels below this uncertainty count; a number or anything that broadcasts.

    Undefined:
        A prototype without an eligible pixel is NaN, see ``Prototypes.missing``.

    Source: DPL, MICCAI 2021, section 2.2 and released code.
    """
    size = (feature.shape[-2], feature.shape[-1])
    label = nearest(pseudo_label, size).to(feature.dtype)
    prob, uncertainty = (_bilinear(x.to(feature.dtype), size) for x in (prob, uncertainty))
    certain = (uncertainty < eta).to(feature.dtype)
    return Prototypes(
        object=_weighted_mean(feature, label * certain * prob),
        background=_weighted_mean(feature, (1 - label) * certain * (1 - prob)),
    )


@full_precision
def prototype_distances(feature: Tensor, prototypes: Tensor) -> Tensor:
    """Return squared L2 distances (B, 2, h, w) of ``feature`` (B, C, h, w) to (2, C)."""
    return torch.stack(
        [(feature - p[:, None, None]).square().sum(dim=1) for p in prototypes], dim=1
    )


def class_agreement(feature: Tensor, prototypes: Prototypes, size: Sequence[int]) -> Tensor:
    """Return the prototypes' own decision q = 1[d_object < d_background], nearest to ``size``.

    Args:
        feature: (B, C, h, w) float.
        prototypes: Of the same mini-batch.
        size: Height and width of the pseudo-labels, in pixels.

    Returns:
        (B, 2, H, W) bool, cup first.

    Undefined:
        With a missing prototype q is False (background) everywhere for that structure.
    """
    closer = prototype_distances(feature, prototypes.object) < prototype_distances(
        feature, prototypes.background
    )
    return nearest(closer, size)


def reliable_mask(
    uncertainty: Tensor, pseudo_label: Tensor, agreement: Tensor, eta: float | Tensor = 0.05
) -> Tensor:
    """Return M = 1[uncertainty < eta] 1[pseudo_label = agreement], (B, 2, H, W) bool.

    Args:
        uncertainty: (B, 2, H, W) float.
        pseudo_label: (B, 2, H, W), 0 or 1 of any dtype.
        agreement: (B, 2, H, W) bool, the decision of :func:`class_agreement`.
        eta: The threshold, a number or anything that broadcasts.
    """
    return (uncertainty < eta) & (pseudo_label.bool() == agreement.bool())


def uncertainty_quantile(uncertainty: Tensor, share: float) -> float:
    """Return the smallest eta below which at least ``share`` of all values lie.

    Use it where a fixed threshold does not fit the network: with a single dropout the standard
    deviation hardly exceeds 0.05 and the published threshold keeps every pixel.

    Args:
        uncertainty: Any shape, float.
        share: 0 < share <= 1.

    Raises:
        UsageError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise UsageError(f"uncertainty share is {share}; expected above 0, at most 1")
    values = uncertainty.float().flatten()
    rank = max(1, round(share * values.numel()))
    bound = values.kthvalue(rank).values  # torch.quantile is limited to 16 million values
    return float(torch.nextafter(bound, torch.full_like(bound, torch.inf)))


def _bilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def _weighted_mean(feature: Tensor, weight: Tensor) -> Tensor:
    """Return (2, C): the mean of (B, C, h, w) weighted by each channel of (B, 2, h, w)."""
    total = weight.sum(dim=(0, 2, 3))[:, None]
    return torch.einsum("bkhw,bchw->kc", weight, feature) / total  # 0 / 0 is NaN, as documented

"""Validators that ask whether a prediction survives a change that should not matter."""

from __future__ import annotations

import numpy as np

from sfuda_bench.scoring.validators import ValidationRecord, register_validator
from sfuda_bench.scoring.validators.masks import agreement, both
from sfuda_bench.scoring.validators.record import HARD, needed

_TINY = 1e-12


@register_validator(
    "consistency", version=1, needs={"views"}, source="agreement under augmentation (V-CONS)"
)
def consistency(record: ValidationRecord) -> tuple[float, float]:
    """Mean Dice between the masks of an image and of its transformed copies, mapped back.

    Undefined:
        Two empty masks count as 0.
    """
    found = []
    for view in needed(record.views):
        plain = record.hard[: len(view.prob)]
        found.append(agreement(plain & view.valid, np.asarray(view.prob > HARD) & view.valid))
    return both(np.mean(found, axis=0))


@register_validator(
    "dropout", version=1, needs={"dropout"}, source="after AETTA, Lee et al., CVPR 2024 (V-DROP)"
)
def dropout(record: ValidationRecord) -> tuple[float, float]:
    """Minus the mean absolute difference of two dropout passes."""
    first, second = needed(record.dropout)
    gaps = [
        np.abs(a.astype(np.float64) - b).mean(axis=(1, 2))
        for a, b in zip(first, second, strict=True)
    ]
    return both(-np.mean(gaps, axis=0))


@register_validator(
    "bn_agreement",
    version=1,
    needs={"half_bn"},
    source="Dice between two ways of normalising (V-BNAG)",
)
def bn_agreement(record: ValidationRecord) -> tuple[float, float]:
    """Mean Dice with the masks under half running, half batch statistics.

    Undefined:
        Two empty masks count as 0.
    """
    other = np.asarray(needed(record.half_bn) > HARD)
    return agreement(record.hard[: len(other)], other)


@register_validator(
    "source_agreement",
    version=1,
    needs={"reference"},
    source="Dice with the source model under target statistics, a trust region (V-SRC)",
)
def source_agreement(record: ValidationRecord) -> tuple[float, float]:
    """Mean Dice with the source model under batch-norm statistics of these images; no selector.

    Undefined:
        Two empty masks count as 0.
    """
    return agreement(record.hard, np.asarray(needed(record.reference) > HARD))


@register_validator(
    "bn_distance",
    version=1,
    needs={"bn_moments"},
    source="squared Hellinger distance of Gaussians at the inputs of batch norm",
)
def bn_distance(record: ValidationRecord) -> tuple[float, float]:
    """Minus the distance of the batch-norm inputs from the source's statistics, in [-1, 0].

    Each channel is a Gaussian with the moments that the model produces on these images; its
    squared Hellinger distance to the source's running statistics is averaged over channels, then
    over layers. It has one value for both structures.
    """
    moments = needed(record.bn_moments)
    var = np.maximum(np.asarray(moments.var, np.float64), 0) + _TINY
    source_var = np.maximum(np.asarray(moments.source_var, np.float64), 0) + _TINY
    gap = np.asarray(moments.mean, np.float64) - moments.source_mean
    total = var + source_var
    overlap = np.sqrt(2 * np.sqrt(var * source_var) / total) * np.exp(-(gap**2) / (4 * total))
    layers = np.unique(moments.layer)
    distance = np.mean([(1 - overlap[moments.layer == layer]).mean() for layer in layers])
    return both((-distance, -distance))


@register_validator(
    "mixval_intra",
    version=1,
    needs={"mixed"},
    source="Hu et al., Mixed Samples as Probes, NeurIPS 2023; MixVal's code at e11324e (V-MIXI)",
)
def mixval_intra(record: ValidationRecord) -> tuple[float, float]:
    """Balanced accuracy on mixed images, where the labels of both images agree.

    Undefined:
        A class on which two images never agree counts as accuracy 0.
    """
    mixed = np.asarray(needed(record.mixed) > HARD)
    first = record.hard[: len(mixed)]
    second = np.roll(first, -1, axis=0)
    recalls = []
    for agreed, right in ((first & second, mixed), (~first & ~second, ~mixed)):
        hits = (agreed & right).sum(axis=(0, 2, 3))
        recalls.append(hits / np.maximum(agreed.sum(axis=(0, 2, 3)), 1))
    return both(np.mean(recalls, axis=0))

"""Validators that read how sure a model is; they confound sharpness with correctness."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlog1py, xlogy

from sfuda_bench.scoring.validators import ValidationRecord, register_validator
from sfuda_bench.scoring.validators.masks import both, contour_band
from sfuda_bench.scoring.validators.record import FloatArray, needed

_EPS = 1e-6
BAND_PX = 3
"""Width of the band on either side of a predicted contour, in pixels of the record."""
_UNSURE = (0.05, 0.95)


def binary_entropy(prob: FloatArray) -> NDArray[np.float64]:
    """Return -p ln p - (1-p) ln(1-p) elementwise, in nats."""
    prob = np.asarray(prob, dtype=np.float64)
    return np.asarray(-(xlogy(prob, prob) + xlog1py(1 - prob, -prob)), dtype=np.float64)


def bernoulli_kl(a: FloatArray, b: FloatArray) -> NDArray[np.float64]:
    """Return kl(a || b) elementwise, in nats; ``b`` is clamped to [1e-6, 1 - 1e-6]."""
    a, b = np.asarray(a, np.float64), np.clip(np.asarray(b, np.float64), _EPS, 1 - _EPS)
    return np.asarray(xlogy(a, a / b) + xlogy(1 - a, (1 - a) / (1 - b)), dtype=np.float64)


def mean_entropy(record: ValidationRecord) -> NDArray[np.float64]:
    """Return the mean entropy over all pixels, (2,) nats."""
    # Image by image: entropies of a whole set would need several times its memory.
    means = [binary_entropy(pair).mean(axis=(1, 2)) for pair in record.prob]
    return np.asarray(np.mean(means, axis=0))


def area(record: ValidationRecord) -> NDArray[np.float64]:
    """Return the mean probability over the set, (2,)."""
    return np.asarray(record.prob.mean(axis=(0, 2, 3), dtype=np.float64))


@register_validator(
    "entropy", version=1, source="pytorch-adapt at 1366df7, EntropyValidator (V-ENT)"
)
def entropy(record: ValidationRecord) -> tuple[float, float]:
    """Minus the mean entropy of all pixels; an empty, confident prediction is its optimum."""
    return both(-mean_entropy(record))


@register_validator(
    "entropy_band", version=1, source="the same over undecided and contour pixels (V-ENT, band)"
)
def entropy_band(record: ValidationRecord) -> tuple[float, float]:
    """Minus the mean entropy of pixels that are undecided or near the predicted contour.

    Undefined:
        -ln 2, the worst possible, where there are none: nothing is predicted at all.
    """
    total, count = np.zeros(2), np.zeros(2)
    for prob, hard in zip(record.prob, record.hard, strict=True):
        band = (prob > _UNSURE[0]) & (prob < _UNSURE[1])
        band |= np.stack([contour_band(mask, BAND_PX) for mask in hard])
        total += (binary_entropy(prob) * band).sum(axis=(1, 2))
        count += band.sum(axis=(1, 2))
    return both(np.where(count > 0, -total / np.maximum(count, 1), -math.log(2)))


@register_validator("information_max", version=1, source="pytorch-adapt, IMValidator (V-IM)")
def information_max(record: ValidationRecord) -> tuple[float, float]:
    """Entropy of the pooled area minus the mean entropy; drawn to half of the image."""
    return both(binary_entropy(area(record)) - mean_entropy(record))


@register_validator("diversity", version=1, source="pytorch-adapt, DiversityValidator (V-DIV)")
def diversity(record: ValidationRecord) -> tuple[float, float]:
    """Entropy of the pooled area, a control that nothing should be chosen by."""
    return both(binary_entropy(area(record)))


def _prior(record: ValidationRecord) -> NDArray[np.float64]:
    prior = needed(record.area_prior)
    return np.array([prior[name]["mean"] for name in ("cup", "disc")])


@register_validator(
    "imp_rev",
    version=1,
    needs={"area_prior"},
    strictness="S1",
    source="objective of AdaEnt, Bateson et al., MICCAI 2020, used as a validator (V-IMP rev)",
)
def imp_rev(record: ValidationRecord) -> tuple[float, float]:
    """Minus mean entropy minus kl(prior || pooled area); an empty prediction costs without end."""
    return both(-mean_entropy(record) - bernoulli_kl(_prior(record), area(record)))


@register_validator(
    "imp_fwd",
    version=1,
    needs={"area_prior"},
    strictness="S1",
    source="objective of AdaMI, Bateson et al., MedIA 2022, used as a validator (V-IMP fwd)",
)
def imp_fwd(record: ValidationRecord) -> tuple[float, float]:
    """Minus mean entropy minus kl(pooled area || prior); small structures may collapse."""
    return both(-mean_entropy(record) - bernoulli_kl(area(record), _prior(record)))


@register_validator(
    "expected_dice", version=1, source="plug-in estimate of the Dice of the model's own mask"
)
def expected_dice(record: ValidationRecord) -> tuple[float, float]:
    """Mean over images of the Dice that the probabilities promise for their own mask (V-ESTD).

    Probabilities are taken as they are: a temperature would need source validation images.

    Undefined:
        An image with an empty mask counts as 0. There is no smoothing term, which would reward it.
    """
    values = []
    for prob, hard in zip(record.prob, record.hard, strict=True):
        soft = np.asarray(prob, dtype=np.float64)
        overlap = 2 * (soft * hard).sum(axis=(1, 2))
        size = hard.sum(axis=(1, 2))
        values.append(overlap / np.maximum(soft.sum(axis=(1, 2)) + size, _EPS))
    return both(np.mean(values, axis=0))

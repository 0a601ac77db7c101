"""Validators that compare pixels with each other, on pixels that are the same for every model.

Half of the pixels are foreground of the source model and half background around it: of uniformly
drawn ones nine in ten would be background.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sfuda_bench.scoring.validators import ValidationRecord, register_validator
from sfuda_bench.scoring.validators.masks import both
from sfuda_bench.scoring.validators.record import FloatArray, needed

_TEMPERATURE = 0.05


def two_classes(prob: FloatArray) -> NDArray[np.float64]:
    """Return the rows [1 - p, p], (K, 2) float64, of probabilities (K,)."""
    prob = np.asarray(prob, dtype=np.float64)
    return np.stack([1 - prob, prob], axis=1)


def neighbourhood_entropy(rows: FloatArray, temperature: float = _TEMPERATURE) -> float:
    """Return the mean entropy of each row's similarities to all others, in nats.

    Args:
        rows: (K, C) float.
        temperature: Divides the cosines before the soft-max.

    Returns:
        A value in [0, ln(K - 1)], the upper end when all rows are equal.
    """
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    similarity = unit @ unit.T / temperature
    np.fill_diagonal(similarity, -np.inf)
    similarity -= similarity.max(axis=1, keepdims=True)
    weight = np.exp(similarity)
    total = weight.sum(axis=1)
    # ln(sum e^s) - sum(p s), with 0 x -inf on the diagonal left out.
    np.fill_diagonal(similarity, 0)
    return float((np.log(total) - (weight * similarity).sum(axis=1) / total).mean())


def nuclear_norm(rows: FloatArray) -> float:
    """Return the sum of the singular values of (K, C) rows."""
    return float(np.linalg.norm(rows, ord="nuc"))


def trace_ratio(rows: FloatArray) -> float:
    """Return trace(G) / ||G||_F of the class correlation G = rows^T rows.

    It is 1 when only one class is predicted, and sqrt(C) when the classes are balanced.
    """
    gram = rows.T @ rows
    return float(np.trace(gram) / np.linalg.norm(gram))


def _over_images(
    record: ValidationRecord, function: Callable[[NDArray[np.float64]], float]
) -> tuple[float, float]:
    """Return the mean over images of a function of the sampled rows."""
    flat = record.prob.reshape(*record.prob.shape[:2], -1)
    sampled = np.take_along_axis(flat, needed(record.pixels), axis=2)
    values = [[function(two_classes(prob)) for prob in pair] for pair in sampled]
    return both(np.mean(values, axis=0))


@register_validator(
    "snd",
    version=1,
    needs={"pixels"},
    source="Saito et al., Tune it the Right Way, ICCV 2021; pytorch-adapt, SNDValidator (V-SND)",
)
def snd(record: ValidationRecord) -> tuple[float, float]:
    """Soft neighbourhood density; highest when every pixel gets the same prediction.

    Departures from the authors' segmentation code: a pixel is not its own neighbour, and the mean
    is over all pixels.
    """
    return _over_images(record, neighbourhood_entropy)


@register_validator(
    "bnm",
    version=1,
    needs={"pixels"},
    source="Cui et al., Batch Nuclear-norm Maximization, CVPR 2020; pytorch-adapt (V-BNM)",
)
def bnm(record: ValidationRecord) -> tuple[float, float]:
    """Nuclear norm of the predictions over their number: confident and balanced is high."""
    return _over_images(record, lambda rows: nuclear_norm(rows) / len(rows))


@register_validator(
    "corrc",
    version=1,
    needs={"pixels"},
    source="class correlation, baseline in MixVal's code at e11324e, smaller is better (V-CORRC)",
)
def corrc(record: ValidationRecord) -> tuple[float, float]:
    """Minus the class correlation's trace over its norm, a control that prefers one class."""
    return _over_images(record, lambda rows: -trace_ratio(rows))

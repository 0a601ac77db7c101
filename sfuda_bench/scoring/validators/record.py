"""What a validator may look at: a model's predictions on unlabelled images, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfuda_bench.errors import UsageError

T = TypeVar("T")

FloatArray = NDArray[np.floating[Any]]
BoolArray = NDArray[np.bool_]
HARD = 0.5
"""Probability above which a pixel counts as foreground."""


@dataclass(frozen=True, eq=False)
class View:
    """The prediction for a transformed image, brought back to the pixels of the original.

    Attributes:
        name: Of the transformation.
        prob: (M, 2, H, W) float of the first M images of the record.
        valid: (H, W) bool, the pixels that lie inside the transformed image as well.
    """

    name: str
    prob: FloatArray
    valid: BoolArray


@dataclass(frozen=True, eq=False)
class BatchNormMoments:
    """Mean and variance at every batch-norm channel: of the images seen, and of the source.

    Attributes:
        layer: (K,) int, the layer of each channel.
        mean: (K,) float of the channel's input for these images.
        var: (K,) float, biased.
        source_mean: (K,) float, the running mean of the source model.
        source_var: (K,) float, its running variance.
    """

    layer: NDArray[np.integer[Any]]
    mean: FloatArray
    var: FloatArray
    source_mean: FloatArray
    source_var: FloatArray


@dataclass(frozen=True, eq=False)
class ValidationRecord:
    """One model on one set of unlabelled images; what was not recorded is ``None``.

    Extra passes cover the first M <= N images, a choice that follows from content alone because
    images are ordered by content. Channel 0 is the cup, channel 1 the disc.

    Attributes:
        prob: (N, 2, H, W) float, foreground probabilities.
        pixels: (N, 2, K) int, flat positions for validators that compare pixels with each other;
            the same for every model.
        views: Predictions for transformed images.
        dropout: (2, M, 2, H, W) float, two passes with dropout on.
        half_bn: (M, 2, H, W) float, batch norm half by running and half by batch statistics.
        mixed: (M, 2, H, W) float for the images :data:`MIX` x_i + (1 - MIX) x_(i+1), the last one
            with the first.
        reference: (N, 2, H, W) float, the source model with batch-norm statistics of these images.
        bn_moments: Batch-norm moments.
        area_prior: Summaries (``mean``, ``quantiles``) of the area ratios ``cup`` and ``disc``
            and of ``vcdr``, over source labels or, without these, over ``reference``.
    """

    prob: FloatArray
    pixels: NDArray[np.integer[Any]] | None = None
    views: tuple[View, ...] | None = None
    dropout: FloatArray | None = None
    half_bn: FloatArray | None = None
    mixed: FloatArray | None = None
    reference: FloatArray | None = None
    bn_moments: BatchNormMoments | None = None
    area_prior: Mapping[str, Any] | None = None

    @cached_property
    def hard(self) -> BoolArray:
        """The (N, 2, H, W) bool masks."""
        return np.asarray(self.prob > HARD)

    def only(self, needs: Iterable[str]) -> ValidationRecord:
        """Return the record with nothing but ``prob`` and the named fields."""
        hidden: dict[str, Any] = dict.fromkeys(set(NEEDS) - set(needs))
        return replace(self, **hidden)

    def lacks(self, needs: Iterable[str]) -> bool:
        """Whether a named field was not recorded."""
        return any(getattr(self, name) is None for name in needs)


def needed(value: T | None) -> T:
    """Return a field that a validator declared with ``needs=``.

    Raises:
        UsageError: It is not there, because the validator did not declare it.
    """
    if value is None:
        raise UsageError(
            "a validator read a field of the record that it does not declare",
            hint="name the field in needs= where the validator is registered",
        )
    return value


NEEDS = tuple(f.name for f in fields(ValidationRecord) if f.name != "prob")
"""What a validator may ask for besides the probabilities."""
MIX = 0.55
"""Weight of the first of two mixed images."""

"""A validator that knows what an optic disc looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.scoring.validators import ValidationRecord, register_validator
from sfuda_bench.scoring.validators.masks import both, fragmentation
from sfuda_bench.scoring.validators.record import BoolArray, needed
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio

_LOW, _HIGH = "0.01", "0.99"


@register_validator(
    "anatomy",
    version=1,
    needs={"area_prior"},
    strictness="S1",
    source="shape penalties: cup in disc, one part, plausible area and cup-to-disc ratio (V-ANAT)",
)
def anatomy(record: ValidationRecord) -> tuple[float, float]:
    """Minus four penalties, each in [0, 1]: cup outside disc, fragments, area, cup-to-disc ratio.

    Each is a mean over images. The first and the last concern both structures; area counts by how
    far, relative to the bound, it leaves the 1 % to 99 % quantiles of the prior, and the vertical
    cup-to-disc ratio by how far it leaves its own.

    Undefined:
        An empty mask has area penalty 1, a cup-to-disc ratio without disc has penalty 1, and a
        prior without cup-to-disc ratios has none.
    """
    hard, prior = record.hard, needed(record.area_prior)
    pair = outside_disc(hard).mean() + _ratio_penalty(hard, prior.get("vcdr")).mean()
    shares = fragmentation(hard).mean(axis=0)
    areas = [_area_penalty(hard[:, place], prior[name]) for place, name in enumerate(STRUCTURES)]
    return both(-(pair + shares + np.array(areas)))


def outside_disc(hard: BoolArray) -> NDArray[np.float64]:
    """Return the share of each predicted cup that lies outside the disc.

    Args:
        hard: (N, 2, H, W) bool.

    Returns:
        (N,) float in [0, 1], 0 for an empty cup.
    """
    cup, disc = hard[:, 0], hard[:, 1]
    strays = np.count_nonzero(cup & ~disc, axis=(1, 2))
    return np.asarray(strays / np.maximum(np.count_nonzero(cup, axis=(1, 2)), 1))


def _area_penalty(masks: BoolArray, prior: Mapping[str, Any]) -> float:
    """Return the mean relative excursion of (N, H, W) masks, empty ones counting 1."""
    area = masks.mean(axis=(1, 2))
    low, high = (max(float(prior["quantiles"][level]), 1e-6) for level in (_LOW, _HIGH))
    below, above = (low - area) / low, (area - high) / high
    penalty = np.clip(np.maximum(below, above), 0, 1)
    return float(np.where(area > 0, penalty, 1.0).mean())


def _ratio_penalty(hard: BoolArray, prior: Mapping[str, Any] | None) -> NDArray[np.float64]:
    """Return (N,) excursions of the vertical cup-to-disc ratio, at most 1."""
    if prior is None:
        return np.zeros(len(hard))
    low, high = (float(prior["quantiles"][level]) for level in (_LOW, _HIGH))
    penalties = []
    for mask in hard:
        ratio = vertical_cup_to_disc_ratio(mask)
        penalties.append(1.0 if math.isnan(ratio) else min(1, max(0, low - ratio, ratio - high)))
    return np.array(penalties, dtype=np.float64)

"""The filter before any validator: predictions that no validator should be asked about."""

from __future__ import annotations

import numpy as np

from sfuda_bench.scoring.validators.masks import agreement, both, fragmentation
from sfuda_bench.scoring.validators.record import HARD, BoolArray, ValidationRecord

LEAST_AREA, MOST_AREA = 0.1, 4.0
"""Total predicted area over the reference's."""
MOST_EMPTY = 0.2
"""Share of images with an empty mask."""
MOST_FRAGMENTED = 0.3
"""Mean share of a mask outside its largest part."""
LEAST_AGREEMENT = 0.3
"""Mean Dice with the reference."""
COLLAPSE_NEEDS = ("reference",)


def collapsed(record: ValidationRecord) -> tuple[float, float]:
    """Return 1.0 for each structure whose masks have degenerated, else 0.0.

    One structure is enough to reject a model. The reference, the source model with batch-norm
    statistics of the same images, bounds the total area and the agreement.

    Args:
        record: Of the model, with its ``reference``.

    Undefined:
        Without a reference, or where that is empty itself, it bounds nothing.
    """
    hard = record.hard
    empty = (~hard.any(axis=(2, 3))).mean(axis=0)
    rejected = (empty > MOST_EMPTY) | (fragmentation(hard).mean(axis=0) > MOST_FRAGMENTED)
    if record.reference is not None:
        rejected |= _strayed(hard, np.asarray(record.reference > HARD))
    return both(rejected)


def _strayed(hard: BoolArray, reference: BoolArray) -> BoolArray:
    area, usual = (np.count_nonzero(masks, axis=(0, 2, 3)) for masks in (hard, reference))
    far = (area < LEAST_AREA * usual) | (area > MOST_AREA * usual)
    strangers = np.array(agreement(hard, reference)) < LEAST_AGREEMENT
    return np.asarray((far | strangers) & (usual > 0))

"""Template name: a first version that likes certain predictions; put your idea here."""

from __future__ import annotations

import numpy as np

from sfuda_bench.scoring.validators import ValidationRecord, register_validator


@register_validator("template_name", version=1, source="not published")
def template_name(record: ValidationRecord) -> tuple[float, float]:
    """The mean distance of probabilities from one half, higher = better."""
    certainty = np.abs(record.prob - 0.5).mean(axis=(0, 2, 3))
    return float(certainty[0]), float(certainty[1])

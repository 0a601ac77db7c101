"""Dice on the images that a method adapted to: oracle numbers, computed by the label worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sfuda_bench.frames import write_scored
from sfuda_bench.running.predict import read_predictions
from sfuda_bench.running.score import masks_of_job
from sfuda_bench.scoring import metrics
from sfuda_bench.scoring.codes import STRUCTURES, upsample
from sfuda_bench.scoring.profiles import Profile, get_profile


def score_train(job: Mapping[str, Any]) -> None:
    """Write ``train-<profile>.parquet``: the Dice of a cell's final model on target ``train``.

    A method must not see these labels, so a choice that reads the numbers is an oracle's. There
    are no distances: they would cost many times as much, on more images than the test split has.

    Args:
        job: ``cell_dir``, ``key``, ``profile``, ``record`` and ``masks`` as for
            :func:`sfuda_bench.running.score.score_cell`, of the ``train`` split.
    """
    cell_dir, profile = Path(job["cell_dir"]), get_profile(job["profile"])
    masks, ids, stems = masks_of_job(job)
    rows = []
    for place, (name, stem) in enumerate(zip(ids, stems, strict=True)):
        (codes,) = read_predictions(cell_dir / "predictions-train", (name,))
        found = profile_dice(codes, np.asarray(masks[place]), profile)
        rows += [(stem, *pair, "last") for pair in zip(STRUCTURES, found, strict=True)]
    frame = pd.DataFrame(rows, columns=["image", "structure", "dice", "selection"])
    fields = {"score_key": job["key"], "oracle": True}
    write_scored(cell_dir / job["record"], fields, {f"train-{profile.name}.parquet": frame})


def profile_dice(
    codes: NDArray[np.uint8], mask: NDArray[np.bool_], profile: Profile
) -> tuple[float, ...]:
    """Return the Dice of cup and disc under a profile, as ``score_image`` gives it.

    Args:
        codes: (2, S, S) uint8 stored prediction.
        mask: (2, G, G) bool on the evaluation grid.
        profile: The scoring rules.

    Undefined:
        Two empty masks: 1. One of them empty: 0, or what a profile's smoothing makes of it that
        leaves empty masks out of its distances.
    """
    prediction = profile.segment(upsample(codes, mask.shape[-1]))
    return tuple(_dice(*pair, profile) for pair in zip(prediction, mask, strict=True))


def _dice(prediction: NDArray[np.bool_], truth: NDArray[np.bool_], profile: Profile) -> float:
    if not (prediction.any() or truth.any()):
        return 1.0
    if not (prediction.any() and truth.any()) and profile.empty_policy != "exclude":
        return 0.0
    return float(metrics.dice(prediction, truth, profile.smooth))

"""Scoring: one 512 x 512 pair against medpy, and a whole cell against a loop over images.

Our core computes Dice, both ASSD definitions, HD95 and NSD in its time; medpy computes ASSD
(pooled) and HD95 in its own. The cell is scored from stored codes as the label worker does it.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sfuda_bench.scoring import metrics
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.scorer import score_set
from tests.benchmarks.harness import Row, interleaved, largest_difference

Bool = NDArray[np.bool_]
Uint8 = NDArray[np.uint8]
PROFILE = "standard"


def ellipse(grid: int, y: float, x: float, height: float, width: float, waves: float) -> Bool:
    """Return an ellipse with an irregular boundary; lengths are shares of the grid."""
    rows, columns = np.mgrid[:grid, :grid] / grid
    angle = np.arctan2(rows - y, columns - x)
    radius = np.hypot((rows - y) / height, (columns - x) / width)
    return np.asarray(radius < 1 + waves * np.sin(9 * angle))


def example(grid: int, shift: float = 0.0) -> tuple[Bool, Bool]:
    """Return a prediction and a truth, each (2, grid, grid), cup first."""
    truth = [ellipse(grid, 0.5, 0.5, 0.147, 0.137, 0), ellipse(grid, 0.5, 0.488, 0.293, 0.273, 0)]
    predicted = [
        ellipse(grid, 0.508 + shift, 0.488, 0.137, 0.129, 0.04),
        ellipse(grid, 0.508, 0.5 - shift, 0.303, 0.273, 0.02),
    ]
    return np.stack(predicted), np.stack(truth)


def core(prediction: Bool, truth: Bool) -> list[float]:
    """Compute every score of one case."""
    distances = metrics.surface_distances(prediction, truth)
    return [
        metrics.assd_pooled(distances),
        metrics.hd95(distances),
        metrics.dice(prediction, truth),
        metrics.assd_directed(distances),
        metrics.nsd(distances, 6.0),
    ]


def medpy(prediction: Bool, truth: Bool) -> list[float]:
    """Compute the two distances of one case with medpy."""
    binary: Any = importlib.import_module("medpy.metric.binary")  # ships no types
    return [binary.assd(prediction, truth), binary.hd95(prediction, truth)]


def loop(codes: Uint8, masks: Bool, threshold: float) -> list[list[float]]:
    """Score a cell plainly: enlarge, threshold, Dice by sums and distances by medpy."""
    binary: Any = importlib.import_module("medpy.metric.binary")
    grid, found = masks.shape[-1], []
    for pair, truths in zip(codes, masks, strict=True):
        for code, truth in zip(pair, truths, strict=True):
            prob = (code.astype(np.float32) + 0.5) / 256
            large = ndimage.zoom(prob, grid / len(prob), order=1, grid_mode=True, mode="nearest")
            cut = large > threshold
            dice = 2 * (cut & truth).sum() / max(1, cut.sum() + truth.sum())
            found.append([dice, binary.assd(cut, truth), binary.hd95(cut, truth)])
    return found


def _pair(grid: int, repeats: int) -> list[Row]:
    predictions, truths = example(grid)
    found = []
    for name, mine, true in zip(("cup", "disc"), predictions, truths, strict=True):
        difference = largest_difference(core(mine, true)[:2], medpy(mine, true))
        times = interleaved(partial(medpy, mine, true), partial(core, mine, true), repeats)
        note = f"{grid} x {grid} px; ASSD and HD95 in px"
        found.append(
            times.row(f"score a pair ({name})", aim=5, difference=difference, allowed=1e-4,
                      note=note)
        )  # fmt: skip
    return found


def _cell(grid: int, images: int, repeats: int) -> Row:
    examples = [example(grid, 0.002 * number) for number in range(images)]
    masks = np.stack([truth for _, truth in examples])
    codes = np.stack([np.where(guess[:, ::2, ::2], 255, 0).astype(np.uint8)
                      for guess, _ in examples])  # fmt: skip
    profile, names = get_profile(PROFILE), [f"i{number:03d}" for number in range(images)]
    plain = partial(loop, codes, masks, profile.threshold)
    ours = partial(score_set, codes, masks, names, profile)
    dice = ours()[0]["dice"].to_numpy()
    difference = largest_difference([dice], [[row[0] for row in plain()]])
    return interleaved(plain, ours, repeats, warm=False).row(
        "score a cell",
        difference=difference,
        allowed=1e-6,
        note=f"{images} images, {grid // 2} -> {grid} px; Dice",
    )


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    grid, repeats = (512, 15) if full else (128, 1)
    return [*_pair(grid, repeats), _cell(grid, 20 if full else 2, 2 if full else 1)]

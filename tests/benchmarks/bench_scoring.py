"""Time one 512 x 512 pair of masks: our core against medpy's assd and hd95.

    python tests/benchmarks/bench_scoring.py

Prints the median time of each in milliseconds and their ratio. Our core computes Dice, both
ASSD definitions, HD95 and NSD in its time; medpy computes ASSD (pooled) and HD95 in its own.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfuda_bench.scoring import metrics
from sfuda_bench.scoring.codes import upsample
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.scorer import score_image

GRID = 512
REPEATS = 15


def ellipse(y: float, x: float, height: float, width: float, waves: float) -> NDArray[np.bool_]:
    """Return an ellipse with an irregular boundary."""
    rows, columns = np.mgrid[:GRID, :GRID]
    angle = np.arctan2(rows - y, columns - x)
    radius = np.hypot((rows - y) / height, (columns - x) / width)
    return np.asarray(radius < 1 + waves * np.sin(9 * angle))


def median_ms(function: Callable[[], object]) -> float:
    """Return the median time of a call, after one to warm up."""
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def core(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> list[float]:
    """Compute every score of one case."""
    distances = metrics.surface_distances(prediction, truth)
    return [
        metrics.dice(prediction, truth),
        metrics.assd_directed(distances),
        metrics.assd_pooled(distances),
        metrics.hd95(distances),
        metrics.nsd(distances, 6.0),
    ]


def medpy(prediction: NDArray[np.bool_], truth: NDArray[np.bool_]) -> list[float]:
    """Compute the two distances of one case with medpy."""
    binary: Any = importlib.import_module("medpy.metric.binary")  # ships no types
    return [binary.assd(prediction, truth), binary.hd95(prediction, truth)]


def main() -> None:
    """Print the timings."""
    truth = np.stack([ellipse(256, 256, 75, 70, 0), ellipse(256, 250, 150, 140, 0)])
    prediction = np.stack([ellipse(260, 250, 70, 66, 0.04), ellipse(260, 256, 155, 140, 0.02)])
    for name, mine, true in zip(("cup", "disc"), prediction, truth, strict=True):
        ours, theirs = (median_ms(partial(score, mine, true)) for score in (core, medpy))
        print(f"{name:5} core {ours:6.2f} ms   medpy {theirs:7.2f} ms   {theirs / ours:5.1f} x")
    codes = np.where(prediction[:, ::2, ::2], 255, 0).astype(np.uint8)
    resize = median_ms(partial(upsample, codes, GRID))
    whole = median_ms(partial(score_image, codes, truth, get_profile("standard")))
    print(f"upsample 256 -> 512, two channels        {resize:.2f} ms")
    print(f"score_image, both structures and the eye {whole:.2f} ms")


if __name__ == "__main__":
    main()

"""Refinement: a stencil of shifted multiply-adds against squared dense transition matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sfuda_bench.blocks.refinement import refine
from tests.benchmarks.harness import Row, interleaved, largest_difference, peak_mb
from tests.benchmarks.reference.context_similarity import Paths, affinity, walked

RADIUS, BETA, STEPS = 4, 2.0, 4
AIM = 50.0


def dense(prob: Tensor, features: Tensor, paths: Paths, steps: int = STEPS) -> Tensor:
    """Refine (B, 2, h, w) by dense matrices, image by image and structure by structure."""
    logt = round(math.log2(steps))
    refined = torch.empty_like(prob)
    for image in range(len(prob)):
        for structure in range(2):
            similarity = affinity(features[image : image + 1, structure], paths)[0]
            refined[image, structure] = walked(
                similarity, prob[image, structure], paths, BETA, logt
            )
    return refined


def _row(name: str, side: int, channels: int, steps: int, repeats: int, aim: float | None) -> Row:
    draw = torch.Generator().manual_seed(3)
    features = torch.randn(1, 2, channels, side, side, generator=draw).relu()
    prob = torch.rand(1, 2, side, side, generator=draw)
    paths = Paths.of(side, RADIUS)

    def plain() -> Tensor:
        return dense(prob, features, paths, steps)

    def ours() -> Tensor:
        return refine(prob, features, radius=RADIUS, beta=BETA, iterations=steps)

    with torch.no_grad():
        return interleaved(plain, ours, repeats).row(
            f"refinement t={steps} ({name})",
            aim=aim,
            difference=largest_difference([plain()], [ours()]),
            allowed=1e-5,
            memory_mb=(peak_mb(plain), peak_mb(ours)),
            note=f"one image, {side} x {side} cells, {channels} channels, r={RADIUS}",
        )


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark.

    With one channel hardly anything but the walk is timed; with 256 the similarity of all pairs,
    which both need, is in the time as well.
    """
    side, repeats = (50, 2) if full else (10, 1)
    aim = AIM if full else None
    found = [
        _row("the walk", side, 1, STEPS, repeats, aim),
        _row("similarity and walk", side, 256 if full else 8, STEPS, repeats, None),
    ]
    if full:
        found.append(_row("similarity and walk", side, 256, 32, 1, None))
    return found

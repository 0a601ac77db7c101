"""Refinement of probabilities by a random walk over similar neighbouring cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.context_similarity import (
    Border,
    Neighbourhood,
    Pairs,
    Reduce,
    pair_distance,
    pair_index,
)
from sfuda_bench.blocks.precision import full_precision
from sfuda_bench.blocks.resample import nearest
from sfuda_bench.errors import UsageError


@torch.no_grad()
@full_precision
def refine(
    prob_grid: Tensor,
    features: Tensor,
    radius: int = 4,
    beta: float = 2.0,
    iterations: int = 4,
    neighbourhood: Neighbourhood = "lt",
    border: Border = "official",
    reduce: Reduce = "mean",
) -> Tensor:
    """Return probabilities after ``iterations`` steps of averaging over similar neighbours.

    One step is p'_j = sum_i A_ij p_i / sum_i A_ij with A = S^beta for pairs, 1 for the cell
    itself and 0 elsewhere, that is p' = p T where the columns of T sum to 1. It is applied as a
    stencil of shifted multiply-adds; T is never formed.

    Args:
        prob_grid: (B, 2, h, w) float, cup first; see :func:`grid_prob`.
        features: (B, 2, C, h, w) float, of the similarity head.
        radius: In grid cells.
        beta: Exponent of the similarity; larger keeps only the most similar neighbours.
        iterations: Steps, at least 0. The released code squares T ``logt`` times: 2**logt steps.
        neighbourhood: ``"lt"`` or ``"le"``.
        border: ``"official"`` or ``"full"``.
        reduce: ``"mean"`` or ``"sum"`` over channels.

    Returns:
        (B, 2, h, w) float32 (float64 if both inputs are), within the range of ``prob_grid``.

    Raises:
        UsageError: No pairs on this grid, or a negative ``beta`` or ``iterations``.

    Source: CPR, MICCAI 2023, equation 4 and released code.
    """
    if beta < 0 or iterations < 0:
        raise UsageError(f"beta={beta}, iterations={iterations}: neither may be negative")
    height, width = prob_grid.shape[-2:]
    pairs = pair_index(height, width, radius, neighbourhood, border)
    weights = _split(torch.exp(-beta * pair_distance(features, pairs, reduce)), pairs)
    total = _spread(torch.ones_like(prob_grid), weights, pairs)
    prob = prob_grid
    for _ in range(iterations):
        prob = _spread(prob, weights, pairs) / total
    return prob


def dense_transition(
    features: Tensor, pairs: Pairs, beta: float = 2.0, reduce: Reduce = "mean"
) -> Tensor:
    """Return the transition matrix T (B, 2, n, n), n = h w, columns summing to 1.

    The reference for :func:`refine`, for small grids: p' = p T for a row vector p of cells.
    """
    affinity = torch.exp(-beta * pair_distance(features, pairs, reduce))
    anchor, partner = (index.to(affinity.device) for index in pairs.indices())
    cells = pairs.height * pairs.width
    dense = torch.eye(cells, dtype=affinity.dtype, device=affinity.device)
    dense = dense.repeat(*affinity.shape[:2], 1, 1)
    dense[..., anchor, partner] = affinity
    dense[..., partner, anchor] = affinity
    return dense / dense.sum(dim=-2, keepdim=True)


def grid_prob(prob: Tensor, size: Sequence[int]) -> Tensor:
    """Return probabilities (B, 2, H, W) on the grid, by nearest: index floor(i * H / h)."""
    return nearest(prob, size)


@full_precision
def upsample_refined(prob: Tensor, size: Sequence[int]) -> Tensor:
    """Return refined probabilities at ``size`` pixels, bilinear with align_corners=False."""
    return F.interpolate(prob, size=list(size), mode="bilinear", align_corners=False)


@full_precision
def calibrate(prob: Tensor, mode: Literal["max", "none"] = "max") -> Tensor:
    """Return each map of (B, 2, H, W) divided by its own maximum, or unchanged.

    A structure that is improbable everywhere is thereby scaled up to 1 as well.

    Undefined:
        An all-zero map stays zero.

    Source: CPR, MICCAI 2023, released code.
    """
    if mode == "none":
        return prob
    if mode != "max":
        raise UsageError(f"calibrate is '{mode}'; expected 'max' or 'none'")
    largest = prob.amax(dim=(-2, -1), keepdim=True)
    return prob / torch.where(largest > 0, largest, torch.ones_like(largest))


def _split(values: Tensor, pairs: Pairs) -> list[Tensor]:
    """Return (B, 2, P) as one (B, 2, rows, columns) window per offset."""
    shapes = [(r.stop - r.start, c.stop - c.start) for (r, c), _ in pairs.windows]
    parts = values.split([rows * columns for rows, columns in shapes], dim=2)
    return [part.unflatten(2, shape) for part, shape in zip(parts, shapes, strict=True)]


def _spread(x: Tensor, weights: list[Tensor], pairs: Pairs) -> Tensor:
    """Return x A: each cell plus its weighted neighbours."""
    out = x.clone()
    for weight, (anchor, partner) in zip(weights, pairs.windows, strict=True):
        out[(..., *partner)] += weight * x[(..., *anchor)]
        out[(..., *anchor)] += weight * x[(..., *partner)]
    return out

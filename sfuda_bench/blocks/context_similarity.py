"""Similarity of neighbouring grid cells: which pairs, how alike, and the loss that teaches it.

Pairs are kept as shifted windows of the grid, one per offset, so a map is compared with a shifted
view of itself and nothing is gathered. What is held at a time is the difference of one offset and
a few images, whatever the radius and the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor

from sfuda_bench.blocks.precision import full_precision
from sfuda_bench.blocks.resample import nearest
from sfuda_bench.errors import UsageError

Neighbourhood = Literal["lt", "le"]
Border = Literal["official", "full"]
Reduce = Literal["mean", "sum"]
Window = tuple[slice, slice]
IGNORE = 255
_EPS = 1e-5
_WORKING_BYTES = {"cpu": 2**21}
_WORKING_BYTES_ELSEWHERE = 2**28
"""Largest difference map held at a time: near the cache on CPUs, few launches elsewhere."""


@dataclass(frozen=True)
class Pairs:
    """All pairs of one grid under one rule, offset by offset.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        offsets: (dy, dx) from anchor to partner, in cells.
        windows: Per offset, the rows and columns of the anchors and of their partners.
    """

    height: int
    width: int
    offsets: tuple[tuple[int, int], ...]
    windows: tuple[tuple[Window, Window], ...]

    def __len__(self) -> int:
        return sum(_area(anchor) for anchor, _ in self.windows)

    def indices(self) -> tuple[Tensor, Tensor]:
        """Return the flat cell indices of anchors and partners, each (P,) int64."""
        cells = torch.arange(self.height * self.width).view(self.height, self.width)
        anchors, partners = zip(*self.windows, strict=True)
        return (
            torch.cat([cells[window].flatten() for window in anchors]),
            torch.cat([cells[window].flatten() for window in partners]),
        )


def neighbour_offsets(
    radius: int, neighbourhood: Neighbourhood = "lt"
) -> tuple[tuple[int, int], ...]:
    """Return one offset of each undirected pair of cells within ``radius``, row by row.

    Args:
        radius: In grid cells, at least 1.
        neighbourhood: ``"lt"``: distance < radius (22 offsets at 4); ``"le"``: <= radius (24).

    Source: CPR, MICCAI 2023: the formula has d <= r, the released code d < r.
    """
    if radius < 1 or neighbourhood not in ("lt", "le"):
        raise UsageError(
            f"radius={radius}, neighbourhood='{neighbourhood}': expected a radius of at least 1 "
            "grid cell, and 'lt' or 'le'"
        )
    limit = radius * radius - (neighbourhood == "lt")
    ahead = [(0, dx) for dx in range(1, radius + 1)]
    below = [(dy, dx) for dy in range(1, radius + 1) for dx in range(-radius, radius + 1)]
    return tuple((dy, dx) for dy, dx in ahead + below if dy * dy + dx * dx <= limit)


def pair_index(
    height: int,
    width: int,
    radius: int,
    neighbourhood: Neighbourhood = "lt",
    border: Border = "official",
) -> Pairs:
    """Return the pairs of a grid.

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        radius: In grid cells.
        neighbourhood: ``"lt"`` or ``"le"``, see :func:`neighbour_offsets`.
        border: ``"full"``: every pair inside the grid. ``"official"``: only anchors whose whole
            neighbourhood is inside it, as in the released code; cells near the border have fewer
            neighbours, some none, and the rule is not symmetric under flips.

    Raises:
        UsageError: The rule leaves no pair on this grid.

    Source: CPR, MICCAI 2023, released code.
    """
    if border not in ("official", "full"):
        raise UsageError(f"border is '{border}'; expected 'official' or 'full'")
    windows = _windows(height, width, radius, neighbourhood, border)
    if not windows:
        raise UsageError(
            f"radius {radius} ('{neighbourhood}', border '{border}') leaves no pairs on a grid of "
            f"{height} x {width} cells",
            hint=_what_would_do(height, width, radius, neighbourhood, border),
        )
    offsets, slices = zip(*windows, strict=True)
    return Pairs(height, width, offsets, slices)


@full_precision
def pair_distance(features: Tensor, pairs: Pairs, reduce: Reduce = "mean") -> Tensor:
    """Return the L1 distance of each pair; differentiable, in bounded memory.

    Differences are formed for one offset and a few images at a time, and formed again for the
    gradient: beyond features, distances and gradient, memory grows neither with the radius nor
    with the batch.

    Args:
        features: (B, 2, C, h, w) float, one map per structure, cup first.
        pairs: Pairs of the (h, w) grid.
        reduce: ``"mean"`` over the C channels (released code) or ``"sum"`` (the paper's formula).

    Returns:
        (B, 2, P), ordered as ``pairs.indices()``.
    """
    _check_grid(features, pairs)
    scale = {"mean": 1 / features.shape[2], "sum": 1.0}.get(reduce)
    if scale is None:
        raise UsageError(f"similarity reduce is '{reduce}'; expected 'mean' or 'sum'")
    return cast(Tensor, _PairDistance.apply(features, pairs, scale))


@full_precision
def similarity(features: Tensor, pairs: Pairs, reduce: Reduce = "mean") -> Tensor:
    """Return S = exp(-distance) in (0, 1] of each pair, (B, 2, P); see :func:`pair_distance`.

    The ``"sum"`` form underflows to 0 on real features: losses use the distance itself.
    """
    return torch.exp(-pair_distance(features, pairs, reduce))


def grid_labels(pseudo_label: Tensor, reliable: Tensor, size: Sequence[int]) -> Tensor:
    """Return grid labels (B, 2, h, w) uint8: 0, 1, or 255 (ignore) where not reliable.

    Args:
        pseudo_label: (B, 2, H, W), 0 or 1 of any dtype.
        reliable: (B, 2, H, W) bool.
        size: Rows and columns of the grid; nearest, the first pixel of each cell.
    """
    label = nearest(pseudo_label, size).to(torch.uint8)
    return label.masked_fill(~nearest(reliable, size).bool(), IGNORE)


@dataclass(frozen=True)
class PairLabels:
    """What each pair is, each (B, 2, P) bool; a pair with an ignored cell is none of the three.

    Args:
        background: Both cells are background.
        foreground: Both cells are foreground.
        negative: One of each.
    """

    background: Tensor
    foreground: Tensor
    negative: Tensor

    def __getitem__(self, index: Tensor) -> PairLabels:
        """Return the labels of the images at ``index``, (n,) int64."""
        return PairLabels(self.background[index], self.foreground[index], self.negative[index])


def pair_labels(labels: Tensor, pairs: Pairs) -> PairLabels:
    """Return the kind of each pair from grid labels (B, 2, h, w) of 0, 1 and 255 (ignore)."""
    _check_grid(labels, pairs)
    one = torch.cat([labels[..., rows, cols].flatten(2) for (rows, cols), _ in pairs.windows], 2)
    two = torch.cat([labels[..., rows, cols].flatten(2) for _, (rows, cols) in pairs.windows], 2)
    known = (one != IGNORE) & (two != IGNORE)
    return PairLabels(
        background=(one == 0) & (two == 0),
        foreground=(one == 1) & (two == 1),
        negative=known & (one != two),
    )


@full_precision
def loss_from_distance(
    distance: Tensor, labels: PairLabels, reduce: Reduce = "mean", eps: float = _EPS
) -> Tensor:
    """Return the similarity loss of pair distances (B, 2, P), a scalar.

    Background-background and foreground-foreground pairs weigh a quarter each, negative pairs a
    half; counts run over the batch; the mean over cup and disc. Under ``reduce="sum"`` -log S is
    the distance itself.

    Undefined:
        A kind without pairs contributes 0; the weights are not renormalised.
    """
    like = distance if reduce == "sum" else -torch.log(torch.exp(-distance) + eps)
    unlike = -torch.log(eps - torch.expm1(-distance))  # 1 + eps - S without cancellation
    per_structure = (
        0.25 * _mean_over(like, labels.background, eps)
        + 0.25 * _mean_over(like, labels.foreground, eps)
        + 0.5 * _mean_over(unlike, labels.negative, eps)
    )
    return per_structure.mean()


def similarity_loss(
    features: Tensor,
    labels: Tensor | PairLabels,
    pairs: Pairs,
    reduce: Reduce = "mean",
    eps: float = _EPS,
) -> Tensor:
    """Return the loss that makes cells of one class alike and of two classes unlike, a scalar.

    Args:
        features: (B, 2, C, h, w) float, of the similarity head.
        labels: (B, 2, h, w) uint8, of :func:`grid_labels`; or their :func:`pair_labels`, which
            do not change while a head is trained.
        pairs: Pairs of the (h, w) grid.
        reduce: ``"mean"`` or ``"sum"`` over channels.
        eps: Inside the logarithms and the counts.

    Undefined:
        Without any labelled pair the loss is 0 with zero gradient.

    Source: CPR, MICCAI 2023, equation 2 and released code.
    """
    distance = pair_distance(features, pairs, reduce)
    kinds = labels if isinstance(labels, PairLabels) else pair_labels(labels, pairs)
    return loss_from_distance(distance, kinds, reduce, eps)


class _PairDistance(torch.autograd.Function):
    """Scaled L1 distances; the differences are formed again, piece by piece, for the gradient."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, pairs: Pairs, scale: float) -> Tensor:
        ctx.save_for_backward(features)
        ctx.pairs, ctx.scale = pairs, scale
        distance = features.new_empty(*features.shape[:2], len(pairs))
        size = _images_at_a_time(features)
        for some, out in zip(features.split(size), distance.split(size), strict=True):
            parts = out.split(_counts(pairs), dim=2)
            for window, part in zip(pairs.windows, parts, strict=True):
                part.copy_(_difference(some, *window).abs_().sum(dim=2).flatten(2))
        return distance.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Any:
        (features,) = ctx.saved_tensors
        grad = torch.zeros_like(features)
        size = _images_at_a_time(features)
        incoming = (grad_outputs[0] * ctx.scale).split(size)
        for some, out, given in zip(features.split(size), grad.split(size), incoming, strict=True):
            parts = given.split(_counts(ctx.pairs), dim=2)
            for ((ar, ac), (pr, pc)), part in zip(ctx.pairs.windows, parts, strict=True):
                sign = _difference(some, (ar, ac), (pr, pc)).sign_()
                sign *= part.unflatten(2, sign.shape[-2:]).unsqueeze(2)
                out[..., ar, ac] += sign
                out[..., pr, pc] -= sign
        return grad, None, None


def _images_at_a_time(features: Tensor) -> int:
    limit = _WORKING_BYTES.get(features.device.type, _WORKING_BYTES_ELSEWHERE)
    return max(1, limit // max(1, features[:1].numel() * features.element_size()))


def _counts(pairs: Pairs) -> list[int]:
    return [_area(anchor) for anchor, _ in pairs.windows]


def _difference(features: Tensor, anchor: Window, partner: Window) -> Tensor:
    return features[(..., *anchor)] - features[(..., *partner)]


def _mean_over(loss: Tensor, chosen: Tensor, eps: float) -> Tensor:
    """Return, per structure, the sum of ``loss`` over ``chosen`` by (their count + eps)."""
    total = torch.where(chosen, loss, torch.zeros_like(loss)).sum(dim=(0, 2))
    return total / (chosen.sum(dim=(0, 2)) + eps)


def _windows(
    height: int, width: int, radius: int, neighbourhood: Neighbourhood, border: Border
) -> list[tuple[tuple[int, int], tuple[Window, Window]]]:
    """Return each offset that has pairs, with its windows."""
    offsets = neighbour_offsets(radius, neighbourhood)
    reach = radius - (neighbourhood == "lt")
    found = []
    for dy, dx in offsets:
        down, left, right = (
            (reach, reach, reach) if border == "official" else (dy, max(0, -dx), max(0, dx))
        )
        if height - down < 1 or width - left - right < 1:
            continue
        rows, columns = (0, height - down), (left, width - right)
        found.append(((dy, dx), (_shifted(rows, columns, 0, 0), _shifted(rows, columns, dy, dx))))
    return found


def _shifted(rows: tuple[int, int], columns: tuple[int, int], dy: int, dx: int) -> Window:
    return slice(rows[0] + dy, rows[1] + dy), slice(columns[0] + dx, columns[1] + dx)


def _area(window: Window) -> int:
    rows, columns = window
    return int((rows.stop - rows.start) * (columns.stop - columns.start))


def _what_would_do(
    height: int, width: int, radius: int, neighbourhood: Neighbourhood, border: Border
) -> str:
    def has_pairs(other: int) -> bool:
        return bool(_windows(height, width, other, neighbourhood, border))

    largest = next((r for r in range(radius - 1, 0, -1) if has_pairs(r)), None)
    if largest is not None:
        return f"a radius of at most {largest} works on this grid, or take larger images"
    smallest = next((r for r in range(radius + 1, 4) if has_pairs(r)), None)
    if smallest is not None:
        return f"a radius of {smallest} works on this grid"
    return "no radius works on this grid: take larger images, or border 'full'"


def _check_grid(x: Tensor, pairs: Pairs) -> None:
    if tuple(x.shape[-2:]) != (pairs.height, pairs.width):
        raise UsageError(
            f"a map of {tuple(x.shape[-2:])} cells does not fit pairs of "
            f"{(pairs.height, pairs.width)}"
        )

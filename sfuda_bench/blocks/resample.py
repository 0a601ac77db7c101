"""Nearest-neighbour resampling with exact integer indices, and sides that a network can take."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def nearest(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``x`` (..., H, W), of any dtype, at ``size`` by picking index floor(i * H / h).

    It picks the first pixel of each cell, as ``torch``'s ``nearest`` does, not the centre that
    image libraries pick; integer arithmetic leaves no rounding to the float scale.
    """
    rows, columns = (
        torch.arange(new, device=x.device) * old // new
        for new, old in zip(size, x.shape[-2:], strict=True)
    )
    return x[..., rows[:, None], columns]


def scaled_side(side: int, scale: float, stride: int = 16) -> int:
    """Return ``scale`` times ``side``, to the nearest multiple of the network's stride.

    Args:
        side: Side of an image, px.
        scale: Above 0.
        stride: What the side must be divisible by, px; also the smallest result.

    Returns:
        The new side, px; ``side`` itself at scale 1, whatever it is divisible by.
    """
    return side if scale == 1.0 else max(stride, round(side * scale / stride) * stride)

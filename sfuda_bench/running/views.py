"""Transformations under which a segmentation should not change, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

_BLUR_SHARE, _LEAST_BLUR_PX = 1 / 256, 0.6  # standard deviation: share of the side, px
Intensity = Callable[[Tensor], Tensor]
Matrix = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Transformation:
    """A linear map about the image's centre, or a change of gray levels.

    Attributes:
        name: In records.
        matrix: Takes (x, y) of the transformed image to (x, y) of the original, both in [-1, 1];
            ``None`` where pixels stay in place.
        intensity: Takes and returns normalised images in [-1, 1]; ``None`` to keep gray levels.
    """

    name: str
    matrix: Matrix | None = None
    intensity: Intensity | None = None

    def apply(self, image: Tensor) -> Tensor:
        """Return the transformed images; what lies outside is filled by reflection.

        Args:
            image: (B, 3, S, S) float32, normalised.
        """
        if self.intensity is not None:
            image = self.intensity(image)
        if self.matrix is None:
            return image
        return _sampled(image, torch.tensor(self.matrix), "reflection")

    def undo(self, prob: Tensor) -> Tensor:
        """Return predictions (B, 2, S, S) for transformed images in the original's pixels."""
        if self.matrix is None:
            return prob
        return _sampled(prob, torch.linalg.inv(torch.tensor(self.matrix)), "border")

    def valid(self, side_px: int) -> Tensor:
        """Return which pixels of the original the transformed image shows, (S, S) bool."""
        if self.matrix is None:
            return torch.ones(side_px, side_px, dtype=torch.bool)
        back = torch.linalg.inv(torch.tensor(self.matrix))
        grid = _grid(back, 1, side_px)
        return (grid[0].abs() <= 1 + 1e-6).all(dim=-1)


def _grid(matrix: Tensor, batch: int, side: int) -> Tensor:
    affine = torch.cat([matrix, torch.zeros(2, 1)], dim=1).expand(batch, 2, 3)
    return F.affine_grid(affine, [batch, 1, side, side], align_corners=False)


def _sampled(values: Tensor, matrix: Tensor, padding: str) -> Tensor:
    grid = _grid(matrix, len(values), values.shape[-1]).to(values.device)
    return F.grid_sample(values, grid, padding_mode=padding, align_corners=False)


def _rotation(degrees: float) -> Matrix:
    angle = math.radians(degrees)
    return (math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))


def _scaling(factor: float) -> Matrix:
    return (1 / factor, 0.0), (0.0, 1 / factor)


def _gamma(image: Tensor, exponent: float) -> Tensor:
    return ((image + 1) / 2).clamp(0, 1) ** exponent * 2 - 1


def _blur(image: Tensor) -> Tensor:
    """Return images smoothed by a Gaussian whose width follows their side."""
    sigma = max(_LEAST_BLUR_PX, image.shape[-1] * _BLUR_SHARE)
    radius = max(1, math.ceil(3 * sigma))
    offset = torch.arange(-radius, radius + 1, dtype=torch.float32, device=image.device)
    kernel = torch.exp(-0.5 * (offset / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    padded = F.pad(image, (radius,) * 4, mode="replicate")
    rows = kernel.view(1, 1, 1, -1).repeat(channels, 1, 1, 1)
    smooth = F.conv2d(padded, rows, groups=channels)
    return F.conv2d(smooth, rows.transpose(2, 3), groups=channels)


VIEWS = (
    Transformation("hflip", ((-1.0, 0.0), (0.0, 1.0))),
    Transformation("rotate+10", _rotation(10)),
    Transformation("rotate-10", _rotation(-10)),
    Transformation("scale0.9", _scaling(0.9)),
    Transformation("scale1.1", _scaling(1.1)),
    Transformation("gamma0.8", intensity=partial(_gamma, exponent=0.8)),
    Transformation("gamma1.25", intensity=partial(_gamma, exponent=1.25)),
    Transformation("blur", intensity=_blur),
)
"""What ``consistency`` is measured under."""

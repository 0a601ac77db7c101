"""The convolution of an up-sampled map on its own grid equals the plain one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate

from sfuda_bench.networks.upsampled_convolution import UpsampledConvolution


def plain(weight: Tensor, low: Tensor, context: Tensor) -> Tensor:
    size = (low.shape[2], low.shape[3])
    raised = interpolate(context, size, mode="bilinear", align_corners=True)
    return conv2d(torch.cat([raised, low], dim=1), weight, padding=1)


@pytest.mark.parametrize("grid", [(3, 5), (1, 2), (4, 4)])
def test_it_equals_the_plain_convolution_on_any_grid(grid: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 6 + 2, 3, 3, generator=generator, dtype=torch.float64)
    low = torch.randn(2, 2, 9, 14, generator=generator, dtype=torch.float64)
    convolution = UpsampledConvolution(weight, low, grid)
    for _ in range(2):
        context = torch.randn(2, 6, *grid, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(
            convolution(context), plain(weight, low, context), rtol=1e-12, atol=1e-12
        )


def test_beyond_the_border_there_are_zeros() -> None:
    """A constant 1 under a kernel of ones counts the pixels inside: 4, 6 or 9."""
    weight = torch.ones(1, 2, 3, 3)
    weight[:, 1] = 0
    convolution = UpsampledConvolution(weight, torch.ones(1, 1, 8, 8), (2, 2))
    counted = convolution(torch.ones(1, 1, 2, 2))[0, 0]
    expected = torch.full((8, 8), 6.0)
    expected[1:-1, 1:-1] = 9
    expected[[0, 0, -1, -1], [0, -1, 0, -1]] = 4
    torch.testing.assert_close(counted, expected, rtol=1e-6, atol=0)

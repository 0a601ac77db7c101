"""Convolutional block attention: channels first, then positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CBAM(nn.Module):
    """Weight a map by channel attention, then by spatial attention; no residual around it.

    With the default arguments it has 8,290 parameters, all of PyTorch's default initialisation.

    Args:
        channels: Channels of the map.
        reduction: Hidden channels of the perceptron are ``channels // reduction``.
        kernel_size: Odd side of the spatial convolution, in cells.
        mlp_bias: Whether the perceptron has biases.

    Source: Woo et al., ECCV 2018. Departure: no batch norm after the spatial convolution, and no
        bias in the perceptron by default.
    """

    def __init__(
        self,
        channels: int = 256,
        reduction: int = 16,
        kernel_size: int = 7,
        mlp_bias: bool = False,
    ) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = nn.Sequential(
            nn.Linear(channels, hidden, bias=mlp_bias),
            nn.ReLU(),
            nn.Linear(hidden, channels, bias=mlp_bias),
        )
        self.spatial = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def channel_attention(self, x: Tensor) -> Tensor:
        """Return the (B, C, 1, 1) weights in (0, 1) from average- and max-pooled channels."""
        pooled = self.mlp(x.mean(dim=(2, 3))) + self.mlp(x.amax(dim=(2, 3)))
        return torch.sigmoid(pooled)[:, :, None, None]

    def spatial_attention(self, x: Tensor) -> Tensor:
        """Return the (B, 1, h, w) weights in (0, 1) from the mean and maximum over channels."""
        pooled = torch.stack([x.mean(dim=1), x.amax(dim=1)], dim=1)  # (B, 2, h, w)
        return torch.sigmoid(self.spatial(pooled))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (B, C, h, w) weighted, in the same shape."""
        x = self.channel_attention(x) * x
        return self.spatial_attention(x) * x

"""The smallest network that honours the taps: it trains in milliseconds and segments toy images.

The contract of plug-ins runs on it, and whatever else asks how something behaves rather than how
well it segments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sfuda_bench.networks.taps import Encoded, SegmentationNetwork, refused_single_image


def _block(inputs: int, outputs: int, **convolution: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, bias=False, **convolution), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Tiny(SegmentationNetwork):
    """Strides 4 and 16, a pooled branch with batch norm, one dropout, a short decoder."""

    feature_channels = 8
    high_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.stem = _block(3, 8, kernel_size=5, stride=4, padding=2)
        self.deep = _block(8, 16, kernel_size=5, stride=4, padding=2)
        self.pooled = _block(16, 8, kernel_size=1)
        self.project = _block(24, self.context_channels, kernel_size=1)
        self.dropout = nn.Dropout(0.5)
        self.reduce = _block(self.context_channels, 8, kernel_size=1)
        self.fuse = _block(16, self.feature_channels, kernel_size=3, padding=1)
        self.head = nn.Conv2d(self.feature_channels, 2, 1)

    def encode(self, image: Tensor) -> Encoded:
        """Return context (256 channels, stride 16) and low-level features (8, stride 4)."""
        size = self.checked_size(image)
        low = self.stem(image)
        high = self.deep(low)
        return Encoded(self.pyramid(high), low, size, high=high)

    def pyramid(self, high: Tensor) -> Tensor:
        """Return the context map before its dropout, made of the backbone's output.

        Raises:
            UsageError: One image in train mode.
        """
        with refused_single_image(high):
            pooled = self.pooled(high.mean(dim=(2, 3), keepdim=True))
        context: Tensor = self.project(
            torch.cat([high, pooled.expand(-1, -1, *high.shape[-2:])], dim=1)
        )
        return context

    def context(self, encoded: Encoded) -> Tensor:
        """Return the (B, 256, H/16, W/16) map after the dropout."""
        dropped: Tensor = self.dropout(encoded.context)
        return dropped

    def decode(self, context: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return ``logits`` (B, 2, H, W) and ``feature`` (B, 8, H/4, W/4)."""
        up = interpolate(self.reduce(context), encoded.low.shape[-2:], mode="bilinear")
        feature = self.fuse(torch.cat([up, encoded.low], dim=1))
        logits = interpolate(self.head(feature), encoded.size, mode="bilinear")
        return logits, feature


def build(encoder: str, encoder_weights: str | None) -> Tiny:
    """Return a new network; it has one encoder only and no pretrained weights."""
    return Tiny()

"""Template name: a small network of three taps; put your layers here."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from sfuda_bench.networks.registry import NetworkSpec, register_network
from sfuda_bench.networks.taps import Encoded, SegmentationNetwork


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 5, stride=stride, padding=2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class TemplateName(SegmentationNetwork):
    """Everything before the first dropout is ``encode``; the composition of the taps is the net."""

    feature_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.low = _block(3, 16, stride=4)
        self.deep = _block(16, self.context_channels, stride=4)
        self.dropout = nn.Dropout(0.5)
        self.reduce = _block(self.context_channels, 16, stride=1)
        self.fuse = _block(32, self.feature_channels, stride=1)
        self.head = nn.Conv2d(self.feature_channels, 2, 1)

    def encode(self, image: Tensor) -> Encoded:
        """Return what no dropout has touched: (B, 256, H/16, W/16) and (B, 16, H/4, W/4)."""
        size = self.checked_size(image)
        low = self.low(image)
        return Encoded(self.deep(low), low, size)

    def context(self, encoded: Encoded) -> Tensor:
        """Return the map that the dropout has passed."""
        dropped: Tensor = self.dropout(encoded.context)
        return dropped

    def decode(self, context: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return logits (B, 2, H, W), cup first, and the feature that they are made of."""
        up = interpolate(self.reduce(context), encoded.low.shape[-2:], mode="bilinear")
        feature = self.fuse(torch.cat([up, encoded.low], dim=1))
        return interpolate(self.head(feature), encoded.size, mode="bilinear"), feature


def build(encoder: str, encoder_weights: str | None) -> TemplateName:
    """Return a new network; this one has no choice of encoders and no pretrained weights."""
    return TemplateName()


register_network(
    NetworkSpec("template_name", version=1, builder=build, description="one line for ls networks")
)

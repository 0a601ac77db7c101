"""What a segmentation network offers to a method: three taps and their composition."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Encoded:
    """Everything of one batch that no dropout has touched yet.

    Args:
        context: (B, 256, H/16, W/16) float, the context map just before the first dropout.
        low: (B, C, H/4, W/4) float, the low-level decoder features, also before any dropout.
        size: Height and width of the input image, in pixels.
    """

    context: Tensor
    low: Tensor
    size: tuple[int, int]


class SegmentationNetwork(nn.Module):
    """A network of two independent structures (cup, disc), cut into three taps.

    ``decode(context(encode(image)))`` is the network: ``forward`` is this composition, gives the
    same bits and draws the same random numbers. Monte-Carlo dropout therefore runs ``encode``
    once and repeats only the other two.
    """

    context_channels: int = 256
    context_stride: int = 16
    feature_channels: int

    @abstractmethod
    def encode(self, image: Tensor) -> Encoded:
        """Return the part of the forward pass that lies before the first dropout.

        Args:
            image: (B, 3, H, W) float, normalised; H and W divisible by 16.
        """

    @abstractmethod
    def context(self, encoded: Encoded) -> Tensor:
        """Return the (B, 256, H/16, W/16) map after the first dropout.

        The similarity head reads this map. The dropout acts only if its module is in train mode.
        """

    @abstractmethod
    def decode(self, context: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """Return logits and penultimate feature.

        Returns:
            ``logits`` (B, 2, H, W), cup first; ``feature`` (B, C, H/4, W/4), the input of the
            last 1x1 convolution.
        """

    def sampled_dropout(self) -> list[nn.Module]:
        """Return the dropout modules that act in ``context`` and ``decode``.

        These are the ones that Monte-Carlo dropout samples; dropout inside ``encode``, if a
        backbone has any, stays off so that encoding once is exact.
        """
        return [m for m in self.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]

    def forward(self, image: Tensor) -> Tensor:
        """Return the (B, 2, H, W) logits of ``image``."""
        encoded = self.encode(image)
        logits, _ = self.decode(self.context(encoded), encoded)
        return logits

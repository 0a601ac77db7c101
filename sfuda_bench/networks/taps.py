"""What a segmentation network offers to a method: three taps and their composition."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from sfuda_bench.errors import UsageError


@dataclass(frozen=True)
class Encoded:
    """Everything of one batch that no dropout has touched yet.

    Args:
        context: (B, 256, H/16, W/16) float, the context map just before the first dropout.
        low: (B, C, H/4, W/4) float, the low-level decoder features, also before any dropout.
        size: Height and width of the input image, in pixels.
        high: (B, C, H/16, W/16) float, the backbone's output that ``context`` is made of, or
            ``None`` where a network does not offer it.
    """

    context: Tensor
    low: Tensor
    size: tuple[int, int]
    high: Tensor | None = None


class SegmentationNetwork(nn.Module):
    """A network of two independent structures (cup, disc), cut into three taps.

    ``decode(context(encode(image)))`` is the network: ``forward`` is this composition, gives the
    same bits and draws the same random numbers. Monte-Carlo dropout therefore runs ``encode``
    once and repeats only the other two.
    """

    context_channels: int = 256
    context_stride: int = 16
    feature_channels: int
    high_channels: int = 0
    """Channels of ``Encoded.high``; 0 without that tap."""
    pooling_bn: bool | None = None
    """Whether the pooling branch uses its batch norm; ``None`` where that has no switch."""

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
            ``logits`` (B, 2, H, W), cup first; ``feature`` (B, C, H/4, W/4), the map that class
            prototypes are made of.
        """

    def repeated_decoder(self, encoded: Encoded) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """Return a function of ``context`` that stands for ``decode`` in many passes.

        A network may prepare there what all passes share. The random draws stay those of
        ``decode``; values may differ by float rounding. Here it is ``decode`` itself.
        """
        return lambda context: self.decode(context, encoded)

    def own_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """Return ``state`` under this network's names, and the names in it that are not of it.

        Overridden where checkpoints made elsewhere use other names.
        """
        return dict(state), []

    def checked_size(self, image: Tensor) -> tuple[int, int]:
        """Return height and width of ``image``, in pixels.

        Raises:
            UsageError: A side not divisible by the output stride.
        """
        height, width = image.shape[-2:]
        stride = self.context_stride
        if height % stride or width % stride:
            raise UsageError(
                f"image of {height} x {width} pixels: both sides must be divisible by {stride}",
                hint=f"--image-size {max(stride, round(height / stride) * stride)}",
            )
        return height, width

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


@contextmanager
def refused_single_image(batch: Tensor) -> Iterator[None]:
    """Explain what batch norm says of one value per channel, in a pooling branch.

    Raises:
        UsageError: The block normalised one image by its own moments.
    """
    try:
        yield
    except ValueError as error:
        if batch.shape[0] > 1:
            raise
        raise UsageError(
            "a batch of one image cannot be normalised in train mode",
            hint="use a batch size that leaves no single image, or running statistics",
        ) from error

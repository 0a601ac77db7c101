"""The unlabelled target images as a method sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from sfuda_bench.images.augment import augment_images
from sfuda_bench.images.resident import batch_indices, normalise
from sfuda_bench.methods import Batch, Photometric
from sfuda_bench.running.streams import Streams


@dataclass(frozen=True)
class TargetImages:
    """Images resident on the device, with the streams that order and augment them.

    Attributes:
        images: (N, 3, S, S) uint8 on the device.
        ids: Opaque ids by content, in packed order.
        streams: Random streams of the current user (a method or a frozen step).
    """

    images: Tensor
    ids: tuple[str, ...]
    streams: Streams

    def __len__(self) -> int:
        return len(self.images)

    def with_streams(self, streams: Streams) -> TargetImages:
        """Return the same images under other random streams."""
        return replace(self, streams=streams)

    def batches(
        self, size: int, *, augment: Photometric = "none", shuffle: bool = False
    ) -> Iterator[Batch]:
        """Yield the set once; see :class:`sfuda_bench.methods.Target`."""
        device = self.images.device
        order = self.streams.generator("order")
        draws = self.streams.generator("augment", device)
        for index in batch_indices(len(self), size, order, shuffle=shuffle):
            image = self.images[index.to(device)]
            yield Batch(normalise(augment_images(image, draws, augment)), index)

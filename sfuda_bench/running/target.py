"""The unlabelled target images as a method sees them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.resample import scaled_side
from sfuda_bench.errors import UsageError
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
        large: Pack of the same images with more pixels, read batch by batch, or ``None``.
    """

    images: Tensor
    ids: tuple[str, ...]
    streams: Streams
    large: Path | None = None

    def __len__(self) -> int:
        return len(self.images)

    def with_streams(self, streams: Streams) -> TargetImages:
        """Return the same images under other random streams."""
        return replace(self, streams=streams)

    def batches(
        self,
        size: int,
        *,
        augment: Photometric = "none",
        shuffle: bool = False,
        scale: float = 1.0,
    ) -> Iterator[Batch]:
        """Yield the set once; see :class:`sfuda_bench.methods.Target`.

        Streams are drawn from only where something is random: a plain pass in between changes
        no later order and no later augmentation.

        Raises:
            UsageError: A scale above 1 that the images were not packed at.
        """
        device = self.images.device
        order = self.streams.generator("order") if shuffle else None
        draws = self.streams.generator("augment", device) if augment != "none" else None
        side = scaled_side(self.images.shape[-1], scale)
        for index in batch_indices(len(self), size, order, shuffle=shuffle):
            image = self._pixels(index, side)
            if draws is not None:
                image = augment_images(image, draws, augment)
            yield Batch(_shrunk(normalise(image), side), index)

    def _pixels(self, index: Tensor, side: int) -> Tensor:
        """Return the images at ``index``, (B, 3, s, s) uint8 with s at least ``side``."""
        if side <= self.images.shape[-1]:
            return self.images[index.to(self.images.device)]
        if self._large is None or self._large.shape[1] != side:
            raise UsageError(
                f"target images of {side} px are asked for, but only "
                f"{self.images.shape[-1] if self._large is None else self._large.shape[1]} px "
                "are packed",
                hint="declare the scale with target_scale= where the method is registered",
            )
        pixels = torch.from_numpy(self._large[index.cpu().numpy()])
        return pixels.to(self.images.device).permute(0, 3, 1, 2).contiguous()

    @cached_property
    def _large(self) -> np.ndarray[Any, Any] | None:
        return None if self.large is None else np.load(self.large, mmap_mode="r")


def _shrunk(image: Tensor, side: int) -> Tensor:
    if image.shape[-1] == side:
        return image
    return F.interpolate(image, (side, side), mode="bilinear", antialias=True)

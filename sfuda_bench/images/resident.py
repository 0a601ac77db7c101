"""Packed images and masks on the device, moved there once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfuda_bench.images.decode import Bool, Uint8
from sfuda_bench.images.packed import PackedImages, PackedMasks


class ResidentImages:
    """The images of one split as one uint8 tensor on the device.

    Args:
        packed: An image pack, or an (N, S, S, 3) uint8 array.
        device: Where the images are kept.
    """

    def __init__(self, packed: PackedImages | Uint8, device: torch.device | str) -> None:
        array = packed.array if isinstance(packed, PackedImages) else packed
        tensor = torch.from_numpy(np.array(array))  # a copy: the mapped file is read-only
        self.images: Tensor = tensor.to(device).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> Tensor:
        """Return the images at ``index``, (B, 3, S, S) uint8 on the device."""
        return self.images[index.to(self.images.device)]


def resident_masks(packed: PackedMasks | Bool, device: torch.device | str) -> Tensor:
    """Move packed masks to the device.

    Args:
        packed: A mask pack, or an (N, 2, S, S) bool array.
        device: Where the masks are kept.

    Returns:
        (N, 2, S, S) bool: cup, disc.
    """
    array = packed.array if isinstance(packed, PackedMasks) else packed
    return torch.from_numpy(np.array(array)).to(device)


def normalise(images: Tensor) -> Tensor:
    """Scale uint8 gray levels to [-1, 1].

    Args:
        images: (B, 3, H, W) uint8.

    Returns:
        (B, 3, H, W) float32, ``x / 127.5 - 1``.

    Source:
        Released CPR code, dataloaders/custom_transforms.py at 1fea8d4 (Normalize_tf).
    """
    return images.to(torch.float32).div_(127.5).sub_(1.0)


def batch_indices(
    count: int, size: int, generator: torch.Generator | None = None, *, shuffle: bool = False
) -> list[Tensor]:
    """Split ``range(count)`` into batches; a final batch of one joins the batch before it.

    Batch normalisation cannot be trained on the 1 x 1 pooled map of a single image.

    Args:
        count: Number of images.
        size: Batch size, at least 1.
        generator: Source of the order; needed for ``shuffle``. Use one on the CPU, so that the
            order is the same on every device.
        shuffle: Draw a random order instead of 0, 1, 2, ...

    Returns:
        int64 index tensors that cover every image once; empty when ``count`` is 0.

    Raises:
        ValueError: ``size`` is below 1, or ``shuffle`` without a generator.
    """
    if size < 1:
        raise ValueError(f"batch size {size}: expected at least 1")
    if shuffle and generator is None:
        raise ValueError("shuffle=True needs a generator")
    if shuffle and generator is not None:
        order = torch.randperm(count, generator=generator, device=generator.device)
    else:
        order = torch.arange(count)
    batches: list[Tensor] = list(order.split(size)) if count else []
    if size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches

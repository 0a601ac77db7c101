"""Data: what an epoch's batches cost beside the training steps that use them.

Our batches come from memory: order, augmentation and normalisation in one go. The share is that
of the data in a step of stage 4; its aim of 5 % reads as a ratio of 20.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfuda_bench.blocks.losses import focal_masked_bce
from sfuda_bench.datasets import find_domains
from sfuda_bench.images.packed import pack_images, pack_masks
from sfuda_bench.running.target import TargetImages
from tests.benchmarks import world
from tests.benchmarks.harness import Row, interleaved, largest_difference
from tests.benchmarks.reference.images import files, load

AIM = 20.0


class _Step:
    """One training step of stage 4 on images that are there already."""

    def __init__(self, name: str, image: Tensor) -> None:
        self.network = world.as_loaded(world.network_of(name)).train()
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=3e-4, betas=(0.9, 0.99))
        self.image = image
        self.label = (torch.rand(len(image), 2, *image.shape[-2:]) > 0.5).float()
        self.keep = torch.ones_like(self.label, dtype=torch.bool)

    def __call__(self) -> None:
        loss = focal_masked_bce(self.network(self.image), self.label, self.keep)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def epoch(target: TargetImages, batch: int) -> None:
    """Make every batch of one augmented epoch."""
    for _ in target.batches(batch, augment="dpl"):
        pass


def read(paths: list[Path], size: int) -> None:
    """Make the samples of one augmented epoch as the released loaders do."""
    rng = np.random.default_rng(0)
    for path in paths:
        load(path, size, rng)


def _share(
    names: tuple[str, ...], target: TargetImages, batch: int, repeats: int, difference: float
) -> list[Row]:
    image = next(iter(target.batches(batch))).image
    found = []
    for name in names:
        times = interleaved(_Step(name, image), partial(epoch, target, batch), repeats)
        found.append(
            times.row(
                f"batches beside training steps ({name})",
                aim=AIM,
                difference=difference,
                allowed=1e-6,
                note=f"one batch of {batch} x {image.shape[-1]} px; 20x is a share of 5 %; images",
            )
        )
    return found


def _packing(root: Path, folder: Path, size: int, repeats: int) -> list[Row]:
    """Compare packing a split, and opening it again, with reading its files."""
    split = find_domains(root)[world.TARGET].split("train")
    paths = files(root / world.TARGET, "train")
    fresh = iter(range(1000))

    def pack(where: Path) -> None:
        pack_images(split, size, where)
        pack_masks(split, size, where)

    def plain() -> None:
        for path in paths:
            load(path, size, None)

    first = interleaved(plain, lambda: pack(folder / f"fresh{next(fresh)}"), repeats)
    pack(folder / "kept")
    again = interleaved(plain, lambda: pack(folder / "kept"), repeats)
    note = f"{len(paths)} images and masks, {size} px; ours: digests, decode, resize, write"
    return [first.row("pack a split", note=note), again.row("open a packed split", note=note)]


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    size, batch, repeats = (256, 8, 5) if full else (64, 2, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = world.domains(folder / "data", size, (batch, 1))
        target = world.target_images(root, size, folder / "packed")
        paths = files(root / world.TARGET, "train")
        plain = sorted((load(path, size, None).image.sum(), path) for path in paths)
        ours = torch.cat([b.image for b in target.batches(batch)])
        order = torch.argsort(ours.double().sum(dim=(1, 2, 3)))
        images = [load(path, size, None).image for _, path in plain]
        difference = largest_difference(images, ours[order])
        loading = interleaved(partial(read, paths, size), partial(epoch, target, batch), repeats)
        return [
            *_share(
                world.NETWORK_NAMES if full else ("deeplabv3plus",),
                target,
                batch,
                repeats,
                difference,
            ),
            loading.row(
                "batches of an epoch",
                difference=difference,
                allowed=1e-6,
                note=f"{batch} x {size} px; the reference decodes PNG and augments by sample",
            ),
            *_packing(root, folder, size, repeats),
        ]

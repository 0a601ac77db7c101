"""Training the similarity head: cached pair labels and shifted windows, against the plain script.

The plain script decodes and augments PNG files, extracts neighbour labels for every sample and
epoch, runs the decoder although nothing of it is trained, and gathers all pairs. After each epoch
it goes through the data once more, for a loss against the ground truth that it only prints: rows
with ``its training pass`` leave that out.
"""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfuda_bench.networks.taps import SegmentationNetwork
from tests.benchmarks import world
from tests.benchmarks.harness import Row, interleaved, largest_difference, peak_mb
from tests.benchmarks.reference.images import files, load
from tests.benchmarks.reference.pipeline import Pair, Recipe

AIM = 3.0
_LR = 3e-2


class _Case:
    """One network on one folder of images, whose labels are its masks."""

    def __init__(
        self, name: str, folder: Path, size: int, batch: int, epochs: int, radius: int
    ) -> None:
        self.folder, self.batch, self.epochs = folder, batch, epochs
        self.root = world.domains(folder / "data", size, (batch, 1))
        self.recipe = Recipe(
            size=size, grid=size, passes=2, head_epochs=epochs, epochs=0, batch=batch, radius=radius
        )
        self.network = world.network_of(name)
        self.loaded = world.as_loaded(self.network)
        self.target = world.target_images(self.root, size, folder / "packed")
        self.samples = [load(path, size, None) for path in files(self.root / world.TARGET, "train")]
        self.order = self._packed_order()
        mask = torch.from_numpy(np.stack([self.samples[i].mask for i in self.order]))
        label = mask.to(torch.uint8)
        self.labels = world.Labels(label=label, reliable=torch.ones_like(label))
        names = [self.samples[i].name for i in self.order]
        world.stored_labels(self.labels, names, folder / "stages")

    def _packed_order(self) -> list[int]:
        """Return the position of each packed image among the files."""
        packed = self.target.images.float() / 127.5 - 1
        alike = [[bool((image - torch.from_numpy(s.image)).abs().max() < 1e-4)
                  for s in self.samples] for image in packed]  # fmt: skip
        return [row.index(True) for row in alike]

    def pair(self) -> Pair:
        network: SegmentationNetwork = copy.deepcopy(self.network)
        return Pair(network, self.root / world.TARGET, self.folder / "stages", self.recipe)

    def plain(self, log: bool) -> list[float]:
        return self.pair().learn_similarity(log=log)

    def ours(
        self,
        decoder: str,
        augment: str = "dpl",
        lr: float = _LR,
        network: SegmentationNetwork | None = None,
    ) -> dict[str, Any]:
        torch.manual_seed(0)
        return world.frozen_step("similarity_head")(
            world.frozen_task(network or self.loaded, self.target),
            labels=self.labels,
            radius=self.recipe.radius,
            neighbourhood="lt",
            border="official",
            reduce="mean",
            attention=False,
            shared_attention=False,
            lr=lr,
            epochs=self.epochs,
            batch_size=self.batch,
            shuffle=False,
            encoder_bn="adapt",
            augment=augment,
            beta1=0.9,
            beta2=0.99,
            decoder=decoder,
        )

    def difference(self) -> float:
        """Return how far the losses of both are apart on the same images and draws.

        The second epoch's loss depends on the first one's gradients. Both networks have the same
        memory layout here, in whose order dropout draws.
        """
        initial = self.ours("skip", "none", lr=0.0, network=self.network)
        ours = self.ours("skip", "none", network=self.network)["loss"]
        plain = self.pair()
        plain.head.load_state_dict(
            {n.removeprefix("head."): v for n, v in initial.items() if n.startswith("head.")}
        )
        plain.network.requires_grad_(False)
        optimizer = torch.optim.Adam(plain.head.parameters(), lr=_LR, betas=(0.9, 0.99))
        ordered = [self.samples[i] for i in self.order]
        image = torch.from_numpy(np.stack([sample.image for sample in ordered]))
        labels = plain.pair_labels_of(ordered)
        losses = []
        for epoch in range(1, self.epochs + 1):
            self.target.streams.begin(epoch)  # the same dropout draws
            losses.append(plain.similarity_step(image, labels, optimizer))
        return largest_difference([losses], [ours])


def _rows(name: str, size: int, batch: int, epochs: int, repeats: int, radius: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        case = _Case(name, Path(folder), size, batch, epochs, radius)
        difference = case.difference()  # warms up both as well
        found = []
        for decoder, log in (("skip", True), ("skip", False), ("run", True)):
            plain, ours = partial(case.plain, log), partial(case.ours, decoder)
            times = interleaved(plain, ours, repeats, warm=False)
            script = "the script" if log else "its training pass"
            found.append(
                times.row(
                    f"similarity head ({name}, decoder {decoder}) / {script}",
                    aim=AIM if decoder == "skip" else None,
                    difference=difference,
                    allowed=1e-3,
                    memory_mb=(peak_mb(plain), peak_mb(ours)) if log else None,
                    note=f"{epochs} steps of {batch} x {size} px; loss of two steps, same draws",
                )
            )
        return found


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    sizes = (512, 4, 2, 2, 4) if full else (64, 2, 2, 1, 2)
    found = []
    for name in world.NETWORK_NAMES:
        found += _rows(name, *sizes)
    return found

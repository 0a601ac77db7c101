"""The synthetic world: how fast eyes of 512 px are drawn and written, against 30 per second.

The first row's reference is the time that 30 ROIs per second allow, so its ratio is the rate over
30. The second compares with one eye after the other and Pillow's default compression.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from sfuda_bench.datasets import get_dataset
from sfuda_bench.images.decode import read_image
from tests.benchmarks import world
from tests.benchmarks.harness import Row, interleaved

PER_SECOND = 30.0


class _Writer:
    """Writes one domain into a fresh folder at each call."""

    def __init__(self, folder: Path, size: int, count: int) -> None:
        self.folder, self.size, self.count, self.calls = folder, size, count, 0

    def __call__(self) -> None:
        materialise = get_dataset(world.SOURCE).materialise
        if materialise is not None:
            self.calls += 1
            materialise(self.newest, size=self.size, counts=(self.count, 0))

    @property
    def newest(self) -> Path:
        return self.folder / str(self.calls)

    def images(self) -> list[Path]:
        return sorted((self.newest / world.SOURCE / "train" / "ROIs" / "image").glob("*.png"))


def _one_by_one(images: list[Path], folder: Path) -> Callable[[], None]:
    """Return what writes these pictures again, one after the other, as Pillow does by default."""
    pictures = [Image.fromarray(read_image(path)) for path in images]

    def write() -> None:
        for number, picture in enumerate(pictures):
            picture.save(folder / f"{number}.png")

    return write


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    size, count, repeats = (512, 60, 3) if full else (64, 3, 1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = _Writer(folder, size, count)
        writer()
        first = [read_image(path) for path in writer.images()]
        plain = _one_by_one(writer.images(), folder)
        times = interleaved(plain, writer, repeats)
        again = [read_image(path) for path in writer.images()]
        pairs = zip(first, again, strict=True)
        difference = float(max(np.abs(a.astype(int) - b).max() for a, b in pairs))
        seconds = sorted(times.ours)[len(times.ours) // 2]
        allowed = count / PER_SECOND
        note = f"{count} eyes of {size} px with masks, {os.cpu_count()} cores"
        drawn = Row(
            "draw and write ROIs (reference: 30 per second)",
            allowed,
            seconds,
            allowed / seconds,
            aim=1.0,
            difference=difference,
            allowed=0.0,
            note=f"{count / seconds:.1f} per second; {note}; drawn twice",
        )
        note = f"{note}; the reference writes finished pictures only, with default compression"
        return [drawn, times.row("draw and write ROIs / write pictures alone", note=note)]

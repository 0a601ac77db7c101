"""The images, networks and tasks that benchmarks run on: generated domains, seeded weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfuda_bench.datasets import find_domains, materialise_synthetic
from sfuda_bench.images.packed import pack_images
from sfuda_bench.images.resident import ResidentImages
from sfuda_bench.methods import METHODS
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.counting import ImageCount
from sfuda_bench.running.frozen import FrozenContext
from sfuda_bench.running.streams import Streams
from sfuda_bench.running.target import TargetImages

SOURCE, TARGET = "synthetic_a", "synthetic_b"
NETWORK_NAMES = ("deeplabv3plus", "dpl_deeplabv3plus")
CPU = torch.device("cpu")


def domains(folder: Path, size: int, counts: tuple[int, int]) -> Path:
    """Draw the generated domains below ``folder`` and return it."""
    materialise_synthetic(folder, size=size, counts=counts)
    return folder


def network_of(name: str, seed: int = 7) -> SegmentationNetwork:
    """Return a network whose weights follow from a seed, in eval mode."""
    torch.manual_seed(seed)
    return NETWORKS.get(name).build("mobilenet_v2", None).eval()


def as_loaded(network: SegmentationNetwork) -> SegmentationNetwork:
    """Return a copy with the memory layout that a worker gives to source models."""
    copied: SegmentationNetwork = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return copied


def target_images(root: Path, size: int, folder: Path, key: str = "benchmark") -> TargetImages:
    """Return the target's train images, packed into ``folder`` and resident."""
    packed = pack_images(find_domains(root)[TARGET].split("train"), size, folder)
    return TargetImages(ResidentImages(packed, CPU).images, packed.ids, Streams(key))


def frozen_step(name: str) -> Callable[..., dict[str, Tensor]]:
    """Return a frozen step of CPR by name."""
    steps = METHODS.get("cpr").frozen_steps
    return next(step for step in steps if step.__name__ == name)


def frozen_task(network: SegmentationNetwork, target: TargetImages) -> FrozenContext:
    """Return what a frozen step gets, as an adapting worker builds it."""
    return FrozenContext(
        _source_model=network,
        target=target,
        device=CPU,
        precision="float32",
        streams=target.streams,
        emit=lambda *_: None,
        stage="benchmark",
        count=ImageCount(),
    )


class Labels(dict[str, Tensor]):
    """Tensors by name that stand for an artefact."""

    def names(self) -> list[str]:
        """Return the names, sorted."""
        return sorted(self)


def stored_labels(labels: Mapping[str, Tensor], names: list[str], folder: Path) -> None:
    """Write labels (N, 2, S, S) as the reference's stage 1 leaves them, nothing uncertain."""
    folder.mkdir(parents=True, exist_ok=True)
    label = labels["label"].float().numpy()
    parts: dict[str, Any] = {
        "label": label,
        "nearer": label,
        "spread": np.zeros_like(label),
        "eta": np.full(len(names), 0.05),
    }
    for part, values in parts.items():
        np.savez(folder / f"{part}.npz", **dict(zip(names, values, strict=True)))

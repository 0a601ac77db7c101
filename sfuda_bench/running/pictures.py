"""What a figure of a method's inner life needs from the networks: features and context maps.

Rendered where the networks are, in the adapt worker, from unlabelled images; drawn by ``report``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfuda_bench.methods import MethodSpec
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.task import Task

FILE = "pictures.safetensors"
IMAGES = 6
"""Target images that are shown: the first ones, in order of content."""
PIXELS_PER_CLASS = 50


def write_pictures(
    folder: Path, spec: MethodSpec, config: Any, task: Task, source: SegmentationNetwork
) -> None:
    """Store the source model's features of some pixels, and what the method shows of itself.

    Args:
        folder: The folder that becomes the cell's.
        spec: The method; its ``pictures`` are asked.
        config: Its settings.
        task: The cell's task.
        source: The unadapted source model.
    """
    tensors = _features(task, source)
    if spec.pictures is not None:
        shown = spec.pictures(task, config, IMAGES)
        tensors |= {f"method.{name}": value.detach().cpu() for name, value in shown.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / FILE)


@torch.no_grad()
def _features(task: Task, source: SegmentationNetwork) -> dict[str, Tensor]:
    """Return penultimate features of pixels that the source model calls cup, rim and background.

    Returns:
        ``feature`` (M, C) float32; ``image`` (M,) int64, position among the target images;
        ``place`` (M, 2) float32, row and column of the pixel's centre as shares of the image's
        side; ``prob`` (K, 2, S, S) float32, the source model's probabilities.
    """
    batch = next(iter(task.target.batches(IMAGES)))
    source.eval()
    encoded = source.encode(batch.image)
    logits, feature = source.decode(source.context(encoded), encoded)
    size = feature.shape[-2:]
    small = torch.nn.functional.interpolate(torch.sigmoid(logits), size, mode="area") > 0.5
    kinds = small.sum(dim=1)  # 0 background, 1 rim, 2 cup: the disc includes the cup
    generator = torch.Generator().manual_seed(0)
    features, images, places = [], [], []
    for position in range(len(batch.index)):
        for kind in (0, 1, 2):
            found = (kinds[position] == kind).nonzero().cpu()
            chosen = found[torch.randperm(len(found), generator=generator)[:PIXELS_PER_CLASS]]
            rows, columns = chosen[:, 0], chosen[:, 1]
            features.append(feature[position, :, rows, columns].T.float().cpu())
            images.append(torch.full((len(chosen),), int(batch.index[position])))
            places.append((chosen.float() + 0.5) / torch.tensor(size))
    return {
        "feature": torch.cat(features),
        "image": torch.cat(images),
        "place": torch.cat(places),
        "prob": torch.sigmoid(logits).float().cpu(),
    }

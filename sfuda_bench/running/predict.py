"""Running a network over resident images and storing what it says as 8-bit codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sfuda_bench.errors import UsageError
from sfuda_bench.images.resident import normalise
from sfuda_bench.networks.batch_norm import enable_dropout, mixed_statistics
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.prediction_files import read_prediction
from sfuda_bench.running.runtime import autocast
from sfuda_bench.running.streams import forked
from sfuda_bench.scoring.codes import STRUCTURES, encode
from sfuda_bench.settings import Inference

_BATCH = 8
_COMPRESSION = 3  # of PNG files: a third of the time of the usual level 6, a sixth more bytes


@torch.no_grad()
def predict(
    network: nn.Module, images: Tensor, inference: Inference, precision: str, seed: int = 0
) -> np.ndarray[Any, Any]:
    """Return the probability codes of a network for images (N, 3, S, S) uint8.

    The network's training flags, its buffers and the global random state are left as found, so a
    prediction in the middle of an adaptation changes nothing.

    Args:
        network: Network that gives logits (B, 2, S, S) of normalised images.
        images: (N, 3, S, S) uint8.
        inference: Which batch norm and dropout.
        precision: ``"float32"`` or ``"bfloat16"``.
        seed: What the draws of ``inference.dropout`` follow from; unused without it.

    Returns:
        (N, 2, S, S) uint8 codes; see :func:`sfuda_bench.scoring.codes.encode`.

    Raises:
        UsageError: The network cannot run in the asked inference mode.

    Source: released DPL code, ``train_target.py``: one image at a time, normalised by its own
        moments, dropout active, no batch norm in the pooling branch. Departure: a layer that sees
        fewer than 32 values per channel keeps its running statistics.
    """
    with inference_modes(network, inference, seed):
        return predict_with(network, images, precision, batch=inference_batch(inference))


def inference_batch(inference: Inference) -> int:
    """Return how many images at once a network sees in this mode."""
    return 1 if inference.batch_norm == "per_image" else _BATCH


@contextmanager
def inference_modes(network: nn.Module, inference: Inference, seed: int) -> Iterator[None]:
    """Run a block with the network in an inference mode, and put everything back afterwards."""
    flags = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with ExitStack() as modes:
            if not inference.pooling_bn:
                modes.enter_context(_without_pooling_bn(network))
            if inference.batch_norm == "per_image":
                modes.enter_context(mixed_statistics(network, alpha=1.0))
            if inference.dropout:
                enable_dropout(network)
                modes.enter_context(forked(seed))
            yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextmanager
def _without_pooling_bn(network: nn.Module) -> Iterator[None]:
    """Leave the pooling branch's batch norm out during the block."""
    switched = [
        module
        for module in network.modules()
        if isinstance(module, SegmentationNetwork) and module.pooling_bn
    ]
    if not switched:
        raise UsageError(
            f"inference.pooling_bn = false: {type(network).__name__} has no such switch",
            hint="leave inference.pooling_bn at true, or --network dpl_deeplabv3plus",
        )
    for module in switched:
        module.pooling_bn = False
    try:
        yield
    finally:
        for module in switched:
            module.pooling_bn = True


@torch.no_grad()
def predict_with(
    step: Callable[[Tensor], Tensor], images: Tensor, precision: str, batch: int = _BATCH
) -> np.ndarray[Any, Any]:
    """Return the codes of ``step`` over images (N, 3, S, S) uint8.

    ``step`` takes normalised images (B, 3, S, S) and returns logits (B, 2, S, S).
    """
    codes = []
    for start in range(0, len(images), batch):
        image = normalise(images[start : start + batch])
        with autocast(image.device, precision):
            logits = step(image)
        codes.append(codes_of(logits))
    return np.concatenate(codes)


def codes_of(logits: Tensor) -> np.ndarray[Any, Any]:
    """Return the 8-bit codes of logits (B, 2, H, W).

    Raises:
        FloatingPointError: A logit is NaN.
    """
    prob = torch.sigmoid(logits.detach().float()).cpu().numpy()
    if np.isnan(prob).any():
        raise FloatingPointError("a predicted probability is not a number: the network diverged")
    return encode(prob)


def write_predictions(folder: Path, ids: tuple[str, ...], codes: np.ndarray[Any, Any]) -> None:
    """Write one PNG per image and structure."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in zip(ids, codes, strict=True):
        for structure, code in zip(STRUCTURES, pair, strict=True):
            path = folder / f"{name}-{structure}.png"
            Image.fromarray(code).save(path, compress_level=_COMPRESSION)


def read_predictions(folder: Path, ids: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Read the codes written by :func:`write_predictions`, in the order of ``ids``.

    Raises:
        StoreSchemaError: A prediction is missing or damaged.
    """
    codes = []
    for name in ids:
        pair = []
        for structure in STRUCTURES:
            pair.append(read_prediction(folder / f"{name}-{structure}.png"))
        codes.append(np.stack(pair))
    return np.stack(codes)

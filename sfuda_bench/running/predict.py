"""Running a network over resident images and storing what it says as 8-bit codes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.images.resident import normalise
from sfuda_bench.networks.batch_norm import enable_dropout, mixed_statistics
from sfuda_bench.running.runtime import autocast
from sfuda_bench.scoring.codes import STRUCTURES, encode
from sfuda_bench.settings import Inference

_BATCH = 8


@torch.no_grad()
def predict(
    network: nn.Module, images: Tensor, inference: Inference, precision: str
) -> np.ndarray[Any, Any]:
    """Return the probability codes of a network for images (N, 3, S, S) uint8.

    The network's training flags are restored and its buffers are untouched, so a prediction in
    the middle of an adaptation changes nothing.

    Returns:
        (N, 2, S, S) uint8 codes; see :func:`sfuda_bench.scoring.codes.encode`.

    Raises:
        UsageError: The network cannot run in the asked inference mode.
    """
    if not inference.pooling_bn:
        raise UsageError(
            "inference.pooling_bn = false needs a network whose pooling branch has that switch; "
            "deeplabv3plus has none",
            hint="leave inference.pooling_bn at true",
        )
    per_image = inference.batch_norm == "per_image"
    flags = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with mixed_statistics(network, alpha=1.0) if per_image else nullcontext():
            if inference.dropout:
                enable_dropout(network)
            return predict_with(network, images, precision, batch=1 if per_image else _BATCH)
    finally:
        for module, training in flags.items():
            module.training = training


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
            Image.fromarray(code).save(folder / f"{name}-{structure}.png", optimize=False)


def read_predictions(folder: Path, ids: tuple[str, ...]) -> np.ndarray[Any, Any]:
    """Read the codes written by :func:`write_predictions`, in the order of ``ids``.

    Raises:
        StoreSchemaError: A prediction is missing or damaged.
    """
    codes = []
    for name in ids:
        pair = []
        for structure in STRUCTURES:
            path = folder / f"{name}-{structure}.png"
            try:
                with Image.open(path) as image:
                    pair.append(np.asarray(image))
            except (OSError, ValueError) as error:
                raise StoreSchemaError(
                    f"{path}: stored prediction missing or damaged ({error})",
                    hint=f"delete the cell folder above {folder} and run the same command again",
                ) from error
        codes.append(np.stack(pair))
    return np.stack(codes)

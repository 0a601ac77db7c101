"""Recording what label-free validators look at, of a model on unlabelled target images.

Runs in the adapt worker. The model's bytes, its modes and the random generators are left as
found, so asking for validators changes no result.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # the field's name for it
from torch.nn.modules.batchnorm import _BatchNorm

from sfuda_bench.images.resident import normalise
from sfuda_bench.networks.batch_norm import dropout_layers, estimate_statistics, mixed_statistics
from sfuda_bench.running.keys import derive_seed
from sfuda_bench.running.predict import inference_batch, inference_modes
from sfuda_bench.running.runtime import autocast
from sfuda_bench.running.sources import area_prior
from sfuda_bench.running.streams import forked
from sfuda_bench.running.views import VIEWS
from sfuda_bench.scoring.validators import (
    COLLAPSE_NEEDS,
    COLLAPSED,
    VALIDATORS,
    BatchNormMoments,
    ValidationRecord,
    View,
    collapsed,
    evaluate,
    get_validator,
    rows_of,
)
from sfuda_bench.scoring.validators.masks import stratified_pixels
from sfuda_bench.scoring.validators.record import HARD, MIX
from sfuda_bench.settings import Inference

EXTRA_IMAGES = 32
"""Images that the passes besides the plain one cover: the first ones, ordered by content."""
SMALLEST_GRID = 256
"""Predictions are averaged over whole blocks down to no less than this side, in pixels."""
_HALF = 0.5
_BATCH = 8

Array = np.ndarray[Any, Any]
Prepare = Callable[[Tensor], Tensor]


class Validation:
    """The label-free validators of one cell, on images without labels.

    What belongs to the source model is computed here, once: its predictions under its own and
    under these images' batch-norm statistics, the pixels to compare, and the area prior. Later
    changes of ``source`` do not matter.

    Args:
        source: The unadapted source model.
        images: (N, 3, S, S) uint8 on the device, the unlabelled target train images.
        ids: Opaque ids of the images; the compared pixels follow from them, so that they are the
            same for every method, setting and seed.
        precision: ``"float32"`` or ``"bfloat16"``.
        seed: What the dropout passes follow from.
        aux: Source-side extras; without ``area_prior`` in it, the prior is estimated from the
            source model's predictions for these images.
        validators: Names of registered validators; ``None`` for all.
        inference: How the models are run; default: running statistics, no dropout.

    Raises:
        UsageError: An unknown validator, or one that needs source images.
    """

    def __init__(
        self,
        *,
        source: nn.Module,
        images: Tensor,
        ids: tuple[str, ...],
        precision: str,
        seed: int,
        aux: Mapping[str, Any] | None = None,
        validators: Iterable[str] | None = None,
        inference: Inference | None = None,
    ) -> None:
        wanted = VALIDATORS.names() if validators is None else validators
        specs = [get_validator(name) for name in wanted]
        self.names = tuple(spec.name for spec in specs)
        self._needs = frozenset(COLLAPSE_NEEDS).union(*(spec.needs for spec in specs))
        self._images, self._precision, self._seed = images, precision, seed
        self._inference = inference or Inference()
        self._extra = min(len(images), EXTRA_IMAGES)
        with forked(self._stream("source")):
            self._reference = self._adabn(source)
            self._source_bn = _running_moments(source)
            self._pixels = self._compared_pixels(source, ids) if "pixels" in self._needs else None
        prior = (aux or {}).get("area_prior")
        self._prior = prior if prior else area_prior(self._reference > HARD)

    def rows(self, epoch: int, model: nn.Module) -> list[tuple[int, str, str, float]]:
        """Return (epoch, validator, structure, value) of every validator, higher = better.

        Among them is the filter ``collapsed``, whose 1.0 rejects the model.

        Args:
            epoch: Number to put into the rows.
            model: Any network that gives logits (B, 2, S, S) of normalised images; left as it is.
        """
        record = self.record(model)
        values = {**evaluate(record, self.names), COLLAPSED: collapsed(record)}
        return [(epoch, *row) for row in rows_of(values)]

    @torch.no_grad()
    def record(self, model: nn.Module) -> ValidationRecord:
        """Return what the validators look at; fields that none of them needs are ``None``.

        Raises:
            FloatingPointError: A prediction is not a number.
        """
        needs = self._needs
        with forked(self._stream("model")):
            prob, moments = self._plain(model)
            return ValidationRecord(
                prob=prob,
                pixels=self._pixels,
                views=self._views(model) if "views" in needs else None,
                dropout=self._dropout(model) if "dropout" in needs else None,
                half_bn=self._half_bn(model) if "half_bn" in needs else None,
                mixed=self._mixed(model) if "mixed" in needs else None,
                reference=self._reference,
                bn_moments=moments,
                area_prior=self._prior,
            )

    # -- the source model's part --------------------------------------------------------------

    @torch.no_grad()
    def _adabn(self, source: nn.Module) -> Array:
        """Return the predictions of the source model with statistics of these images."""
        model = copy.deepcopy(source)
        if _norms(model):
            with autocast(self._images.device, self._precision):
                estimate_statistics(model, (normalise(part) for part in self._parts(_BATCH)))
        running = replace(self._inference, batch_norm="running")
        return self._pass(model, running, "reference", count=len(self._images)).astype(np.float16)

    @torch.no_grad()
    def _compared_pixels(self, source: nn.Module, ids: tuple[str, ...]) -> Array:
        hard = self._pass(source, self._inference, "source", count=len(self._images)) > HARD
        generators = (np.random.default_rng(derive_seed("compared pixels", name)) for name in ids)
        drawn = [stratified_pixels(*pair) for pair in zip(hard, generators, strict=True)]
        return np.stack(drawn)

    # -- passes over the images ---------------------------------------------------------------

    def _plain(self, model: nn.Module) -> tuple[Array, BatchNormMoments | None]:
        count = len(self._images)
        if "bn_moments" not in self._needs:
            return self._pass(model, self._inference, "plain", count=count), None
        with _moments_of(model) as sums:
            prob = self._pass(model, self._inference, "plain", count=count)
        return prob, _compared_moments(sums, self._source_bn)

    def _views(self, model: nn.Module) -> tuple[View, ...]:
        return tuple(
            View(
                name=view.name,
                prob=self._pass(
                    model, self._inference, view.name, before=view.apply, after=view.undo
                ).astype(np.float16),
                valid=(_shrunk(view.valid(self._images.shape[-1]).float()) == 1).numpy(),
            )
            for view in VIEWS
        )

    def _dropout(self, model: nn.Module) -> Array | None:
        if not dropout_layers(model):
            return None
        mode = replace(self._inference, dropout=True)
        return np.stack([self._pass(model, mode, f"dropout {number}") for number in (1, 2)])

    def _half_bn(self, model: nn.Module) -> Array | None:
        if not _norms(model):
            return None
        mode = replace(self._inference, batch_norm="running")
        with mixed_statistics(model, _HALF):
            return self._pass(model, mode, "half").astype(np.float16)

    def _mixed(self, model: nn.Module) -> Array:
        images = self._images[: self._extra]
        following = images.roll(-1, dims=0)
        pairs = torch.cat([images, following], dim=1)  # six channels: batches keep partners
        return self._pass(model, self._inference, "mixed", images=pairs, before=_mix)

    def _pass(
        self,
        model: nn.Module,
        inference: Inference,
        name: str,
        *,
        count: int | None = None,
        images: Tensor | None = None,
        before: Prepare | None = None,
        after: Prepare | None = None,
    ) -> Array:
        """Return the probabilities (M, 2, G, G) float32 of one pass over the images.

        Args:
            model: Network.
            inference: How it is run.
            name: Names the random draws.
            count: Number of images; default: those of the extra passes.
            images: Instead of the first ``count`` images.
            before: What is done to normalised images.
            after: What is done to probabilities.
        """
        images = self._images[: count or self._extra] if images is None else images
        parts = []
        with inference_modes(model, inference, self._stream(name)):
            for part in images.split(inference_batch(inference)):
                image = normalise(part)
                with autocast(image.device, self._precision):
                    logits = model(image if before is None else before(image))
                prob = torch.sigmoid(logits.float())
                parts.append(_shrunk(prob if after is None else after(prob)).cpu())
        prob = torch.cat(parts)
        if bool(prob.isnan().any()):
            raise FloatingPointError("a predicted probability is not a number")
        return prob.numpy()

    def _parts(self, size: int) -> Iterator[Tensor]:
        yield from self._images.split(size)

    def _stream(self, name: str) -> int:
        return derive_seed(self._seed, "validation", name)


def _mix(pairs: Tensor) -> Tensor:
    """Return the weighted mean of two images stacked along the channels."""
    first, second = pairs.chunk(2, dim=1)
    return MIX * first + (1 - MIX) * second


def _shrunk(values: Tensor) -> Tensor:
    """Average (..., S, S) over square blocks, as long as the side stays large enough."""
    block = max(1, values.shape[-1] // SMALLEST_GRID)
    if block == 1:
        return values
    flat = values.reshape(-1, 1, *values.shape[-2:])
    pooled = F.avg_pool2d(flat, block)
    return pooled.reshape(*values.shape[:-2], *pooled.shape[-2:])


# -- moments at the inputs of batch norm ------------------------------------------------------

Sums = dict[str, list[Tensor]]


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}


def _running_moments(model: nn.Module) -> dict[str, tuple[Array, Array]]:
    """Return copies of the running mean and variance by layer."""
    return {
        name: (_numpy(layer.running_mean).copy(), _numpy(layer.running_var).copy())
        for name, layer in _norms(model).items()
        if layer.running_mean is not None and layer.running_var is not None
    }


@contextmanager
def _moments_of(model: nn.Module) -> Iterator[Sums]:
    """Add up count, sum and sum of squares of every batch-norm input during the block."""
    sums: Sums = {}

    def collector(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def collect(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach().float()
            dims = [0, *range(2, x.dim())]
            var, mean = (part.double() for part in torch.var_mean(x, dim=dims, correction=0))
            count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
            terms = [count, count * mean, count * (var + mean.square())]
            known = sums.get(name)
            sums[name] = (
                terms if known is None else [a + b for a, b in zip(known, terms, strict=True)]
            )

        return collect

    handles = [
        layer.register_forward_pre_hook(collector(name)) for name, layer in _norms(model).items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _compared_moments(
    sums: Sums, source: Mapping[str, tuple[Array, Array]]
) -> BatchNormMoments | None:
    """Put the moments beside the source's, for the layers that both have."""
    shared = [n for n in sums if n in source and source[n][0].shape == sums[n][1].shape]
    if not shared:
        return None
    means, variances, layers = [], [], []
    for number, name in enumerate(shared):
        count, total, squares = sums[name]
        mean = total / count
        means.append(_numpy(mean))
        variances.append(_numpy((squares / count - mean.square()).clamp(min=0)))
        layers.append(np.full(len(mean), number))
    return BatchNormMoments(
        layer=np.concatenate(layers),
        mean=np.concatenate(means),
        var=np.concatenate(variances),
        source_mean=np.concatenate([source[name][0] for name in shared]),
        source_var=np.concatenate([source[name][1] for name in shared]),
    )


def _numpy(value: Tensor) -> Array:
    array: Array = value.detach().double().cpu().numpy()
    return array

"""Pseudo-labels from Monte-Carlo dropout: probability, uncertainty and mean feature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from sfuda_bench.blocks.precision import full_precision
from sfuda_bench.errors import UsageError

E = TypeVar("E")
Decoder = Callable[[Tensor], tuple[Tensor, Tensor]]


class SampledNetwork(Protocol[E]):
    """The part of a segmentation network that Monte-Carlo dropout needs."""

    def encode(self, image: Tensor) -> E:
        """Return everything before the first dropout."""

    def context(self, encoded: E) -> Tensor:
        """Return the context map after the first dropout."""

    def decode(self, context: Tensor, encoded: E) -> tuple[Tensor, Tensor]:
        """Return logits and penultimate feature."""

    def repeated_decoder(self, encoded: E) -> Decoder:
        """Return ``decode`` prepared for many passes, equal up to float rounding."""

    def sampled_dropout(self) -> list[nn.Module]:
        """Return the dropout modules of ``context`` and ``decode``."""

    def modules(self) -> Iterator[nn.Module]:
        """Return all modules."""


@dataclass(frozen=True)
class McStatistics:
    """Moments of one batch over dropout passes.

    Args:
        prob: (B, 2, H, W) float32, mean of sigma(logits), cup first.
        uncertainty: (B, 2, H, W) float32, unbiased standard deviation of sigma(logits / T).
        feature: (B, C, h, w) float32, mean penultimate feature.
    """

    prob: Tensor
    uncertainty: Tensor
    feature: Tensor


@torch.no_grad()
def mc_dropout_statistics(
    network: SampledNetwork[E],
    image: Tensor,
    passes: int,
    temperature: float = 2.0,
    bn: Literal["running", "batch"] = "running",
    decoder: Literal["exact", "prepared"] = "exact",
) -> McStatistics:
    """Return probability, uncertainty and mean feature of one batch over dropout passes.

    What precedes the first dropout is computed once; with the same seed every pass has the bits
    of a complete forward. Dropout draws from the global generator. Nothing is stacked: memory does
    not grow with ``passes``. Modes and running statistics of the network are left as found.

    Args:
        network: A network with the three taps.
        image: (B, 3, H, W) float, normalised.
        passes: Dropout passes, at least 2.
        temperature: Divisor of the logits for the uncertainty only.
        bn: ``"running"``: only dropout is in train mode. ``"batch"``: the whole network is, so
            that batch norm uses the moments of this batch (needs two images).
        decoder: ``"exact"`` has the bits of complete forwards; ``"prepared"`` lets the network
            share work between passes and differs from it by float rounding.

    Raises:
        UsageError: Fewer than 2 passes, a temperature not above 0, an unknown ``bn`` or
            ``decoder``.

    Source: DPL, MICCAI 2021 (``bn="batch"``, 10 passes) and CPR, MICCAI 2023 (``"running"``, 100),
        released code. Departure: sums run in float64 instead of stacking all passes, and
        ``"batch"`` leaves the running statistics alone (the code's side effect is never used).
    """
    _check(passes, temperature, bn, decoder)
    moments = _Moments(temperature)
    with _sampling(network, bn):
        encoded = network.encode(image)
        decode: Decoder = partial(network.decode, encoded=encoded)
        if decoder == "prepared":
            decode = network.repeated_decoder(encoded)
        for _ in range(passes):
            moments.add(*decode(network.context(encoded)))
    return moments.result()


def _check(passes: int, temperature: float, bn: str, decoder: str) -> None:
    if passes < 2 or temperature <= 0 or bn not in ("running", "batch"):
        raise UsageError(
            f"passes={passes}, temperature={temperature}, bn='{bn}': expected at least 2 passes, "
            "a positive temperature, and bn 'running' or 'batch'"
        )
    if decoder not in ("exact", "prepared"):
        raise UsageError(f"decoder='{decoder}': expected 'exact' or 'prepared'")


def threshold_labels(prob: Tensor, threshold: float) -> Tensor:
    """Return the bool pseudo-label 1[prob > threshold]; the threshold itself gives 0."""
    return prob > threshold


class _Moments:
    """Running sums over passes; shifted by the first pass, so that no spread is exactly 0."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature
        self._passes = 0

    @torch.no_grad()
    def add(self, logits: Tensor, feature: Tensor) -> None:
        logits = logits.double()
        prob, soft = torch.sigmoid(logits), torch.sigmoid(logits / self._temperature)
        if self._passes == 0:
            self._first = soft
            self._prob, self._feature = torch.zeros_like(prob), torch.zeros_like(feature).float()
            self._shift, self._square = torch.zeros_like(soft), torch.zeros_like(soft)
        shift = soft - self._first
        self._passes += 1
        self._prob += prob
        self._shift += shift
        self._square += shift.square()
        self._feature += feature

    def result(self) -> McStatistics:
        variance = (self._square - self._shift.square() / self._passes) / (self._passes - 1)
        return McStatistics(
            prob=(self._prob / self._passes).float(),
            uncertainty=variance.clamp(min=0).sqrt().float(),
            feature=self._feature / self._passes,
        )


@full_precision
def moments_of_passes(logits: Tensor, temperature: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return probability and uncertainty of stacked passes (T, ...); the reference definition."""
    return torch.sigmoid(logits).mean(dim=0), torch.sigmoid(logits / temperature).std(dim=0)


@contextmanager
def _sampling(network: SampledNetwork[E], bn: str) -> Iterator[None]:
    """Put the network into sampling mode for the block; no running buffer is touched."""
    modules = list(network.modules())
    modes = [(module, module.training) for module in modules]
    norms = [m for m in modules if isinstance(m, _BatchNorm)]
    tracking = [(norm, norm.track_running_stats) for norm in norms]
    sampled = set(network.sampled_dropout())
    for module in modules:
        module.training = module in sampled or (
            bn == "batch" and not isinstance(module, _DropoutNd)
        )
    if bn == "batch":
        for norm in norms:
            norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, tracks in tracking:
            norm.track_running_stats = tracks
        for module, mode in modes:
            module.training = mode

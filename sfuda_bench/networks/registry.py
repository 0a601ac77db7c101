"""The networks a source model can be, by name; building one imports torch, listing does not."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sfuda_bench.registry import Registry, defining_file

if TYPE_CHECKING:
    from sfuda_bench.networks.taps import SegmentationNetwork


@dataclass(frozen=True)
class NetworkSpec:
    """A network that can be trained, adapted and stored.

    Attributes:
        name: Name for ``--network``.
        version: Integer; raise it when the same weights give other outputs.
        builder: ``"module:function"``, or the function itself, taking ``encoder`` and
            ``encoder_weights`` (``None``, ``"imagenet"`` or a file).
        description: One line for ``ls networks``.
        pooling_bn: Whether the batch norm of its pooling branch can be switched off.
        encoders: The encoders it can have; empty for any of the library.
    """

    name: str
    version: int
    builder: str | Callable[..., SegmentationNetwork]
    description: str
    pooling_bn: bool = False
    encoders: tuple[str, ...] = ()

    def build(self, encoder: str, encoder_weights: str | None) -> SegmentationNetwork:
        """Return the network with freshly initialised (or loaded) weights."""
        if not isinstance(self.builder, str):
            return self.builder(encoder=encoder, encoder_weights=encoder_weights)
        module, function = self.builder.split(":")
        build = getattr(importlib.import_module(module), function)
        network: SegmentationNetwork = build(encoder=encoder, encoder_weights=encoder_weights)
        return network


NETWORKS: Registry[NetworkSpec] = Registry("networks")


def register_network(spec: NetworkSpec) -> NetworkSpec:
    """Add a network to the registry and return it."""
    origin = spec.builder if isinstance(spec.builder, str) else defining_file(spec.builder)
    NETWORKS.add(spec.name, spec, origin=origin)
    return spec


register_network(
    NetworkSpec(
        name="deeplabv3plus",
        version=1,
        builder="sfuda_bench.networks.deeplabv3plus:build",
        description="DeepLabv3+ of segmentation-models-pytorch, any encoder, rates 6/12/18",
    )
)

register_network(
    NetworkSpec(
        name="dpl_deeplabv3plus",
        version=1,
        builder="sfuda_bench.networks.dpl_deeplabv3plus:build",
        description="DeepLabv3+ of the released DPL and CPR code: MobileNetV2, boundary branch",
        pooling_bn=True,
        encoders=("mobilenet_v2",),
    )
)

register_network(
    NetworkSpec(
        name="tiny",
        version=1,
        builder="sfuda_bench.networks.tiny:build",
        description="no network for results: it trains in milliseconds, to try plug-ins on",
    )
)

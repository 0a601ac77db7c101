"""The head that learns in which feature space two grid cells of one structure are alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sfuda_bench.networks.cbam import CBAM
from sfuda_bench.networks.taps import SegmentationNetwork

STRUCTURES = ("cup", "disc")
_CHANNELS = SegmentationNetwork.context_channels


class SimilarityHead(nn.Module):
    """Two branches (cup, disc) of [attention,] 1x1 convolution, batch norm and ReLU.

    132,096 parameters without attention; attention adds 8,290 per branch, or once when shared
    (all on the 256 channels of the context map).

    Args:
        attention: Put a :class:`CBAM` before the convolution.
        shared_attention: One attention module for both branches.
        channels: Channels of the map that the head reads.
        norm: Follow the convolution by batch norm and ReLU; off, the convolution stands alone.
        gain: Of the convolution's Xavier-uniform initialisation.
        generator: CPU source of the initial weights; ``None`` takes them from the global one. With
            a generator the global one is left as it was.

    Source: CPR, MICCAI 2023, and its released code (Xavier-uniform, gain 4). Attention is the
        extension CPR+CBAM.
    """

    def __init__(
        self,
        attention: bool = False,
        shared_attention: bool = False,
        channels: int = _CHANNELS,
        norm: bool = True,
        gain: float = 4.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        with _seeded(generator):
            self.branches = nn.ModuleList(_branch(channels, norm, gain) for _ in STRUCTURES)
            count = 0 if not attention else 1 if shared_attention else len(STRUCTURES)
            self.attention = nn.ModuleList(CBAM(channels) for _ in range(count))

    def forward(self, context: Tensor) -> Tensor:
        """Return similarity features.

        Args:
            context: (B, channels, h, w) float, the network's context map (or its backbone's
                output).

        Returns:
            (B, 2, 256, h, w) float, cup first; non-negative unless ``norm`` is off.
        """
        return torch.stack(
            [branch(self._attend(context, k)) for k, branch in enumerate(self.branches)], dim=1
        )

    def _attend(self, context: Tensor, structure: int) -> Tensor:
        if not len(self.attention):
            return context
        attended: Tensor = self.attention[min(structure, len(self.attention) - 1)](context)
        return attended


def _branch(channels: int, norm: bool, gain: float) -> nn.Sequential:
    convolution = nn.Conv2d(channels, _CHANNELS, 1, bias=False)
    nn.init.xavier_uniform_(convolution.weight, gain=gain)
    if not norm:
        return nn.Sequential(convolution)
    return nn.Sequential(convolution, nn.BatchNorm2d(_CHANNELS), nn.ReLU())


@contextmanager
def _seeded(generator: torch.Generator | None) -> Iterator[None]:
    """Seed the global CPU generator from ``generator`` for the block, then put it back."""
    if generator is None:
        yield
        return
    seed = int(torch.randint(2**62, (1,), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield

"""Monte-Carlo dropout as a plain loop: every pass a whole forward, every map stacked."""

from __future__ import annotations

import torch
from torch import Tensor

from sfuda_bench.networks.taps import SegmentationNetwork


def forward(network: SegmentationNetwork, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits (B, 2, H, W) and penultimate feature of one whole forward."""
    encoded = network.encode(image)
    return network.decode(network.context(encoded), encoded)


@torch.no_grad()
def stacked_statistics(
    network: SegmentationNetwork, image: Tensor, passes: int, temperature: float = 2.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean probability, its spread, mean feature, and the stacked logits (T, B, 2, H, W).

    Eval mode with dropout switched on, as the released script has it: stacks for the logits, two
    kinds of probabilities and the features, reduced at the end.
    """
    network.eval()
    for module in network.modules():
        if module.__class__.__name__.startswith("Dropout"):
            module.train()
    batch, _, height, width = image.shape
    logits = torch.zeros(passes, batch, 2, height, width)
    features = torch.zeros(
        passes, batch, network.feature_channels, height // 4, width // 4, dtype=torch.float32
    )
    for number in range(passes):
        logits[number], features[number] = forward(network, image)
    prob = torch.sigmoid(logits)
    soft = torch.sigmoid(logits / temperature)
    statistics = prob.mean(dim=0), soft.std(dim=0), features.mean(dim=0), logits
    network.eval()
    return statistics

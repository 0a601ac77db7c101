"""Counting the images that pass through a network and its copies, forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn


@dataclass
class ImageCount:
    """Images through a network.

    Attributes:
        forward: Passes of the encoder.
        backward: Those of them that a gradient came back to.
    """

    forward: int = 0
    backward: int = 0

    def since(self, before: ImageCount) -> dict[str, int]:
        """Return what was counted after ``before`` was copied."""
        return {
            "forward_images": self.forward - before.forward,
            "backward_images": self.backward - before.backward,
        }

    def state_dict(self) -> dict[str, int]:
        """Return the numbers, for checkpoints."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Take the numbers back."""
        self.forward, self.backward = state["forward"], state["backward"]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing of what the block runs: looking at a model is no cost of the method."""
        before = self.copy()
        try:
            yield
        finally:
            self.forward, self.backward = before.forward, before.backward

    def copy(self) -> ImageCount:
        """Return the numbers as they are now."""
        return ImageCount(self.forward, self.backward)


def count_images(network: nn.Module) -> ImageCount:
    """Count from now on what passes through a network, copies of it included.

    Forward passes are seen at the first convolution, so they are those of the encoder, whichever
    tap is called; a pass counts as backward once a gradient reaches any convolution. Hooks on
    layers change no number and are no part of the state.
    """
    count = ImageCount()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    returned = {"now": lambda gradient: None}

    # Functions, not methods: copies of the network share them instead of copying the counter.
    def encoded(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        count.forward += len(output)
        waiting = [len(output)]

        def came_back(gradient: Tensor) -> None:
            count.backward += waiting.pop() if waiting else 0

        returned["now"] = came_back

    def watched(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(returned["now"])

    layers[0].register_forward_hook(encoded)
    for layer in layers:
        layer.register_forward_hook(watched)
    return count

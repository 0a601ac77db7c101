"""Named random streams: every draw follows from a key, a name and an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from sfuda_bench.running.keys import derive_seed


class Streams:
    """The random streams of one adaptation or frozen step.

    Args:
        key: What dropout and initialisation depend on.
        shared: What orders and augmentations depend on; ``key`` when not given. Whatever shares
            it sees the same images in the same order, whatever else it draws.
    """

    def __init__(self, key: str, shared: str | None = None) -> None:
        self._key = key
        self._shared = shared or key
        self._epoch = 0
        self._calls: Counter[str] = Counter()

    def begin(self, epoch: int) -> None:
        """Start an epoch: later draws depend on it, not on what was drawn before.

        The global generators (dropout, initialisation) are seeded as well.
        """
        self._epoch = epoch
        self._calls.clear()
        torch.manual_seed(derive_seed(self._key, "dropout", epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return where the streams are, for checkpoints."""
        return {"epoch": self._epoch, "calls": dict(self._calls)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where the streams were."""
        self._epoch, self._calls = state["epoch"], Counter(state["calls"])

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a fresh generator of ``order`` or ``augment`` in this epoch."""
        self._calls[name] += 1
        generator = torch.Generator(device=device)
        generator.manual_seed(derive_seed(self._shared, name, self._epoch, self._calls[name]))
        return generator


@contextmanager
def forked(seed: int) -> Iterator[None]:
    """Run a block under its own global seed and restore the generators afterwards."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        # Without a GPU torch.manual_seed would note a stack trace for one that may come: 1 ms.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield

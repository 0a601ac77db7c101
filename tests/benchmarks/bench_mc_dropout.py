"""Monte-Carlo dropout: one encoder pass and running sums, against whole forwards and stacks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from sfuda_bench.blocks.pseudo_labels import McStatistics, mc_dropout_statistics
from sfuda_bench.networks.taps import SegmentationNetwork
from tests.benchmarks import world
from tests.benchmarks.harness import Row, interleaved, largest_difference, peak_mb
from tests.benchmarks.reference.mc_dropout import stacked_statistics

Kind = Literal["exact", "prepared"]
AIMS = {
    ("deeplabv3plus", "exact"): 2.5,
    ("dpl_deeplabv3plus", "exact"): 1.2,
    ("dpl_deeplabv3plus", "prepared"): 2.0,
}
SEED = 7
_FEW = 3  # passes whose logits are compared bit by bit
_SOME = 10  # passes whose statistics are compared
_MEMORY_AIM = 20.0


def logits_of(run: Callable[[], object], network: SegmentationNetwork) -> list[Tensor]:
    """Return the logits of every decoder call during ``run``."""
    seen: list[Tensor] = []
    decode, prepare = network.decode, network.repeated_decoder

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            logits, feature = function(*args, **kwargs)
            seen.append(logits.clone())
            return logits, feature

        return call

    network.decode = watched(decode)  # type: ignore[method-assign]
    network.repeated_decoder = lambda encoded: watched(prepare(encoded))  # type: ignore[method-assign]
    try:
        run()
    finally:
        del network.decode, network.repeated_decoder
    return seen


class _Case:
    """One network, image batch and way of decoding."""

    def __init__(self, name: str, decoder: Kind, size: int, batch: int) -> None:
        self.name, self.decoder = name, decoder
        # Both ways run the same network in the layout of the workers: dropout draws alike.
        self.network = world.as_loaded(world.network_of(name))
        self.image = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))

    def plain(self, passes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        torch.manual_seed(SEED)
        return stacked_statistics(self.network, self.image, passes)

    def ours(self, passes: int) -> McStatistics:
        torch.manual_seed(SEED)
        return mc_dropout_statistics(self.network, self.image, passes, decoder=self.decoder)

    def logit_difference(self) -> float:
        """Return the largest difference of the logits of a few passes; 0 is bit for bit."""
        plain = self.plain(_FEW)[-1]
        ours = torch.stack(logits_of(lambda: self.ours(_FEW), self.network))
        if self.decoder == "exact" and not torch.equal(plain, ours):
            return max(largest_difference([plain], [ours]), torch.finfo(torch.float32).tiny)
        return largest_difference([plain], [ours])

    def statistics_difference(self, passes: int) -> float:
        prob, spread, feature, _ = self.plain(passes)
        ours = self.ours(passes)
        return largest_difference(
            (prob, spread, feature), (ours.prob, ours.uncertainty, ours.feature)
        )


def _rows(name: str, decoder: Kind, size: int, batch: int, repeats: dict[int, int]) -> list[Row]:
    case = _Case(name, decoder, size, batch)
    label = f"{name}, {decoder}"
    found = []
    for passes, count in repeats.items():
        plain, ours = partial(case.plain, passes), partial(case.ours, passes)
        times = interleaved(plain, ours, count, warm=False)
        found.append(
            times.row(
                f"MC dropout T={passes} ({label})",
                aim=AIMS[name, decoder],
                difference=case.logit_difference(),
                allowed=0.0 if decoder == "exact" else 1e-3,
                note=f"{batch} x {size} px; logits, same seed",
            )
        )
    return found


def _memory_row(name: str, size: int, batch: int, passes: int) -> Row:
    case = _Case(name, "exact", size, batch)
    stack, held = peak_mb(lambda: case.plain(passes)), peak_mb(lambda: case.ours(passes))
    return Row(
        f"MC dropout memory T={passes} ({name})",
        stack,
        held,
        stack / held,
        unit="MB",
        aim=_MEMORY_AIM,
        difference=case.statistics_difference(min(passes, _SOME)),
        allowed=1e-4,
        memory_mb=(stack, held),
        note=f"{batch} x {size} px; beyond the model; mean, spread and feature",
    )


def rows(full: bool = True) -> list[Row]:
    """Return the rows of this benchmark."""
    size = 256 if full else 32
    found = []
    for name, decoder in AIMS:
        # What is prepared pays for itself within a few passes: 50 show it.
        repeats = {3: 1} if not full else {50: 2, 100: 1} if decoder == "exact" else {50: 2}
        found += _rows(name, cast(Kind, decoder), size, 1, repeats)
    passes = 100 if full else 3
    return [*found, *(_memory_row(name, size, 1, passes) for name in world.NETWORK_NAMES)]

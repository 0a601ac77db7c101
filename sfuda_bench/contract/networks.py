"""What every network must keep to; none is named here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfuda_bench.contract.verdicts import Invariants, demand
from sfuda_bench.errors import UsageError
from sfuda_bench.networks.registry import NetworkSpec
from sfuda_bench.networks.taps import SegmentationNetwork

SIDE = 64
ENCODER = "mobilenet_v2"


@dataclass
class Networks:
    """Networks with random weights, built once, and images to run them on."""

    image: Tensor = field(
        default_factory=lambda: torch.randn(
            2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)
        )
    )
    _built: dict[str, SegmentationNetwork] = field(default_factory=dict)

    def network(self, spec: NetworkSpec) -> SegmentationNetwork:
        """Return the network in eval mode."""
        if spec.name not in self._built:
            self._built[spec.name] = self.fresh(spec)
        return self._built[spec.name].eval()

    def fresh(self, spec: NetworkSpec, seed: int = 0) -> SegmentationNetwork:
        """Return another network of this kind, in eval mode."""
        torch.manual_seed(seed)
        encoder = ENCODER if ENCODER in spec.encoders or not spec.encoders else spec.encoders[0]
        return spec.build(encoder, None).eval()


INVARIANTS: Invariants[NetworkSpec, Networks] = Invariants()


@INVARIANTS.add("taps compose to forward")
@torch.no_grad()
def taps_compose(lab: Networks, spec: NetworkSpec) -> str:
    """``decode(context(encode(image)))`` gives the bits and the draws of ``forward``."""
    network = lab.network(spec)
    for module in network.sampled_dropout():
        module.train()
    torch.manual_seed(3)
    complete = [network(lab.image) for _ in range(2)]
    drawn = torch.get_rng_state()
    for prepared in (False, True):
        torch.manual_seed(3)
        encoded = network.encode(lab.image)
        decode = network.repeated_decoder(encoded)
        for logits in complete:
            context = network.context(encoded)
            if prepared:
                near = torch.allclose(decode(context)[0], logits, rtol=0, atol=1e-4)
                demand(near, "the repeated decoder gives other logits")
            else:
                same = torch.equal(network.decode(context, encoded)[0], logits)
                demand(same, "the taps give other logits than forward")
        demand(torch.equal(drawn, torch.get_rng_state()), "the taps draw other random numbers")
    if network.sampled_dropout():
        demand(not torch.equal(*complete), "two passes with dropout are equal")
    return f"{len(network.sampled_dropout())} dropout layers"


@INVARIANTS.add("taps have the documented shapes")
@torch.no_grad()
def tap_shapes(lab: Networks, spec: NetworkSpec) -> str:
    """Context at its stride, low-level and penultimate features at stride 4, full-size logits."""
    network = lab.network(spec)
    encoded = network.encode(lab.image)
    context = network.context(encoded)
    logits, feature = network.decode(context, encoded)
    grid, quarter = (SIDE // network.context_stride,) * 2, (SIDE // 4,) * 2
    expected = {
        "context before dropout": (encoded.context, (2, network.context_channels, *grid)),
        "context": (context, (2, network.context_channels, *grid)),
        "low": (encoded.low, (2, encoded.low.shape[1], *quarter)),
        "feature": (feature, (2, network.feature_channels, *quarter)),
        "logits": (logits, (2, 2, SIDE, SIDE)),
    }
    if network.high_channels:
        high = torch.empty(0) if encoded.high is None else encoded.high
        expected["high"] = (high, (2, network.high_channels, *grid))
        pyramid: Any = network  # what offers the tap offers the way from it to the context
        same = torch.equal(pyramid.pyramid(high), encoded.context)
        demand(same, "pyramid(high) is not the context")
    else:
        demand(encoded.high is None, "high_channels is 0, but there is a backbone tap")
    for name, (value, shape) in expected.items():
        demand(tuple(value.shape) == shape, f"{name}: {tuple(value.shape)}, expected {shape}")
    demand(encoded.size == (SIDE, SIDE), f"size {encoded.size}, expected {(SIDE, SIDE)}")
    return f"logits {tuple(logits.shape)}, context {tuple(context.shape)}"


@INVARIANTS.add("state dict is strict")
@torch.no_grad()
def strict_state(lab: Networks, spec: NetworkSpec) -> str:
    """Its state dict, loaded strictly into another of its kind, gives the same predictions."""
    network, other = lab.network(spec), lab.fresh(spec, seed=7)
    other.load_state_dict(network.state_dict(), strict=True)
    same = torch.equal(other(lab.image), network(lab.image))
    demand(same, "other predictions after loading: something is not in the state dict")
    finite = all(torch.isfinite(v).all() for v in network.state_dict().values())
    demand(finite, "a fresh weight is not finite")
    return f"{len(network.state_dict())} tensors"


@INVARIANTS.add("evaluation changes nothing")
@torch.no_grad()
def evaluation(lab: Networks, spec: NetworkSpec) -> str:
    """In eval mode nothing is drawn, no buffer moves, and an image is segmented alike again."""
    network = lab.network(spec)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    first, second = network(lab.image), network(lab.image)
    demand(torch.equal(first, second), "two passes differ")
    demand(torch.equal(drawn, torch.get_rng_state()), "random numbers are drawn")
    for name, value in network.state_dict().items():
        demand(torch.equal(value, before[name]), f"{name} changes")
    return "two equal passes"


@INVARIANTS.add("batch of one")
@torch.no_grad()
def batch_of_one(lab: Networks, spec: NetworkSpec) -> str:
    """One image alone is segmented as in a batch; in train mode it works or is refused clearly."""
    network = lab.network(spec)
    far = float((network(lab.image[:1]) - network(lab.image)[:1]).abs().max())
    demand(far < 1e-3, f"logits differ by {far:.2g}")
    other = lab.fresh(spec).train()
    try:
        other(lab.image[:1])
        trained = "works"
    except UsageError:
        trained = "is refused clearly"
    return f"logits within {far:.1e}; in train mode it {trained}"


@INVARIANTS.add("finite on a constant image")
@torch.no_grad()
def constant_image(lab: Networks, spec: NetworkSpec) -> str:
    """A constant image gives finite logits, a side off the stride a clear refusal."""
    network = lab.network(spec)
    logits = network(torch.full((1, 3, SIDE, SIDE), -1.0))
    demand(torch.isfinite(logits).all(), "logits of a constant image are not finite")
    try:
        network.encode(torch.zeros(1, 3, SIDE + 1, SIDE))
    except UsageError as error:
        return error.message
    demand(False, f"{SIDE + 1} x {SIDE} px are not refused; use checked_size()")
    return ""


@INVARIANTS.add("announces its pooling norm")
def pooling_norm(lab: Networks, spec: NetworkSpec) -> str:
    """``pooling_bn`` says whether the norm of the pooling branch can be switched."""
    switch = lab.network(spec).pooling_bn
    demand(spec.pooling_bn == (switch is not None), f"{spec.pooling_bn}, the network {switch}")
    return "has a switch" if spec.pooling_bn else "no switch"

"""What every registered network must keep to; none is named here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sfuda_bench.errors import UsageError
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.networks.taps import SegmentationNetwork

SIZE = 64


@pytest.fixture(scope="module", params=NETWORKS.names())
def network(request: pytest.FixtureRequest) -> SegmentationNetwork:
    torch.manual_seed(0)
    return NETWORKS.get(request.param).build("mobilenet_v2", None).eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_taps_have_the_documented_shapes(network: Any, image: Tensor) -> None:
    encoded = network.encode(image)
    context = network.context(encoded)
    logits, feature = network.decode(context, encoded)
    grid = (SIZE // network.context_stride,) * 2
    assert encoded.context.shape == context.shape == (2, network.context_channels, *grid)
    assert encoded.low.shape[-2:] == feature.shape[-2:] == (SIZE // 4, SIZE // 4)
    assert feature.shape[1] == network.feature_channels
    assert logits.shape == (2, 2, SIZE, SIZE)
    assert encoded.size == (SIZE, SIZE)


@torch.no_grad()
def test_the_optional_backbone_tap_has_the_announced_channels(network: Any, image: Tensor) -> None:
    high = network.encode(image).high
    if network.high_channels == 0:
        assert high is None
        return
    grid = (SIZE // network.context_stride,) * 2
    assert high.shape == (2, network.high_channels, *grid)
    assert torch.equal(network.pyramid(high), network.encode(image).context)


@torch.no_grad()
@pytest.mark.parametrize("prepared", [False, True])
def test_encoding_once_gives_the_bits_and_draws_of_complete_forwards(
    network: Any, image: Tensor, prepared: bool
) -> None:
    for module in network.sampled_dropout():
        module.train()
    torch.manual_seed(3)
    complete = [network(image) for _ in range(2)]
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    encoded = network.encode(image)
    decode = network.repeated_decoder(encoded)
    for logits in complete:
        context = network.context(encoded)
        if prepared:
            torch.testing.assert_close(decode(context)[0], logits, rtol=0, atol=1e-4)
        else:
            assert torch.equal(network.decode(context, encoded)[0], logits)
    network.eval()
    assert torch.equal(drawn, torch.get_rng_state())
    assert not torch.equal(*complete)


@torch.no_grad()
def test_evaluation_draws_nothing_and_changes_nothing(network: Any, image: Tensor) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    first, second = network(image), network(image)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_one_image_in_train_mode_is_refused_clearly(network: Any, image: Tensor) -> None:
    network.train()
    with pytest.raises(UsageError, match="batch of one image"):
        network(image[:1])
    network.eval()


def test_a_side_not_divisible_by_the_stride_is_refused(network: Any) -> None:
    with pytest.raises(UsageError, match="65 x 64") as error:
        network.encode(torch.zeros(1, 3, 65, 64))
    assert error.value.hint == "--image-size 64"


def test_the_switch_of_the_pooling_norm_is_announced(network: Any) -> None:
    specs = [NETWORKS.get(name) for name in NETWORKS.names()]
    spec = next(s for s in specs if type(s.build("mobilenet_v2", None)) is type(network))
    assert spec.pooling_bn == (network.pooling_bn is not None)

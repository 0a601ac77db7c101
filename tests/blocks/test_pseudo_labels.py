import math

import pytest
import torch
from torch import nn

from sfuda_bench.blocks.pseudo_labels import (
    mc_dropout_statistics,
    moments_of_passes,
    threshold_labels,
)
from sfuda_bench.errors import UsageError
from sfuda_bench.networks.registry import NETWORKS


@pytest.fixture(scope="module", params=["deeplabv3plus", "dpl_deeplabv3plus"])
def network(request):
    torch.manual_seed(0)
    network = NETWORKS.get(request.param).build("mobilenet_v2", None)
    for module in network.modules():  # make dropout and running statistics matter
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
    return network.train()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def _naive(network, image, passes):
    """Complete forwards, stacked; the network is already in its sampling mode."""
    logits, features = [], []
    for _ in range(passes):
        encoded = network.encode(image)
        one, feature = network.decode(network.context(encoded), encoded)
        logits.append(one)
        features.append(feature)
    return torch.stack(logits), torch.stack(features)


def _state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize("bn", ["running", "batch"])
def test_statistics_equal_the_naive_loop_with_the_same_seed(network, image, bn):
    before = _state(network)
    torch.manual_seed(5)
    actual = mc_dropout_statistics(network, image, passes=4, bn=bn)
    drawn = torch.get_rng_state()
    if bn == "running":
        network.eval()
        for module in network.sampled_dropout():
            module.train()
    torch.manual_seed(5)
    logits, features = _naive(network, image, 4)
    assert torch.equal(drawn, torch.get_rng_state())
    prob, uncertainty = moments_of_passes(logits)
    torch.testing.assert_close(actual.prob, prob, atol=1e-6, rtol=0)
    torch.testing.assert_close(actual.uncertainty, uncertainty, atol=1e-6, rtol=0)
    torch.testing.assert_close(actual.feature, features.mean(0), atol=1e-6, rtol=1e-6)
    assert actual.uncertainty.max() > 0
    network.train()
    network.load_state_dict(before)


@torch.no_grad()
def test_encoding_once_gives_the_bits_of_complete_forwards(network, image):
    network.eval()
    for module in network.sampled_dropout():
        module.train()
    torch.manual_seed(3)
    complete = [network(image) for _ in range(3)]
    torch.manual_seed(3)
    encoded = network.encode(image)
    for logits in complete:
        assert torch.equal(logits, network.decode(network.context(encoded), encoded)[0])
    assert not torch.equal(complete[0], complete[1])
    network.train()


@torch.no_grad()
@pytest.mark.parametrize("bn", ["running", "batch"])
def test_the_prepared_decoder_changes_statistics_by_rounding_only(network, image, bn):
    results = []
    for decoder in ("exact", "prepared"):
        torch.manual_seed(5)
        results.append(mc_dropout_statistics(network, image, passes=3, bn=bn, decoder=decoder))
    exact, prepared = results
    torch.testing.assert_close(prepared.prob, exact.prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.uncertainty, exact.uncertainty, atol=1e-5, rtol=0)
    torch.testing.assert_close(prepared.feature, exact.feature, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["deeplabv3plus", "dpl_deeplabv3plus"])
def test_memory_does_not_grow_with_the_passes(name):
    """Peak of allocated bytes, beyond the model, at most 1/20 of 100 stacked passes."""
    layout = torch.channels_last  # as runs use it
    network = NETWORKS.get(name).build("mobilenet_v2", None).to(memory_format=layout)
    image = torch.randn(4, 3, 128, 128).contiguous(memory_format=layout)
    peaks = [
        _peak_bytes(lambda passes=passes: mc_dropout_statistics(network, image, passes))
        for passes in (2, 4)
    ]
    assert peaks[0] == peaks[1]
    stacked = 100 * 4 * 4 * (2 * 128 * 128 + network.feature_channels * 32 * 32)
    assert peaks[1] <= stacked / 20


def _peak_bytes(call):
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    total = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak


@pytest.mark.parametrize("bn", ["running", "batch"])
def test_modes_and_running_statistics_are_left_as_found(network, image, bn):
    before = _state(network)
    network.decoder.eval()
    modes = [module.training for module in network.modules()]
    mc_dropout_statistics(network, image, passes=2, bn=bn)
    assert [module.training for module in network.modules()] == modes
    network.train()
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


class _Scripted(nn.Module):
    """A network whose passes give the listed logits."""

    def __init__(self, *logits):
        super().__init__()
        self._logits = list(logits)

    def encode(self, image):
        return None

    def context(self, encoded):
        return torch.zeros(1)

    def decode(self, context, encoded):
        return torch.full((1, 2, 1, 1), self._logits.pop(0)), torch.zeros(1, 1, 1, 1)

    def sampled_dropout(self):
        return []


def test_probability_and_uncertainty_have_golden_values():
    image = torch.zeros(1, 3, 1, 1)
    statistics = mc_dropout_statistics(_Scripted(0.0, 2 * math.log(3)), image, passes=2)
    torch.testing.assert_close(statistics.prob, torch.full((1, 2, 1, 1), 0.7))
    torch.testing.assert_close(
        statistics.uncertainty, torch.full((1, 2, 1, 1), 0.1767767), atol=1e-7, rtol=0
    )
    assert not threshold_labels(statistics.prob, 0.75).any()


def test_equal_passes_have_exactly_zero_uncertainty():
    statistics = mc_dropout_statistics(_Scripted(*[1.7] * 10), torch.zeros(1, 3, 1, 1), passes=10)
    assert statistics.uncertainty.max() == 0


def test_the_threshold_itself_is_background():
    labels = threshold_labels(torch.tensor([0.75, 0.7500001]), 0.75)
    assert labels.tolist() == [False, True]


def test_one_pass_has_no_spread_and_is_refused(network, image):
    with pytest.raises(UsageError, match="at least 2 passes"):
        mc_dropout_statistics(network, image, passes=1)


def test_an_unknown_decoder_is_refused(network, image):
    with pytest.raises(UsageError, match="decoder='fast'"):
        mc_dropout_statistics(network, image, passes=2, decoder="fast")


def test_one_image_cannot_use_batch_moments(network, image):
    with pytest.raises(UsageError, match="batch of one image"):
        mc_dropout_statistics(network, image[:1], passes=2, bn="batch")
    assert all(module.training for module in network.modules())

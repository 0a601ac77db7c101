import pytest
import torch

from sfuda_bench.networks.cbam import CBAM
from sfuda_bench.networks.similarity_head import SimilarityHead


def _count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("bias", "count"), [(False, 8290), (True, 8464 + 98)])
def test_cbam_has_the_golden_parameter_count(bias, count):
    assert _count(CBAM(mlp_bias=bias)) == count


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ({}, 132_096),
        ({"attention": True}, 132_096 + 2 * 8290),
        ({"attention": True, "shared_attention": True}, 132_096 + 8290),
    ],
)
def test_the_head_has_the_golden_parameter_count(arguments, count):
    assert _count(SimilarityHead(**arguments)) == count


def test_the_head_has_the_six_tensors_that_stage_two_trains():
    """O14: two convolutions and two scales and shifts."""
    shapes = sorted(tuple(p.shape) for p in SimilarityHead().parameters())
    assert shapes == [(256,)] * 4 + [(256, 256, 1, 1)] * 2


def test_another_map_changes_the_input_of_convolution_and_attention_alone():
    head = SimilarityHead(attention=True, channels=320)
    assert head(torch.randn(2, 320, 4, 4)).shape == (2, 2, 256, 4, 4)
    assert head.branches[0][0].weight.shape == (256, 320, 1, 1)
    assert head.attention[0].mlp[0].weight.shape == (20, 320)


def test_without_norm_the_head_is_two_convolutions_of_the_asked_spread():
    head = SimilarityHead(norm=False, gain=1.0)
    assert _count(head) == 2 * 256 * 256
    assert head.branches[1][0].weight.abs().max() <= (6 / 512) ** 0.5
    assert head(torch.randn(2, 256, 4, 4)).min() < 0


def test_cbam_keeps_the_shape_and_its_weights_lie_between_0_and_1():
    cbam, x = CBAM(32), torch.randn(2, 32, 7, 9)
    assert cbam(x).shape == x.shape
    for weights in (cbam.channel_attention(x), cbam.spatial_attention(x)):
        assert weights.min() > 0
        assert weights.max() < 1


def test_channel_attention_ignores_the_order_of_positions():
    cbam, x = CBAM(32), torch.randn(2, 32, 4, 4)
    shuffled = x.flatten(2)[..., torch.randperm(16)].view_as(x)
    torch.testing.assert_close(cbam.channel_attention(x), cbam.channel_attention(shuffled))


def test_zero_weights_multiply_by_a_quarter():
    cbam, x = CBAM(32), torch.randn(2, 32, 4, 4)
    for parameter in cbam.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(cbam(x), 0.25 * x)


@pytest.mark.parametrize("shared", [False, True])
def test_head_output_is_one_non_negative_map_per_structure(shared):
    head = SimilarityHead(attention=True, shared_attention=shared)
    features = head(torch.randn(2, 256, 4, 4))
    assert features.shape == (2, 2, 256, 4, 4)
    assert features.min() >= 0
    assert not torch.equal(features[:, 0], features[:, 1])


def test_the_generator_fixes_the_weights_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    heads = [
        SimilarityHead(attention=True, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    ]
    assert torch.equal(before, torch.get_rng_state())
    for one, two in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(heads[0].branches[0][0].weight, heads[0].branches[1][0].weight)


def test_the_convolution_has_the_spread_of_xavier_gain_4():
    bound = 4 * (6 / 512) ** 0.5
    weight = SimilarityHead().branches[0][0].weight
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_gradients_reach_every_parameter_of_head_and_attention():
    head = SimilarityHead(attention=True)
    head(torch.randn(2, 256, 4, 4)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in head.parameters())

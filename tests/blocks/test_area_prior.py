import math

import pytest
import torch

from sfuda_bench.blocks.area_prior import (
    area_kl,
    area_ratio,
    collapse_bound,
    norm_soft_size,
    weighted_entropy,
)
from sfuda_bench.blocks.entropy import binary_entropy, foreground_only_entropy

THREE_PIXELS = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]], dtype=torch.float64)


def foreground():
    """The second class of the three-pixel example as one structure, (1, 1, 3, 1)."""
    return THREE_PIXELS[:, 1].view(1, 1, 3, 1)


def scalar(value):
    return torch.tensor([value], dtype=torch.float64)


def test_the_mean_ratio_and_the_soft_size_of_three_pixels_have_golden_values():
    """T-MI-1, and the form over K classes equals the form over one sigmoid."""
    assert area_ratio(foreground(), "mean").item() == pytest.approx(0.433333, abs=1e-6)
    assert area_ratio(foreground(), "nss").item() == pytest.approx(0.441379, abs=1e-6)
    simplex = norm_soft_size(THREE_PIXELS.T.view(2, 3, 1))
    assert simplex.tolist() == pytest.approx([0.558621, 0.441379], abs=1e-6)


def test_the_soft_size_is_a_distribution_and_the_count_of_hard_predictions():
    prob = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).softmax(dim=1)
    size = norm_soft_size(prob)
    assert size.shape == (4, 3)
    torch.testing.assert_close(size.sum(dim=1), torch.ones(4))
    hard = (prob == prob.amax(dim=1, keepdim=True)).float()
    torch.testing.assert_close(norm_soft_size(hard), hard.mean(dim=(2, 3)))
    assert torch.equal(area_ratio(hard, "mean"), hard.mean(dim=(2, 3)))
    torch.testing.assert_close(area_ratio(hard, "nss"), area_ratio(hard, "mean"))


@pytest.mark.parametrize(
    ("ratio", "direction", "golden"),
    [
        (0.433333333, "pred_prior", 0.039606),
        (0.433333333, "prior_pred", 0.037599),
        (0.441379, "pred_prior", 0.044396),
    ],
)
def test_divergences_from_a_prior_of_three_tenths_have_golden_values(ratio, direction, golden):
    assert area_kl(scalar(ratio), scalar(0.3), direction).item() == pytest.approx(golden, abs=1e-6)


def test_the_weighted_entropy_of_three_pixels_has_its_golden_value():
    value = weighted_entropy(torch.logit(foreground()), nu_fg=0.9, nu_bg=0.1).mean()
    assert value.item() == pytest.approx(0.256694, abs=1e-6)


def test_equal_weights_give_the_ordinary_entropy_and_no_background_the_foreground_form():
    logits = torch.randn(2, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weighted_entropy(logits, 1.0, 1.0), binary_entropy(logits))
    torch.testing.assert_close(
        weighted_entropy(logits, 1.0, 0.0), foreground_only_entropy(logits), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("nu_fg", "nu_bg", "turning_point"),
    [(0.9, 0.1, 0.3892), (1.0, 0.0, 0.3679), (0.5, 0.5, 0.5)],
)
def test_the_turning_point_of_the_weighted_entropy_has_golden_values(nu_fg, nu_bg, turning_point):
    """Below it a pixel is pushed down, above it up; it solves the stationarity equation."""
    signs = []
    for prob in (turning_point - 1e-4, turning_point + 1e-4):
        z = torch.logit(scalar(prob)).requires_grad_()
        weighted_entropy(z, nu_fg, nu_bg).sum().backward()
        signs.append(math.copysign(1, z.grad.item()))
    assert signs == [1, -1]
    left = nu_fg * (math.log(turning_point) + 1)
    right = nu_bg * (math.log(1 - turning_point) + 1)
    assert left == pytest.approx(right, abs=5e-4)


def test_with_a_uniform_prior_the_loss_is_negative_mutual_information_plus_ln_2():
    """T-MI-2."""
    logits = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    ratio = area_ratio(torch.sigmoid(logits))
    conditional = weighted_entropy(logits, 1.0, 1.0).mean(dim=(2, 3))
    loss = conditional + area_kl(ratio, torch.full((2,), 0.5).double(), "pred_prior")
    information = binary_entropy(torch.logit(ratio)) - conditional
    torch.testing.assert_close(loss, -information + math.log(2), atol=1e-9, rtol=0)
    assert area_kl(scalar(0.1), scalar(0.5), "pred_prior").item() == pytest.approx(
        0.368064, abs=1e-6
    )


@pytest.mark.parametrize(
    ("ratio", "pred_prior", "prior_pred"),
    [(0.10, 0.389, 0.333), (0.01, -2.01, -6.06), (1e-4, -6.62, -699.0)],
)
def test_both_directions_have_their_gradients(ratio, pred_prior, prior_pred):
    """T-MI-3: autograd, finite differences, closed form and golden numbers agree."""
    prior, h = 0.07, 1e-3 * ratio
    closed = {
        "pred_prior": math.log(ratio / (1 - ratio)) - math.log(prior / (1 - prior)),
        "prior_pred": (ratio - prior) / (ratio * (1 - ratio)),
    }
    for direction, golden in (("pred_prior", pred_prior), ("prior_pred", prior_pred)):
        value = scalar(ratio).requires_grad_()
        area_kl(value, scalar(prior), direction).sum().backward()
        ends = [area_kl(scalar(ratio + s * h), scalar(prior), direction).item() for s in (1, -1)]
        assert value.grad.item() == pytest.approx(closed[direction], rel=1e-9)
        assert (ends[0] - ends[1]) / (2 * h) == pytest.approx(closed[direction], rel=1e-4)
        assert closed[direction] == pytest.approx(golden, rel=2e-3)


@pytest.mark.parametrize("direction", ["pred_prior", "prior_pred"])
def test_the_divergence_and_its_gradient_vanish_at_the_prior(direction):
    """T-MI-4."""
    value = scalar(0.07).requires_grad_()
    loss = area_kl(value, scalar(0.07), direction)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert value.grad.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("ratio", ["mean", "nss"])
def test_the_ratio_does_not_depend_on_where_the_pixels_lie(ratio):
    """T-MI-5."""
    prob = torch.rand(2, 2, 6, 6, generator=torch.Generator().manual_seed(2)).double()
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3))
    moved = prob.flatten(2)[..., order].view_as(prob)
    torch.testing.assert_close(area_ratio(prob, ratio), area_ratio(moved, ratio))


@pytest.mark.parametrize("direction", ["pred_prior", "prior_pred"])
@pytest.mark.parametrize("ratio", ["mean", "nss"])
def test_an_absent_structure_and_a_full_one_give_finite_values_and_gradients(ratio, direction):
    """T-MI-6: exact zeros and ones on either side."""
    logits = torch.tensor([-300.0, 300.0]).view(1, 2, 1, 1).expand(1, 2, 4, 4).clone()
    logits.requires_grad_()
    prob = torch.sigmoid(logits)
    assert prob.min() == 0
    for prior in (torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.0])):
        value = area_kl(area_ratio(prob, ratio), prior, direction)
        (grad,) = torch.autograd.grad(value.sum(), logits, retain_graph=True)
        assert torch.isfinite(value).all()
        assert torch.isfinite(grad).all()
        if prior[0] == 0:
            assert value.abs().max() < 1e-6


def test_the_collapse_bound_is_the_divergence_of_an_empty_prediction():
    bound = collapse_bound(torch.tensor([0.017, 0.07], dtype=torch.float64))
    assert bound.tolist() == pytest.approx([-math.log(0.983), -math.log(0.93)], abs=1e-12)
    assert bound[0].item() == pytest.approx(0.0172, abs=1e-4)
    empty = area_kl(scalar(0.0), scalar(0.07), "pred_prior")
    assert empty.item() == pytest.approx(bound[1].item(), abs=2e-5)
    assert area_kl(scalar(0.0), scalar(0.07), "prior_pred").item() > 5 * bound[1].item()
    assert collapse_bound(scalar(0.0)).item() > 0  # it divides the divergence


@pytest.mark.parametrize(("softness", "golden", "safe"), [(2, 0.0588, True), (4, 0.1245, False)])
def test_a_soft_cup_costs_more_than_an_empty_one_once_its_edge_is_wide(softness, golden, safe):
    """The toy of the collapse bound: mean entropy of a disc of 14 px against -ln(1 - tau).

    The image's size and the exact radius follow from the bound .0722: tau = .0697.
    """
    side, radius = 96, math.sqrt(0.0697 * 96 * 96 / math.pi)
    axis = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
    distance = radius - torch.hypot(axis[:, None], axis[None, :])
    entropy = binary_entropy(distance / softness).mean().item()
    bound = collapse_bound(scalar((distance > 0).double().mean().item())).item()
    assert bound == pytest.approx(0.0722, rel=0.02)
    assert (entropy < bound) is safe
    per_length = 2 * math.pi * radius * softness * math.pi**2 / 3 / side**2
    assert entropy == pytest.approx(per_length, rel=0.05)
    assert entropy == pytest.approx(golden, rel=0.1)


def test_the_area_recovers_from_unsaturated_logits_and_not_from_saturated_ones():
    """T-MI-8: pixels whose probability is 0 or 1 pass no gradient of the prior on.

    Not all of the area comes back: sharpening fixes the pixels that it has driven apart.
    """
    axis = torch.arange(32, dtype=torch.float64) - 15.5
    clean = (9 - torch.hypot(axis[:, None], axis[None, :])) / 1.5
    prior = torch.sigmoid(clean).mean().view(1)

    def area_after(start):
        logits = start.clone().view(1, 1, 32, 32).requires_grad_()
        for _ in range(1000):
            ratio = area_ratio(torch.sigmoid(logits))
            loss = weighted_entropy(logits, 0.9, 0.1).mean() + area_kl(ratio, prior, "pred_prior")
            (grad,) = torch.autograd.grad(loss.sum(), logits)
            logits.data -= 100 * grad
        return torch.sigmoid(logits.detach()).mean().item()

    shifted = torch.sigmoid(clean - 1).mean().item()
    expected = prior.item()
    assert abs(area_after(clean - 1) - expected) < 0.5 * abs(shifted - expected)
    assert area_after(torch.full_like(clean, -30.0)) < 1e-6


def test_everything_is_float32_under_autocast():
    logits = torch.randn(1, 2, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ratio = area_ratio(torch.sigmoid(logits), "nss")
        assert ratio.dtype == torch.float32
        assert area_kl(ratio, torch.tensor([0.1, 0.2]), "pred_prior").dtype == torch.float32
        assert weighted_entropy(logits, 0.9, 0.1).dtype == torch.float32

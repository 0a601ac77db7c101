import math

import pytest
import torch

from sfuda_bench.blocks.entropy import (
    bernoulli_kl,
    binary_entropy,
    foreground_only_entropy,
    nested_entropy,
    nested_simplex,
    soft_bce,
)


def _value_and_grad(function, z):
    z = torch.tensor(float(z), dtype=torch.float64, requires_grad=True)
    value = function(z)
    value.backward()
    return value.item(), z.grad.item()


@pytest.mark.parametrize(
    ("z", "entropy", "grad"),
    [
        (0, 0.693147, 0.0),
        (1, 0.582203, -0.196612),
        (2, 0.365334, -0.209987),
        (-2, 0.365334, 0.209987),
        (4, 0.090095, -0.070651),
    ],
)
def test_binary_entropy_and_gradient_have_golden_values(z, entropy, grad):
    value, slope = _value_and_grad(binary_entropy, z)
    assert value == pytest.approx(entropy, abs=1e-6)
    assert slope == pytest.approx(grad, abs=1e-6)


@pytest.mark.parametrize(("z", "grad"), [(0, -0.076713), (-2, 0.118320)])
def test_foreground_only_entropy_has_golden_gradients(z, grad):
    assert _value_and_grad(foreground_only_entropy, z)[1] == pytest.approx(grad, abs=1e-6)


def test_binary_entropy_equals_two_class_softmax_entropy():
    z = torch.linspace(-20, 20, 101)
    log_q = torch.stack([torch.zeros_like(z), z]).log_softmax(0)
    torch.testing.assert_close(binary_entropy(z), -(log_q.exp() * log_q).sum(0), atol=1e-6, rtol=0)


def test_binary_entropy_is_finite_and_zero_at_saturation():
    z = torch.tensor([-1e4, 1e4], requires_grad=True)
    value = binary_entropy(z)
    value.sum().backward()
    assert value.tolist() == [0.0, 0.0]
    assert z.grad.tolist() == [0.0, 0.0]


def test_flipping_the_sign_of_all_logits_flips_the_gradient():
    z = torch.randn(2, 2, 5, 5)
    grads = []
    for logits in (z.clone().requires_grad_(), (-z).requires_grad_()):
        binary_entropy(logits).mean().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(grads[0], -grads[1])


def test_binary_entropy_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert binary_entropy(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32


def test_nested_entropy_has_the_golden_value():
    logits = torch.logit(torch.tensor([0.6, 0.9])).view(1, 2, 1, 1)
    assert nested_entropy(logits).item() == pytest.approx(0.897946, abs=1e-5)
    assert binary_entropy(logits).sum().item() == pytest.approx(0.998095, abs=1e-5)


def test_nested_simplex_is_valid_when_the_cup_exceeds_the_disc():
    prob = nested_simplex(torch.tensor([3.0, -1.0]).view(1, 2, 1, 1))
    assert prob.min() >= 0
    assert prob.sum().item() == pytest.approx(1)
    assert prob[0, 1].item() == 0


def test_kl_has_golden_values_and_exact_ends():
    a, b = torch.tensor([0.10, 0.07]), torch.tensor([0.07, 0.10])
    torch.testing.assert_close(
        bernoulli_kl(a, b), torch.tensor([0.006157, 0.005527]), atol=1e-6, rtol=0
    )
    ends = bernoulli_kl(torch.tensor([0.0, 1.0]), torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(ends, torch.tensor([-math.log(0.7), -math.log(0.3)]))
    assert bernoulli_kl(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(0, abs=2e-6)


def test_soft_bce_minus_target_entropy_is_kl():
    target, z = torch.rand(50) * 0.98 + 0.01, torch.randn(50)
    expected = bernoulli_kl(target, torch.sigmoid(z))
    torch.testing.assert_close(
        soft_bce(z, target) - binary_entropy(torch.logit(target)), expected, atol=1e-6, rtol=1e-4
    )


def _adapted_area(entropy, minority, pixels=1000, steps=3000):
    """Mean probability after adapting one gain and one bias, shared by all pixels, by entropy.

    Pixels are two overlapping Gaussian clouds at +1 (the minority) and -1.
    """
    generator = torch.Generator().manual_seed(0)
    x = 1.25 * torch.randn(pixels, generator=generator)
    x += torch.where(torch.arange(pixels) < minority * pixels, 1.0, -1.0)
    theta = torch.tensor([1.0, 0.0], requires_grad=True)
    for _ in range(steps):
        (grad,) = torch.autograd.grad(entropy(theta[0] * x + theta[1]).mean(), theta)
        theta.data -= 0.03 * grad
    return torch.sigmoid(theta[0] * x + theta[1]).mean().item(), torch.sigmoid(x).mean().item()


@pytest.mark.parametrize("minority", [0.02, 0.3, 0.5])
def test_correct_entropy_leaves_a_smaller_area_than_the_foreground_only_form(minority):
    correct, before = _adapted_area(binary_entropy, minority)
    foreground_only, _ = _adapted_area(foreground_only_entropy, minority)
    assert correct < foreground_only
    if minority < 0.5:
        assert correct < before  # the majority wins
    else:
        assert foreground_only > before  # outright growth when balanced

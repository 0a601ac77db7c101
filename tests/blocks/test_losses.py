import pytest
import torch

from sfuda_bench.blocks.losses import confident_pixels, focal_masked_bce, masked_bce
from sfuda_bench.errors import UsageError

LOGITS = torch.logit(torch.tensor([0.9, 0.2, 0.6, 0.7]))
LABEL = torch.tensor([1.0, 0.0, 1.0, 0.0])
MASK = torch.tensor([True, True, False, True])


def test_masked_bce_has_the_golden_value():
    assert masked_bce(LOGITS, LABEL, MASK).item() == pytest.approx(0.510826, abs=1e-6)


def test_focal_masked_bce_has_the_golden_value():
    assert focal_masked_bce(LOGITS, LABEL, MASK).item() == pytest.approx(0.199975, abs=1e-6)


def test_focal_exponent_zero_is_plain_cross_entropy_and_sum_is_count_times_mean():
    mean = masked_bce(LOGITS, LABEL, MASK)
    assert torch.equal(focal_masked_bce(LOGITS, LABEL, MASK, focal_exponent=0), mean)
    torch.testing.assert_close(masked_bce(LOGITS, LABEL, MASK, reduction="sum"), 3 * mean)


@pytest.mark.parametrize("exponent", [0.0, 2.0])
def test_an_empty_mask_gives_zero_loss_and_zero_gradient(exponent):
    logits = torch.tensor([5.0, -200.0, torch.inf], requires_grad=True)
    loss = focal_masked_bce(logits, torch.zeros(3), torch.zeros(3, dtype=torch.bool), exponent)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0])
def test_focal_gradient_flows_through_the_weight_and_is_finite(exponent):
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: focal_masked_bce(z, LABEL.double(), MASK, exponent), logits
    )
    extreme = torch.tensor([-300.0, 300.0], requires_grad=True)
    focal_masked_bce(extreme, torch.tensor([0, 1]), torch.ones(2), exponent).backward()
    assert extreme.grad.isfinite().all()


def test_confident_pixels_are_strict_on_both_sides():
    prob = torch.tensor([0.39, 0.40, 0.41, 0.85, 0.851, 1.0])
    assert confident_pixels(prob, 0.40, 0.85).tolist() == [True, False, False, False, True, True]
    assert (prob > 0.75).tolist() == [False, False, False, True, True, True]


def test_confident_pixels_refuse_crossed_bounds():
    with pytest.raises(UsageError, match=r"low=0.9 is above high=0.85"):
        confident_pixels(torch.zeros(1), 0.9, 0.85)

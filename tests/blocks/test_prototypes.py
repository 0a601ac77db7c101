import pytest
import torch

from sfuda_bench.blocks.prototypes import (
    class_agreement,
    class_prototypes,
    prototype_distances,
    reliable_mask,
    uncertainty_quantile,
)


def _row(*values):
    """A (1, 2, 1, W) map with the same row for cup and disc."""
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1).repeat(1, 2, 1, 1)


FEATURE = torch.tensor([0.0, 1.0, 2.0, 10.0]).view(1, 1, 1, 4)
LABEL, PROB, CERTAIN = _row(1, 1, 0, 0), _row(0.9, 0.8, 0.3, 0.1), _row(0, 0, 0, 0)


def test_prototypes_have_golden_values():
    prototypes = class_prototypes(FEATURE, LABEL, PROB, CERTAIN)
    torch.testing.assert_close(prototypes.object, torch.full((2, 1), 0.470588), atol=1e-6, rtol=0)
    torch.testing.assert_close(prototypes.background, torch.full((2, 1), 6.5))
    assert not prototypes.missing.any()


def test_agreement_and_reliable_mask_have_golden_values():
    prototypes = class_prototypes(FEATURE, LABEL, PROB, CERTAIN)
    q = class_agreement(FEATURE, prototypes, (1, 4))
    assert q[0, 0, 0].tolist() == [True, True, True, False]
    assert reliable_mask(CERTAIN, LABEL, q)[0, 1, 0].tolist() == [True, True, False, True]


@pytest.mark.parametrize("label", [_row(0, 0, 0, 0), _row(1, 1, 1, 1)])
def test_a_missing_prototype_means_background_and_is_counted(label):
    prototypes = class_prototypes(FEATURE, label, PROB, CERTAIN)
    assert prototypes.missing.tolist() == [True, True]
    assert not class_agreement(FEATURE, prototypes, (1, 4)).any()


def test_uncertain_pixels_do_not_enter_prototypes_and_are_not_reliable():
    uncertain = _row(0, 0.05, 0, 0)  # the threshold itself counts as uncertain
    prototypes = class_prototypes(FEATURE, LABEL, PROB, uncertain)
    torch.testing.assert_close(prototypes.object, torch.zeros(2, 1))
    assert not reliable_mask(uncertain, LABEL, LABEL)[..., 1].any()


def test_prototypes_sum_over_batch_and_space_together():
    batch = class_prototypes(
        FEATURE.view(4, 1, 1, 1),
        *(x.transpose(0, 3).contiguous() for x in (LABEL, PROB, CERTAIN)),
    )
    torch.testing.assert_close(batch.object, class_prototypes(FEATURE, LABEL, PROB, CERTAIN).object)


def test_agreement_is_upsampled_by_nearest():
    prototypes = class_prototypes(FEATURE, LABEL, PROB, CERTAIN)
    q = class_agreement(FEATURE, prototypes, (2, 8))
    assert q[0, 0].tolist() == [[True] * 6 + [False] * 2] * 2


def test_distances_are_squared_l2():
    feature = torch.randn(2, 5, 3, 4)
    prototypes = torch.randn(2, 5)
    expected = torch.cdist(feature.permute(0, 2, 3, 1).reshape(-1, 5), prototypes).square()
    actual = prototype_distances(feature, prototypes).permute(0, 2, 3, 1).reshape(-1, 2)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_prototypes_are_full_precision_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prototypes = class_prototypes(FEATURE, LABEL, PROB, CERTAIN)
    torch.testing.assert_close(prototypes.object, torch.full((2, 1), 0.470588), atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_quantile_keeps_the_asked_share_of_pixels(share):
    uncertainty = torch.rand(1, 2, 50, 10)
    kept = (uncertainty < uncertainty_quantile(uncertainty, share)).float().mean().item()
    assert kept == pytest.approx(share, abs=1e-6)


def test_quantile_of_a_constant_keeps_everything():
    constant = torch.zeros(10)
    assert (constant < uncertainty_quantile(constant, 0.5)).all()

import math

import pytest
import torch

from sfuda_bench.blocks.context_similarity import pair_index
from sfuda_bench.blocks.refinement import calibrate, dense_transition, grid_prob, refine


def _chain():
    feature = torch.tensor([0.0, math.log(2), math.log(2)])
    return feature.view(1, 1, 1, 1, 3).expand(1, 2, 1, 1, 3)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [0.8, 0.11111, 0.0]),
        (2, [0.66222, 0.13827, 0.05556]),
        (4, [0.47789, 0.17600, 0.12832]),
    ],
)
def test_refinement_of_a_chain_has_golden_values(steps, expected):
    prob = torch.tensor([1.0, 0, 0]).expand(1, 2, 1, 3)
    refined = refine(prob, _chain(), radius=2, iterations=steps, border="full")
    torch.testing.assert_close(refined[0, 1, 0], torch.tensor(expected), atol=1e-5, rtol=0)


def test_transition_of_a_chain_has_golden_rows():
    transition = dense_transition(_chain(), pair_index(1, 3, 2, border="full"))
    expected = torch.tensor([[0.8, 1 / 9, 0], [0.2, 4 / 9, 0.5], [0, 4 / 9, 0.5]])
    torch.testing.assert_close(transition[0, 0], expected)


def test_calibration_of_a_chain_has_golden_values():
    prob = torch.tensor([1.0, 0, 0]).expand(1, 2, 1, 3)
    refined = calibrate(refine(prob, _chain(), radius=2, iterations=4, border="full"))
    torch.testing.assert_close(
        refined[0, 0, 0], torch.tensor([1, 0.36828, 0.26851]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("border", "steps", "expected"),
    [
        ("official", 1, [[1, 0.64, 0.058824], [1, 0.727273, 0.055556], [0.5, 0.5, 0]]),
        (
            "official",
            4,
            [
                [1, 0.680698, 0.165269],
                [0.741864, 0.611395, 0.238129],
                [0.608887, 0.608887, 0.106396],
            ],
        ),
        (
            "full",
            1,
            [
                [0.75, 0.727273, 0.029412],
                [0.833333, 0.808081, 0.039216],
                [0.75, 0.727273, 0.029412],
            ],
        ),
    ],
)
def test_refinement_of_a_3_by_3_map_has_golden_values(border, steps, expected):
    prob = torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 1, 0]]).expand(1, 2, 3, 3)
    features = torch.zeros(1, 2, 2, 3, 3)
    features[..., 2] = 2 * math.log(2)
    refined = refine(prob, features, radius=2, iterations=steps, border=border)
    torch.testing.assert_close(refined[0, 0], torch.tensor(expected), atol=2e-6, rtol=0)


def _random(side=8, channels=4, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    prob = torch.rand(2, 2, side, side, generator=generator, dtype=dtype)
    features = scale * torch.rand(2, 2, channels, side, side, generator=generator, dtype=dtype)
    return prob, features


@pytest.mark.parametrize("border", ["official", "full"])
@pytest.mark.parametrize("neighbourhood", ["lt", "le"])
@pytest.mark.parametrize("steps", [1, 4, 32])
def test_the_stencil_equals_the_dense_matrix_power(border, neighbourhood, steps):
    prob, features = _random(scale=3)
    pairs = pair_index(8, 8, 3, neighbourhood, border)
    power = torch.linalg.matrix_power(dense_transition(features, pairs), steps)
    expected = (prob.flatten(2).unsqueeze(2) @ power).view_as(prob)
    kwargs = {"iterations": steps, "neighbourhood": neighbourhood, "border": border}
    exact = refine(prob, features, radius=3, **kwargs)
    torch.testing.assert_close(exact, expected, atol=1e-12, rtol=0)
    single = refine(prob.float(), features.float(), radius=3, **kwargs)
    torch.testing.assert_close(single.double(), expected, atol=1e-5, rtol=0)


def test_columns_of_the_transition_sum_to_one():
    _, features = _random()
    columns = dense_transition(features, pair_index(8, 8, 3)).sum(dim=-2)
    torch.testing.assert_close(columns, torch.ones_like(columns))


def test_refinement_stays_in_range_keeps_constants_and_composes():
    prob, features = _random()
    refined = refine(prob, features, iterations=3)
    assert refined.min() >= prob.min()
    assert refined.max() <= prob.max()
    constant = torch.full_like(prob, 0.3)
    torch.testing.assert_close(refine(constant, features), constant)
    torch.testing.assert_close(
        refine(refined, features, iterations=2), refine(prob, features, iterations=5)
    )
    assert torch.equal(refine(prob, features, iterations=0), prob)


def test_one_step_conserves_the_degree_weighted_mass():
    prob, features = _random()
    pairs = pair_index(8, 8, 4)
    anchor, partner = pairs.indices()
    flat = features.flatten(3)
    affinity = torch.exp(-2 * (flat[..., anchor] - flat[..., partner]).abs().mean(dim=2))
    degree = torch.ones_like(prob).flatten(2)
    degree.index_add_(2, anchor, affinity).index_add_(2, partner, affinity)
    refined = refine(prob, features, radius=4, iterations=3)
    before, after = ((degree * p.flatten(2)).sum(2) for p in (prob, refined))
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    "move", [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.transpose(-1, -2)]
)
def test_full_border_is_equivariant_under_flips_and_transposition(move):
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 5e-7)):
        prob, features = _random(dtype=dtype)
        one = move(refine(prob, features, border="full"))
        two = refine(move(prob), move(features), border="full")
        torch.testing.assert_close(one, two, atol=tolerance, rtol=0)


def test_official_border_is_not_equivariant():
    prob, features = _random()
    error = (refine(prob, features).flip(-1) - refine(prob.flip(-1), features.flip(-1))).abs().max()
    assert error > 0.2


def test_constant_similarity_averages_the_neighbourhood():
    prob = _random()[0]
    refined = refine(
        prob, torch.zeros(2, 2, 1, 8, 8).double(), radius=2, iterations=1, border="full"
    )
    torch.testing.assert_close(refined[..., 4, 4], prob[..., 3:6, 3:6].mean(dim=(-2, -1)))


def test_no_similarity_and_large_beta_leave_the_map_alone():
    prob, features = _random()
    torch.testing.assert_close(refine(prob, features, beta=1e6), prob)
    torch.testing.assert_close(refine(prob, 1e4 * features), prob)
    ties = torch.zeros_like(features)  # equal features are ties with the maximum and stay
    torch.testing.assert_close(refine(prob, ties, beta=1e6), refine(prob, ties, beta=1.0))


def test_refinement_removes_isolated_flips_but_not_a_clean_boundary():
    clean = torch.zeros(1, 2, 16, 16)
    clean[..., 4:12, 4:12] = 1
    noisy = clean.clone()
    noisy[..., 8, 8], noisy[..., 1, 13] = 0, 1
    refined = refine(noisy, 5 * clean.unsqueeze(2), border="full")
    assert torch.equal((calibrate(refined) > 0.5).float(), clean)


def test_refinement_is_float32_under_autocast():
    prob, features = _random(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(refine(prob, features), refine(prob.clone(), features.clone()))
        assert refine(prob.bfloat16(), features.bfloat16()).dtype == torch.float32


def test_calibration_is_per_image_and_structure_and_leaves_zero_maps():
    prob = torch.tensor([0.2, 0.4, 0.0, 0.0, 0.5, 1.0, 0.1, 0.05]).view(2, 2, 1, 2)
    expected = torch.tensor([0.5, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0, 0.5]).view(2, 2, 1, 2)
    torch.testing.assert_close(calibrate(prob), expected)
    assert torch.equal(calibrate(prob, "none"), prob)


def test_grid_prob_samples_by_nearest():
    prob = torch.arange(512.0).expand(1, 2, 512, 512)
    assert grid_prob(prob, (32, 32))[0, 0, 0].tolist() == [16.0 * i for i in range(32)]

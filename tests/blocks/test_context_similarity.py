import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sfuda_bench.blocks import context_similarity
from sfuda_bench.blocks.context_similarity import (
    PairLabels,
    grid_labels,
    loss_from_distance,
    neighbour_offsets,
    pair_distance,
    pair_index,
    pair_labels,
    similarity,
    similarity_loss,
)
from sfuda_bench.errors import UsageError


def test_offsets_of_radius_4_come_in_the_official_order():
    expected = [(0, 1), (0, 2), (0, 3)]
    expected += [(dy, dx) for dy in (1, 2) for dx in range(-3, 4)]
    expected += [(3, dx) for dx in range(-2, 3)]
    assert list(neighbour_offsets(4)) == expected


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (3, 12), (4, 22), (5, 34)])
def test_strict_neighbourhoods_have_golden_sizes(radius, count):
    assert len(neighbour_offsets(radius)) == count


def test_closed_neighbourhood_of_radius_4_has_48_neighbours():
    assert 2 * len(neighbour_offsets(4, "le")) == 48


@pytest.mark.parametrize(("side", "anchors", "pairs"), [(32, 754, 16588), (50, 2068, 45496)])
def test_official_border_has_golden_pair_counts(side, anchors, pairs):
    index = pair_index(side, side, 4)
    assert len(index) == pairs == 22 * anchors
    assert len(index.indices()[0].unique()) == anchors


def test_full_border_has_the_geometric_pair_count():
    assert len(pair_index(50, 50, 4, border="full")) == 51454


def test_official_border_leaves_the_known_cells_without_neighbours():
    degree = torch.bincount(torch.cat(pair_index(50, 50, 4).indices()), minlength=2500)
    degree = degree.view(50, 50)
    isolated = [tuple(cell) for cell in (degree == 0).nonzero().tolist()]
    assert isolated == [(0, 0), (0, 1), (0, 2), (49, 0), (49, 49)]
    assert (degree == 44).sum() == 1672
    assert degree[:3, :5].tolist() == [[0, 0, 0, 22, 23], [1, 2, 3, 26, 28], [2, 4, 6, 30, 33]]


def test_pairs_of_radius_2_on_3_by_3_and_4_by_4():
    anchors, partners = pair_index(3, 3, 2).indices()
    assert anchors.tolist() == [1, 4] * 4
    assert partners.view(4, 2).tolist() == [[2, 5], [3, 6], [4, 7], [5, 8]]
    assert pair_index(4, 4, 2).indices()[0].unique().tolist() == [1, 2, 5, 6, 9, 10]


def test_a_grid_without_pairs_is_refused_with_the_radius_that_works():
    with pytest.raises(UsageError, match=r"radius 6 .* grid of 8 x 8") as error:
        pair_index(8, 8, 6)
    assert "at most 4" in error.value.hint
    assert len(pair_index(8, 8, 4)) > 0
    with pytest.raises(UsageError) as error:
        pair_index(8, 8, 1)
    assert "radius of 2" in error.value.hint
    with pytest.raises(UsageError) as error:
        pair_index(1, 1, 2, border="full")
    assert "no radius works" in error.value.hint


def _two_cells(*difference):
    """Features (1, 2, C, 1, 2) whose two cells differ by ``difference``."""
    delta = torch.tensor(difference)
    return torch.stack([torch.zeros_like(delta), delta], dim=1)[None, None, :, None].expand(
        1, 2, -1, 1, 2
    )


def test_similarity_has_golden_values_for_mean_and_sum():
    features = _two_cells(2 * math.log(2), 2 * math.log(2))
    pairs = pair_index(1, 2, 2, border="full")
    torch.testing.assert_close(similarity(features, pairs), torch.full((1, 2, 1), 0.25))
    torch.testing.assert_close(similarity(features, pairs, "sum"), torch.full((1, 2, 1), 1 / 16))


def test_pair_distance_equals_gathered_l1_and_has_its_gradient():
    torch.manual_seed(0)
    features = torch.randn(2, 2, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    pairs = pair_index(5, 6, 3)
    anchor, partner = pairs.indices()
    flat = features.flatten(3)
    gathered = (flat[..., anchor] - flat[..., partner]).abs().mean(dim=2)
    torch.testing.assert_close(pair_distance(features, pairs), gathered)
    assert torch.autograd.gradcheck(lambda f: pair_distance(f, pairs, "sum"), features)


@pytest.mark.parametrize("limit", [0, 2**40])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_distances_and_gradients_do_not_depend_on_how_many_images_are_held(
    monkeypatch, limit, reduce
):
    torch.manual_seed(0)
    features = torch.randn(5, 2, 64, 9, 8, requires_grad=True)
    labels = torch.randint(0, 2, (5, 2, 9, 8), dtype=torch.uint8)
    pairs = pair_index(9, 8, 4)

    def results():
        loss = similarity_loss(features, labels, pairs, reduce)
        return pair_distance(features, pairs, reduce), torch.autograd.grad(loss, features)[0]

    expected = results()
    monkeypatch.setitem(context_similarity._WORKING_BYTES, "cpu", limit)
    for one, two in zip(results(), expected, strict=True):
        assert torch.equal(one, two)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned, in elements."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out._base is None:
            self.elements = max(self.elements, out.numel())
        return out


def test_memory_is_that_of_the_features_and_not_of_all_pairs():
    """Gathering all pairs of this grid would take 29 times the features."""
    features = torch.randn(6, 2, 64, 16, 16, requires_grad=True)
    labels = torch.randint(0, 2, (6, 2, 16, 16), dtype=torch.uint8)
    pairs = pair_index(16, 16, 6, border="full")
    assert len(pairs) * features[..., 0, 0].numel() > 29 * features.numel()
    with _Largest() as largest:
        similarity_loss(features, labels, pairs).backward()
    assert largest.elements <= features.numel()


def test_labels_of_pairs_may_be_computed_once_and_indexed():
    torch.manual_seed(0)
    features, pairs = torch.randn(2, 2, 4, 6, 6), pair_index(6, 6, 3)
    labels = torch.randint(0, 2, (5, 2, 6, 6), dtype=torch.uint8)
    labels[:, :, 2, 3] = 255
    index, once = torch.tensor([3, 1]), pair_labels(labels, pairs)
    expected = similarity_loss(features, labels[index], pairs)
    assert torch.equal(similarity_loss(features, once[index], pairs), expected)


def _loss_of(background, foreground, negative, reduce="mean"):
    values = torch.tensor([*background, *foreground, *negative])
    kinds = torch.tensor([0] * len(background) + [1] * len(foreground) + [2] * len(negative))
    distance = -values.log().expand(1, 2, -1)
    kind = kinds.expand(1, 2, -1)
    return loss_from_distance(distance, PairLabels(kind == 0, kind == 1, kind == 2), reduce)


def test_similarity_loss_has_golden_values():
    assert _loss_of([1, 0.25], [], []).item() == pytest.approx(0.693119 / 4, abs=1e-6)
    assert _loss_of([], [0.5], []).item() == pytest.approx(0.693120 / 4, abs=1e-6)
    assert _loss_of([], [], [0.25, 0.5]).item() == pytest.approx(0.490396 / 2, abs=1e-6)
    assert _loss_of([1, 0.25], [0.5], [0.25, 0.5]).item() == pytest.approx(0.591757, abs=1e-6)


def test_a_kind_without_pairs_adds_nothing_and_weights_are_not_renormalised():
    assert _loss_of([1, 0.25], [], [0.25, 0.5]).item() == pytest.approx(0.418477, abs=1e-6)


def test_pair_labels_follow_the_ignore_rule():
    labels = torch.tensor([[0, 0, 1, 1, 255]], dtype=torch.uint8).expand(1, 2, 1, 5)
    kinds = pair_labels(labels, pair_index(1, 5, 2, border="full"))  # (0,0) (0,1) (1,1) (1,255)
    assert kinds.background[0, 0].tolist() == [True, False, False, False]
    assert kinds.foreground[0, 0].tolist() == [False, False, True, False]
    assert kinds.negative[0, 0].tolist() == [False, True, False, False]


def test_grid_labels_take_the_first_pixel_and_mark_unreliable_cells():
    label, reliable = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4, dtype=torch.bool)
    label[..., 0, 2], label[..., 1, 1], reliable[:, 1, 2, 0] = 1, 1, False
    grid = grid_labels(label, reliable, (2, 2))
    assert grid[0].tolist() == [[[0, 1], [0, 0]], [[0, 1], [255, 0]]]


def test_the_loss_of_ignored_maps_is_zero_with_zero_gradient():
    features = torch.randn(1, 2, 4, 6, 6, requires_grad=True)
    labels = torch.full((1, 2, 6, 6), 255, dtype=torch.uint8)
    loss = similarity_loss(features, labels, pair_index(6, 6, 2))
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_the_sum_form_still_learns_where_the_similarity_underflows():
    features = (100 * torch.randn(1, 2, 8, 6, 6)).requires_grad_()
    labels = torch.zeros(1, 2, 6, 6, dtype=torch.uint8)
    pairs = pair_index(6, 6, 2)
    assert similarity(features, pairs, "sum").max() < 1e-30
    similarity_loss(features, labels, pairs, "sum").backward()
    assert features.grad.abs().max() > 0


def test_learning_separates_classes():
    torch.manual_seed(0)
    labels = torch.zeros(1, 2, 8, 8, dtype=torch.uint8)
    labels[..., 2:6, 2:6] = 1
    noise = 0.1 * torch.randn(1, 2, 8, 8, 8)
    features = (labels.unsqueeze(2) * 0.3 + noise).requires_grad_()
    pairs = pair_index(8, 8, 3)
    optimizer = torch.optim.Adam([features], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        similarity_loss(features, labels, pairs).backward()
        optimizer.step()
    s, kinds = similarity(features.detach(), pairs), pair_labels(labels, pairs)
    assert s[kinds.foreground].mean() > s[kinds.negative].mean() + 0.2
    assert s[kinds.background].mean() > s[kinds.negative].mean() + 0.2

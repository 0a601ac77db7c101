"""What validators are shown of a model, at what cost, and that looking changes nothing."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfuda_bench.errors import UsageError
from sfuda_bench.images.resident import normalise
from sfuda_bench.networks.batch_norm import estimate_statistics
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.keys import model_sha256
from sfuda_bench.running.validation import EXTRA_IMAGES, Validation
from sfuda_bench.running.views import VIEWS
from sfuda_bench.scoring.validators import COLLAPSED, VALIDATORS
from sfuda_bench.settings import Inference

PRIOR = {
    name: {"mean": mean, "quantiles": {"0.01": mean / 2, "0.99": mean * 2}}
    for name, mean in (("cup", 0.05), ("disc", 0.2), ("vcdr", 0.5))
}
SIDE = 64


def tiny(seed: int = 0) -> nn.Module:
    load_plugin_file(Path(__file__).parents[1] / "plugins" / "tiny.py")
    torch.manual_seed(seed)
    network: nn.Module = NETWORKS.get("tiny").build("x", None)
    return network.eval()


def noise(count: int = 4, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def bright_discs(count: int = 4) -> Tensor:
    """Dark images with a disc of gray 160 and in it a cup of gray 240, a little off the centre."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    images = []
    for number in range(count):
        distance = torch.hypot(x - SIDE / 2 - number, y - SIDE / 2 + 1.5 * number)
        gray = torch.full((SIDE, SIDE), 40)
        gray = torch.where(distance < 18, 160, gray)
        images.append(torch.where(distance < 9, 240, gray).expand(3, -1, -1))
    return torch.stack(images).to(torch.uint8)


class Thresholds(nn.Module):
    """Calls bright pixels cup and less bright ones disc; without batch norm and dropout."""

    def forward(self, image: Tensor) -> Tensor:
        gray = image.mean(dim=1)
        return torch.stack([20 * (gray - 0.55), 20 * (gray + 0.2)], dim=1)


def validation(source: nn.Module, images: Tensor, **more: Any) -> Validation:
    given: dict[str, Any] = {"precision": "float32", "seed": 3, "aux": {"area_prior": PRIOR}}
    ids = tuple(f"image{number}" for number in range(len(images)))
    return Validation(source=source, images=images, ids=ids, **(given | more))


def table(rows: list[tuple[int, str, str, float]]) -> dict[tuple[str, str], float]:
    return {(name, structure): value for _, name, structure, value in rows}


@contextmanager
def counted(model: nn.Module) -> Iterator[list[int]]:
    """Collect the batch sizes of the forwards of a model during the block."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    yield sizes
    handle.remove()


# -- nothing changes --------------------------------------------------------------------------


def test_looking_changes_no_byte_no_mode_no_hook_and_no_random_state() -> None:
    source, model = tiny(), tiny(1)
    model.train()
    model.get_submodule("dropout").eval()  # a mixture of modes, as in an adaptation
    images = noise()
    modes = [module.training for module in model.modules()]
    hashes = model_sha256(source.state_dict()), model_sha256(model.state_dict())
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    states = torch.get_rng_state(), random.getstate()
    before = images.clone()

    validation(source, images).rows(2, model)

    assert (model_sha256(source.state_dict()), model_sha256(model.state_dict())) == hashes
    assert [module.training for module in model.modules()] == modes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.random() == np.random.RandomState(11).random()
    assert random.getstate() == states[1]
    assert torch.equal(images, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_model_gets_the_same_values_whatever_was_drawn_before() -> None:
    model, images = tiny(1), noise()
    one = validation(tiny(), images)
    first = one.rows(1, model)
    torch.rand(5)
    assert one.rows(1, model) == first
    assert validation(tiny(), images).rows(1, model) == first


def test_training_the_source_afterwards_does_not_matter() -> None:
    source, model, images = tiny(), tiny(1), noise()
    expected = validation(source, images).rows(0, model)
    looked = validation(source, images)
    with torch.no_grad():
        for value in source.state_dict().values():
            value.mul_(0)
    assert looked.rows(0, model) == expected


# -- what is shown ----------------------------------------------------------------------------


def test_every_validator_and_the_filter_have_a_row_per_structure() -> None:
    rows = validation(tiny(), noise()).rows(7, tiny(1))
    expected = [(name, s) for name in (*VALIDATORS.names(), COLLAPSED) for s in ("cup", "disc")]
    assert [row[1:3] for row in rows] == expected
    assert {row[0] for row in rows} == {7}
    assert all(math.isfinite(row[3]) for row in rows)


@pytest.mark.parametrize("gray", [0, 77, 255])
@pytest.mark.parametrize("count", [1, 2])
def test_constant_images_have_finite_values(gray: int, count: int) -> None:
    images = torch.full((count, 3, SIDE, SIDE), gray, dtype=torch.uint8)
    for aux in ({"area_prior": PRIOR}, {}):
        rows = validation(tiny(), images, aux=aux).rows(0, tiny(1))
        assert all(math.isfinite(row[3]) for row in rows)


def test_a_perfect_segmentation_is_stable_and_plausible() -> None:
    network, images = Thresholds(), bright_discs()
    found = table(validation(network, images).rows(0, network))
    for structure in ("cup", "disc"):
        assert found["consistency", structure] > 0.9
        assert found["source_agreement", structure] == 1
        assert found["anatomy", structure] > -0.1
        assert found[COLLAPSED, structure] == 0
        assert math.isnan(found["dropout", structure])  # there is none
        assert math.isnan(found["bn_agreement", structure])
        assert math.isnan(found["bn_distance", structure])


def test_compared_pixels_follow_from_source_and_ids_only() -> None:
    images = bright_discs()
    network = Thresholds()
    first = validation(network, images).record(network).pixels
    other = validation(network, images, seed=99).record(tiny()).pixels
    assert first is not None and other is not None and (first == other).all()
    hard = validation(network, images).record(network).hard
    flat = hard.reshape(*hard.shape[:2], -1)
    assert np.take_along_axis(flat, first, axis=2)[..., :100].all()
    assert not np.take_along_axis(flat, first, axis=2)[..., 100:].any()


def test_statistics_of_these_images_are_at_distance_zero() -> None:
    model, images = tiny(), noise(8)
    estimate_statistics(model, lambda: [normalise(images)], "exact", min_samples=2)
    look = validation(model, images, validators=["bn_distance"])
    at_home = table(look.rows(0, model))["bn_distance", "cup"]
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.state_dict()["stem.0.weight"].mul_(3)
    assert at_home == pytest.approx(0, abs=1e-3)
    assert table(look.rows(0, shifted))["bn_distance", "cup"] < at_home - 0.05


def test_the_reference_is_the_source_model_with_statistics_of_these_images() -> None:
    source, images = tiny(), noise(8)
    adapted = copy.deepcopy(source)
    estimate_statistics(adapted, [normalise(images)])
    with torch.no_grad():
        prob = torch.sigmoid(adapted(normalise(images))).numpy()
    record = validation(source, images).record(source)
    assert record.reference == pytest.approx(prob, abs=2e-3)


def test_the_prior_comes_from_the_source_or_else_from_the_reference() -> None:
    network, images = Thresholds(), bright_discs()
    assert validation(network, images).record(network).area_prior == PRIOR
    own = validation(network, images, aux=None).record(network)
    assert own.area_prior is not None
    assert own.area_prior["disc"]["mean"] == pytest.approx(own.hard[:, 1].mean())


def test_the_inference_mode_is_that_of_the_predictions() -> None:
    images, model = noise(), tiny(1)
    plain = validation(tiny(), images, validators=["entropy"]).record(model).prob
    mode = Inference(batch_norm="per_image")
    by_image = validation(tiny(), images, validators=["entropy"], inference=mode)
    assert np.abs(by_image.record(model).prob - plain).max() > 1e-3
    noisy = validation(tiny(), images, validators=["entropy"], inference=Inference(dropout=True))
    again = noisy.record(model).prob
    assert (noisy.record(model).prob == again).all() and (again != plain).any()


def test_large_predictions_are_averaged_over_blocks() -> None:
    images = torch.zeros((1, 3, 512, 512), dtype=torch.uint8)
    images[..., 256:] = 255
    record = validation(Thresholds(), images, validators=["consistency"]).record(Thresholds())
    assert record.prob.shape == (1, 2, 256, 256)
    assert record.views is not None and record.views[0].valid.shape == (256, 256)
    assert record.hard[..., 128:].all() and not record.hard[..., :128].any()


# -- what it costs ----------------------------------------------------------------------------


def test_only_what_is_needed_is_computed() -> None:
    images, model = noise(4), tiny(1)
    with counted(model) as sizes:
        validation(tiny(), images, validators=["entropy", "source_agreement"]).rows(0, model)
    assert sum(sizes) == 4
    with counted(model) as sizes:
        record = validation(tiny(), images, validators=["dropout"]).record(model)
    assert sum(sizes) == 3 * 4
    assert record.views is None and record.mixed is None and record.pixels is None


def test_extra_passes_cover_a_bounded_number_of_images() -> None:
    count = EXTRA_IMAGES + 8
    images, model = noise(count), tiny(1)
    look = validation(tiny(), images)
    with counted(model) as sizes:
        record = look.record(model)
    assert sum(sizes) == count + (len(VIEWS) + 4) * EXTRA_IMAGES
    assert len(record.prob) == count
    assert record.views is not None and len(record.views[0].prob) == EXTRA_IMAGES
    assert all(math.isfinite(row[3]) for row in look.rows(0, model))


def test_a_validator_that_needs_source_images_is_refused() -> None:
    with pytest.raises(UsageError, match="not source-free"):
        validation(tiny(), noise(), validators=["entropy", "dev"])


# -- views ------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_is_brought_back_to_its_pixels(view: Any) -> None:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    smooth = torch.stack([torch.sin(3 * x + y), torch.cos(2 * y - x), x * y])[None] / 2
    back = view.undo(view.apply(smooth))
    valid = view.valid(SIDE)
    inside = valid.clone()
    inside[:4] = inside[-4:] = inside[:, :4] = inside[:, -4:] = False
    error = (back - smooth).abs()[0, :, inside].max()
    assert error < (0.03 if view.intensity is None else 0.25)
    rough = normalise(noise(1))
    assert (view.apply(rough) - rough).abs().max() > 0.1
    assert valid[SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].all()


def test_views_lose_only_what_they_do_not_show() -> None:
    lost = {view.name for view in VIEWS if not view.valid(SIDE).all()}
    assert lost == {"rotate+10", "rotate-10", "scale1.1"}
    by_name = {view.name: view for view in VIEWS}
    image = normalise(noise(1))
    assert torch.allclose(by_name["hflip"].apply(image), image.flip(-1), atol=1e-5)
    left, right = (by_name[f"rotate{sign}10"].apply(image) for sign in "+-")
    assert (left - right).abs().max() > 0.1


def test_gray_levels_stay_in_range_and_constants_stay_constant() -> None:
    for view in VIEWS:
        changed = view.apply(normalise(noise(1)))
        assert changed.isfinite().all() and changed.abs().max() <= 1 + 1e-5
        flat = view.apply(torch.full((1, 3, SIDE, SIDE), 0.25))
        assert torch.allclose(flat, flat[0, 0, 0, 0].expand_as(flat), atol=1e-5)

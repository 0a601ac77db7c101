from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from sfuda_bench.images import augment
from sfuda_bench.images.augment import augment_images, augment_source

SIZE = 64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(count: int, size: int = SIZE) -> Tensor:
    draws = torch.randint(0, 256, (count, 3, size, size), generator=seeded(99))
    return draws.to(torch.uint8)


def round_masks(count: int, size: int = SIZE) -> Tensor:
    axis = torch.arange(size) - size / 2
    distance = torch.hypot(axis[:, None] - 3, axis[None, :] + 2)
    return torch.stack([distance < size / 8, distance < size / 4]).expand(count, -1, -1, -1)


@pytest.mark.parametrize("kind", ["dpl", "report"])
def test_photometric_sets_follow_the_generator_and_keep_their_input(
    kind: augment.AugmentKind,
) -> None:
    images = random_images(8)
    before = images.clone()
    first, again = (augment_images(images, seeded(), kind) for _ in range(2))
    other = augment_images(images, seeded(1), kind)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8
    assert first.shape == images.shape


def test_no_augmentation_returns_the_images() -> None:
    images = random_images(2)
    assert torch.equal(augment_images(images, seeded(), "none"), images)


def test_unknown_kinds_and_floating_images_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of none, dpl, report"):
        augment_images(random_images(1), seeded(), "dlp")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected uint8"):
        augment_images(random_images(1).float(), seeded(), "dpl")
    with pytest.raises(ValueError, match="expected one of none, flip, dpl"):
        augment_source(random_images(1), round_masks(1), SIZE, seeded(), "all")  # type: ignore[arg-type]


def test_noise_counts_are_those_of_the_released_code_at_512_and_scale_with_the_area() -> None:
    assert augment.noise_counts(512, 512) == (630, 2517)
    assert augment.noise_counts(256, 256) == (158, 630)


def test_salt_or_pepper_touches_the_stated_positions_of_all_channels() -> None:
    images = torch.full((400, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    noisy = augment.salt_or_pepper(images, seeded())
    changed = noisy != images
    assert torch.equal(changed.any(1), changed.all(1))
    assert not changed[..., -1, :].any()
    assert not changed[..., -1].any()
    salt = (noisy == 1).any(1).flatten(1).sum(1)
    pepper = (noisy == 0).any(1).flatten(1).sum(1)
    assert not ((salt > 0) & (pepper > 0)).any()
    salts, peppers = augment.noise_counts(SIZE, SIZE)
    # Drawn with replacement: at most the count, and nearly all of it.
    for found, count in ((salt, salts), (pepper, peppers)):
        assert found.max() <= count
        assert found[found > 0].min() > 0.8 * count
        assert 0.19 < (found > 0).float().mean() < 0.31
    assert set(noisy.unique().tolist()) == {0, 1, 100}


def test_the_gamma_table_is_truncated_to_whole_levels() -> None:
    table = augment.gamma_table(torch.tensor([1.0, 2.0, 0.5]))
    level = np.arange(256) / 255.0
    expected = [(level ** (1 / value) * 255).astype(np.uint8) for value in (1.0, 2.0, 0.5)]
    assert np.array_equal(table.numpy(), np.stack(expected))


def test_gamma_acts_on_about_half_of_the_images_and_keeps_the_order_of_levels() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 256).expand(200, 3, 4, 256)
    out = augment.gamma(ramp, seeded()).int()
    assert (out.diff(dim=-1) >= 0).all()
    changed = (out != ramp.int()).flatten(1).any(1)
    assert 0.38 < changed.float().mean() < 0.62
    brighter = out[changed, 0, 0, 64] > 64
    assert 0.7 < brighter.float().mean() < 0.95  # gamma above 1 in 5 of 6 draws


def test_the_eraser_fills_one_rectangle_inside_with_one_level() -> None:
    images = random_images(100)
    erased = augment.eraser(images, seeded())
    hit = 0
    for before, after in zip(images, erased, strict=True):
        changed = (before != after).any(0)
        if not changed.any():
            continue
        hit += 1
        rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
        box = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.unique().numel() == 1
        share = box[0].numel() / SIZE**2
        assert 0.01 < share <= 0.06
        assert 0.2 < box.shape[1] / box.shape[2] < 0.65
    assert 35 < hit < 65


def test_contrast_keeps_the_mean_and_noise_is_centred() -> None:
    images = torch.randint(100, 156, (64, 3, SIZE, SIZE), generator=seeded()).to(torch.uint8)
    for step in (augment.contrast, augment.gaussian_noise):
        out = step(images, seeded())
        drift = out.float().mean((1, 2, 3)) - images.float().mean((1, 2, 3))
        assert drift.abs().max() < 0.6
        changed = (out != images).flatten(1).any(1)
        assert 0.3 < changed.float().mean() < 0.7


@pytest.mark.parametrize("kind", ["none", "flip", "dpl"])
@pytest.mark.parametrize("size", [SIZE, 100, 48])
def test_source_sets_return_the_crop_size_and_valid_masks(
    kind: augment.SourceAugmentKind, size: int
) -> None:
    images, masks = augment_source(
        random_images(24, size), round_masks(24, size), SIZE, seeded(), kind
    )
    assert images.shape == (24, 3, SIZE, SIZE)
    assert masks.shape == (24, 2, SIZE, SIZE)
    assert (images.dtype, masks.dtype) == (torch.uint8, torch.bool)
    assert not (masks[:, 0] & ~masks[:, 1]).any()
    assert masks[:, 1].flatten(1).any(1).float().mean() > 0.8


def test_source_sets_follow_the_generator() -> None:
    batch = random_images(8), round_masks(8)
    first, again, other = (augment_source(*batch, SIZE, seeded(s), "dpl") for s in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_flips_move_whole_pixels_and_draw_all_four_cases() -> None:
    images = random_images(64)
    masks = images[:, :2] > 127
    flipped, flipped_masks = augment_source(images, masks, SIZE, seeded(), "flip")
    seen = set()
    for i in range(64):
        for dims in ((), (1,), (2,), (1, 2)):
            if torch.equal(images[i].flip(dims), flipped[i]):
                assert torch.equal(masks[i].flip(dims), flipped_masks[i])
                seen.add(dims)
                break
        else:
            raise AssertionError("not a flip")
    assert len(seen) == 4


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_a_fixed_rotation_turns_about_half_of_the_samples_by_the_stated_angle(turns: int) -> None:
    grid = augment._pixel_centres(100, 8, torch.device("cpu")) - 4
    turned = augment._rotated(grid, seeded(), "fixed", turns)
    angle = turns * np.pi / 2
    matrix = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = torch.einsum("ij,hwj->hwi", matrix.float(), grid[0])
    same = (turned - expected).abs().flatten(1).amax(1) < 1e-4
    kept = (turned - grid[0]).abs().flatten(1).amax(1) < 1e-4
    assert (same | kept).all()
    if turns != 4:
        assert 35 < int(same.sum()) < 65


def test_rotation_by_sample_draws_every_angle() -> None:
    grid = augment._pixel_centres(100, 8, torch.device("cpu")) - 4
    turned = augment._rotated(grid, seeded(), "per_sample", 1)
    assert len({tuple(corner.tolist()) for corner in turned[:, 0, 0].round(decimals=1)}) == 4


def test_scaling_stretches_width_and_height_independently_in_about_half_of_the_samples() -> None:
    scale = augment._draw_scale(2000, 800, seeded())
    changed = (scale != 1).any(1)
    assert 0.45 < changed.float().mean() < 0.55
    drawn = scale[changed]
    assert 0.5 <= drawn.min() < 0.52
    assert 1.48 < drawn.max() < 1.5
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.1


def test_crops_of_a_large_image_stay_inside_and_small_ones_are_padded_as_released() -> None:
    large = augment._draw_offset(torch.full((500, 2), 100.0), 64, seeded())
    assert large.min() == 0
    assert large.max() == 36
    small = torch.tensor([[40.0, 90.0]]).expand(500, 2)
    offset = augment._draw_offset(small, 64, seeded())
    pad = (64 - 40) // 2 + 5  # on all four sides
    assert offset[:, 0].min() == -pad
    assert offset[:, 0].max() == 40 + pad - 64
    assert offset[:, 1].min() == -pad
    assert offset[:, 1].max() == 90 + pad - 64


def test_the_elastic_field_is_as_strong_and_as_smooth_as_the_full_resolution_recipe() -> None:
    size, rng = 256, np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (4, size, size))
    reference = np.stack(
        [gaussian_filter(n, 0.08 * size, mode="constant") * 2 * size for n in noise]
    )
    field = augment._elastic_field(24, size, seeded()).permute(0, 3, 1, 2).flatten(0, 1).numpy()
    assert field.std() == pytest.approx(reference.std(), rel=0.2)
    steps = [np.diff(x, axis=-1).std() for x in (field, reference)]
    assert steps[0] == pytest.approx(steps[1], rel=0.25)


def test_image_and_mask_move_together() -> None:
    """A picture of the mask itself stays aligned with it."""
    masks = round_masks(32)
    images = (masks[:, 1:].to(torch.uint8) * 200).expand(-1, 3, -1, -1)
    geometry = augment._draw_geometry(32, SIZE, SIZE, seeded(), "dpl", "per_sample", 1)
    assert geometry is not None
    moved, moved_masks = augment._sample(images, masks, geometry)
    differs = (moved[:, 0] > 100) != moved_masks[:, 1]
    assert (moved[:, 0][differs] == 100).all()  # a level just above one half rounds to it

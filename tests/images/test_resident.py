from __future__ import annotations

import numpy as np
import pytest
import torch

from sfuda_bench.images.resident import ResidentImages, batch_indices, normalise, resident_masks


def test_resident_images_are_channel_first_and_independent_of_the_file() -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    resident = ResidentImages(array, "cpu")
    assert resident.images.shape == (3, 3, 4, 5)
    assert torch.equal(resident.batch(torch.tensor([2, 0])), resident.images[[2, 0]])
    assert np.array_equal(resident.images[1, 2].numpy(), array[1, :, :, 2])


def test_resident_masks_stay_boolean() -> None:
    masks = resident_masks(np.ones((2, 2, 4, 4), dtype=np.bool_), "cpu")
    assert masks.dtype == torch.bool


def test_normalising_maps_black_to_minus_one_and_white_to_one() -> None:
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    assert normalise(levels).flatten().tolist() == pytest.approx([-1.0, -0.6, 1.0])
    assert levels.flatten().tolist() == [0, 51, 255]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [
        (9, 8, [9]),
        (17, 8, [8, 9]),
        (10, 8, [8, 2]),
        (16, 8, [8, 8]),
        (1, 8, [1]),
        (3, 1, [1, 1, 1]),
        (0, 8, []),
    ],
)
def test_a_final_batch_of_one_joins_the_batch_before_it(
    count: int, size: int, sizes: list[int]
) -> None:
    batches = batch_indices(count, size)
    assert [len(batch) for batch in batches] == sizes
    assert [int(i) for batch in batches for i in batch] == list(range(count))


def test_a_shuffled_order_covers_all_and_follows_the_seed() -> None:
    def draw(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return torch.cat(batch_indices(17, 4, generator, shuffle=True)).tolist()

    assert draw(0) == draw(0) != draw(1)
    assert sorted(draw(0)) == list(range(17))


def test_a_shuffle_without_generator_and_an_empty_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="generator"):
        batch_indices(4, 2, shuffle=True)
    with pytest.raises(ValueError, match="batch size 0"):
        batch_indices(4, 0)

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.refinement import upsample_refined
from sfuda_bench.blocks.resample import nearest, scaled_side


def _picked(old, new):
    return nearest(torch.arange(old).expand(1, 1, old, old), (new, new))[0, 0, 0].tolist()


def test_nearest_512_to_50_picks_the_official_indices():
    picked = _picked(512, 50)
    assert picked[:6] == [0, 10, 20, 30, 40, 51]
    assert picked[-2:] == [491, 501]


def test_nearest_by_whole_factors_picks_the_first_pixel_of_each_cell():
    assert _picked(512, 32) == [16 * i for i in range(32)]
    assert _picked(512, 128) == [4 * i for i in range(128)]


def test_image_libraries_pick_the_centre_of_a_cell_instead():
    """O12: the two kinds of nearest are not interchangeable."""
    assert _picked(256, 32)[:4] == [0, 8, 16, 24]
    row = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    assert np.asarray(row.resize((32, 1), Image.Resampling.NEAREST))[0, :4].tolist() == [
        4,
        12,
        20,
        28,
    ]


@pytest.mark.parametrize(
    ("side", "scale", "expected"),
    [(512, 1.0, 512), (512, 1.5625, 800), (256, 1.5625, 400), (128, 0.5, 64), (100, 1.0, 100),
     (64, 0.1, 16), (96, 1.01, 96)],
)  # fmt: skip
def test_a_scaled_side_is_the_nearest_multiple_of_the_stride(side, scale, expected):
    assert scaled_side(side, scale) == expected


def test_nearest_agrees_with_torch_up_and_down():
    x = torch.randn(1, 2, 24, 40)
    for size in [(6, 10), (24, 40), (48, 120)]:
        assert torch.equal(nearest(x, size), F.interpolate(x, size=size, mode="nearest"))


def test_refined_maps_are_upsampled_without_aligned_corners():
    row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert upsample_refined(row, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]
    aligned = F.interpolate(row, size=(1, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(aligned.flatten(), torch.tensor([0, 1 / 3, 2 / 3, 1]))

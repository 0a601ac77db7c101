import torch
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.blocks.refinement import upsample_refined
from sfuda_bench.blocks.resample import nearest


def _picked(old, new):
    return nearest(torch.arange(old).expand(1, 1, old, old), (new, new))[0, 0, 0].tolist()


def test_nearest_512_to_50_picks_the_official_indices():
    picked = _picked(512, 50)
    assert picked[:6] == [0, 10, 20, 30, 40, 51]
    assert picked[-2:] == [491, 501]


def test_nearest_by_whole_factors_picks_the_first_pixel_of_each_cell():
    assert _picked(512, 32) == [16 * i for i in range(32)]
    assert _picked(512, 128) == [4 * i for i in range(128)]
    assert _picked(256, 32)[:2] == [0, 8]  # image libraries pick the centre: 4, 12, ...


def test_nearest_agrees_with_torch_up_and_down():
    x = torch.randn(1, 2, 24, 40)
    for size in [(6, 10), (24, 40), (48, 120)]:
        assert torch.equal(nearest(x, size), F.interpolate(x, size=size, mode="nearest"))


def test_refined_maps_are_upsampled_without_aligned_corners():
    row = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert upsample_refined(row, (1, 4)).flatten().tolist() == [0, 0.25, 0.75, 1]
    aligned = F.interpolate(row, size=(1, 4), mode="bilinear", align_corners=True)
    torch.testing.assert_close(aligned.flatten(), torch.tensor([0, 1 / 3, 2 / 3, 1]))

"""The detector finds drawn discs in whole fields and is not led away by glare or scale."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from sfuda_bench.images.prepare import locate
from sfuda_bench.images.prepare.locate import Disc, find_field, locate_disc

Uint8 = npt.NDArray[np.uint8]
SIDE = 360


def field(
    centre: tuple[float, float], radius: float, *, light: float = 1.0, glare: bool = False
) -> Uint8:
    """Draw a fundus photograph: aperture, disc, cup, and vessels that leave the disc."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(float)
    image = np.full((SIDE, SIDE, 3), (120.0, 55.0, 25.0))
    image *= (0.7 + 0.3 * columns / SIDE)[..., None]
    from_centre = np.hypot(rows - centre[0], columns - centre[1])
    image[from_centre <= radius] += (70, 60, 30)
    image[from_centre <= 0.5 * radius] += (10, 50, 60)
    for bend in (-1.0, -0.6, 0.6, 1.0):
        for side in (-1, 1):
            along = side * (rows - centre[0])
            path = centre[1] + bend * 0.004 * along * (along + 60)
            vessel = (np.abs(columns - path) < 2.5) & (along > 0)
            image[vessel] *= (0.75, 0.5, 0.6)
    if glare:
        image[(rows < 110) & (columns > 240)] += (120, 110, 20)
    image = ndimage.gaussian_filter(image * light, (1, 1, 0))
    image += np.random.default_rng(0).normal(0, 3, image.shape)
    image[np.hypot(rows - SIDE / 2, columns - SIDE / 2) > 0.49 * SIDE] = 2
    return image.clip(0, 255).astype(np.uint8)


def error(image: Uint8, centre: tuple[float, float], radius: float) -> float:
    disc = locate_disc(image)
    return float(np.hypot(disc.row_px - centre[0], disc.column_px - centre[1]) / (2 * radius))


@pytest.mark.parametrize(
    ("centre", "radius"),
    [((180, 180), 36), ((150, 270), 26), ((200, 95), 22), ((230, 240), 44)],
)
def test_the_centre_is_found_within_a_tenth_of_a_disc(
    centre: tuple[float, float], radius: float
) -> None:
    assert error(field(centre, radius), centre, radius) < 0.1


@pytest.mark.parametrize("light", [0.3, 1.2])
def test_dark_and_bright_photographs(light: float) -> None:
    assert error(field((190, 110), 28, light=light), (190, 110), 28) < 0.1


def test_glare_at_the_edge_of_the_field_is_no_disc() -> None:
    assert error(field((200, 120), 28, glare=True), (200, 120), 28) < 0.1


def test_turning_the_photograph_turns_the_answer() -> None:
    image = field((150, 270), 26)
    assert error(np.ascontiguousarray(image[:, ::-1]), (150, SIDE - 1 - 270), 26) < 0.1


def test_the_answer_is_the_same_every_time() -> None:
    image = field((180, 180), 36)
    assert locate_disc(image) == locate_disc(image.copy())


def test_the_field_is_the_aperture_or_all_of_a_crop() -> None:
    found = find_field(field((180, 180), 36))
    assert found.width_px == pytest.approx(0.98 * SIDE, abs=4)
    assert not found.inside[0, 0]
    assert find_field(field((180, 180), 36)[100:260, 100:260]).inside.all()


def test_pictures_without_a_disc_have_an_answer_inside() -> None:
    for image in (np.zeros((90, 120, 3), np.uint8), np.full((90, 120, 3), 130, np.uint8)):
        disc = locate_disc(image)
        assert 0 <= disc.row_px < 90
        assert 0 <= disc.column_px < 120


@pytest.mark.parametrize("size", [(3, 2000), (1500, 1500)])
def test_a_strip_or_a_speck_of_light_takes_no_longer_than_a_photograph(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is searched stays small, however little of the picture is lit."""
    searched: list[tuple[int, ...]] = []

    def noted(image: Uint8, radii: tuple[float, ...]) -> list[Disc]:
        searched.append(image.shape)
        return []

    monkeypatch.setattr(locate, "_candidates", noted)
    image = np.zeros((*size, 3), np.uint8)
    image[40:90, 40:140] = 200
    disc = locate_disc(image)
    assert max(searched[0]) <= locate.LONGEST_PX
    assert 0 <= disc.row_px < size[0]
    assert 0 <= disc.column_px < size[1]

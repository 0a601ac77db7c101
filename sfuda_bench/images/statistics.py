"""What can be measured of an ROI and its mask, and the same averaged over a split.

Areas and lengths are shares of the ROI, so that crops of different sizes compare; colours are
gray levels of the field of view, without the black around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from sfuda_bench.images.decode import Bool, Uint8, resize_image, resize_mask
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio

Float = npt.NDArray[np.float64]
Values = Mapping[str, float]


@dataclass(frozen=True)
class Quantity:
    """One thing that is measured of an image.

    Args:
        key: Name in files, with the unit where it is not a share.
        title: Name in tables and figures.
        decimals: Digits after the point in print.
        factor: By which print multiplies it, e.g. 100 for per cent.
    """

    key: str
    title: str
    decimals: int = 1
    factor: float = 1.0


COLOURS = (
    Quantity("red", "red [gray levels]"),
    Quantity("green", "green [gray levels]"),
    Quantity("blue", "blue [gray levels]"),
    Quantity("green_sd", "sd of green [gray levels]"),
    Quantity("outside", "outside the field of view [%]", factor=100),
)
SHAPES = (
    Quantity("disc_share", "disc area [% of the ROI]", factor=100),
    Quantity("disc_scale", "disc diameter [% of the side]", factor=100),
    Quantity("disc_diameter_px", "disc diameter [px]"),
    Quantity("cup_share", "cup area [% of the ROI]", factor=100),
    Quantity("vcdr", "vCDR", decimals=3),
)
EDGES = (
    Quantity("disc_contrast", "contrast at the disc's edge [gray levels]"),
    Quantity("cup_contrast", "contrast at the cup's edge [gray levels]"),
)
QUANTITIES = (*COLOURS, *SHAPES, *EDGES)

_BLACK = 24
"""Sum of the three channels up to which a pixel is the black around the field of view."""
_EDGE_SIDE = 256
_EDGE_BAND = 0.25
"""Width of the bands on both sides of an outline, as a share of the disc's radius."""
_EDGE_GAP = 0.04
"""Left out next to the outline: graders and resampling blur it."""


def colour_values(image: Uint8) -> dict[str, float]:
    """Return the :data:`COLOURS` of an image: means over its field of view.

    Args:
        image: (H, W, 3) uint8 RGB.

    Undefined:
        Only ``outside`` is there for a black image.
    """
    red, green, blue = (image[..., channel] for channel in range(3))
    seen = red.astype(np.uint16) + green + blue > _BLACK
    count = int(seen.sum())
    found = {"outside": 1.0 - count / seen.size}
    if count:
        channels = {"red": red, "green": green, "blue": blue}
        found |= {name: float(values.mean(where=seen)) for name, values in channels.items()}
        found["green_sd"] = float(green.std(where=seen))
    return found


def shape_values(mask: Bool) -> dict[str, float]:
    """Return the :data:`SHAPES` of a mask.

    The diameter is that of a circle of the disc's area.

    Args:
        mask: (2, H, W) bool, cup and disc.

    Undefined:
        Empty without a disc.
    """
    cup, disc = mask
    area = int(disc.sum())
    if not area:
        return {}
    diameter = math.sqrt(4 * area / math.pi)
    return {
        "disc_share": area / disc.size,
        "disc_scale": diameter / math.sqrt(disc.size),
        "disc_diameter_px": diameter,
        "cup_share": float(cup.mean()),
        "vcdr": vertical_cup_to_disc_ratio(mask),
    }


def edge_values(image: Uint8, mask: Bool) -> dict[str, float]:
    """Return the :data:`EDGES`: median green level just inside an outline minus that outside.

    Measured at 256 px in bands of a quarter of the disc's radius; the outer band of the cup ends
    at the disc's edge.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (2, H, W) bool, cup and disc.

    Undefined:
        A structure without pixels on one side of its outline is left out.
    """
    green = resize_image(image, _EDGE_SIDE).astype(np.float64)[..., 1]
    cup, disc = resize_mask(mask, _EDGE_SIDE)
    if not disc.any():
        return {}
    radius = math.sqrt(float(disc.sum()) / math.pi)
    found = {}
    for name, inside, within in (("disc", disc, None), ("cup", cup, disc)):
        depth = _depth(inside) / radius
        near = (np.abs(depth) > _EDGE_GAP) & (np.abs(depth) < _EDGE_BAND)
        inner, outer = near & inside, near & ~inside & (True if within is None else within)
        if inner.any() and outer.any():
            found[f"{name}_contrast"] = float(np.median(green[inner]) - np.median(green[outer]))
    return found


def _depth(inside: Bool) -> Float:
    """Return the distance to the outline in px, negative outside."""
    depth = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    return np.asarray(depth, dtype=np.float64)


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over images.

    Args:
        n: Number of images for which the quantity is defined.
        mean: Their mean.
        sd: ``None`` for one image.
    """

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class SplitNumbers:
    """What was measured of one split.

    Args:
        domain: Canonical name.
        split: ``"train"`` or ``"test"``.
        images: Number of images that can be read.
        masks: Number of masks that can be read.
        sides_px: Smallest and largest side; ``None`` without images.
        values: By :class:`Quantity` key, those defined for any image.
    """

    domain: str
    split: str
    images: int
    masks: int
    sides_px: tuple[int, int] | None
    values: Mapping[str, Spread]

    def to_json(self) -> dict[str, object]:
        """Return a JSON object."""
        return asdict(self)


def spreads(images: Sequence[Values]) -> dict[str, Spread]:
    """Return mean and deviation of every quantity that is defined for any image, in order."""
    found = {}
    for quantity in QUANTITIES:
        key = quantity.key
        values = [one[key] for one in images if key in one and math.isfinite(one[key])]
        if values:
            deviation = stdev(values) if len(values) > 1 else None
            found[key] = Spread(len(values), fmean(values), deviation)
    return found

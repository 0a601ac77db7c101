"""The shapes of one eye: outlines of disc and cup, and the random streams that all parts draw from.

Lengths are shares of half the image side; x points right, y down, the origin is the centre.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from sfuda_bench.images.synthetic.parameters import Annotation, Population

Float = npt.NDArray[np.float32]
ANGLES = 720  # entries of a table over the full circle
_STAGES = ("shape", "tissue", "vessels", "added_vessels", "camera", "grain")
_CIRCLE = np.arange(ANGLES) * (2.0 * math.pi / ANGLES)


@dataclass(frozen=True)
class Streams:
    """Independent random streams of one eye, so that a knob on one part leaves the others alone.

    Attributes:
        key: Seed of the world, number of the domain, number of the split, number of the eye.
    """

    key: tuple[int, int, int, int]

    def __call__(self, stage: str, number: int = 0) -> np.random.Generator:
        """Return a fresh generator for a stage, always with the same numbers."""
        return np.random.default_rng([*self.key, _STAGES.index(stage), number])


@dataclass(frozen=True)
class Shape:
    """A closed outline: centre (x, y) and radius per angle."""

    centre: tuple[float, float]
    radius: Float

    def scaled(self, factor: float) -> Shape:
        """Return it larger or smaller around its own centre."""
        return Shape(self.centre, (self.radius * np.float32(factor)).astype(np.float32))

    @property
    def height(self) -> float:
        """Its vertical extent."""
        return float(np.ptp(self.radius.astype(np.float64) * np.sin(_CIRCLE)))


@dataclass(frozen=True)
class Eye:
    """The anatomy of one eye.

    Attributes:
        disc: Outline of the optic disc.
        cup: Outline of the cup, inside the disc.
        side: +1 where temporal is right, -1 where it is left.
        pigment: Of the background, 0 to 1.2.
        atrophy: Of the tissue around the disc, 0 to 1 or more.
        scale: Magnification of everything but the image's texture.
    """

    disc: Shape
    cup: Shape
    side: float
    pigment: float
    atrophy: float
    scale: float


@dataclass(frozen=True)
class Outline:
    """An outline on the pixel grid.

    Attributes:
        inside: (H, W) distance to the outline along the ray from its centre, positive inside.
        angle: (H, W) index into a table over the full circle.
    """

    inside: Float
    angle: npt.NDArray[np.int32]

    @classmethod
    def around(cls, shape: Shape, size: int) -> Outline:
        """Return a shape on a square grid of ``size`` pixels."""
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
        x = (axis - np.float32(shape.centre[0]))[None, :]
        y = (axis - np.float32(shape.centre[1]))[:, None]
        turn = np.arctan2(y, x)
        turn *= np.float32(ANGLES / (2.0 * math.pi))
        angle = turn.astype(np.int32)
        angle[angle < 0] += ANGLES
        return cls(shape.radius[angle] - np.sqrt(x * x + y * y), angle)

    def alpha(self, softness: float) -> Float:
        """Return 0 outside to 1 inside, with a border twice ``softness`` wide."""
        t = np.clip(self.inside * np.float32(0.5 / softness) + np.float32(0.5), 0, 1)
        return cast(Float, t * t * (3 - 2 * t))


def draw_eye(streams: Streams, population: Population) -> Eye:
    """Draw one eye; how many random numbers it takes depends on nothing."""
    rng = streams("shape")
    side = 1.0 if rng.random() < 0.5 else -1.0
    scale = population.scale
    radius = scale * float(np.clip(rng.normal(*population.disc_radius), 0.36, 0.82))
    ratio = float(np.clip(rng.normal(*population.cup_to_disc), 0.25, 0.86))
    centre = (float(rng.normal(0, 0.035)), float(rng.normal(0, 0.035)))
    disc = Shape(centre, _wavy_radius(rng, radius, oval=rng.normal(0.035, 0.025), waves=0.012))
    room = radius * (1.0 - ratio)
    shift = (side * room * rng.uniform(-0.05, 0.4), room * rng.normal(0, 0.12))
    cup_centre = (centre[0] + float(shift[0]), centre[1] + float(shift[1]))
    wanted = _wavy_radius(rng, radius * ratio, oval=rng.normal(0.04, 0.04), waves=0.02)
    own = float(rng.random() < population.atrophy) * float(rng.uniform(0.3, 1.0))
    return Eye(
        disc,
        Shape(cup_centre, _kept_inside(wanted, cup_centre, disc)),
        side,
        pigment=float(np.clip(rng.normal(population.pigment, 0.2), 0.0, 1.2)),
        atrophy=own + population.atrophy_added,
        scale=scale,
    )


def annotated(eye: Eye, style: Annotation) -> tuple[Shape, Shape]:
    """Return the outlines of disc and cup as the annotator draws them."""
    disc = eye.disc.scaled(style.disc) if style.disc != 1.0 else eye.disc
    cup = eye.cup.scaled(style.cup) if style.cup != 1.0 else eye.cup
    return disc, Shape(cup.centre, _kept_inside(cup.radius, cup.centre, disc))


def _wavy_radius(rng: np.random.Generator, radius: float, *, oval: float, waves: float) -> Float:
    """Return a radius per angle: an upright oval with a few random harmonics."""
    shape = 1.0 - oval * np.cos(2.0 * (_CIRCLE - rng.normal(0, 0.25)))
    for k in range(3, 8):
        shape += rng.normal(0, waves * 3 / k) * np.cos(k * _CIRCLE + rng.uniform(0, 2 * math.pi))
    return cast(Float, (radius * shape).astype(np.float32))


def _kept_inside(radius: Float, centre: tuple[float, float], disc: Shape) -> Float:
    """Shrink a cup's radii where they would come nearer than 6 % to the disc's outline."""
    dx, dy = centre[0] - disc.centre[0], centre[1] - disc.centre[1]
    x, y = dx + radius * np.cos(_CIRCLE), dy + radius * np.sin(_CIRCLE)
    turn = (np.arctan2(y, x) * (ANGLES / (2.0 * math.pi))).astype(np.int32) % ANGLES
    excess = np.hypot(x, y) / (0.94 * disc.radius[turn])
    return cast(Float, (radius / np.maximum(excess, 1.0)).astype(np.float32))

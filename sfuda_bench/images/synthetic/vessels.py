"""Retinal vessels: trunks that leave the cup up and down, fork near the disc's rim, and arch away.

Every vessel takes the same number of random numbers wherever it runs, so turning a knob moves,
thickens or adds vessels without redrawing the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from sfuda_bench.images.synthetic.anatomy import Eye, Float, Streams
from sfuda_bench.images.synthetic.parameters import Population

_STEP = 0.06
_STEPS = 44  # long enough to leave the image from its centre at the smallest scale
_ARTERY, _VEIN = 165, 235
_FADING = 0.8  # a branch is that much paler than its parent


@dataclass(frozen=True)
class _Vessel:
    """A line of points (n, 2) with its headings (n,), width and darkness (0 to 255)."""

    points: npt.NDArray[np.float64]
    headings: npt.NDArray[np.float64]
    width: float
    dark: float


def absorption(streams: Streams, eye: Eye, population: Population, size: int) -> Float:
    """Return the absorption by blood, (size, size) float32 in [0, 1]."""
    scale = 2  # drawn at twice the size, so that lines have smooth borders
    canvas = Image.new("L", (size * scale, size * scale), 0)
    draw = ImageDraw.Draw(canvas)
    vessels = [*_own(streams, eye, population.vessels), *_added(streams, eye, population)]
    for vessel in sorted(vessels, key=lambda vessel: vessel.width):
        _paint(draw, vessel, size * scale)
    small = canvas.reduce(scale).filter(ImageFilter.GaussianBlur(size * 0.004))
    return np.asarray(small, dtype=np.float32) * np.float32(1.0 / 255.0)


def _own(streams: Streams, eye: Eye, factor: float) -> Iterator[_Vessel]:
    """Yield an artery and a vein up and down, with their forks, and thin vessels of the rim."""
    for number in range(4):
        up, vein = (-1.0, 1.0)[number // 2], bool(number % 2)
        yield from _tree(streams("vessels", number), eye, up, vein, factor)
    for number in range(4, 10):
        yield _thin(streams("vessels", number), eye, factor)


def _added(streams: Streams, eye: Eye, population: Population) -> Iterator[_Vessel]:
    """Yield further trunks; the last one grows from nothing with the fraction."""
    for number in range(math.ceil(population.vessels_added)):
        grown = min(population.vessels_added - number, 1.0) * population.vessels
        rng = streams("added_vessels", number)
        up, vein = (-1.0, 1.0)[number % 2], number % 3 != 2
        yield from _tree(rng, eye, up, vein, grown, spread=0.6)


def _root(eye: Eye) -> tuple[float, float]:
    """Return where the vessels enter: in the nasal half of the cup."""
    radius = float(eye.disc.radius.mean())
    return eye.cup.centre[0] - eye.side * 0.14 * radius, eye.cup.centre[1]


def _tree(
    rng: np.random.Generator, eye: Eye, up: float, vein: bool, factor: float, spread: float = 0.3
) -> Iterator[_Vessel]:
    radius = float(eye.disc.radius.mean())
    dark = _VEIN if vein else _ARTERY
    width = radius * rng.uniform(0.12, 0.165) * (1.1 if vein else 0.8) * factor
    x, y = _root(eye)
    start = (x + rng.normal(0, 0.06 * radius), y + up * rng.uniform(-0.12, 0.06) * radius)
    heading = up * math.pi / 2 + rng.normal(0, spread)
    trunk = _run(rng, start, heading, rng.normal(0, 0.5), eye.scale)
    fork = int(rng.integers(4, 12))
    yield _Vessel(trunk[0][: fork + 1], trunk[1][: fork + 1], width, dark)
    for toward in (-1.0, 1.0):
        # Heading away from the vertical, then bending back along the arcade.
        turn = -up * toward * rng.uniform(0.15, 0.55)
        bend = up * toward * rng.uniform(-0.3, 0.5)
        branch = _run(rng, trunk[0][fork], trunk[1][fork] + turn, bend, eye.scale)
        share = width * rng.uniform(0.6, 0.85)
        yield _Vessel(*branch, share, dark * _FADING)
        at = int(rng.integers(4, 16))
        twig_turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 0.9)
        twig = _run(rng, branch[0][at], branch[1][at] + twig_turn, -twig_turn * 0.4, eye.scale)
        yield _Vessel(*twig, share * rng.uniform(0.45, 0.7), dark * _FADING**2)


def _thin(rng: np.random.Generator, eye: Eye, factor: float) -> _Vessel:
    radius = float(eye.disc.radius.mean())
    x, y = _root(eye)
    heading = rng.uniform(0, 2 * math.pi)
    start = (x + 0.25 * radius * math.cos(heading), y + 0.25 * radius * math.sin(heading))
    width = radius * rng.uniform(0.03, 0.055) * factor
    dark = (_VEIN if rng.random() < 0.5 else _ARTERY) * _FADING
    return _Vessel(*_run(rng, start, heading, rng.normal(0, 0.5), eye.scale), width, dark)


def _run(
    rng: np.random.Generator,
    start: tuple[float, float] | npt.NDArray[np.float64],
    heading: float,
    bend: float,
    scale: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return points (n, 2) and headings (n,) of a line that wanders smoothly."""
    time = np.arange(_STEPS) * _STEP
    headings = heading + bend * time + rng.normal(0, 0.04, _STEPS)
    for wave, swing in ((rng.uniform(1.5, 4.0), 0.28), (rng.uniform(6.0, 11.0), 0.14)):
        phase = rng.uniform(0, 2 * math.pi)
        # It swings about its course: vessels snake, they do not circle.
        headings += rng.normal(0, swing) * (np.sin(wave * time + phase) - math.sin(phase))
    steps = _STEP * scale * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    points = np.asarray(start) + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])
    return points, np.concatenate([headings, headings[-1:]])


def _paint(draw: ImageDraw.ImageDraw, vessel: _Vessel, side: int) -> None:
    """Draw a vessel, and the reflex along the middle of a large one."""
    width = vessel.width * side / 2
    if width < 0.5:
        return
    outside = np.abs(vessel.points).max(axis=1) > 1.15
    end = int(outside.argmax()) + 1 if outside.any() else len(outside)
    line = ((vessel.points[:end] + 1.0) * (side / 2)).ravel().tolist()
    draw.line(line, fill=int(vessel.dark), width=max(round(width), 1))
    x, y, half = line[0], line[1], width / 2
    draw.ellipse((x - half, y - half, x + half, y + half), fill=int(vessel.dark))
    if width > 0.02 * side:
        draw.line(line, fill=int(vessel.dark * 0.75), width=round(width * 0.3))

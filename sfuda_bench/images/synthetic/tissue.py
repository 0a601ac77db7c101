"""The reflectance of one eye: retina and choroid, rim, cup, and the blood above them."""

from __future__ import annotations

from typing import cast

import numpy as np
from PIL import Image

from sfuda_bench.images.synthetic.anatomy import ANGLES, Eye, Float, Outline, Streams
from sfuda_bench.images.synthetic.parameters import Population
from sfuda_bench.images.synthetic.vessels import absorption

_BACKGROUND = (0.55, 0.30, 0.12)
_RIM = (0.78, 0.37, 0.15)
_CUP = (0.88, 0.58, 0.27)
_PALE = (0.80, 0.50, 0.27)
_BLOOD = (0.0, 0.42, 0.40)  # share of red, green, blue that blood absorbs,
_THICK_BLOOD = (0.26, 0.10, 0.06)  # and what it absorbs more where it is deep


def tissue(streams: Streams, eye: Eye, population: Population, size: int) -> Float:
    """Return an eye as colour planes, (3, size, size) float32 in about [0, 1].

    How many random numbers it takes does not depend on the eye: knobs redraw nothing.
    """
    rng = streams("tissue")
    disc, cup = Outline.around(eye.disc, size), Outline.around(eye.cup, size)
    fibres = _fibres(rng, disc)
    colour = _background(rng, eye, disc, fibres, size)
    facing = _facing(eye)[disc.angle]  # +1 at the temporal side of the disc
    rim = _varied(rng, _RIM, 0.05) * (1.0 + 0.06 * facing + 0.012 * fibres)
    rim *= 1.0 + 0.03 * _noise(rng, 14, size) + 0.02 * _noise(rng, 4, size)
    _blend(colour, disc.alpha(eye.scale * float(rng.uniform(0.03, 0.085))), rim)
    depth = np.clip(cup.inside / np.float32(eye.cup.radius.mean()), 0, 1)
    shine = 0.92 + 0.13 * depth + 0.025 * _noise(rng, 40, size) + 0.03 * _noise(rng, 6, size)
    strength = np.float32(rng.uniform(0.65, 1.0))
    softness = eye.scale * float(rng.uniform(0.035, 0.10))
    _blend(colour, cup.alpha(softness) * strength, _varied(rng, _CUP, 0.05) * shine)
    blood = absorption(streams, eye, population, size)
    for plane, (thin, thick) in enumerate(zip(_BLOOD, _THICK_BLOOD, strict=True)):
        colour[plane] *= 1 - blood * (np.float32(thin) + np.float32(thick) * blood)
    return colour


def _background(
    rng: np.random.Generator, eye: Eye, disc: Outline, fibres: Float, size: int
) -> Float:
    """Return retina and choroid: mottle, choroidal streaks, fibres, atrophy around the disc."""
    mottle = 0.5 * _noise(rng, 5, size) + 0.4 * _noise(rng, 16, size) + 0.3 * _noise(rng, 50, size)
    mottle += 0.32 * _noise(rng, 100, size)
    streaks = 1.0 - np.abs(_noise(rng, 11, size)) - np.abs(0.6 * _noise(rng, 23, size))
    shade = 1.0 + 0.06 * mottle + (0.02 + 0.05 * eye.pigment) * streaks
    shade += 0.03 * fibres * np.exp(np.minimum(disc.inside, 0.0) * np.float32(2.5))
    base = _varied(rng, _BACKGROUND, 0.09) * np.float32(1.0 - 0.2 * eye.pigment)
    colour = cast(Float, (base * shade).astype(np.float32))
    pale = _varied(rng, _PALE, 0.05)
    if eye.atrophy > 0:
        grown = np.float32(eye.atrophy * eye.scale)
        width = grown * (0.05 + 0.13 * np.clip(_facing(eye), 0, 1) ** 2)
        halo = Outline(disc.inside + width.astype(np.float32)[disc.angle], disc.angle)
        alpha = halo.alpha(0.05 * eye.scale) * np.float32(min(0.55 * eye.atrophy**0.5, 0.95))
        _blend(colour, alpha, pale * (1.0 + 0.08 * mottle))
    return colour


def _facing(eye: Eye) -> Float:
    """Return the cosine of the angle to the temporal side, a table over the circle."""
    circle = np.arange(ANGLES, dtype=np.float32) * np.float32(2 * np.pi / ANGLES)
    return cast(Float, (np.float32(eye.side) * np.cos(circle)).astype(np.float32))


def _blend(under: Float, alpha: Float, over: Float) -> None:
    under += alpha * (over - under)


def _varied(rng: np.random.Generator, colour: tuple[float, ...], spread: float) -> Float:
    values = np.array(colour) * (1.0 + rng.normal(0, spread, 3) + rng.normal(0, spread))
    return values.astype(np.float32)[:, None, None]


def _noise(rng: np.random.Generator, cells: int, size: int) -> Float:
    """Return smooth noise with about ``cells`` bumps per side, standard deviation near 1."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _fibres(rng: np.random.Generator, outline: Outline) -> Float:
    """Return the radial streaks of the nerve-fibre layer."""
    table = rng.standard_normal(ANGLES // 4).astype(np.float32)
    table = np.repeat(table, 4) + 0.5 * np.repeat(np.roll(table, 7), 4)
    kernel = np.hanning(13).astype(np.float32)
    smooth = np.convolve(np.tile(table, 3), kernel / np.linalg.norm(kernel), mode="same")
    return cast(Float, smooth[ANGLES : 2 * ANGLES].astype(np.float32)[outline.angle] * 0.5)

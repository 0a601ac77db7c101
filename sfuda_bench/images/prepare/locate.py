"""Find the optic disc in a fundus photograph without labels and without training.

The disc is the one place that is brighter than its surroundings *on every side* and where thick
vessels meet. Candidates are bright blobs scored on every side of themselves, which glare at the
edge of the field cannot satisfy; the best one is moved until a circle of strong outward darkening
fits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from scipy.signal import fftconvolve

Float = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]
Uint8 = npt.NDArray[np.uint8]

VERSION = 1

COARSE_PX = 192
"""Width of the field of view at which candidates are searched."""
LONGEST_PX = 4 * COARSE_PX
"""Side that the picture searched never exceeds."""
RADII = tuple(round(0.05 * 1.2**step, 4) for step in range(8))
"""Disc radii that are tried, as share of the field's width: 0.05 to 0.18."""
CROP_RADII = (0.2, 0.24, 0.29, 0.35, 0.42)
"""The same for pictures that are crops around the disc already."""
SECTORS = 12
CANDIDATES = 6

_FIELD_LEVEL = 12  # gray level below which a pixel lies outside the camera's aperture
_FINE_RADIUS_PX = 40  # the disc's radius at which the circle is fitted
_ANGLES = 72


@dataclass(frozen=True)
class Disc:
    """Where the disc is believed to be.

    Args:
        row_px: Row of the centre.
        column_px: Column of the centre.
        radius_px: Radius of the fitted circle.
        score: Contrast to the surroundings times vessel support; compare within an image only.
    """

    row_px: float
    column_px: float
    radius_px: float
    score: float


@dataclass(frozen=True)
class Field:
    """The illuminated part of a photograph.

    Args:
        inside: (H, W) bool.
        width_px: Diameter of the aperture; the longer side where none is visible.
    """

    inside: Bool
    width_px: float


def locate_disc(image: Uint8, radii: tuple[float, ...] = RADII) -> Disc:
    """Find the optic disc.

    Args:
        image: (H, W, 3) uint8, a whole field or a large crop of one.
        radii: Disc radii that are tried, as share of the field's width.

    Returns:
        Centre and radius in pixels of ``image``. There is always an answer; in a picture without
        a disc it means nothing.
    """
    width_px = find_field(image).width_px
    # A speck of light or a strip would be enlarged beyond all memory; a field is never so small.
    longest = LONGEST_PX / max(image.shape[:2])
    coarse, scale = _shrink(image, min(COARSE_PX / width_px, longest))
    candidates = _candidates(coarse, radii)
    refined = [_refine(image, _scaled(candidate, 1 / scale)) for candidate in candidates]
    nowhere = Disc((image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2, radii[0] * width_px, 0.0)
    return max(refined, key=lambda disc: disc.score, default=nowhere)


def find_field(image: Uint8) -> Field:
    """Find the camera's aperture, the largest bright region.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        The region and its diameter. A picture without a dark frame is all inside.
    """
    step = max(1, min(image.shape[:2]) // 256)
    bright = image[::step, ::step].max(axis=2) > _FIELD_LEVEL
    padded = np.pad(bright, 4, mode="edge")  # what reaches the picture's edge goes on beyond it
    bright = ndimage.binary_opening(padded, iterations=2)[4:-4, 4:-4]
    labels, count = ndimage.label(bright)
    if count == 0:
        return Field(np.ones(image.shape[:2], bool), float(min(image.shape[:2])))
    sizes = ndimage.sum_labels(bright, labels, range(1, count + 1))
    region = ndimage.binary_fill_holes(labels == 1 + int(np.argmax(sizes)))
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    extent = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    inside = np.repeat(np.repeat(region, step, 0), step, 1)[: image.shape[0], : image.shape[1]]
    pad = [(0, image.shape[0] - inside.shape[0]), (0, image.shape[1] - inside.shape[1])]
    width_px = min(float(extent * step), float(max(image.shape[:2])))
    return Field(np.pad(inside, pad, mode="edge"), width_px)


# -- candidates ------------------------------------------------------------------------------


def _candidates(image: Uint8, radii: tuple[float, ...]) -> list[Disc]:
    """Return the strongest blobs, at most one per place, of an image of the coarse size."""
    inside = find_field(image).inside
    inside = ndimage.binary_erosion(inside, iterations=3, border_value=1)
    width = min(COARSE_PX, max(image.shape[:2]))
    light = _light(image, width)
    vessels = _vessels(image, width)
    found: list[Disc] = []
    for share in radii:
        radius = share * width
        response = _on_every_side(light, inside, radius)
        support = _support(vessels, inside, radius)
        found += _peaks(response * (0.3 + support), radius)
    found.sort(key=lambda disc: -disc.score)
    kept: list[Disc] = []
    for disc in found:
        if all(_distance(disc, other) > 0.7 * other.radius_px for other in kept):
            kept.append(disc)
    return kept[:CANDIDATES]


def _light(image: Uint8, width: float) -> Float:
    """Log brightness without thin vessels: a ratio of lights becomes a difference."""
    light = image.astype(np.float32) @ np.array([0.35, 0.6, 0.05], np.float32)
    side = 2 * round(0.015 * width) + 1
    return np.log(ndimage.grey_closing(light, size=(side, side)) + 8).astype(np.float32)


def _vessels(image: Uint8, width: float) -> Float:
    """How much darker than its closing the green channel is, in logs: dark thin structures."""
    green = np.log(image[..., 1].astype(np.float32) + 8)
    side = 2 * round(0.025 * width) + 1
    return np.asarray(ndimage.grey_closing(green, size=(side, side)) - green, np.float32)


def _on_every_side(light: Float, inside: Bool, radius: float) -> Float:
    """Brightness of a disc minus that of the second-brightest of the sectors around it."""
    weight = inside.astype(np.float32)
    inner = _mean(light, weight, _ring(0, 0.9 * radius))
    sides = []
    for sector in range(SECTORS):
        angle = 2 * math.pi * sector / SECTORS
        kernel = _ring(1.15 * radius, 1.7 * radius, angle, 2 * math.pi / SECTORS)
        sides.append(_mean(light, weight, kernel, needed=0.5))
    around = np.stack(sides)
    known = np.isfinite(around)
    second = np.sort(np.where(known, around, -np.inf), axis=0)[-2]
    usable = inside & (known.sum(axis=0) >= SECTORS // 2) & np.isfinite(inner)
    response = (inner - second) / (0.08 + _spread(around, known))
    return np.where(usable, np.maximum(response, 0), 0).astype(np.float32)


def _spread(values: Float, known: Bool) -> Float:
    """Standard deviation along the first axis over the known values; 0 without any."""
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, values, 0).sum(axis=0) / count
    squares = np.where(known, (values - mean) ** 2, 0).sum(axis=0)
    return np.asarray(np.sqrt(squares / count), np.float32)


def _support(vessels: Float, inside: Bool, radius: float) -> Float:
    """Vessel mass in and around the disc relative to the field's richest places, in [0, 1]."""
    mass = _mean(vessels, inside.astype(np.float32), _ring(0, 1.3 * radius))
    mass = np.where(np.isnan(mass), 0, mass)
    top = float(np.quantile(mass[inside], 0.98)) if inside.any() else 1.0
    return np.asarray(np.clip(mass / max(top, 1e-6), 0, 1), np.float32)


def _peaks(response: Float, radius: float) -> list[Disc]:
    size = 2 * round(0.5 * radius) + 1
    top = (response == ndimage.maximum_filter(response, size=size)) & (response > 0)
    rows, columns = np.nonzero(top)
    order = np.argsort(-response[rows, columns], kind="stable")[:CANDIDATES]
    return [
        Disc(float(rows[i]), float(columns[i]), radius, float(response[rows[i], columns[i]]))
        for i in order
    ]


def _ring(inner: float, outer: float, angle: float = 0.0, width: float = 2 * math.pi) -> Float:
    reach = math.ceil(outer)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    distance = np.hypot(y, x)
    turn = np.abs((np.arctan2(y, x) - angle + math.pi) % (2 * math.pi) - math.pi)
    here = (distance >= inner) & (distance <= outer) & (turn <= width / 2)
    return np.asarray(here, np.float32)


def _mean(values: Float, weight: Float, kernel: Float, needed: float = 0.3) -> Float:
    """Mean of ``values`` where ``weight`` is 1 below the kernel; NaN where too little is."""
    flipped = kernel[::-1, ::-1]
    total = fftconvolve(values * weight, flipped, mode="same")
    count = fftconvolve(weight, flipped, mode="same")
    enough = count >= needed * kernel.sum()
    return np.where(enough, total / np.maximum(count, 1e-3), np.nan).astype(np.float32)


# -- refinement ------------------------------------------------------------------------------


def _refine(image: Uint8, disc: Disc) -> Disc:
    """Move and resize the circle until the outward darkening along it is strongest."""
    patch, top, left, scale = _patch(image, disc)
    light = _edge_light(patch)
    row = (disc.row_px - top) * scale
    column = (disc.column_px - left) * scale
    starts = [(row, column, share * _FINE_RADIUS_PX, -math.inf) for share in (0.8, 1.0, 1.3, 1.6)]
    row, column, radius, edge = max((_climb(light, s) for s in starts), key=lambda fit: fit[3])
    closed = float(np.quantile(_drops(light, row, column, radius), 0.2))
    support = _vessel_share(patch, row, column, radius)
    score = math.sqrt(disc.score) * (max(closed, 0.0) + 0.05 * max(edge, 0.0)) * support
    return Disc(row / scale + top, column / scale + left, radius / scale, score)


def _vessel_share(patch: Uint8, row: float, column: float, radius: float) -> float:
    """Darkness of thin structures in and just around the circle, saturating, in (0, 1).

    A disc is never without vessels; glare is.
    """
    y, x = np.ogrid[: patch.shape[0], : patch.shape[1]]
    near = np.hypot(y - row, x - column) <= 1.3 * radius
    if not near.any():
        return 0.1
    darkness = float(_vessels(patch, 8 * _FINE_RADIUS_PX)[near].mean())
    return 0.1 + 0.9 * darkness / (darkness + 0.05)


def _climb(
    light: Float, fit: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    for step in (6.0, 3.0, 1.5):
        fit = _search(light, fit, step)
    return fit


def _edge_light(patch: Uint8) -> Float:
    """Log light in which the disc's edge outweighs the cup's: mostly red, vessels closed."""
    logs = np.log(patch[..., :2].astype(np.float32) + 8)
    side = 11
    red, green = (ndimage.grey_closing(logs[..., c], size=(side, side)) for c in (0, 1))
    light = ndimage.gaussian_filter(0.75 * red + 0.25 * green, 2.0)
    dark = patch.max(axis=2) <= _FIELD_LEVEL
    outside = ndimage.binary_dilation(ndimage.binary_opening(dark, iterations=4), iterations=8)
    return np.where(outside, np.nan, light).astype(np.float32)


def _search(
    light: Float, start: tuple[float, float, float, float], step: float
) -> tuple[float, float, float, float]:
    """Climb from ``start`` in steps of centre and radius."""
    best = (*start[:3], _edge(light, *start[:3]))
    for _ in range(25):
        row, column, radius, _ = best
        moves = [
            (row + dy * step, column + dx * step, radius + dr * step)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            for dr in (-1, 0, 1)
        ]
        moves = [m for m in moves if 0.6 * _FINE_RADIUS_PX <= m[2] <= 1.7 * _FINE_RADIUS_PX]
        tried = max(((*move, _edge(light, *move)) for move in moves), key=lambda m: m[3])
        if tried[3] <= best[3] + 1e-7:
            return best
        best = tried
    return best


def _edge(light: Float, row: float, column: float, radius: float) -> float:
    """Mean over angles of the outward darkening, each clipped so that no side decides alone."""
    return float(np.clip(_drops(light, row, column, radius), -0.1, 0.2).mean())


def _drops(light: Float, row: float, column: float, radius: float) -> Float:
    """Light just inside a circle minus that just outside, per angle.

    Angles that leave the field or the picture count as no edge.
    """
    angle = np.arange(_ANGLES) * (2 * math.pi / _ANGLES)
    width = 0.12 * _FINE_RADIUS_PX
    rings = []
    for distance in (radius - width, radius + width):
        points = [row + distance * np.sin(angle), column + distance * np.cos(angle)]
        rings.append(ndimage.map_coordinates(light, points, order=1, cval=np.nan))
    return np.asarray(np.nan_to_num(rings[0] - rings[1]), np.float32)


def _patch(image: Uint8, disc: Disc) -> tuple[Uint8, int, int, float]:
    """Cut the surroundings of a candidate and bring its radius to the fine scale."""
    reach = 4 * disc.radius_px
    top, left = max(0, int(disc.row_px - reach)), max(0, int(disc.column_px - reach))
    bottom, right = int(disc.row_px + reach) + 1, int(disc.column_px + reach) + 1
    patch, scale = _shrink(image[top:bottom, left:right], _FINE_RADIUS_PX / disc.radius_px)
    return patch, top, left, scale


def _shrink(image: Uint8, scale: float) -> tuple[Uint8, float]:
    height, width = (max(8, round(side * scale)) for side in image.shape[:2])
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return np.asarray(resized), scale


def _scaled(disc: Disc, factor: float) -> Disc:
    return Disc(
        (disc.row_px + 0.5) * factor - 0.5,
        (disc.column_px + 0.5) * factor - 0.5,
        disc.radius_px * factor,
        disc.score,
    )


def _distance(one: Disc, other: Disc) -> float:
    return math.hypot(one.row_px - other.row_px, one.column_px - other.column_px)

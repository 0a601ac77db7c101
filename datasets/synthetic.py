"""Three generated domains: disc-centred fundus ROIs with exact masks, for tests and first runs.

They are drawings, not eyes: good for showing that the machinery works and that a domain gap hurts,
of no value for ranking methods. Each domain has its own camera (colour response, gamma, contrast,
blur, noise, illumination) and its own population (disc scale, cup-to-disc ratio).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from sfuda_bench.datasets import SPLITS, DatasetSpec, register
from sfuda_bench.errors import DataError

Float = npt.NDArray[np.float32]
Uint8 = npt.NDArray[np.uint8]

VERSION = 1
SEED = 20260101
MARKER = "synthetic.json"

_CUP_LEVEL, _RIM_LEVEL, _BACKGROUND_LEVEL = 0, 128, 255
_BLOOD = (0.38, 0.72, 0.66)  # share of red, green, blue that blood absorbs
_ANGLES = 720  # entries of a table over the full circle


@dataclass(frozen=True)
class Camera:
    """How a domain's camera turns tissue into gray levels.

    Args:
        colour: (3, 3) mixing matrix, rows are output red, green, blue.
        gamma: Exponent on [0, 1]; above 1 darkens.
        contrast: Factor around ``pivot``, after gamma.
        pivot: Level that contrast leaves alone.
        brightness: Offset after contrast.
        blur: Gaussian blur, share of the image side.
        noise: Standard deviation, share of full scale.
        vignette: Darkening towards the corners.
        gradient: Largest tilt of the illumination.
    """

    colour: tuple[tuple[float, float, float], ...]
    gamma: float
    contrast: float
    pivot: float
    brightness: float
    blur: float
    noise: float
    vignette: float
    gradient: float


@dataclass(frozen=True)
class Population:
    """Mean and spread of the anatomy; radii as share of half the image side."""

    disc_radius: tuple[float, float]
    cup_to_disc: tuple[float, float]
    pigment: float
    atrophy: float


@dataclass(frozen=True)
class Profile:
    """One generated domain."""

    name: str
    title: str
    camera: Camera
    population: Population


PROFILES = (
    Profile(
        "synthetic_a",
        "Synthetic A",
        Camera(
            colour=((1.0, 0.05, 0.0), (0.02, 0.95, 0.0), (0.0, 0.08, 0.85)),
            gamma=1.0,
            contrast=1.05,
            pivot=0.45,
            brightness=0.0,
            blur=0.002,
            noise=0.012,
            vignette=0.15,
            gradient=0.15,
        ),
        Population((0.58, 0.045), (0.52, 0.09), pigment=0.5, atrophy=0.3),
    ),
    Profile(
        "synthetic_b",
        "Synthetic B",
        Camera(
            colour=((0.76, 0.08, 0.0), (0.05, 0.80, 0.05), (0.0, 0.18, 0.66)),
            gamma=1.2,
            contrast=1.0,
            pivot=0.20,
            brightness=-0.01,
            blur=0.003,
            noise=0.030,
            vignette=0.35,
            gradient=0.25,
        ),
        Population((0.51, 0.05), (0.58, 0.10), pigment=0.9, atrophy=0.5),
    ),
    Profile(
        "synthetic_c",
        "Synthetic C",
        Camera(
            colour=((0.94, 0.10, 0.04), (0.10, 0.88, 0.07), (0.08, 0.26, 0.78)),
            gamma=0.82,
            contrast=0.74,
            pivot=0.55,
            brightness=0.08,
            blur=0.006,
            noise=0.008,
            vignette=0.08,
            gradient=0.2,
        ),
        Population((0.66, 0.05), (0.44, 0.10), pigment=0.2, atrophy=0.4),
    ),
)


# -- writing ---------------------------------------------------------------------------------


def materialise(
    profile: Profile,
    root: Path,
    *,
    size: int = 256,
    counts: tuple[int, int] = (40, 20),
    seed: int = SEED,
) -> None:
    """Write ``root/<name>`` in the ROI layout, or do nothing when it is there already.

    Args:
        profile: The domain.
        root: Folder of domains, created when missing.
        size: Side of the square ROIs, px.
        counts: Number of train and test images.
        seed: Everything drawn follows from it, the domain, the split and the image's number.

    Raises:
        DataError: The folder exists and was not written by this generator.
    """
    recipe = {"version": VERSION, "size": size, "counts": list(counts), "seed": seed}
    folder = root / profile.name
    if _recipe_of(folder) == recipe:
        return
    if folder.exists() and not (folder / MARKER).is_file():
        raise DataError(
            f"{folder}: exists, but was not written by the synthetic generator (no {MARKER})",
            hint="move the folder away",
        )
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{profile.name}.") as temporary:
        fresh = Path(temporary) / profile.name
        _write_domain(profile, fresh, size, counts, seed)
        (fresh / MARKER).write_text(json.dumps(recipe, sort_keys=True) + "\n", encoding="utf-8")
        _put_in_place(fresh, folder, recipe)


def _recipe_of(folder: Path) -> object:
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _put_in_place(fresh: Path, folder: Path, recipe: object) -> None:
    """Rename the finished folder; another process may have finished the same one first."""
    if folder.exists():
        shutil.rmtree(folder)
    try:
        os.rename(fresh, folder)
    except OSError:
        if _recipe_of(folder) != recipe:
            raise


def _write_domain(
    profile: Profile, folder: Path, size: int, counts: tuple[int, int], seed: int
) -> None:
    for split, count in zip(SPLITS, counts, strict=True):
        rois = folder / split / "ROIs"
        for kind in ("image", "mask"):
            (rois / kind).mkdir(parents=True)
        write = partial(_write_roi, profile, rois, split, size=size, seed=seed)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(write, range(count)))


def _write_roi(
    profile: Profile, rois: Path, split: str, number: int, *, size: int, seed: int
) -> None:
    image, levels = render(profile, split, number, size=size, seed=seed)
    name = f"{profile.name}_{split}_{number + 1:04d}.png"
    Image.fromarray(image).save(rois / "image" / name, compress_level=1)
    Image.fromarray(levels).save(rois / "mask" / name, compress_level=1)


def render(
    profile: Profile, split: str, number: int, *, size: int, seed: int = SEED
) -> tuple[Uint8, Uint8]:
    """Draw one eye.

    Args:
        profile: The domain.
        split: ``"train"`` or ``"test"``.
        number: Which eye of the split, from 0.
        size: Side, px.
        seed: See :func:`materialise`.

    Returns:
        The image, (size, size, 3) uint8 RGB, and the mask's gray levels, (size, size) uint8:
        0 cup, 128 rim, 255 background.
    """
    domain = PROFILES.index(profile) if profile in PROFILES else len(PROFILES)
    rng = np.random.default_rng([seed, domain, SPLITS.index(split), number])
    eye = _draw_eye(rng, profile.population)
    disc, cup = _Outline.around(eye.disc, size), _Outline.around(eye.cup, size)
    tissue = _tissue(rng, eye, disc, cup, size)
    image = _expose(rng, tissue, profile.camera, size)
    in_disc = disc.inside > 0
    levels = np.full((size, size), _BACKGROUND_LEVEL, dtype=np.uint8)
    levels[in_disc] = _RIM_LEVEL
    levels[in_disc & (cup.inside > 0)] = _CUP_LEVEL
    return image, levels


# -- anatomy ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Shape:
    """A closed outline: centre (x, y) and radius per angle, in half image sides."""

    centre: tuple[float, float]
    radius: Float


@dataclass(frozen=True)
class _Eye:
    disc: _Shape
    cup: _Shape
    side: float  # +1: temporal is right, -1: left
    pigment: float
    atrophy: float


@dataclass(frozen=True)
class _Outline:
    """An outline on the pixel grid: signed distance along the ray (positive inside) and angle."""

    inside: Float
    angle: npt.NDArray[np.int32]

    @classmethod
    def around(cls, shape: _Shape, size: int) -> _Outline:
        axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
        x = (axis - shape.centre[0])[None, :]
        y = (axis - shape.centre[1])[:, None]
        turn = np.arctan2(y, x) * np.float32(_ANGLES / (2.0 * math.pi))
        angle = turn.astype(np.int32) % _ANGLES
        return cls((shape.radius[angle] - np.hypot(x, y)).astype(np.float32), angle)

    def alpha(self, softness: float) -> Float:
        """Return 0 outside to 1 inside, with a border about ``softness`` wide."""
        t = np.clip(self.inside * np.float32(0.5 / softness) + np.float32(0.5), 0, 1)
        return cast(Float, t * t * (3 - 2 * t))


def _draw_eye(rng: np.random.Generator, population: Population) -> _Eye:
    side = 1.0 if rng.random() < 0.5 else -1.0
    radius = float(np.clip(rng.normal(*population.disc_radius), 0.38, 0.8))
    ratio = float(np.clip(rng.normal(*population.cup_to_disc), 0.22, 0.82))
    centre = (float(rng.normal(0, 0.03)), float(rng.normal(0, 0.03)))
    disc = _Shape(centre, _wavy_radius(rng, radius, oval=rng.normal(0.05, 0.03), waves=0.012))
    room = radius * (1.0 - ratio)
    shift = (side * room * rng.uniform(-0.05, 0.35), room * rng.normal(0, 0.12))
    cup_centre = (centre[0] + float(shift[0]), centre[1] + float(shift[1]))
    wanted = _wavy_radius(rng, radius * ratio, oval=rng.normal(0.07, 0.05), waves=0.03)
    cup = _Shape(cup_centre, _kept_inside(wanted, cup_centre, disc))
    return _Eye(
        disc,
        cup,
        side,
        pigment=float(np.clip(rng.normal(population.pigment, 0.2), 0.0, 1.2)),
        atrophy=float(rng.random() < population.atrophy) * float(rng.uniform(0.3, 1.0)),
    )


def _wavy_radius(rng: np.random.Generator, radius: float, *, oval: float, waves: float) -> Float:
    """Return a radius per angle: an upright oval with a few random harmonics."""
    angle = np.arange(_ANGLES) * (2.0 * math.pi / _ANGLES)
    shape = 1.0 - oval * np.cos(2.0 * (angle - rng.normal(0, 0.25)))
    for k in range(3, 8):
        shape += rng.normal(0, waves * 3 / k) * np.cos(k * angle + rng.uniform(0, 2 * math.pi))
    return cast(Float, (radius * shape).astype(np.float32))


def _kept_inside(radius: Float, centre: tuple[float, float], disc: _Shape) -> Float:
    """Shrink a cup's radii where they would come nearer than 6 % to the disc's outline."""
    angle = np.arange(_ANGLES) * (2.0 * math.pi / _ANGLES)
    dx, dy = centre[0] - disc.centre[0], centre[1] - disc.centre[1]
    x, y = dx + radius * np.cos(angle), dy + radius * np.sin(angle)
    turn = (np.arctan2(y, x) * (_ANGLES / (2.0 * math.pi))).astype(np.int32) % _ANGLES
    excess = np.hypot(x, y) / (0.94 * disc.radius[turn])
    return cast(Float, (radius / np.maximum(excess, 1.0)).astype(np.float32))


# -- tissue ----------------------------------------------------------------------------------


def _tissue(rng: np.random.Generator, eye: _Eye, disc: _Outline, cup: _Outline, size: int) -> Float:
    """Return the eye's reflectance as colour planes, (3, size, size) in about [0, 1]."""
    colour = _background(rng, eye, disc, size)
    rim_texture = 1.0 + 0.05 * _noise(rng, 24, size) + 0.025 * _fibres(rng, disc)
    rim = _varied(rng, (0.86, 0.50, 0.26), 0.06)
    cup_colour = _varied(rng, (0.97, 0.80, 0.50), 0.05)
    _blend(colour, disc.alpha(float(rng.uniform(0.04, 0.10))), rim * rim_texture)
    cup_texture = 1.0 + 0.04 * _noise(rng, 40, size) + 0.05 * _noise(rng, 5, size)
    cup_alpha = cup.alpha(float(rng.uniform(0.08, 0.18))) * np.float32(rng.uniform(0.75, 1.0))
    _blend(colour, cup_alpha, cup_colour * cup_texture)
    absorbed = _vessels(rng, eye, size) * (1.0 - 0.25 * cup_alpha)
    colour *= 1.0 - absorbed * np.array(_BLOOD, dtype=np.float32)[:, None, None]
    return colour


def _background(rng: np.random.Generator, eye: _Eye, disc: _Outline, size: int) -> Float:
    """Return retina and choroid: mottle, choroidal streaks, fibres, an atrophy crescent."""
    mottle = 0.5 * _noise(rng, 5, size) + 0.3 * _noise(rng, 14, size) + 0.2 * _noise(rng, 48, size)
    streaks = 1.0 - np.abs(_noise(rng, 11, size)) - np.abs(0.6 * _noise(rng, 23, size))
    shade = 1.0 + 0.10 * mottle + (0.03 + 0.05 * eye.pigment) * streaks
    shade += 0.03 * _fibres(rng, disc) * np.exp(np.minimum(disc.inside, 0.0) * 2.5)
    base = _varied(rng, (0.66, 0.30, 0.12), 0.06) * np.float32(1.0 - 0.22 * eye.pigment)
    colour = cast(Float, (base * shade).astype(np.float32))
    if eye.atrophy > 0:
        facing = np.cos((np.arange(_ANGLES) * (2 * math.pi / _ANGLES)) - (eye.side < 0) * math.pi)
        width = 0.04 + 0.10 * eye.atrophy * np.clip(facing, 0, 1).astype(np.float32) ** 2
        halo = _Outline(disc.inside + width[disc.angle], disc.angle).alpha(0.05)
        pale = _varied(rng, (0.80, 0.52, 0.30), 0.05) * (1.0 + 0.10 * mottle)
        _blend(colour, halo * np.float32(0.25 + 0.30 * eye.atrophy), pale)
    return colour


def _blend(under: Float, alpha: Float, over: Float) -> None:
    under += alpha * (over - under)


def _varied(rng: np.random.Generator, colour: tuple[float, ...], spread: float) -> Float:
    values = np.array(colour) * (1.0 + rng.normal(0, spread, 3) + rng.normal(0, spread))
    return values.astype(np.float32)[:, None, None]


def _noise(rng: np.random.Generator, cells: int, size: int) -> Float:
    """Return smooth noise with about ``cells`` bumps per side, standard deviation near 1."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _fibres(rng: np.random.Generator, outline: _Outline) -> Float:
    """Return the radial streaks of the nerve-fibre layer."""
    table = rng.standard_normal(_ANGLES // 4).astype(np.float32)
    table = np.repeat(table, 4) + 0.5 * np.repeat(np.roll(table, 7), 4)
    kernel = np.hanning(13).astype(np.float32)
    smooth = np.convolve(np.tile(table, 3), kernel / np.linalg.norm(kernel), mode="same")
    return cast(Float, smooth[_ANGLES : 2 * _ANGLES].astype(np.float32)[outline.angle] * 0.5)


# -- vessels ---------------------------------------------------------------------------------


@dataclass
class _Vessel:
    """The growing tip of one vessel, in half image sides and radians."""

    x: float
    y: float
    heading: float
    width: float
    bend: float
    depth: int
    vein: bool


def _vessels(rng: np.random.Generator, eye: _Eye, size: int) -> Float:
    """Return absorption by blood, 0 to 1, (size, size)."""
    scale = 2  # drawn at twice the size, so that lines have smooth borders
    canvas = Image.new("L", (size * scale, size * scale), 0)
    draw = ImageDraw.Draw(canvas)
    trunks = sorted(_trunks(rng, eye), key=lambda vessel: vessel.width)
    for trunk in trunks:
        _grow(rng, draw, trunk, size * scale)
    small = canvas.reduce(scale).filter(ImageFilter.GaussianBlur(size * 0.0015))
    return np.asarray(small, dtype=np.float32) / np.float32(255.0)


def _trunks(rng: np.random.Generator, eye: _Eye) -> Iterator[_Vessel]:
    """Yield an artery and a vein for each arcade, and thin vessels that cross the rim."""
    radius = float(eye.disc.radius.mean())
    x = eye.cup.centre[0] - eye.side * 0.12 * radius
    y = eye.cup.centre[1]
    for up in (-1.0, 1.0):
        for toward in (-1.0, 1.0):
            for vein in (False, True):
                if toward == -eye.side and rng.random() < 0.35:
                    continue  # the nasal arcades are often a single vessel
                heading = up * math.pi / 2 - up * toward * rng.normal(0.30, 0.22)
                width = radius * rng.uniform(0.07, 0.10) * (1.15 if vein else 0.85)
                start = (x + rng.normal(0, 0.05 * radius), y + up * rng.uniform(0, 0.12) * radius)
                bend = -up * toward * rng.uniform(0.2, 1.1)
                yield _Vessel(start[0], start[1], heading, width, bend, 0, vein)
    for _ in range(int(rng.integers(4, 9))):
        heading = rng.uniform(0, 2 * math.pi)
        start = (x + 0.3 * radius * math.cos(heading), y + 0.3 * radius * math.sin(heading))
        width = radius * rng.uniform(0.02, 0.035)
        yield _Vessel(start[0], start[1], heading, width, rng.normal(0, 0.5), 2, rng.random() < 0.5)


def _grow(rng: np.random.Generator, draw: ImageDraw.ImageDraw, vessel: _Vessel, side: int) -> None:
    """Draw a vessel outwards until it leaves the image, branching on the way."""
    step = 0.05
    points = [(vessel.x, vessel.y)]
    branches = []
    while max(abs(vessel.x), abs(vessel.y)) < 1.1 and len(points) < 60:
        vessel.heading += step * vessel.bend + rng.normal(0, 0.09)
        vessel.x += step * math.cos(vessel.heading)
        vessel.y += step * math.sin(vessel.heading)
        points.append((vessel.x, vessel.y))
        if vessel.depth < 3 and len(points) > 4 and rng.random() < 0.075:
            turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.4, 0.9)
            width = vessel.width * rng.uniform(0.55, 0.8)
            branches.append(
                _Vessel(
                    vessel.x,
                    vessel.y,
                    vessel.heading + turn,
                    width,
                    -turn * rng.uniform(0.2, 0.9),
                    vessel.depth + 1,
                    vessel.vein,
                )
            )
            vessel.width *= 0.9
            vessel.heading -= 0.2 * turn
    for branch in branches:
        _grow(rng, draw, branch, side)
    line = [((x + 1) * side / 2, (y + 1) * side / 2) for x, y in points]
    width = max(vessel.width * side / 2, 1.2)
    dark = 235 if vessel.vein else 185
    draw.line(line, fill=dark, width=round(width), joint="curve")
    if vessel.depth == 0 and width > 6:  # the light reflex along the middle of a large vessel
        draw.line(line, fill=int(dark * 0.72), width=round(width * 0.28), joint="curve")


# -- camera ----------------------------------------------------------------------------------


def _expose(rng: np.random.Generator, tissue: Float, camera: Camera, size: int) -> Uint8:
    """Return what the camera records of the tissue, (size, size, 3) uint8."""
    lit = tissue * _illumination(rng, camera, size)
    mixed = np.tensordot(np.array(camera.colour, dtype=np.float32), lit, axes=1)
    mixed = np.clip(mixed, 0.0, 1.0)
    gamma = camera.gamma * float(rng.normal(1.0, 0.04))
    level = camera.pivot + camera.contrast * (mixed ** np.float32(gamma) - camera.pivot)
    level += camera.brightness + float(rng.normal(0, 0.015))
    planes = (np.clip(level, 0, 1) * np.float32(255.0)).astype(np.uint8)
    sharp = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
    blurred = sharp.filter(ImageFilter.GaussianBlur(camera.blur * size))
    grain = rng.standard_normal((size, size, 3), dtype=np.float32)
    grain *= np.float32(camera.noise * 255.0)
    grain += np.asarray(blurred)
    return cast(Uint8, np.clip(grain + np.float32(0.5), 0, 255).astype(np.uint8))


def _illumination(rng: np.random.Generator, camera: Camera, size: int) -> Float:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    direction, tilt = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 1.0) * camera.gradient
    across = tilt * (math.cos(direction) * axis[None, :] + math.sin(direction) * axis[:, None])
    corner = camera.vignette * 0.5 * (axis[None, :] ** 2 + axis[:, None] ** 2)
    return (1.0 + across - corner).astype(np.float32)


# -- contact sheet ---------------------------------------------------------------------------


def contact_sheet(root: Path, path: Path, *, tile: int = 150, columns: int = 6) -> None:
    """Write a picture of the generated domains below ``root``, labelled synthetic.

    One row per domain: test eyes, the last two again with the outlines of disc and cup.

    Args:
        root: Folder of domains.
        path: PNG to write.
        tile: Side of one eye, px.
        columns: Eyes per row.
    """
    label, gap = 22, 4
    width = columns * (tile + gap) + gap
    sheet = Image.new("RGB", (width, len(PROFILES) * (tile + label) + label), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for row, profile in enumerate(PROFILES):
        top = row * (tile + label)
        draw.text((gap, top + 3), f"{profile.title} (synthetic, not real eyes)", "black", font)
        images = sorted((root / profile.name / "test" / "ROIs" / "image").glob("*.png"))
        for column, source in enumerate(images[:columns]):
            outlined = column >= columns - 2
            eye = _tile(source, tile, outlined=outlined)
            sheet.paste(eye, (gap + column * (tile + gap), top + label))
    note = "Drawn by the built-in generator. Last two columns: exact outlines of disc and cup."
    draw.text((gap, len(PROFILES) * (tile + label) + 3), note, "black", font)
    sheet.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def _tile(source: Path, tile: int, *, outlined: bool) -> Image.Image:
    eye = Image.open(source).resize((tile, tile), Image.Resampling.LANCZOS)
    if outlined:
        mask = source.parent.parent / "mask" / source.name
        levels = np.asarray(Image.open(mask).resize((tile, tile), Image.Resampling.NEAREST))
        pixels = np.array(eye)
        for limit, colour in ((200, (0, 255, 255)), (50, (0, 255, 0))):
            inside = levels <= limit
            edge = inside & ~(
                np.roll(inside, 1, 0)
                & np.roll(inside, -1, 0)
                & np.roll(inside, 1, 1)
                & np.roll(inside, -1, 1)
            )
            pixels[edge] = colour
        eye = Image.fromarray(pixels)
    return eye


for _profile in PROFILES:
    register(
        DatasetSpec(
            name=_profile.name,
            title=_profile.title,
            aliases=(_profile.name.replace("_", "-"),),
            synthetic=True,
            roi_center="gt",
            description="Generated disc-centred ROIs with exact masks; drawings, not eyes.",
            licence="Generated by this project; free to use.",
            homepage="datasets/synthetic.py",
            citation="None: a generated data set.",
            materialise=partial(materialise, _profile),
        )
    )

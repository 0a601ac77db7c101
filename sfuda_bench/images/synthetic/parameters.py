"""What a synthetic world is made of, read from its parameter file, and what its knobs turn.

A knob changes a domain's parameters and never the random numbers behind its eyes: a derived domain
shows the same eyes, and at severity 0 of every knob it *is* the base domain.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfuda_bench.errors import UsageError

Matrix = tuple[tuple[float, float, float], ...]
_HINT = "datasets/synthetic.toml shows every key"


@dataclass(frozen=True)
class Camera:
    """How a domain's camera turns tissue into gray levels.

    Attributes:
        colour: (3, 3) mixing matrix, rows are output red, green, blue.
        gamma: Exponent on [0, 1]; above 1 darkens.
        blur: Standard deviation of the Gaussian blur, share of the image side.
        noise: Standard deviation of the grain, share of full scale.
        vignette: Darkening towards the corners.
        gradient: Largest tilt of the illumination.
        aperture: Share of eyes beside which the edge of the field of view is seen.
        jpeg: Severity of the compression, 0 for none.
    """

    colour: Matrix
    gamma: float
    blur: float
    noise: float
    vignette: float
    gradient: float
    aperture: float
    jpeg: float = 0.0


@dataclass(frozen=True)
class Population:
    """Mean and spread of the anatomy; lengths as share of half the image side.

    Attributes:
        disc_radius: Mean and standard deviation.
        cup_to_disc: Mean and standard deviation of the ratio of radii.
        pigment: Mean pigment of the background, 0 to 1.
        atrophy: Share of eyes with a crescent of atrophy beside the disc.
        atrophy_added: Atrophy that every eye has besides, 0 to 1.
        vessels: Width of the vessels relative to what the disc's size suggests.
        vessels_added: Further trunks, of full width for each whole number.
        scale: Magnification of disc, cup and vessels.
    """

    disc_radius: tuple[float, float]
    cup_to_disc: tuple[float, float]
    pigment: float
    atrophy: float
    atrophy_added: float = 0.0
    vessels: float = 1.0
    vessels_added: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Annotation:
    """How the annotator draws, as factors on the true radii of disc and cup."""

    disc: float = 1.0
    cup: float = 1.0


@dataclass(frozen=True)
class Profile:
    """One generated domain.

    Attributes:
        name: Name of the domain.
        title: Name in tables and figures.
        number: Which stream of random numbers its eyes come from.
        camera: Its camera.
        population: Its eyes.
        annotation: Its masks.
    """

    name: str
    title: str
    number: int
    camera: Camera
    population: Population
    annotation: Annotation = Annotation()


@dataclass(frozen=True)
class Extremes:
    """Where each knob stands at severity 1; in between its parameters change evenly.

    Attributes:
        vignette: Knob ``illumination``: added darkening of the corners.
        gradient: Knob ``illumination``: added tilt.
        colour: Knob ``colour``: (3, 3) matrix applied after the camera's own.
        gamma: Knob ``gamma``: factor on the exponent.
        blur: Knob ``blur``: added blur (variances add), share of the image side.
        noise: Knob ``noise``: added grain (variances add), share of full scale.
        jpeg: Knob ``jpeg``: Pillow's quality at severity 1; just above 0 it is 90, in between it
            falls by equal factors.
        vessel_width: Knob ``vessels``: factor on the width.
        vessel_count: Knob ``vessels``: added trunks.
        atrophy: Knob ``atrophy``: atrophy added to every eye, 0 to 1.
        disc_scale: Knob ``disc_scale``: factor on disc, cup and vessels; the ratio stays.
        cup_to_disc: Knob ``cup``: added to the mean cup-to-disc ratio.
        annotated_disc: Knob ``annotation``: factor on the disc as annotated.
        annotated_cup: Knob ``annotation``: factor on the cup as annotated.
    """

    vignette: float
    gradient: float
    colour: Matrix
    gamma: float
    blur: float
    noise: float
    jpeg: int
    vessel_width: float
    vessel_count: float
    atrophy: float
    disc_scale: float
    cup_to_disc: float
    annotated_disc: float
    annotated_cup: float


@dataclass(frozen=True)
class World:
    """All domains of a parameter file, and the ends of its knobs."""

    seed: int
    profiles: tuple[Profile, ...]
    extremes: Extremes


# -- knobs -----------------------------------------------------------------------------------


def _illumination(base: Profile, ends: Extremes, s: float) -> Profile:
    return _camera(
        base,
        vignette=base.camera.vignette + s * ends.vignette,
        gradient=base.camera.gradient + s * ends.gradient,
    )


def _colour(base: Profile, ends: Extremes, s: float) -> Profile:
    own = base.camera.colour
    turned = [
        [sum(row[k] * own[k][column] for k in range(3)) for column in range(3)]
        for row in ends.colour
    ]
    mixed = tuple(
        tuple((1 - s) * a + s * b for a, b in zip(old, new, strict=True))
        for old, new in zip(own, turned, strict=True)
    )
    return _camera(base, colour=mixed)


def _gamma(base: Profile, ends: Extremes, s: float) -> Profile:
    return _camera(base, gamma=base.camera.gamma * (1 + s * (ends.gamma - 1)))


def _blur(base: Profile, ends: Extremes, s: float) -> Profile:
    return _camera(base, blur=(base.camera.blur**2 + (s * ends.blur) ** 2) ** 0.5)


def _noise(base: Profile, ends: Extremes, s: float) -> Profile:
    return _camera(base, noise=(base.camera.noise**2 + (s * ends.noise) ** 2) ** 0.5)


def _jpeg(base: Profile, ends: Extremes, s: float) -> Profile:
    return _camera(base, jpeg=s)


def _vessels(base: Profile, ends: Extremes, s: float) -> Profile:
    eyes = base.population
    return _population(
        base,
        vessels=eyes.vessels * (1 + s * (ends.vessel_width - 1)),
        vessels_added=eyes.vessels_added + s * ends.vessel_count,
    )


def _atrophy(base: Profile, ends: Extremes, s: float) -> Profile:
    return _population(base, atrophy_added=base.population.atrophy_added + s * ends.atrophy)


def _disc_scale(base: Profile, ends: Extremes, s: float) -> Profile:
    return _population(base, scale=base.population.scale * (1 + s * (ends.disc_scale - 1)))


def _cup(base: Profile, ends: Extremes, s: float) -> Profile:
    mean, spread = base.population.cup_to_disc
    return _population(base, cup_to_disc=(mean + s * ends.cup_to_disc, spread))


def _annotation(base: Profile, ends: Extremes, s: float) -> Profile:
    style = base.annotation
    disc = style.disc * (1 + s * (ends.annotated_disc - 1))
    cup = style.cup * (1 + s * (ends.annotated_cup - 1))
    return replace(base, annotation=Annotation(disc, cup))


def _camera(base: Profile, **changes: Any) -> Profile:
    return replace(base, camera=replace(base.camera, **changes))


def _population(base: Profile, **changes: Any) -> Profile:
    return replace(base, population=replace(base.population, **changes))


KNOBS: Mapping[str, Callable[[Profile, Extremes, float], Profile]] = {
    "illumination": _illumination,
    "colour": _colour,
    "gamma": _gamma,
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "vessels": _vessels,
    "atrophy": _atrophy,
    "disc_scale": _disc_scale,
    "cup": _cup,
    "annotation": _annotation,
}
"""Every knob, and how it changes a domain's parameters."""

APPEARANCE = ("illumination", "colour", "gamma", "blur", "noise", "jpeg", "vessels", "atrophy")
"""Knobs that leave every mask as it is; ``annotation`` alone leaves every image as it is."""


def turned(profile: Profile, extremes: Extremes, severity: Mapping[str, float]) -> Profile:
    """Return a domain with some knobs turned.

    Args:
        profile: The base domain.
        extremes: Where the knobs end.
        severity: Knob to severity in [0, 1]; a knob that is not named stays at 0.

    Raises:
        UsageError: An unknown knob, or a severity outside [0, 1].
    """
    for knob, value in severity.items():
        if knob not in KNOBS:
            raise UsageError(f"no knob '{knob}'", hint=f"knobs: {', '.join(KNOBS)}")
        if not 0 <= value <= 1:
            raise UsageError(f"knob {knob}={value}: expected a severity from 0 to 1")
    for knob, turn in KNOBS.items():  # in one order, whatever the order they are named in
        if severity.get(knob, 0.0) > 0:
            profile = turn(profile, extremes, severity[knob])
    return profile


# -- the parameter file ----------------------------------------------------------------------


def read_world(path: Path) -> World:
    """Read a parameter file.

    Args:
        path: TOML; see the shipped ``datasets/synthetic.toml``, in which every key is explained.

    Raises:
        UsageError: The file is missing or malformed, or a key is unknown, missing or no number.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read: {error}", hint=_HINT) from error
    domains = tables.get("domains")
    if not isinstance(domains, dict) or not domains:
        raise UsageError(f"{path}: no [domains.NAME] table", hint=_HINT)
    seed = tables.get("seed")
    if not isinstance(seed, int):
        raise UsageError(f"{path}: seed: expected a whole number", hint=_HINT)
    profiles = tuple(
        _profile(path, name, number, table) for number, (name, table) in enumerate(domains.items())
    )
    return World(seed, profiles, _build(Extremes, path, "extremes", tables.get("extremes")))


def _profile(path: Path, name: str, number: int, table: Any) -> Profile:
    at = f"domains.{name}"
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {at}: expected a table", hint=_HINT)
    camera = _build(Camera, path, f"{at}.camera", table.get("camera"))
    population = _build(Population, path, f"{at}.population", table.get("population"))
    annotation = _build(Annotation, path, f"{at}.annotation", table.get("annotation", {}))
    title = str(table.get("title", name))
    return Profile(name, title, number, camera, population, annotation)


def _build(kind: type[Any], path: Path, at: str, table: Any) -> Any:
    """Return a dataclass of numbers from a table, with lists as tuples."""
    if not isinstance(table, dict):
        raise UsageError(f"{path}: [{at}] is missing", hint=_HINT)
    fields = dataclasses.fields(kind)
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if unknown := sorted(table.keys() - {field.name for field in fields}):
        raise UsageError(f"{path}: {at}.{unknown[0]}: no such key", hint=_HINT)
    if lacking := sorted(needed - table.keys()):
        raise UsageError(f"{path}: {at}.{lacking[0]} is missing", hint=_HINT)
    for key, value in table.items():
        pair = {"disc_radius": 2, "cup_to_disc": 2}.get(key) if kind is Population else None
        shape = (3, 3) if key == "colour" else (pair,) if pair else ()
        if _shape(value) != shape:
            wanted = "a number" if not shape else f"{' x '.join(map(str, shape))} numbers"
            raise UsageError(f"{path}: {at}.{key}: expected {wanted}", hint=_HINT)
    return kind(**{key: _tuples(value) for key, value in table.items()})


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Return the shape of nested lists of numbers, or ``None`` for anything else."""
    if isinstance(value, list):
        inner = {_shape(item) for item in value}
        first = inner.pop() if len(inner) == 1 else None
        return None if first is None else (len(value), *first)
    return () if isinstance(value, int | float) and not isinstance(value, bool) else None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

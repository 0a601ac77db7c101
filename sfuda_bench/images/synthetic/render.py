"""One eye as a picture with its exact mask, and a whole domain on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfuda_bench.errors import DataError
from sfuda_bench.images.synthetic.anatomy import Outline, Shape, Streams, annotated, draw_eye
from sfuda_bench.images.synthetic.camera import expose
from sfuda_bench.images.synthetic.parameters import Profile, World, turned
from sfuda_bench.images.synthetic.png import png_bytes
from sfuda_bench.images.synthetic.tissue import tissue

Uint8 = npt.NDArray[np.uint8]

VERSION = 2
"""Raise it when a change to the drawing code changes bytes."""
MARKER = "synthetic.json"
TRUTH = "vcdr.json"
_SPLITS = ("train", "test")
_CUP_LEVEL, _RIM_LEVEL, _BACKGROUND_LEVEL = 0, 128, 255
_COARSEST = 128  # px of the grid that small pictures are drawn on


@dataclass(frozen=True)
class Drawing:
    """One eye.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        levels: (size, size) uint8, gray levels of the mask: 0 cup, 128 rim, 255 background.
        vcdr: Vertical cup-to-disc ratio of the annotated outlines, before they meet pixels.
    """

    image: Uint8
    levels: Uint8
    vcdr: float


def render(world: World, profile: Profile, split: str, number: int, *, size: int) -> Drawing:
    """Draw one eye.

    The picture is drawn on a grid of half its side and enlarged before its grain is added: crops
    of real photographs hold no finer detail. The mask is drawn at full size.

    Args:
        world: Seed of the eyes, and where the knobs end.
        profile: The domain, with its knobs turned.
        split: ``"train"`` or ``"test"``.
        number: Which eye of the split, from 0.
        size: Side, px.
    """
    streams = Streams((world.seed, profile.number, _SPLITS.index(split), number))
    eye = draw_eye(streams, profile.population)
    planes = tissue(streams, eye, profile.population, max(size // 2, _COARSEST))
    image = expose(streams, planes, profile.camera, size, world.extremes.jpeg)
    disc, cup = annotated(eye, profile.annotation)
    return Drawing(image, _levels(disc, cup, size), cup.height / disc.height)


def _levels(disc: Shape, cup: Shape, size: int) -> Uint8:
    in_disc = Outline.around(disc, size).inside > 0
    in_cup = Outline.around(cup, size).inside > 0
    levels = np.full((size, size), _BACKGROUND_LEVEL, dtype=np.uint8)
    levels[in_disc] = _RIM_LEVEL
    levels[in_disc & in_cup] = _CUP_LEVEL
    return levels


def materialise(
    world: World,
    profile: Profile,
    root: Path,
    *,
    size: int = 256,
    counts: tuple[int, int] = (40, 20),
    severity: Mapping[str, float] | None = None,
    name: str | None = None,
) -> None:
    """Write a domain in the ROI layout, or do nothing when it is there already.

    Besides the images and masks there are ``synthetic.json``, what was drawn, and ``vcdr.json``,
    the exact ratio of every eye.

    Args:
        world: Seed of the eyes, and where the knobs end.
        profile: The base domain.
        root: Folder of domains, created when missing.
        size: Side of the square ROIs, px.
        counts: Number of train and test images.
        severity: Knobs to turn.
        name: Name of the folder, if it is not the base domain's.

    Raises:
        DataError: The folder exists and was not written by this generator.
        UsageError: An unknown knob, or a severity outside [0, 1].
    """
    name = name or profile.name
    profile = turned(profile, world.extremes, severity or {})
    recipe = _recipe(world, profile, size, counts)
    folder = root / name
    if _recipe_of(folder) == recipe:
        return
    if folder.exists() and not (folder / MARKER).is_file():
        raise DataError(
            f"{folder}: exists, but was not written by the synthetic generator (no {MARKER})",
            hint="move the folder away",
        )
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}.") as temporary:
        fresh = Path(temporary) / name
        _write_domain(world, profile, fresh, size, counts)
        (fresh / MARKER).write_text(json.dumps(recipe, sort_keys=True) + "\n", encoding="utf-8")
        _put_in_place(fresh, folder, recipe)


def _recipe(world: World, profile: Profile, size: int, counts: tuple[int, int]) -> object:
    """Return what the bytes of a domain follow from."""
    parts = {"seed": world.seed, "jpeg": world.extremes.jpeg, **asdict(profile)}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"version": VERSION, "size": size, "counts": list(counts), "parameters": digest}


def _recipe_of(folder: Path) -> object:
    try:
        return json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _put_in_place(fresh: Path, folder: Path, recipe: object) -> None:
    """Rename the finished folder; another process may have finished the same one first.

    An older one is moved away before it is removed: half of it must never pass for the whole.
    """
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, fresh.with_name(f"{fresh.name}.old"))
    try:
        os.rename(fresh, folder)
    except OSError:
        if _recipe_of(folder) != recipe:
            raise


def _write_domain(
    world: World, profile: Profile, folder: Path, size: int, counts: tuple[int, int]
) -> None:
    truth = {}
    for split, count in zip(_SPLITS, counts, strict=True):
        rois = folder / split / "ROIs"
        for kind in ("image", "mask"):
            (rois / kind).mkdir(parents=True)
        write = partial(_write_roi, world, profile, rois, split, size=size)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            truth[split] = dict(pool.map(write, range(count)))
    text = json.dumps(truth, indent=1, sort_keys=True) + "\n"
    (folder / TRUTH).write_text(text, encoding="utf-8")


def _write_roi(
    world: World, profile: Profile, rois: Path, split: str, number: int, *, size: int
) -> tuple[str, float]:
    drawing = render(world, profile, split, number, size=size)
    stem = f"{profile.name}_{split}_{number + 1:04d}"
    (rois / "image" / f"{stem}.png").write_bytes(png_bytes(drawing.image))
    Image.fromarray(drawing.levels).save(rois / "mask" / f"{stem}.png", compress_level=1)
    return stem, round(drawing.vcdr, 6)

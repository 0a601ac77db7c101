"""Masks and the vertical cup-to-disc ratio of one's own images, by a model with a card."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from sfuda_bench.errors import UsageError
from sfuda_bench.images.decode import Uint8, central_window, resize_image
from sfuda_bench.images.resident import ResidentImages
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.keys import derive_seed, file_digest
from sfuda_bench.running.own.images import (
    Facts,
    ImageFolder,
    check_stems,
    each,
    find_images,
    look_at,
    notes_on,
    read_picture,
)
from sfuda_bench.running.own.models import (
    OwnModel,
    find_model,
    is_kind,
    load_own,
    network_of,
    run_like,
)
from sfuda_bench.running.own.window import Window, doubt, window_of
from sfuda_bench.running.predict import inference_batch, predict
from sfuda_bench.running.runtime import resolve_device, resolve_precision
from sfuda_bench.running.store import write_bytes, write_json
from sfuda_bench.scoring.codes import STRUCTURES, upsample
from sfuda_bench.scoring.postprocess import PostProcessing, postprocess
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio, vertical_extent_px
from sfuda_bench.settings import Inference

PREDICTIONS = "predictions of an own model"
MARKER = "predictions.json"
"""Says what the files in a folder of predictions come from."""
TABLE = "vcdr.csv"
COLUMNS = (
    "image",
    "vcdr",
    "cup_area_share",
    "disc_area_share",
    "disc_diameter_px",
    "warnings",
)
"""Of :data:`TABLE`: the file's name, the ratio, shares of the whole image's area, the vertical
diameter of the disc in pixels of the image, and what makes the row doubtful."""
CUP_LEVEL, RIM_LEVEL, BACKGROUND_LEVEL = 0, 128, 255
DEFAULT_THRESHOLD = 0.5
_POSTPROCESSING_GRID = 512  # its lengths are pixels of the grid on which they are published
_TINY_DISC_SHARE = 0.02

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """One ``predict`` command.

    Attributes:
        model: File of weights, or the folder of a stored model.
        images: Folder of images.
        out: Folder for masks and :data:`TABLE`.
        threshold: A pixel belongs to a structure where prob > threshold; default 0.5.
        profile: A scoring profile whose thresholds and post-processing are used instead.
        probabilities: Write the codes at the model's size as well.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Default: what the card says, else ``float32``.
        network: Network of a file without a card.
        encoder: Its encoder.
        image_size: Side of the input, px, where no card says it.
        roi_crop_px: Side of the central window that is predicted, px, 0 for whole images;
            default: what the model was given, as far as that is known, else 0.
        card: Card of an adapted model that says all this instead, so that the source model is run
            as the adapted one is.
        plugins: Python files that register further plug-ins.
    """

    model: Path
    images: Path
    out: Path
    threshold: float | None = None
    profile: str | None = None
    probabilities: bool = False
    device: str = "auto"
    precision: str | None = None
    network: str | None = None
    encoder: str | None = None
    image_size: int | None = None
    roi_crop_px: int | None = None
    card: Path | None = None
    plugins: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Rule:
    """What a probability counts as: a threshold per structure, and what is done afterwards."""

    cup: float
    disc: float
    postprocessing: PostProcessing = "none"

    def masks(self, codes: Uint8, size: tuple[int, int]) -> BoolArray:
        """Return the masks (2, height, width) bool of codes (2, S, S), at ``size``."""
        plain = self.postprocessing == "none"
        grid = size if plain else (_POSTPROCESSING_GRID, _POSTPROCESSING_GRID)
        pair = zip(codes, (self.cup, self.disc), strict=True)
        hard = np.stack([upsample(code, grid) > threshold for code, threshold in pair])
        return hard if plain else _nearest(postprocess(hard, self.postprocessing), size)


@dataclass(frozen=True)
class Runner:
    """A loaded network and how it is run.

    Attributes:
        network: In eval mode, on its device.
        image_size: Side of the input, px.
        window: The central window that is predicted, and how it is known.
        inference: Batch norm and dropout.
        precision: ``float32`` or ``bfloat16``.
        device: Where it runs.
        seed: What draws of dropout follow from.
    """

    network: nn.Module
    image_size: int
    window: Window
    inference: Inference
    precision: str
    device: torch.device
    seed: int

    def codes(self, windows: Sequence[Uint8]) -> Uint8:
        """Return the codes (N, 2, S, S) of resized windows (S, S, 3)."""
        images = ResidentImages(np.stack(windows), self.device).images
        return predict(self.network, images, self.inference, self.precision, self.seed)

    @property
    def batch(self) -> int:
        """Images at once; one with dropout, whose draws would else depend on the neighbours."""
        return 1 if self.inference.dropout else inference_batch(self.inference)


def predict_folder(
    request: PredictRequest, note: Callable[[str], None], step: Callable[[int, int], None]
) -> dict[str, Any]:
    """Predict every image of a folder; write masks, :data:`TABLE` and :data:`MARKER`.

    A mask has its image's name (as ``.png``) and size, and the levels 0 cup, 128 rim, 255
    background. A pixel of the cup outside the disc counts as disc in the mask, which cannot say
    otherwise; the table is computed before that.

    Args:
        request: What is asked.
        note: Called with each message.
        step: Called with (images done, images).

    Returns:
        A JSON-able document: ``model``, ``out``, ``rule``, ``warnings`` and ``images`` (the rows
        of the table, ``vcdr`` ``None`` where it is undefined).

    Raises:
        UsageError: Contradicting flags, or a folder to write in that holds files of others.
        DataError: Images or weights that are missing, unreadable, or would share a name.
    """
    for path in request.plugins:
        load_plugin_file(path)
    rule = _rule(request)
    found = find_images(request.images)
    check_stems(found.files)
    _check_folder(request.out, found)
    model = find_model(request.model)
    if request.card is not None:
        model = run_like(model, request.card)
    runner = _runner(request, model)
    for text in (*found.notes, str(runner.window)):
        note(text)
    marker = _marker(model, runner, rule, request, len(found.files))
    write_json(request.out / MARKER, {**marker, "finished": False})
    facts: list[Facts] = []
    rows: list[dict[str, Any]] = []
    for chunk in _chunks(found.files, runner.batch):
        opened = each(partial(_opened, runner=runner), chunk)
        codes = runner.codes([window for window, _ in opened])
        for path, code, (_, seen) in zip(chunk, codes, opened, strict=True):
            rows.append(_written(request, runner, rule, path, code, seen))
            facts.append(seen)
        step(len(rows), len(found.files))
    warnings = [
        *_window_warnings(model, runner.window),
        *notes_on(facts, runner.image_size, runner.window.side_px),
    ]
    write_bytes(request.out / TABLE, _table(rows))
    write_json(request.out / MARKER, {**marker, "finished": True, "warnings": warnings})
    return {**marker, "out": str(request.out), "warnings": warnings, "images": rows}


# -- what is asked ----------------------------------------------------------------------------


def _rule(request: PredictRequest) -> Rule:
    if request.profile is not None:
        if request.threshold is not None:
            raise UsageError(
                "--threshold and --profile exclude each other: a profile has its own thresholds",
                hint="leave one of them out",
            )
        profile = get_profile(request.profile)
        cup = profile.threshold if profile.cup_threshold is None else profile.cup_threshold
        return Rule(cup, profile.threshold, profile.postprocessing)
    threshold = DEFAULT_THRESHOLD if request.threshold is None else request.threshold
    if not 0 < threshold < 1:
        raise UsageError(
            f"--threshold {threshold:g}: expected a number between 0 and 1", hint="--threshold 0.5"
        )
    return Rule(threshold, threshold)


def _runner(request: PredictRequest, model: OwnModel) -> Runner:
    """Load the network and take from the card what the flags do not say."""
    network = network_of(model, request.network, request.encoder)
    size = request.image_size or model.image_size
    if size is None:
        raise UsageError(
            f"--model {model.file}: nothing says at which image size it works",
            hint="--image-size N, the side in px that it was trained at",
        )
    crop = request.roi_crop_px
    window = window_of(model) if crop is None else Window(crop, "flag")
    device = resolve_device(request.device)
    seed = model.card.get("inference_seed")
    return Runner(
        network=load_own(model, network, device),
        image_size=size,
        window=window,
        inference=model.inference,
        precision=resolve_precision(
            request.precision or str(model.card.get("precision", "float32")), device.type
        ),
        device=device,
        seed=derive_seed("own images", "inference") if seed is None else int(seed),
    )


def _window_warnings(model: OwnModel, window: Window) -> list[str]:
    """Say that the window is a guess, where a record ought to know it."""
    if not (why := doubt(model, window)):
        return []
    return [
        f"{why}, so whole images are predicted; if it was given a central window: --roi-crop-px N"
    ]


def _check_folder(out: Path, found: ImageFolder) -> None:
    """Refuse to write where the images are, or over files that no prediction wrote."""
    real = os.path.realpath(out)
    if real == os.path.realpath(found.folder):
        raise UsageError(
            f"--out {out} is the image folder: a mask would replace its image",
            hint="choose another --out",
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: a file, expected a folder", hint="choose another --out")
    if is_kind(out / MARKER, PREDICTIONS):
        return
    names = [TABLE, MARKER, *(f"{path.stem}.png" for path in found.files)]
    taken = [name for name in names if (out / name).exists()]
    if taken:
        raise UsageError(
            f"--out {out}: {taken[0]} exists and no prediction wrote it; it could be a mask drawn "
            "by hand",
            hint="choose another --out",
        )


def _marker(
    model: OwnModel, runner: Runner, rule: Rule, request: PredictRequest, count: int
) -> dict[str, Any]:
    return {
        "kind": PREDICTIONS,
        "model": {"file": model.file.name, "sha256": file_digest(model.file)},
        "method": model.card.get("method"),
        "image_size": runner.image_size,
        "roi_crop_px": runner.window.side_px,
        "window_from": runner.window.origin,
        "inference": asdict(runner.inference),
        "precision": runner.precision,
        "rule": asdict(rule),
        "profile": request.profile,
        "count": count,
    }


# -- images -----------------------------------------------------------------------------------


def _chunks(files: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    for start in range(0, len(files), size):
        yield files[start : start + size]


def _opened(path: Path, runner: Runner) -> tuple[Uint8, Facts]:
    """Return an image's window at the model's size, and facts; its pixels are let go."""
    picture = read_picture(path)
    side_px = runner.window.side_px
    pixels = central_window(picture.pixels, side_px, axis=0)
    return resize_image(pixels, runner.image_size), look_at(picture, side_px)


def _written(
    request: PredictRequest, runner: Runner, rule: Rule, path: Path, code: Uint8, seen: Facts
) -> dict[str, Any]:
    """Write the mask of one image and return its row."""
    rows, columns = (_cut(n, seen, runner.window.side_px) for n in (seen.height, seen.width))
    mask = np.zeros((2, seen.height, seen.width), dtype=np.bool_)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    mask[:, rows, columns] = rule.masks(code, (height, width))
    write_bytes(request.out / f"{path.stem}.png", png_bytes(mask_levels(mask)))
    if request.probabilities:
        for structure, channel in zip(STRUCTURES, code, strict=True):
            name = f"{path.stem}-{structure}.png"
            write_bytes(request.out / "probabilities" / name, png_bytes(channel))
    return measure(path.name, mask, _doubts(seen))


def _cut(extent: int, seen: Facts, crop_px: int) -> slice:
    """Return where the central window lies along one axis."""
    if crop_px == 0 or max(seen.height, seen.width) <= crop_px:
        return slice(0, extent)
    start = max(0, (extent - crop_px) // 2)
    return slice(start, min(extent, start + crop_px))


def _doubts(seen: Facts) -> list[str]:
    doubts = []
    if seen.mask_like:
        doubts.append("the file looks like a mask, not like a photograph")
    if seen.full_field:
        doubts.append("looks like a full fundus field, not like a disc crop")
    return doubts


def mask_levels(mask: BoolArray) -> Uint8:
    """Return the gray levels of a mask: 0 cup, 128 rim, 255 background.

    Args:
        mask: (2, H, W) bool, cup first; the cup counts as disc.

    Returns:
        (H, W) uint8.
    """
    cup, disc = mask
    levels = np.where(disc, RIM_LEVEL, BACKGROUND_LEVEL).astype(np.uint8)
    levels[cup] = CUP_LEVEL
    return levels


def measure(name: str, mask: BoolArray, doubts: Sequence[str] = ()) -> dict[str, Any]:
    """Return one row of the table.

    Args:
        name: The file's name.
        mask: (2, H, W) bool, cup first.
        doubts: Further warnings.

    Undefined:
        ``vcdr`` is ``None`` without a disc, and the warnings say so; 0 when only the cup is empty.
    """
    cup, disc = mask
    warnings = list(doubts)
    ratio = vertical_cup_to_disc_ratio(mask)
    if not disc.any():
        warnings.append("empty disc: no ratio" if cup.any() else "empty disc and cup: no ratio")
    elif not cup.any():
        warnings.append("empty cup")
    outside = int(np.count_nonzero(cup & ~disc))
    if outside:
        warnings.append(f"{outside} px of the cup lie outside the disc")
    share = float(disc.mean())
    if 0 < share < _TINY_DISC_SHARE:
        warnings.append("the disc covers less than 2 % of the image")
    if any(edge.any() for edge in (disc[0], disc[-1], disc[:, 0], disc[:, -1])):
        warnings.append("the disc touches the border")
    return {
        "image": name,
        "vcdr": None if math.isnan(ratio) else ratio,
        "cup_area_share": float(cup.mean()),
        "disc_area_share": share,
        "disc_diameter_px": vertical_extent_px(disc),
        "warnings": warnings,
    }


def _table(rows: Sequence[dict[str, Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        ratio = row["vcdr"]
        writer.writerow(
            [
                row["image"],
                "" if ratio is None else f"{ratio:.4f}",
                f"{row['cup_area_share']:.6f}",
                f"{row['disc_area_share']:.6f}",
                row["disc_diameter_px"],
                "; ".join(row["warnings"]),
            ]
        )
    return stream.getvalue().encode()


def png_bytes(array: Uint8) -> bytes:
    """Return a gray image (H, W) uint8 as PNG."""
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG", compress_level=6)
    return stream.getvalue()


def _nearest(mask: BoolArray, size: tuple[int, int]) -> BoolArray:
    height, width = size
    planes = [Image.fromarray(plane.astype(np.uint8)) for plane in mask]
    resized = [plane.resize((width, height), Image.Resampling.NEAREST) for plane in planes]
    return np.stack([np.asarray(plane) for plane in resized]).astype(np.bool_)

"""Overlay gallery: contours of the truth, the source model and each method on test images.

It shows patients' images, so it has a folder of its own: neither the HTML page nor an exported
bundle holds any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import FigureData, load
from sfuda_bench.report.figures_method import PICTURES, method_figure
from sfuda_bench.report.packs import PackedSplit, contour
from sfuda_bench.report.records import CellRecord
from sfuda_bench.report.scope import Scope, read_scope
from sfuda_bench.running.prediction_files import read_prediction
from sfuda_bench.scoring.codes import STRUCTURES, upsample
from sfuda_bench.scoring.profiles import get_profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASES = ("worst", "second worst", "median", "best")
_TRUTH = "#FFFFFF"
_TILE_IN = 1.75


def write_gallery(
    out: Path,
    selection: str = "last",
    profile: str | None = None,
    note: Callable[[str], None] | None = None,
) -> list[Path]:
    """Draw the overlays of every pair into ``DIR/gallery``, a PDF and a PNG each.

    Args:
        out: The store, with its packed images and masks.
        selection: Which epoch's scores choose the images; the contours are the last epoch's.
        profile: Name of the profile whose threshold and scores count; as in ``write_figures``.
        note: Told the name of each figure before it is drawn.

    Raises:
        UsageError: There is no store, or nothing in it is scored that way.
        DataError: The store holds no packed images, as when it came from a bundle.
    """
    data, scope = load(out, selection, profile), read_scope(out, selection)
    threshold = get_profile(data.profile).threshold
    written = []
    with style.figure_style():
        for position, pair in enumerate(data.pairs):
            if not data.rows_of(data.cases, position):
                continue
            name = f"gallery-{style.slug(data.profile)}-{pair.slug}"
            if note is not None:
                note(name)
            figure = _draw(out, data, scope, position, threshold)
            written += style.save(figure, out / "gallery", name)
            written += _method_figures(out, data, scope, position, note)
    return written


def _method_figures(
    out: Path,
    data: FigureData,
    scope: Scope,
    position: int,
    note: Callable[[str], None] | None,
) -> list[Path]:
    """Draw the methods whose cells recorded pictures from the inside."""
    pair = data.pairs[position]
    written: list[Path] = []
    for row in data.rows_of(data.cases, position):
        cell = _first_cell(scope, row, (pair.source, pair.target))
        digest = cell.record.get("digests", {}).get("target_train", "")
        if not (cell.folder / PICTURES).is_file() or not digest:
            continue
        packed = PackedSplit.find(out, cell.image_size, set_digest=str(digest))
        label = data.lines[row].label
        title = f"{label} from the inside, {pair.title} (truth: white)"
        figure = method_figure(cell, packed, title)
        name = f"method-{style.slug(label)}-{pair.slug}"
        if note is not None:
            note(name)
        if figure is not None:
            written += style.save(figure, out / "gallery", name)
    return written


def _draw(out: Path, data: FigureData, scope: Scope, position: int, threshold: float) -> Figure:
    pair = data.pairs[position]
    rows = data.rows_of(data.cases, position)
    cells = {row: _first_cell(scope, row, (pair.source, pair.target)) for row in rows}
    packed = _packed_test(out, cells[rows[0]])
    images = _cases_to_show(data, position, rows)
    figure = style.new_figure(0.3 + _TILE_IN * len(rows), 0.75 + (_TILE_IN + 0.22) * len(images))
    tiles = iter(style.grid(figure, len(images) * len(rows), len(rows)))
    baseline = data.baseline if data.baseline in rows else None
    for kind, image in images.items():
        place = packed.position(image)
        for row in rows:
            axes = next(tiles)
            axes.imshow(packed.image(place), extent=(0, 1, 1, 0))
            contour(axes, packed.mask(place).astype(float), 0.5, _TRUTH, "-")
            if baseline is not None and row != baseline:
                prob = _prob(packed, cells[baseline], place)
                contour(axes, prob, threshold, style.BASELINE_COLOUR, "--")
            contour(axes, _prob(packed, cells[row], place), threshold, data.lines[row].colour, "-")
            label = data.lines[row].label if image == next(iter(images.values())) else ""
            axes.set_title(f"{style.wrapped(label, 22, 2)}\n{_dice(data, position, row, image)}")
            axes.set(xticks=[], yticks=[])
            axes.title.set_fontsize(7)
            if row == rows[0]:
                axes.set_ylabel(f"{kind}\n{style.wrapped(image, 20, 1)}", fontsize=7)
    style.set_title(
        figure,
        f"{pair.title}: truth (white), source model (grey, dashed), method (colour); "
        f"Dice of cup / disc under {data.profile}",
    )
    return figure


def _cases_to_show(data: FigureData, position: int, rows: list[int]) -> dict[str, str]:
    """Return the images to show: ordered by mean Dice over the rows without target labels."""
    ranked = [row for row in rows if not data.lines[row].oracle] or rows
    cases = data.cases[(data.cases["pair"] == position) & data.cases["row"].isin(ranked)]
    means = cases.groupby("image")["dice"].mean().reset_index().sort_values(["dice", "image"])
    images = means["image"].tolist()
    places = (0, 1, len(images) // 2, len(images) - 1)
    chosen = {kind: images[p] for kind, p in zip(CASES, places, strict=True) if p < len(images)}
    return {kind: image for kind, image in chosen.items() if images.count(image) == 1}


def _dice(data: FigureData, position: int, row: int, image: str) -> str:
    cases = data.cases
    found = cases[(cases["pair"] == position) & (cases["row"] == row) & (cases["image"] == image)]
    by_structure = dict(zip(found["structure"], found["dice"], strict=True))
    return " / ".join(f"{by_structure[name]:.1f}" for name in STRUCTURES)


def _first_cell(scope: Scope, row: int, pair: tuple[str, str]) -> CellRecord:
    """Return the cell of the first run: seeds differ, and a contour cannot be averaged."""
    asked = scope.rows[row].of_pair(pair)
    first = min(asked, key=lambda cell: (cell.source_seed, cell.seed))
    return scope.stored[first.key]


def _packed_test(out: Path, cell: CellRecord) -> PackedSplit:
    suffix = f"-{STRUCTURES[0]}.png"
    folder = cell.folder / "predictions"
    ids = {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
    return PackedSplit.find(out, cell.image_size, ids=ids)


def _prob(packed: PackedSplit, cell: CellRecord, place: int) -> np.ndarray:
    """Return a cell's predicted probabilities on the masks' grid, (2, G, G)."""
    maps = []
    for structure in STRUCTURES:
        path = cell.folder / "predictions" / f"{packed.ids[place]}-{structure}.png"
        maps.append(upsample(read_prediction(path), packed.grid))
    return np.stack(maps)

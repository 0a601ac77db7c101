"""Overlay gallery: contours of the truth, the source model and each method on test images.

It shows patients' images, so it has a folder of its own: neither the HTML page nor an exported
bundle holds any of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sfuda_bench.errors import DataError
from sfuda_bench.report import style
from sfuda_bench.report.figures_data import FigureData, load
from sfuda_bench.report.records import CellRecord
from sfuda_bench.report.scope import Scope, read_scope
from sfuda_bench.running.store import read_json, write_bytes
from sfuda_bench.scoring.codes import STRUCTURES, upsample
from sfuda_bench.scoring.profiles import get_profile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
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
            for extension in style.FORMATS:
                path = out / "gallery" / f"{name}.{extension}"
                write_bytes(path, style.encode(figure, extension))
                written.append(path)
    return written


def _draw(out: Path, data: FigureData, scope: Scope, position: int, threshold: float) -> Figure:
    pair = data.pairs[position]
    rows = data.rows_of(data.cases, position)
    cells = {row: _first_cell(scope, row, (pair.source, pair.target)) for row in rows}
    packed = _PackedTest.find(out, cells[rows[0]])
    images = _cases_to_show(data, position, rows)
    figure = style.new_figure(0.3 + _TILE_IN * len(rows), 0.75 + (_TILE_IN + 0.22) * len(images))
    tiles = iter(style.grid(figure, len(images) * len(rows), len(rows)))
    baseline = data.baseline if data.baseline in rows else None
    for kind, image in images.items():
        place = packed.position(image)
        for row in rows:
            axes = next(tiles)
            axes.imshow(packed.image(place), extent=(0, 1, 1, 0))
            _contour(axes, packed.mask(place).astype(float), 0.5, _TRUTH, "-")
            if baseline is not None and row != baseline:
                prob = packed.prob(cells[baseline], place)
                _contour(axes, prob, threshold, style.BASELINE_COLOUR, "--")
            _contour(axes, packed.prob(cells[row], place), threshold, data.lines[row].colour, "-")
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


def _contour(axes: Axes, maps: np.ndarray, level: float, colour: str, dash: str) -> None:
    """Draw where a cup's and a disc's map cross a level; nothing where they never do."""
    from matplotlib.patheffects import withStroke

    edge = "white" if colour == style.ORACLE_COLOUR else "black"
    side = maps.shape[-1]
    centres = (np.arange(side) + 0.5) / side
    for values in maps:
        if values.min() < level < values.max():
            lines = axes.contour(
                centres, centres, values, [level], colors=[colour], linestyles=dash, linewidths=1.1
            )
            # An edge keeps every colour visible on bright and on dark tissue.
            lines.set(path_effects=[withStroke(linewidth=2.0, foreground=edge, alpha=0.6)])


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


@dataclass(frozen=True)
class _PackedTest:
    """The packed test images and masks behind a cell's predictions."""

    images_path: Path
    masks_path: Path
    ids: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def find(cls, out: Path, cell: CellRecord) -> _PackedTest:
        suffix = f"-{STRUCTURES[0]}.png"
        folder = cell.folder / "predictions"
        ids = {path.name.removesuffix(suffix) for path in folder.glob(f"*{suffix}")}
        images = _packs(out / "packed" / "images", ids)
        masks = _packs(out / "packed" / "masks", ids)
        if not ids or cell.image_size not in images or not masks:
            raise DataError(
                f"{out}: holds no packed images and masks of {cell.target}",
                hint="draw the gallery where the cells were computed",
            )
        path, order = images[cell.image_size]
        names = read_json(out / "packed" / "names" / path.with_suffix(".json").name)
        return cls(path, masks[max(masks)][0], order, tuple(str(names[name]) for name in order))

    @cached_property
    def _images(self) -> np.ndarray:
        return np.asarray(np.load(self.images_path, mmap_mode="r"))

    @cached_property
    def _masks(self) -> np.ndarray:
        return np.asarray(np.load(self.masks_path, mmap_mode="r"))

    def position(self, name: str) -> int:
        """Return where an image of that name lies."""
        return self.names.index(name)

    def image(self, place: int) -> np.ndarray:
        """Return (S, S, 3) uint8."""
        image = self._images[place]
        return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image

    def mask(self, place: int) -> np.ndarray:
        """Return (2, G, G), cup first."""
        return np.asarray(self._masks[place])

    def prob(self, cell: CellRecord, place: int) -> np.ndarray:
        """Return the predicted probabilities on the masks' grid, (2, G, G)."""
        grid = self._masks.shape[-1]
        maps = []
        for structure in STRUCTURES:
            path = cell.folder / "predictions" / f"{self.ids[place]}-{structure}.png"
            with Image.open(path) as image:
                maps.append(upsample(np.asarray(image), grid))
        return np.stack(maps)


def _packs(folder: Path, ids: set[str]) -> dict[int, tuple[Path, tuple[str, ...]]]:
    """Return the packs that hold exactly these ids, by size: path and order of the ids."""
    found: dict[int, tuple[Path, tuple[str, ...]]] = {}
    for path in sorted(folder.glob("*.json")):
        meta: dict[str, Any] = read_json(path)
        if set(meta.get("ids", ())) == ids:
            found[int(meta["size"])] = (path.with_suffix(".npy"), tuple(meta["ids"]))
    return found

"""A method from the inside: pseudo-labels stage by stage, features by class, context similarity.

Drawn from what ``run --record labels,pictures`` rendered; it shows patients' images, so it belongs
to the gallery. True classes colour the features and outline the labels: an oracle's view.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sfuda_bench.report import style
from sfuda_bench.report.packs import PackedSplit, contour
from sfuda_bench.report.records import CellRecord
from sfuda_bench.running.label_files import read_pseudo_labels
from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.tensors import read_arrays

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PICTURES = "pictures.safetensors"
"""Written by ``run --record pictures``."""
_SHOWN = 3  # images
_TILE_IN = 1.55
_CLASSES = ("background", "rim", "cup")
_MAP = "magma"


def method_figure(cell: CellRecord, packed: PackedSplit, title: str) -> Figure | None:
    """Draw one cell's pseudo-labels, features and context similarity.

    Args:
        cell: A stored cell.
        packed: The images it adapted to, with their masks.
        title: Names the pair and the method.

    Returns:
        ``None`` if the cell recorded no pictures.
    """
    path = cell.folder / PICTURES
    if not path.is_file():
        return None
    tensors = read_arrays(path)
    stages = read_pseudo_labels(cell.folder)
    similarity = tensors.get("method.similarity")
    columns = 1 + len(stages) + (0 if similarity is None else len(STRUCTURES))
    shown = min(_SHOWN, len(tensors["prob"]))
    figure = style.new_figure(max(_TILE_IN * columns, 6.4), 0.7 + (_TILE_IN + 0.25) * shown + 3.4)
    heights = [(_TILE_IN + 0.25) * shown, 3.4]
    top, bottom = np.atleast_1d(figure.subfigures(2, 1, height_ratios=heights))  # type: ignore[arg-type]  # numpy knows no arrays of figures
    tiles = np.atleast_2d(top.subplots(shown, columns, squeeze=False))
    for place in range(shown):
        _label_tiles(tiles[place], packed, place, tensors["prob"][place], stages)
        if similarity is not None:
            _similarity_tiles(tiles[place, 1 + len(stages) :], packed, place, tensors)
        if place:
            for axes in tiles[place]:
                axes.set_title("")
    _feature_panel(bottom.subplots(1, 1), packed, tensors)
    style.set_title(figure, title)
    return figure


def _label_tiles(
    tiles: Any,
    packed: PackedSplit,
    place: int,
    prob: np.ndarray[Any, Any],
    stages: dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]],
) -> None:
    truth = packed.mask(place).astype(float)
    _show(tiles[0], packed.image(place), "source model")
    contour(tiles[0], truth, 0.5, "#FFFFFF", "-")
    contour(tiles[0], prob, 0.5, style.PALETTE[5], "-")
    for axes, (stage, (label, keep)) in zip(tiles[1:], stages.items(), strict=False):
        # The darker a pixel, the fewer structures are kept there.
        dimmed = packed.image(place) * (0.25 + 0.75 * keep[place].mean(axis=0)[..., None])
        _show(axes, dimmed.astype(np.uint8), f"{stage} labels")
        contour(axes, truth, 0.5, "#FFFFFF", "-")
        contour(axes, label[place].astype(float), 0.5, style.PALETTE[4], "-")


def _similarity_tiles(
    tiles: Any, packed: PackedSplit, place: int, tensors: dict[str, np.ndarray[Any, Any]]
) -> None:
    maps, anchors = tensors["method.similarity"][place], tensors["method.anchor"][place]
    truth = packed.mask(place).astype(float)
    for axes, values, (row, column), structure in zip(
        tiles, maps, anchors, STRUCTURES, strict=False
    ):
        side = len(values)
        axes.imshow(values, extent=(0, 1, 1, 0), cmap=_MAP, vmin=0, vmax=1)
        axes.plot((column + 0.5) / side, (row + 0.5) / side, "+", color="#00FFCC", markersize=9)
        contour(axes, truth, 0.5, "#FFFFFF", "-")
        axes.set_title(f"similarity, {structure}", fontsize=7)
        axes.set(xticks=[], yticks=[])


def _show(axes: Axes, image: np.ndarray[Any, Any], title: str) -> None:
    axes.imshow(image, extent=(0, 1, 1, 0))
    axes.set_title(title, fontsize=7)
    axes.set(xticks=[], yticks=[])


def _feature_panel(
    axes: Axes, packed: PackedSplit, tensors: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Draw the source model's features of target pixels in two dimensions, by true class."""
    kinds = true_classes(packed, tensors["image"], tensors["place"])
    points = embed(tensors["feature"])
    for kind, name in enumerate(_CLASSES):
        chosen = points[kinds == kind]
        axes.scatter(
            chosen[:, 0],
            chosen[:, 1],
            s=7,
            color=style.PALETTE[(2, 4, 1)[kind]],
            label=f"true {name} ({len(chosen)})",
            linewidth=0,
            alpha=0.8,
        )
    axes.set(xticks=[], yticks=[])
    axes.set_title("t-SNE of the source model's features of target pixels, by true class")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def true_classes(
    packed: PackedSplit, images: np.ndarray[Any, Any], places: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return 0 background, 1 rim or 2 cup of every pixel.

    Args:
        packed: The images' masks.
        images: (M,) positions of images.
        places: (M, 2) row and column as shares of the image's side.
    """
    side = packed.mask(0).shape[-1]
    rows, columns = np.clip((places * side).astype(int), 0, side - 1).T
    return np.array(
        [
            int(packed.mask(int(image))[:, row, column].astype(int).sum())
            for image, row, column in zip(images, rows, columns, strict=True)
        ]
    )


def embed(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return (M, 2) coordinates of t-SNE, the same for the same features on one machine."""
    from sklearn.manifold import TSNE

    scaled = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    perplexity = float(min(30, max(2, (len(features) - 1) // 3)))
    model = TSNE(perplexity=perplexity, init="pca", random_state=0)
    points: np.ndarray[Any, Any] = model.fit_transform(scaled)
    return points

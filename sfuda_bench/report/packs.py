"""Packed images and masks of a split, found by the ids of what was predicted; no torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sfuda_bench.errors import DataError
from sfuda_bench.images.packed import damaged_pack, load_pack, stems_of
from sfuda_bench.report import style
from sfuda_bench.running.store import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PackedSplit:
    """Images and masks of one split in packed order.

    Attributes:
        images_path: (N, S, S, 3) or (N, 3, S, S) uint8.
        masks_path: (N, 2, G, G) bool.
        names_path: Where the names were read.
        ids: Opaque ids.
        names: File names.
    """

    images_path: Path
    masks_path: Path
    names_path: Path
    ids: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def find(
        cls, out: Path, size: int, *, ids: Collection[str] = (), set_digest: str = ""
    ) -> PackedSplit:
        """Return the split of these ids, or of this digest of images.

        Args:
            out: The store.
            size: Side of the images in pixels.
            ids: Opaque ids of all images.
            set_digest: Digest of all images, where the ids are not known.

        Raises:
            DataError: The store holds no such images and masks.
        """
        images = _packs(out / "packed" / "images", ids, set_digest).get(size)
        masks = {} if images is None else _packs(out / "packed" / "masks", images[1], "")
        if images is None or not masks:
            raise DataError(
                f"{out}: holds no packed images and masks of this split",
                hint="draw the gallery where the cells were computed",
            )
        path, order = images
        names_path = out / "packed" / "names" / path.with_suffix(".json").name
        names = tuple(stems_of(names_path, order))
        return cls(path, masks[max(masks)][0], names_path, order, names)

    @cached_property
    def _images(self) -> Array:
        return np.asarray(load_pack(self.images_path))

    @cached_property
    def _masks(self) -> Array:
        return np.asarray(load_pack(self.masks_path))

    @property
    def grid(self) -> int:
        """Side of the masks in pixels."""
        return int(self._masks.shape[-1])

    def position(self, name: str) -> int:
        """Return where an image of that name lies.

        Raises:
            StoreSchemaError: The file of names has no such name.
        """
        if name not in self.names:
            raise damaged_pack(self.names_path, f"lacks the image '{name}', which has a score")
        return self.names.index(name)

    def image(self, place: int) -> Array:
        """Return (S, S, 3) uint8."""
        image = self._images[place]
        return np.moveaxis(image, 0, -1) if image.shape[0] == 3 else image

    def mask(self, place: int) -> Array:
        """Return (2, G, G), cup first."""
        return np.asarray(self._masks[place])


def _packs(
    folder: Path, ids: Collection[str], set_digest: str
) -> dict[int, tuple[Path, tuple[str, ...]]]:
    """Return the packs of these ids or this digest, by size: path and order of the ids."""
    found: dict[int, tuple[Path, tuple[str, ...]]] = {}
    wanted = set(ids)
    for path in sorted(folder.glob("*.json")):
        meta: dict[str, Any] = read_json(path)
        same = wanted and set(meta.get("ids", ())) == wanted
        if same or (set_digest and meta.get("set_digest") == set_digest):
            found[int(meta["size"])] = (path.with_suffix(".npy"), tuple(meta["ids"]))
    return found


def contour(axes: Axes, maps: Array, level: float, colour: str, dash: str) -> None:
    """Draw where a cup's and a disc's map cross a level; nothing where they never do.

    Args:
        axes: Spanning the unit square, row 0 on top.
        maps: (2, G, G) float.
        level: Where the line runs.
        colour: Its colour.
        dash: Its style.
    """
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

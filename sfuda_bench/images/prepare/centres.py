"""Where the windows are centred: a detector without labels, the user's file, labels, or owners."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.locate import CROP_RADII, RADII, VERSION, locate_disc
from sfuda_bench.images.prepare.tables import eye_name, read_table

Uint8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
Point = tuple[float, float]

CENTRES = ("detector", "csv", "gt", "owner")


@dataclass(frozen=True)
class Centres:
    """Finds the centre of one eye.

    Args:
        kind: One of :data:`CENTRES`.
        points: Row and column by the eye's name, for ``csv``.
        cropped: The photographs are crops around the disc.
    """

    kind: str
    points: dict[str, Point]
    cropped: bool = False

    def find(self, name: str, image: Uint8, mask: Bool | None) -> Point:
        """Return row and column of the centre.

        Raises:
            DataError: Nothing is known about this eye.
        """
        if self.kind == "detector":
            disc = locate_disc(image, CROP_RADII if self.cropped else RADII)
            return disc.row_px, disc.column_px
        if self.kind == "owner":
            return (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
        if self.kind == "gt":
            if mask is None:
                raise DataError(f"{name}: --centre gt, but it has no mask", hint="use detector")
            return centroid(mask[1])
        point = self.points.get(eye_name(name))
        if point is None:
            raise DataError(f"--centres: no row for {name}", hint="add it: name,x_px,y_px")
        if not (0 <= point[0] < image.shape[0] and 0 <= point[1] < image.shape[1]):
            raise DataError(
                f"--centres: the centre of {name} lies outside its photograph of "
                f"{image.shape[1]} x {image.shape[0]} px",
                hint="x_px is the column, y_px the row, both from 0",
            )
        return point

    @property
    def description(self) -> str:
        """The way and its version: another version may give other windows."""
        return f"detector, version {VERSION}" if self.kind == "detector" else self.kind


def make_centres(kind: str, file: Path | None, *, cropped: bool = False) -> Centres:
    """Return the way to centres that the flags ask for.

    Args:
        kind: One of :data:`CENTRES`.
        file: The table of points, for ``csv``.
        cropped: The photographs are crops around the disc.

    Raises:
        DataError: The file is no such table.
    """
    return Centres(kind, _read_points(file) if file is not None else {}, cropped)


def centroid(structure: Bool) -> Point:
    """Return the mean row and column of a structure that is not empty."""
    rows, columns = np.nonzero(structure)
    return float(rows.mean()), float(columns.mean())


def error_diameters(point: Point, disc: Bool) -> float:
    """Return the distance to the disc's centroid in disc diameters.

    Args:
        point: Row and column.
        disc: (H, W) bool, not empty.
    """
    row, column = centroid(disc)
    diameter = 2 * math.sqrt(float(disc.sum()) / math.pi)
    return math.hypot(point[0] - row, point[1] - column) / diameter


def _read_points(path: Path) -> dict[str, Point]:
    rows = read_table(path, "--centres", ("name", "x_px", "y_px"))
    points = {}
    for name, row in rows.items():
        try:
            points[name] = float(row["y_px"]), float(row["x_px"])
        except ValueError as error:
            raise DataError(
                f"--centres {path}: {name}: {error}",
                hint="x_px is the column, y_px the row, e.g. eye_1,1012.5,880",
            ) from error
    return points

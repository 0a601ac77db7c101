"""Fill the outlines that owners publish as lists of points."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from sfuda_bench.errors import DataError

_FEWEST = 3
_BEYOND_PX = 1  # by how much a point may leave the photograph: coordinates of pixel edges


def read_contour(path: Path, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return what a closed outline encloses.

    Args:
        path: Text, one point per line: x (column) and y (row) in px.
        size: Height and width of the photograph.

    Returns:
        (H, W) bool.

    Raises:
        DataError: The file holds no such points, or they leave the photograph.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        points = [tuple(map(float, line.split())) for line in lines if line.strip()]
    except ValueError as error:
        raise _foreign(path, str(error)) from error
    if len(points) < _FEWEST or any(len(point) != 2 for point in points):
        raise _foreign(path, f"{len(points)} lines")
    height, width = size
    inside = all(
        math.isfinite(x + y)
        and -_BEYOND_PX <= x <= width + _BEYOND_PX
        and -_BEYOND_PX <= y <= height + _BEYOND_PX
        for x, y in points
    )
    if not inside:
        raise DataError(
            f"{path}: the outline leaves its photograph of {width} x {height} px",
            hint="is it the outline of this photograph?",
        )
    picture = Image.new("L", (width, height))
    ImageDraw.Draw(picture).polygon([(x, y) for x, y in points], fill=1)
    return np.asarray(picture).astype(np.bool_)


def _foreign(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path}: no outline ({reason}); expected x and y of a point in every line",
        hint="download it again",
    )

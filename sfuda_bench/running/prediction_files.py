"""Stored predictions: one 8-bit PNG per image and structure, read without torch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.running.seals import check_listed


def read_prediction(path: Path) -> npt.NDArray[np.uint8]:
    """Read the codes of one structure of one image.

    Returns:
        (H, W) uint8.

    Raises:
        StoreSchemaError: The file is missing, damaged, or another than was written.
    """
    try:
        data = path.read_bytes()
        check_listed(path, data)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            codes = np.asarray(image)
        if codes.ndim != 2 or codes.dtype != np.uint8:
            raise ValueError("expected 8-bit gray")
        return codes
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise StoreSchemaError(
            f"{path}: stored prediction missing or damaged ({error})",
            hint="delete the folder of the cell and run the same command again",
        ) from error

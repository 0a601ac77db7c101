"""Pseudo-labels of a cell on disk, as bits; readers need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sfuda_bench.tensors import read_arrays

Array = np.ndarray[Any, Any]
FILE = "pseudo_labels.safetensors"


def read_pseudo_labels(folder: Path) -> dict[str, tuple[Array, Array]]:
    """Read what :func:`write_pseudo_labels` wrote; nothing where a method has no stages."""
    path = folder / FILE
    if not path.is_file():
        return {}
    tensors = read_arrays(path)
    found = {}
    for name in sorted(tensors):
        order, stage, part = name.split(".")
        if part == "label":
            pair = (tensors[name], tensors[f"{order}.{stage}.keep"])
            side = tensors[name].shape[-2]  # labels are square
            label, keep = (np.unpackbits(b, axis=-1, count=side).astype(bool) for b in pair)
            found[stage] = (label, keep)
    return found

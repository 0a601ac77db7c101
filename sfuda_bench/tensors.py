"""Safetensors files read without a framework: a JSON header gives the offsets of plain bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sfuda_bench.errors import StoreSchemaError

_LENGTH = 8  # bytes of the header's own length, little-endian
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "U8": "u1",
    "BOOL": "?",
}


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return every tensor of a file as an array.

    Raises:
        StoreSchemaError: The file is damaged, or holds a kind of number that numpy lacks.
    """
    arrays = {}
    for name, (kind, shape, data) in read_tensors(path).items():
        if kind not in _DTYPES:
            raise StoreSchemaError(f"{path}: tensor '{name}' is of kind {kind}")
        arrays[name] = np.frombuffer(data, dtype=_DTYPES[kind]).reshape(shape)
    return arrays


def read_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of each tensor: a JSON header gives their offsets."""
    try:
        raw = path.read_bytes()
        start = _LENGTH + int.from_bytes(raw[:_LENGTH], "little")
        header: dict[str, Any] = json.loads(raw[_LENGTH:start])
        return {
            name: (
                entry["dtype"],
                tuple(entry["shape"]),
                raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreSchemaError(
            f"{path}: damaged tensors ({error})",
            hint=f"delete the folder {path.parent} and run the same command again",
        ) from error

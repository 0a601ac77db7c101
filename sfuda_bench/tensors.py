"""Safetensors files read without a framework: a JSON header gives the offsets of plain bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sfuda_bench.errors import StoreSchemaError, spoilt
from sfuda_bench.running.seals import check_listed

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""Dtype, shape and bytes of each tensor by its name."""
_LENGTH = 8  # bytes of the header's own length, little-endian
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}
_ITEM_BYTES = {kind: np.dtype(name).itemsize for kind, name in _DTYPES.items()}
_ITEM_BYTES |= {"BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}


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


def read_tensors(path: Path, *, checked: bool = True) -> Tensors:
    """Return dtype, shape and bytes of each tensor: a JSON header gives their offsets.

    Args:
        path: The file.
        checked: Compare it with the manifest beside it.

    Raises:
        StoreSchemaError: The file is damaged.
    """
    try:
        raw = path.read_bytes()
        if checked:
            check_listed(path, raw)
        start = _LENGTH + int.from_bytes(raw[:_LENGTH], "little")
        if not _LENGTH < start <= len(raw):
            raise ValueError("the header is longer than the file")
        header = json.loads(raw[_LENGTH:start], object_pairs_hook=_without_repeats)
        return _cut(header, raw[start:])
    except (
        *(OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError),
        RecursionError,
    ) as error:
        raise spoilt(path, f"damaged tensors ({error})") from error


def _cut(header: Mapping[str, Any], data: bytes) -> Tensors:
    """Cut the data into tensors, which must fill it without a gap and without an overlap."""
    found, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict):
                raise ValueError("metadata that is no table")
            continue
        kind, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
            raise ValueError(f"'{name}' has a size or a place that is no number of 0 or more")
        if math.prod(shape) * _ITEM_BYTES[kind] != last - first:
            raise ValueError(f"'{name}' has other bytes than its shape needs")
        spans.append((first, last))
        found[name] = (kind, shape, data[first:last])
    spans.sort()
    ends = [0, *(last for _, last in spans)]
    if [first for first, _ in spans] != ends[:-1] or ends[-1] != len(data):
        raise ValueError("the tensors leave gaps, overlap or do not end with the file")
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name stands there twice")
    return dict(pairs)

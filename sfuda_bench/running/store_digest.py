"""What a store holds as values: equal for equal results, however and wherever they came about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from sfuda_bench.errors import spoilt
from sfuda_bench.frames import frame_digest, read_parquet
from sfuda_bench.running.keys import file_digest
from sfuda_bench.running.store import CIRCUMSTANCES, read_json
from sfuda_bench.tensors import read_tensors

COMMITTED = {
    "cells": "cells/*/*/*/cell.json",
    "sources": "sources/*/*/card.json",
    "artefacts": "artefacts/*/*/meta.json",
}
"""The file that makes a folder count, by kind."""
OUTSIDE = frozenset({"seconds", "bytes", "roi_crop_px"})
"""Fields of JSON records that hold a duration, digests that depend on library versions, or the
window that was cut: files that hold the window and nothing else give the same results."""
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
}
"""What torch calls the dtypes of the format."""


def store_digest(root: Path) -> str:
    """Return one digest over the results of a store: cells, source models and artefacts.

    Times, hosts, logs, locks, packed images, tables and the order of computation are outside it,
    so a run that was killed and continued has the digest of an undisturbed one.

    Raises:
        StoreSchemaError: A file is damaged.
    """
    return hashlib.sha256(json.dumps(store_contents(root), sort_keys=True).encode()).hexdigest()


def store_contents(root: Path) -> dict[str, str]:
    """Return the digest of the values of every result file, by path relative to the store.

    Two stores that ought to be equal are compared by these to see where they differ.

    Raises:
        StoreSchemaError: A file is damaged.
    """
    return {
        str(path.relative_to(root)): value_digest(path)
        for folder in committed(root)
        for path in result_files(folder)
    }


def committed(root: Path, kind: str | None = None) -> list[Path]:
    """Return the finished folders of a store, of one kind of :data:`COMMITTED` or of all."""
    patterns = COMMITTED.values() if kind is None else [COMMITTED[kind]]
    found = [path.parent for pattern in patterns for path in sorted(root.glob(pattern))]
    # A copy that is not finished yet lies beside its place, under a hidden name.
    return [folder for folder in found if not folder.name.startswith(".")]


def result_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a committed folder that are results, in order of their names."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in CIRCUMSTANCES and not path.name.startswith("."):
            yield path


def value_digest(path: Path) -> str:
    """Return the digest of what a file says, whichever library version wrote it.

    Raises:
        StoreSchemaError: The file is damaged.
    """
    if path.suffix == ".json":
        record = read_json(path, checked=False)
        kept = {name: value for name, value in record.items() if name not in OUTSIDE}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    if path.suffix == ".parquet":
        return frame_digest(read_parquet(path, checked=False))
    if path.suffix == ".png":
        return _image_digest(path)
    if path.suffix == ".safetensors":
        return tensors_sha256(path)
    return file_digest(path)


def tensors_sha256(path: Path) -> str:
    """Return the digest of the tensors of a safetensors file, read without torch.

    Returns:
        What :func:`sfuda_bench.running.keys.model_sha256` says of the same state dict.

    Raises:
        StoreSchemaError: The file is missing, cut short or no safetensors file.
    """
    total = hashlib.sha256()
    for name, (kind, shape, data) in sorted(read_tensors(path, checked=False).items()):
        if kind not in _DTYPES:
            raise spoilt(path, f"damaged or unreadable (tensor '{name}' is of an unknown kind)")
        total.update(f"{name}|torch.{_DTYPES[kind]}|{shape}|".encode())
        total.update(data)
    return total.hexdigest()


def _image_digest(path: Path) -> str:
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = f"{image.mode}|{image.size}|"
            return hashlib.sha256(text.encode() + image.tobytes()).hexdigest()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow calls a broken PNG a syntax error
        raise spoilt(path, f"damaged or unreadable ({error})") from error

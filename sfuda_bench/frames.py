"""Frames of numbers on disk: parquet whose bytes depend on values only, and value digests."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.running.store import write_bytes

if TYPE_CHECKING:
    import pandas as pd

_WRITER = b"sfuda-bench"


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Write a frame as parquet, atomically, with no trace of the libraries that wrote it.

    Equal values in equal order give equal bytes: no index, no pandas or Arrow schema, no
    library version, one string type whichever string dtype pandas uses, no compression.

    Args:
        frame: Columns of strings, integers, floats or booleans; the index is dropped.
        path: Replaced by a rename, so a reader sees the old file or the new one.
    """
    pa, pq = _pyarrow()
    sink = pa.BufferOutputStream()
    pq.write_table(_plain_table(frame), sink, compression="none", store_schema=False)
    write_bytes(path, _without_version(sink.getvalue().to_pybytes()))


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a frame.

    Raises:
        StoreSchemaError: The file is missing, damaged or cut short.
    """
    import pandas as pd

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise StoreSchemaError(
            f"{path}: damaged or unreadable parquet ({reason})",
            hint=f"delete the folder {path.parent} and run the same command again",
        ) from error


def frame_digest(frame: pd.DataFrame) -> str:
    """Return the sha256 hex digest of a frame's values.

    Neither the order of rows and columns, nor the index, nor the string dtype matters; every
    bit of a float does, except that all NaN are equal and -0.0 equals 0.0.

    Args:
        frame: Columns of strings, integers, floats or booleans.
    """
    names = sorted(str(name) for name in frame.columns)
    columns = [_canonical_values(frame[name].tolist()) for name in names]
    rows = sorted(json.dumps(row) for row in zip(*columns, strict=True))
    return hashlib.sha256("\n".join([json.dumps(names), *rows]).encode()).hexdigest()


def _pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its parquet module, which declare no types, when they are needed."""
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


def _plain_table(frame: pd.DataFrame) -> Any:
    pa, _ = _pyarrow()
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    # pandas 3 hands over large strings, pandas 2 strings, and categories stay encoded.
    fields = [
        pa.field(field.name, pa.string() if _is_text(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    inner = kind.value_type if kinds.is_dictionary(kind) else kind
    # An all-missing or empty object column has Arrow's null type.
    return bool(kinds.is_string(inner) or kinds.is_large_string(inner) or kinds.is_null(inner))


def _without_version(data: bytes) -> bytes:
    """Replace the writer's name and version in the footer by a constant.

    The footer is Thrift: a string is its length (one byte below 128) and its bytes. It ends the
    file, before its own length (4 bytes) and the magic (4 bytes), so no offset moves.
    """
    pa, pq = _pyarrow()
    writer = pq.read_metadata(pa.BufferReader(data)).created_by.encode()
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    footer = data[start:-8]
    found = footer.rfind(bytes([len(writer)]) + writer)
    if found < 0 or len(writer) > 127:
        return data
    end = found + 1 + len(writer)
    footer = footer[:found] + bytes([len(_WRITER)]) + _WRITER + footer[end:]
    return data[:start] + footer + len(footer).to_bytes(4, "little") + data[-4:]


def _canonical_values(values: Iterable[Any]) -> list[str]:
    return [_canonical(value) for value in values]


def _canonical(value: Any) -> str:
    if isinstance(value, bool):
        return f"bool:{value}"
    if isinstance(value, int):
        return f"int:{value}"
    if isinstance(value, float):
        # Adding 0.0 turns -0.0 into 0.0.
        return "missing" if math.isnan(value) else f"float:{(value + 0.0).hex()}"
    if isinstance(value, str):
        return f"str:{value}"
    return "missing"  # None and pandas' NA

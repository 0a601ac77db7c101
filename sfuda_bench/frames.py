"""Frames of numbers on disk: parquet whose bytes depend on values only, and value digests."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import StoreSchemaError, spoilt
from sfuda_bench.running.seals import changed, check_listed
from sfuda_bench.running.store import read_json, retract, write_bytes, write_sealed

if TYPE_CHECKING:
    import pandas as pd

_WRITER = b"sfuda-bench"
_BYTES = "bytes"  # field of a record: the sha256 of the files it speaks of


def write_parquet(frame: pd.DataFrame, path: Path, *, durable: bool = True) -> None:
    """Write a frame as parquet, atomically, with no trace of the libraries that wrote it.

    Equal values in equal order give equal bytes: no index, no pandas or Arrow schema, no
    library version, one string type whichever string dtype pandas uses, no compression.

    Args:
        frame: Columns of strings, integers, floats or booleans; the index is dropped.
        path: Replaced by a rename, so a reader sees the old file or the new one.
        durable: See :func:`sfuda_bench.running.store.write_bytes`.
    """
    pa, pq = _pyarrow()
    sink = pa.BufferOutputStream()
    pq.write_table(_plain_table(frame), sink, compression="none", store_schema=False)
    write_bytes(path, _without_version(sink.getvalue().to_pybytes()), durable=durable)


def read_parquet(path: Path, *, checked: bool = True) -> pd.DataFrame:
    """Read a frame.

    Args:
        path: The file.
        checked: It must be the one that its record, or the manifest beside it, speaks of; a
            verification compares it itself.

    Raises:
        StoreSchemaError: The file is missing, damaged, cut short, or another than was written.
    """
    import pandas as pd

    try:
        data = path.read_bytes()
        known = None
        if checked:
            check_listed(path, data)
            known = _check_recorded(path, data)
        frame = pd.read_parquet(io.BytesIO(data), engine="pyarrow")
        if known is not None and frame_digest(frame) != known:
            raise changed(path)
        return frame
    except StoreSchemaError:
        raise
    except Exception as error:  # the decoder raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise spoilt(path, f"damaged or unreadable parquet ({reason})") from error


def write_scored(record: Path, fields: Mapping[str, Any], frames: Mapping[str, Any]) -> None:
    """Write frames and then the record without which they do not count.

    Args:
        record: The JSON file.
        fields: What it says; the digests of the frames' bytes are added.
        frames: File name in the same folder to frame.
    """
    retract(record)
    for name, frame in frames.items():
        write_parquet(frame, record.with_name(name))
    found = {name: _sha256(record.with_name(name).read_bytes()) for name in frames}
    write_sealed(record, {**fields, _BYTES: found})


def _check_recorded(path: Path, data: bytes) -> str | None:
    """Compare a frame with the digest of its bytes, where a record has one.

    Returns:
        The digest of its values, where an earlier version recorded only that.
    """
    kind, _, profile = path.stem.partition("-")
    for record in (path.with_suffix(".json"), path.with_name(f"scores-{profile}.json")):
        if not record.is_file():
            continue
        fields = read_json(record)
        expected = fields.get(_BYTES, {}).get(path.name)
        if expected is not None:
            if _sha256(data) != expected:
                raise changed(path)
            return None
        if (kind == "thresholds") == (record.stem == "thresholds"):
            digests = fields.get("digests") or {"cases": fields.get("digest")}
            return fields.get("digest") if kind == "thresholds" else digests.get(kind)
    return None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


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

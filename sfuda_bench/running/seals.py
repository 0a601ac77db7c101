"""Whether a stored file is what was written: seals in records, manifests beside results.

A record that lies outside a manifest carries a digest of its own fields, its seal. What a
manifest lists is compared with it when it is read; a manifest also says whether the records that
are written beside it later must have seals. Stores of earlier versions have neither for some
files; those are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sfuda_bench.errors import StoreSchemaError, spoilt
from sfuda_bench.running.keys import file_digest

_SEAL = "seal"
MANIFEST = "manifest.json"
"""In every committed folder: the sha256 of each file that was committed with it."""
_LISTING_PARENTS = 3  # predictions/epoch-001/x.png lies two folders below its manifest
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record with its seal."""
    return {**value, _SEAL: _digest(value)}


def unsealed(path: Path, value: Mapping[str, Any], *, checked: bool = True) -> dict[str, Any]:
    """Return a record without its seal.

    Args:
        path: Where it was read, for messages.
        value: The record, with or without a seal.
        checked: Whether the seal must be right, and there where a manifest asks for it.

    Raises:
        StoreSchemaError: The record is not what was sealed.
    """
    record = {name: part for name, part in value.items() if name != _SEAL}
    if checked:
        intact = value[_SEAL] == _digest(record) if _SEAL in value else not _needs_seal(path)
        if not intact:
            raise changed(path)
    return record


def check_listed(path: Path, data: bytes) -> None:
    """Compare the bytes of a file with the manifest of its folder, if there is one.

    Raises:
        StoreSchemaError: The manifest lists other bytes, or cannot be read.
    """
    expected = listed_digest(path)
    if expected is not None and hashlib.sha256(data).hexdigest() != expected:
        raise changed(path)


def check_listed_file(path: Path) -> None:
    """As :func:`check_listed`, for a file that is too large to be read at once.

    Raises:
        StoreSchemaError: The manifest lists other bytes, or cannot be read.
    """
    expected = listed_digest(path)
    if expected is not None and path.is_file() and file_digest(path) != expected:
        raise changed(path)


def listed_digest(path: Path) -> str | None:
    """Return the sha256 that the manifest of a committed folder lists for a file of it.

    Raises:
        StoreSchemaError: The manifest cannot be read.
    """
    folder, manifest = _manifest_of(path)
    return manifest.files.get(path.relative_to(folder).as_posix())


def _needs_seal(path: Path) -> bool:
    folder, manifest = _manifest_of(path)
    name = path.relative_to(folder).as_posix()
    return manifest.seals and name not in manifest.files and name != MANIFEST


def changed(path: Path) -> StoreSchemaError:
    """Return the error for a file whose content is not what was written."""
    return spoilt(path, "damaged: not what was written")


class _Manifest(NamedTuple):
    files: Mapping[str, str]
    seals: bool  # whether later records have one


_NONE = _Manifest({}, False)


def _manifest_of(path: Path) -> tuple[Path, _Manifest]:
    """Return the folder that lists a file, and its manifest; an empty one where there is none."""
    for folder in path.parents[:_LISTING_PARENTS]:
        manifest = folder / MANIFEST
        try:
            status = manifest.stat()
        except OSError:
            continue
        read = _read_top if folder == path.parent else _read_all
        return folder, read(manifest, status.st_mtime_ns, status.st_size)
    return path.parent, _NONE


def _digest(value: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(value))  # keys become text before they are sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@cache
def _read_top(manifest: Path, modified: int, size: int) -> _Manifest:
    """Return what lies directly in the folder: little, even of thousands of cells."""
    found = _read_all(manifest, modified, size)
    top = {name: digest for name, digest in found.files.items() if "/" not in name}
    return found._replace(files=top)


@lru_cache(maxsize=8)
def _read_all(manifest: Path, modified: int, size: int) -> _Manifest:
    try:
        record = json.loads(manifest.read_bytes())
        files = record["files"]
        if all(_SHA256.fullmatch(digest) for digest in files.values()):
            return _Manifest(dict(files), record.get("seals") is True)
        problem = "a digest is not 64 hexadecimal digits"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise spoilt(manifest, f"damaged or unreadable ({problem})")

"""``manifest.json`` of a prepared domain: what it is, where it comes from, what was done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfuda_bench.datasets import MANIFEST, SPLITS
from sfuda_bench.errors import DataError

SCHEMA = 1
MADE_BY = "sfuda-bench data prepare"


def read_manifest(folder: Path, *, any_schema: bool = False) -> dict[str, Any] | None:
    """Return the manifest of a prepared domain, or ``None`` where this program wrote none.

    Args:
        folder: The domain.
        any_schema: Whether one of another schema will do, to be replaced.

    Raises:
        DataError: It is damaged or of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: damaged: {error}", hint=f"move {folder} away and prepare the domain again"
        ) from error
    if not isinstance(manifest, dict) or manifest.get("made_by") != MADE_BY:
        return None
    if manifest.get("schema") != SCHEMA and not any_schema:
        raise DataError(
            f"{path}: schema {manifest.get('schema')}; expected {SCHEMA}",
            hint="prepare the domain again with --replace",
        )
    return manifest


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest; the same content gives the same bytes."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", "utf-8")


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """Return the sha256 of what determines a prepared domain: raw bytes, options, versions."""
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def damaged_files(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return the files of a prepared domain that are missing, changed or not in its manifest.

    Hidden files, which file managers leave, are passed over.
    """
    known = {
        f"{eye['split']}/ROIs/{kind}/{eye['name']}.png": eye[f"{kind}_sha256"]
        for eye in manifest["eyes"]
        for kind in ("image", "mask")
        if eye.get(f"{kind}_sha256")
    }
    found = {
        path.relative_to(folder).as_posix()
        for split in SPLITS
        for path in (folder / split).rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    changed = [
        name for name, digest in known.items() if name in found and sha256(folder / name) != digest
    ]
    return sorted({*changed, *found ^ known.keys()})


def sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()

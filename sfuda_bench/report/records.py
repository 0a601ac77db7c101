"""What a result store holds, read back: cells, their scores, and what the newest run asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from sfuda_bench.errors import StoreSchemaError, UsageError, spoilt
from sfuda_bench.frames import read_parquet
from sfuda_bench.running.store import SCHEMA, check_schema, read_json

CASE_COLUMNS = (
    "method",
    "source",
    "target",
    "source_seed",
    "seed",
    "selection",
    "image",
    "structure",
    "dice",
    "assd_directed_px",
    "assd_pooled_px",
    "empty_prediction",
    "empty_truth",
)

_NEW_IN_PLANS = "positions_from_labels"  # plans of earlier versions lack it
_ONLY_IN_PLANS = ("preset", _NEW_IN_PLANS)


@dataclass(frozen=True)
class CellRecord:
    """One finished cell: its ``cell.json`` and the folder that holds it.

    Attributes:
        folder: Where the cell lies.
        record: Every field of ``cell.json``, those below included.
        key: Adaptation key, 64 hex digits.
        method: Registered name.
        method_version: Integer version of the method.
        title: Name in tables.
        oracle: Whether it uses target labels.
        strictness: ``S0``, ``S1`` or ``S2``: what it sees of the source data.
        source: Source domain.
        target: Target domain.
        source_seed: Seed of the source model.
        seed: Seed of the adaptation.
        protocol: ``offline``, ``transductive``, ``online`` or ``episodic``.
        inference: How the adapted network is run.
        network: Name, encoder and encoder weights.
        image_size: Side of the model's input, in pixels.
        precision: ``float32`` or ``bfloat16``.
        synthetic: Whether either domain is synthetic.
        config: The method's resolved settings.
        epochs: Number of the last epoch; 0 when nothing was trained.
    """

    folder: Path
    record: Mapping[str, Any]
    key: str
    method: str
    method_version: int
    title: str
    oracle: bool
    strictness: str
    source: str
    target: str
    source_seed: int
    seed: int
    protocol: str
    inference: Mapping[str, Any]
    network: Mapping[str, Any]
    image_size: int
    precision: str
    synthetic: bool
    config: Mapping[str, Any]
    epochs: int

    @property
    def profiles(self) -> list[str]:
        """Names of the profiles it was scored under."""
        found = self.folder.glob("scores-*.json")
        return sorted(path.stem.removeprefix("scores-") for path in found)


@dataclass(frozen=True)
class AskedCell:
    """One cell that a run asked for, finished or not.

    Attributes are those of the same names in :class:`CellRecord`, and two that only a plan knows:

    Attributes:
        preset: Under which the cell was asked for; empty where no run is known. A cell itself has
            none: its settings are what it is known by, and two presets may share it.
        positions_from_labels: Whether the crops of either domain are centred on annotations.
    """

    key: str
    method: str
    title: str
    oracle: bool
    strictness: str
    source: str
    target: str
    source_seed: int
    seed: int
    protocol: str
    synthetic: bool
    preset: str = ""
    positions_from_labels: bool = False

    @property
    def pair(self) -> tuple[str, str]:
        """Source and target domain."""
        return (self.source, self.target)


def check_store(out: Path) -> None:
    """Make sure that ``out`` holds results that this version can read.

    Raises:
        UsageError: There is no store.
        StoreSchemaError: It has another schema or is damaged.
    """
    marker = out / "store.json"
    if not marker.is_file():
        raise UsageError(
            f"no store at {out} (expected {marker})",
            hint=f"name the folder of an earlier run with --out, or: sfuda-bench run --out {out}",
        )
    check_schema(marker)


def read_cells(out: Path) -> list[CellRecord]:
    """Read every finished cell, ordered by path; a folder without ``cell.json`` is none.

    Raises:
        StoreSchemaError: A ``cell.json`` is damaged, lacks a field or has another schema.
    """
    return [_read_cell(path) for path in sorted((out / "cells").glob("*/*/*/cell.json"))]


def read_cases(cells: Iterable[CellRecord], profile: str) -> pd.DataFrame:
    """Read the per-image scores of cells under one profile.

    Args:
        cells: Those not scored under ``profile`` add no rows.
        profile: Name of the profile.

    Returns:
        One row per cell, selection, image and structure: the columns of
        ``cases-<profile>.parquet`` and ``key``, the cell's adaptation key.

    Raises:
        StoreSchemaError: A file is damaged, lacks a column or names a case twice.
    """
    parts = [_read_cell_cases(cell, profile) for cell in cells if profile in cell.profiles]
    if not parts:
        return pd.DataFrame(columns=[*CASE_COLUMNS, "key"])
    return pd.concat(parts, ignore_index=True)


def read_scoring(cells: Iterable[CellRecord], profile: str) -> dict[str, Any]:
    """Return how cells were scored: the profile's fields, engine, scorer, grid.

    Returns:
        An empty dict when no cell was scored under ``profile``.

    Raises:
        UsageError: The cells were not all scored in the same way, so that no table may
            compare them.
    """
    found: dict[str, Any] = {}
    for cell in cells:
        path = cell.folder / f"scores-{profile}.json"
        if not path.is_file():
            continue
        record = read_json(path)
        scoring = {
            **record.get("profile_fields", {}),
            "engine": record.get("engine", "core"),
            "scorer_version": record.get("scorer_version"),
            "evaluation_grid": record.get("evaluation_grid"),
        }
        if found and scoring != found:
            names = sorted(n for n in {*found, *scoring} if found.get(n) != scoring.get(n))
            raise UsageError(
                f"{path}: profile '{profile}' was applied in two ways "
                f"(they differ in {', '.join(names)})",
                hint=f"sfuda-bench rescore --profile {profile}",
            )
        found = scoring
    return found


def read_plan(out: Path) -> list[AskedCell] | None:
    """Read which cells the newest run asked for, in table order; ``None`` when unknown.

    Raises:
        StoreSchemaError: ``plans/last.json`` is damaged.
    """
    path = out / "plans" / "last.json"
    if not path.is_file():
        return None
    names = [field.name for field in fields(AskedCell)]
    try:
        return [
            AskedCell(**{n: cell[n] for n in names if n in cell or n != _NEW_IN_PLANS})
            for cell in read_json(path)["cells"]
        ]
    except (KeyError, TypeError, StoreSchemaError) as error:
        raise StoreSchemaError(
            f"{path}: damaged plan ({error})", hint=f"delete {path}; all stored cells are shown"
        ) from error


def asked_from(cells: Sequence[CellRecord]) -> list[AskedCell]:
    """Return stored cells as if a run had asked for exactly them."""
    names = [field.name for field in fields(AskedCell) if field.name not in _ONLY_IN_PLANS]
    return [AskedCell(**{name: getattr(cell, name) for name in names}) for cell in cells]


def _read_cell(path: Path) -> CellRecord:
    record = read_json(path)
    if record.get("schema", SCHEMA) != SCHEMA:
        raise spoilt(path, f"schema {record['schema']!r}, this version reads schema {SCHEMA}")
    names = [field.name for field in fields(CellRecord) if field.name not in ("folder", "record")]
    missing = [name for name in names if name not in record]
    if missing:
        raise spoilt(path, f"lacks {', '.join(missing)}")
    return CellRecord(path.parent, record, **{name: record[name] for name in names})


def _read_cell_cases(cell: CellRecord, profile: str) -> pd.DataFrame:
    path = cell.folder / f"cases-{profile}.parquet"
    cases = read_parquet(path)
    missing = [name for name in CASE_COLUMNS if name not in cases.columns]
    problem = f"lacks the columns {', '.join(missing)}" if missing else ""
    if not missing and cases.duplicated(["selection", "image", "structure"]).any():
        problem = "names an image and structure twice"
    if problem:
        raise spoilt(path, problem)
    return cases.assign(key=cell.key)

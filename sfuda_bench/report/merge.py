"""Joining stores: cells computed apart, in one store that reports as if one run had made them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sfuda_bench.errors import CheckFailed, UsageError
from sfuda_bench.report.records import (
    AskedCell,
    CellRecord,
    asked_from,
    check_store,
    read_cells,
    read_plan,
    read_scoring,
)
from sfuda_bench.running.store import (
    SCHEMA,
    make_folder,
    read_json,
    sync_tree,
    write_json,
    write_sealed,
)

_CARRIED = ("sources/*/*", "artefacts/*/*")


@dataclass(frozen=True)
class Merged:
    """What a merge did.

    Attributes:
        copied: Cells that came from a later store.
        shared: Cells that several stores hold with the same adapted model.
        different: Cells of one key whose adapted models differ; the first store's is kept.
    """

    copied: int
    shared: int
    different: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``merge --json`` prints."""
        return {"copied": self.copied, "shared": self.shared, "different": list(self.different)}


def merge(stores: Sequence[Path], out: Path) -> Merged:
    """Copy the cells, source models and artefacts of stores into one.

    Args:
        stores: Two or more stores; what several hold is taken from the first of them.
        out: A new folder, or an existing store, which then counts as the first.

    Raises:
        UsageError: No store, fewer than two, or profiles that were applied in two ways.
        StoreSchemaError: A store of another schema, or a damaged one.
        CheckFailed: A domain whose images or masks differ between the stores.
    """
    given = [out, *stores] if (out / "store.json").is_file() else list(stores)
    if len(given) < 2:
        raise UsageError(
            "merge: expected at least two stores", hint="sfuda-bench merge A B --out C"
        )
    for store in given:
        check_store(store)
    cells = {store: read_cells(store) for store in given}
    _check_profiles([cell for found in cells.values() for cell in found])
    _check_data(cells)
    write_json(out / "store.json", {"schema": SCHEMA})
    merged = _copy_cells(cells, out)
    for store in given:
        for pattern in _CARRIED:
            for folder in sorted(store.glob(pattern)):
                _copy(folder, out / folder.relative_to(store))
    _join_plans(cells, out)
    return merged


def _check_profiles(cells: Sequence[CellRecord]) -> None:
    for profile in sorted({name for cell in cells for name in cell.profiles}):
        read_scoring(cells, profile)


def _check_data(cells: Mapping[Path, Iterable[CellRecord]]) -> None:
    """Refuse two versions of one domain: their cells would be averaged over other images."""
    seen: dict[tuple[str, ...], tuple[str, Path]] = {}
    for store, found in cells.items():
        for cell in found:
            for what, digest in _data_digests(cell):
                known, where = seen.setdefault(what, (digest, store))
                if known != digest:
                    raise CheckFailed(
                        f"the {what[0]} of {what[1]} differ between {where} and {store}",
                        hint="merge only stores that were computed from the same files",
                    )


def _data_digests(cell: CellRecord) -> Iterable[tuple[tuple[str, ...], str]]:
    size = str(cell.image_size)
    for split, digest in cell.record.get("digests", {}).items():
        yield (f"{split.removeprefix('target_')} images", cell.target, size), str(digest)
    for profile in cell.profiles:
        record = read_json(cell.folder / f"scores-{profile}.json")
        if "mask_digest" in record:
            grid = str(record.get("evaluation_grid"))
            yield ("test masks", cell.target, grid), str(record["mask_digest"])


def _copy_cells(cells: Mapping[Path, Sequence[CellRecord]], out: Path) -> Merged:
    kept: dict[str, CellRecord] = {}
    copied = shared = 0
    different: list[str] = []
    for store, found in cells.items():
        for cell in found:
            first = kept.setdefault(cell.key, cell)
            if first is cell:
                copied += _copy(cell.folder, out / cell.folder.relative_to(store))
            elif _model(first) == _model(cell):
                shared += 1
            else:
                different.append(f"{cell.method} {cell.source}:{cell.target} seed {cell.seed}")
    return Merged(copied, shared, tuple(different))


def _model(cell: CellRecord) -> Any:
    return cell.record.get("adapted_model_sha256")


def _copy(folder: Path, final: Path) -> bool:
    """Copy a finished folder beside its place and rename it; one that is there stays."""
    if final.exists() or not folder.is_dir():
        return False
    staged = final.with_name(f".{final.name}.merging")
    shutil.rmtree(staged, ignore_errors=True)
    make_folder(final.parent)
    shutil.copytree(folder, staged)
    sync_tree(staged)
    staged.rename(final)
    return True


def _join_plans(cells: Mapping[Path, Sequence[CellRecord]], out: Path) -> None:
    """Ask for what the stores' newest runs asked for, without repeats."""
    asked: dict[str, AskedCell] = {}
    for store, found in cells.items():
        plan = read_plan(store)
        for cell in asked_from(found) if plan is None else plan:
            asked.setdefault(cell.key, cell)
    names = [field.name for field in fields(AskedCell)]
    rows = [{name: getattr(cell, name) for name in names} for cell in asked.values()]
    write_sealed(out / "plans" / "last.json", {"cells": rows})

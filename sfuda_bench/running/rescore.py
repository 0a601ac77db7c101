"""Scoring stored predictions again, under another profile or engine; no network is needed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.running.keys import digest
from sfuda_bench.running.score import score_cell
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.scorer import ENGINES


def rescore(
    out: Path, profile: str, engine: str = "core", *, average_last: int | None = None, jobs: int = 1
) -> int:
    """Score every stored cell under one profile and replace its scores.

    Args:
        out: The store.
        profile: Profile name.
        engine: ``core`` or ``medpy`` (the independent reference).
        average_last: k of the selection ``average-last-k``; as it was scored when not given.
        jobs: Processes that score at once.

    Returns:
        The number of cells scored.

    Raises:
        UsageError: No store, no cells, or an unknown profile or engine.
        DataError: The masks of a cell's test images are not in the store.
    """
    if not (out / "store.json").is_file():
        raise UsageError(f"no store at {out}", hint="sfuda-bench run --out DIR")
    if engine not in ENGINES:
        raise UsageError(f"--engine {engine}: expected one of {', '.join(ENGINES)}")
    get_profile(profile)
    store = Store.open(out, create=False)
    cells = sorted(out.glob("cells/*/*/*/cell.json"))
    if not cells:
        raise UsageError(f"{out} holds no cells to score", hint="sfuda-bench run --out DIR")
    tasks = [
        {
            "cell_dir": str(path.parent),
            "masks": masks_of(store, path.parent),
            "profile": profile,
            "engine": engine,
            "average_last": average_last or _scored(path.parent).get("average_last") or 5,
        }
        for path in cells
    ]
    Parallel(n_jobs=jobs)(delayed(score_cell)(task) for task in tasks)
    return len(tasks)


def masks_of(store: Store, cell_dir: Path) -> Mapping[str, Any]:
    """Find the packed masks and names of a cell's test images by their opaque ids.

    The grid is the one that the cell was scored on; the largest when it never was.

    Raises:
        DataError: The store holds no such masks.
    """
    suffix = "-cup.png"
    ids = frozenset(
        path.name.removesuffix(suffix) for path in (cell_dir / "predictions").glob(f"*{suffix}")
    )
    packs = _packs(store.packed).get(ids, {})
    grid = _scored(cell_dir).get("evaluation_grid") or max(packs, default=0)
    found = packs.get(grid)
    if found is None:
        raise DataError(
            f"{cell_dir}: no masks of its test images in {store.packed}",
            hint="run the same `sfuda-bench run` command again with the data at hand",
        )
    return found


def _scored(cell_dir: Path) -> dict[str, Any]:
    """Return any scoring record of a cell: all share the grid and the number of epochs."""
    records = sorted(cell_dir.glob("scores-*.json"))
    return read_json(records[0]) if records else {}


@cache
def _packs(packed: Path) -> dict[frozenset[str], dict[int, dict[str, Any]]]:
    """Return, per set of ids and size, the packed masks and the names."""
    names = {
        frozenset(read_json(path)["ids"]): packed / "names" / path.name
        for path in sorted((packed / "images").glob("*.json"))
    }
    packs: dict[frozenset[str], dict[int, dict[str, Any]]] = {}
    for path in sorted((packed / "masks").glob("*.json")):
        meta = read_json(path)
        ids = frozenset(meta["ids"])
        if ids in names:
            packs.setdefault(ids, {})[meta["size"]] = {
                "masks": str(path.with_suffix(".npy")),
                "names": str(names[ids]),
                "ids": meta["ids"],
                "digest": digest([meta["mask_digest"], meta["size"]]),
            }
    return packs

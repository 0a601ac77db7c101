"""Dice over thresholds and calibration of stored cells, written beside their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import frame_digest, write_scored
from sfuda_bench.images.packed import load_pack, stems_of
from sfuda_bench.running.predict import read_predictions
from sfuda_bench.running.rescore import masks_of
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.scoring.thresholds import (
    CURVE_VERSION,
    expected_calibration_error,
    threshold_curve,
)


def write_thresholds(cell_dir: Path, masks: Mapping[str, Any]) -> None:
    """Write ``thresholds.parquet`` and ``thresholds.json`` of one cell, from its last epoch.

    The frame has one row per image, structure and threshold; the document has the calibration
    error per structure and what was compared.

    Args:
        cell_dir: Folder of a finished cell.
        masks: ``masks`` and ``names`` (paths), ``ids`` and ``digest`` of its test images, as for
            scoring.
    """
    truth, ids = load_pack(Path(masks["masks"])), tuple(masks["ids"])
    codes = read_predictions(cell_dir / "predictions", ids)
    frame = threshold_curve(codes, truth, stems_of(Path(masks["names"]), ids))
    record = {
        "cell": read_json(cell_dir / "cell.json")["key"],
        "version": CURVE_VERSION,
        "selection": "last",
        "evaluation_grid": int(truth.shape[-1]),
        "mask_digest": masks["digest"],
        "ece": expected_calibration_error(codes, truth),
        "digest": frame_digest(frame),
    }
    write_scored(cell_dir / "thresholds.json", record, {"thresholds.parquet": frame})


def write_store_thresholds(out: Path, *, jobs: int = 1) -> int:
    """Write the records of every cell that lacks them or has older ones.

    Args:
        out: The store.
        jobs: Processes at once.

    Returns:
        The number of cells written.

    Raises:
        UsageError: No store or no cells.
        DataError: The masks of a cell's test images are not in the store.
    """
    if not (out / "store.json").is_file():
        raise UsageError(f"no store at {out}", hint="sfuda-bench run --out DIR")
    store = Store.open(out, create=False)
    cells = sorted(path.parent for path in out.glob("cells/*/*/*/cell.json"))
    if not cells:
        raise UsageError(f"{out} holds no cells", hint="sfuda-bench run --out DIR")
    pending = [(cell, masks_of(store, cell)) for cell in cells]
    pending = [(cell, masks) for cell, masks in pending if _needs(cell, masks)]
    Parallel(n_jobs=jobs)(delayed(write_thresholds)(cell, masks) for cell, masks in pending)
    return len(pending)


def _needs(cell_dir: Path, masks: Mapping[str, Any]) -> bool:
    path = cell_dir / "thresholds.json"
    if not path.is_file():
        return True
    record = read_json(path)
    return (record["version"], record["mask_digest"]) != (CURVE_VERSION, masks["digest"])

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import read_parquet
from sfuda_bench.running.predict import write_predictions
from sfuda_bench.running.threshold_records import write_store_thresholds


def store_of_one_cell(out: Path) -> Path:
    """A store with one cell of two images, predicted with certainty and half right."""
    masks = np.zeros((2, 2, 8, 8), bool)
    masks[:, :, :4] = True
    (out / "packed").mkdir(parents=True)
    for folder in ("images", "masks", "names"):
        (out / "packed" / folder).mkdir()
    ids = ["aa", "bb"]
    (out / "store.json").write_text('{"schema": 1}')
    (out / "packed/images/one.json").write_text(json.dumps({"ids": ids}))
    (out / "packed/names/one.json").write_text(json.dumps({"aa": "g1", "bb": "n1"}))
    meta = {"ids": ids, "size": 8, "mask_digest": "d"}
    (out / "packed/masks/one.json").write_text(json.dumps(meta))
    np.save(out / "packed/masks/one.npy", masks)
    cell = out / "cells/method/a-b/0123"
    cell.mkdir(parents=True)
    (cell / "cell.json").write_text('{"key": "0123"}')
    codes = np.where(np.arange(8)[:, None] < 2, 255, 0).astype(np.uint8)
    write_predictions(
        cell / "predictions", ("aa", "bb"), np.broadcast_to(codes, (2, 2, 8, 8)).copy()
    )
    return cell


def test_every_cell_gets_its_curve_once(tmp_path: Path) -> None:
    cell = store_of_one_cell(tmp_path / "out")
    assert write_store_thresholds(tmp_path / "out") == 1
    frame = read_parquet(cell / "thresholds.parquet")
    assert set(frame["image"]) == {"g1", "n1"}
    # Two of four true rows are predicted: 2 * 2 / (2 + 4).
    assert frame["dice"].tolist() == pytest.approx([2 / 3] * len(frame))
    record = json.loads((cell / "thresholds.json").read_text())
    # Nothing but the stored code's half step and the missing quarter of the pixels.
    assert record["ece"]["cup"] == pytest.approx(0.25, abs=1 / 256)
    assert write_store_thresholds(tmp_path / "out") == 0


def test_a_folder_without_a_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no store"):
        write_store_thresholds(tmp_path)

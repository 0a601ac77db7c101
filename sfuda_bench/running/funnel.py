"""The pseudo-label funnel: how much, and how right, at each stage of a method.

It needs the labels of the images that a method adapts to, so it is an oracle's view and is
computed by the label worker alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import save_file

from sfuda_bench.frames import write_scored
from sfuda_bench.running.label_files import FILE, read_pseudo_labels
from sfuda_bench.running.score import masks_of_job
from sfuda_bench.scoring.codes import STRUCTURES

Array = np.ndarray[Any, Any]


def write_pseudo_labels(folder: Path, stages: Mapping[str, tuple[Array, Array]]) -> None:
    """Store labels and masks of every stage as bits, in the order they were handed in.

    Args:
        folder: Of the cell.
        stages: Stage to label and keep, each (N, 2, S, S) bool.
    """
    tensors = {}
    for order, (stage, (label, keep)) in enumerate(stages.items()):
        tensors[f"{order:02d}.{stage}.label"] = np.packbits(label, axis=-1)
        tensors[f"{order:02d}.{stage}.keep"] = np.packbits(keep, axis=-1)
    save_file(tensors, folder / FILE)


def score_labels(job: Mapping[str, Any]) -> None:
    """Judge a cell's pseudo-labels against the masks of target ``train``: ``funnel.parquet``.

    Args:
        job: ``cell_dir``, ``key``, ``record``, and ``masks`` packed at the model's size.
    """
    cell_dir = Path(job["cell_dir"])
    masks, _, images = masks_of_job(job)
    rows = []
    for order, (stage, (label, keep)) in enumerate(read_pseudo_labels(cell_dir).items()):
        for place, image in enumerate(images):
            for channel, structure in enumerate(STRUCTURES):
                truth = np.asarray(masks[place][channel], dtype=bool)
                found = funnel_values(label[place, channel], keep[place, channel], truth)
                rows.append({"stage": stage, "order": order, "image": image} | found)
                rows[-1]["structure"] = structure
    columns = ["stage", "order", "image", "structure", *_VALUES]
    frame = pd.DataFrame(rows, columns=columns)
    fields = {"score_key": job["key"], "oracle": True}
    write_scored(cell_dir / job["record"], fields, {"funnel.parquet": frame})


_VALUES = ("coverage", "purity", "dice", "area_bias")


def funnel_values(label: Array, keep: Array, truth: Array) -> dict[str, float]:
    """Return coverage, purity, Dice and area bias of one structure's pseudo-label.

    Args:
        label: (S, S) bool.
        keep: (S, S) bool, the pixels that training uses.
        truth: (S, S) bool.

    Returns:
        ``coverage``: share of pixels kept; ``purity``: share of kept pixels whose label is right;
        ``dice`` of the whole label; ``area_bias``: (label's area - true area) / true area.

    Undefined:
        No kept pixel: purity NaN. No true pixel: area bias NaN; Dice 1 if the label is empty too.
    """
    kept, area = int(keep.sum()), int(truth.sum())
    both = int((label & truth).sum())
    total = int(label.sum()) + area
    return {
        "coverage": kept / keep.size,
        "purity": float((label == truth)[keep].mean()) if kept else float("nan"),
        "dice": 2 * both / total if total else 1.0,
        "area_bias": (int(label.sum()) - area) / area if area else float("nan"),
    }

"""Scoring stored predictions against masks: the label worker's second duty."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.frames import frame_digest, read_parquet, write_scored
from sfuda_bench.images.packed import load_pack, stems_of
from sfuda_bench.running.keys import score_key
from sfuda_bench.running.predict import read_predictions
from sfuda_bench.running.store import read_json, write_sealed
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.scorer import (
    SCORER_VERSION,
    average_selections,
    oracle_epoch,
    score_set,
)
from sfuda_bench.scoring.validators import COLLAPSED, PRIMARY, PRIMARY_NAME, choose

_IDENTITY = ("method", "source", "target", "source_seed", "seed")


def needs_scoring(cell_dir: Path, job: Mapping[str, Any]) -> bool:
    """Whether what a scoring job writes is missing, damaged or was made another way."""
    record = cell_dir / job["record"]
    if not record.is_file() or read_json(record).get("score_key") != job["key"]:
        return True
    name, profile = record.stem, job["profile"]
    frames = [f"cases-{profile}", f"eyes-{profile}"] if job["kind"] == "score" else [name]
    return not all(_readable(cell_dir / f"{frame}.parquet") for frame in frames)


def _readable(frame: Path) -> bool:
    try:
        read_parquet(frame)
    except StoreSchemaError:
        return False
    return True


def score_cell(job: Mapping[str, Any]) -> None:
    """Score one cell under one profile and write the results into its folder.

    Args:
        job: ``cell_dir``, ``profile``, ``engine``, ``average_last`` and ``masks``: paths of the
            packed masks (N, 2, G, G) on the evaluation grid and of the names, and the ids in
            packed order.
    """
    cell_dir = Path(job["cell_dir"])
    cell = read_json(cell_dir / "cell.json")
    profile = get_profile(job["profile"])
    masks, ids, stems = masks_of_job(job)

    def scores(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
        codes = read_predictions(folder, ids)
        return score_set(codes, masks, stems, profile, engine=job["engine"])

    cases, eyes = scores(cell_dir / "predictions")
    parts = [(cases.assign(selection="last"), eyes.assign(selection="last"))]
    frames: dict[str, pd.DataFrame] = {}
    if cell["tracked"]:
        epochs = {
            int(folder.name.removeprefix("epoch-")): scores(folder)
            for folder in sorted((cell_dir / "predictions").glob("epoch-*"))
        }
        parts += _selections(epochs, job["average_last"])
        parts += _label_free(epochs, cell_dir)
        curves = [case.assign(epoch=epoch) for epoch, (case, _) in sorted(epochs.items())]
        columns = ["epoch", "structure", "image", "dice"]
        frames["epochs"] = pd.concat(curves)[columns].reset_index(drop=True)
    identity = {name: cell[name] for name in _IDENTITY}
    frames["cases"] = _with_identity(pd.concat([case for case, _ in parts]), identity)
    frames["eyes"] = _with_identity(pd.concat([eye for _, eye in parts]), identity)
    mask_digest = job["masks"]["digest"]
    average_last = job["average_last"] if cell["tracked"] else None
    record = {
        "profile": profile.name,
        "profile_fields": profile.digest_fields(),
        "scorer_version": SCORER_VERSION,
        "engine": job["engine"],
        "evaluation_grid": int(masks.shape[-1]),
        "mask_digest": mask_digest,
        "average_last": average_last,
        "score_key": score_key(
            cell["key"],
            mask_digest,
            profile.digest_fields(),
            job["engine"],
            average_last,
            SCORER_VERSION,
        ),
        "digest": frame_digest(frames["cases"]),
        "digests": {name: frame_digest(frame) for name, frame in frames.items()},
    }
    files = {f"{name}-{profile.name}.parquet": frame for name, frame in frames.items()}
    write_scored(cell_dir / f"scores-{profile.name}.json", record, files)


def _selections(
    epochs: dict[int, tuple[pd.DataFrame, pd.DataFrame]], k: int
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the cases and eyes of ``average-last-k`` and ``oracle``.

    An average over epochs has no single cup-to-disc ratio per eye: the ratios are averaged too.
    """
    if not epochs:
        return []
    cases = pd.concat([frame.assign(epoch=epoch) for epoch, (frame, _) in epochs.items()])
    eyes = pd.concat([frame.assign(epoch=epoch) for epoch, (_, frame) in epochs.items()])
    best = oracle_epoch(cases)
    trained = sorted(epoch for epoch in epochs if epoch > 0)[-k:]
    name = f"average-last-{k}"  # a method with fewer epochs averages those it has
    parts = [
        (epochs[best][0].assign(selection="oracle"), epochs[best][1].assign(selection="oracle"))
    ]
    if trained:
        mean_eyes = (
            eyes[eyes["epoch"].isin(trained)]
            .drop(columns="epoch")
            .groupby("image", as_index=False)
            .mean()
        )
        averaged = average_selections(cases, len(trained))
        parts.append((averaged.assign(selection=name), mean_eyes.assign(selection=name)))
    return parts


def _label_free(
    epochs: Mapping[int, tuple[pd.DataFrame, pd.DataFrame]], cell_dir: Path
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the cases and eyes of the epoch that each recorded validator prefers.

    Which epoch that is does not depend on any label; it is written into ``selections.json``.
    """
    path = cell_dir / "validators.parquet"
    if not path.is_file():
        return []
    values = read_parquet(path)
    values = values[values["epoch"].isin(list(epochs))]
    names = sorted({str(name) for name in values["validator"]} - {COLLAPSED})
    if set(PRIMARY) <= set(names):
        names.append(PRIMARY_NAME)
    chosen = {f"label-free:{name}": choose(values, name) for name in names}
    write_sealed(cell_dir / "selections.json", chosen)
    return [
        (epochs[epoch][0].assign(selection=name), epochs[epoch][1].assign(selection=name))
        for name, epoch in chosen.items()
    ]


def masks_of_job(
    job: Mapping[str, Any],
) -> tuple[np.ndarray[Any, Any], tuple[str, ...], list[str]]:
    """Return packed masks, ids and file names of a scoring job, all in packed order."""
    ids = tuple(job["masks"]["ids"])
    return load_pack(Path(job["masks"]["masks"])), ids, stems_of(Path(job["masks"]["names"]), ids)


def _with_identity(frame: pd.DataFrame, identity: Mapping[str, Any]) -> pd.DataFrame:
    keys = [*identity, "selection", "image"]
    frame = frame.assign(**identity).reset_index(drop=True)
    rest = [column for column in frame.columns if column not in keys]
    return frame[[*keys, *rest]]

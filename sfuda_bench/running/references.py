"""Labelled reference rows, such as a network trained on the target's own labels.

Runs in the label worker; their rows are marked as oracles in every table.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfuda_bench.methods import METHODS
from sfuda_bench.running.adaptation import Emit, commit_cell, run_record
from sfuda_bench.running.counting import ImageCount
from sfuda_bench.running.predict import predict
from sfuda_bench.running.recording import LateImages, Recorder, inference_seed
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store
from sfuda_bench.settings import Inference, NetworkSettings
from sfuda_bench.tunable import build_config


@dataclass(frozen=True)
class LabelledTask:
    """Implements :class:`sfuda_bench.methods.SupervisedTask`."""

    target_model: nn.Module


def compute_reference(job: dict[str, Any], store: Store, device: torch.device, emit: Emit) -> None:
    """Compute and commit one cell of a labelled reference."""
    started = time.time()
    spec = METHODS.get(job["cell"]["method"])
    if spec.supervised is None:
        raise TypeError(f"'{spec.name}' is not a labelled reference")
    staged = store.staging(job["key"], "cell")
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), device)
    config = build_config(spec.config, job["cell"]["config"], owner=spec.name)
    emit("predicting", 0, 0)
    network = spec.supervised(LabelledTask(model), config)
    test = LateImages(job["images"]["test"], device)
    inference = Inference(**job["inference"])
    codes = predict(network, test.load().images, inference, job["precision"], inference_seed(job))
    recorder = Recorder(job, model, test, staged, device, ImageCount())
    recorder.observe(0, model)  # nothing is adapted: first and last are one model
    recorder.finish(network, 0, codes)
    seconds = round(recorder.seconds, 3)
    record = {**run_record(started, device), "recording_seconds": seconds}
    # The model is the target's source model and is stored there.
    commit_cell({**job, "keep_model": False}, store, staged, network, codes, 0, record)

"""Computing one cell: adapt a copy of the source model, predict the test images, commit.

Runs in the adapt worker, which is given images only.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfuda_bench.errors import MethodWarning, UsageError
from sfuda_bench.frames import write_parquet
from sfuda_bench.methods import METHODS, MethodSpec
from sfuda_bench.networks.batch_norm import batch_norm_layers
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.checkpoint import Checkpoints, Stateful, checkpoints_of
from sfuda_bench.running.counting import ImageCount, count_images
from sfuda_bench.running.firewall import layers
from sfuda_bench.running.frozen import ArtefactCache
from sfuda_bench.running.funnel import write_pseudo_labels
from sfuda_bench.running.intact import Lent
from sfuda_bench.running.keys import derive_seed, model_sha256
from sfuda_bench.running.pictures import write_pictures
from sfuda_bench.running.predict import predict, predict_with, write_predictions
from sfuda_bench.running.recording import (
    ImageSet,
    LateImages,
    Recorder,
    forget_sources,
    inference_seed,
)
from sfuda_bench.running.runtime import environment
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store, read_json, write_json, write_sealed
from sfuda_bench.running.streams import Streams
from sfuda_bench.running.target import TargetImages
from sfuda_bench.running.task import Observer, Task, check_finite
from sfuda_bench.settings import Inference, NetworkSettings
from sfuda_bench.tunable import build_config

_log = logging.getLogger(__name__)

Emit = Callable[[str, int, int], None]


@dataclass
class Adapted:
    """What a protocol run leaves behind."""

    model: nn.Module
    codes: np.ndarray[Any, Any]
    task: Task
    count: ImageCount
    recording_seconds: float


def cell_checkpoints(
    job: Mapping[str, Any], store: Store, device: torch.device, key: str | None = None
) -> Checkpoints:
    """Return the checkpoints of a cell, or of an artefact that it needs."""
    return checkpoints_of(job, store, device, job["code_digest"], key)


def compute_cell(job: dict[str, Any], store: Store, device: torch.device, emit: Emit) -> None:
    """Adapt, predict and commit one cell.

    Args:
        job: The cell's fields as planned; see ``plan.py``.
        store: Where it is committed.
        device: Where it runs.
        emit: Progress callback (stage, epoch, epochs).
    """
    started = time.time()
    spec = METHODS.get(job["cell"]["method"])
    checkpoints = cell_checkpoints(job, store, device)
    staged = store.staging(job["key"], "cell", keep=checkpoints.exist())
    source = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), device)
    reference = copy.deepcopy(source)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MethodWarning)
        adapted = _run_protocol(job, spec, source, store, device, staged, emit, checkpoints)
    check_finite(adapted.model)
    changed = changed_parts(reference, adapted.model)
    if "whole" not in spec.updates and not changed <= spec.updates:
        undeclared = ", ".join(sorted(changed - spec.updates))
        raise UsageError(
            f"method '{spec.name}' changed {undeclared} but declares only "
            f"{sorted(spec.updates) or 'nothing'}",
            hint=f"name it in updates= in {spec.origin}",
        )
    emit("storing", 0, 0)
    _write_curve(adapted.task, staged)
    if adapted.task.labels:
        write_pseudo_labels(staged, adapted.task.labels)
    for warning in caught:
        _log.warning("%s: %s", warning.category.__name__, warning.message)
    record = {
        **run_record(started, device),
        "artefacts": adapted.task.used,
        "artefacts_computed": adapted.task.artefacts.computed,
        "resumed_after_epoch": checkpoints.resumed,
        "recording_seconds": round(adapted.recording_seconds, 3),
        **adapted.count.since(ImageCount()),
        "warnings": [str(w.message) for w in caught if w.category is MethodWarning],
    }
    commit_cell(job, store, staged, adapted.model, adapted.codes, adapted.task.last_epoch, record)


def commit_cell(
    job: Mapping[str, Any],
    store: Store,
    staged: Path,
    model: nn.Module,
    codes: np.ndarray[Any, Any],
    last_epoch: int,
    record: Mapping[str, Any],
) -> None:
    """Complete a staged cell and commit it: predictions, model unless declined, records, log."""
    write_predictions(staged / "predictions", tuple(job["images"]["test"]["ids"]), codes)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if job["keep_model"]:
        save_file(state, staged / "model.safetensors")
    card = read_json(Path(job["source_dir"]) / "card.json")
    cell = {
        **job["cell"],
        "source_model_sha256": card["model_sha256"],
        "adapted_model_sha256": model_sha256(state),
        "epochs": last_epoch,
        "tracked": "epochs" in job["record"],
        "recorded": job["record"],
        "code_digest": job["code_digest"],
    }
    write_json(staged / "cell.json", cell, durable=False)
    # Files that hold the window and nothing else give the same cell: it is no part of the record.
    run = {**record, "roi_crop_px": job["roi_crop_px"]}
    write_sealed(staged / "run.json", run, durable=False)
    store.keep_log(job["key"], staged)
    store.commit(staged, Path(job["cell_dir"]))


def run_record(started: float, device: torch.device) -> dict[str, Any]:
    """Return what ``run.json`` says: times and the machine, outside every key and digest."""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {
        "started": datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - started, 3),
        "peak_gpu_bytes": peak,
        **environment(device),
        "firewall": list(layers()),
    }


def _run_protocol(
    job: dict[str, Any],
    spec: MethodSpec,
    source: SegmentationNetwork,
    store: Store,
    device: torch.device,
    staged: Path,
    emit: Emit,
    checkpoints: Checkpoints,
) -> Adapted:
    inference = Inference(**job["inference"])
    precision, seed = job["precision"], inference_seed(job)
    test, train = LateImages(job["images"]["test"], device), None
    if job["cell"]["protocol"] == "offline":
        train = ImageSet.load(job["images"]["train"], device)
    adapt_on = train or test.load()
    count = count_images(source)
    recorder = Recorder(job, source, test, staged, device, count, train)
    task = make_task(
        job,
        spec,
        source,
        adapt_on,
        store,
        device,
        emit,
        recorder.observe,
        count,
        checkpoints,
        {"recorder": recorder},
    )
    lent = Lent(
        adapt_on.images, task.artefacts.source_model, spec.name, spec.origin, forget_sources
    )
    task.artefacts.check_inputs = lent.check
    config = build_config(spec.config, job["cell"]["config"], owner=spec.name)
    recorder.observe(0, source)
    if job["cell"]["protocol"] in ("online", "episodic"):
        model, codes = _run_online(job, spec, config, task, source, adapt_on)
    else:
        with test.closed() if train is not None else nullcontext():
            model = _run_offline(job, spec, config, task)
        emit("predicting", 0, 0)
        with count.paused():
            codes = predict(model, test.load().images, inference, precision, seed)
    recorder.finish(model, task.last_epoch, codes)
    if "pictures" in job["record"]:
        with recorder.aside(), task.unrecorded():
            write_pictures(staged, spec, config, task, copy.deepcopy(task.artefacts.source_model))
    lent.check()
    return Adapted(model, codes, task, count, recorder.seconds)


def _run_offline(job: Mapping[str, Any], spec: MethodSpec, config: Any, task: Task) -> nn.Module:
    """Adapt to all images before any is predicted."""
    if spec.adapt is None:
        raise UsageError(f"method '{spec.name}' has no offline form")
    torch.manual_seed(derive_seed(job["stream_key"], "init"))
    model: nn.Module = spec.adapt(task, config).eval()
    check_finite(model)
    return model


def make_task(
    job: Mapping[str, Any],
    spec: MethodSpec,
    source: SegmentationNetwork,
    images: ImageSet,
    store: Store,
    device: torch.device,
    emit: Emit,
    observe: Observer = lambda epoch, model: None,
    count: ImageCount | None = None,
    checkpoints: Checkpoints | None = None,
    carried: Mapping[str, Stateful] | None = None,
) -> Task:
    """Return the task of one cell over the images that it adapts to.

    What it carries from one epoch to the next besides ``carried``: random streams and cost.
    """
    count = count or ImageCount()
    artefacts = ArtefactCache(
        store=store,
        base=job["artefact_base"],
        source_model=copy.deepcopy(source),
        target=TargetImages(images.images, images.ids, Streams(job["stream_key"]), images.large),
        device=device,
        precision=job["precision"],
        emit=emit,
        count=count,
        checkpoints=lambda key: cell_checkpoints(job, store, device, key),
    )
    aux_dir = Path(job["source_dir"]) / "aux"
    return Task(
        source_model=source,
        target=artefacts.target,
        aux={name: read_json(aux_dir / f"{name}.json") for name in sorted(spec.requires)},
        artefacts=artefacts,
        precision=job["precision"],
        observe=observe,
        emit=emit,
        keep_labels="labels" in job["record"],
        checkpoints=checkpoints,
        carried={"streams": artefacts.target.streams, "count": count, **(carried or {})},
    )


def _run_online(
    job: dict[str, Any],
    spec: MethodSpec,
    config: Any,
    task: Task,
    source: SegmentationNetwork,
    test: ImageSet,
) -> tuple[nn.Module, np.ndarray[Any, Any]]:
    """One pass over the test images in a seeded order; each is scored when it is visited."""
    if spec.online is None:
        raise UsageError(f"method '{spec.name}' has no online form")
    episodic = job["cell"]["protocol"] == "episodic"
    pristine = copy.deepcopy(source.state_dict())
    streams = task.target.streams
    order = torch.randperm(len(test.ids), generator=streams.generator("order"))
    visited = test.images[order.to(task.device)]
    streams.begin(1)
    step = spec.online(task, config)

    def visit(image: Tensor) -> Tensor:
        nonlocal step
        if episodic:
            source.load_state_dict(pristine)
            step = spec.online(task, config)  # type: ignore[misc]  # checked above
        return step(image)

    codes = predict_with(visit, visited, job["precision"], batch=config.batch_size)
    back = torch.argsort(order).numpy()
    return source.eval(), codes[back]


def _write_curve(task: Task, staged: Path) -> None:
    frame = pd.DataFrame(task.curve, columns=["epoch", "name", "value"])
    write_parquet(
        frame.astype({"epoch": "int64", "name": "str", "value": "float64"}),
        staged / "curve.parquet",
        durable=False,
    )


def changed_parts(before: nn.Module, after: nn.Module) -> set[str]:
    """Return which kinds of tensors differ: ``bn_stats``, ``bn_affine``, ``whole`` (the rest)."""
    old, new = before.state_dict(), after.state_dict()
    if old.keys() != new.keys():
        return {"whole"}
    norms = batch_norm_layers(before)
    affine = {f"{name}.{part}" for name in norms for part in ("weight", "bias")}
    statistics = {
        f"{name}.{part}"
        for name in norms
        for part in ("running_mean", "running_var", "num_batches_tracked")
    }
    kinds = set()
    for name in old:
        if torch.equal(old[name], new[name]):
            continue
        kind = "bn_stats" if name in statistics else "bn_affine" if name in affine else "whole"
        kinds.add(kind)
    return kinds

"""DPL on toy discs: its flags act on their stage alone, and its labels are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfuda_bench.methods import METHODS
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.settings import NetworkSettings
from sfuda_bench.tunable import build_config

CPU = torch.device("cpu")
BASE = ("initial_threshold=0.5", "batch_size=3")
LABELS, TRAINING = True, False
FLAGS = {
    # the setting, and whether it changes the labels or their use only
    "mc_dropout=false": LABELS,
    "mc_bn=batch": LABELS,
    "mc_batch=4": LABELS,
    "passes=5": LABELS,
    "temperature=1": LABELS,
    "uncertainty_threshold=0.01": LABELS,
    "uncertainty_quantile=0.5": LABELS,
    "initial_threshold=0.75": LABELS,
    "lr=0.001": TRAINING,
    "epochs=2": TRAINING,
    "batch_size=4": TRAINING,
    "shuffle=true": TRAINING,
    "augment=report": TRAINING,
    "augment=none": TRAINING,
    "bn_stats=frozen_source": TRAINING,
}


@pytest.fixture(scope="module")
def shared(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a bench whose artefacts the tests of this module share."""
    return copy_bench(trained, tmp_path_factory.mktemp("dpl"))


def overrides(*flags: str) -> list[str]:
    return [f"dpl.{flag}" for flag in (*BASE, *flags)]


def labels_of(outcome: Any) -> str:
    (used,) = read_json(outcome.folder / "run.json")["artefacts"]
    return str(used)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_its_stage_and_the_adapted_network(shared: Any, flag: str) -> None:
    plain = shared.run("dpl", overrides=overrides())
    flipped = shared.run("dpl", overrides=overrides(flag))
    assert (labels_of(plain) != labels_of(flipped)) == FLAGS[flag]
    assert plain.cell["key"] != flipped.cell["key"]
    assert plain.sha != flipped.sha


def test_labels_and_kept_pixels_are_reported(shared: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = shared.plan("dpl", overrides=overrides())
    job = dict(plan.cells[0].job)
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), CPU)
    images = ImageSet.load(job["images"]["train"], CPU)
    spec = METHODS.get("dpl")
    task = make_task(job, spec, model, images, Store(shared.out), CPU, lambda *a: None)
    reported: dict[str, tuple[Tensor, Tensor | None]] = {}

    def report(stage: str, label: Tensor, keep: Tensor | None = None) -> None:
        reported[stage] = (label, keep)

    monkeypatch.setattr(task, "pseudo_labels", report)
    assert spec.adapt is not None
    spec.adapt(task, build_config(spec.config, job["cell"]["config"], owner="dpl"))
    key = labels_of(shared.run("dpl", overrides=overrides())).split("/")[1]
    folder = next(shared.out.glob(f"artefacts/initial_labels/{key[:16]}*"))
    stored = load_file(folder / "tensors.safetensors")
    assert list(reported) == ["initial", "masked"]
    for label, _ in reported.values():
        assert label.dtype == torch.bool
        assert torch.equal(label, stored["label"].bool())
    assert reported["initial"][1] is None
    keep = reported["masked"][1]
    assert keep is not None
    assert torch.equal(keep, stored["reliable"].bool())

"""CPR on toy discs: the stages teach what they are meant to teach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfuda_bench.blocks.context_similarity import grid_labels, pair_index, pair_labels, similarity
from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.networks.similarity_head import SimilarityHead
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.frozen import FrozenArtefact
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store
from sfuda_bench.settings import NetworkSettings

CPU = torch.device("cpu")


def task_of(bench: Any, cell: Any) -> tuple[Any, Any]:
    """Return a cell's task and source model, as an adapting worker builds them."""
    job = dict(cell.job)
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), CPU)
    images = ImageSet.load(job["images"]["train"], CPU)
    spec = METHODS.get(cell.method)
    return make_task(job, spec, model, images, Store(bench.out), CPU, lambda *a: None), model


def true_labels(bench: Any) -> tuple[Tensor, Tensor]:
    """Return the target's masks in packed order: the labels that a perfect stage 1 would give."""
    from sfuda_bench.datasets import find_domains
    from sfuda_bench.images.packed import pack_masks

    split = find_domains(bench.data)["toy_b"].split("train")
    packed = pack_masks(split, 96, bench.out / "packed")
    assert packed is not None
    label = torch.from_numpy(packed.array.copy()).to(torch.uint8)
    return label, torch.ones_like(label)


def artefact(folder: Path, **tensors: Tensor) -> FrozenArtefact:
    """Return an artefact that holds the given tensors."""
    save_file(tensors, folder / "tensors.safetensors")
    return FrozenArtefact("truth", folder / "tensors.safetensors", CPU)


def step_named(name: str) -> Any:
    return next(step for step in METHODS.get("cpr").frozen_steps if step.__name__ == name)


@pytest.mark.parametrize("attention", [False, True])
def test_the_similarity_head_learns_which_neighbours_belong_together(
    bench: Any, attention: bool, tmp_path: Path
) -> None:
    """O20: pairs of one class end up more alike than pairs of two classes."""
    task, model = task_of(bench, bench.plan("cpr").cells[0])
    label, reliable = true_labels(bench)
    rule = {"radius": 2, "neighbourhood": "lt", "border": "official", "reduce": "mean"}
    head = task.frozen(
        step_named("similarity_head"),
        labels=artefact(tmp_path, label=label, reliable=reliable),
        **rule,
        attention=attention,
        shared_attention=False,
        lr=1e-2,
        epochs=30,
        batch_size=8,
        shuffle=False,
        encoder_bn="adapt",
        augment="none",
        beta1=0.9,
        beta2=0.99,
    )
    similarity_head = SimilarityHead(attention=attention)
    similarity_head.load_state_dict(
        {name[5:]: head[name] for name in head.names() if name.startswith("head.")}
    )
    buffers = {name[6:]: head[name] for name in head.names() if name.startswith("model.")}
    model.load_state_dict({**model.state_dict(), **buffers})
    pairs = pair_index(6, 6, 2)
    with torch.no_grad():
        batch = next(iter(task.target.batches(8)))
        context = model.eval().context(model.encode(batch.image))
        value = similarity(similarity_head.eval()(context), pairs)
    kinds = pair_labels(grid_labels(label, reliable, (6, 6)), pairs)
    for structure in (0, 1):
        across = value[:, structure][kinds.negative[:, structure]].mean()
        for same in (kinds.foreground, kinds.background):
            assert value[:, structure][same[:, structure]].mean() > across + 0.05
    assert head["loss"][-1] < head["loss"][0]


def test_stage_two_changes_only_buffers_of_the_network(bench: Any) -> None:
    """O14: the artefact carries the head and the drifted batch norm, no weight of the network."""
    bench.run("cpr")
    path = next(bench.out.glob("artefacts/similarity_head/*/tensors.safetensors"))
    names = {name.split(".", 1)[1] for name in load_file(path) if name.startswith("model.")}
    assert names
    suffixes = {name.rsplit(".", 1)[1] for name in names}
    assert suffixes == {"running_mean", "running_var", "num_batches_tracked"}


def test_frozen_batch_norm_of_stage_two_leaves_the_buffers_of_the_source(bench: Any) -> None:
    plan = bench.plan("cpr", overrides=["cpr.encoder_bn=frozen"])
    bench.compute(plan)
    source = load_file(plan.sources[0].folder / "model.safetensors")
    path = next(bench.out.glob("artefacts/similarity_head/*/tensors.safetensors"))
    for name, value in load_file(path).items():
        if name.startswith("model."):
            assert torch.equal(value, source[name.removeprefix("model.")])


def test_a_radius_that_leaves_no_pairs_is_refused_when_planning(bench: Any) -> None:
    with pytest.raises(UsageError, match="radius 4") as caught:
        bench.plan("cpr", overrides=["cpr.radius=4"])
    assert "at most 3" in str(caught.value.hint)


def test_contradictory_bounds_are_refused(bench: Any) -> None:
    with pytest.raises(UsageError, match=r"low.*exceeds.*high"):
        bench.plan("cpr", overrides=["cpr.low=0.9", "cpr.high=0.5"])

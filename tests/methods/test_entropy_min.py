"""Tent: what is trained, which way the loss goes, and which statistics are left behind."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfuda_bench.methods import METHODS
from sfuda_bench.networks.batch_norm import batch_norm_layers, estimate_statistics
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store
from sfuda_bench.settings import NetworkSettings

CPU = torch.device("cpu")
SPEC = METHODS.get("entropy_min")
MODULE: Any = inspect.getmodule(SPEC.adapt)
STRONG = ["entropy_min.lr=0.001", "entropy_min.epochs=2"]


def task_of(bench: Any) -> tuple[Any, Any]:
    job = dict(bench.plan("entropy_min").cells[0].job)
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), CPU)
    images = ImageSet.load(job["images"]["train"], CPU)
    return make_task(job, SPEC, model, images, Store(bench.out), CPU, lambda *a: None), model


def states(bench: Any, result: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state dicts of the source model and of the adapted one."""
    source_dir = next(bench.out.glob(f"sources/toy_a/{result.cell['source_key'][:16]}"))
    before, after = (load_file(f / "model.safetensors") for f in (source_dir, result.folder))
    return before, after


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def logits(seed: int = 0) -> Tensor:
    return 3 * torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_exactly_scale_and_shift_of_every_batch_norm_are_trained(bench: Any) -> None:
    """T-ENT-3, on the optimiser that the method builds: two parameters per layer."""
    task, model = task_of(bench)
    seen: dict[str, Any] = {}
    plain = torch.optim.Adam.step

    def spy(self: Any, *args: Any) -> Any:
        trained = {id(p) for group in self.param_groups for p in group["params"]}
        seen["names"] = {name for name, p in model.named_parameters() if id(p) in trained}
        seen["grads"] = {name for name, p in model.named_parameters() if p.grad is not None}
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        assert SPEC.adapt is not None
        SPEC.adapt(task, SPEC.config(batch_size=4))
    layers = batch_norm_layers(model)
    assert seen["names"] == {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    assert len(seen["names"]) == 2 * len(layers)
    assert seen["grads"] <= seen["names"]


def test_the_mean_entropy_falls_over_the_epochs(bench: Any) -> None:
    overrides = ["entropy_min.lr=0.001", "entropy_min.epochs=6"]
    result = bench.run("entropy_min", overrides=overrides)
    frame = pd.read_parquet(result.folder / "curve.parquet")
    entropy = list(frame[frame["name"] == "entropy"]["value"])
    assert len(entropy) == 6
    assert entropy[-1] < entropy[0]


def test_the_statistics_left_behind_are_adabn_under_the_adapted_scale_and_shift(bench: Any) -> None:
    before, after = states(bench, bench.run("entropy_min", overrides=STRONG))
    task, model = task_of(bench)
    affine = {n for n in changed(before, after) if n.endswith(("weight", "bias"))}
    assert affine
    model.load_state_dict({**before, **{name: after[name] for name in affine}})
    estimate_statistics(model, [batch.image for batch in task.target.batches(4)])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-5)


def test_under_source_statistics_only_scale_and_shift_move(bench: Any) -> None:
    overrides = [*STRONG, "entropy_min.bn_mode=source"]
    moved = changed(*states(bench, bench.run("entropy_min", overrides=overrides)))
    assert moved
    assert all(name.endswith(("weight", "bias")) for name in moved)


def test_several_online_steps_report_the_output_before_the_last_update(bench: Any) -> None:
    """With s steps per batch the reported output follows s - 1 updates."""
    outputs = {}
    for steps, moment in ((1, "after"), (2, "before"), (1, "before")):
        task, _ = task_of(bench)
        image = next(iter(task.target.batches(4))).image
        config = SPEC.config(lr=1e-2, steps=steps, score_output=moment)
        assert SPEC.online is not None
        with torch.no_grad():
            outputs[steps, moment] = SPEC.online(task, config)(image)
    torch.testing.assert_close(outputs[2, "before"], outputs[1, "after"])
    assert not torch.allclose(outputs[2, "before"], outputs[1, "before"])


@pytest.mark.parametrize("entropy", ["bernoulli", "nested", "foreground_only"])
def test_the_band_counts_undecided_pixels_only(entropy: str) -> None:
    config = SPEC.config(entropy=entropy, region="band")
    undecided = torch.zeros(1, 2, 4, 4)
    half = torch.cat([undecided, torch.full_like(undecided, 20.0)], dim=-1)
    value = MODULE.mean_entropy(half, config)
    torch.testing.assert_close(value, MODULE.mean_entropy(undecided, config))
    everywhere = MODULE.mean_entropy(half, SPEC.config(entropy=entropy))
    torch.testing.assert_close(everywhere, value / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("entropy", ["bernoulli", "nested", "foreground_only"])
def test_without_an_undecided_pixel_the_band_has_loss_zero_and_no_gradient(entropy: str) -> None:
    z = torch.full((1, 2, 4, 4), -20.0, requires_grad=True)
    loss = MODULE.mean_entropy(z, SPEC.config(entropy=entropy, region="band"))
    loss.backward()
    assert loss.item() == 0
    assert z.grad is not None
    assert z.grad.abs().max() == 0


def test_the_mean_over_pixels_is_the_two_class_softmax_entropy() -> None:
    """T-ENT-2, for the loss that the method minimises."""
    z = logits()
    log_q = torch.stack([torch.zeros_like(z), z]).log_softmax(0)
    expected = -(log_q.exp() * log_q).sum(0).mean()
    torch.testing.assert_close(MODULE.mean_entropy(z, SPEC.config()), expected)

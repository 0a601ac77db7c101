"""DUA: its schedule, its copies, and that its steps are exponential averages."""

from __future__ import annotations

import inspect
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfuda_bench.methods import METHODS
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store
from sfuda_bench.settings import NetworkSettings

CPU = torch.device("cpu")
SPEC = METHODS.get("dua")
MODULE: Any = inspect.getmodule(SPEC.adapt)
FEW = ["dua.copies=4"]


def task_of(bench: Any) -> tuple[Any, Any]:
    job = dict(bench.plan("dua").cells[0].job)
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), CPU)
    images = ImageSet.load(job["images"]["train"], CPU)
    return make_task(job, SPEC, model, images, Store(bench.out), CPU, lambda *a: None), model


def still(**values: Any) -> Any:
    """Return settings whose copies equal their image, apart from mirroring."""
    return SPEC.config(rotation_deg=0.0, scale_range=0.0, gamma_range=0.0, **values)


def test_the_momentum_schedule_has_golden_values() -> None:
    """T-BN-7."""
    rho = list(MODULE.momenta(SPEC.config()))
    assert len(rho) == 80
    golden = {1: 0.099, 2: 0.09336, 10: 0.0588615, 80: 0.0057083}
    for k, value in golden.items():
        assert rho[k - 1] == pytest.approx(value, abs=1e-7)


def test_the_weight_left_to_the_source_has_golden_values() -> None:
    """T-BN-7, the product of 1 - rho_k."""
    left = list(
        itertools.accumulate((1 - rho for rho in MODULE.momenta(SPEC.config())), lambda a, b: a * b)
    )
    golden = {10: 0.44695, 25: 0.24587, 50: 0.16633, 80: 0.13473}
    for steps, value in golden.items():
        assert left[steps - 1] == pytest.approx(value, abs=1e-5)


def test_the_adapted_mean_keeps_the_golden_share_of_the_source(bench: Any) -> None:
    """The first layer of a black-and-white world: constant images leave only the source's share."""
    task, model = task_of(bench)
    layer = model.stem[1]
    layer.running_mean.fill_(1.0)
    black = torch.full((3, 16, 16), -1.0)
    model.stem[0].weight.data.zero_()  # the layer sees zeros, so its mean decays from 1
    stream = MODULE._Stream(task, SPEC.config(copies=4))
    for _ in range(10):
        stream.learn(black)
    assert layer.running_mean.tolist() == pytest.approx([0.44695] * 8, abs=1e-5)


def test_learning_stops_after_the_last_image_of_the_prefix(bench: Any) -> None:
    task, model = task_of(bench)
    stream = MODULE._Stream(task, SPEC.config(copies=4, max_images=2))
    states = []
    for batch in task.target.batches(1):
        stream.learn(batch.image[0])
        states.append(model.stem[1].running_mean.clone())
    assert not torch.equal(states[0], states[1])
    assert all(torch.equal(states[1], later) for later in states[2:])


def test_copies_without_ranges_are_the_image_or_its_mirror() -> None:
    image = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.manual_seed(0)
    copies = MODULE.augmented_copies(image, still(copies=16))
    mirrored = [torch.allclose(copy, image.flip(-1), atol=1e-5) for copy in copies]
    same = [torch.allclose(copy, image, atol=1e-5) for copy in copies]
    assert all(a or b for a, b in zip(mirrored, same, strict=True))
    assert any(mirrored)
    assert any(same)


def test_copies_differ_stay_in_range_and_follow_the_seed() -> None:
    image = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(MODULE.augmented_copies(image, SPEC.config(copies=8)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].shape == (8, 3, 24, 24)
    assert drawn[0].min() >= -1
    assert drawn[0].max() <= 1
    assert not torch.allclose(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize("shape", [(64, 64), (48, 80)])
def test_a_copy_turns_and_scales_about_the_centre_within_its_ranges(shape: tuple[int, int]) -> None:
    """A bright spot right of the centre moves by at most 15 degrees and 10 % of its distance."""
    height, width = shape
    y, x = torch.meshgrid(
        torch.arange(height) - (height - 1) / 2,
        torch.arange(width) - (width - 1) / 2,
        indexing="ij",
    )
    image = (torch.exp(-((x - 15) ** 2 + y**2) / 8) * 2 - 1).expand(3, -1, -1)
    torch.manual_seed(3)
    copies = MODULE.augmented_copies(image, SPEC.config(copies=64, gamma_range=0.0))
    light = (copies[:, 0] + 1).clamp(min=0)
    total = light.sum(dim=(1, 2))
    spot_x, spot_y = ((light * axis).sum(dim=(1, 2)) / total for axis in (x, y))
    distance = torch.hypot(spot_x, spot_y)
    angle = torch.rad2deg(torch.atan2(spot_y, spot_x.abs()))
    assert ((distance > 0.88 * 15) & (distance < 1.12 * 15)).all()
    assert angle.abs().max() < 15.5
    assert angle.abs().max() > 10
    assert distance.max() - distance.min() > 1.5


def test_gamma_is_drawn_between_its_bounds() -> None:
    torch.manual_seed(0)
    config = SPEC.config(copies=64, rotation_deg=0.0, scale_range=0.0)
    copies = MODULE.augmented_copies(torch.zeros(3, 8, 8), config)  # 0 is 0.5 of full brightness
    gamma = ((copies[:, 0, 0, 0] + 1) / 2).log() / math.log(0.5)
    assert 0.8 - 1e-4 <= gamma.min() < 0.85
    assert 1.15 < gamma.max() <= 1.2 + 1e-4


def test_it_moves_statistics_towards_the_target_but_not_all_the_way(bench: Any) -> None:
    """After eight images about half of every mean is still the source's."""
    from safetensors.torch import load_file

    result, full = bench.run("dua", overrides=FEW), bench.run("bn_adapt")
    source_dir = next(bench.out.glob(f"sources/toy_a/{result.cell['source_key'][:16]}"))
    name = "stem.1.running_mean"
    source, dua, target = (
        load_file(path / "model.safetensors")[name]
        for path in (source_dir, result.folder, full.folder)
    )
    moved = ((dua - source) * (target - source)).sum() / (target - source).square().sum()
    assert 0.3 < moved.item() < 0.75


def test_online_the_first_image_is_scored_before_anything_is_learnt(bench: Any) -> None:
    """Exactly one image equals the source's output when scored before, none when after."""
    source = bench.run("source_only").codes()
    equal = {}
    for moment in ("before", "after"):
        overrides = [*FEW, f"dua.score_output={moment}"]
        codes = bench.run("dua", overrides=overrides, protocol="online").codes()
        images = {name.rsplit("-", 1)[0] for name in codes}
        equal[moment] = sum(
            all(
                np.abs(codes[f"{i}-{s}.png"].astype(int) - source[f"{i}-{s}.png"]).max() <= 1
                for s in ("cup", "disc")
            )
            for i in images
        )
    assert equal == {"before": 1, "after": 0}


def test_the_order_and_the_copies_follow_the_seed(bench: Any) -> None:
    first, second = (bench.run("dua", overrides=FEW, seeds=(seed,)) for seed in (0, 1))
    assert first.sha != second.sha

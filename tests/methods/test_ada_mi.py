"""AdaEnt and AdaMI: what they reduce to, what they warn of, and where their prior comes from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from sfuda_bench.blocks.area_prior import area_ratio
from sfuda_bench.methods import METHODS
from sfuda_bench.networks.batch_norm import estimate_statistics
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.settings import NetworkSettings

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("method", ["ada_ent", "ada_mi"])


def settings(method: str, **values: Any) -> list[str]:
    short = {"epochs": 1, "batch_size": 4, **values}
    return [f"{method}.{name}={value}" for name, value in short.items()]


def task_of(bench: Any, method: str) -> tuple[Any, Any]:
    """Return a cell's task and source model, as an adapting worker builds them."""
    job = dict(bench.plan(method).cells[0].job)
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), CPU)
    images = ImageSet.load(job["images"]["train"], CPU)
    task = make_task(
        job, METHODS.get(method), model, images, Store(bench.out), CPU, lambda *a: None
    )
    return task, model


def curve(result: Any) -> dict[str, list[float]]:
    frame = pd.read_parquet(result.folder / "curve.parquet")
    return {str(name): list(part["value"]) for name, part in frame.groupby("name")}


def recorded_warnings(result: Any) -> list[str]:
    return list(read_json(result.folder / "run.json")["warnings"])


@BOTH
def test_without_a_prior_and_with_equal_weights_it_is_tent(bench: Any, method: str) -> None:
    """T-MI-7: lambda 0, nu (1, 1), batch norm only; same seed, same steps, the same bytes."""
    same = {"lr": 1e-3, "epochs": 3, "lr_decay": 1.0, "weight_decay": 0.0}
    reduced = bench.run(
        method,
        overrides=settings(method, lam=0, nu_fg=1, nu_bg=1, updates_part="bn_affine", **same),
    )
    tent = bench.run(
        "entropy_min",
        overrides=[f"entropy_min.{n}={same[n]}" for n in ("lr", "epochs")],
    )
    assert tent.cell["config"]["batch_size"] == 4
    assert reduced.sha == tent.sha
    assert curve(reduced)["entropy"] == pytest.approx(curve(tent)["entropy"])


@BOTH
def test_the_prior_comes_from_the_labels_of_the_source(bench: Any, method: str) -> None:
    task, _ = task_of(bench, method)
    assert set(task.aux) == {"area_prior"}
    assert METHODS.get(method).strictness == "S1"
    disc, cup = (task.aux["area_prior"][s]["mean"] for s in ("disc", "cup"))
    assert 0 < cup < disc < 0.5


def test_the_defaults_are_the_two_directions(bench: Any) -> None:
    ent, mi = (METHODS.get(name).config() for name in ("ada_ent", "ada_mi"))
    assert (ent.direction, ent.lam, ent.lr) == ("prior_pred", 1e-2, 1e-3)
    assert (mi.direction, mi.lam, mi.lr) == ("pred_prior", 1.0, 1e-6)
    assert (mi.nu_fg, mi.nu_bg, mi.weight_decay) == (0.9, None, 1e-4)


def test_a_self_estimated_prior_is_the_mean_area_that_adabn_predicts(bench: Any) -> None:
    """``pred_mean`` looks at no source label: computed here anew from weights and images."""
    step = METHODS.get("ada_mi").frozen_steps[0]
    task, model = task_of(bench, "ada_mi")
    ratio = task.frozen(step, batch_size=4, min_samples=32)["ratio"]
    images = [batch.image for batch in task.target.batches(4)]
    estimate_statistics(model, images)
    with torch.no_grad():
        prob = torch.sigmoid(model.eval()(torch.cat(images)))
    torch.testing.assert_close(ratio, area_ratio(prob).mean(dim=0), atol=1e-5, rtol=1e-4)


@BOTH
def test_the_prior_moves_the_area_towards_it(bench: Any, method: str) -> None:
    """A prior three times too small gives smaller masks than the right one."""
    areas = []
    for scale in (1.0, 0.33):
        values = {"lam": 10, "lr": 1e-2, "epochs": 15, "prior_scale": scale}
        tracked = curve(bench.run(method, overrides=settings(method, **values)))
        areas.append(tracked["disc_area"][-1])
    assert areas[1] < 0.9 * areas[0]


def test_an_update_of_scale_and_shift_leaves_all_other_weights_alone(bench: Any) -> None:
    """Also with weight decay, which must not reach what is not trained."""
    values = {"updates_part": "bn_affine", "lr": 1e-3, "weight_decay": 0.1}
    result = bench.run("ada_mi", overrides=settings("ada_mi", **values))
    adapted = load_file(result.folder / "model.safetensors")
    source = next(bench.out.glob(f"sources/toy_a/{result.cell['source_key'][:16]}"))
    before = load_file(source / "model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], adapted[name])}
    norms = {name.rsplit(".", 1)[0] for name in before if name.endswith("running_mean")}
    assert changed
    assert {name.rsplit(".", 1)[0] for name in changed} <= norms


def test_it_warns_when_an_empty_prediction_would_have_the_lower_loss(bench: Any) -> None:
    """The bound is lambda (-ln(1 - tau)); with a tiny lambda nothing keeps a mask alive."""
    weak = bench.run("ada_mi", overrides=settings("ada_mi", lam=1e-4))
    texts = recorded_warnings(weak)
    assert [text.split(" would")[0] for text in texts] == ["an empty cup", "an empty disc"]
    tracked = curve(weak)
    prior = task_of(bench, "ada_mi")[0].aux["area_prior"]["cup"]["mean"]
    bound = -torch.log1p(torch.tensor(-prior)).item()
    assert tracked["cup_empty_cost"] == pytest.approx([1e-4 * bound], rel=1e-3)
    assert tracked["cup_start_entropy"][0] > tracked["cup_empty_cost"][0]
    strong = bench.run("ada_mi", overrides=settings("ada_mi", lam=10, kl_norm=True))
    assert recorded_warnings(strong) == []
    assert curve(strong)["disc_empty_cost"] == pytest.approx([10])


def test_the_other_direction_has_no_bound_to_warn_of(bench: Any) -> None:
    result = bench.run("ada_ent", overrides=settings("ada_ent", lam=1e-4))
    assert recorded_warnings(result) == []


def test_a_prior_beyond_the_image_is_refused(bench: Any) -> None:
    from sfuda_bench.errors import UsageError

    task, _ = task_of(bench, "ada_mi")
    spec = METHODS.get("ada_mi")
    assert spec.adapt is not None
    with pytest.raises(UsageError, match="expected shares below 1"):
        spec.adapt(task, spec.config(prior_scale=10.0))


def test_the_learning_rate_decays_in_steps(bench: Any) -> None:
    """0.9 after every second epoch, seen where the optimiser takes its steps."""
    task, _ = task_of(bench, "ada_mi")
    spec = METHODS.get("ada_mi")
    seen: list[float] = []
    plain = torch.optim.Adam.step

    def spy(self: Any, *args: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return plain(self, *args)

    config = spec.config(lr=1e-4, lr_decay=0.9, lr_decay_every=2, epochs=5, batch_size=8)
    assert spec.adapt is not None
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(torch.optim.Adam, "step", spy)
        spec.adapt(task, config)
    assert seen == pytest.approx([1e-4, 1e-4, 9e-5, 9e-5, 8.1e-5])


@pytest.mark.parametrize("variant", ["prior=pred_mean", "ratio=nss", "bn_mode=source"])
@BOTH
def test_each_variant_runs_and_gives_other_weights(bench: Any, method: str, variant: str) -> None:
    plain = bench.run(method, overrides=settings(method))
    other = bench.run(method, overrides=[*settings(method), f"{method}.{variant}"])
    assert other.sha != plain.sha

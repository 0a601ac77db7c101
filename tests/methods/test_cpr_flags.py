"""Every row of the table of differences between report, paper and code is one setting.

Flipping it gives new keys to the stages that it concerns and to what follows from them, leaves
what comes before alone, and changes the adapted network.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfuda_bench.blocks.losses import confident_pixels
from sfuda_bench.blocks.stages import nearer_class
from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS, Batch
from sfuda_bench.networks.taps import Encoded
from sfuda_bench.running.adaptation import make_task
from sfuda_bench.running.recording import ImageSet
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.running.streams import Streams
from sfuda_bench.running.target import TargetImages
from sfuda_bench.settings import NetworkSettings
from sfuda_bench.tunable import build_config

CPU = torch.device("cpu")
STEPS = ("initial_labels", "similarity_head", "refined_labels")
LABELS, HEAD, REFINED, TRAINING = STEPS, STEPS[1:], STEPS[2:], ()
# Two batches and an undemanding threshold, so that order and masks have something to act on.
BASE = (
    "threshold=0.5",
    "batch_size=3",
    "head_batch=3",
    "initial_threshold=0.5",
    "attention=true",
    "epochs=2",
)

FLAGS: dict[str, tuple[str, ...]] = {
    # row of the table: the stages whose artefacts change
    "similarity_reduce=sum": HEAD,  # 1
    "neighbourhood=le": HEAD,  # 2
    "border=full": HEAD,  # 2
    "iterations=32": REFINED,  # 3
    "mc_batch=8": LABELS,  # 4 and 15
    "head_batch=4": HEAD,  # 4
    "batch_size=4": TRAINING,  # 4
    "epochs=1": TRAINING,  # 5
    "focal_exponent=0": TRAINING,  # 6
    "loss_reduction=sum": TRAINING,  # 6
    "head_lr=0.01": HEAD,  # 7
    "lr=0.01": TRAINING,  # 7
    "augment=report": HEAD,  # 8
    "augment=none": HEAD,  # 8
    "encoder_bn=frozen": HEAD,  # 10
    "head_decoder=skip": HEAD,  # 10
    "head_norm=false": HEAD,  # 11, 12
    "head_gain=1": HEAD,  # 12
    "calibrate=none": REFINED,  # 13
    "class_mask=target": TRAINING,  # 16
    "class_mask=none": TRAINING,  # 16
    "mc_dropout=false": LABELS,  # 17
    "uncertainty_threshold=0.01": LABELS,  # 17
    "uncertainty_quantile=0.5": LABELS,  # 17
    "temperature=1": LABELS,  # 17
    "threshold=0.95": TRAINING,  # 18
    "low=0.7": TRAINING,  # 18
    "high=0.95": TRAINING,  # 18
    "pixel_mask=false": TRAINING,  # 18
    "passes=5": LABELS,  # 22
    "mc_bn=batch": LABELS,  # 23
    "refine_scale=0.5": REFINED,  # 25
    "initial_weights=source": TRAINING,  # 26
    "beta=4": REFINED,
    "attention=false": HEAD,  # the extension, and where it acts
    "shared_attention=true": HEAD,
    "attention_at=backbone": HEAD,
    "head_shuffle=true": HEAD,
    "shuffle=true": TRAINING,
    "bn_stats=frozen_source": TRAINING,
}


@pytest.fixture(scope="module")
def shared(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a bench whose artefacts the tests of this module share."""
    return copy_bench(trained, tmp_path_factory.mktemp("flags"))


def run(bench: Any, *flags: str, method: str = "cpr") -> Any:
    return bench.run(method, overrides=[f"{method}.{flag}" for flag in (*BASE, *flags)])


def artefacts(outcome: Any) -> dict[str, str]:
    """Return the key of each frozen step that a cell used."""
    return dict(name.split("/") for name in read_json(outcome.folder / "run.json")["artefacts"])


def tensors(bench: Any, outcome: Any, step: str) -> dict[str, Tensor]:
    folder = next(bench.out.glob(f"artefacts/{step}/{artefacts(outcome)[step][:16]}*"))
    found: dict[str, Tensor] = load_file(folder / "tensors.safetensors")
    return found


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_changes_its_stages_and_what_follows_and_nothing_before(
    shared: Any, flag: str
) -> None:
    plain, flipped = run(shared), run(shared, flag)
    before, after = artefacts(plain), artefacts(flipped)
    assert {step for step in STEPS if before[step] != after[step]} == set(FLAGS[flag])
    assert flipped.cell["key"] != plain.cell["key"]
    assert flipped.sha != plain.sha


def test_refinement_off_drops_the_last_step_and_keeps_the_others(shared: Any) -> None:
    before, after = artefacts(run(shared)), artefacts(run(shared, "refinement=false"))
    assert after == {step: before[step] for step in STEPS[:2]}
    source = run(shared, "refinement=false", "initial_weights=source")
    assert artefacts(source) == {STEPS[0]: before[STEPS[0]]}


@pytest.mark.parametrize(
    "setting", ["mc_dropout", "attention_at", "head_decoder", "head_norm", "head_gain"]
)
def test_a_setting_that_was_added_is_in_no_key_while_it_has_its_default(
    shared: Any, setting: str
) -> None:
    plan = shared.plan("cpr")
    default = getattr(METHODS.get("cpr").config(), setting)
    again = shared.plan("cpr", overrides=[f"cpr.{setting}={default}"])
    assert plan.cells[0].key == again.cells[0].key
    outcome = run(shared)
    for step in STEPS:
        folder = next(shared.out.glob(f"artefacts/{step}/{artefacts(outcome)[step][:16]}*"))
        named = read_json(folder / "meta.json")["parameters"]
        assert not {"mc_dropout", "attention_at", "decoder", "norm", "gain"} & set(named)


# -- what each new flag changes ---------------------------------------------------------------


def test_without_the_decoder_only_its_batch_norm_keeps_the_statistics_of_the_source(
    shared: Any,
) -> None:
    """The rest drifts as before: it sees the same augmented images in the same order."""
    ran = tensors(shared, run(shared), "similarity_head")
    skipped = tensors(shared, run(shared, "head_decoder=skip"), "similarity_head")
    source = load_file(next(shared.out.glob("sources/toy_a/*/model.safetensors")))
    decoder = {name for name in ran if name.startswith(("model.reduce.", "model.fuse."))}
    assert decoder
    for name in (name for name in ran if name.startswith("model.")):
        assert torch.equal(ran[name], skipped[name]) == (name not in decoder), name
    for name in decoder:
        assert torch.equal(skipped[name], source[name.removeprefix("model.")])


def test_stage_two_moves_every_statistic_of_the_network_or_none(shared: Any) -> None:
    """O14: all buffers follow the target; with frozen batch norm none does."""
    source = load_file(next(shared.out.glob("sources/toy_a/*/model.safetensors")))
    for flag, moves in (("encoder_bn=adapt", True), ("encoder_bn=frozen", False)):
        found = tensors(shared, run(shared, flag), "similarity_head")
        buffers = {name[6:]: value for name, value in found.items() if name.startswith("model.")}
        assert buffers
        for name, value in buffers.items():
            assert torch.equal(value, source[name]) != moves, name


def test_the_position_of_attention_changes_what_the_head_reads(shared: Any) -> None:
    at_context = tensors(shared, run(shared), "similarity_head")
    at_backbone = tensors(shared, run(shared, "attention_at=backbone"), "similarity_head")
    weight = "head.branches.0.0.weight"
    assert at_context[weight].shape == (256, 256, 1, 1)
    assert at_backbone[weight].shape == (256, 16, 1, 1)
    assert at_backbone["head.attention.1.mlp.0.weight"].shape == (1, 16)


def test_the_position_of_attention_means_nothing_without_attention(shared: Any) -> None:
    plain = run(shared, "attention=false")
    moved = run(shared, "attention=false", "attention_at=backbone")
    assert artefacts(moved) == artefacts(plain)
    assert moved.sha == plain.sha


def test_a_network_without_its_backbone_tap_is_refused_for_attention_there(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _, config = task_of(shared, "attention_at=backbone", "head_gain=2")
    monkeypatch.setattr(type(task.source_model), "high_channels", 0)
    with pytest.raises(UsageError, match="does not offer its backbone"):
        METHODS.get("cpr").adapt(task, config)


def test_without_mc_dropout_the_labels_are_those_of_one_plain_pass(shared: Any) -> None:
    labels = tensors(shared, run(shared, "mc_dropout=false"), "initial_labels")
    task, model, _ = task_of(shared)
    with torch.no_grad():
        images = torch.cat([batch.image for batch in task.target.batches(4)])
        prob = torch.sigmoid(model.eval()(images))
    torch.testing.assert_close(labels["prob"], prob, atol=1e-6, rtol=0)
    agree = labels["label"] == labels["prototype_class"]
    assert torch.equal(labels["reliable"].bool(), agree)  # nothing is uncertain


def test_without_mc_dropout_batch_statistics_still_act(shared: Any) -> None:
    running = tensors(shared, run(shared, "mc_dropout=false"), "initial_labels")
    batch = tensors(shared, run(shared, "mc_dropout=false", "mc_bn=batch"), "initial_labels")
    assert not torch.equal(running["prob"], batch["prob"])


def test_the_head_without_norm_is_a_convolution_alone(shared: Any) -> None:
    found = tensors(shared, run(shared, "head_norm=false", "attention=false"), "similarity_head")
    names = {name for name in found if name.startswith("head.")}
    assert names == {f"head.branches.{k}.0.weight" for k in (0, 1)}


# -- the class mask ---------------------------------------------------------------------------


def task_of(bench: Any, *flags: str) -> tuple[Any, Any, Any]:
    """Return a cell's task, its source model and its config, as an adapting worker has them."""
    cell = bench.plan("cpr", overrides=[f"cpr.{flag}" for flag in (*BASE, *flags)]).cells[0]
    job = dict(cell.job)
    model = load_source_model(Path(job["source_dir"]), NetworkSettings(**job["network"]), CPU)
    images = ImageSet.load(job["images"]["train"], CPU)
    spec = METHODS.get(cell.method)
    task = make_task(job, spec, model, images, Store(bench.out), CPU, lambda *a: None)
    return task, copy.deepcopy(model), build_config(spec.config, job["cell"]["config"], owner="cpr")


Stages = dict[str, tuple[Tensor, Tensor | None]]


def adapt(bench: Any, monkeypatch: pytest.MonkeyPatch, *flags: str) -> tuple[Stages, Any, Any]:
    """Run CPR in this process; return the reported pseudo-labels, its task and its config."""
    task, _, config = task_of(bench, *flags)
    reported: Stages = {}

    def report(stage: str, label: Tensor, keep: Tensor | None = None) -> None:
        assert stage not in reported
        reported[stage] = (label.clone(), keep if keep is None else keep.clone())

    monkeypatch.setattr(task, "pseudo_labels", report)
    METHODS.get("cpr").adapt(task, config)
    return reported, task, config


def test_the_class_mask_of_the_target_is_chosen_anew_before_each_epoch(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, task, _ = adapt(shared, monkeypatch, "class_mask=target")
    shares = [(epoch, value) for epoch, name, value in task.curve if name == "kept_share"]
    assert [epoch for epoch, _ in shares] == [1, 2]
    keep = reported["masked"][1]
    assert keep is not None
    assert shares[0][1] == pytest.approx(keep.float().mean().item())
    assert shares[1][1] != shares[0][1]


def test_the_first_class_mask_of_the_target_follows_from_the_network_that_training_starts_from(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("class_mask=target", "initial_weights=source", "calibrate=none")
    reported, _, config = adapt(shared, monkeypatch, *flags)
    prob = tensors(shared, run(shared, *flags), "refined_labels")["prob"]
    label = prob > config.threshold
    task, model, _ = task_of(shared, *flags)
    decided = nearer_class(task, model, label, prob, config.mc_batch)
    expected = confident_pixels(prob, config.low, config.high) & (label == decided)
    assert reported["masked"][1] is not None
    assert torch.equal(reported["masked"][1], expected)
    assert torch.equal(reported["masked"][0], label)


def test_choosing_the_class_mask_anew_draws_nothing(shared: Any) -> None:
    """Orders and augmentations are those of the source's class mask."""
    task, model, _ = task_of(shared)

    def images(look: bool) -> list[Tensor]:
        task.target.streams.begin(1)
        before = torch.get_rng_state()
        if look:
            label = torch.ones(len(task.target), 2, 96, 96, dtype=torch.bool)
            nearer_class(task, model, label, label.float(), 4)
        assert torch.equal(before, torch.get_rng_state())
        return [b.image for b in task.target.batches(4, augment="dpl", shuffle=True)]

    for one, two in zip(images(False), images(True), strict=True):
        assert torch.equal(one, two)


class Ramp(nn.Module):
    """A network whose feature is its image, so that prototypes can be worked by hand."""

    def encode(self, image: Tensor) -> Encoded:
        return Encoded(image, image, (image.shape[-2], image.shape[-1]))

    def context(self, encoded: Encoded) -> Tensor:
        return encoded.context

    def decode(self, context: Tensor, encoded: Encoded) -> tuple[Tensor, Tensor]:
        return context[:, :2], encoded.low


class OneBatch:
    """A task of one image with three equal channels 0, 1, 2, 10."""

    device = CPU

    def __init__(self) -> None:
        self.target = self

    def batches(self, size: int) -> Iterator[Any]:
        image = torch.tensor([0.0, 1, 2, 10]).view(1, 1, 1, 4).expand(1, 3, 1, 4)
        yield Batch(image, torch.tensor([0]))

    def autocast(self) -> Any:
        return torch.autocast("cpu", enabled=False)


def test_the_class_by_present_features_has_the_golden_value() -> None:
    """O9 with every pixel certain: prototypes 0.4706 and 6.5 decide 1, 1, 1, 0."""
    label = torch.tensor([True, True, False, False]).view(1, 1, 1, 4).expand(1, 2, 1, 4)
    prob = torch.tensor([0.9, 0.8, 0.3, 0.1]).view(1, 1, 1, 4).expand(1, 2, 1, 4)
    task: Any = OneBatch()
    decided = nearer_class(task, Ramp(), label, prob, 4)  # type: ignore[arg-type]  # taps only
    assert decided[0, 1, 0].tolist() == [True, True, True, False]


# -- reported pseudo-labels -------------------------------------------------------------------


def test_cpr_reports_its_labels_stage_by_stage(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, _, config = adapt(shared, monkeypatch)
    assert list(reported) == ["initial", "refined", "calibrated", "masked"]
    for label, keep in reported.values():
        assert label.dtype == torch.bool
        assert label.shape == (8, 2, 96, 96)
        assert keep is None or keep.dtype == torch.bool
    outcome = run(shared)
    labels = tensors(shared, outcome, "initial_labels")
    assert torch.equal(reported["initial"][0], labels["label"].bool())
    prob = tensors(shared, outcome, "refined_labels")["prob"]
    assert torch.equal(reported["calibrated"][0], prob > config.threshold)
    assert torch.equal(reported["masked"][0], reported["calibrated"][0])
    keep = reported["masked"][1]
    agree = reported["calibrated"][0] == labels["prototype_class"].bool()
    assert keep is not None
    assert torch.equal(keep, confident_pixels(prob, config.low, config.high) & agree)


def test_the_refined_labels_are_reported_as_they_are_before_calibration(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, _, config = adapt(shared, monkeypatch, "threshold=0.75", "iterations=16")
    raw = tensors(shared, run(shared, "iterations=16", "calibrate=none"), "refined_labels")["prob"]
    refined = reported["refined"][0]
    differ = refined != (raw > config.threshold)
    assert not (differ & ((raw - config.threshold).abs() > 1e-6)).any()  # rounding at the edge
    assert not torch.equal(refined, reported["calibrated"][0])


def test_without_refinement_no_refined_labels_are_reported(
    shared: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported, *_ = adapt(shared, monkeypatch, "refinement=false")
    assert list(reported) == ["initial", "calibrated", "masked"]


# -- the size of the refinement forward -------------------------------------------------------


def test_a_refinement_larger_than_the_files_is_refused_when_planning(shared: Any) -> None:
    with pytest.raises(UsageError, match=r"toy_b/train at 144 px.*smallest image has 96 px"):
        shared.plan("cpr", overrides=["cpr.refine_scale=1.5"])
    shared.plan("cpr", overrides=["cpr.refine_scale=1.5", "cpr.refinement=false"])


def test_a_refinement_with_the_pixels_of_the_files_reads_them(shared: Any) -> None:
    """At a model input of 64 px, 1.5 times that are the native 96 px: a grid of 6 x 6 cells."""
    at_64 = ["data.image_size=64", "source.epochs=2"]
    plan = shared.plan("cpr", overrides=[*at_64, "cpr.refine_scale=1.5"])
    job = plan.cells[0].job["images"]
    assert "large" not in job["test"]
    assert np.load(job["train"]["large"], mmap_mode="r").shape == (8, 96, 96, 3)
    images = ImageSet.load(job["train"], CPU)
    target = TargetImages(images.images, images.ids, Streams("key"), images.large)
    (batch,) = target.batches(8, scale=1.5)
    native = torch.from_numpy(np.load(job["train"]["large"])).permute(0, 3, 1, 2)
    assert torch.equal(batch.image, native.float() / 127.5 - 1)
    with pytest.raises(UsageError, match="80 px are asked for"):
        next(target.batches(8, scale=1.25))
    shared.compute(plan)
    large = shared.outcome(plan)
    plain = shared.run("cpr", overrides=at_64)
    assert artefacts(large)["similarity_head"] == artefacts(plain)["similarity_head"]
    refined = tensors(shared, large, "refined_labels")["prob"]
    assert refined.shape == (8, 2, 64, 64)
    assert not torch.equal(refined, tensors(shared, plain, "refined_labels")["prob"])


def test_the_transductive_protocol_refines_with_large_test_images(shared: Any) -> None:
    overrides = ["data.image_size=64", "cpr.refine_scale=1.5"]
    job = shared.plan("cpr", overrides=overrides, protocol="transductive").cells[0].job["images"]
    assert "large" not in job["train"]
    assert np.load(job["test"]["large"], mmap_mode="r").shape == (4, 96, 96, 3)

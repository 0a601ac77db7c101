"""What every registered method must keep to, ours and third parties'; none is named here."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sfuda_bench.methods import METHODS, Batch
from sfuda_bench.running.adaptation import changed_parts
from sfuda_bench.running.keys import model_sha256
from sfuda_bench.running.request import RECORDS
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.settings import NetworkSettings

NAMES = METHODS.names()
SPECS = {name: METHODS.get(name) for name in NAMES}
UNLABELLED = [name for name in NAMES if not SPECS[name].oracle]
OFFLINE = [name for name in UNLABELLED if "offline" in SPECS[name].protocols]
TRAINED = [name for name in OFFLINE if SPECS[name].updates & {"bn_affine", "whole", "input"}]
UPDATING = [name for name in OFFLINE if SPECS[name].updates]
OTHER_PROTOCOLS = [
    (name, protocol) for name in UNLABELLED for protocol in SPECS[name].protocols[1:]
]
EPISODIC = [name for name in UNLABELLED if "episodic" in SPECS[name].protocols]


class Results:
    """Each method's result under one perturbation, computed when it is first asked for."""

    def __init__(self, bench: Any, **request: Any) -> None:
        self.bench = bench
        self.request = request
        self._done: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._done:
            self._done[name] = self.bench.run(name, **self.request)
        return self._done[name]


@pytest.fixture(scope="module")
def plain(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(copy_bench(trained, tmp_path_factory.mktemp("plain")))


def nothing(bench: Any) -> None: ...


def delete_masks(bench: Any) -> None:
    for split in ("train", "test"):
        shutil.rmtree(bench.data / "toy_b" / split / "ROIs" / "mask")


def shuffle_masks(bench: Any) -> None:
    for split in ("train", "test"):
        paths = bench.images("toy_b", split, "mask")
        contents = [path.read_bytes() for path in paths]
        for path, content in zip(paths, contents[1:] + contents[:1], strict=True):
            path.write_bytes(content)


def noise_as_test_images(bench: Any) -> None:
    rng = np.random.default_rng(5)
    for path in bench.images("toy_b", "test"):
        noise = rng.integers(0, 256, np.asarray(Image.open(path)).shape, dtype=np.uint8)
        Image.fromarray(noise).save(path)


def rename_files(bench: Any) -> None:
    for split in ("train", "test"):
        paths = bench.images("toy_b", split)
        for number, path in enumerate(reversed(paths)):
            for kind in ("image", "mask"):
                old = path.parents[1] / kind / path.name
                old.rename(old.with_name(f"g{number}_{path.name}"))


PERTURBATIONS: dict[str, tuple[Callable[[Any], None], dict[str, Any]]] = {
    "masks deleted": (delete_masks, {}),
    "masks shuffled": (shuffle_masks, {}),
    "test images are noise": (noise_as_test_images, {}),
    "files renamed": (rename_files, {}),
    "everything recorded": (nothing, {"record": frozenset(RECORDS)}),
    "everything recorded without masks": (delete_masks, {"record": frozenset(RECORDS)}),
}


@pytest.fixture(scope="module", params=list(PERTURBATIONS))
def perturbed(
    request: pytest.FixtureRequest,
    trained: Any,
    copy_bench: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    change, settings = PERTURBATIONS[request.param]
    bench = copy_bench(trained, tmp_path_factory.mktemp("perturbed"))
    change(bench)
    return Results(bench, **settings)


@pytest.mark.parametrize("name", OFFLINE)
def test_labels_test_images_names_and_recording_leave_the_adapted_bytes_alone(
    name: str, plain: Results, perturbed: Results
) -> None:
    assert perturbed[name].sha == plain[name].sha


@pytest.fixture(scope="module")
def again(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(copy_bench(trained, tmp_path_factory.mktemp("again")))


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_the_same_bytes_and_the_same_scores(
    name: str, plain: Results, again: Results
) -> None:
    """T-GEN-3 and O16: nothing is shared between the two stores but the source model."""
    assert again[name].cell == plain[name].cell
    for profile in ("standard", "cpr-2023"):
        assert again[name].scores(profile)["digest"] == plain[name].scores(profile)["digest"]


@pytest.mark.parametrize("name", TRAINED)
def test_another_seed_gives_other_bytes_of_a_trained_method(
    name: str, plain: Results, again: Results
) -> None:
    assert again.bench.run(name, seeds=(1,)).sha != plain[name].sha


@pytest.mark.parametrize("name", UPDATING)
def test_a_method_that_declares_updates_differs_from_the_source(name: str, plain: Results) -> None:
    assert plain[name].sha != plain[name].source_sha


@pytest.mark.parametrize("name", [n for n in UNLABELLED if SPECS[n].inert is not None])
def test_the_inert_settings_equal_source_only(name: str, plain: Results, again: Results) -> None:
    """T-GEN-1, for the default protocol: the same weights and the same stored predictions."""
    overrides = [f"{name}.{key}={value}" for key, value in (SPECS[name].inert or {}).items()]
    inert = again.bench.run(name, overrides=overrides)
    assert inert.sha == inert.source_sha
    source_only = plain["source_only"].codes()
    assert inert.codes().keys() == source_only.keys()
    assert all((code == source_only[key]).all() for key, code in inert.codes().items())


@pytest.mark.parametrize("name", OFFLINE)
def test_only_what_updates_declares_changes(name: str, plain: Results) -> None:
    """T-GEN-2, read from the stored weights rather than from what the harness noticed."""
    result = plain[name]
    settings = NetworkSettings(name="tiny")
    source_dir = next(plain.bench.out.glob(f"sources/toy_a/{result.cell['source_key'][:16]}"))
    before = load_source_model(source_dir, settings, torch.device("cpu"))
    after = load_source_model(source_dir, settings, torch.device("cpu"))
    stored = load_file(result.folder / "model.safetensors")
    after.load_state_dict(stored)
    assert model_sha256(stored) == result.sha
    if "whole" not in SPECS[name].updates:
        assert changed_parts(before, after) <= SPECS[name].updates


def paint(bench: Any, grays: list[int]) -> None:
    """Replace the target's train and test images by constant ones."""
    for split in ("train", "test"):
        for number, path in enumerate(bench.images("toy_b", split)):
            Image.new("RGB", (96, 96), (grays[number % len(grays)],) * 3).save(path)


def keep_two_equal_train_images(bench: Any) -> None:
    first, *rest = bench.images("toy_b", "train")
    shutil.copy(first, rest[0])
    for path in rest[1:]:
        path.unlink()
        (path.parents[1] / "mask" / path.name).unlink()


def predict_background(bench: Any) -> None:
    """Make the source models blind: every logit is -20."""
    for path in bench.out.glob("sources/*/*/model.safetensors"):
        state = load_file(path)
        state["head.weight"].zero_()
        state["head.bias"].fill_(-20)
        save_file(state, path)


HARD_TARGETS: dict[str, Callable[[Any], None]] = {
    "all images black": lambda bench: paint(bench, [0]),
    "constant images": lambda bench: paint(bench, [20, 90, 200]),
    "two equal images": keep_two_equal_train_images,
    "source predicts background": predict_background,
}


@pytest.fixture(scope="module", params=list(HARD_TARGETS))
def hard(
    request: pytest.FixtureRequest,
    trained: Any,
    copy_bench: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Results:
    bench = copy_bench(trained, tmp_path_factory.mktemp("hard"))
    HARD_TARGETS[request.param](bench)
    return Results(bench)


@pytest.mark.parametrize("name", UNLABELLED)
def test_the_adapted_model_is_finite_on_hard_targets(name: str, hard: Results) -> None:
    """T-GEN-7: constant images, two equal images, a source model that finds nothing."""
    result = hard[name]
    state = load_file(result.folder / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in state.values())
    assert len(result.codes()) == 2 * len(hard.bench.images("toy_b", "test"))
    assert result.scores()["digest"]


def test_the_batch_of_a_target_has_no_field_for_a_mask() -> None:
    assert {field.name for field in dataclasses.fields(Batch)} == {"image", "index"}


@pytest.mark.parametrize("name", OFFLINE)
def test_stored_predictions_do_not_depend_on_the_prediction_batch(
    name: str, plain: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T-GEN-5: one image at a time gives the same codes, but for rounding at a code's edge."""
    from sfuda_bench.running.adaptation import ImageSet
    from sfuda_bench.running.predict import predict_with

    plan = plain.bench.plan(name)
    result = plain[name]
    model = load_source_model(
        Path(plan.cells[0].job["source_dir"]), NetworkSettings(name="tiny"), torch.device("cpu")
    )
    model.load_state_dict(load_file(result.folder / "model.safetensors"))
    test = ImageSet.load(plan.cells[0].job["images"]["test"], torch.device("cpu"))
    for batch in (1, 3):
        codes = predict_with(model, test.images, "float32", batch=batch)
        for name_of, pair in zip(test.ids, codes, strict=True):
            for structure, code in zip(("cup", "disc"), pair, strict=True):
                stored = result.codes()[f"{name_of}-{structure}.png"]
                assert np.abs(stored.astype(int) - code.astype(int)).max() <= 1


@pytest.mark.parametrize(("name", "protocol"), OTHER_PROTOCOLS)
def test_every_other_protocol_of_a_method_runs_and_is_marked(
    name: str, protocol: str, plain: Results, again: Results
) -> None:
    result = again.bench.run(name, protocol=protocol)
    assert result.cell["protocol"] == protocol
    assert "target_train" not in result.cell["digests"]
    assert result.cell["key"] != plain[name].cell["key"]
    assert result.scores()["digest"]
    recorded = again.bench.run(name, protocol=protocol, record=frozenset(RECORDS))
    assert recorded.cell["tracked"] and recorded.sha == result.sha


@pytest.mark.parametrize("name", EPISODIC)
def test_an_episodic_output_does_not_depend_on_other_batches(
    name: str, trained: Any, copy_bench: Any, tmp_path: Path
) -> None:
    """T-ENT-6 for every method: the other test images become noise, this one's codes stay."""
    codes = []
    for change in (False, True):
        bench = copy_bench(trained, tmp_path / str(change))
        paths = bench.images("toy_b", "test")
        if change:
            noise_as_test_images(bench)
            shutil.copy(trained.images("toy_b", "test")[0], paths[0])
        overrides = [f"{name}.batch_size=1"]
        codes.append(bench.run(name, overrides=overrides, protocol="episodic").codes())
    shared = codes[0].keys() & codes[1].keys()
    assert len(shared) == 2
    assert all((codes[0][key] == codes[1][key]).all() for key in shared)


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        (name, protocol)
        for name in UNLABELLED
        for protocol in SPECS[name].protocols
        if protocol in ("online", "episodic") and SPECS[name].inert is not None
    ],
)
def test_the_inert_settings_equal_source_only_image_by_image(
    name: str, protocol: str, plain: Results, again: Results
) -> None:
    """T-GEN-1 for test-time protocols; the batches differ, so a code may round differently."""
    overrides = [f"{name}.{key}={value}" for key, value in (SPECS[name].inert or {}).items()]
    inert = again.bench.run(name, overrides=overrides, protocol=protocol)
    assert inert.sha == inert.source_sha
    for key, code in plain["source_only"].codes().items():
        assert np.abs(inert.codes()[key].astype(int) - code.astype(int)).max() <= 1

"""Adapting one's own network: the bytes of a run, no masks, no half model, honest advice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from sfuda_bench.cli import main
from sfuda_bench.errors import CellsFailed, DataError, StoreSchemaError, UsageError
from sfuda_bench.running.engine import RunSummary
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.keys import model_sha256
from sfuda_bench.running.own import adapt as module
from sfuda_bench.running.own.adapt import AdaptRequest, adapt
from sfuda_bench.running.own.evidence import KEEP, UNCHANGED, USE, evidence
from sfuda_bench.running.own.models import find_model
from sfuda_bench.running.store import read_json
from sfuda_bench.scoring.validators import COLLAPSED, PRIMARY


class _Pipe:
    def send(self, message: Any) -> None: ...


def in_process(plan: Any, progress: Any) -> RunSummary:
    """Compute the plan's one cell here instead of in a worker."""
    runner = JobRunner(plan.request.out, "cpu")
    cell = plan.cells[0]
    try:
        runner.compute(dict(cell.job), _Pipe())
    except Exception as error:
        progress.failed(cell.key, str(error))
    return RunSummary(cells=1, computed=1, reused=0, failed=0, out=plan.request.out)


def weights(bench: Any, domain: str = "toy_a") -> Path:
    path: Path = next(bench.out.glob(f"sources/{domain}/*/model.safetensors"))
    return path


def images(bench: Any, domain: str = "toy_b") -> Path:
    path: Path = bench.data / domain / "train" / "ROIs" / "image"
    return path


def asked(bench: Any, out: Path, method: str = "entropy_min", **fields: Any) -> AdaptRequest:
    overrides = [v for v in bench.base if not v.startswith(("network.", "data.image_size"))]
    overrides += ["entropy_min.epochs=2", *fields.pop("overrides", ())]
    defaults: dict[str, Any] = {"model": weights(bench), "images": images(bench)}
    return AdaptRequest(
        method=method,
        out=out,
        preset="small",
        overrides=tuple(overrides),
        device="cpu",
        **{**defaults, **fields},
    )


def run_method(bench: Any, out: Path, progress: Any, *args: Any, **fields: Any) -> dict[str, Any]:
    return adapt(asked(bench, out, *args, **fields), progress, in_process)


@pytest.fixture(scope="module")
def own(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return copy_bench(trained, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def reference(own: Any) -> Any:
    """Return the cell that ``run`` computes of the same images, network, settings and seed."""
    return own.run("entropy_min", overrides=["entropy_min.epochs=2"])


def test_the_bytes_are_those_of_a_run(
    own: Any, reference: Any, tmp_path: Path, progress: Any
) -> None:
    out = tmp_path / "deep" / "adapted.safetensors"
    card = run_method(own, out, progress)
    assert card["adapted_model_sha256"] == reference.sha != reference.source_sha
    assert model_sha256(load_file(out)) == reference.sha
    assert read_json(out.with_suffix(".json")) == card
    assert sorted(p.name for p in out.parent.iterdir()) == ["adapted.json", "adapted.safetensors"]
    assert card["source"]["model_sha256"] == reference.source_sha
    assert card["images"] == {
        "count": 8,
        "set_digest": reference.cell["digests"]["target_train"],
    }
    assert card["network"]["name"] == "tiny"
    assert card["image_size"] == 96
    assert card["settings"]["entropy_min.epochs"] == {"value": 2, "origin": "--set"}
    assert str(tmp_path) not in json.dumps(card)


def test_a_method_of_four_stages_gives_the_bytes_of_a_run(
    own: Any, tmp_path: Path, progress: Any
) -> None:
    """Frozen steps and their artefacts included."""
    card = run_method(own, tmp_path / "a.safetensors", progress, "cpr")
    assert card["adapted_model_sha256"] == own.run("cpr").sha


def test_masks_names_and_formats_play_no_part(
    own: Any, reference: Any, tmp_path: Path, progress: Any
) -> None:
    """Renamed, as TIFF, with masks among the images and beside them: the same bytes."""
    folder = tmp_path / "mine" / "images"
    folder.mkdir(parents=True)
    for number, path in enumerate(reversed(sorted(images(own).iterdir()))):
        Image.open(path).save(folder / f"g{number}.tif")
    mask = next((own.data / "toy_b" / "train" / "ROIs" / "mask").iterdir())
    shutil.copy(mask, folder / "g0_mask.png")
    shutil.copytree(mask.parent, tmp_path / "mine" / "mask")
    card = run_method(own, tmp_path / "a.safetensors", progress, images=folder.parent)
    assert card["adapted_model_sha256"] == reference.sha
    assert "1 files look like masks" in card["warnings"][0]


def test_weights_without_a_card_need_the_network_and_give_the_bytes_of_a_run(
    bench: Any, tmp_path: Path, progress: Any
) -> None:
    """Of a run that has no source labels either: an area prior of them is part of a key."""
    own, bare = bench, tmp_path / "mine.safetensors"
    save_file(load_file(weights(own)), bare)
    shutil.rmtree(own.data / "toy_a")
    out = tmp_path / "a.safetensors"
    card = run_method(own, out, progress, model=bare, network="tiny", image_size=96)
    given = own.run(
        "entropy_min",
        overrides=["entropy_min.epochs=2"],
        source_models=(("toy_a", str(bare)),),
    )
    assert card["adapted_model_sha256"] == given.sha
    assert card["source"]["kind"] == "bare"
    with pytest.raises(DataError, match="does not fit"):
        run_method(own, tmp_path / "b.safetensors", progress, model=bare, image_size=96)
    assert not (tmp_path / "b.work").exists()


def test_one_image_is_enough(own: Any, tmp_path: Path, progress: Any) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    shutil.copy(next(images(own).iterdir()), folder / "a.png")
    card = run_method(own, tmp_path / "a.safetensors", progress, images=folder)
    assert card["images"]["count"] == 1
    assert any("single image" in text for text in card["warnings"])
    again = run_method(
        own,
        tmp_path / "b.safetensors",
        progress,
        "source_only",
        model=tmp_path / "a.safetensors",
        images=folder,
    )
    assert again["source"]["kind"] == "adapted"
    assert again["evidence"]["advice"] == UNCHANGED


@pytest.mark.parametrize(
    ("method", "text"), [("target_supervised", "labels"), ("no_such", "unknown name")]
)
def test_oracles_and_unknown_names_are_refused(
    own: Any, tmp_path: Path, progress: Any, method: str, text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        run_method(own, tmp_path / "a.safetensors", progress, method)
    assert not list(tmp_path.iterdir())


def test_a_method_without_one_adapted_model_is_refused(
    own: Any, tmp_path: Path, progress: Any
) -> None:
    from sfuda_bench.methods import METHODS

    episodic = [n for n in METHODS.names() if "offline" not in METHODS.get(n).protocols]
    with pytest.raises(UsageError, match="no adapted model"):
        run_method(own, tmp_path / "a.safetensors", progress, episodic[0])


def test_a_missing_area_prior_is_an_error_with_the_way_out(
    own: Any, tmp_path: Path, progress: Any
) -> None:
    bare = tmp_path / "mine.safetensors"
    save_file(load_file(weights(own)), bare)
    from sfuda_bench.methods import METHODS

    needy = next(n for n in METHODS.names() if METHODS.get(n).requires)
    with pytest.raises(DataError, match="area_prior") as caught:
        run_method(own, tmp_path / "a.safetensors", progress, needy, model=bare, network="tiny")
    assert "source import" in str(caught.value.hint)


def test_nothing_of_others_is_overwritten(own: Any, tmp_path: Path, progress: Any) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"precious")
    for out, text in (
        (tmp_path / "a.safetensors", "did not write it"),
        (tmp_path / "a.pth", "expected a file"),
        (images(own) / "a.safetensors", "image folder"),
        (weights(own), "source model itself"),
    ):
        with pytest.raises(UsageError, match=text):
            run_method(own, out, progress)
    assert (tmp_path / "a.safetensors").read_bytes() == b"precious"


def test_a_folder_of_others_is_never_worked_in(own: Any, tmp_path: Path, progress: Any) -> None:
    (tmp_path / "a.work").mkdir()
    (tmp_path / "a.work" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="did not make it"):
        run_method(own, tmp_path / "a.safetensors", progress)
    assert (tmp_path / "a.work" / "thesis.txt").is_file()


def test_an_interruption_leaves_no_model_and_the_same_command_goes_on(
    own: Any, reference: Any, tmp_path: Path, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.safetensors"

    def interrupted(plan: Any, progress: Any) -> RunSummary:
        in_process(plan, progress)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(asked(own, out), progress, interrupted)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.work"]

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            run_method(own, out, progress)
    assert not out.exists()
    calls = []

    def counted(plan: Any, progress: Any) -> RunSummary:
        calls.append(plan.cells[0].state)
        return in_process(plan, progress)

    card = adapt(asked(own, out), progress, counted)
    assert calls == ["done"]
    assert card["adapted_model_sha256"] == reference.sha
    assert not (tmp_path / "a.work").exists()


def test_a_failing_method_is_reported_and_its_log_is_kept(
    own: Any, tmp_path: Path, progress: Any
) -> None:
    def failing(plan: Any, progress: Any) -> RunSummary:
        from sfuda_bench.running.store import write_json

        attempt = plan.store.attempt(plan.cells[0].key)
        failure = {"class": "FloatingPointError", "message": "'stem' is not finite"}
        write_json(attempt / "error.json", failure)
        return RunSummary(cells=1, computed=0, reused=0, failed=1, out=plan.request.out)

    with pytest.raises(CellsFailed, match="FloatingPointError: 'stem' is not finite") as caught:
        adapt(asked(own, tmp_path / "a.safetensors"), progress, failing)
    assert "log.txt" in str(caught.value.hint)
    assert [p.name for p in tmp_path.iterdir()] == ["a.work"]


def test_a_card_of_other_weights_is_refused(own: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(weights(own).parent, folder)
    assert find_model(folder).kind == "source"
    shutil.copy(weights(own, "toy_b"), folder / "model.safetensors")
    with pytest.raises(StoreSchemaError, match="other weights"):
        find_model(folder)


# -- the advice -------------------------------------------------------------------------------


def frame(primary: float, collapsed: tuple[float, float] = (0.0, 0.0)) -> pd.DataFrame:
    """Return validators of which the adapted model, epoch 3, gains ``primary``."""
    rows: list[tuple[int, str, str, float]] = []
    for structure in ("cup", "disc"):
        for epoch, value, flag in ((0, 0.5, collapsed[0]), (3, 0.5 + primary, collapsed[1])):
            rows += [(epoch, name, structure, value) for name in PRIMARY]
            rows.append((epoch, COLLAPSED, structure, flag))
            rows.append((epoch, "other", structure, float("nan")))
    return pd.DataFrame(rows, columns=["epoch", "validator", "structure", "value"])


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (frame(0.1), USE),
        (frame(-0.1), KEEP),
        (frame(0.0), KEEP),
        (frame(0.1, (0.0, 1.0)), KEEP),
        (frame(0.1, (1.0, 1.0)), KEEP),
        (frame(-0.1, (1.0, 0.0)), USE),
    ],
    ids=["better", "worse", "equal", "collapsed", "both collapsed", "source collapsed"],
)
def test_the_advice_follows_collapse_first_and_then_the_primary_choice(
    values: pd.DataFrame, advice: str
) -> None:
    found = evidence(values)
    assert found["advice"] == advice
    assert found["asked"] == len(PRIMARY) + 1
    json.dumps(found, allow_nan=False)
    assert evidence(values, unchanged=True)["advice"] == UNCHANGED


# -- the command ------------------------------------------------------------------------------

SPY = """
from dataclasses import dataclass
from pathlib import Path
from sfuda_bench.methods import register

@dataclass(frozen=True, kw_only=True)
class Config:
    pass

@register("spy", version=1, config=Config, source="a test")
def adapt(task, config):
    list(Path({folder!r}).iterdir())
    return task.source_model
"""


def command(own: Any, out: Path, *more: str) -> int:
    tiny = Path(__file__).parents[1] / "plugins" / "tiny.py"
    parts = ["adapt", "--model", str(weights(own)), "--images", str(images(own)), "--out", str(out)]
    return main([*parts, "--preset", "small", "--device", "cpu", "--plugin", str(tiny), *more])


def test_the_command_works_in_a_worker_and_prints_one_document(
    own: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.safetensors"
    code = command(own, out, "--method", "source_only", "--json")
    printed = capfd.readouterr()
    document = json.loads(printed.out)
    assert code in (0, 6)
    assert (code == 6) == bool(document["card"]["evidence"]["collapsed"]["adapted"])
    assert document["card"] == read_json(out.with_suffix(".json"))
    assert "ADVICE: nothing changed" in printed.err
    assert "no accuracy" in printed.err


@pytest.mark.slow
def test_the_worker_may_not_open_the_images_folder(
    own: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "spy.py"
    plugin.write_text(SPY.format(folder=str(images(own))))
    code = command(own, tmp_path / "a.safetensors", "--method", "spy", "--plugin", str(plugin))
    assert code == 4
    assert "label firewall" in capfd.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()


def test_the_evidence_of_a_ruined_model_warns(own: Any, tmp_path: Path, progress: Any) -> None:
    """Weights that predict nothing: the validators see empty masks, whatever the labels are."""
    ruined = {name: value.clone() for name, value in load_file(weights(own)).items()}
    ruined["head.bias"] = ruined["head.bias"] - 1000
    bare = tmp_path / "ruined.safetensors"
    save_file(ruined, bare)
    out = tmp_path / "a.safetensors"
    card = run_method(own, out, progress, "source_only", model=bare, network="tiny", image_size=96)
    assert card["evidence"]["collapsed"]["adapted"] == ["cup", "disc"]
    assert np.all([row["source"] == row["adapted"] for row in card["evidence"]["validators"]])

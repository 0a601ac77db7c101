"""A stored model is given the window of one's own images that it was given of its data root."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.running.jobs import JobRunner
from sfuda_bench.running.own.adapt import AdaptRequest, adapt
from sfuda_bench.running.own.models import find_model
from sfuda_bench.running.own.predict import PredictRequest, predict_folder
from sfuda_bench.running.own.window import window_of
from sfuda_bench.running.store import read_json, write_json, write_manifest, write_sealed
from sfuda_bench.running.store_digest import store_contents

CROP_PX = 64  # of images of 96 px
SETTINGS = ["entropy_min.epochs=2", f"data.roi_crop_px={CROP_PX}"]


@pytest.fixture(scope="module")
def computed(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a bench whose store holds a source model and a cell of windows alone."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("windows"))
    shutil.rmtree(bench.out)
    bench.run("entropy_min", overrides=SETTINGS)
    return bench


@pytest.fixture
def windows(computed: Any, copy_bench: Any, tmp_path: Path) -> Any:
    """Return a copy of it that a test may change."""
    shutil.copytree(computed.out, tmp_path / "store")
    return tmp_path / "store"


def source_of(store: Path) -> Path:
    (folder,) = [path.parent for path in store.glob("sources/toy_a/*/card.json")]
    return folder


def cell_of(store: Path) -> Path:
    (folder,) = [path.parent for path in store.glob("cells/entropy_min/*/*/cell.json")]
    return folder


def forget(file: Path) -> None:
    """Leave a record that says nothing of the window, as that of an imported model."""
    record = read_json(file)
    del record["roi_crop_px"]
    write_sealed(file, record)
    write_manifest(file.parent)


def run_predict(bench: Any, model: Path, out: Path, **fields: Any) -> tuple[Any, list[str]]:
    notes: list[str] = []
    request = PredictRequest(
        model=model,
        images=bench.images("toy_b", "test")[0].parent,
        out=out,
        device="cpu",
        probabilities=True,
        **fields,
    )
    return predict_folder(request, notes.append, lambda done, total: None), notes


def codes_in(folder: Path) -> set[bytes]:
    from PIL import Image

    return {np.asarray(Image.open(path)).tobytes() for path in folder.glob("*-*.png")}


def test_predictions_of_a_cells_model_are_those_of_the_cell(
    computed: Any, windows: Path, tmp_path: Path
) -> None:
    document, notes = run_predict(computed, cell_of(windows), tmp_path / "out")
    assert codes_in(tmp_path / "out" / "probabilities") == codes_in(
        cell_of(windows) / "predictions"
    )
    assert (document["roi_crop_px"], document["window_from"]) == (CROP_PX, "record")
    assert any("central 64 x 64 px" in text and "record says" in text for text in notes)
    assert not any("window" in text for text in document["warnings"])
    marker = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert marker["window_from"] == "record"


def test_where_nothing_tells_whole_images_are_taken_with_a_warning(
    computed: Any, windows: Path, tmp_path: Path
) -> None:
    forget(cell_of(windows) / "run.json")
    document, notes = run_predict(computed, cell_of(windows), tmp_path / "a")
    assert (document["roi_crop_px"], document["window_from"]) == (0, "unknown")
    assert "--roi-crop-px N" in document["warnings"][0]
    assert any("whole images (nothing says" in text for text in notes)
    told, _ = run_predict(computed, cell_of(windows), tmp_path / "b", roi_crop_px=CROP_PX)
    assert (told["roi_crop_px"], told["window_from"]) == (CROP_PX, "flag")
    assert not any("--roi-crop-px N" in text for text in told["warnings"])
    assert codes_in(tmp_path / "b" / "probabilities") == codes_in(cell_of(windows) / "predictions")


def test_a_file_without_a_card_is_no_reason_for_a_warning(
    computed: Any, windows: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "mine.safetensors"
    shutil.copy(source_of(windows) / "model.safetensors", bare)
    document, _ = run_predict(computed, bare, tmp_path / "out", network="tiny", image_size=96)
    assert (document["roi_crop_px"], document["window_from"]) == (0, "unknown")
    assert not any("--roi-crop-px" in text for text in document["warnings"])


def test_whole_images_are_a_known_window_too(trained: Any) -> None:
    model = find_model(next(trained.out.glob("sources/toy_a/*")))
    assert str(window_of(model)) == "window: whole images (as the model's record says)"


def test_a_damaged_record_is_refused_by_name(computed: Any, windows: Path, tmp_path: Path) -> None:
    write_json(cell_of(windows) / "run.json", {"roi_crop_px": -1})
    with pytest.raises(StoreSchemaError, match=r"run\.json"):
        run_predict(computed, cell_of(windows), tmp_path / "out")


def test_a_window_is_no_part_of_what_a_store_holds(computed: Any, windows: Path) -> None:
    """Keys, cells and digests are those of files that hold the window and nothing else."""
    before = store_contents(windows)
    assert "roi_crop_px" not in read_json(cell_of(windows) / "cell.json")
    assert read_json(source_of(windows) / "card.json")["roi_crop_px"] == CROP_PX
    forget(cell_of(windows) / "run.json")
    forget(source_of(windows) / "card.json")
    assert store_contents(windows) == before


# -- adapting -----------------------------------------------------------------------------------


class _Notes:
    def __init__(self, progress: Any) -> None:
        self.texts: list[str] = []
        self._progress = progress

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)

    def note(self, text: str) -> None:
        self.texts.append(text)


class _Pipe:
    def send(self, message: Any) -> None: ...


def in_process(plan: Any, progress: Any) -> Any:
    JobRunner(plan.request.out, "cpu").compute(dict(plan.cells[0].job), _Pipe())


def run_adapt(
    bench: Any, model: Path, out: Path, progress: Any, *overrides: str
) -> tuple[dict[str, Any], list[str]]:
    kept = [v for v in bench.base if not v.startswith(("network.", "data.image_size"))]
    request = AdaptRequest(
        method="entropy_min",
        model=model,
        images=bench.images("toy_b", "train")[0].parent,
        out=out,
        preset="small",
        overrides=(*kept, "entropy_min.epochs=2", *overrides),
        device="cpu",
    )
    notes = _Notes(progress)
    return adapt(request, notes, in_process), notes.texts


def test_adapting_a_source_model_takes_its_window_and_gives_the_bytes_of_the_run(
    computed: Any, windows: Path, tmp_path: Path, progress: Any
) -> None:
    cell = read_json(cell_of(windows) / "cell.json")
    card, notes = run_adapt(computed, source_of(windows), tmp_path / "a.safetensors", progress)
    assert card["roi_crop_px"] == CROP_PX
    assert card["adapted_model_sha256"] == cell["adapted_model_sha256"]
    assert any("central 64 x 64 px" in text for text in notes)


def test_another_window_can_be_set_and_is_said(
    computed: Any, windows: Path, tmp_path: Path, progress: Any
) -> None:
    setting = "data.roi_crop_px=0"
    card, notes = run_adapt(
        computed, source_of(windows), tmp_path / "a.safetensors", progress, setting
    )
    assert card["roi_crop_px"] == 0
    assert any("was given the central 64 x 64 px" in text for text in notes)
    forget(source_of(windows) / "card.json")
    card, notes = run_adapt(computed, source_of(windows), tmp_path / "b.safetensors", progress)
    assert card["roi_crop_px"] == 0, "what the preset says"
    assert any("nothing in the records" in text for text in notes)

"""Masks and ratios of one's own images: what a run would predict, at the image's own size."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.cli import main
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.decode import central_window, read_mask
from sfuda_bench.running.own.models import ADAPTED
from sfuda_bench.running.own.predict import (
    PredictRequest,
    Rule,
    _cut,
    mask_levels,
    measure,
    predict_folder,
)
from sfuda_bench.scoring.codes import encode
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio


def weights(bench: Any) -> Path:
    path: Path = next(bench.out.glob("sources/toy_a/*/model.safetensors"))
    return path


def run_predict(bench: Any, images: Path, out: Path, **fields: Any) -> dict[str, Any]:
    request = PredictRequest(
        **{"model": weights(bench), "images": images, "out": out, "device": "cpu", **fields}
    )
    return predict_folder(request, lambda text: None, lambda done, total: None)


def codes_in(folder: Path, stem: str) -> Any:
    files = [folder / f"{stem}-{structure}.png" for structure in ("cup", "disc")]
    return np.stack([np.asarray(Image.open(path)) for path in files])


def test_predictions_are_those_of_a_run(bench: Any, tmp_path: Path) -> None:
    """Codes of the test images, of the source model's own cell and of a stored cell's model."""
    outcome = bench.run("source_only")
    files = bench.images("toy_b", "test")
    for number, model in enumerate((weights(bench), outcome.folder)):
        out = tmp_path / str(number)
        document = run_predict(bench, files[0].parent, out, model=model, probabilities=True)
        ours = [codes_in(out / "probabilities", path.stem) for path in files]
        stored = outcome.codes()
        names = sorted({name.rsplit("-", 1)[0] for name in stored})
        theirs = [np.stack([stored[f"{n}-{s}.png"] for s in ("cup", "disc")]) for n in names]
        assert {code.tobytes() for code in ours} == {code.tobytes() for code in theirs}
        for path, code, row in zip(files, ours, document["images"], strict=True):
            mask = code >= 128  # prob > 0.5, at the image's own size of 96 px
            expected = np.stack([mask[0], mask[0] | mask[1]])
            assert np.array_equal(read_mask(out / path.name), expected)
            assert row["image"] == path.name
            assert row["vcdr"] == pytest.approx(vertical_cup_to_disc_ratio(mask), nan_ok=True)


def test_masks_have_the_size_of_their_image_and_three_levels(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    first, second = bench.images("toy_b", "test")[:2]
    Image.open(first).resize((150, 110)).save(folder / "a.jpg")
    Image.open(second).resize((70, 90)).save(folder / "b.tif")
    document = run_predict(bench, folder, tmp_path / "out")
    for name, size in (("a", (150, 110)), ("b", (70, 90))):
        mask = Image.open(tmp_path / "out" / f"{name}.png")
        assert mask.size == size
        assert set(np.unique(np.asarray(mask))) <= {0, 128, 255}
    assert any("not square" in text for text in document["warnings"])
    rows = list(csv.DictReader((tmp_path / "out" / "vcdr.csv").open()))
    assert [row["image"] for row in rows] == ["a.jpg", "b.tif"]


def test_only_the_central_window_is_predicted_where_the_card_says_so(
    bench: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    inner = np.asarray(Image.open(bench.images("toy_b", "test")[0]))
    Image.fromarray(inner).save(folder / "inner.png")
    wide = np.zeros((131, 140, 3), np.uint8)
    wide[17 : 17 + 96, 22 : 22 + 96] = inner
    Image.fromarray(wide).save(folder / "wide.png")
    run_predict(bench, folder, tmp_path / "out", roi_crop_px=96)
    small, large = (
        np.asarray(Image.open(tmp_path / "out" / f"{n}.png")) for n in ("inner", "wide")
    )
    assert np.array_equal(large[17 : 17 + 96, 22 : 22 + 96], small)
    outside = np.ones(large.shape, bool)
    outside[17 : 17 + 96, 22 : 22 + 96] = False
    assert (large[outside] == 255).all()


@pytest.mark.parametrize("shape", [(96, 96), (131, 140), (97, 50), (60, 131), (200, 96)])
@pytest.mark.parametrize("crop", [0, 64, 96])
def test_the_window_is_the_one_that_packing_cuts(shape: tuple[int, int], crop: int) -> None:
    array = np.arange(shape[0] * shape[1] * 3).reshape(*shape, 3)
    seen: Any = type("Seen", (), {"height": shape[0], "width": shape[1]})
    rows, columns = (_cut(n, seen, crop) for n in shape)
    assert np.array_equal(array[rows, columns], central_window(array, crop, axis=0))


def test_nothing_but_predictions_is_ever_replaced(bench: Any, tmp_path: Path) -> None:
    files = bench.images("toy_b", "test")
    with pytest.raises(UsageError, match="image folder"):
        run_predict(bench, files[0].parent, files[0].parent)
    drawn = bench.images("toy_b", "test", "mask")[0].parent
    before = [path.read_bytes() for path in sorted(drawn.iterdir())]
    with pytest.raises(UsageError, match="drawn by hand"):
        run_predict(bench, files[0].parent, drawn)
    assert [path.read_bytes() for path in sorted(drawn.iterdir())] == before
    first = run_predict(bench, files[0].parent, tmp_path / "out")
    again = run_predict(bench, files[0].parent, tmp_path / "out")
    assert first == again


def test_names_that_would_share_a_mask_are_refused(bench: Any, tmp_path: Path) -> None:
    file = bench.images("toy_b", "test")[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(file, folder / "a.png")
    Image.open(file).save(folder / "a.jpg")
    with pytest.raises(DataError, match="same name"):
        run_predict(bench, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_without_a_card_need_network_and_size(bench: Any, tmp_path: Path) -> None:
    bare = tmp_path / "mine.safetensors"
    shutil.copy(weights(bench), bare)
    images = bench.images("toy_b", "test")[0].parent
    with pytest.raises(UsageError, match="which network"):
        run_predict(bench, images, tmp_path / "out", model=bare)
    with pytest.raises(UsageError, match="image size"):
        run_predict(bench, images, tmp_path / "out", model=bare, network="tiny")
    with pytest.raises(UsageError, match="card of"):
        run_predict(bench, images, tmp_path / "out", network="deeplabv3plus")
    found = run_predict(bench, images, tmp_path / "a", model=bare, network="tiny", image_size=96)
    known = run_predict(bench, images, tmp_path / "b")
    assert found["images"] == known["images"]


def test_a_source_model_can_be_run_as_an_adapted_one(bench: Any, tmp_path: Path) -> None:
    """With the window, size and inference that the adapted model's card says."""
    settings = {"network": {"name": "tiny"}, "image_size": 64, "roi_crop_px": 80}
    card = tmp_path / "adapted.json"
    card.write_text(json.dumps({"kind": ADAPTED, **settings}))
    images = bench.images("toy_b", "test")[0].parent
    like = run_predict(bench, images, tmp_path / "a", card=card)
    said = run_predict(bench, images, tmp_path / "b", image_size=64, roi_crop_px=80)
    assert like["images"] == said["images"]
    assert (like["image_size"], like["roi_crop_px"]) == (64, 80)
    with pytest.raises(UsageError, match="not the card"):
        run_predict(bench, images, tmp_path / "a", card=weights(bench).with_name("card.json"))
    card.write_text(json.dumps({"kind": ADAPTED, "network": {"name": "deeplabv3plus"}}))
    with pytest.raises(UsageError, match="says tiny"):
        run_predict(bench, images, tmp_path / "a", card=card)


# -- rows and rules ---------------------------------------------------------------------------


def square(low: int, high: int) -> Any:
    mask = np.zeros((20, 20), bool)
    mask[low:high, low:high] = True
    return mask


def test_a_row_says_what_makes_it_doubtful() -> None:
    plain = measure("a.png", np.stack([square(8, 12), square(5, 15)]))
    assert plain == {
        "image": "a.png",
        "vcdr": 0.4,
        "cup_area_share": 0.04,
        "disc_area_share": 0.25,
        "disc_diameter_px": 10,
        "warnings": [],
    }
    nothing = measure("a.png", np.stack([square(0, 0), square(0, 0)]))
    assert nothing["vcdr"] is None
    assert nothing["warnings"] == ["empty disc and cup: no ratio"]
    alone = measure("a.png", np.stack([square(8, 12), square(0, 0)]))
    assert alone["vcdr"] is None
    assert alone["warnings"] == ["empty disc: no ratio", "16 px of the cup lie outside the disc"]
    assert measure("a.png", np.stack([square(0, 0), square(5, 15)]))["warnings"] == ["empty cup"]
    assert measure("a", np.stack([square(8, 9), square(0, 10)]))["warnings"] == [
        "the disc touches the border"
    ]
    tiny = measure("a", np.stack([square(8, 9), square(8, 10)]))["warnings"]
    assert tiny == ["the disc covers less than 2 % of the image"]


def test_levels_are_read_back_with_the_cup_inside_the_disc(tmp_path: Path) -> None:
    mask = np.stack([square(8, 18), square(5, 15)])
    Image.fromarray(mask_levels(mask)).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), np.stack([mask[0], mask[0] | mask[1]]))


def test_a_profile_brings_its_thresholds_and_its_post_processing() -> None:
    y, x = np.mgrid[0:64, 0:64]
    blob = np.exp(-((x - 32.0) ** 2 + (y - 32.0) ** 2) / 500)
    codes = encode(np.stack([0.7 * blob, blob]))
    profile = get_profile("beal-2019")
    grid = profile.segment(np.stack([_grid(code) for code in codes]))
    rule = Rule(profile.threshold, profile.threshold, profile.postprocessing)
    assert np.array_equal(rule.masks(codes, (512, 512)), grid)
    assert rule.masks(codes, (300, 200)).shape == (2, 300, 200)
    low, high = Rule(0.5, 0.5).masks(codes, (64, 64)), Rule(0.75, 0.75).masks(codes, (64, 64))
    assert np.array_equal(low, codes >= 128)
    assert np.array_equal(high, codes >= 192)


def _grid(code: Any) -> Any:
    from sfuda_bench.scoring.codes import upsample

    return upsample(code, 512)


def test_the_command_prints_where_the_table_is_or_one_document(
    bench: Any, tmp_path: Path, plugin_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = bench.images("toy_b", "test")[0].parent
    parts = ["predict", "--model", str(weights(bench)), "--images", str(images), "--device", "cpu"]
    parts += ["--out", str(tmp_path / "out"), "--plugin", str(plugin_folder / "tiny.py")]
    assert main(parts) == 0
    assert capfd.readouterr().out == f"{tmp_path / 'out' / 'vcdr.csv'}\n"
    assert main([*parts, "--json", "--threshold", "0.75"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert len(document["images"]) == 4
    assert document["rule"] == {"cup": 0.75, "disc": 0.75, "postprocessing": "none"}
    assert main([*parts, "--threshold", "2"]) == 2
    assert main([*parts, "--threshold", "0.5", "--profile", "standard"]) == 2
    err = capfd.readouterr().err
    assert "between 0 and 1" in err
    assert "exclude each other" in err

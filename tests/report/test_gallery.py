"""Overlays on test images: which images, which contours, and nothing without the pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.errors import DataError
from sfuda_bench.report import gallery
from sfuda_bench.report.export import write_bundle
from sfuda_bench.report.figures_data import load
from sfuda_bench.report.gallery import write_gallery
from tests.report.rich_store import RichStore

PAIR = ("drishti_gs", "rim_one_r3")
IMAGES, SIDE, GRID = 5, 32, 64


def discs(side: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:side, :side] / side - 0.5
    return np.stack([y**2 + x**2 < (radius / 2) ** 2, y**2 + x**2 < radius**2])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return a store of two methods with drawn discs as images, masks and predictions."""
    store: dict[str, Any] = {
        "methods": ("source_only", "cpr"),
        "pairs": (PAIR,),
        "images": IMAGES,
        "profiles": ("standard",),
        "seeds": 1,
    }
    out = RichStore(tmp_path / "store", **store).out
    ids = [f"id{n}" for n in range(IMAGES)]
    for kind, size, values in (
        ("images", SIDE, np.full((IMAGES, 3, SIDE, SIDE), 90, np.uint8)),
        ("masks", GRID, np.stack([discs(GRID, 0.3)] * IMAGES)),
    ):
        folder = out / "packed" / kind
        folder.mkdir(parents=True)
        np.save(folder / "pack.npy", values)
        (folder / "pack.json").write_text(json.dumps({"ids": ids, "size": size}))
    (out / "packed" / "names").mkdir()
    names = {name: f"image{n}" for n, name in enumerate(ids)}
    (out / "packed" / "names" / "pack.json").write_text(json.dumps(names))
    for path in out.glob("cells/*/*/*/cell.json"):
        cell = json.loads(path.read_text())
        path.write_text(json.dumps({**cell, "image_size": SIDE}))
        (path.parent / "predictions").mkdir()
        for name in ids:
            for structure, mask in zip(("cup", "disc"), discs(SIDE, 0.35), strict=True):
                image = Image.fromarray(np.where(mask, 240, 5).astype(np.uint8))
                image.save(path.parent / "predictions" / f"{name}-{structure}.png")
    return out


def test_a_gallery_shows_the_worst_the_median_and_the_best_image(out: Path) -> None:
    paths = write_gallery(out)
    assert [path.name for path in paths] == [
        "gallery-standard-drishti_gs-rim_one_r3.pdf",
        "gallery-standard-drishti_gs-rim_one_r3.png",
    ]
    with Image.open(paths[1]) as image:
        assert min(image.size) > 300
    data = load(out)
    shown = gallery._cases_to_show(data, 0, [0, 1])
    means = data.cases.groupby("image")["dice"].mean()
    assert means[shown["worst"]] == means.min() and means[shown["best"]] == means.max()
    assert len(set(shown.values())) == 4


def test_drawing_again_changes_no_byte(out: Path) -> None:
    first = [path.read_bytes() for path in write_gallery(out)]
    assert [path.read_bytes() for path in write_gallery(out)] == first


def test_an_exported_bundle_holds_no_picture_of_a_patient(out: Path, tmp_path: Path) -> None:
    write_gallery(out)
    write_bundle(out, tmp_path / "bundle.zip")
    assert b"gallery" not in (tmp_path / "bundle.zip").read_bytes()


def test_without_packed_images_the_error_says_where_to_draw(out: Path) -> None:
    (out / "packed" / "images" / "pack.json").unlink()
    with pytest.raises(DataError, match="no packed images and masks"):
        write_gallery(out)

"""A method from the inside, drawn from what a run rendered; no torch is needed to draw."""

from __future__ import annotations

from typing import Any

import numpy as np

from sfuda_bench.report import style
from sfuda_bench.report.figures_method import embed, method_figure, true_classes
from sfuda_bench.report.gallery import write_gallery
from sfuda_bench.report.packs import PackedSplit
from sfuda_bench.report.records import read_cells


def test_a_run_with_pictures_gives_a_figure_of_every_stage(bench: Any) -> None:
    bench.run("cpr", record=frozenset({"labels", "pictures"}))
    paths = write_gallery(bench.out)
    names = {path.name.split("-")[0] for path in paths}
    assert names == {"gallery", "method"}
    (cell,) = read_cells(bench.out)
    packed = PackedSplit.find(
        bench.out, cell.image_size, set_digest=cell.record["digests"]["target_train"]
    )
    with style.figure_style():
        figure = method_figure(cell, packed, "title")
    assert figure is not None
    tiles, features = figure.subfigs
    titles = [axes.get_title(loc="left") for axes in tiles.axes]
    stages = [f"{stage} labels" for stage in ("initial", "refined", "calibrated", "masked")]
    expected = ["source model", *stages, "similarity, cup", "similarity, disc"]
    assert [title for title in titles if title] == expected
    legend = features.axes[0].get_legend()
    assert [text.get_text().split(" (")[0] for text in legend.get_texts()] == [
        "true background",
        "true rim",
        "true cup",
    ]


def test_a_cell_without_pictures_has_no_such_figure(bench: Any) -> None:
    bench.run("source_only")
    (cell,) = read_cells(bench.out)
    assert method_figure(cell, None, "title") is None  # type: ignore[arg-type]  # never looked at
    assert all(path.name.startswith("gallery-") for path in write_gallery(bench.out))


def test_true_classes_are_read_at_the_pixel() -> None:
    class Masks:
        def mask(self, place: int) -> Any:
            disc = np.zeros((8, 8), bool)
            disc[2:6, 2:6] = True
            cup = np.zeros_like(disc)
            cup[3 + place, 3] = True
            return np.stack([cup, disc])

    places = np.array([[3.5, 3.5], [3.5, 3.5], [0.5, 7.5]]) / 8
    found = true_classes(Masks(), np.array([0, 1, 0]), places)  # type: ignore[arg-type]  # only mask is used
    assert found.tolist() == [2, 1, 0]


def test_the_embedding_repeats_and_keeps_clusters_apart() -> None:
    random = np.random.default_rng(0)
    centres = np.repeat([0.0, 30.0], 30)[:, None]
    features = (random.normal(size=(60, 10)) + centres).astype(np.float32)
    points = embed(features)
    np.testing.assert_array_equal(points, embed(features))
    first, second = points[:30].mean(axis=0), points[30:].mean(axis=0)
    spread = points[:30].std()
    assert np.linalg.norm(first - second) > spread

"""Settings that depend on the pair, the preset's name, and the window of the ROI, in a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfuda_bench.errors import UsageError
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.tables import store_tables
from sfuda_bench.running.plan import build_plan, record_plan
from sfuda_bench.running.store import read_json
from sfuda_bench.settings import resolve

PAIRS = "toy_a:toy_b,toy_c:toy_b"


def with_settings(bench: Any, text: str, methods: str = "entropy_min", **more: Any) -> Any:
    """Return a plan whose settings also come from a config file."""
    path = bench.out / "mine.toml"
    path.write_text(text)
    plan = bench.plan(methods, **more)
    settings = resolve("small", config_file=path, overrides=bench.base, methods=[methods])
    return build_plan(replace(plan.request, settings=settings))


def test_a_cell_has_the_settings_of_its_pair_and_a_key_of_its_own(bench: Any) -> None:
    text = '[pair."*:toy_b".methods.entropy_min]\nlr = 0.002\n'
    text += '[pair."toy_c:toy_b".methods.entropy_min]\nlr = 0.005\n'
    plan = with_settings(bench, text, pairs="all")
    found = {str(cell.pair): cell.job["cell"]["config"]["lr"] for cell in plan.cells}
    assert (found["toy_a:toy_b"], found["toy_c:toy_b"]) == (0.002, 0.005)
    general = resolve("small", methods=["entropy_min"]).methods["entropy_min"].lr
    assert found["toy_a:toy_c"] == found["toy_b:toy_a"] == general
    plain = {str(cell.pair): cell.key for cell in bench.plan("entropy_min", pairs="all").cells}
    moved = {str(c.pair) for c in plan.cells if c.key != plain[str(c.pair)]}
    assert moved == {"toy_a:toy_b", "toy_c:toy_b"}


def test_a_pair_table_that_repeats_the_general_value_keeps_the_key(bench: Any) -> None:
    general = resolve("small", methods=["entropy_min"]).methods["entropy_min"].lr
    text = f'[pair."toy_a:toy_b".methods.entropy_min]\nlr = {general}\n'
    plan = with_settings(bench, text)
    assert [c.key for c in plan.cells] == [c.key for c in bench.plan("entropy_min").cells]


def test_a_table_for_a_domain_that_is_not_there_is_refused(bench: Any) -> None:
    text = '[pair."toy_a:toy_d".methods.entropy_min]\nlr = 0.005\n'
    with pytest.raises(UsageError, match=r"mine\.toml.*no domain 'toy_d' .*'toy_"):
        with_settings(bench, text)


def test_pairs_that_borrow_values_are_a_warning_of_the_plan(bench: Any) -> None:
    text = '[pair]\nfallback = "toy_a:toy_b"\n'
    text += '[pair."toy_a:toy_b".methods.entropy_min]\nlr = 0.005\n'
    plan = with_settings(bench, text, pairs=PAIRS)
    assert {cell.job["cell"]["config"]["lr"] for cell in plan.cells} == {0.005}
    (note,) = [text for text in plan.warnings if "fall back" in text]
    assert note.startswith("toy_c:toy_b: entropy_min.lr fall back to the values of toy_a:toy_b")


def test_what_a_method_checks_is_checked_for_each_pair(bench: Any) -> None:
    """Batch statistics of a single image, in one pair alone."""
    text = '[pair."toy_c:toy_b".methods.cpr]\nmc_bn = "batch"\nmc_batch = 1\n'
    assert with_settings(bench, text, "cpr", pairs="toy_a:toy_b").cells
    with pytest.raises(UsageError, match=r"cpr\.mc_batch = 1"):
        with_settings(bench, text, "cpr", pairs=PAIRS)


# -- the preset's name --------------------------------------------------------------------------


def test_a_cell_belongs_to_no_preset_and_tables_name_the_one_that_was_asked_for(
    bench: Any,
) -> None:
    """Two presets may share a cell: it is computed once, under whichever comes first."""
    first = bench.plan("source_only")
    record_plan(first)
    bench.compute(first)
    assert "preset" not in read_json(first.cells[0].folder / "cell.json")
    renamed = replace(first.request, settings=replace(first.request.settings, preset="mine"))
    second = build_plan(renamed)
    assert [cell.state for cell in second.cells] == ["done"]
    for plan, name in ((first, "small"), (second, "mine")):
        record_plan(plan)
        assert {cell.preset for cell in read_scope(bench.out).asked} == {name}
        (caption,) = {
            text for t in store_tables(bench.out) for text in t.caption if "Preset" in text
        }
        assert f"Preset: {name}." in caption
    (bench.out / "plans" / "last.json").unlink()
    assert not any("Preset" in text for t in store_tables(bench.out) for text in t.caption)
    assert len(read_scope(bench.out).rows) == 1


# -- the window ---------------------------------------------------------------------------------


def test_a_window_gives_the_cells_of_files_that_hold_the_window(bench: Any, tmp_path: Path) -> None:
    cropped = bench.plan("source_only", overrides=["data.roi_crop_px=64"])
    for domain in ("toy_a", "toy_b"):
        for split in ("train", "test"):
            for kind in ("image", "mask"):
                for path in bench.images(domain, split, kind):
                    Image.open(path).crop((16, 16, 80, 80)).save(path)
    windows = bench.plan("source_only")
    assert [cell.key for cell in cropped.cells] == [cell.key for cell in windows.cells]
    assert cropped.sources[0].key == windows.sources[0].key


def test_enlarged_source_images_are_a_warning(bench: Any) -> None:
    plan = bench.plan("source_only", overrides=["source.train_scale=1.5"])
    (note,) = [text for text in plan.warnings if "train_scale" in text]
    assert "enlarges toy_a/train (96 px files) to 144 px" in note

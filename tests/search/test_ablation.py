"""Ablations end to end: from a file to cells, from stored cells to tables and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import write_parquet
from sfuda_bench.search.ablation import plan_ablation, read_ablation, report, requests
from sfuda_bench.search.ablation_file import Ablation, parse
from sfuda_bench.search.ablation_tables import funnel_means
from sfuda_bench.search.cells import Flags
from sfuda_bench.search.pictures import save
from sfuda_bench.search.pictures_effects import effects_plot, funnel_plot
from sfuda_bench.selectors import Pair

PAIRS = (Pair("here", "there"), Pair("there", "here"))
STAGES = ("initial", "refined", "calibrated", "masked")
Dice = Callable[[str], float]


@dataclass(frozen=True)
class Request:
    profiles: tuple[str, ...] = ("standard", "cpr-2023")


@dataclass(frozen=True)
class Cell:
    folder: Path
    method: str
    pair: Pair
    key: str
    seed: int = 0
    source_seed: int = 0
    positions_from_labels: bool = False


@dataclass(frozen=True)
class Plan:
    cells: list[Cell]
    request: Request = field(default_factory=Request)
    warnings: tuple[str, ...] = ()


def stored(
    ablation: Ablation,
    root: Path,
    dice: Dice,
    *,
    lost: tuple[str, ...] = (),
    digests: Mapping[str, str] | None = None,
    funnel: bool = False,
) -> list[Any]:
    """Store one cell per row and pair, as a finished run would; return the plans."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0.5, 0.7, 10)
    plans = []
    for row in ablation.rows:
        cells = []
        for pair in PAIRS:
            folder = root / row.name.replace(" ", "-") / str(pair).replace(":", "-")
            cells.append(Cell(folder, row.method, pair, key=str(folder)))
            if row.name in lost:
                continue
            folder.mkdir(parents=True)
            digest = (digests or {}).get(row.name, row.name)
            record = {"adapted_model_sha256": f"{digest} {pair}", "synthetic": True}
            (folder / "cell.json").write_text(json.dumps(record), "utf-8")
            cases = pd.DataFrame(
                [
                    {"image": f"i{n}", "structure": structure, "selection": "last",
                     "dice": base[n] + dice(row.name) / 100}
                    for n in range(10)
                    for structure in ("cup", "disc")
                ]
            )  # fmt: skip
            for profile in Request().profiles:
                write_parquet(cases, folder / f"cases-{profile}.parquet")
            if funnel:
                write_parquet(stages(), folder / "funnel.parquet")
        plans.append(Plan(cells))
    return plans


def stages() -> pd.DataFrame:
    """One image of which nothing is kept in the end, one that stays whole."""
    return pd.DataFrame(
        [
            {"stage": stage, "order": order, "image": image, "structure": structure,
             "coverage": 1.0 if image == "i0" else 1 - order / 3,
             "purity": math.nan if image == "i1" and order == 3 else 0.9,
             "dice": 0.8, "area_bias": -0.1}
            for order, stage in enumerate(STAGES)
            for image in ("i0", "i1")
            for structure in ("cup", "disc")
        ]
    )  # fmt: skip


def two_switches(design: str) -> Ablation:
    return parse(
        "s",
        {
            "kind": "ablation",
            "question": "Why?",
            "method": "m",
            "design": design,
            "switches": {
                "mask": {"on": {"mask": True}, "off": {"mask": False}},
                "head": {"title": "similarity head", "on": {"head": 1}, "off": {"head": 0}},
            },
        },
    )


def test_a_factorial_ablation_reports_effects_interactions_and_pictures(tmp_path: Path) -> None:
    ablation = two_switches("factorial")
    dice = {"reference": 9.0, "mask off": 3.0, "similarity head off": 4.0}
    plans = stored(ablation, tmp_path / "cells", lambda row: dice.get(row, 0.0), funnel=True)
    found = report(ablation, plans, tmp_path / "out")
    assert found.failed == 0
    names = {path.name for path in found.paths}
    for stem in ("effects-standard", "interactions-standard", "funnel"):
        assert {f"{stem}.{e}" for e in ("csv", "md", "tex", "png", "pdf")} <= names
    assert {"inert.md", "rows-standard.md", "effects-cpr-2023.md"} <= names
    text = (tmp_path / "out" / "effects-standard.md").read_text("utf-8")
    # (9 - 3 + 4 - 0) / 2 with the mask, and the same on both pairs.
    assert "| mask | here → there § | +5.00 [+5.00, +5.00]" in text
    assert "| mean over pairs | +5.00 |" in text
    assert "synthetic images, not of patients" in text
    crossed = (tmp_path / "out" / "interactions-standard.md").read_text("utf-8")
    assert "mask × similarity head" in crossed  # noqa: RUF001  # a product of factors
    assert "+2.00 [+2.00, +2.00]" in crossed
    funnel = (tmp_path / "out" / "funnel.md").read_text("utf-8")
    assert "†" in funnel
    assert "uses target labels" in funnel


def test_equal_cells_give_equal_bytes(tmp_path: Path) -> None:
    ablation = two_switches("factorial")
    plans = stored(ablation, tmp_path / "cells", lambda row: float(len(row)), funnel=True)
    texts = []
    for name in ("a", "b"):
        found = report(ablation, plans, tmp_path / name)
        texts.append({path.name: path.read_bytes() for path in found.paths})
    assert texts[0] == texts[1]


def test_a_failed_row_leaves_a_dash_and_is_counted(tmp_path: Path) -> None:
    ablation = two_switches("leave_one_out")
    plans = stored(ablation, tmp_path / "cells", lambda row: 1.0, lost=("mask off",))
    found = report(ablation, plans, tmp_path / "out")
    assert found.failed == 2
    text = (tmp_path / "out" / "effects-standard.md").read_text("utf-8")
    (line, *_) = [line for line in text.splitlines() if line.startswith("| mask ")]
    assert "\N{EN DASH}" in line
    assert "missing: mask off" in line
    document = json.dumps(found.to_json())
    assert '"failed": 2' in document
    assert "NaN" not in document


def test_inert_switches_are_named_in_the_table_of_effects(tmp_path: Path) -> None:
    ablation = two_switches("leave_one_out")
    digests = {"mask off": "reference"}
    plans = stored(ablation, tmp_path / "cells", lambda row: 0.0, digests=digests)
    report(ablation, plans, tmp_path / "out")
    text = (tmp_path / "out" / "effects-standard.md").read_text("utf-8")
    (line, *_) = [line for line in text.splitlines() if line.startswith("| mask ")]
    assert "| inert |" in line
    assert "| mask | inert | 2 | 2 | 0 |" in (tmp_path / "out" / "inert.md").read_text("utf-8")


def test_variants_without_scores_write_no_empty_tables(tmp_path: Path) -> None:
    ablation = two_switches("leave_one_out")
    plans = stored(ablation, tmp_path / "cells", lambda row: 0.0, lost=("reference",))
    for plan in plans:
        for cell in plan.cells:
            for path in cell.folder.glob("cases-*.parquet"):
                path.unlink()
    found = report(ablation, plans, tmp_path / "out")
    assert {path.name for path in found.paths if path.suffix == ".md"} == {"inert.md"}


def test_purity_of_what_keeps_nothing_is_left_out() -> None:
    funnel = stages().assign(row="r", source="a", target="b", source_seed=0, seed=0)
    found = funnel_means(funnel)
    last = found[(found["stage"] == "masked") & (found["structure"] == "cup")]
    assert last["purity"].item() == pytest.approx(90)
    assert last["coverage"].item() == pytest.approx(50)
    assert found["stage"].tolist()[:4] == list(STAGES)


def test_marks_and_colours_together_tell_twelve_pairs_apart() -> None:
    lines = [
        {"kind": "effect", "name": "x", "title": "x", "source": f"s{n}", "target": "t",
         "structure": structure, "effect": 1.0, "ci_low": 0.0, "ci_high": 2.0}
        for n in range(12)
        for structure in ("cup", "disc")
    ]  # fmt: skip
    axes = effects_plot(pd.DataFrame(lines)).axes[0]
    marks = [container.get_children()[0] for container in axes.containers]
    looks = {(mark.get_color(), mark.get_marker()) for mark in marks}  # type: ignore[attr-defined]  # lines
    assert len(looks) == 12


def test_a_funnel_of_another_row_can_be_drawn(tmp_path: Path) -> None:
    parts = [stages().assign(row=row, source="a", target="b", source_seed=0, seed=0)
             for row in ("one", "two")]  # fmt: skip
    frame = funnel_means(pd.concat(parts))
    assert len(save(funnel_plot(frame, row="two"), tmp_path, "funnel")) == 2


# -- with the tiny network ----------------------------------------------------------------------


TINY_FILE = """
kind = "ablation"
method = "cpr"
design = "leave_one_out"
record = ["labels"]

[run]
preset = "small"
pairs = "toy_a:toy_b"

[switches.refinement]
on = { refinement = true }
off = { refinement = false }

[switches.attention]
on = { method = "cpr_cbam" }
off = { method = "cpr" }
reference = "off"
"""
TINY_VARIANTS = """
kind = "variants"
[run]
preset = "small"
pairs = "toy_a:toy_b"
[[rows]]
name = "source"
method = "source_only"
[[rows]]
name = "trained"
method = "dpl"
set = { bn_stats = "target" }
[[rows]]
name = "not trained"
method = "dpl"
set = { bn_stats = "target", lr = 0.0 }
[[rows]]
name = "nothing at all"
method = "dpl"
set = { bn_stats = "frozen_source", lr = 0.0, "inference.batch_norm" = "running" }
[[shares]]
name = "DPL"
baseline = "source"
full = "trained"
control = "not trained"
without = "nothing at all"
"""


def flags(bench: Any, plugins: Path, **more: Any) -> Flags:
    values: dict[str, Any] = {
        "out": bench.out,
        "data_root": bench.data,
        "overrides": tuple(bench.base),
        "device": "cpu",
        "plugins": (plugins / "tiny.py",),
    }
    return Flags(**{**values, **more})


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def test_an_ablation_computes_shared_cells_once_and_reports_the_funnel(
    bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    ablation = read_ablation(write(tmp_path, "parts", TINY_FILE))
    merged, plans = plan_ablation(ablation, flags(bench, plugin_folder))
    assert len(merged.cells) == 3
    assert [plan.cells[0].method for plan in plans] == ["cpr", "cpr", "cpr_cbam"]
    bench.compute(merged)
    # One MC-dropout pass serves every row, one head per attention.
    assert len(bench.artefacts("initial_labels")) == 1
    assert len(bench.artefacts("similarity_head")) == 2
    found = report(ablation, plans, tmp_path / "out")
    assert found.failed == 0
    assert "funnel" in found.frames
    assert set(found.frames["effects-standard"]["name"]) == {"refinement", "attention"}
    _, again = plan_ablation(ablation, flags(bench, plugin_folder))
    assert {cell.state for plan in again for cell in plan.cells} == {"done"}


def test_controls_of_batch_norm_come_from_ordinary_cells(
    bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    """Frozen statistics at learning rate 0 are the source model: identical scores."""
    ablation = read_ablation(write(tmp_path, "confound", TINY_VARIANTS))
    merged, plans = plan_ablation(ablation, flags(bench, plugin_folder))
    bench.compute(merged)
    found = report(ablation, plans, tmp_path / "out")
    verdicts = found.frames["inert"].set_index("name")["verdict"].to_dict()
    assert verdicts["nothing at all"] == "inert"
    assert verdicts["not trained"] == "acts"
    effects = found.frames["effects-standard"]
    assert (effects.loc[effects["name"] == "nothing at all", "effect"] == 0).all()
    assert found.tables[0].name == "shares-standard"


def test_what_the_study_moves_cannot_be_set_beside_it(
    bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    ablation = read_ablation(write(tmp_path, "parts", TINY_FILE))
    with pytest.raises(UsageError, match=r"moves 'cpr\.refinement' itself"):
        requests(ablation, flags(bench, plugin_folder, overrides=("cpr.refinement=false",)))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('method = "cpr"\ndesign', 'method = "crp"\ndesign', "crp"),
        ("refinement = false }", "refinment = false }", "did you mean 'refinement'"),
        ("refinement = false }", 'refinement = "maybe" }', "cpr.refinement"),
        ('preset = "small"', 'preset = "smal"', "did you mean 'small'"),
        ('pairs = "toy_a:toy_b"', 'pair = "toy_a:toy_b"', "did you mean 'pairs'"),
    ],
)
def test_a_wrong_name_or_value_is_refused_before_anything_runs(
    bench: Any, plugin_folder: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    assert old in TINY_FILE
    path = write(tmp_path, "parts", TINY_FILE.replace(old, new, 1))
    with pytest.raises(UsageError) as caught:
        plan_ablation(read_ablation(path), flags(bench, plugin_folder))
    assert words in caught.value.message


def test_a_switch_without_effect_on_the_settings_is_refused(
    bench: Any, plugin_folder: Path, tmp_path: Path
) -> None:
    """An empty side means the preset's value, which may be the other side's."""
    text = TINY_FILE.replace("on = { refinement = true }", "on = { }").replace(
        "off = { refinement = false }", "off = { refinement = true }"
    )
    with pytest.raises(UsageError, match="equal settings at both positions"):
        plan_ablation(read_ablation(write(tmp_path, "parts", text)), flags(bench, plugin_folder))

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.frames import read_parquet, write_parquet
from sfuda_bench.report.plain import to_csv
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.xray import decompose, xray_table
from sfuda_bench.scoring.codes import encode
from sfuda_bench.scoring.profiles import Profile, get_profile
from sfuda_bench.scoring.scorer import score_set

GRID = 32
REAL = ("drishti_gs", "rim_one_r3")


def scored(profile: Profile) -> pd.DataFrame:
    """Scores of a set with an empty prediction, an empty truth, and both."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[:GRID, :GRID]
    radius = np.hypot(y - 16, x - 16)
    prob = np.clip(1.1 - radius / 14 + random.normal(0, 0.1, (5, 2, GRID, GRID)), 0, 1)
    masks = np.broadcast_to(radius < 9, prob.shape).copy()
    prob[1, 0] = 0.6  # a prediction at 0.5, none at 0.75
    prob[2, 0] = prob[3, 0] = 0.0
    masks[3, 0] = masks[4, 1] = False
    return score_set(encode(prob), masks, [f"image{i}" for i in range(5)], profile)[0]


def fields(profile: Profile) -> dict[str, Any]:
    return profile.digest_fields()


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]


STRICT, CODE = get_profile("standard"), get_profile("cpr-2023")


def means(frame: pd.DataFrame, structure: str, column: str) -> float:
    return float(frame[frame["structure"] == structure][column].mean())


def test_the_steps_lead_exactly_from_one_profile_to_the_other() -> None:
    """Both ends equal the means of the scorer itself, empty masks included."""
    first, second = scored(STRICT), scored(CODE)
    found = decompose(records(first), records(second), fields(STRICT), fields(CODE), GRID)
    assert len(found) == 4
    for part in found:
        column, unit = ("dice", 100) if part.metric == "dice" else ("assd_directed_px", 1)
        assert part.start == pytest.approx(unit * means(first, part.structure, column))
        assert part.end == pytest.approx(unit * means(second, part.structure, column))
        assert sum(part.steps.values()) == pytest.approx(part.end - part.start)


def test_every_step_is_what_the_scorer_says_when_that_rule_alone_changes() -> None:
    """Against profiles made for the purpose, which the decomposition never sees."""
    between = {
        "threshold": replace(STRICT, name="threshold", threshold=0.75),
        "smoothing": replace(STRICT, name="smoothing", threshold=0.75, smooth=1.0),
    }
    first, second = scored(STRICT), scored(CODE)
    found = decompose(records(first), records(second), fields(STRICT), fields(CODE), GRID)
    cup = next(part for part in found if (part.structure, part.metric) == ("cup", "dice"))
    start = 100 * means(first, "cup", "dice")
    threshold = 100 * means(scored(between["threshold"]), "cup", "dice")
    smoothing = 100 * means(scored(between["smoothing"]), "cup", "dice")
    assert cup.steps["threshold"] == pytest.approx(threshold - start)
    assert cup.steps["smoothing"] == pytest.approx(smoothing - threshold)
    assert cup.steps["empty masks"] == pytest.approx(100 * means(second, "cup", "dice") - smoothing)
    asd = next(part for part in found if (part.structure, part.metric) == ("cup", "asd"))
    worst = means(scored(between["threshold"]), "cup", "assd_directed_px")
    assert asd.steps["threshold"] == pytest.approx(worst - means(first, "cup", "assd_directed_px"))


def test_the_definition_of_the_distance_is_a_step_of_its_own() -> None:
    frame = scored(STRICT)
    pooled = fields(STRICT) | {"asd_definition": "pooled"}
    rows = records(frame)
    found = decompose(rows, rows, fields(STRICT), pooled, GRID)
    disc = next(part for part in found if (part.structure, part.metric) == ("disc", "asd"))
    change = means(frame, "disc", "assd_pooled_px") - means(frame, "disc", "assd_directed_px")
    assert disc.steps == pytest.approx({"threshold": 0, "empty masks": 0, "definition": change})
    assert not math.isclose(change, 0)


def fill(out: Path, shuffle: int | None = None) -> None:
    """Score every cell of a store under both profiles; the oracle's cup Dice is 3 points up."""
    for path in out.glob("cells/*/*/*/cell.json"):
        for profile in (STRICT, CODE):
            frame = scored(profile).assign(selection="last")
            lift = 0.03 * (frame["structure"] == "cup")
            oracle = frame.assign(selection="oracle", dice=frame["dice"] + lift)
            cases = pd.concat([frame, oracle])
            if shuffle is not None:
                cases = cases.sample(frac=1.0, random_state=shuffle)
            identity: dict[str, Any] = {
                "method": "m",
                "source": "a",
                "target": "b",
                "source_seed": 0,
                "seed": 0,
            }
            write_parquet(cases.assign(**identity), path.parent / f"cases-{profile.name}.parquet")
            record = {"profile_fields": fields(profile), "evaluation_grid": GRID, "engine": "core"}
            (path.parent / f"scores-{profile.name}.json").write_text(json.dumps(record), "utf-8")


def test_the_table_has_a_row_per_method_structure_and_metric(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    fill(store.out)
    table = xray_table(read_scope(store.out), "standard", "cpr-2023")
    assert table is not None
    keys = [column.key for column in table.columns]
    rows: dict[Any, Any] = {row[:4]: dict(zip(keys, row, strict=True)) for row in table.rows}
    row = rows["drishti_gs → rim_one_r3", "cpr_cbam", "cup", "dice"]
    assert row["start"] == pytest.approx(100 * means(scored(STRICT), "cup", "dice"))
    steps = [row[f"step_{name}"] for name in ("threshold", "smoothing", "empty_masks")]
    assert sum(steps) == pytest.approx(row["end"] - row["start"])
    assert row["step_definition"] is None
    assert row["selection_oracle"] == pytest.approx(3)
    assert row["selection_average"] is None
    assert not any(key[1] == "Tent (online)" and "rim" in key[0] for key in rows)


def test_shuffled_rows_change_no_byte(make_store: Callable[..., Any]) -> None:
    texts = set()
    for name, shuffle in (("a", None), ("b", 4)):
        store = make_store(name)
        fill(store.out, shuffle)
        table = xray_table(read_scope(store.out), "standard", "cpr-2023")
        assert table is not None
        texts.add(to_csv(table))
    assert len(texts) == 1


def test_scores_without_areas_have_no_table(make_store: Callable[..., Any]) -> None:
    store = make_store()
    fill(store.out)
    for path in store.out.glob("cells/*/*/*/cases-*.parquet"):
        write_parquet(read_parquet(path).drop(columns="area_truth"), path)
    assert xray_table(read_scope(store.out), "standard", "cpr-2023") is None


def test_the_same_network_run_in_another_way_is_a_step(make_store: Callable[..., Any]) -> None:
    """A cell that differs in nothing but its inference lies in the store, from another run."""
    store = make_store()
    fill(store.out)
    paths = list(store.out.glob("cells/cpr_cbam/drishti_gs-rim_one_r3/*/cell.json"))
    for path in paths:
        cell = json.loads(path.read_text("utf-8"))
        sibling = path.parent.with_name(f"another-{path.parent.name}")
        shutil.copytree(path.parent, sibling)
        changed = {**cell, "key": f"x{cell['key']}", "inference": {"dropout": True}}
        (sibling / "cell.json").write_text(json.dumps(changed), "utf-8")
        cases = read_parquet(sibling / "cases-cpr-2023.parquet")
        write_parquet(cases.assign(dice=cases["dice"] - 0.04), sibling / "cases-cpr-2023.parquet")

    table = xray_table(read_scope(store.out), "standard", "cpr-2023")

    assert table is not None
    keys = [column.key for column in table.columns]
    rows: dict[Any, Any] = {row[:4]: dict(zip(keys, row, strict=True)) for row in table.rows}
    row = rows["drishti_gs → rim_one_r3", "cpr_cbam", "cup", "dice"]
    assert "dropout=True" in row["other_inference"]
    assert row["inference_gain"] == pytest.approx(-4)
    others = [row for key, row in rows.items() if key[1] != "cpr_cbam"]
    assert others and all(row["other_inference"] is None for row in others)

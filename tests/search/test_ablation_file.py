from __future__ import annotations

import copy
import tomllib
from typing import Any

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.search.ablation import read_ablation
from sfuda_bench.search.ablation_file import parse

FILE: dict[str, Any] = tomllib.loads(
    """
    kind = "ablation"
    method = "parent"
    design = "leave_one_out"
    record = ["labels"]

    [run]
    pairs = "all"

    [switches.mask]
    on = { pixel_mask = true }
    off = { pixel_mask = false }

    [switches.attention]
    title = "CBAM"
    on = { method = "sibling" }
    off = { method = "parent" }
    reference = "off"

    [switches.norm]
    on = { bn = "target", inference.dropout = false }
    off = { bn = "source", inference.dropout = true }
    """
)
WALK: dict[str, Any] = tomllib.loads(
    """
    kind = "variants"
    method = "parent"
    cumulative = true

    [[rows]]
    name = "official"
    preset = "official"

    [[rows]]
    name = "border"
    set = { border = "full" }

    [[rows]]
    name = "grid"
    set = { "data.image_size" = 512, border = "half" }
    """
)


def changed(table: dict[str, Any], **change: Any) -> dict[str, Any]:
    """Return a copy; ``a__b=value`` sets a nested key, ``None`` removes it."""
    found = copy.deepcopy(table)
    for path, value in change.items():
        *parents, last = path.split("__")
        place = found
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return found


def test_leave_one_out_flips_each_switch_alone_around_the_reference() -> None:
    study = parse("s", FILE)
    assert [row.name for row in study.rows] == ["reference", "mask off", "CBAM on", "norm off"]
    assert study.rows[0].levels == {"mask": True, "attention": False, "norm": True}
    assert [row.method for row in study.rows] == ["parent", "parent", "sibling", "parent"]
    assert study.rows[3].values == {"pixel_mask": True, "bn": "source", "inference.dropout": True}
    weights = {c.name: dict(c.weights) for c in study.contrasts}
    # An effect is with minus without, on whichever side the reference lies.
    assert weights["mask"] == {"reference": 1.0, "mask off": -1.0}
    assert weights["attention"] == {"CBAM on": 1.0, "reference": -1.0}


def test_one_at_a_time_starts_from_everything_off() -> None:
    study = parse("s", changed(FILE, design="one_at_a_time"))
    assert [row.name for row in study.rows] == ["reference", "mask on", "CBAM on", "norm on"]
    assert study.rows[0].levels == {"mask": False, "attention": False, "norm": False}


def test_a_factorial_design_has_every_row_once_and_balanced_contrasts() -> None:
    study = parse("s", changed(FILE, design="factorial"))
    assert len({frozenset(row.levels.items()) for row in study.rows}) == len(study.rows) == 8
    assert study.reference == study.rows[0].name == "reference"
    effects = [c for c in study.contrasts if c.kind == "effect"]
    interactions = [c for c in study.contrasts if c.kind == "interaction"]
    assert (len(effects), len(interactions)) == (3, 3)
    for contrast in study.contrasts:
        assert len(contrast.weights) == 8
        assert sum(contrast.weights.values()) == pytest.approx(0)
    # Dice = 5 mask + 2 norm - 3 mask norm, with on = 1, off = 0.
    dice = {
        row.name: 5 * row.levels["mask"] + 2 * row.levels["norm"]
        - 3 * (row.levels["mask"] and row.levels["norm"])
        for row in study.rows
    }  # fmt: skip
    found = {c.name: sum(w * dice[row] for row, w in c.weights.items()) for c in study.contrasts}
    assert found["mask"] == pytest.approx(3.5)
    assert found["norm"] == pytest.approx(0.5)
    assert found["attention"] == pytest.approx(0)
    assert found["mask x norm"] == pytest.approx(-3)
    assert found["mask x attention"] == pytest.approx(0)


def test_a_walk_adds_each_row_to_the_one_above() -> None:
    study = parse("s", WALK)
    assert [row.preset for row in study.rows] == ["official"] * 3
    assert study.rows[2].values == {"border": "half", "data.image_size": 512}
    kinds = [(c.kind, c.name) for c in study.contrasts]
    assert kinds == [("step", "border"), ("step", "grid"), ("versus", "border"), ("versus", "grid")]
    assert study.contrasts[1].weights == {"grid": 1.0, "border": -1.0}
    assert study.contrasts[3].weights == {"grid": 1.0, "official": -1.0}


def test_rows_that_are_no_walk_keep_their_own_settings_and_reference() -> None:
    study = parse("s", changed(WALK, cumulative=False, reference="grid"))
    assert study.rows[1].preset is None
    assert study.rows[2].values == {"border": "half", "data.image_size": 512}
    assert [c.name for c in study.contrasts] == ["official", "border"]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (changed(FILE, kind="ablatoin"), ["kind", "ablatoin", "did you mean 'ablation'"]),
        (changed(FILE, kind="pool"), ["'pool'", "not ablated but searched"]),
        (changed(FILE, kind=None), ["kind", "missing"]),
        (changed(FILE, design="leave_two_out"), ["design", "leave_two_out", "leave_one_out"]),
        (changed(FILE, method=None), ["method", "missing"]),
        (changed(FILE, switches=None), ["no switches", "[switches.NAME]"]),
        (changed(FILE, desing="factorial"), ["unknown key 'desing'", "did you mean 'design'"]),
        (changed(FILE, record=["lables"]), ["record", "lables", "did you mean 'labels'"]),
        (changed(FILE, switches__mask__off=None), ["[switches.mask]", "'off' is missing"]),
        (changed(FILE, switches__mask__of={}), ["[switches.mask]", "unknown key 'of'"]),
        (changed(FILE, switches__mask__off={"pixel_mask": True}), ["mask", "switches nothing"]),
        (changed(FILE, switches__mask__reference="yes"), ["reference", "'yes'", "on, off"]),
        (changed(FILE, switches__norm__on={"pixel_mask": 1}), ["'mask' and 'norm'", "pixel_mask"]),
        (changed(FILE, switches__norm__on={"method": "x"}), ["attention", "norm", "'method'"]),
        (changed(FILE, run__methods=["cpr"]), ["[run]", "methods"]),
        (changed(WALK, cumulative="yes"), ["cumulative", "true or false"]),
        (changed(WALK, rows=[{"name": "one"}]), ["at least two", "[[rows]]"]),
        (changed(WALK, rows=[{"name": "a"}, {"name": "a"}]), ["two rows are called 'a'"]),
        (changed(WALK, rows=[{"name": "a"}, {"nam": "b"}]), ["number 2", "did you mean 'name'"]),
        (changed(WALK, rows=[{"name": "a"}, {"name": "b", "set": 3}]), ["'set' must be a table"]),
        (changed(WALK, method=None), ["number 1", "no method"]),
        (changed(WALK, reference="offcial"), ["reference", "did you mean 'official'"]),
        (
            changed(WALK, shares=[{"name": "n", "baseline": "official", "full": "x"}]),
            ["shares", "'control' is missing"],
        ),
        (
            changed(
                WALK,
                shares=[{"name": "n", "baseline": "official", "full": "gird", "control": "grid"}],
            ),
            ["full = 'gird' is no row", "did you mean 'grid'"],
        ),
    ],
)
def test_a_mistake_is_named_with_its_place_and_what_was_expected(
    table: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        parse("s", table)
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message


def test_a_factorial_design_that_explodes_is_refused() -> None:
    switches = {f"s{n}": {"on": {f"k{n}": 1}, "off": {f"k{n}": 0}} for n in range(8)}
    with pytest.raises(UsageError, match="256 rows"):
        parse("s", changed(FILE, design="factorial", switches=switches))


@pytest.mark.parametrize("name", ["cpr_components", "bn_confound", "cpr_presets"])
def test_shipped_files_are_sound(name: str) -> None:
    study = read_ablation(name)
    assert study.question
    assert len(study.rows) > 2

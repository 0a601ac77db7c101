"""The shipped walk between presets ends where it says it ends."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.search.ablation import read_ablation, requests
from sfuda_bench.search.cells import Flags
from sfuda_bench.settings import Settings, explain, resolve

D1_D2, D4_D1 = "drishti_gs:rim_one_r3", "refuge_val:drishti_gs"


@pytest.fixture(scope="module")
def walk() -> dict[str, Settings]:
    ablation = read_ablation("cpr_presets")
    found = requests(ablation, Flags(out=Path("unused")))
    return {row.name: r.settings for row, r in zip(ablation.rows, found, strict=True)}


def values(settings: Settings, pair: str) -> dict[str, Any]:
    """Return every value of a pair but the preset's name."""
    general = {key: value for key, value, _ in explain(settings) if not key.startswith("cpr.")}
    return general | {f"cpr.{k}": v for k, v in vars(settings.config_for("cpr", pair)).items()}


@pytest.mark.parametrize("pair", [D1_D2, D4_D1, "synthetic_a:synthetic_b"])
@pytest.mark.parametrize("preset", ["official", "reproduction", "paper"])
def test_the_rows_of_a_presets_name_have_its_settings(
    walk: dict[str, Settings], preset: str, pair: str
) -> None:
    """All but the number of epochs, which is smaller here and doubles where it does there."""
    small = read_ablation("cpr_presets").run["set"]
    epochs = walk[preset].config_for("cpr", pair).epochs
    assert epochs == (2 if preset == "official" else 4)
    expected = resolve(preset, overrides=[*small, f"cpr.epochs={epochs}"], methods=["cpr"])
    assert values(walk[preset], pair) == values(expected, pair)


def test_each_step_moves_one_flag(walk: dict[str, Settings]) -> None:
    """In the pair whose released iterations differ every step moves something."""
    steps = [values(settings, D4_D1) for settings in walk.values()]
    for name, (above, below) in zip(list(walk)[1:], itertools.pairwise(steps), strict=True):
        moved = {key for key in below if below[key] != above[key]}
        assert len(moved) == 1, f"{name} moves {moved}"

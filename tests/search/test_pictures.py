from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.search.pictures import (
    contour_plot,
    importances,
    optimisation_history,
    save,
    slice_plot,
    study_pictures,
    varied,
)


def trials(count: int = 16, seed: int = 0) -> pd.DataFrame:
    """Trials whose value depends on the radius, hardly on beta, and not on the rest."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        params: dict[str, Any] = {
            "radius": int(rng.integers(2, 9)),
            "beta": float(2 ** rng.uniform(-2, 4)),
            "border": str(rng.choice(["official", "full"])),
            "iterations": 4,
        }
        value = 80 - (params["radius"] - 4) ** 2 + 0.1 * params["beta"]
        state = "FAIL" if number == 3 else "COMPLETE"
        rows.append((number, value if state == "COMPLETE" else np.nan, state, params))
    return pd.DataFrame(rows, columns=["number", "value", "state", "params"])


def test_only_parameters_that_differ_are_drawn() -> None:
    assert varied(trials()) == ["radius", "beta", "border"]
    assert varied(trials(0)) == []


def test_importance_finds_what_moves_the_value_and_sums_to_one() -> None:
    found = importances(trials(40))
    assert found.index[0] == "radius"
    assert found.sum() == pytest.approx(1)
    assert "iterations" not in found.index


def test_importance_of_too_few_trials_is_refused_with_what_helps() -> None:
    with pytest.raises(UsageError, match="completed trials") as caught:
        importances(trials(3))
    assert caught.value.hint


def test_equal_trials_give_equal_bytes_and_order_does_not_matter(tmp_path: Path) -> None:
    written = {}
    for name, frame in (("a", trials()), ("b", trials().sample(frac=1.0, random_state=1))):
        paths = study_pictures(frame, tmp_path / name, log=["beta"], symbols={"radius": "r"})
        written[name] = {path.name: path.read_bytes() for path in paths}
    assert set(written["a"]) == {
        f"{stem}.{ending}"
        for stem in ("history", "slices", "importance", "contours")
        for ending in ("pdf", "png")
    }
    assert written["a"] == written["b"]
    for name, data in written["a"].items():
        assert b"2026" not in data[:2000], name  # no date


def test_the_best_so_far_never_falls(tmp_path: Path) -> None:
    (axes,) = optimisation_history(trials()).axes
    (line,) = [line for line in axes.lines if line.get_label() == "best so far"]
    heights = np.asarray(line.get_ydata(), dtype=float)
    assert (np.diff(heights) >= 0).all()
    assert heights[-1] == trials()["value"].max()


def test_slices_have_a_panel_per_parameter_and_symbols_of_the_papers() -> None:
    figure = slice_plot(trials(), params=["radius", "beta"], symbols={"beta": "beta"}, log=["beta"])
    labels = [axes.get_xlabel() for axes in figure.axes[:2]]
    assert labels == ["radius", "beta (β)"]
    assert figure.axes[1].get_xscale() == "log"


def test_contours_need_two_parameters_and_survive_points_on_a_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two parameters"):
        contour_plot(trials(), params=["radius"])
    frame = trials()
    frame["params"] = pd.Series([{"a": float(n), "b": 2.0 * n} for n in frame["number"]])
    assert len(save(contour_plot(frame), tmp_path, "line")) == 2


def test_a_study_without_completed_trials_still_has_a_history(tmp_path: Path) -> None:
    frame = trials(4).assign(state="FAIL", value=np.nan)
    assert [path.name for path in study_pictures(frame, tmp_path)] == ["history.pdf", "history.png"]
    with pytest.raises(UsageError, match="no completed trial"):
        slice_plot(frame)


def test_a_constant_objective_has_no_importance(tmp_path: Path) -> None:
    """Every parameter would get an equal share of nothing."""
    paths = study_pictures(trials().assign(value=1.0), tmp_path)
    assert {path.stem for path in paths} == {"history", "slices", "contours"}

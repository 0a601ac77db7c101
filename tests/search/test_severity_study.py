"""An ablation whose pairs turn knobs writes severity curves under the names of its rows."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sfuda_bench.search import severity
from sfuda_bench.search.severity import write_severity
from tests.report.rich_store import RichStore

A = "synthetic_a"
PAIRS = [(A, f"{A}@0"), (A, f"{A}@blur=1")]


def plans_of(out: Path, methods: list[str]) -> list[Any]:
    asked = json.loads((out / "plans/last.json").read_text("utf-8"))["cells"]
    store = SimpleNamespace(root=out)
    return [
        SimpleNamespace(
            store=store,
            cells=[
                SimpleNamespace(job={"cell": cell}, preset="quick", positions_from_labels=False)
                for cell in asked
                if cell["method"] == method
            ],
        )
        for method in methods
    ]


@pytest.mark.parametrize("pairs", [PAIRS, [("drishti_gs", "rim_one_r3")]])
def test_rows_keep_their_names_and_other_pairs_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[tuple[str, str]]
) -> None:
    drawn: list[str] = []

    def remember(figure: Any, folder: Path, name: str) -> list[Path]:
        drawn.append(name)
        return []

    monkeypatch.setattr(severity, "save", remember)
    methods = ["source_only", "cpr"]
    how: dict[str, Any] = {"methods": methods, "pairs": pairs, "images": 4, "lost": ()}
    out = RichStore(tmp_path / "store", profiles=("standard",), **how).out
    plans = cast(Any, plans_of(out, methods))
    folder = tmp_path / "study"
    tables, paths = write_severity(["before", "after"], plans, folder, ("standard",))
    if pairs != PAIRS:
        assert (tables, paths, drawn) == ([], [], [])
        return
    with (folder / "severity-standard.csv").open(encoding="utf-8") as file:
        found = [(row["severity"], row["method"]) for row in csv.DictReader(file)]
    assert found == [("0", "before"), ("0", "after"), ("1", "before"), ("1", "after")]
    assert [name.split("-")[1] for name in drawn] == ["avg", "cup", "disc"]

"""Planning with derived domains: drawn on demand, cells of their own, hidden from adaptation."""

from __future__ import annotations

from typing import Any

import pytest


def plan_of(bench: Any, pairs: str, method: str = "source_only") -> Any:
    return bench.plan(method, pairs=pairs)


def test_equal_images_under_two_names_are_two_cells_with_equal_streams(bench: Any) -> None:
    """An annotation style changes masks only: one adaptation key would stand for two cells."""
    source = plan_of(bench, "all").cells[0].pair.source
    pairs = f"{source}:synthetic_a@annotation=1,{source}:synthetic_a@0"
    first, second = plan_of(bench, pairs).cells
    assert first.job["cell"]["digests"] == second.job["cell"]["digests"]
    assert first.key != second.key and first.folder != second.folder
    assert first.job["artefact_base"] == second.job["artefact_base"]
    assert first.scoring[0]["key"] != second.scoring[0]["key"]


def test_derived_domains_are_drawn_when_named_and_are_in_no_wildcard(bench: Any) -> None:
    before = [str(cell.pair) for cell in plan_of(bench, "all").cells]
    source = before[0].partition(":")[0]
    plan = plan_of(bench, f"{source}:synthetic_b@blur=0.5")
    (cell,) = plan.cells
    assert cell.pair.target == "synthetic_b@blur=0.5"
    assert cell.job["cell"]["synthetic"] is True
    folder = plan.store.root / "synthetic" / "derived" / "synthetic_b@blur=0.5"
    assert folder.is_dir()
    assert folder in plan.forbidden  # masks lie below it
    assert [str(cell.pair) for cell in plan_of(bench, "all").cells] == before


@pytest.mark.parametrize("pairs", ["all", "*:*"])
def test_keys_of_other_pairs_know_nothing_of_severity(bench: Any, pairs: str) -> None:
    for cell in plan_of(bench, pairs).cells:
        assert "pair" not in cell.job["cell"].get("key_fields", {})

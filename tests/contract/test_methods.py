"""The contract can fail: each invariant is broken by a method made for it, and by no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.contract.laboratory import Laboratory
from sfuda_bench.contract.methods import INVARIANTS
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import load_plugin_file

BREAKS = {
    "keeps_everything": set(),
    "sees_names": {"blind to file names"},
    "sees_the_record": {"unmoved by recording", "blind to test images", "every protocol"},
    "ignores_the_seed": {"another seed, other bytes"},
    "draws_from_the_system": {"same seed, same bytes", "label-blind verified"},
    "hides_its_teacher": {"resumed, same bytes"},
    "does_nothing": {"adapts", "another seed, other bytes"},
    "changes_more": {"only declared updates"},
    "is_not_inert": {"inert settings"},
    "divides_by_contrast": {"finite on hard targets"},
    "hides_a_layer": {"any prediction batch"},
    "remembers_batches": {"episodes are apart", "every protocol"},
    "has_a_wrong_default": {"settings resolve"},
}
"""What must fail; more may."""
SURE = {"keeps_everything"}
"""Methods that are asked about every invariant."""


@pytest.fixture(scope="module")
def laboratory(
    trained: Any,
    plugin_folder: Path,
    extra_methods: None,
    tmp_path_factory: pytest.TempPathFactory,
) -> Laboratory:
    for name in ("breaks", "adversarial"):
        load_plugin_file(plugin_folder / f"{name}.py")
    load_plugin_file(Path(__file__).with_name("hidden_state.py"))
    return Laboratory(trained, tmp_path_factory.mktemp("contract"))


def verdicts(laboratory: Laboratory, name: str, wanted: set[str] | None = None) -> dict[str, Any]:
    spec = METHODS.get(name)
    return {
        invariant.name: invariant.verdict(laboratory, spec)
        for invariant in INVARIANTS
        if wanted is None or invariant.name in wanted
    }


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_a_method_fails_what_it_breaks(name: str, laboratory: Laboratory) -> None:
    found = verdicts(laboratory, name, None if name in SURE else BREAKS[name])
    failed = {key for key, verdict in found.items() if verdict.verdict == "failed"}
    assert failed == BREAKS[name], {key: found[key].evidence for key in failed ^ BREAKS[name]}
    assert all(verdict.evidence for key, verdict in found.items() if key in failed)


@pytest.mark.parametrize(
    ("name", "invariant"),
    [
        ("reads_packed_masks", "label-blind verified"),
        ("reads_test_images", "blind to test images"),
        ("guesses_test_images", "blind to test images"),
    ],
)
def test_a_cheat_that_no_firewall_stops_is_shown_by_its_bytes(
    name: str, invariant: str, laboratory: Laboratory
) -> None:
    """This process has no firewall: the method reads what it wants, and is found out."""
    verdict = verdicts(laboratory, name, {invariant})[invariant]
    assert verdict.verdict == "failed"
    assert "the adapted model is" in verdict.evidence and "but with" in verdict.evidence


def test_every_invariant_that_a_method_can_break_is_broken_by_one() -> None:
    """Left out: one is broken in a process of its own, two are checked when a method registers."""
    broken = set().union(*BREAKS.values())
    assert {invariant.name for invariant in INVARIANTS} - broken == {
        "leaves nothing behind",
        "declared extras",
        "says what it is",
    }


def test_the_guide_explains_every_invariant() -> None:
    guide = (Path(__file__).parents[2] / "methods" / "README.md").read_text("utf-8")
    rows = [line.split("|")[1].strip() for line in guide.splitlines() if line.startswith("| ")]
    assert {invariant.name for invariant in INVARIANTS} <= set(rows)

"""What every registered method must keep to, ours and third parties'; none is named here."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from sfuda_bench.contract.laboratory import Laboratory
from sfuda_bench.contract.methods import INVARIANTS
from sfuda_bench.methods import METHODS, Batch, MethodSpec

CASES = [
    pytest.param(invariant, spec, id=f"{invariant.name}-{spec.name}")
    for invariant in INVARIANTS
    for spec in map(METHODS.get, METHODS.names())
    if invariant.applies(spec)
]


@pytest.fixture(scope="module")
def laboratory(trained: Any, tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    """Return one laboratory: results are computed once and looked at by several invariants."""
    return Laboratory(trained, tmp_path_factory.mktemp("contract"))


@pytest.mark.parametrize(("invariant", "spec"), CASES)
def test_the_method_keeps_the_contract(
    invariant: Any, spec: MethodSpec, laboratory: Laboratory
) -> None:
    assert invariant.check(laboratory, spec)


def test_the_batch_of_a_target_has_no_field_for_a_mask() -> None:
    assert {field.name for field in dataclasses.fields(Batch)} == {"image", "index"}

"""Each stage equals its formula, worked in float64 from the description alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.golden import parity, reference


@pytest.mark.parametrize("stage", parity.STAGES, ids=lambda stage: stage.__name__)
def test_a_stage_is_within_its_tolerance(stage: Callable[[], Iterator[parity.Row]]) -> None:
    found = list(stage())
    assert found
    beyond = [row for row in found if not row.difference <= row.tolerance]
    assert not beyond


def test_the_reference_knows_nothing_of_the_package() -> None:
    text = Path(reference.__file__).read_text("utf-8")
    assert "sfuda_bench" not in text
    assert "torch" not in text


def test_the_reference_itself_has_the_golden_values() -> None:
    """O3, O4, O7, O8 and O9 hold for the other side of the comparison too."""
    chain = np.array([0.0, np.log(2), np.log(2)]).reshape(1, 1, 1, 1, 3).repeat(2, axis=1)
    prob = np.array([1.0, 0, 0]).reshape(1, 1, 1, 3).repeat(2, axis=1)
    refined = reference.refine(prob, chain, [(0, 1), (1, 2)], 2.0, 4)
    np.testing.assert_allclose(refined[0, 0, 0], [0.47789, 0.17600, 0.12832], atol=1e-5)
    np.testing.assert_allclose(
        reference.calibrate(refined)[0, 1, 0], [1, 0.36828, 0.26851], atol=1e-5
    )
    s = -np.log(np.array([1, 0.25, 0.5, 0.25, 0.5])).reshape(1, 1, 5).repeat(2, axis=1)
    kinds = np.array([0, 0, 1, 2, 2]).reshape(1, 1, 5).repeat(2, axis=1)
    assert reference.similarity_loss(s, kinds, "mean") == pytest.approx(0.591757, abs=1e-6)
    logits = np.array([0.0, 2 * np.log(3)]).reshape(2, 1, 1, 1, 1)
    p, u, _ = reference.mc_statistics(logits, logits)
    assert p.item() == pytest.approx(0.7)
    assert u.item() == pytest.approx(0.1767767, abs=1e-7)
    feature = np.array([0.0, 1, 2, 10]).reshape(1, 1, 1, 4)
    label, prob = (
        np.array(v).reshape(1, 1, 1, 4).repeat(2, axis=1)
        for v in ([1, 1, 0, 0], [0.9, 0.8, 0.3, 0.1])
    )
    obj, background = reference.prototypes(feature, label, prob, np.zeros_like(prob), 0.05)
    assert obj[0, 0] == pytest.approx(0.470588, abs=1e-6)
    assert background[1, 0] == pytest.approx(6.5)
    q = reference.class_decision(feature, obj, background, 1, 4)
    assert q[0, 0, 0].tolist() == [True, True, True, False]


def test_the_table_names_every_stage_once_per_comparison_and_keeps_the_worst() -> None:
    found = list(parity.rows())
    assert len({(row.stage, row.against) for row in found}) == len(found)
    short = parity.worst_of_rules(found)
    assert len(short) < len(found)
    assert max(row.difference for row in short) == max(row.difference for row in found)
    assert len(parity.table(short).splitlines()) == 2 + len(short)

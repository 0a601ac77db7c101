"""A damaged study: the undamaged answer, or an error that names its journal."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.mutations import flipped
from tests.fuzz.studies import Study, attack


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study.build(tmp_path_factory.mktemp("study") / "out")


def test_a_damaged_journal_gives_no_traceback(study: Study) -> None:
    for number in range(40):
        attack(random.Random(number), study)


def test_a_flipped_bit_never_gives_another_answer(study: Study, tmp_path: Path) -> None:
    """But for the last line, which may be one that its writer did not finish."""
    last = study.data.rindex(b"\n", 0, -1)
    for number in range(30):
        data = flipped(study.data[:last], random.Random(number)) + study.data[last:]
        code, answer = study.ask(data)[0]
        assert code in (5, 7) or answer == study.status


def test_a_trial_that_could_be_right_but_was_not_written_is_refused(study: Study) -> None:
    changed = study.data.replace(b'"param_value_internal":0', b'"param_value_internal":1', 1)
    assert changed != study.data
    assert study.ask(changed)[0][0] in (5, 7)

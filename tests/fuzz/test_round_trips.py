"""What is written is read back: keys, codes, checkpoints."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sfuda_bench.running.checkpoint import Checkpoints, _flatten, _unflatten
from sfuda_bench.running.keys import canonical_json, digest
from sfuda_bench.running.record_shapes import check_shape
from sfuda_bench.scoring.codes import encode
from tests.fuzz.mutations import damaged, flipped

_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
_json = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)
_tensors = st.sampled_from(
    [torch.arange(6.0).reshape(2, 3).t(), torch.tensor(3), torch.zeros(0, 2), torch.tensor([True])]
)
_keys = st.sampled_from(["a", "a/b", "a/b/c", "0", 0, 1, "1", "", "/", True, None, 1.5])
_states = st.recursive(
    _scalars | _tensors,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_keys, inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_json)
def test_canonical_json_says_the_value_in_one_way(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text
    assert len(digest(value)) == 64


@given(st.dictionaries(st.text(max_size=5), _scalars, max_size=6))
def test_a_digest_does_not_depend_on_the_order_of_keys(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_what_is_no_number_has_no_digest(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        digest(value)


@given(_states)
def test_a_state_comes_back_from_a_checkpoint_with_its_kinds(state: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    skeleton = json.loads(json.dumps(_flatten(state, tensors, "")))
    _assert_same(_unflatten(skeleton, tensors), state)


def test_tensors_under_keys_that_read_alike_stay_apart() -> None:
    one, other = torch.zeros(2), torch.ones(2)
    for state in (
        {1: one, "1": other},
        {"a/b": one, "a": {"b": other}},
        {None: one, "None": other},
    ):
        tensors: dict[str, torch.Tensor] = {}
        _assert_same(_unflatten(_flatten(state, tensors, ""), tensors), state)


class _Part:
    """A part of a loop: weights, and a number that only the skeleton holds."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"weight": torch.zeros(3), "lr": 1.0}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state_dict: Any) -> None:
        self.state = state_dict


def test_a_damaged_checkpoint_is_not_used_or_is_exactly_what_was_kept(tmp_path: Path) -> None:
    """A flipped bit in the epoch or in a learning rate counts like one in a tensor."""
    part = _Part()
    first = Checkpoints(tmp_path, {"key": "a"}, every=0)
    first.begin({"part": part})
    part.state = {"weight": torch.arange(3.0), "lr": 0.125}
    first.offer(12, {"part": part})
    (path,) = tmp_path.glob("loop-*")
    data, used = path.read_bytes(), 0
    for number in range(300):
        rng = random.Random(number)
        path.write_bytes(flipped(data, rng) if number % 2 else damaged(data, rng))
        found = _Part()
        checkpoints = Checkpoints(tmp_path, {"key": "a"}, every=0)
        epoch = checkpoints.begin({"part": found})
        used += epoch > 0
        assert epoch in (0, 12)
        _assert_same(found.state, part.state if epoch else _Part().state)
    path.write_bytes(data)
    assert Checkpoints(tmp_path, {"key": "a"}, every=0).begin({"part": _Part()}) == 12
    assert used < 30


def _assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert found.dtype == wanted.dtype and torch.equal(found, wanted)
    elif isinstance(wanted, dict):
        assert [(type(k), k) for k in found] == [(type(k), k) for k in wanted]
        for key in wanted:
            _assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _assert_same(one, other)
    else:
        assert found == wanted


@given(
    arrays(np.float32, array_shapes(max_dims=2, max_side=9), elements=st.floats(0, 1, width=32)),
    st.integers(0, 255),
)
def test_codes_cut_at_every_level_where_the_probabilities_do(
    prob: np.ndarray[Any, Any], level: int
) -> None:
    codes = encode(prob)
    assert codes.dtype == np.uint8
    assert np.array_equal(codes >= level, prob > np.float32(level / 256)) or level == 0


@given(st.sampled_from(["cell.json", "run.json", "card.json", "last.json", "scores-x.json"]), _json)
def test_a_record_of_any_content_is_taken_or_refused_in_our_words(name: str, value: Any) -> None:
    from tests.fuzz.outcome import only_our_errors

    if isinstance(value, dict):
        only_our_errors(lambda: check_shape(Path(name), value), name)
        wrong = {"cells": value, "key": value, "seconds": value, "profile": value}
        only_our_errors(lambda: check_shape(Path(name), wrong), name)

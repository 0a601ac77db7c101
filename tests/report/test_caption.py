"""What a caption says of how networks were chosen, run and scored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sfuda_bench.report.tables import store_tables


def caption_of(store: Any, **changes: Any) -> str:
    """Return the caption after a change of every stored cell or scoring."""
    for path in store.out.glob("cells/*/*/*/cell.json"):
        cell = json.loads(path.read_text())
        path.write_text(json.dumps({**cell, **changes}))
    return " ".join(store_tables(store.out)[0].caption)


def test_a_choice_on_the_source_test_split_is_marked(make_store: Any) -> None:
    assert "chosen on their own test split (source_test_best)" in caption_of(
        make_store(), source_selection="source_test_best"
    )
    assert "test split" not in caption_of(make_store("b"), source_selection="source_val")


@pytest.mark.parametrize(
    ("inference", "says"),
    [
        ({"batch_norm": "running", "dropout": False, "pooling_bn": True}, ""),
        (
            {"batch_norm": "per_image", "dropout": True, "pooling_bn": False},
            "Networks are run with each image's own batch norm, active dropout, no pooling",
        ),
    ],
)
def test_an_unusual_way_to_run_networks_is_marked(
    make_store: Any, inference: dict[str, Any], says: str
) -> None:
    caption = caption_of(make_store(), inference=inference)
    assert says in caption if says else "Networks are run" not in caption


def test_thresholds_and_post_processing_are_those_of_the_profile(make_store: Any) -> None:
    store = make_store()
    for path in store.out.glob("cells/*/*/*/scores-standard.json"):
        record = json.loads(path.read_text())
        record["profile_fields"] |= {"cup_threshold": 0.1, "postprocessing": "beal"}
        path.write_text(json.dumps(record))
    assert "threshold disc 0.5, cup 0.1, post-processing beal" in caption_of(store)

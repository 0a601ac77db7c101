from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sfuda_bench import cli
from sfuda_bench.errors import CheckFailed, UsageError
from sfuda_bench.report.plain import to_csv
from sfuda_bench.report.published import PublishedValue
from sfuda_bench.report.reproduce import Comparison, check_reproduced, reproduce, reproduce_table
from sfuda_bench.report.scope import read_scope

REAL, SYNTHETIC = ("drishti_gs", "rim_one_r3"), ("syn_a", "syn_b")
# The filled store's cpr_cbam has 85 and 75 on the two images' cups: mean 80, deviation 7.07.
CUP = PublishedValue(
    table="t",
    method="cpr_cbam",
    pair=REAL,
    structure="cup",
    metric="dice",
    value=80.0,
    decimals=1,
    std=None,
    source="Paper, Table 1",
    profile="standard",
    protocol="offline",
    selection="last",
    source_model="own",
    roi="",
    image_size=128,
    network="deeplabv3plus",
    test_images=2,
    notes="",
)


def compare(store: Any, **changes: Any) -> Comparison:
    value = replace(CUP, **changes)
    (found,) = reproduce(read_scope(store.out), "t", {"t": [value]})
    return found


def test_equal_as_printed_is_a_match(make_store: Callable[..., Any]) -> None:
    found = compare(make_store())
    assert found.ours == pytest.approx(80)
    assert (found.verdict, found.reasons) == ("match", ())
    # 12.706 is the 97.5 % quantile of Student's t with one degree of freedom.
    assert found.low == pytest.approx(80 - 12.706 * 50**0.5 / 2**0.5, abs=0.01)


def test_a_number_inside_our_interval_and_one_outside(make_store: Callable[..., Any]) -> None:
    store = make_store()
    assert compare(store, value=70.0).verdict == "within CI"
    found = compare(store, value=5.0)
    assert (found.verdict, found.verdict_text) == ("off", "off by +75.0")
    assert found.difference == pytest.approx(75)


def test_distances_and_averages_are_compared_in_their_own_unit(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    assert compare(store, metric="asd", value=9.0).verdict == "match"
    assert compare(store, structure="avg", value=86.0).verdict == "match"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pair": ("rim_one_r3", "drishti_gs")}, "pair: missing"),
        ({"pair": ("not stated", "rim_one_r3")}, "not stated"),
        ({"method": "u_d4r"}, "method: missing"),
        ({"method": "tent", "protocol": "online"}, "missing or failed"),
        ({"pair": SYNTHETIC}, "synthetic"),
        ({"test_images": 60}, "split: 60 test images, here 2"),
        ({"image_size": 512}, "image size: 512 px, here 128"),
        ({"network": "unet"}, "network"),
        ({"source_model": "released"}, "source model"),
        ({"selection": "epoch-1"}, "selection: 'epoch-1'"),
        ({"protocol": "online"}, "protocol: online, here offline"),
        ({"profile": "none"}, "profile"),
        ({"profile": "cpr-2023"}, "not stored under profile cpr-2023"),
        ({"metric": "dice_gain"}, "metric"),
    ],
)
def test_what_differs_is_named(
    make_store: Callable[..., Any], changes: dict[str, Any], reason: str
) -> None:
    found = compare(make_store(), **changes)
    assert found.verdict == "not comparable"
    assert reason in "; ".join(found.reasons)


def test_what_is_unknown_is_a_caveat_and_no_reason(make_store: Callable[..., Any]) -> None:
    found = compare(make_store(), selection="not stated", roi="resize800", network="")
    assert found.verdict == "match"
    assert found.caveats == (
        "selection not stated",
        "network not stated",
        "crop: resize800, here not recorded",
    )


def test_strict_fails_when_something_is_off_or_nothing_is_comparable(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    check_reproduced([compare(store), compare(store, test_images=60)])
    with pytest.raises(CheckFailed, match="1 published numbers are not reproduced"):
        check_reproduced([compare(store), compare(store, value=5.0)])
    with pytest.raises(CheckFailed, match="none"):
        check_reproduced([compare(store, test_images=60)])


def test_an_unknown_table_is_refused_by_name(make_store: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match="table9"):
        reproduce(read_scope(make_store().out), "table9")


def test_shuffled_rows_change_no_byte(make_store: Callable[..., Any]) -> None:
    texts = {
        to_csv(reproduce_table([compare(make_store(name, shuffle), value=70.0)], "t"))
        for name, shuffle in (("a", None), ("b", 1))
    }
    assert len(texts) == 1


def test_the_command_prints_one_document_and_fails_only_when_strict(
    make_store: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(make_store().out)
    assert cli.main(["reproduce", "all", "--out", out, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = {row["verdict"] for row in document["comparisons"]}
    assert found == {"not comparable"}
    assert cli.main(["reproduce", "--out", out, "--strict"]) == 6
    assert "why not comparable" in capsys.readouterr().out

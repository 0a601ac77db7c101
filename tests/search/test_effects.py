from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.search.effects import (
    SCORE_COLUMNS,
    Contrast,
    Share,
    effects,
    inert,
    means,
    shares,
    with_average,
)

PAIRS = (("a", "b"), ("b", "a"))
Shift = Callable[[str, str, int], float]


def scores(
    rows: Mapping[str, float],
    *,
    pairs: tuple[tuple[str, str], ...] = PAIRS,
    seeds: tuple[int, ...] = (0,),
    images: int = 12,
    noise: float = 0.0,
) -> pd.DataFrame:
    """Rows differ by their given Dice; images differ a lot, but equally for every row."""
    rng = np.random.default_rng(0)
    lines = [
        (row, *pair, 0, seed, f"i{image:02d}", structure,
         60 + 3 * image + shift + 5 * (structure == "disc") + noise * rng.normal())
        for pair in pairs
        for row, shift in rows.items()
        for seed in seeds
        for image in range(images)
        for structure in ("cup", "disc")
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=list(SCORE_COLUMNS))


def only(frame: pd.DataFrame, **where: Any) -> Mapping[str, Any]:
    """Return the one line with these values."""
    for name, value in where.items():
        frame = frame[frame[name] == value]
    (line,) = frame.to_dict("records")
    return {str(name): value for name, value in line.items()}


def test_pairing_by_image_removes_what_images_have_in_common() -> None:
    """Images differ by tens of points, the effect is constant: the interval has no width."""
    found = effects(scores({"on": 2.0, "off": 0.0}), [Contrast.effect("x", "x", [("on", "off")])])
    line = only(found, source="a", structure="cup")
    assert line["effect"] == pytest.approx(2)
    assert line["ci_low"] == pytest.approx(2)
    assert line["ci_high"] == pytest.approx(2)
    assert line["n_images"] == 12
    assert line["p_permutation"] < 0.001


def test_several_seeds_widen_the_interval_by_their_spread() -> None:
    """With one run the interval is Student's; seeds that disagree add to it."""
    one = scores({"on": 1.0, "off": 0.0}, noise=0.5)
    several = pd.concat(
        [one.assign(seed=seed, dice=one["dice"] + shift * (one["row"] == "on"))
         for seed, shift in enumerate((-3.0, 0.0, 3.0))]
    )  # fmt: skip
    contrast = [Contrast.effect("x", "x", [("on", "off")])]
    narrow = only(effects(one, contrast), source="a", structure="cup")
    wide = only(effects(several, contrast), source="a", structure="cup")
    assert wide["runs"] == 3
    assert wide["effect"] == pytest.approx(narrow["effect"])
    assert wide["ci_high"] - wide["ci_low"] > 2 * (narrow["ci_high"] - narrow["ci_low"])


def test_no_interval_over_pairs_below_six_targets() -> None:
    contrast = [Contrast.effect("x", "x", [("on", "off")])]
    few = only(effects(scores({"on": 1, "off": 0}), contrast), source="all", structure="avg")
    assert few["effect"] == pytest.approx(1)
    assert math.isnan(few["ci_low"])
    assert "fewer than 6 targets" in few["note"]
    targets = tuple(("s", f"t{n}") for n in range(6))
    many = effects(scores({"on": 1, "off": 0}, pairs=targets), contrast)
    assert only(many, source="all", structure="avg")["ci_low"] == pytest.approx(1)


def test_a_missing_row_leaves_the_effect_open_and_is_named() -> None:
    """Also over pairs: never a mean over fewer pairs than asked."""
    frame = scores({"on": 1, "off": 0})
    frame = frame[~((frame["row"] == "off") & (frame["source"] == "b"))]
    found = effects(frame, [Contrast.effect("x", "x", [("on", "off")])])
    assert only(found, source="a", structure="avg")["effect"] == pytest.approx(1)
    lost = only(found, source="b", structure="avg")
    assert math.isnan(lost["effect"])
    assert lost["note"] == "missing: off"
    assert only(found, source="all", structure="avg")["note"] == "not in every pair"


def test_unequal_seeds_are_not_averaged() -> None:
    frame = scores({"on": 1, "off": 0}, seeds=(0, 1))
    frame = frame[~((frame["row"] == "off") & (frame["seed"] == 1))]
    found = effects(frame, [Contrast.effect("x", "x", [("on", "off")])])
    line = only(found, source="a", structure="cup")
    assert math.isnan(line["effect"])
    assert "seeds" in line["note"]


def test_unequal_images_are_refused() -> None:
    frame = scores({"on": 1, "off": 0})
    frame = frame[~((frame["row"] == "off") & (frame["image"] == "i03"))]
    with pytest.raises(UsageError, match="i03"):
        effects(frame, [Contrast.effect("x", "x", [("on", "off")])])


def test_an_undefined_score_leaves_its_image_out_of_the_structure_and_the_average() -> None:
    frame = scores({"on": 1, "off": 0})
    lost = (frame["row"] == "on") & (frame["image"] == "i00") & (frame["structure"] == "cup")
    frame.loc[lost, "dice"] = np.nan
    averaged = with_average(frame)
    average = averaged[(averaged["structure"] == "avg") & (averaged["image"] == "i00")]
    assert average.set_index(["row", "source"])["dice"].isna().loc[("on", "a")]
    found = effects(frame, [Contrast.effect("x", "x", [("on", "off")])])
    counts = {s: only(found, source="a", structure=s)["n_images"] for s in ("cup", "disc", "avg")}
    assert counts == {"cup": 11, "disc": 12, "avg": 11}


def test_an_interaction_is_the_difference_of_two_effects() -> None:
    frame = scores({"11": 9.0, "10": 4.0, "01": 3.0, "00": 0.0})
    contrast = Contrast.interaction("x y", "x y", ["11", "00"], ["10", "01"])
    line = only(effects(frame, [contrast]), source="a", structure="disc")
    assert line["effect"] == pytest.approx((9 - 3) - (4 - 0))


def test_holm_covers_all_contrasts_of_one_kind() -> None:
    frame = scores({"a": 0.4, "b": 0.2, "off": 0.0}, noise=0.4)
    contrasts = [Contrast.difference("versus", row, "off") for row in ("a", "b")]
    found = effects(frame, contrasts)
    per_pair = found[found["source"] != "all"]
    assert (per_pair["p_holm"] >= per_pair["p_permutation"]).all()
    smallest = per_pair["p_permutation"].min()
    assert per_pair["p_holm"].min() == pytest.approx(min(1.0, smallest * len(per_pair)))


def test_the_order_of_stored_rows_changes_nothing() -> None:
    frame = scores({"on": 1, "off": 0}, seeds=(0, 1), noise=1.0)
    contrast = [Contrast.effect("x", "x", [("on", "off")])]
    shuffled = frame.sample(frac=1.0, random_state=3)
    pd.testing.assert_frame_equal(effects(frame, contrast), effects(shuffled, contrast))


def test_means_show_every_row_and_leave_missing_ones_open() -> None:
    found = means(scores({"on": 1.0, "off": 0.0}), ["on", "off", "lost"])
    line = only(found, row="on", source="a", structure="cup")
    assert line["dice"] == pytest.approx(60 + 3 * 5.5 + 1)
    assert line["ci_low"] < line["dice"] < line["ci_high"]
    assert math.isnan(only(found, row="lost", source="a", structure="cup")["dice"])


# -- shares -------------------------------------------------------------------------------------

SHARE = Share("m", baseline="source", full="whole", control="lr 0", without="frozen")


def test_a_share_says_how_much_of_the_gain_the_control_has() -> None:
    frame = scores({"source": 0, "whole": 8, "lr 0": 6, "frozen": 1})
    line = only(shares(frame, [SHARE]), source="a", structure="avg")
    assert line["gain"] == pytest.approx(8)
    assert line["control"] == pytest.approx(6)
    assert line["rest"] == pytest.approx(2)
    assert line["without"] == pytest.approx(1)
    assert line["share"] == pytest.approx(75)
    assert line["share_low"] == pytest.approx(75)


def test_the_interval_of_a_share_is_paired() -> None:
    """Numerator and denominator share their images: noise that both have cancels."""
    frame = scores({"source": 0, "whole": 8, "lr 0": 4}, images=40)
    number = frame["image"].str[1:].astype(int)
    gain = np.where(number % 2 == 0, 2.0, 0.5)  # images gain unequally, the share is half in each
    shift = {"whole": 8.0, "lr 0": 4.0}
    for row, size in shift.items():
        here = frame["row"] == row
        frame.loc[here, "dice"] += size * (gain[here] - 1)
    line = only(shares(frame, [Share("m", "source", "whole", "lr 0")]), source="a", structure="cup")
    assert line["gain_high"] - line["gain_low"] > 1
    assert line["share_low"] == pytest.approx(50)
    assert line["share_high"] == pytest.approx(50)


@pytest.mark.parametrize(
    ("gain", "noise", "reason"),
    [(0.3, 0.0, "below 0.5"), (-2.0, 0.0, "below 0.5"), (0.8, 6.0, "includes zero")],
)
def test_no_share_of_a_gain_that_may_be_none(gain: float, noise: float, reason: str) -> None:
    frame = scores({"source": 0, "whole": gain, "lr 0": 0.2, "frozen": 0}, noise=noise)
    found = shares(frame, [SHARE])
    lines = [line for line in found.to_dict("records") if reason in line["note"]]
    assert lines
    for line in lines:
        assert math.isnan(line["share"])
        assert not math.isnan(line["gain"])


def test_a_missing_control_leaves_only_the_share_open() -> None:
    found = shares(scores({"source": 0, "whole": 8, "frozen": 1}), [SHARE])
    line = only(found, source="a", structure="avg")
    assert line["gain"] == pytest.approx(8)
    assert math.isnan(line["share"])
    assert "lr 0" in line["note"]


# -- inert parts --------------------------------------------------------------------------------


def test_parts_that_leave_every_network_as_it_was_are_named() -> None:
    digests = {"reference": "r", "same": "r", "sometimes": "r", "acts": "x", "one": "r"}
    lines = [
        (row, "a", target, 0, 0, f"key {row if row != 'one' else 'reference'} {target}",
         "y" if row == "sometimes" and target == "c" else digest + target)
        for row, digest in digests.items()
        for target in ("b", "c")
    ]  # fmt: skip
    columns = ["row", "source", "target", "source_seed", "seed", "key", "digest"]
    cells = pd.DataFrame(lines, columns=columns)
    contrasts = [Contrast.difference("versus", row, "reference") for row in [*digests, "lost"][1:]]
    found = inert(cells, contrasts).set_index("name")
    assert found["verdict"].to_dict() == {
        "same": "inert",
        "sometimes": "partly inert",
        "acts": "acts",
        "one": "inert",
        "lost": "unknown",
    }
    assert found["same_key"].to_dict()["one"] == 2  # equal settings: it is the same cell
    assert found["same_key"].to_dict()["same"] == 0
    assert found["identical"].to_dict()["sometimes"] == 1

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import write_parquet
from sfuda_bench.scoring.validators import PRIMARY
from sfuda_bench.search.pictures import save
from sfuda_bench.search.pictures_effects import regret_plot
from sfuda_bench.search.pool import SOURCE, Pool, analyse, read_pool, summary

PAIRS = (("a", "b"), ("b", "a"), ("c", "b"))
Quality = Callable[[str, int, int], float]
"""Dice (percent) of (target, trial, epoch), trial -1 being the source model."""


def quality(target: str, trial: int, epoch: int) -> float:
    """Trial 2 is best at epoch 1 and overfits; trial 0 is harmful; the source model has 60."""
    if trial == SOURCE:
        return 60.0
    best = {0: 50.0, 1: 66.0, 2: 70.0}[trial]
    return best - (5.0 if epoch == 2 and trial == 2 else 0.0)


def pool(
    dice: Quality = quality,
    *,
    validators: Mapping[str, Quality] | None = None,
    pairs: tuple[tuple[str, str], ...] = PAIRS,
    train: Quality | None = None,
    defaults: Mapping[str, int] | None = None,
    noise: float = 0.0,
    images: int = 8,
) -> Pool:
    rng = np.random.default_rng(0)
    offsets = rng.normal(0, 10, images)
    offsets -= offsets.mean()
    lines: dict[str, list[dict[str, Any]]] = {"dice": [], "train": [], "validators": []}
    for source, target in pairs:
        for trial in (0, 1, 2):
            for epoch in (0, 1, 2):
                place = {"method": "m", "source": source, "target": target, "source_seed": 0}
                place |= {"seed": 0, "trial": trial, "epoch": epoch}
                known = SOURCE if epoch == 0 else trial
                for structure in ("cup", "disc"):
                    at = {**place, "structure": structure}
                    for image in range(images):
                        value = dice(target, known, epoch) + offsets[image]
                        value += noise * rng.normal() if epoch else 0.0
                        lines["dice"].append({**at, "image": f"i{image}", "dice": value})
                    for name, score in (validators or {}).items():
                        value = score(target, known, epoch)
                        lines["validators"].append({**at, "validator": name, "value": value})
                    if train is not None:
                        value = train(target, known, epoch)
                        lines["train"].append({**at, "image": "i0", "dice": value})
    frames = {name: pd.DataFrame(found) for name, found in lines.items()}
    return Pool(frames["dice"], frames["train"], frames["validators"], dict(defaults or {}))


def line(frame: pd.DataFrame, objective: str, **where: Any) -> dict[str, Any]:
    """Return one line of the mean of cup and disc in pair a:b unless said otherwise."""
    wanted = {"structure": "avg", "source": "a", "objective": objective, "filtered": False, **where}
    for name, value in wanted.items():
        frame = frame[frame[name] == value]
    (found,) = frame.to_dict("records")
    return {str(name): value for name, value in found.items()}


def test_the_oracle_has_no_regret_and_every_other_choice_has_its_difference() -> None:
    found = analyse(pool(defaults={"m": 1}))
    oracle = line(found, "oracle_test")
    assert (oracle["trial"], oracle["epoch"]) == (2, 1)
    assert oracle["regret"] == 0
    assert oracle["relative_regret"] == pytest.approx(1)
    default = line(found, "default")
    assert (default["trial"], default["epoch"]) == (1, 2)
    assert default["regret"] == pytest.approx(4)
    assert default["gain"] == pytest.approx(6)
    assert default["relative_regret"] == pytest.approx(0.6)
    # A blind pick: the mean of 50, 66 and 65.
    assert line(found, "last")["regret"] == pytest.approx(70 - 181 / 3)
    assert math.isnan(line(found, "last")["trial"])


def test_a_paired_interval_ignores_what_images_have_in_common() -> None:
    default = line(analyse(pool(defaults={"m": 1})), "default")
    assert default["regret_low"] == pytest.approx(default["regret_high"])
    noisy = line(analyse(pool(defaults={"m": 1}, noise=2.0, images=20)), "default")
    assert noisy["regret_low"] < noisy["regret"] < noisy["regret_high"]


def test_a_perfect_validator_has_no_regret_and_a_reversed_one_does_harm() -> None:
    validators = {"good": quality, "bad": lambda *at: -quality(*at)}
    found = analyse(pool(validators=validators))
    good, bad = line(found, "label-free:good"), line(found, "label-free:bad")
    assert good["regret"] == 0
    assert good["spearman"] == pytest.approx(1)
    assert good["weighted_spearman"] == pytest.approx(1)
    assert bad["regret"] == pytest.approx(20)
    assert bad["harm"] is True
    assert bad["spearman"] == pytest.approx(-1)
    assert good["candidates"] == 7  # three trials at two epochs, and one shared source model
    assert good["top_5"] == pytest.approx(np.mean([70, 66, 66, 65, 60]))


def test_not_adapting_is_always_a_candidate_and_wins_ties() -> None:
    found = analyse(pool(validators={"flat": lambda *at: 1.0}))
    chosen = line(found, "label-free:flat")
    assert (chosen["trial"], chosen["epoch"]) == (SOURCE, 0)
    assert chosen["gain"] == 0
    assert chosen["harm"] is False
    assert math.isnan(chosen["spearman"])


def test_the_collapse_filter_takes_its_candidates_out() -> None:
    """The validator prefers the collapsed trial; with everything rejected nothing is adapted."""
    loves_zero = {"loved": lambda target, trial, epoch: float(trial == 0)}
    one = {**loves_zero, "collapsed": lambda target, trial, epoch: float(trial == 0)}
    found = analyse(pool(validators=one))
    assert line(found, "label-free:loved")["trial"] == 0
    kept = line(found, "label-free:loved", filtered=True)
    assert (kept["trial"], kept["epoch"]) == (SOURCE, 0)
    every = {**loves_zero, "collapsed": lambda *at: 1.0}
    assert line(analyse(pool(validators=every)), "label-free:loved", filtered=True)["epoch"] == 0
    assert "label-free:collapsed" not in set(found["objective"])


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_score_counts_as_the_worst(broken: float) -> None:
    def score(target: str, trial: int, epoch: int) -> float:
        return broken if trial == 0 else quality(target, trial, epoch)

    assert line(analyse(pool(validators={"v": score})), "label-free:v")["trial"] == 2


def test_the_primary_choice_needs_all_its_members() -> None:
    partly = dict.fromkeys(PRIMARY[:-1], quality)
    assert "label-free:primary" not in set(analyse(pool(validators=partly))["objective"])
    whole = analyse(pool(validators=dict.fromkeys(PRIMARY, quality)))
    assert line(whole, "label-free:primary")["regret"] == 0


def test_transfer_reads_other_targets_only() -> None:
    """On target b trial 2 is best, on target a trial 1: each is chosen for the other target."""

    def by_target(target: str, trial: int, epoch: int) -> float:
        best = 2 if target == "b" else 1
        return 60.0 if trial == SOURCE else 70.0 if trial == best else 55.0

    found = analyse(pool(by_target))
    assert line(found, "transfer")["trial"] == 1  # judged on b, learned from b:a only
    assert line(found, "transfer")["harm"] is True
    assert line(found, "transfer", source="b")["trial"] == 2
    alone = analyse(pool(by_target, pairs=(("a", "b"),)))
    assert "another target" in line(alone, "transfer")["note"]
    assert math.isnan(line(alone, "transfer")["regret"])


def test_oracle_train_chooses_on_train_and_is_judged_on_test() -> None:
    def train(target: str, trial: int, epoch: int) -> float:
        return 99.0 if (trial, epoch) == (1, 2) else 10.0

    found = line(analyse(pool(train=train)), "oracle_train")
    assert (found["trial"], found["epoch"]) == (1, 2)
    assert found["dice"] < 80
    assert found["oracle"] is True
    assert "not recorded" in line(analyse(pool()), "oracle_train")["note"]


def test_no_share_of_a_gain_below_half_a_point() -> None:
    found = line(analyse(pool(lambda *at: 60.0 + 0.1 * at[1])), "oracle_test")
    assert math.isnan(found["relative_regret"])


def test_a_candidate_that_lacks_an_image_is_no_candidate() -> None:
    whole = pool()
    lost = (whole.dice["trial"] == 2) & (whole.dice["epoch"] == 1) & (whole.dice["image"] == "i3")
    found = analyse(Pool(whole.dice[~lost], whole.train, whole.validators))
    assert (line(found, "oracle_test")["trial"], line(found, "oracle_test")["epoch"]) == (1, 1)


def test_without_the_source_model_there_is_no_analysis() -> None:
    whole = pool()
    with pytest.raises(UsageError, match="epoch 0"):
        analyse(Pool(whole.dice[whole.dice["epoch"] > 0], whole.train, whole.validators))


def test_over_pairs_harm_is_a_rate_and_a_missing_pair_leaves_a_gap() -> None:
    validators = {"bad": lambda *at: -quality(*at), "good": quality}
    found = summary(analyse(pool(validators=validators)))
    rows = found[~found["filtered"].astype(bool)].set_index("objective")
    assert rows.loc["label-free:bad", "harm_rate"] == 1
    assert rows.loc["label-free:good", "harm_rate"] == 0
    assert rows.loc["label-free:bad", "worst_regret"] == pytest.approx(20)
    assert rows["regret_low"].isna().all()  # two targets are too few for an interval
    part = analyse(pool(validators=validators))
    part.loc[(part["objective"] == "label-free:bad") & (part["source"] == "a"), "regret"] = np.nan
    gap = summary(part)
    gap = gap[~gap["filtered"].astype(bool)].set_index("objective")
    assert np.isnan(gap["mean_regret"].to_dict()["label-free:bad"])


def test_a_stored_pool_is_read_back_and_drawn(tmp_path: Path) -> None:
    """Cells are read from their folders; regrets are drawn once per objective."""
    frames = pool(validators={"good": quality, "bad": lambda *at: -quality(*at)})
    cells = []
    for (source, target, trial), part in frames.dice.groupby(["source", "target", "trial"]):
        folder = tmp_path / f"{source}-{target}-{trial}"
        folder.mkdir()
        dice = part[["epoch", "structure", "image", "dice"]].assign(dice=part["dice"] / 100)
        write_parquet(dice, folder / "epochs-standard.parquet")
        train = pd.DataFrame(
            {
                "image": ["i0", "i0"],
                "structure": ["cup", "disc"],
                "dice": [0.99 if trial == 1 else 0.5] * 2,
                "selection": "last",
            }
        )
        write_parquet(train, folder / "train-standard.parquet")
        here = frames.validators
        for name, value in (("source", source), ("target", target), ("trial", trial)):
            here = here[here[name] == value]
        write_parquet(here[["epoch", "validator", "structure", "value"]],
                      folder / "validators.parquet")  # fmt: skip
        cells.append({"method": "m", "source": source, "target": target, "source_seed": 0,
                      "seed": 0, "trial": trial, "folder": str(folder), "default": trial == 1,
                      "synthetic": True})  # fmt: skip
    read = read_pool(pd.DataFrame(cells), "standard")
    assert read.defaults == {"m": 1}
    assert read.synthetic == frozenset(PAIRS)
    found = analyse(read)
    trained = line(found, "oracle_train")  # on target train, of final models only
    assert (trained["trial"], trained["epoch"]) == (1, 2)
    assert "final models" in trained["note"]
    expected = analyse(Pool(frames.dice, frames.train, frames.validators, {"m": 1}))
    same = found["objective"] != "oracle_train"
    pd.testing.assert_frame_equal(found[same], expected[same], check_dtype=False)
    figure = regret_plot(found[found["structure"] == "avg"], synthetic=True)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    free = ["label-free:bad", "label-free:good"]
    assert sorted(names) == sorted(
        [*free, "oracle_test †", "oracle_train †", "transfer", "default", "last"]
    )
    assert len(save(figure, tmp_path, "regret")) == 2
    with pytest.raises(UsageError, match="no finished trial"):
        read_pool(pd.DataFrame(cells).iloc[:0], "standard")

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import read_parquet, write_parquet
from sfuda_bench.report.comparison import (
    Comparison,
    compare,
    find_entrant,
    indistinguishable_from_best,
    panels,
    read_scores,
    write_comparisons,
)
from sfuda_bench.report.statistics import holm

REAL = ("drishti_gs", "rim_one_r3")
OTHER = ("drishti_gs", "refuge_val")
METHODS = ("source_only", "cpr_cbam", "target_supervised")
N = 20


def scores_of(shift: float, seed: int = 0, n: int = N, noise: float = 0.01) -> dict[str, Any]:
    """Cup Dice around 0.7 that a method shifts, with noise of its own; disc and ASD follow."""
    image = np.random.default_rng(5).uniform(0.6, 0.8, n)
    cup = image + shift + np.random.default_rng(seed).normal(0, noise, n)
    return {
        "dice_cup": tuple(cup),
        "dice_disc": tuple(cup + 0.1),
        "asd_cup": tuple(30 * (1 - cup)),
        "asd_disc": tuple(30 * (0.9 - cup)),
    }


def add(store: Any, method: str, pair: tuple[str, str], seed: int, scores: Mapping[str, Any],
        shuffle: int | None = None) -> Path:  # fmt: skip
    """Add a cell that says whether it left the source model as it was."""
    folder: Path = store.add(method, pair, seed, scores, shuffle=shuffle)
    record = json.loads((folder / "cell.json").read_text("utf-8"))
    record["source_model_sha256"] = "a" * 64
    record["adapted_model_sha256"] = "a" * 64 if method == "source_only" else method
    (folder / "cell.json").write_text(json.dumps(record), "utf-8")
    return folder


def fill(store: Any, shuffle: int | None = None) -> Any:
    """Two pairs, two seeds: cpr_cbam gains 4 points on the first pair and nothing on the other."""
    gains = {REAL: 0.04, OTHER: 0.0}
    for pair, gain in gains.items():
        for seed in (0, 1):
            add(store, "source_only", pair, seed, scores_of(0.0, 1), shuffle)
            add(store, "cpr_cbam", pair, seed, scores_of(gain, 10 + seed), shuffle)
            add(store, "target_supervised", pair, seed, scores_of(0.15, 3), shuffle)
    store.plan([store.asked(m, pair, seed) for pair in gains for m in METHODS for seed in (0, 1)])
    return store


@pytest.fixture
def compared(store: Any) -> Comparison:
    return compare(read_scores(fill(store).out, "standard"))


def one(comparison: Comparison, pair: tuple[str, str], structure: str, metric: str,
        against: str = "baseline") -> Any:  # fmt: skip
    frame = comparison.frame
    found = frame[
        (frame["against"] == against)
        & (frame["source"] == pair[0])
        & (frame["target"] == pair[1])
        & (frame["structure"] == structure)
        & (frame["metric"] == metric)
    ]
    assert len(found) == 1
    return found.iloc[0]


def test_the_baseline_is_the_row_with_the_unchanged_source_model(compared: Comparison) -> None:
    assert compared.baseline == "Source only"
    assert set(compared.frame["label"]) == {"cpr_cbam", "Source only"}


def test_a_row_is_the_paired_difference_of_means_over_seeds(compared: Comparison) -> None:
    method = np.mean([scores_of(0.04, 10 + seed)["dice_cup"] for seed in (0, 1)], axis=0)
    expected = 100 * (method - scores_of(0.0, 1)["dice_cup"])
    row = one(compared, REAL, "cup", "dice")
    assert row["difference"] == pytest.approx(expected.mean())
    interval = stats.ttest_1samp(expected, 0).confidence_interval()
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(interval))
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(expected).pvalue)
    one_sided = stats.ttest_1samp(expected, 0, alternative="greater").pvalue
    assert row["p_false"] == pytest.approx(one_sided, abs=1e-12)
    assert (row["n_images"], row["runs"], row["n_undefined"]) == (N, 2, 0)
    assert row["mean"] - row["reference_mean"] == pytest.approx(row["difference"])
    assert row["bootstrap_low"] < row["difference"] < row["bootstrap_high"]


def test_a_shorter_distance_is_a_gain(compared: Comparison) -> None:
    row = one(compared, REAL, "cup", "asd")
    assert row["mean"] < row["reference_mean"]
    assert row["difference"] == pytest.approx(row["reference_mean"] - row["mean"])
    assert row["effect"] > 0.9


def test_the_average_is_the_mean_of_cup_and_disc_per_image(compared: Comparison) -> None:
    cup, disc, avg = (one(compared, REAL, part, "dice") for part in ("cup", "disc", "avg"))
    assert avg["difference"] == pytest.approx((cup["difference"] + disc["difference"]) / 2)


def test_oracles_are_in_no_family(compared: Comparison) -> None:
    assert "Target supervised" not in set(compared.frame["label"]) | set(
        compared.frame["reference"]
    )


def test_holm_runs_over_the_whole_table(compared: Comparison) -> None:
    """One method x two pairs x three structures x two metrics."""
    family = compared.frame[compared.frame["against"] == "baseline"].dropna(subset="p_permutation")
    assert len(family) == 12
    assert list(family["p_holm"]) == list(holm(family["p_permutation"].to_numpy(float)))
    assert any("12 tests against the baseline" in sentence for sentence in compared.sentences)


def test_only_what_images_can_tell_apart_is_told_apart(compared: Comparison) -> None:
    marked = indistinguishable_from_best(compared)
    assert (*REAL, "cup", "dice", "cpr_cbam") in marked
    assert (*REAL, "cup", "dice", "Source only") not in marked
    assert {(*OTHER, "cup", "dice", m) for m in ("cpr_cbam", "Source only")} <= marked


def test_the_mean_over_pairs_has_no_interval_below_six_targets(compared: Comparison) -> None:
    row = one(compared, ("all", "all"), "cup", "dice")
    pairs = [one(compared, pair, "cup", "dice")["difference"] for pair in (REAL, OTHER)]
    assert row["difference"] == pytest.approx(np.mean(pairs))
    assert np.isnan(row["ci_low"])
    assert any("2 distinct targets, 6 are needed" in s for s in compared.sentences)


def test_a_missing_cell_leaves_its_pair_and_every_mean_over_pairs(store: Any) -> None:
    fill(store)
    folder = next((store.out / "cells" / "cpr_cbam" / "-".join(OTHER)).iterdir())
    (folder / "cell.json").unlink()
    found = compare(read_scores(store.out, "standard"))
    baseline = found.frame[found.frame["against"] == "baseline"]
    assert set(baseline["target"]) == {REAL[1]}
    assert any("cpr_cbam (drishti_gs → refuge_val)" in s for s in found.sentences)


def test_other_seeds_than_the_baseline_are_not_compared(store: Any) -> None:
    add(store, "source_only", REAL, 0, scores_of(0.0, 1))
    for seed in (0, 1):
        add(store, "cpr_cbam", REAL, seed, scores_of(0.1, seed))
    found = compare(read_scores(store.out, "standard"))
    row = one(found, REAL, "cup", "dice")
    assert row["note"] == "other seeds than the reference"
    assert np.isnan(row["difference"])
    assert np.isnan(row["p_holm"])


def test_unequal_sets_of_images_are_refused_by_name(store: Any) -> None:
    add(store, "source_only", REAL, 0, scores_of(0.0, 1, n=5))
    add(store, "cpr_cbam", REAL, 0, scores_of(0.0, 2, n=4))
    with pytest.raises(UsageError, match=r"drishti_gs:rim_one_r3 cup: cpr_cbam .* image4"):
        compare(read_scores(store.out, "standard"))


def test_one_run_that_lacks_an_image_is_refused(store: Any) -> None:
    for seed, n in ((0, 5), (1, 4)):
        add(store, "cpr_cbam", REAL, seed, scores_of(0.0, 1, n=n))
    with pytest.raises(UsageError, match=r"cpr_cbam, run \(0, 1\) has no score for image4"):
        list(panels(read_scores(store.out, "standard")))


def test_undefined_scores_leave_the_pair_and_are_counted(store: Any) -> None:
    add(store, "source_only", REAL, 0, scores_of(0.0, 1))
    folder = add(store, "cpr_cbam", REAL, 0, scores_of(0.05, 2))
    path = folder / "cases-standard.parquet"
    cases = read_parquet(path)
    cases.loc[(cases["image"] == "image3") & (cases["structure"] == "cup"), "assd_directed_px"] = (
        np.nan
    )
    write_parquet(cases, path)
    found = compare(read_scores(store.out, "standard"))
    row = one(found, REAL, "cup", "asd")
    assert (row["n_images"], row["n_undefined"]) == (N - 1, 1)
    assert one(found, REAL, "disc", "asd")["n_undefined"] == 0


def test_a_metric_that_is_not_stored_is_named(store: Any) -> None:
    with pytest.raises(UsageError, match="hold no hd95"):
        list(panels(read_scores(fill(store).out, "standard"), ["hd95"]))


def test_methods_are_found_by_name_or_label(store: Any) -> None:
    entrants = read_scores(fill(store).out, "standard").entrants
    assert find_entrant(entrants, "source_only").label == "Source only"
    assert find_entrant(entrants, "source ONLY").method == "source_only"
    with pytest.raises(UsageError, match="no scores of a method 'cpr'; there are: source_only"):
        find_entrant(entrants, "cpr")


def test_shuffled_rows_give_the_same_bytes(tmp_path: Path, store: Any) -> None:
    kind = type(store)
    plain, mixed = fill(kind(tmp_path / "plain")), fill(kind(tmp_path / "mixed"), shuffle=3)
    paths = write_comparisons(plain.out)
    assert [path.name for path in paths] == [
        f"comparison-standard.{e}" for e in ("csv", "md", "tex", "tex")
    ]
    again = write_comparisons(mixed.out)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_the_files_hold_the_numbers(store: Any) -> None:
    csv, markdown, latex, _ = write_comparisons(fill(store).out)
    frame = pd.read_csv(csv)
    row = frame[frame["target"] == REAL[1]].iloc[0]
    assert (row["structure"], row["metric"], row["method"]) == ("cup", "dice", "cpr_cbam")
    assert row["difference"] == pytest.approx(4, abs=0.5)
    text = latex.read_text("utf-8")
    assert text.count(r"\toprule") == 1
    assert "cpr\\_cbam vs Source only" in text
    assert "| drishti_gs → rim_one_r3 | Dice cup [points] |" in markdown.read_text("utf-8")


def test_a_store_without_a_baseline_still_compares_with_the_best(make_store: Any) -> None:
    """The records of this store do not say which row left the source model unchanged."""
    found = compare(read_scores(make_store().out, "standard"))
    assert found.baseline is None
    assert set(found.frame["against"]) == {"best"}
    named = compare(read_scores(make_store("again").out, "standard", baseline="source_only"))
    assert named.baseline == "Source only"
    assert set(named.frame["against"]) == {"baseline", "best"}


def test_an_empty_store_has_no_comparison(store: Any) -> None:
    assert write_comparisons(store.out) == []


def test_statistics_import_no_torch() -> None:
    names = ("statistics", "comparison", "ranking", "claim", "harm")
    code = "; ".join(f"import sfuda_bench.report.{name}" for name in names)
    code += "; import sys; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

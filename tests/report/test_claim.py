from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfuda_bench import cli
from sfuda_bench.errors import UsageError
from sfuda_bench.report.claim import Claim, ClaimResult, claim_from, parse_claim, read_csv_scores
from sfuda_bench.report.statistics import units_needed

REAL = ("drishti_gs", "rim_one_r3")
OTHER = ("drishti_gs", "refuge_val")
N = 30
CLAIM = "cpr_cbam > source_only on cup dice"


def scores_of(shift: float, seed: int, noise: float = 0.01) -> dict[str, Any]:
    image = np.random.default_rng(5).uniform(0.6, 0.8, N)
    cup = tuple(image + shift + np.random.default_rng(seed).normal(0, noise, N))
    asd = tuple(30 * (1 - value) for value in cup)
    return {"dice_cup": cup, "dice_disc": cup, "asd_cup": asd, "asd_disc": asd}


def fill(store: Any, gains: dict[tuple[str, str], float], *, noise: float = 0.01,
         seeds: tuple[int, ...] = (0, 1), shuffle: int | None = None) -> Any:  # fmt: skip
    for pair, gain in gains.items():
        for seed in seeds:
            base, better = scores_of(0.0, 1, noise), scores_of(gain, 10 + seed, noise)
            store.add("source_only", pair, seed, base, shuffle=shuffle)
            store.add("cpr_cbam", pair, seed, better, shuffle=shuffle)
    methods = ("source_only", "cpr_cbam")
    store.plan([store.asked(m, pair, seed) for pair in gains for m in methods for seed in seeds])
    return store


def judge(store: Any, text: str = CLAIM, **more: Any) -> ClaimResult:
    return claim_from(text, out=store.out, **more)


def write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


# -- grammar ------------------------------------------------------------------------------------


def test_a_claim_is_read() -> None:
    assert parse_claim("cpr_cbam > cpr on cup dice") == Claim("cpr_cbam", "cpr", "cup", "dice")
    assert parse_claim("  Tent (online)>Source only ON Disc ASD ") == Claim(
        "Tent (online)", "Source only", "disc", "asd"
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a > b",
        "a < b on cup dice",
        "a > b on rim dice",
        "a > b on cup iou",
        "a > a on cup dice",
    ],
)
def test_what_is_no_claim_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_claim(text)
    assert caught.value.hint


# -- verdicts -----------------------------------------------------------------------------------


def test_a_clear_gain_is_supported(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.05, OTHER: 0.05}))
    assert found.supported
    assert [pair.verdict for pair in found.pairs] == ["supported"] * 2
    assert found.overall.difference == pytest.approx(5, abs=0.5)
    assert found.overall.difference == pytest.approx(np.mean([p.difference for p in found.pairs]))
    assert all(pair.p_holm == pytest.approx(min(2 * pair.p, 1)) for pair in found.pairs)
    assert all(pair.p_false < 0.001 for pair in found.pairs)
    assert any("2 distinct targets" in note for note in found.notes)


def test_the_opposite_claim_is_not_supported_and_no_image_would_help(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.05}), "source_only > cpr_cbam on cup dice")
    assert found.overall.verdict == "not supported"
    assert found.pairs[0].p_false > 0.999
    assert found.pairs[0].images_needed is None
    assert "no number of images would support it" in found.text()


def test_distances_are_better_when_lower(store: Any) -> None:
    fill(store, {REAL: 0.05})
    found = judge(store, "cpr_cbam > source_only on avg asd")
    assert found.supported
    assert found.unit == "px"
    assert found.overall.difference == pytest.approx(1.5, abs=0.2)  # 30 px times 0.05


def test_a_gain_below_the_rope_is_practically_equal_even_if_significant(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.003}, noise=0.0005))
    assert found.pairs[0].p_holm < 0.01
    assert found.overall.verdict == "practically equal"
    assert not found.supported
    assert judge(store, rope=0.1).supported


def test_a_noisy_gain_is_not_supported_and_says_what_it_needs(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.03}, noise=0.15))
    pair = found.pairs[0]
    assert found.overall.verdict == "not supported"
    gains = 100 * (
        np.mean([scores_of(0.03, 10 + s, 0.15)["dice_cup"] for s in (0, 1)], axis=0)
        - np.array(scores_of(0.0, 1, 0.15)["dice_cup"])
    )
    assert pair.difference == pytest.approx(gains.mean())
    assert pair.images_needed == units_needed(gains.mean(), gains.std(ddof=1))
    assert pair.images_needed is None or pair.images_needed > N


def test_seeds_needed_come_from_the_spread_of_runs(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.05}, seeds=(0, 1, 2))).pairs[0]
    base = np.mean(scores_of(0, 1)["dice_cup"])
    means = [np.mean(scores_of(0.05, 10 + seed)["dice_cup"]) for seed in (0, 1, 2)]
    by_run = [100 * float(mean - base) for mean in means]
    assert found.runs == 3
    assert found.seeds_needed == units_needed(float(np.mean(by_run)), float(np.std(by_run, ddof=1)))


def test_one_seed_says_nothing_about_seeds(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.05}, seeds=(0,)))
    assert found.pairs[0].seeds_needed is None
    assert any("One run per method" in note for note in found.notes)


def test_a_pair_that_shows_the_opposite_refutes_the_claim_over_all(store: Any) -> None:
    found = judge(fill(store, {REAL: 0.10, OTHER: -0.03}))
    assert [pair.verdict for pair in found.pairs] == ["supported", "not supported"]
    assert found.overall.difference > 0
    assert found.overall.p < 0.05
    assert found.overall.verdict == "not supported"
    assert judge(store, pairs="drishti_gs:rim_one_r3").supported


def test_pairs_of_one_target_share_their_images(store: Any) -> None:
    """The same gains seen from two sources are no new evidence: the interval stays as wide."""
    alone = judge(fill(store, {REAL: 0.05}))
    both = judge(fill(store, {REAL: 0.05, ("refuge_val", REAL[1]): 0.05}))
    assert both.overall.difference == pytest.approx(alone.overall.difference)
    assert (both.overall.ci_low, both.overall.ci_high) == pytest.approx(
        (alone.overall.ci_low, alone.overall.ci_high)
    )
    other = judge(fill(store, {REAL: 0.05, OTHER: 0.05})).overall
    assert other.ci_high - other.ci_low < 0.8 * (alone.overall.ci_high - alone.overall.ci_low)


def test_six_targets_give_an_interval_over_pairs(store: Any) -> None:
    found = judge(fill(store, {("x", f"t{i}"): 0.05 for i in range(6)}, seeds=(0,)))
    assert found.overall.pairs_low > 0
    assert found.supported
    assert any("Interval over pairs" in note for note in found.notes)
    five = judge(fill(store, {("x", f"t{i}"): 0.05 for i in range(5)}, seeds=(0,)))
    assert math.isnan(five.overall.pairs_low)


# -- what cannot be judged ----------------------------------------------------------------------


def test_a_missing_method_is_named_with_those_there_are(store: Any) -> None:
    with pytest.raises(
        UsageError, match="no scores of a method 'cpr'; there are: source_only, cpr_cbam"
    ):
        judge(fill(store, {REAL: 0.05}), "cpr > source_only on cup dice")


def test_a_pair_with_a_missing_cell_is_left_out_and_said(store: Any) -> None:
    fill(store, {REAL: 0.05, OTHER: 0.05})
    folder = next((store.out / "cells" / "cpr_cbam" / "-".join(OTHER)).iterdir())
    (folder / "cell.json").unlink()
    found = judge(store)
    assert [pair.target for pair in found.pairs] == [REAL[1]]
    assert any("drishti_gs:refuge_val" in note for note in found.notes)


def test_different_seeds_are_refused(store: Any) -> None:
    store.add("source_only", REAL, 0, scores_of(0, 1))
    store.add("cpr_cbam", REAL, 1, scores_of(0.05, 2))
    with pytest.raises(UsageError, match="different \\(source seed, seed\\)"):
        judge(store)


def test_flags_out_of_range_are_refused(store: Any) -> None:
    fill(store, {REAL: 0.05})
    for alpha, rope in ((0.0, 0.5), (1.0, 0.5), (0.05, -1.0)):
        with pytest.raises(UsageError, match="--alpha"):
            judge(store, alpha=alpha, rope=rope)
    with pytest.raises(UsageError, match="profile 'beal-2019'"):
        judge(store, profile="beal-2019")


# -- CSV ----------------------------------------------------------------------------------------


def rows_of(gain: float) -> list[list[Any]]:
    base, better = scores_of(0, 1)["dice_cup"], scores_of(gain, 2)["dice_cup"]
    return [
        [method, "a", "b", f"i{n}", "cup", value]
        for method, values in (("old", base), ("new", better))
        for n, value in enumerate(values)
    ]


HEADER = ["method", "source", "target", "image", "structure", "dice"]


def test_scores_of_another_program_in_any_order_and_unit(tmp_path: Path) -> None:
    rows = rows_of(0.05)
    plain = write_csv(tmp_path / "a.csv", HEADER, rows)
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    percent = write_csv(tmp_path / "b.csv", HEADER, [[*r[:-1], 100 * r[-1]] for r in mixed])
    first, second = (
        claim_from("new > old on cup dice", out=tmp_path, csv=path) for path in (plain, percent)
    )
    assert first.supported
    assert first.overall.difference == pytest.approx(second.overall.difference)
    assert first.pairs[0].p == second.pairs[0].p


def test_challenger_files_name_pair_structure_and_metric_in_the_task(tmp_path: Path) -> None:
    rows = [[f"{r[1]}:{r[2]} {part} dice", r[3], r[0], r[5]]
            for r in rows_of(0.05) for part in ("cup", "disc")]  # fmt: skip
    path = write_csv(tmp_path / "c.csv", ["Task", "TestCase", "Algorithm", "MetricValue"], rows)
    for structure in ("cup", "avg"):
        found = claim_from(f"new > old on {structure} dice", out=tmp_path, csv=path)
        assert found.supported
        assert (found.pairs[0].source, found.pairs[0].target) == ("a", "b")
    with pytest.raises(UsageError, match="no Task is about asd"):
        claim_from("new > old on cup asd", out=tmp_path, csv=path)


def test_a_bare_challenger_file_is_about_what_is_claimed(tmp_path: Path) -> None:
    rows = [["T1", r[3], r[0], 10 - 10 * r[5]] for r in rows_of(0.05)]
    path = write_csv(tmp_path / "c.csv", ["Task", "TestCase", "Algorithm", "MetricValue"], rows)
    found = claim_from("new > old on cup hd95", out=tmp_path, csv=path, rope=0.1)
    assert found.supported
    assert found.pairs[0].target == "T1"


def test_a_csv_with_other_images_for_one_method_is_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", HEADER, rows_of(0.05)[:-1])
    with pytest.raises(UsageError, match="new has no score for i29"):
        claim_from("new > old on cup dice", out=tmp_path, csv=path)


def test_a_csv_without_a_column_is_refused_by_name(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [*HEADER[:-1], "iou"], rows_of(0.05))
    with pytest.raises(UsageError, match="lacks the column dice; there are: method"):
        read_csv_scores(path, "cup", "dice")
    with pytest.raises(UsageError, match=r"nothing\.csv"):
        read_csv_scores(tmp_path / "nothing.csv", "cup", "dice")


# -- the command --------------------------------------------------------------------------------


def test_exit_codes_and_one_json_document(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fill(store, {REAL: 0.05})
    out = ["--out", str(store.out)]
    assert cli.main(["claim", CLAIM, *out, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "supported"
    assert document["claim"] == CLAIM
    assert document["pairs"][0]["n_images"] == N
    assert document["overall"]["pairs_low"] is None  # undefined is null, never NaN

    assert cli.main(["claim", "source_only > cpr_cbam on cup dice", *out, "--json"]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out)["verdict"] == "not supported"
    assert "not supported" in captured.err

    assert cli.main(["claim", "cpr > source_only on cup dice", *out]) == 2
    assert cli.main(["claim", CLAIM, "--out", str(store.out / "nowhere")]) == 2


def test_the_text_has_every_number_of_the_verdict(
    store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, {REAL: 0.05, OTHER: 0.05})
    assert cli.main(["claim", CLAIM, "--out", str(store.out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{CLAIM}: supported\n")
    for part in ("drishti_gs:rim_one_r3: supported", "points [", "p Holm", "P(false claim)",
                 "30 images, 2 runs", "all 2 pairs"):  # fmt: skip
        assert part in text


def test_shuffled_rows_give_the_same_document(tmp_path: Path, store: Any) -> None:
    kind = type(store)
    gains = {REAL: 0.01, OTHER: 0.02}
    plain, mixed = kind(tmp_path / "plain"), kind(tmp_path / "mixed")
    first, second = judge(fill(plain, gains)), judge(fill(mixed, gains, shuffle=9))
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())

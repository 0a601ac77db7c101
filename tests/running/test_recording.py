"""What a cell keeps besides its result changes no byte of it, and needs no mask."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import read_parquet
from sfuda_bench.running import recording
from sfuda_bench.running.funnel import funnel_values, write_pseudo_labels
from sfuda_bench.running.label_files import read_pseudo_labels
from sfuda_bench.running.plan import scoring_todo
from sfuda_bench.running.request import RECORDS, check_records
from sfuda_bench.running.store import read_json
from sfuda_bench.running.train_scores import profile_dice as dice_of
from sfuda_bench.scoring.profiles import PROFILES, get_profile
from sfuda_bench.scoring.scorer import score_set

EVERYTHING = frozenset(RECORDS)


def read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def test_recording_everything_changes_no_prediction_and_no_curve(bench: Any) -> None:
    plain = bench.run("dpl")
    codes, curve = plain.codes(), (plain.folder / "curve.parquet").read_bytes()
    recorded = bench.run("dpl", record=EVERYTHING)
    assert recorded.sha == plain.sha
    assert recorded.cell["recorded"] == sorted(EVERYTHING) and recorded.cell["tracked"]
    assert (recorded.folder / "curve.parquet").read_bytes() == curve
    assert all((code == codes[name]).all() for name, code in recorded.codes().items())


def test_a_stored_cell_is_recomputed_only_for_a_record_that_it_lacks(bench: Any) -> None:
    bench.run("dpl", record=frozenset({"labels"}))
    (same,) = bench.plan("dpl", record=frozenset({"labels"})).cells
    assert same.state == "done"
    (lacking,) = bench.plan("dpl", record=frozenset({"validators"})).cells
    assert (lacking.state, lacking.reason) == ("todo", "stored without the record of validators")
    assert lacking.job["record"] == ["labels", "validators"], "what was recorded stays recorded"


def test_validators_see_the_source_model_every_epoch_and_the_final_model(bench: Any) -> None:
    folder = bench.run("dpl", record=frozenset({"epochs", "validators"})).folder
    values = read_parquet(folder / "validators.parquet")
    epochs = read(folder / "cell.json")["epochs"]
    assert sorted(values["epoch"].unique()) == list(range(epochs + 1))
    assert {"entropy", "imp_rev", "consistency", "anatomy", "collapsed"} <= set(values["validator"])
    last_only = bench.run("bn_adapt", record=frozenset({"validators"})).folder
    values = read_parquet(last_only / "validators.parquet")
    assert sorted(values["epoch"].unique()) == [0, 1], "a method without epochs ends at 1"


def test_every_validator_has_a_selection_and_the_chosen_epoch_is_written(bench: Any) -> None:
    folder = bench.run("dpl", record=frozenset({"epochs", "validators"})).folder
    cases = read_parquet(folder / "cases-standard.parquet")
    chosen = read_json(folder / "selections.json")
    assert set(chosen) <= set(cases["selection"])
    assert "label-free:primary" in chosen
    epochs = read_parquet(folder / "epochs-standard.parquet")
    name, epoch = sorted(chosen.items())[0]
    columns = ["structure", "image", "dice"]
    picked = cases.loc[cases["selection"] == name, columns].sort_values(columns[:2])
    expected = epochs.loc[epochs["epoch"] == epoch, columns].sort_values(columns[:2])
    np.testing.assert_array_equal(picked.to_numpy(), expected.to_numpy())


def test_predictions_on_train_are_scored_as_oracle_numbers(bench: Any) -> None:
    folder = bench.run("dpl", record=frozenset({"train"})).folder
    scores = read_parquet(folder / "train-standard.parquet")
    assert set(scores["structure"]) == {"cup", "disc"}
    assert scores["dice"].between(0, 1).all()
    assert read(folder / "train-standard.json")["oracle"] is True


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_dice_on_train_is_the_dice_of_the_profile(profile: str) -> None:
    """Two empty masks, one of either kind, and two that overlap."""
    block = np.zeros((32, 32), bool)
    block[8:20, 8:20] = True
    nothing, wide = np.zeros_like(block), np.roll(block, 3, axis=0)
    predictions = np.array([[nothing, nothing], [block, nothing], [block, wide]])
    masks = np.array([[nothing, block], [nothing, nothing], [wide, wide]])
    codes = np.where(predictions, 255, 0).astype(np.uint8)
    rules = get_profile(profile)
    expected, _ = score_set(codes, masks, ["a", "b", "c"], rules)
    found = [value for pair in zip(codes, masks, strict=True) for value in dice_of(*pair, rules)]
    np.testing.assert_array_equal(found, expected["dice"].to_numpy())


def test_the_funnel_judges_each_stage_of_the_pseudo_labels(bench: Any) -> None:
    folder = bench.run("cpr", record=frozenset({"labels"})).folder
    funnel = read_parquet(folder / "funnel.parquet")
    stages = funnel.sort_values("order")["stage"].unique().tolist()
    assert stages == ["initial", "refined", "calibrated", "masked"]
    assert funnel["coverage"].between(0, 1).all()
    refined = funnel[funnel["stage"] == "refined"]
    assert (refined["coverage"] == 1).all(), "nothing is masked before the last stage"


def test_the_funnel_of_a_transductive_cell_reads_the_masks_of_the_test_images(bench: Any) -> None:
    cell = bench.run("dpl", protocol="transductive", record=frozenset({"labels"}))
    funnel = read_parquet(cell.folder / "funnel.parquet")
    cases = read_parquet(cell.folder / "cases-standard.parquet")
    assert set(funnel["image"]) == set(cases["image"])
    assert funnel.loc[funnel["structure"] == "disc", "dice"].mean() > 0.5, "masks of these images"


def test_a_labelled_reference_keeps_the_same_records_as_a_method(bench: Any) -> None:
    """Nothing is adapted, so that every selection holds the one model there is."""
    folder = bench.run("target_supervised", record=EVERYTHING).folder
    cases = read_parquet(folder / "cases-standard.parquet")
    assert {"last", "oracle", "average-last-5", "label-free:primary"} <= set(cases["selection"])
    assert cases.groupby(["image", "structure"])["dice"].nunique().max() == 1
    assert (folder / "train-standard.parquet").is_file()


@pytest.mark.parametrize(
    ("protocol", "absent"), [("online", set()), ("episodic", {"validators", "train"})]
)
def test_a_stream_has_the_source_model_and_its_own_predictions_as_candidates(
    bench: Any, protocol: str, absent: set[str]
) -> None:
    """An episodic method has one model per batch, and none to ask about other images."""
    cell = bench.run("entropy_min", protocol=protocol, record=EVERYTHING)
    assert cell.cell["recorded"] == sorted(EVERYTHING - absent)
    epochs = read_parquet(cell.folder / "epochs-standard.parquet")
    cases = read_parquet(cell.folder / "cases-standard.parquet")
    last = cases[cases["selection"] == "last"]
    assert sorted(epochs["epoch"].unique()) == [0, 1]
    assert epochs.loc[epochs["epoch"] == 1, "dice"].to_list() == last["dice"].to_list()
    assert (cell.folder / "validators.parquet").is_file() == ("validators" not in absent)
    (again,) = bench.plan("entropy_min", protocol=protocol, record=EVERYTHING).cells
    assert again.state == "done"


def test_what_a_method_returns_stands_for_its_last_epoch(
    bench: Any, plugin_folder: Path, extra_methods: None
) -> None:
    """It trains one network and returns another: that one is the candidate that is scored."""
    plugins = (plugin_folder / "recorded.py",)
    record = frozenset({"epochs", "validators"})
    folder = bench.run("returns_another", record=record, plugins=plugins).folder
    values = read_parquet(folder / "validators.parquet")
    entropy = values[values["validator"] == "entropy"].set_index("epoch")["value"]
    assert sorted(set(entropy.index)) == [0, 1, 2]
    np.testing.assert_array_equal(entropy[2], entropy[0])  # the untouched source model
    assert (entropy[1].to_numpy() != entropy[0].to_numpy()).all()
    epochs = read_parquet(folder / "epochs-standard.parquet").set_index("epoch")["dice"]
    np.testing.assert_array_equal(epochs[2], epochs[0])


@pytest.mark.parametrize("record", [frozenset(), frozenset({"labels"})])
def test_labels_of_another_type_are_refused_whether_they_are_kept_or_not(
    bench: Any, plugin_folder: Path, extra_methods: None, record: frozenset[str]
) -> None:
    plugins = (plugin_folder / "recorded.py",)
    with pytest.raises(UsageError, match=r"'initial'.*label is torch.float32"):
        bench.run("hands_in_numbers", record=record, plugins=plugins)


def test_what_another_process_recorded_meanwhile_stays_recorded(bench: Any) -> None:
    """Both plans were made before either cell was stored."""
    plans = [bench.plan("dpl", record=frozenset({name})) for name in ("labels", "train")]
    for plan in plans:
        bench.compute(plan)
    assert bench.outcome(plans[1]).cell["recorded"] == ["labels", "train"]
    assert bench.compute(plans[0]) == {"dpl": "reused"}


def test_scores_of_a_tracked_cell_stay_when_tracking_is_not_asked_again(bench: Any) -> None:
    bench.run("target_supervised", record=frozenset({"epochs"}))
    (cell,) = bench.plan("target_supervised").cells
    assert cell.state == "done" and scoring_todo(cell) == []


def test_records_need_no_mask_of_the_target(bench: Any, tmp_path: Path) -> None:
    whole = bench.run("cpr", record=EVERYTHING)
    for path in bench.images("toy_b", "train", "mask"):
        path.unlink()
    (tmp_path / "blind").mkdir()
    blind = bench.with_out(tmp_path / "blind").run("cpr", record=EVERYTHING)
    assert blind.sha == whole.sha
    for name in ("validators.parquet", "pseudo_labels.safetensors"):
        assert (blind.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not (blind.folder / "funnel.parquet").exists()
    assert not (blind.folder / "train-standard.parquet").exists()


def test_the_cost_of_a_cell_leaves_out_what_recording_cost(bench: Any) -> None:
    plain = read(bench.run("cpr").folder / "run.json")
    recorded = read(bench.run("cpr", record=EVERYTHING).folder / "run.json")
    names = [step["name"] for step in plain["artefacts_computed"]]
    assert names == ["initial_labels", "similarity_head", "refined_labels"]
    assert recorded["artefacts_computed"] == []
    assert plain["backward_images"] == recorded["backward_images"] > 0
    assert plain["forward_images"] > recorded["forward_images"] >= recorded["backward_images"]
    assert plain["recording_seconds"] < recorded["recording_seconds"] < recorded["seconds"]
    steps = [
        read(bench.out / "artefacts" / step["name"] / step["key"][:16] / "cost.json")
        for step in plain["artefacts_computed"]
    ]
    assert all(step["seconds"] > 0 for step in steps)
    shared = sum(step["forward_images"] for step in steps)
    assert plain["forward_images"] == recorded["forward_images"] + shared
    assert all(step["backward_images"] == 0 for step in steps), "the network itself is frozen"


def test_bits_of_pseudo_labels_come_back_as_they_were(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    stages = {
        name: (random.random((3, 2, 20, 20)) > 0.5, random.random((3, 2, 20, 20)) > 0.2)
        for name in ("initial", "masked")
    }
    write_pseudo_labels(tmp_path, stages)
    found = read_pseudo_labels(tmp_path)
    assert list(found) == ["initial", "masked"]
    for name, pair in stages.items():
        for ours, theirs in zip(found[name], pair, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_funnel_values_by_hand() -> None:
    label = np.array([[1, 1], [0, 0]], bool)
    truth = np.array([[1, 0], [0, 1]], bool)
    keep = np.array([[1, 1], [1, 0]], bool)
    found = funnel_values(label, keep, truth)
    assert found == pytest.approx(
        {"coverage": 0.75, "purity": 2 / 3, "dice": 0.5, "area_bias": 0.0}
    )
    nothing = funnel_values(label, np.zeros_like(keep), np.zeros_like(truth))
    assert np.isnan(nothing["purity"]) and np.isnan(nothing["area_bias"])


def test_an_unknown_record_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"--record epoch.*epochs"):
        check_records(["epoch"])


def test_pictures_hold_features_by_class_and_what_the_method_shows(bench: Any) -> None:
    plain = bench.run("cpr")
    pictured = bench.run("cpr", record=frozenset({"pictures"}))
    assert pictured.sha == plain.sha
    tensors = load_file(pictured.folder / "pictures.safetensors")
    assert len(tensors["feature"]) == len(tensors["image"]) == len(tensors["place"]) > 0
    assert (tensors["place"] > 0).all() and (tensors["place"] < 1).all()
    similarity, anchor = tensors["method.similarity"], tensors["method.anchor"]
    assert similarity.shape[:2] == anchor.shape[:2]
    for maps, cells in zip(similarity, anchor, strict=True):
        for values, (row, column) in zip(maps, cells, strict=True):
            assert values[row, column] == pytest.approx(1), "a cell is most like itself"
            assert values.max() <= 1 + 1e-6
    before, after = (read(cell.folder / "run.json") for cell in (plain, pictured))
    assert after["artefacts"] == before["artefacts"], "drawing is no part of the method"
    other = bench.run("bn_adapt", record=frozenset({"pictures"}))
    assert "feature" in load_file(other.folder / "pictures.safetensors")


def test_what_a_worker_remembers_of_a_source_model_changes_no_value(bench: Any) -> None:
    """The second cell reuses what the first computed; a fresh worker computes it again."""
    first = bench.run("dpl", record=frozenset({"validators"}))
    second = bench.run("dpl", overrides=["dpl.lr=0.0011"], record=frozenset({"validators"}))
    remembered = (second.folder / "validators.parquet").read_bytes()
    recording._SOURCES.clear()
    shutil.rmtree(second.folder)
    again = bench.run("dpl", overrides=["dpl.lr=0.0011"], record=frozenset({"validators"}))
    assert (again.folder / "validators.parquet").read_bytes() == remembered
    values = [read_parquet(cell.folder / "validators.parquet") for cell in (first, again)]
    before = [frame[frame["epoch"] == 0].reset_index(drop=True) for frame in values]
    assert before[0].equals(before[1])

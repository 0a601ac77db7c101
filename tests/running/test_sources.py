"""Source training: schedule, validation split, card, and that content alone decides."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfuda_bench.running.sources import (
    LabelledSet,
    _Best,
    _finished,
    _Trainer,
    area_prior,
    load_source_model,
    source_key,
    validation_indices,
)
from sfuda_bench.running.store import read_json
from sfuda_bench.running.streams import Streams
from sfuda_bench.settings import NetworkSettings, SourceRecipe


def test_the_learning_rate_drops_once_after_the_drop_epoch(trained: Any) -> None:
    """O15, counted from 1: epochs 1, 100, 101, 200 run at 1e-3, 1e-3, 2e-4, 2e-4."""
    folder = next(trained.out.glob("sources/toy_a/*"))
    network = load_source_model(folder, NetworkSettings(name="tiny"), torch.device("cpu"))
    optimizer = torch.optim.Adam(network.parameters(), lr=1.0)
    rng = np.random.default_rng(0)
    data = LabelledSet(
        rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8), rng.random((2, 2, 64, 64)) > 0.5
    )
    recipe = SourceRecipe(augment="none", lr=1e-3, lr_drop_epoch=100, lr_drop_factor=0.2)
    trainer = _Trainer(
        network, optimizer, data, recipe, Streams("k"), torch.device("cpu"), "float32"
    )
    rates = []
    for epoch in (1, 100, 101, 200):
        trainer.epoch(epoch, crop=64)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-3, 1e-3, 2e-4, 2e-4], rel=1e-12)


@pytest.mark.parametrize(("count", "expected"), [(2, 1), (8, 1), (50, 8), (99, 15), (320, 48)])
def test_fifteen_percent_of_the_train_split_are_held_out(count: int, expected: int) -> None:
    chosen = validation_indices(count, 0.15, "source_val")
    assert len(chosen) == expected == len(set(chosen.tolist()))
    assert (np.diff(chosen) > 0).all() if len(chosen) > 1 else True
    assert (chosen == validation_indices(count, 0.15, "source_val")).all()


def test_some_images_always_remain_to_train_on() -> None:
    assert len(validation_indices(3, 0.5, "k")) == 2
    assert len(validation_indices(2, 0.5, "k")) == 1


def test_a_plateau_counts_only_after_the_minimum_of_updates() -> None:
    recipe = SourceRecipe(epochs=100, min_updates=50, patience=2)
    best = _Best()
    network = torch.nn.Linear(1, 1)
    for epoch, score in enumerate((0.5, 0.4, 0.4, 0.4), start=1):
        best.offer(score, epoch, updates=10 * epoch, network=network)
    assert not _finished(recipe, 4, 40, best)
    best.offer(0.4, 5, 50, network)
    assert not _finished(recipe, 5, 50, best)
    best.offer(0.4, 6, 60, network)
    assert _finished(recipe, 6, 60, best)
    best.offer(0.6, 7, 70, network)
    assert not _finished(recipe, 7, 70, best)
    assert _finished(recipe, 100, 1000, best)
    assert best.epoch == 7


def test_renaming_source_files_changes_neither_the_key_nor_a_byte(bench: Any) -> None:
    """The held-out images are chosen by content: other names give the same trained model."""
    first = _source_card(bench)
    shutil.rmtree(first["folder"])
    paths = bench.images("toy_a", "train")
    for number, path in enumerate(paths):
        for kind in ("image", "mask"):
            old = path.parents[1] / kind / path.name
            old.rename(old.with_name(f"n{len(paths) - number}.png"))
    again = _source_card(bench)
    assert again["key"] == first["key"]
    assert again["model_sha256"] == first["model_sha256"]


def test_the_source_seed_changes_the_model_and_the_masks_change_the_key(bench: Any) -> None:
    first = _source_card(bench)
    other = _source_card(bench, source_seeds=(1,))
    assert other["key"] != first["key"]
    assert other["model_sha256"] != first["model_sha256"]
    masks = bench.images("toy_a", "train", "mask")
    shutil.copy(masks[1], masks[0])
    assert bench.plan("source_only").sources[0].key != first["key"]


def _source_card(bench: Any, **request: Any) -> dict[str, Any]:
    plan = bench.plan("source_only", **request)
    plan.cells.clear()
    bench.compute(plan)
    folder = plan.sources[0].folder
    return {**read_json(folder / "card.json"), "folder": folder}


def test_the_card_says_how_good_the_source_model_is_at_both_thresholds(trained: Any) -> None:
    for path in trained.out.glob("sources/*/*/card.json"):
        card = read_json(path)
        assert set(card["test_dice"]) == set(card["validation_dice"]) == {"0.5", "0.75"}
        assert card["test_dice"]["0.5"]["disc"] > 0.7
        assert (card["train_images"], card["validation_images"], card["test_images"]) == (8, 1, 4)
        assert card["selected_epoch"] in {item["epoch"] for item in card["validation_curve"]}


def test_the_selected_checkpoint_is_the_best_validated_one(trained: Any) -> None:
    for path in trained.out.glob("sources/*/*/card.json"):
        card = read_json(path)
        best = max(card["validation_curve"], key=lambda item: item["dice"])
        final = card["validation_dice"]["0.5"]
        assert (final["cup"] + final["disc"]) / 2 == pytest.approx(best["dice"], abs=1e-4)
        assert card["selected_epoch"] == best["epoch"]


def test_area_priors_are_scalars_of_the_source_labels() -> None:
    masks = np.zeros((2, 2, 10, 10), bool)
    masks[0, 1, 2:8, 2:8] = True  # disc of 36 px, 6 high
    masks[0, 0, 3:6, 3:6] = True  # cup of 9 px, 3 high
    prior = area_prior(masks)  # the second image has no disc
    assert prior["cup"]["mean"] == pytest.approx(0.045)
    assert prior["disc"]["mean"] == pytest.approx(0.18)
    assert prior["rim"]["mean"] == pytest.approx(0.135)
    assert prior["vcdr"]["mean"] == pytest.approx(0.5)
    assert prior["disc"]["quantiles"]["0.99"] <= 0.36


def test_a_source_without_test_masks_still_gets_a_card(bench: Any) -> None:
    shutil.rmtree(bench.data / "toy_a" / "test" / "ROIs" / "mask")
    for folder in bench.out.glob("sources/toy_a/*"):
        shutil.rmtree(folder)
    card = _source_card(bench)
    assert "test_dice" not in card and "validation_dice" in card


def test_a_method_cannot_write_into_the_source_model_of_others(bench: Any) -> None:
    plan = bench.plan("source_only")
    path = Path(plan.sources[0].folder) / "model.safetensors"
    before = path.read_bytes()
    for method in ("cpr", "dpl", "entropy_min"):
        bench.run(method)
    assert path.read_bytes() == before


# -- the released code's choice of a checkpoint -------------------------------------------------

ON_TEST = ("source.selection=source_test_best",)


def test_source_test_best_holds_nothing_out_and_says_what_it_chose_on(bench: Any) -> None:
    first = _source_card(bench)
    card = _source_card(bench, overrides=ON_TEST)
    assert (card["train_images"], card["validation_images"]) == (8, 4)
    assert card["selection"] == "source_test_best"
    assert "no estimate" in card["selected_on"]
    assert card["validation_dice"] == card["test_dice"]
    best = max(card["validation_curve"], key=lambda item: item["dice"])
    chosen = card["test_dice"]["0.75"]
    assert (chosen["cup"] + chosen["disc"]) / 2 == pytest.approx(best["dice"], abs=1e-4)
    assert first["selection"] == "source_val" and first["model_sha256"] != card["model_sha256"]


def test_test_masks_enter_the_key_only_where_they_choose(bench: Any) -> None:
    def keys() -> list[str]:
        plans = [bench.plan("source_only", overrides=more) for more in ((), ON_TEST)]
        return [plan.sources[0].key for plan in plans]

    before = keys()
    masks = bench.images("toy_a", "test", "mask")
    shutil.copy(masks[1], masks[0])
    after = keys()
    assert after[0] == before[0]
    assert after[1] != before[1]


def test_recipes_of_stored_source_models_keep_their_keys() -> None:
    """Golden: computed before ``source_test_best`` existed."""
    key = source_key(
        data_digest={"images": "i", "masks": "m"},
        network=NetworkSettings(),
        network_version=1,
        encoder_digest="none",
        image_size=256,
        recipe=SourceRecipe(),
        precision="float32",
        source_seed=0,
    )
    assert key == "53a10a5bf77b76575c3afb84127edd6c1db2b38667f0e2fe96fef8a9c3c1590f"


def test_source_test_best_without_test_masks_blocks_and_says_why(bench: Any) -> None:
    shutil.rmtree(bench.data / "toy_a" / "test" / "ROIs" / "mask")
    plan = bench.plan("source_only", overrides=ON_TEST)
    assert [cell.state for cell in plan.cells] == ["blocked"]
    assert "source.selection = source_test_best needs the masks of toy_a/test" in (
        plan.cells[0].reason
    )


def test_the_plan_and_the_cells_say_how_source_models_are_chosen(bench: Any) -> None:
    plan = bench.plan("source_only", overrides=ON_TEST)
    (warning,) = [text for text in plan.warnings if "source_test_best" in text]
    assert "toy_a are chosen on their own test split" in warning
    assert plan.to_json()["sources"][0]["selection"] == "source_test_best"
    assert plan.cells[0].job["cell"]["source_selection"] == "source_test_best"
    assert not any("test split" in text for text in bench.plan("source_only").warnings)

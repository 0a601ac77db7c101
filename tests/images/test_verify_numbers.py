"""What ``data verify`` measures and warns of beyond broken files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.images.verify import inspect_root, verify


def write(
    root: Path, domain: str, *, radius: float = 20, seed: int = 0, test_radius: float | None = None
) -> Path:
    """Write two train and two test images of noise with a round disc and a cup of half its size."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:64, :64] - 31.5
    distance = np.hypot(rows, columns)
    for split in ("train", "test"):
        size = radius if split == "train" or test_radius is None else test_radius
        levels = np.select([distance < size / 2, distance < size], [0, 128], 255)
        for name in "ab":
            pixels = rng.integers(0, 256, (64, 64, 3))
            for kind, array in (("image", pixels), ("mask", levels)):
                path = root / domain / split / "ROIs" / kind / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    return root / domain


def messages(root: Path) -> list[str]:
    return [finding.message for finding in verify(root)]


def test_every_split_has_its_numbers(tmp_path: Path) -> None:
    write(tmp_path, "here")
    train, test = inspect_root(tmp_path).splits
    assert (train.domain, train.split, test.split) == ("here", "train", "test")
    assert (train.images, train.masks, train.sides_px) == (2, 2, (64, 64))
    assert train.values["disc_scale"].mean == pytest.approx(40 / 64, abs=0.01)
    assert train.values["vcdr"].mean == pytest.approx(0.5, abs=0.02)
    assert train.values["red"].mean == pytest.approx(128, abs=8)


def test_crops_of_other_scale_are_warned_of_with_both_numbers(tmp_path: Path) -> None:
    write(tmp_path, "narrow", radius=20, seed=1)
    write(tmp_path, "wide", radius=24, seed=2)
    (message,) = messages(tmp_path)
    assert "62.7% of the side in narrow and 74.9% in wide, 19% apart" in message
    assert "part of the measured gap" in message


def test_crops_of_nearly_one_scale_are_not(tmp_path: Path) -> None:
    write(tmp_path, "narrow", radius=20, seed=1)
    write(tmp_path, "wide", radius=22.6, seed=2)
    assert messages(tmp_path) == []


def test_splits_cropped_in_two_ways_are_warned_of(tmp_path: Path) -> None:
    write(tmp_path, "here", radius=20, test_radius=26)
    (message,) = messages(tmp_path)
    assert "in train" in message
    assert "in test" in message


def test_splits_whose_few_eyes_differ_by_chance_are_not_warned_of(tmp_path: Path) -> None:
    """Means 20 % apart, of eyes that differ as much within one split, say nothing of the crops."""
    folder = write(tmp_path, "here", radius=17, test_radius=26)
    other = write(tmp_path / "other", "here", radius=26)
    mask = Path("train/ROIs/mask/b.png")
    (folder / mask).write_bytes((other / mask).read_bytes())
    (tmp_path / "root").mkdir()
    folder.rename(tmp_path / "root" / "here")
    assert messages(tmp_path / "root") == []


def test_a_copy_saved_again_in_another_split_or_domain_is_a_warning(tmp_path: Path) -> None:
    here, there = write(tmp_path, "here", seed=1), write(tmp_path, "there", seed=2)
    image = Image.open(here / "train/ROIs/image/a.png")
    rng = np.random.default_rng(3)
    for path in (here / "test/ROIs/image/b.png", there / "train/ROIs/image/b.png"):
        smooth = image.resize((48, 48)).resize((64, 64))
        noise = rng.integers(-2, 3, (64, 64, 3))
        Image.fromarray(np.clip(np.array(smooth) + noise, 0, 255).astype(np.uint8)).save(path)
    found = inspect_root(tmp_path)
    assert found.errors == 0
    texts = [finding.message for finding in found.findings]
    assert len(texts) == 2
    assert all("probably the same photograph" in text for text in texts)
    assert sum("splits are not independent" in text for text in texts) == 1
    assert sum("domains are not independent" in text for text in texts) == 1
    assert len(found.near_duplicates) == 3
    assert found.near_duplicates[0].bits < 50


def test_a_near_copy_within_one_split_is_a_number_only(tmp_path: Path) -> None:
    here = write(tmp_path, "here")
    pixels = np.array(Image.open(here / "train/ROIs/image/a.png")).astype(int) + 1
    copy = np.clip(pixels, 0, 255).astype(np.uint8)
    Image.fromarray(copy).save(here / "train/ROIs/image/b.png")
    found = inspect_root(tmp_path)
    assert found.findings == ()
    assert len(found.near_duplicates) == 1


def test_a_manifest_that_centres_by_labels_is_warned_of(tmp_path: Path) -> None:
    here = write(tmp_path, "here")
    (here / "manifest.json").write_text(json.dumps({"roi_center": "detector"}))
    assert messages(tmp_path) == []
    (here / "manifest.json").write_text(json.dumps({"roi_center": "gt"}))
    (message,) = messages(tmp_path)
    assert "positions come from labels" in message
    assert inspect_root(tmp_path).roi_centers == {"here": "gt"}


def test_a_damaged_manifest_is_an_error(tmp_path: Path) -> None:
    here = write(tmp_path, "here")
    (here / "manifest.json").write_text("{")
    found = inspect_root(tmp_path)
    assert [finding.path for finding in found.findings] == [here / "manifest.json"]
    assert found.errors == 1


def test_the_document_carries_findings_and_numbers(tmp_path: Path) -> None:
    write(tmp_path, "here")
    document = json.loads(json.dumps(inspect_root(tmp_path).to_json()))
    assert document["errors"] == 0
    assert document["splits"][0]["values"]["disc_scale"]["n"] == 2
    assert document["near_duplicate_below_bits"] == 50

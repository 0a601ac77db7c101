from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.datasets import find_domains, materialise_synthetic
from sfuda_bench.errors import DataError
from sfuda_bench.images.decode import read_image, read_levels, read_mask
from sfuda_bench.images.verify import verify

synthetic = importlib.import_module("sfuda_bench.datasets.synthetic")
NAMES = ["synthetic_a", "synthetic_b", "synthetic_c"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    assert materialise_synthetic(root, size=96, counts=(8, 4)) == NAMES
    return root


def tree_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def test_the_generated_domains_pass_verification(root: Path) -> None:
    assert verify(root) == []


def test_the_generated_domains_have_the_asked_counts_and_size(root: Path) -> None:
    domains = find_domains(root)
    assert list(domains) == NAMES
    for domain in domains.values():
        assert (len(domain.train.samples), len(domain.test.samples)) == (8, 4)
        assert domain.synthetic
        assert read_image(domain.train.samples[0].image).shape == (96, 96, 3)


def test_every_mask_has_three_levels_and_a_centred_disc(root: Path) -> None:
    for domain in find_domains(root).values():
        for sample in domain.train.samples:
            assert sample.mask is not None
            assert set(np.unique(read_levels(sample.mask))) == {0, 128, 255}
            cup, disc = read_mask(sample.mask)
            centre = np.argwhere(disc).mean(axis=0)
            assert np.abs(centre - 48).max() < 10
            assert 0.08 < disc.mean() < 0.6
            assert 0.02 < cup.sum() / disc.sum() < 0.75


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    materialise_synthetic(tmp_path, size=96, counts=(8, 4))
    assert tree_digest(tmp_path) == tree_digest(root)


def test_a_complete_domain_is_left_alone_and_another_recipe_replaces_it(tmp_path: Path) -> None:
    materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == stamps
    materialise_synthetic(tmp_path, size=40, counts=(3, 1))
    assert len(find_domains(tmp_path)["synthetic_a"].train.samples) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "synthetic_a" / "train" / "ROIs" / "image" / "mine.png"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"mine")
    with pytest.raises(DataError, match="was not written by the synthetic generator"):
        materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    assert precious.read_bytes() == b"mine"


def test_a_longer_split_begins_with_the_same_eyes() -> None:
    profile = synthetic.PROFILES[0]
    first, _ = synthetic.render(profile, "train", 0, size=48)
    again, _ = synthetic.render(profile, "train", 0, size=48)
    other, _ = synthetic.render(profile, "test", 0, size=48)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_cameras_and_populations_differ_between_domains(root: Path) -> None:
    means, discs = {}, {}
    for name, domain in find_domains(root).items():
        images = [read_image(s.image) for s in domain.train.samples]
        masks = [read_mask(s.mask) for s in domain.train.samples if s.mask is not None]
        means[name] = np.mean(images)
        discs[name] = np.mean([mask[1].mean() for mask in masks])
    assert means["synthetic_b"] + 30 < means["synthetic_a"] < means["synthetic_c"] - 30
    assert discs["synthetic_b"] < discs["synthetic_a"] < discs["synthetic_c"]


def test_the_contact_sheet_is_one_labelled_picture(root: Path, tmp_path: Path) -> None:
    synthetic.contact_sheet(root, tmp_path / "sheet.png", tile=40, columns=4)
    assert Image.open(tmp_path / "sheet.png").size[0] == 4 * 44 + 4

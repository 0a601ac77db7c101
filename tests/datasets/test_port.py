from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sfuda_bench.datasets as port
from sfuda_bench.datasets import (
    DatasetSpec,
    canonical_name,
    dataset_names,
    find_domains,
    get_dataset,
)
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.registry import Registry


def make_domain(root: Path, name: str, *, masks: bool = True, stem: str = "a") -> Path:
    folder = root / name
    for split in ("train", "test"):
        for kind in ("image", "mask"):
            (folder / split / "ROIs" / kind).mkdir(parents=True)
        (folder / split / "ROIs" / "image" / f"{stem}.png").touch()
        if masks:
            (folder / split / "ROIs" / "mask" / f"{stem}.png").touch()
    return folder


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("Domain1", "drishti_gs"),
        ("domain2", "rim_one_r3"),
        ("DOMAIN3", "refuge_train"),
        ("Domain4", "refuge_val"),
        ("drishti", "drishti_gs"),
        ("rimone_r3", "rim_one_r3"),
        ("RIGA", "riga"),
        ("synthetic_b", "synthetic_b"),
    ],
)
def test_aliases_reach_their_data_set_in_any_case(alias: str, name: str) -> None:
    assert get_dataset(alias).name == name
    assert canonical_name(alias) == name


def test_bare_refuge_is_ambiguous_and_names_both() -> None:
    for look_up in (get_dataset, canonical_name):
        with pytest.raises(UsageError, match="refuge_train and refuge_val"):
            look_up("REFUGE")


def test_an_unknown_data_set_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'drishti'"):
        get_dataset("drishty")


def test_every_data_set_says_what_it_is() -> None:
    for spec in map(get_dataset, dataset_names()):
        assert spec.title
        assert spec.description.endswith(".")
        assert spec.licence
        assert spec.homepage
        assert spec.citation
        assert spec.synthetic == (spec.materialise is not None)


def test_published_counts_are_those_of_the_papers() -> None:
    counts = {name: get_dataset(name).published_counts for name in dataset_names()}
    assert counts["drishti_gs"] == (50, 51)
    assert counts["rim_one_r3"] == (99, 60)
    assert counts["refuge_train"] == counts["refuge_val"] == (320, 80)


def test_two_plugins_with_one_name_are_an_error_naming_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(port, "DATASETS", Registry[DatasetSpec]("datasets"))
    one = DatasetSpec("x", "X", "d", "l", "h", "c", aliases=("y",))
    port.register(one)
    with pytest.raises(UsageError, match=r"two datasets named 'y'.*test_port\.py.*test_port\.py"):
        port.register(DatasetSpec("y", "Y", "d", "l", "h", "c"))


def test_every_folder_in_the_layout_is_a_domain_under_its_own_or_canonical_name(
    tmp_path: Path,
) -> None:
    for name in ("Domain1", "my_clinic"):
        make_domain(tmp_path, name)
    (tmp_path / "notes").mkdir()
    domains = find_domains(tmp_path)
    assert list(domains) == ["drishti_gs", "my_clinic"]
    assert domains["drishti_gs"].title == "Drishti-GS"
    assert domains["my_clinic"].title == "my_clinic"
    assert domains["my_clinic"].roi_center == "unknown"


def test_masks_are_found_by_path_components(tmp_path: Path) -> None:
    """A root whose own name contains 'image' must not confuse image and mask."""
    root = tmp_path / "images" / "image"
    make_domain(root, "image_clinic", stem="image_1")
    (sample,) = find_domains(root)["image_clinic"].train.samples
    assert sample.stem == "image_1"
    assert sample.mask == root / "image_clinic" / "train" / "ROIs" / "mask" / "image_1.png"


def test_a_sample_without_mask_has_none(tmp_path: Path) -> None:
    make_domain(tmp_path, "clinic", masks=False)
    assert find_domains(tmp_path)["clinic"].test.samples[0].mask is None


def test_two_folders_of_one_domain_are_an_error(tmp_path: Path) -> None:
    for name in ("Domain1", "drishti_gs"):
        make_domain(tmp_path, name)
    with pytest.raises(DataError, match="'Domain1' and 'drishti_gs' are both"):
        find_domains(tmp_path)


def test_an_empty_or_missing_image_folder_is_named(tmp_path: Path) -> None:
    folder = make_domain(tmp_path, "clinic")
    images = folder / "test" / "ROIs" / "image"
    (images / "a.png").unlink()
    with pytest.raises(DataError, match=r"clinic/test/ROIs/image: .* has no \*\.png"):
        find_domains(tmp_path)
    images.rmdir()
    with pytest.raises(DataError, match=r"clinic/test/ROIs/image: .* is missing"):
        find_domains(tmp_path)


def test_a_root_without_domains_and_a_root_that_is_one_are_explained(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no domain found"):
        find_domains(tmp_path)
    folder = make_domain(tmp_path, "clinic")
    with pytest.raises(DataError, match="no domain found") as error:
        find_domains(folder / "train")
    assert "folder above" in str(error.value.hint)
    with pytest.raises(DataError, match="no such folder"):
        find_domains(tmp_path / "nowhere")


def test_an_ambiguous_folder_is_a_data_error(tmp_path: Path) -> None:
    make_domain(tmp_path, "refuge")
    with pytest.raises(DataError, match="refuge_train and refuge_val"):
        find_domains(tmp_path)


def test_a_split_is_reached_by_name(tmp_path: Path) -> None:
    make_domain(tmp_path, "clinic")
    domain = find_domains(tmp_path)["clinic"]
    assert domain.split("test") is domain.test
    with pytest.raises(UsageError, match="unknown split 'val'"):
        domain.split("val")


def test_listing_data_sets_needs_no_torch() -> None:
    code = (
        "import sys; from sfuda_bench.datasets import dataset_names; dataset_names(); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The synthetic world: what each knob changes, that nothing else changes, and the same bytes."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfuda_bench.datasets import (
    dataset_knobs,
    find_domains,
    get_dataset,
    materialise_derived,
    materialise_synthetic,
    read_domain,
)
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.decode import read_image, read_levels, read_mask
from sfuda_bench.images.synthetic.parameters import APPEARANCE, KNOBS, Profile, read_world, turned
from sfuda_bench.images.synthetic.render import Drawing, render
from sfuda_bench.images.verify import verify

synthetic = importlib.import_module("sfuda_bench.datasets.synthetic")
WORLD, BASE = synthetic.WORLD, synthetic.PROFILES[0]
NAMES = ["synthetic_a", "synthetic_b", "synthetic_c"]
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHAPES = ("disc_scale", "cup", "annotation")


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


def draw(severity: dict[str, float], number: int = 0, size: int = 128) -> Drawing:
    return render(WORLD, turned(BASE, WORLD.extremes, severity), "test", number, size=size)


def same(one: Drawing, other: Drawing) -> tuple[bool, bool]:
    return np.array_equal(one.image, other.image), np.array_equal(one.levels, other.levels)


# -- on disk ----------------------------------------------------------------------------------


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
            assert 0.02 < cup.sum() / disc.sum() < 0.8


def test_the_pictures_on_disk_are_those_that_were_drawn(root: Path) -> None:
    for number, sample in enumerate(find_domains(root)["synthetic_a"].test.samples):
        drawing = render(WORLD, BASE, "test", number, size=96)
        assert np.array_equal(np.asarray(Image.open(sample.image)), drawing.image)
        assert sample.mask is not None
        assert np.array_equal(read_levels(sample.mask), drawing.levels)


def test_the_same_seed_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    materialise_synthetic(tmp_path, size=96, counts=(8, 4))
    assert tree_digest(tmp_path) == tree_digest(root)


def test_another_seed_gives_other_eyes() -> None:
    other = render(replace(WORLD, seed=WORLD.seed + 1), BASE, "test", 0, size=64)
    assert same(other, draw({}, size=64)) == (False, False)


def test_a_complete_domain_is_left_alone_and_another_recipe_replaces_it(tmp_path: Path) -> None:
    materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == stamps
    materialise_synthetic(tmp_path, size=40, counts=(3, 1))
    assert len(find_domains(tmp_path)["synthetic_a"].train.samples) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_domain_half_removed_by_a_killed_replacement_never_passes_for_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    materialise_synthetic(tmp_path, size=32, counts=(2, 1))

    def killed(folder: str | Path, *arguments: object, **flags: object) -> None:
        next(Path(folder).rglob("*.png")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            materialise_synthetic(tmp_path, size=40, counts=(2, 1))
    materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    for name in NAMES:
        assert len(list((tmp_path / name).rglob("image/*.png"))) == 3


def test_a_folder_of_the_users_own_is_never_replaced(tmp_path: Path) -> None:
    precious = tmp_path / "synthetic_a" / "train" / "ROIs" / "image" / "mine.png"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"mine")
    with pytest.raises(DataError, match="was not written by the synthetic generator"):
        materialise_synthetic(tmp_path, size=32, counts=(2, 1))
    assert precious.read_bytes() == b"mine"


def test_a_longer_split_begins_with_the_same_eyes() -> None:
    first = render(WORLD, BASE, "train", 0, size=48)
    again = render(WORLD, BASE, "train", 0, size=48)
    other = render(WORLD, BASE, "test", 0, size=48)
    assert same(first, again) == (True, True)
    assert not np.array_equal(first.image, other.image)


def test_cameras_and_populations_differ_between_domains(root: Path) -> None:
    means, discs = {}, {}
    for name, domain in find_domains(root).items():
        samples = domain.train.samples
        means[name] = np.mean([read_image(s.image) for s in samples])
        discs[name] = np.mean([read_mask(s.mask)[1].mean() for s in samples if s.mask])
    assert means["synthetic_a"] + 30 < means["synthetic_c"]
    assert means["synthetic_b"] + 30 < means["synthetic_c"]
    assert discs["synthetic_b"] < 0.8 * discs["synthetic_a"]


def test_other_processors_draw_the_same_within_one_gray_level() -> None:
    """Without the vector instructions that numpy found here its functions round differently."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    code = (
        "import importlib, sys; sys.path.insert(0, sys.argv[1]);"
        "from sfuda_bench.images.synthetic.render import render;"
        "s = importlib.import_module('sfuda_bench.datasets.synthetic');"
        "d = render(s.WORLD, s.PROFILES[1], 'test', 1, size=160);"
        "sys.stdout.buffer.write(d.image.tobytes() + d.levels.tobytes())"
    )
    checkout = str(Path(str(synthetic.__file__)).parents[1])
    here = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(found)}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, checkout],
        capture_output=True,
        check=True,
        env=here,
    )
    other = np.frombuffer(run.stdout, dtype=np.uint8)
    drawn = render(WORLD, synthetic.PROFILES[1], "test", 1, size=160)
    image, levels = other[: drawn.image.size], other[drawn.image.size :]
    assert np.abs(image.astype(int) - drawn.image.ravel()).max() <= 1
    assert (levels != drawn.levels.ravel()).sum() <= 2  # a pixel exactly on an outline


# -- truth ------------------------------------------------------------------------------------


def test_the_exact_ratio_is_that_of_the_masks(root: Path) -> None:
    """The outlines' ratio and that of the pixels differ by the two pixels of each height."""
    for domain in find_domains(root).values():
        truth = json.loads((root / domain.name / "vcdr.json").read_text("utf-8"))
        for sample in domain.train.samples:
            assert sample.mask is not None
            cup, disc = (np.flatnonzero(part.any(axis=1)).size for part in read_mask(sample.mask))
            assert abs(truth["train"][sample.stem] - cup / disc) < 2.5 / disc
        assert set(truth["test"]) == {sample.stem for sample in domain.test.samples}


def test_a_fine_grid_comes_near_the_exact_ratio() -> None:
    drawing = draw({}, size=1024)
    cup = np.flatnonzero((drawing.levels == 0).any(axis=1)).size
    disc = np.flatnonzero((drawing.levels < 255).any(axis=1)).size
    assert drawing.vcdr == pytest.approx(cup / disc, abs=0.004)


def test_the_scale_of_the_disc_leaves_the_ratio() -> None:
    for severity in LEVELS:
        assert draw({"disc_scale": severity}).vcdr == pytest.approx(draw({}).vcdr, rel=1e-3)


# -- knobs ------------------------------------------------------------------------------------


def test_severity_0_of_every_knob_changes_no_byte(root: Path, tmp_path: Path) -> None:
    assert turned(BASE, WORLD.extremes, dict.fromkeys(KNOBS, 0.0)) == BASE
    materialise = get_dataset("synthetic_a").materialise
    assert materialise is not None
    nothing = dict.fromkeys(KNOBS, 0.0)
    materialise(tmp_path, size=96, counts=(8, 4), severity=nothing, name="synthetic_a")
    assert tree_digest(tmp_path / "synthetic_a") == tree_digest(root / "synthetic_a")


@pytest.mark.parametrize("knob", KNOBS)
def test_a_knob_changes_only_what_it_should(knob: str) -> None:
    image_same, mask_same = same(draw({knob: 0.5}), draw({}))
    assert image_same == (knob == "annotation")
    assert mask_same == (knob in APPEARANCE)
    assert (knob in APPEARANCE) != (knob in SHAPES)


@pytest.mark.parametrize("knob", APPEARANCE)
def test_the_picture_moves_away_evenly_as_an_appearance_knob_is_turned(knob: str) -> None:
    distances = []
    for severity in LEVELS:
        pairs = [(draw({knob: severity}, n), draw({}, n)) for n in range(3)]
        gaps = [np.abs(a.image.astype(float) - b.image).mean() for a, b in pairs]
        distances.append(float(np.mean(gaps)))
    assert distances[0] == 0
    assert all(a < b for a, b in itertools.pairwise(distances)), distances
    assert distances[-1] > 2


@pytest.mark.parametrize("knob", SHAPES)
def test_the_mask_moves_away_evenly_as_a_knob_of_shape_is_turned(knob: str) -> None:
    changed = [(draw({knob: s}).levels != draw({}).levels).mean() for s in LEVELS]
    assert all(a < b for a, b in itertools.pairwise(changed)), changed


def test_the_cup_knob_leaves_the_disc_and_the_annotation_knob_keeps_the_cup_inside() -> None:
    disc = draw({}).levels < 255
    assert np.array_equal(draw({"cup": 1.0}).levels < 255, disc)
    assert draw({"cup": 1.0}).vcdr > draw({}).vcdr + 0.1
    style = draw({"annotation": 1.0})
    assert (style.levels < 255).sum() > disc.sum()
    assert style.vcdr < draw({}).vcdr


def test_the_grain_of_two_severities_is_the_same_grain() -> None:
    """Turning one knob redraws no random number of another part."""
    plain = draw({}).image.astype(float)
    blurred, dark = draw({"blur": 1.0}).image, draw({"gamma": 0.05}).image
    fine = [part - np.roll(part, 1, axis=1) for part in (plain, dark.astype(float))]
    assert np.corrcoef(fine[0].ravel(), fine[1].ravel())[0, 1] > 0.95
    assert np.array_equal(blurred, draw({"blur": 1.0}).image)


def test_knobs_combine_in_any_order() -> None:
    one = draw({"blur": 0.3, "colour": 0.6})
    assert same(one, draw({"colour": 0.6, "blur": 0.3})) == (True, True)
    assert not np.array_equal(one.image, draw({"colour": 0.6}).image)


def test_unknown_knobs_and_severities_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="no knob 'haze'"):
        turned(BASE, WORLD.extremes, {"haze": 0.5})
    with pytest.raises(UsageError, match=r"blur=1\.5: expected a severity from 0 to 1"):
        turned(BASE, WORLD.extremes, {"blur": 1.5})


# -- derived domains --------------------------------------------------------------------------


def test_a_derived_domain_is_a_domain_of_the_same_eyes(tmp_path: Path) -> None:
    folder = materialise_derived(tmp_path, "synthetic_b@blur=0.5+noise=0.25")
    domain = read_domain(folder)
    assert domain.name == folder.name == "synthetic_b@blur=0.5+noise=0.25"
    assert domain.synthetic and domain.title.startswith("Synthetic B")
    base = materialise_derived(tmp_path, "synthetic_b@0")
    masks = [sorted((f / "train" / "ROIs" / "mask").glob("*.png")) for f in (folder, base)]
    assert [m.name for m in masks[0]] == [m.name for m in masks[1]]
    assert [m.read_bytes() for m in masks[0]] == [m.read_bytes() for m in masks[1]]


def test_only_generated_domains_have_knobs(tmp_path: Path) -> None:
    assert dataset_knobs("synthetic_a") == dataset_knobs("Synthetic-A@blur=1") == tuple(KNOBS)
    assert dataset_knobs("drishti_gs") == dataset_knobs("my_clinic") == ()
    for name in ("drishti_gs@blur=1", "synthetic_a@haze=1"):
        with pytest.raises(UsageError, match=f"no domain '{name}'"):
            materialise_derived(tmp_path, name)


# -- the parameter file -----------------------------------------------------------------------


def test_a_parameter_file_of_ones_own_makes_a_world(tmp_path: Path) -> None:
    text = synthetic.PARAMETERS.read_text("utf-8").replace("synthetic_a", "mine")
    (tmp_path / "mine.toml").write_text(text, "utf-8")
    world = read_world(tmp_path / "mine.toml")
    assert world.profiles[0] == replace(BASE, name="mine")
    assert isinstance(world.profiles[0], Profile)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("seed = 20260101", "seed = 'x'", "seed: expected a whole number"),
        ("gamma = 1.0 ", "gama = 1.0 ", r"synthetic_a\.camera\.gama: no such key"),
        ("gamma = 1.0 ", "# ", r"synthetic_a\.camera\.gamma is missing"),
        ("disc_radius = [0.68, 0.05]", "disc_radius = 0.68", "disc_radius: expected 2 numbers"),
        ("jpeg = 3 ", "jpeg = true ", r"extremes\.jpeg: expected a number"),
        ("[extremes]", "[extreme]", r"\[extremes\] is missing"),
        ("[domains.synthetic_a]", "[domains.synthetic_a", "cannot be read"),
    ],
)
def test_a_faulty_parameter_file_names_the_key(
    tmp_path: Path, old: str, new: str, says: str
) -> None:
    text = synthetic.PARAMETERS.read_text("utf-8")
    assert old in text
    path = tmp_path / "world.toml"
    path.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(UsageError, match=says) as error:
        read_world(path)
    assert "world.toml" in error.value.message and error.value.hint


def test_the_contact_sheet_is_one_labelled_picture(root: Path, tmp_path: Path) -> None:
    synthetic.contact_sheet(root, tmp_path / "sheet.png", tile=40, columns=4)
    assert Image.open(tmp_path / "sheet.png").size[0] == 4 * 44 + 4

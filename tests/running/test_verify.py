"""Verification of a store: each kind of damage is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.cli import main
from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.running.plan import record_plan
from sfuda_bench.running.seals import MANIFEST
from sfuda_bench.running.store import read_json, write_json
from sfuda_bench.running.store_check import verify_store
from sfuda_bench.running.threshold_records import write_store_thresholds


@pytest.fixture(scope="module")
def computed(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a cell that recorded epochs, and artefacts."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("computed"))
    bench.compute(bench.plan("dpl", record=frozenset({"epochs"})))
    return Path(bench.out)


@pytest.fixture
def store(computed: Path, tmp_path: Path) -> Path:
    out = tmp_path / "store"
    shutil.copytree(computed, out, ignore=shutil.ignore_patterns("packed"))
    return out


def one(store: Path, pattern: str) -> Path:
    return sorted(store.glob(pattern))[0]


def edit(path: Path, **changes: Any) -> None:
    write_json(path, {**read_json(path), **changes})


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_an_undisturbed_store_is_in_order(store: Path) -> None:
    verdict = verify_store(store)
    assert not verdict.mismatches
    assert not verdict.not_recorded
    assert verdict.checked["cells"] == 1
    assert verdict.checked["sources"] == 3
    assert verdict.checked["artefacts"] >= 1
    assert verdict.checked["files"] > 10


CELL = "cells/*/*/*"
DAMAGES: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a bit of a model": (f"{CELL}/model.safetensors", flip, "weights"),
    "a bit of a source model": ("sources/*/*/model.safetensors", flip, "weights"),
    "a source model cut short": ("sources/*/*/model.safetensors", cut, "sha256"),
    "no source model": ("sources/*/*/model.safetensors", Path.unlink, "weights"),
    "an artefact cut short": ("artefacts/*/*/tensors.safetensors", cut, "sha256"),
    "a field of an artefact": (
        "artefacts/*/*/meta.json",
        lambda path: edit(path, seed=7),
        "key of its fields",
    ),
    "a prediction": (f"{CELL}/predictions/*-cup.png", cut, "prediction"),
    "a missing prediction": (f"{CELL}/predictions/*-disc.png", Path.unlink, "prediction"),
    "a missing epoch's prediction": (
        f"{CELL}/predictions/epoch-001/*-cup.png",
        Path.unlink,
        "prediction",
    ),
    "scores": (f"{CELL}/cases-standard.parquet", cut, "values"),
    "missing eyes": (f"{CELL}/eyes-standard.parquet", Path.unlink, "values"),
    "a score record": (
        f"{CELL}/scores-standard.json",
        lambda path: edit(path, mask_digest="0"),
        "score key",
    ),
    "the curve": (f"{CELL}/curve.parquet", cut, "sha256"),
    "the seed": (f"{CELL}/cell.json", lambda path: edit(path, seed=9), "field 'seed'"),
    "a setting": (
        f"{CELL}/cell.json",
        lambda path: edit(path, config={**read_json(path)["config"], "lr": 9.0}),
        "setting 'lr'",
    ),
    "the key": (f"{CELL}/cell.json", lambda path: edit(path, key="0" * 64), "key of its fields"),
    "no record": (f"{CELL}/cell.json", Path.unlink, "record"),
    "a record cut short": (f"{CELL}/cell.json", cut, "record"),
    "a record with a value that is no number": (
        "artefacts/*/*/meta.json",
        lambda path: edit(path, seed=float("nan")),
        "record",
    ),
    "a record that lacks a field": (
        f"{CELL}/cell.json",
        lambda path: write_json(path, {"key": "00"}),
        "record",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named(store: Path, name: str) -> None:
    pattern, damage, what = DAMAGES[name]
    path = one(store, pattern)
    damage(path)
    found = verify_store(store).mismatches
    assert any(what in mismatch.what for mismatch in found), found
    folders = {str(path.parent.relative_to(store)), str(path.relative_to(store))}
    assert any(mismatch.path.startswith(tuple(folders)) for mismatch in found)


LATER = ("scores-standard", "selections", "thresholds", "funnel", "train-standard", "run")


@pytest.fixture
def recorded(everything: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(everything, tmp_path / "store"))


@pytest.fixture(scope="module")
def everything(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with a cell that has every record that is written after it."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("everything"))
    plan = bench.plan("dpl", record=frozenset({"epochs", "validators", "train", "labels"}))
    bench.compute(plan)
    record_plan(plan)
    write_store_thresholds(bench.out)
    return Path(bench.out)


def test_a_store_with_every_record_is_in_order(everything: Path) -> None:
    verdict = verify_store(everything)
    assert not verdict.mismatches
    assert verdict.checked["packs"] >= 4


@pytest.mark.parametrize("name", LATER)
def test_a_record_without_its_seal_is_no_older_record(recorded: Path, name: str) -> None:
    """The manifest says that what is written later has a seal: an edited record cannot drop it."""
    path = one(recorded, f"{CELL}/{name}.json")
    write_json(path, read_json(path))
    with pytest.raises(StoreSchemaError, match="not what was written"):
        read_json(path)
    (mismatch,) = verify_store(recorded).mismatches
    assert mismatch.path == path.relative_to(recorded).as_posix()


def test_a_manifest_of_an_earlier_version_asks_for_no_seals(recorded: Path) -> None:
    for manifest in recorded.rglob(MANIFEST):
        fields = read_json(manifest)
        del fields["seals"]
        write_json(manifest, fields)
    path = one(recorded, f"{CELL}/run.json")
    write_json(path, read_json(path))
    assert not verify_store(recorded).mismatches


@pytest.mark.parametrize("name", ["cases-standard", "funnel", "train-standard", "thresholds"])
def test_every_byte_of_a_frame_counts(recorded: Path, name: str) -> None:
    """Also bytes that change no value, and frames that hold no scores of a profile."""
    path = one(recorded, f"{CELL}/{name}.parquet")
    data = bytearray(path.read_bytes())
    data[6] ^= 1
    path.write_bytes(data)
    assert path.relative_to(recorded).as_posix() in {
        m.path for m in verify_store(recorded).mismatches
    }


@pytest.mark.parametrize(
    "name", ["predictions/stranger-cup.png", "predictions/epoch-009/a-cup.png", "b.safetensors"]
)
def test_a_file_that_was_not_committed_is_named(recorded: Path, name: str) -> None:
    path = one(recorded, CELL) / name
    path.parent.mkdir(exist_ok=True)
    shutil.copyfile(one(recorded, f"{CELL}/predictions/*-cup.png"), path)
    found = verify_store(recorded).mismatches
    assert ("file", path.relative_to(recorded).as_posix()) in {(m.what, m.path) for m in found}


def test_a_flipped_bit_of_the_plan_is_named(recorded: Path) -> None:
    path = recorded / "plans" / "last.json"
    path.write_bytes(path.read_bytes().replace(b'"seed": 0', b'"seed": 1', 1))
    (mismatch,) = verify_store(recorded).mismatches
    assert mismatch.path == "plans/last.json"


def _swapped(field: str) -> Callable[[Path], None]:
    """Return a damage that lets the first two entries of a list change places."""

    def damage(path: Path) -> None:
        fields = json.loads(path.read_text("utf-8"))
        fields[field][:2] = reversed(fields[field][:2])
        path.write_text(json.dumps(fields), "utf-8")

    return damage


PACKS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a pixel": ("packed/images/*.npy", flip),
    "a label": ("packed/masks/*.npy", flip),
    "the order of images": ("packed/images/*.json", _swapped("ids")),
    "the digests of images": ("packed/images/*.json", _swapped("digests")),
    "the order of masks": ("packed/masks/*.json", _swapped("ids")),
    "the digests of masks": ("packed/masks/*.json", _swapped("digests")),
    "no names": ("packed/names/????????????????.json", Path.unlink),
    "a pack in the place of another": (
        "packed/masks/*.json",
        lambda path: edit_plain(path, key="0" * 16),
    ),
}


def edit_plain(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


@pytest.mark.parametrize("name", PACKS)
def test_a_damaged_pack_is_named(recorded: Path, name: str) -> None:
    """Scores come from these pixels and from which mask belongs to which image."""
    pattern, damage = PACKS[name]
    path = one(recorded, pattern)
    damage(path)
    found = {Path(mismatch.path).stem for mismatch in verify_store(recorded).mismatches}
    assert path.stem in found


def test_a_cell_whose_source_model_is_gone_is_named(store: Path) -> None:
    shutil.rmtree(store / "sources")
    (mismatch,) = verify_store(store).mismatches
    assert mismatch.what == "source model"
    assert "no such source model" in mismatch.found


def test_a_cell_in_another_cells_place_is_named(store: Path) -> None:
    folder = one(store, CELL)
    target = folder.parent.with_name("toy_b-toy_a") / folder.name
    target.parent.mkdir()
    folder.rename(target)
    assert {found.what for found in verify_store(store).mismatches} == {"folder of the pair"}


def test_what_older_stores_did_not_record_is_counted_and_no_mismatch(store: Path) -> None:
    for manifest in store.rglob(MANIFEST):
        manifest.unlink()
    path = one(store, f"{CELL}/cell.json")
    write_json(path, {k: v for k, v in read_json(path).items() if k != "key_fields"})
    verdict = verify_store(store)
    assert not verdict.mismatches
    assert verdict.not_recorded["fields of the key"] == 1
    assert verdict.not_recorded["file digests"] >= 5


def test_the_command_has_exit_code_six_and_names_the_file(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(store)]) == 0
    assert "in order" in capsys.readouterr().out
    path = one(store, f"{CELL}/model.safetensors")
    flip(path)
    assert main(["verify", "--out", str(store)]) == 6
    assert str(path.relative_to(store)) in capsys.readouterr().out
    assert main(["verify", str(store), "--json"]) == 6
    document = json.loads(capsys.readouterr().out)
    assert not document["ok"] and document["mismatches"]


def test_no_store_is_an_error_of_use(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path)]) == 2

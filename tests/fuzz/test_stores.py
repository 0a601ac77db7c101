"""A store with a damaged file: the undamaged answer, or an error that says where."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.frames import read_parquet, write_parquet
from sfuda_bench.running.seals import sealed
from sfuda_bench.running.store import read_json, write_json, write_sealed
from tests.fuzz.outcome import command
from tests.fuzz.stores import SLOW, World, attack, check

QUICK, REPORTS = 42, 2
"""Cases of quick commands, and of reports and rescoring."""


@pytest.mark.parametrize("part", range(6))
def test_a_damaged_file_is_named_or_changes_nothing(
    world: World, tmp_path: Path, part: int
) -> None:
    for number in range(part * QUICK // 6, (part + 1) * QUICK // 6):
        attack(random.Random(f"quick {number}"), world, tmp_path)


@pytest.mark.parametrize("name", ["report", "rescore"])
def test_no_table_shows_a_damaged_number(world: World, tmp_path: Path, name: str) -> None:
    for number in range(REPORTS):
        attack(random.Random(f"{name} {number}"), world, tmp_path, (name,), at_once=1)


PLAUSIBLE = {
    "a score of a cell": (
        "cells/dpl/*/*/scores-standard.json",
        '"threshold": 0.5',
        '"threshold": 0.4',
    ),
    "the time of a cell": ("cells/dpl/*/*/run.json", '"backward_images": ', '"backward_images": 1'),
    "what was asked": ("plans/last.json", '"seed": 0', '"seed": 3'),
    "the epoch of a selection": (
        "cells/dpl/*/*/selections.json",
        '"label-free:snd": ',
        '"label-free:snd": 1',
    ),
    "the setting of a cell": ("cells/dpl/*/*/cell.json", '"epochs": 1', '"epochs": 7'),
    "a title": ("cells/dpl/*/*/cell.json", '"title": "DPL', '"title": "DPI'),
    "calibration": ("cells/dpl/*/*/thresholds.json", '"cup": 0.', '"cup": 0.9'),
    "the cost of a step": ("artefacts/*/*/cost.json", '"forward_images": ', '"forward_images": 9'),
}


@pytest.mark.parametrize("what", sorted(PLAUSIBLE))
def test_a_number_that_could_be_right_but_was_not_written_is_refused(
    world: World, tmp_path: Path, what: str
) -> None:
    pattern, old, new = PLAUSIBLE[what]
    out = world.copy(tmp_path)
    path = sorted(out.glob(pattern))[0]
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new))
    with pytest.raises(StoreSchemaError, match=path.name):
        read_json(path)
    ran = command(["report", "--out", str(out)])
    assert ran.code == 7 and str(path) in ran.stderr


def test_a_changed_value_in_a_frame_is_refused(world: World, tmp_path: Path) -> None:
    out = world.copy(tmp_path)
    for name in ("cases-standard", "eyes-standard", "epochs-standard", "curve", "thresholds"):
        path = sorted(out.glob(f"cells/dpl/*/*/{name}.parquet"))[0]
        frame = read_parquet(path)
        column = (
            "value" if name == "curve" else next(c for c in ("dice", "vcdr_error") if c in frame)
        )
        path.unlink()
        write_parquet(frame.assign(**{column: frame[column] + 0.001}), path)
        with pytest.raises(StoreSchemaError, match=path.name):
            read_parquet(path)


def test_a_frame_of_a_record_without_byte_digests_is_compared_by_value(
    world: World, tmp_path: Path
) -> None:
    out = world.copy(tmp_path)
    path = sorted(out.glob("cells/dpl/*/*/cases-standard.parquet"))[0]
    record = path.with_name("scores-standard.json")
    fields = read_json(record)
    del fields["bytes"]
    record.unlink()
    write_sealed(record, fields)
    frame = read_parquet(path)
    path.unlink()
    write_parquet(frame.assign(dice=0.99), path)
    with pytest.raises(StoreSchemaError, match=r"cases-standard\.parquet"):
        read_parquet(path)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_pixels_that_were_not_packed_are_not_scored(
    world: World, tmp_path: Path, kind: str
) -> None:
    from sfuda_bench.images.packed import load_pack

    out = world.copy(tmp_path)
    path = sorted(out.glob(f"packed/{kind}/*.npy"))[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(StoreSchemaError, match="other pixels"):
        load_pack(path)


def test_a_flipped_bit_of_weights_or_artefacts_is_seen_before_they_are_used(
    world: World, tmp_path: Path
) -> None:
    from sfuda_bench.running.seals import check_listed_file

    out = world.copy(tmp_path)
    for pattern in ("sources/*/*/model.safetensors", "artefacts/*/*/tensors.safetensors"):
        path = sorted(out.glob(pattern))[0]
        check_listed_file(path)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.unlink()
        path.write_bytes(data)
        with pytest.raises(StoreSchemaError, match=path.name):
            check_listed_file(path)


def test_a_seal_is_of_the_values_and_not_of_their_order_or_layout(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    value = {"b": [1, 2.5, None, float("inf")], "a": {"10": 1, "9": "é"}}
    write_sealed(path, value)
    assert read_json(path) == value
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=False, indent=7))
    assert read_json(path) == value
    path.write_text(json.dumps({**sealed(value), "b": [1, 2.5, None, 3]}))
    with pytest.raises(StoreSchemaError, match=r"record\.json"):
        read_json(path)


def test_records_of_earlier_versions_without_seal_or_manifest_are_read(
    world: World, tmp_path: Path
) -> None:
    out = world.copy(tmp_path)
    for path in (*out.glob("*/*/*/*/*.json"), *out.glob("plans/last.json")):
        if path.name == "manifest.json":
            path.unlink()
        else:
            fields = read_json(path, checked=False)
            path.unlink()
            write_json(path, fields)
    assert command(["status", "--out", str(out)]).code == 0


@pytest.mark.slow
def test_many_damaged_files_under_the_slow_commands(world: World, tmp_path: Path) -> None:
    for number in range(20):
        attack(random.Random(f"slow {number}"), world, tmp_path, SLOW)


def test_the_undamaged_store_is_in_order(world: World, tmp_path: Path) -> None:
    assert world.undamaged("verify", tmp_path)[0] == 0
    check(world, tmp_path, Path("store.json"), b'{"schema": 1}', ["status"])

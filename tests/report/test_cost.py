from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.report.cost import COLUMNS, cost_table
from sfuda_bench.report.scope import read_scope
from sfuda_bench.report.weights import changed_values

REAL = ("drishti_gs", "rim_one_r3")
KEYS = [column.key for column in COLUMNS]


def run_record(folder: Path, **more: Any) -> None:
    record = {"seconds": 10.0, "peak_gpu_bytes": None, "device": "cpu", "threads": 2, **more}
    (folder / "run.json").write_text(json.dumps(record), "utf-8")


def of_real_pair(store: Any, label: str) -> dict[str, Any]:
    table = cost_table(read_scope(store.out))
    assert table is not None
    rows = [row for row in table.rows if row[:2] == ("drishti_gs → rim_one_r3", label)]
    return dict(zip(KEYS, rows[0], strict=True))


def test_what_is_recorded_is_averaged_and_what_is_not_is_a_dash(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    for seed, path in enumerate(sorted(store.out.glob("cells/cpr_cbam/drishti_gs-*/*"))):
        run_record(path, seconds=10.0 + 2 * seed, peak_gpu_bytes=2**20)
    row = of_real_pair(store, "cpr_cbam")
    assert (row["runs"], row["seconds"], row["charged_seconds"]) == (2, 11, 11)
    assert row["peak_gpu_mib"] == 1
    assert row["forward_images"] is None and row["backward_images"] is None
    assert row["parameters_changed"] is None
    assert (row["epochs"], row["device"], row["strictness"]) == ("2", "cpu", "S0")
    missing = of_real_pair(store, "Tent (online)")
    assert missing["runs"] is None


def test_shared_steps_are_charged_to_every_consumer(make_store: Callable[..., Any]) -> None:
    """One run computed the step within its 10 s, the other found it: both are charged alike."""
    store = make_store()
    folder = store.out / "artefacts/labels/0123456789abcdef"
    folder.mkdir(parents=True)
    cost = {"seconds": 4.0, "forward_images": 30, "backward_images": 0}
    (folder / "cost.json").write_text(json.dumps(cost), "utf-8")
    step = ["labels/0123456789abcdef0000"]
    computed = [{"name": "labels", "key": "0123456789abcdef0000", "seconds": 4.0}]
    images = {"forward_images": 50, "backward_images": 20}
    first, second = sorted(store.out.glob("cells/cpr_cbam/drishti_gs-*/*"))
    run_record(first, seconds=10.0, artefacts=step, artefacts_computed=computed, **images)
    images["forward_images"] -= 30
    run_record(second, seconds=6.0, artefacts=[*step, *step], artefacts_computed=[], **images)
    row = of_real_pair(store, "cpr_cbam")
    assert (row["artefacts"], row["artefact_seconds"], row["charged_seconds"]) == ("1", 4, 10)
    assert (row["forward_images"], row["backward_images"]) == (50, 20)


def test_looking_at_models_for_the_record_costs_a_method_nothing(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    for path in store.out.glob("cells/cpr_cbam/drishti_gs-*/*"):
        run_record(path, seconds=10.0, recording_seconds=7.0)
    row = of_real_pair(store, "cpr_cbam")
    assert (row["seconds"], row["charged_seconds"]) == (3, 3)


def test_a_step_of_unknown_time_leaves_the_charge_unknown(make_store: Callable[..., Any]) -> None:
    store = make_store()
    for path in store.out.glob("cells/cpr_cbam/drishti_gs-*/*"):
        run_record(path, artefacts=["labels/0123456789abcdef0000"])
    row = of_real_pair(store, "cpr_cbam")
    assert row["seconds"] == 10
    assert row["artefact_seconds"] is None and row["charged_seconds"] is None


def test_changed_values_are_counted_per_tensor(tmp_path: Path) -> None:
    before: dict[str, Any] = {
        "conv.weight": np.zeros((2, 3), np.float32),
        "bn.weight": np.ones(4, np.float32),
        "bn.running_mean": np.zeros(4, np.float32),
        "bn.num_batches_tracked": np.zeros((), np.int64),
    }
    after: dict[str, Any] = {**before, "bn.running_mean": np.ones(4, np.float32)}
    after["bn.num_batches_tracked"] = np.ones((), np.int64)
    after["conv.weight"] = np.array([[0, 0, 0], [0, 0, 1e-9]], np.float32)
    save_file(before, tmp_path / "a.safetensors")
    save_file(after, tmp_path / "b.safetensors")
    assert changed_values(tmp_path / "a.safetensors", tmp_path / "b.safetensors") == (6, 4)
    assert changed_values(tmp_path / "a.safetensors", tmp_path / "a.safetensors") == (0, 0)


def test_a_damaged_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00{nope")
    with pytest.raises(StoreSchemaError, match="damaged tensors"):
        changed_values(path, path)


def test_without_a_run_record_there_is_no_table(make_store: Callable[..., Any]) -> None:
    assert cost_table(read_scope(make_store().out)) is None

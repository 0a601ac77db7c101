"""The content digest of a store: results count, circumstances do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.running.store import read_json, write_json
from sfuda_bench.running.store_digest import store_contents, store_digest, tensors_sha256


def test_two_runs_of_one_plan_have_one_digest(
    trained: Any, copy_bench: Any, tmp_path: Path
) -> None:
    benches = [copy_bench(trained, tmp_path / name) for name in ("a", "b")]
    for bench in benches:
        bench.compute(bench.plan(["source_only", "dpl"]))
    contents = [store_contents(bench.out) for bench in benches]
    assert contents[0] == contents[1]
    assert store_digest(benches[0].out) == store_digest(benches[1].out)
    kinds = {path.split("/")[0] for path in contents[0]}
    assert kinds == {"cells", "sources", "artefacts"}


def test_circumstances_do_not_count_and_results_do(bench: Any) -> None:
    result = bench.run("source_only")
    before = store_contents(bench.out)
    record = read_json(result.folder / "run.json")
    write_json(result.folder / "run.json", {**record, "host": "elsewhere", "seconds": 1e9})
    card = next(bench.out.glob("sources/*/*/card.json"))
    write_json(card, {**read_json(card), "seconds": 1e9})
    (result.folder / ".cases-standard.parquet.1.tmp").write_bytes(b"left behind")
    (bench.out / "attempts" / "other").mkdir(parents=True)
    assert store_contents(bench.out) == before
    write_json(result.folder / "cell.json", {**result.cell, "epochs": 99})
    changed = {path for path, value in store_contents(bench.out).items() if value != before[path]}
    assert changed == {str((result.folder / "cell.json").relative_to(bench.out))}


def test_a_model_file_has_the_digest_of_its_state_dict(bench: Any) -> None:
    result = bench.run("source_only")
    assert (
        tensors_sha256(result.folder / "model.safetensors") == (result.cell["adapted_model_sha256"])
    )


def test_every_dtype_of_a_state_dict_has_the_digest_of_the_model(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from sfuda_bench.running.keys import model_sha256

    kinds = [torch.float32, torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool]
    state = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in kinds}
    state["scalar"] = torch.tensor(3)
    save_file(state, tmp_path / "m.safetensors", metadata={"format": "pt"})
    assert tensors_sha256(tmp_path / "m.safetensors") == model_sha256(state)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x02" + bytes(7) + b"{]", b"\x08"])
def test_what_is_no_safetensors_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(StoreSchemaError, match=r"m\.safetensors"):
        tensors_sha256(path)


def test_a_cell_without_its_record_is_no_result(bench: Any) -> None:
    result = bench.run("source_only")
    (result.folder / "cell.json").unlink()
    assert not [path for path in store_contents(bench.out) if path.startswith("cells/")]


def test_the_digest_of_json_ignores_the_order_of_its_fields(tmp_path: Path) -> None:
    from sfuda_bench.running.store_digest import value_digest

    for name, value in (("a", {"x": 1, "y": [2]}), ("b", {"y": [2], "x": 1})):
        (tmp_path / f"{name}.json").write_text(json.dumps(value), "utf-8")
    assert value_digest(tmp_path / "a.json") == value_digest(tmp_path / "b.json")

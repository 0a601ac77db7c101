"""Source models from files: released checkpoints become source models and are used by runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfuda_bench.cli import main
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.running.source_import import (
    find_source,
    import_source,
    parse_source_models,
    train_masks,
)
from sfuda_bench.running.sources import load_source_model
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.settings import NetworkSettings

DPL = NetworkSettings(name="dpl_deeplabv3plus")


def released_state(network: nn.Module) -> dict[str, Tensor]:
    """Return a state dict with all names of a released checkpoint of the second stage."""
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        state[name] = value
        part, _, rest = name.partition(".")
        if part == "backbone":
            position, _, rest = rest.removeprefix("features.").partition(".")
            level, shift = ("low", 0) if int(position) < 4 else ("high", 4)
            state[f"backbone.{level}_level_features.{int(position) - shift}.{rest}"] = value
    for structure in ("cup", "disc"):
        state[f"aff_{structure}.weight"] = torch.zeros(256, 256, 1, 1)
        norm = nn.BatchNorm2d(256).state_dict()
        state |= {f"bn_{structure}.{name}": value for name, value in norm.items()}
    return state


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(3)
    return NETWORKS.get(DPL.name).build("mobilenet_v2", None)


@pytest.fixture(scope="module")
def checkpoint(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("released") / "after_epoch-185.pth.tar"
    content = {
        "epoch": 185,
        "iteration": 10_000,
        "arch": "DeepLab",
        "optim_state_dict": torch.optim.Adam(network.parameters()).state_dict(),
        "model_state_dict": released_state(network),
        "learning_rate_gen": 1e-3,
        "best_mean_dice": np.float64(0.93),
    }
    torch.save(content, path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def loaded(folder: Path) -> dict[str, Tensor]:
    return load_source_model(folder, DPL, torch.device("cpu")).state_dict()


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_a_released_checkpoint_becomes_a_source_model(
    network: Any, checkpoint: Path, store: Store
) -> None:
    source = import_source(checkpoint, "refuge_val", DPL, store)
    assert source.folder.parent == store.root / "sources" / "refuge_val"
    assert same(loaded(source.folder), network.state_dict())
    assert source.card["parameters"] == 5_812_135
    assert source.card["imported"]["file"] == checkpoint.name
    ignored = source.card["imported"]["ignored"]
    assert len([name for name in ignored if "_level_features" in name]) == 306
    assert len([name for name in ignored if name.startswith(("aff_", "bn_"))]) == 12
    assert len(ignored) == 306 + 12


def test_aliases_stand_in_for_missing_names_and_safetensors_are_read(
    network: Any, store: Store, tmp_path: Path
) -> None:
    state = released_state(network)
    aliased = {k: v.clone() for k, v in state.items() if not k.startswith("backbone.features.")}
    save_file(aliased, tmp_path / "aliases.safetensors")
    source = import_source(tmp_path / "aliases.safetensors", "toy_a", DPL, store)
    assert same(loaded(source.folder), network.state_dict())


def test_the_key_follows_from_the_file_and_the_network(
    network: Any, checkpoint: Path, store: Store, tmp_path: Path
) -> None:
    first = import_source(checkpoint, "toy_a", DPL, store)
    renamed = tmp_path / "renamed.pth"
    renamed.write_bytes(checkpoint.read_bytes())
    assert import_source(renamed, "toy_a", DPL, store).key == first.key
    save_file(network.state_dict(), tmp_path / "other.safetensors")
    other = import_source(tmp_path / "other.safetensors", "toy_a", DPL, store)
    assert other.key != first.key
    assert other.card["model_sha256"] == first.card["model_sha256"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("aspp.conv1.weight"), "missing keys aspp.conv1.weight"),
        (lambda s: s.update({"extra.weight": torch.zeros(1)}), "unexpected keys extra.weight"),
        (
            lambda s: s.update({"decoder.bn1.bias": torch.zeros(3)}),
            r"other shapes decoder.bn1.bias \(3,\) instead of \(48,\)",
        ),
        (
            lambda s: s.update({"decoder.bn1.bias": torch.full((48,), torch.nan)}),
            "decoder.bn1.bias has values that are not finite",
        ),
    ],
)
def test_a_mismatch_names_keys_and_shapes_and_stores_nothing(
    network: Any, store: Store, tmp_path: Path, change: Any, message: str
) -> None:
    state = dict(network.state_dict())
    change(state)
    torch.save({"model_state_dict": state}, tmp_path / "wrong.pth")
    with pytest.raises(DataError, match=message):
        import_source(tmp_path / "wrong.pth", "toy_a", DPL, store)
    assert not list(store.root.glob("sources/*/*/card.json"))


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_malicious_checkpoint_is_refused_and_runs_nothing(
    network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, trace = tmp_path / "evil.pth.tar", tmp_path / "trace"
    state = dict(network.state_dict())
    torch.save({"model_state_dict": state, "arch": Malicious(trace)}, path)
    out = str(tmp_path / "store")
    assert main(["source", "import", str(path), "--domain", "toy_a", "--out", out]) == 3
    assert "cannot be read" in capsys.readouterr().err
    assert not trace.exists()


def test_the_command_prints_the_key_and_ls_shows_the_model(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "store")]
    assert main(["source", "import", str(checkpoint), "--domain", "Domain4", *out]) == 0
    printed = capsys.readouterr()
    key = printed.out.strip()
    assert f"--source-model refuge_val={key}" in printed.err
    assert "318 tensors are not of the network" in printed.err
    assert main(["source", "import", str(checkpoint), "--domain", "Domain4", *out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"].startswith(key)
    assert main(["source", "ls", *out]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"refuge_val  seed 0  {key}") and checkpoint.name in line


def test_source_models_are_found_by_file_or_key_and_belong_to_the_network(
    checkpoint: Path, store: Store
) -> None:
    source = find_source(str(checkpoint), "toy_a", DPL, store)
    assert find_source(source.key[:16], "toy_a", DPL, store) == source
    with pytest.raises(UsageError, match="no stored source models of toy_b"):
        find_source(source.key[:16], "toy_b", DPL, store)
    with pytest.raises(UsageError, match="this run uses deeplabv3plus"):
        find_source(source.key, "toy_a", NetworkSettings(), store)


def test_the_flag_names_each_domain_once() -> None:
    parsed = parse_source_models(["Domain4=a.pth", "toy_a = b=c.pth"])
    assert parsed == (("refuge_val", "a.pth"), ("toy_a", "b=c.pth"))
    for wrong in (["toy_a"], ["=x"], ["toy_a="]):
        with pytest.raises(UsageError, match="expected DOMAIN=FILE"):
            parse_source_models(wrong)
    with pytest.raises(UsageError, match="names toy_a twice"):
        parse_source_models(["toy_a=x", "toy_a=y"])


# -- in a run ---------------------------------------------------------------------------------


@pytest.fixture
def tiny_file(bench: Any, tmp_path: Path) -> Path:
    bench.plan("source_only")  # loads the plug-in
    torch.manual_seed(8)
    path = tmp_path / "tiny.safetensors"
    save_file(NETWORKS.get("tiny").build("mobilenet_v2", None).state_dict(), path)
    return path


def test_a_run_uses_the_given_model_and_trains_none(bench: Any, tiny_file: Path) -> None:
    given = {"source_models": (("toy_a", str(tiny_file)),)}
    plan = bench.plan("source_only", **given)
    assert [source.done for source in plan.sources] == [True]
    outcome = bench.run("source_only", **given)
    card = read_json(plan.sources[0].folder / "card.json")
    assert outcome.cell["source_key"] == card["key"]
    assert outcome.sha == outcome.source_sha == card["model_sha256"]
    assert outcome.cell["source_selection"] == "imported"
    by_key = bench.plan("source_only", source_models=(("toy_a", card["key"][:16]),))
    assert by_key.cells[0].key == plan.cells[0].key and by_key.cells[0].state == "done"
    assert bench.plan("source_only").cells[0].key != plan.cells[0].key


def test_a_source_domain_without_images_can_be_given(bench: Any, tiny_file: Path) -> None:
    given = {"source_models": (("elsewhere", str(tiny_file)),)}
    plan = bench.plan("source_only", pairs="elsewhere:*", **given)
    assert {cell.pair.target for cell in plan.cells} == {"toy_a", "toy_b", "toy_c"}
    assert bench.run("source_only", pairs="elsewhere:toy_b", **given).scores()
    with pytest.raises(UsageError, match="no domain 'elsewhere'"):
        bench.plan("source_only", pairs="toy_a:elsewhere", **given)


def test_the_area_prior_comes_with_the_masks_or_the_cell_says_what_lacks(
    bench: Any, tiny_file: Path
) -> None:
    with_masks = bench.plan("source_only", source_models=(("toy_a", str(tiny_file)),))
    prior = read_json(with_masks.sources[0].folder / "aux" / "area_prior.json")
    assert 0 < prior["cup"]["mean"] < prior["disc"]["mean"] < 1
    assert with_masks.sources[0].lacking == ()
    needy = next(name for name in _unlabelled() if "area_prior" in _requires(name))
    blind = {"source_models": (("elsewhere", str(tiny_file)),)}
    plan = bench.plan(needy, pairs="elsewhere:toy_b", **blind)
    assert plan.cells[0].state == "blocked"
    assert "has no area_prior" in plan.cells[0].reason


def _unlabelled() -> list[str]:
    from sfuda_bench.methods import METHODS

    return [name for name in METHODS.names() if not METHODS.get(name).oracle]


def _requires(name: str) -> Any:
    from sfuda_bench.methods import METHODS

    return METHODS.get(name).requires


def test_several_source_seeds_are_refused(bench: Any, tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="--source-seeds asks for more"):
        bench.plan("source_only", source_models=(("toy_a", str(tiny_file)),), source_seeds=(0, 1))


def test_masks_are_found_where_a_domain_has_them(bench: Any) -> None:
    store = Store.open(bench.out)
    masks = train_masks(bench.data, "toy_a", 96, store)
    assert masks is not None and len(masks) == 8
    assert train_masks(bench.data, "elsewhere", 96, store) is None
    assert train_masks(None, "toy_a", 96, store) is None

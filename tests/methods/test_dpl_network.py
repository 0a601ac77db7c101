"""Every method runs on the network of the released code; none is named here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfuda_bench.methods import METHODS
from sfuda_bench.networks.registry import NETWORKS

NAMES = [name for name in METHODS.names() if not METHODS.get(name).oracle]
NETWORK = ("network.name=dpl_deeplabv3plus",)


@pytest.fixture(scope="module")
def on_dpl(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that runs a method from one given source model of that network."""
    torch.manual_seed(2)
    network = NETWORKS.get("dpl_deeplabv3plus").build("mobilenet_v2", None)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    folder = tmp_path_factory.mktemp("dpl")
    save_file(network.state_dict(), folder / "source.safetensors")
    bench = copy_bench(trained, folder)
    given = (("toy_a", str(folder / "source.safetensors")),)

    def run(method: str, *overrides: str) -> Any:
        return bench.run(method, overrides=[*NETWORK, *overrides], source_models=given)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_adapts_the_network_of_the_released_code(on_dpl: Any, name: str) -> None:
    outcome = on_dpl(name)
    changed = outcome.sha != outcome.source_sha
    assert changed == bool(METHODS.get(name).updates)
    state = load_file(Path(outcome.folder) / "model.safetensors")
    assert all(value.isfinite().all() for value in state.values())
    assert outcome.scores()


def test_the_evaluation_of_the_released_dpl_code_repeats(on_dpl: Any) -> None:
    """Dropout at prediction draws from the cell's own stream: equal cells, equal predictions."""
    mode = (
        "inference.batch_norm=per_image",
        "inference.dropout=true",
        "inference.pooling_bn=false",
    )
    first = on_dpl("source_only", *mode)
    codes = first.codes()
    shutil.rmtree(first.folder)
    again = on_dpl("source_only", *mode)
    assert again.folder == first.folder
    assert all((codes[name] == again.codes()[name]).all() for name in codes)
    plain = on_dpl("source_only")
    assert plain.folder != first.folder
    assert any((codes[name] != plain.codes()[name]).any() for name in codes)


@pytest.mark.parametrize("method", ["dpl", "cpr"])
def test_a_prepared_decoder_is_a_setting_of_the_dropout_passes(bench: Any, method: str) -> None:
    bench.run(method, overrides=[f"{method}.mc_decoder=prepared"])
    (meta,) = bench.out.glob("artefacts/initial_labels/*/meta.json")
    assert json.loads(meta.read_text("utf-8"))["parameters"]["decoder"] == "prepared"

"""What is computed on a GPU is what a CPU computes, up to the rounding of float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfuda_bench.blocks.context_similarity import grid_labels, pair_index, similarity_loss
from sfuda_bench.blocks.pseudo_labels import mc_dropout_statistics
from sfuda_bench.blocks.refinement import refine
from sfuda_bench.cli import main
from sfuda_bench.running.sources import build_network
from sfuda_bench.settings import NetworkSettings

DEVICE = "cuda"
SIZE, CHANNELS, RADIUS = 24, 16, 3

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


def on_both(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a function of tensors gives on the CPU and on the GPU."""
    there = function(*(tensor.to(DEVICE) for tensor in tensors))
    assert there.device.type == DEVICE
    return function(*tensors), there.cpu()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("border", ["official", "full"])
def test_refinement_of_a_batch(border: Any) -> None:
    here, there = on_both(
        lambda prob, features: refine(prob, features, radius=RADIUS, iterations=8, border=border),
        drawn(3, 2, SIZE, SIZE),
        drawn(3, 2, CHANNELS, SIZE, SIZE, seed=1),
    )
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)


def test_the_similarity_loss_and_its_gradient() -> None:
    label = (drawn(2, 2, 8 * SIZE, 8 * SIZE) > 0.5).to(torch.uint8)
    reliable = drawn(2, 2, 8 * SIZE, 8 * SIZE, seed=1) > 0.2

    def gradient(features: Tensor, label: Tensor, reliable: Tensor) -> Tensor:
        features = features.clone().requires_grad_()
        pairs = pair_index(SIZE, SIZE, RADIUS)
        labels = grid_labels(label, reliable, (SIZE, SIZE))
        loss = similarity_loss(features, labels, pairs)
        loss.backward()
        assert features.grad is not None
        return torch.cat([loss.detach()[None], features.grad.flatten()])

    here, there = on_both(gradient, drawn(2, 2, CHANNELS, SIZE, SIZE, seed=2), label, reliable)
    torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


def test_dropout_passes_repeat_and_agree_with_those_of_the_cpu() -> None:
    """Other generators draw other masks: the means agree as closely as many passes allow."""
    network: Any = build_network(NetworkSettings(name="deeplabv3plus", encoder_weights="none"))
    network.eval()
    image = drawn(2, 3, 64, 64) * 2 - 1
    here = mc_dropout_statistics(network, image, passes=100)
    network.to(DEVICE)
    twice = []
    for _ in range(2):
        torch.manual_seed(0)
        twice.append(mc_dropout_statistics(network, image.to(DEVICE), passes=100))
    assert torch.equal(twice[0].prob, twice[1].prob)
    assert torch.equal(twice[0].uncertainty, twice[1].uncertainty)
    torch.testing.assert_close(twice[0].prob.cpu(), here.prob, rtol=0, atol=0.02)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cells_are_computed_scored_and_say_where(
    bench: Any, tmp_path: Path, precision: str
) -> None:
    settings = [word for setting in bench.base for word in ("--set", setting)]
    plugin = Path(__file__).parents[1] / "plugins" / "tiny.py"
    out = tmp_path / "store"
    code = main([
        "run", "--methods", "source_only,entropy_min,dpl,cpr,cpr_cbam", "--pairs", "toy_a:toy_b",
        "--data-root", str(bench.data), "--plugin", str(plugin), "--preset", "small", *settings,
        "--device", DEVICE, "--precision", precision, "--out", str(out),
    ])  # fmt: skip
    assert code == 0
    records = list(out.glob("cells/*/*/*/run.json"))
    assert len(records) == 5
    for record in records:
        assert json.loads(record.read_text())["device"].startswith(DEVICE)
        assert list(record.parent.glob("scores-*.json"))

"""How many images pass through a network, seen by hooks that change nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.counting import count_images


@pytest.fixture
def network(plugin_folder: Path) -> Iterator[Any]:
    load_plugin_file(plugin_folder / "tiny.py")
    torch.manual_seed(0)
    yield NETWORKS.get("tiny").build("", None)


def image(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_a_pass_without_gradients_counts_forwards_only(network: Any) -> None:
    count = count_images(network)
    with torch.no_grad():
        network(image(3))
    network(image(2))  # a graph that nobody walks back
    assert (count.forward, count.backward) == (5, 0)


def test_dropout_samples_behind_one_encoding_count_as_one_pass(network: Any) -> None:
    count = count_images(network)
    with torch.no_grad():
        encoded = network.encode(image(3))
        for _ in range(4):
            network.decode(network.context(encoded), encoded)
    assert count.forward == 3


@pytest.mark.parametrize("trained", ["all", "batch norm"])
def test_training_counts_gradients_even_behind_frozen_layers(network: Any, trained: str) -> None:
    count = count_images(network)
    if trained == "batch norm":
        network.requires_grad_(False)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.requires_grad_(True)
    network(image(4)).mean().backward()
    assert (count.forward, count.backward) == (4, 4)


def test_copies_count_with_the_original_and_a_pause_counts_nothing(network: Any) -> None:
    count = count_images(network)
    other = copy.deepcopy(network)
    other(image(2)).mean().backward()
    with count.paused():
        network(image(7)).mean().backward()
    before = count.copy()
    other(image(2))
    assert (count.forward, count.backward) == (4, 2)
    assert count.since(before) == {"forward_images": 2, "backward_images": 0}


def test_counting_changes_no_gradient_and_no_state(network: Any) -> None:
    counted = copy.deepcopy(network)
    count_images(counted)
    for one in (network, counted):
        one.eval()(image(2)).mean().backward()
    assert counted.state_dict().keys() == network.state_dict().keys()
    for ours, theirs in zip(counted.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)

"""Inference modes: what each switches, and that a prediction leaves no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sfuda_bench.errors import UsageError
from sfuda_bench.images.resident import normalise
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.running.predict import codes_of, predict
from sfuda_bench.settings import Inference, resolve

DPL_2021 = Inference(batch_norm="per_image", dropout=True, pooling_bn=False)


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(0)
    network = NETWORKS.get("dpl_deeplabv3plus").build("mobilenet_v2", None)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return network.train()


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 96, 96), generator=generator, dtype=torch.uint8)


def codes(network: Any, images: Tensor, inference: Inference, seed: int = 0) -> Any:
    return predict(network, images, inference, "float32", seed)


@pytest.mark.parametrize("inference", [Inference(), DPL_2021])
def test_a_prediction_leaves_modes_buffers_and_random_state(
    network: Any, images: Tensor, inference: Inference
) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    codes(network, images, inference)
    assert torch.equal(state, torch.get_rng_state())
    assert [module.training for module in network.modules()] == modes
    assert network.pooling_bn is True
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_dropout_repeats_with_the_seed_and_differs_without(network: Any, images: Tensor) -> None:
    inference = Inference(dropout=True)
    torch.manual_seed(1)
    first = codes(network, images, inference, seed=4)
    torch.manual_seed(2)
    assert np.array_equal(first, codes(network, images, inference, seed=4))
    assert not np.array_equal(first, codes(network, images, inference, seed=5))
    plain = codes(network, images, Inference(), seed=4)
    assert np.array_equal(plain, codes(network, images, Inference(), seed=5))


@torch.no_grad()
def test_the_dpl_mode_is_train_mode_on_single_images_without_the_pooling_norm(
    network: Any, images: Tensor
) -> None:
    """The released evaluation, repeated on a copy with the pooling norm replaced."""
    actual = codes(network, images, DPL_2021, seed=9)
    copy: Any = NETWORKS.get("dpl_deeplabv3plus").build("mobilenet_v2", None)
    copy.load_state_dict(network.state_dict())
    copy.aspp.global_avg_pool[2] = nn.Identity()
    copy.train()
    torch.manual_seed(9)
    logits = torch.cat([copy(normalise(image[None])) for image in images])
    difference = np.abs(actual.astype(int) - codes_of(logits).astype(int))
    assert difference.max() <= 1


def test_per_image_statistics_do_not_depend_on_the_other_images(
    network: Any, images: Tensor
) -> None:
    inference = Inference(batch_norm="per_image")
    assert np.array_equal(
        codes(network, images, inference)[1:2], codes(network, images[1:2], inference)
    )


def test_each_switch_changes_the_prediction(network: Any, images: Tensor) -> None:
    modes = [
        Inference(),
        Inference(batch_norm="per_image"),
        Inference(dropout=True),
        Inference(pooling_bn=False),
        DPL_2021,
    ]
    found = {codes(network, images, mode).tobytes() for mode in modes}
    assert len(found) == len(modes)


def test_a_network_without_the_switch_is_refused(images: Tensor) -> None:
    network = NETWORKS.get("deeplabv3plus").build("mobilenet_v2", None)
    with pytest.raises(UsageError, match="pooling_bn = false"):
        codes(network, images, Inference(pooling_bn=False))


def test_settings_refuse_what_the_network_cannot_do() -> None:
    with pytest.raises(UsageError, match="'deeplabv3plus' has no such switch"):
        resolve("small", overrides=["inference.pooling_bn=false"])
    dpl = ["network.name=dpl_deeplabv3plus"]
    assert not resolve("small", overrides=[*dpl, "inference.pooling_bn=false"]).inference.pooling_bn
    with pytest.raises(UsageError, match="has only mobilenet_v2"):
        resolve("small", overrides=[*dpl, "network.encoder=resnet18"])

"""The network of the released DPL and CPR code, checked against a forward written from the text."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import (
    avg_pool2d,
    batch_norm,
    conv2d,
    dropout,
    interpolate,
    pad,
    relu,
    relu6,
)

from sfuda_bench.errors import DataError, EnvironmentProblem, UsageError
from sfuda_bench.networks import encoder_weights
from sfuda_bench.networks.batch_norm import dropout_layers, use_batch_statistics
from sfuda_bench.networks.dpl_deeplabv3plus import DplDeepLabV3Plus, build
from sfuda_bench.networks.similarity_head import SimilarityHead


def _some(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer


def randomised(seed: int = 0) -> DplDeepLabV3Plus:
    """Return a network whose batch norms all do something."""
    torch.manual_seed(seed)
    network = build()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(_some(module.running_mean), 0, 0.1)
            nn.init.uniform_(_some(module.running_var), 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    return network


@pytest.fixture(scope="module")
def network() -> DplDeepLabV3Plus:
    return randomised().eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_parameter_counts_are_those_of_the_released_network(network: Any) -> None:
    """O14."""
    assert parameters(network) == 5_812_135
    assert parameters(network.backbone) == 1_811_712
    assert parameters(network.aspp) == 2_706_432
    assert parameters(network.decoder) == 1_293_991
    assert parameters(network.decoder.last_conv_boundary) == 1_291_521
    assert parameters(network) + parameters(SimilarityHead()) == 5_944_231


@torch.no_grad()
@pytest.mark.parametrize("size", [256, 512])
def test_every_map_has_the_shape_of_the_table(network: Any, size: int) -> None:
    shapes = {}
    parts = {
        "stem": network.backbone.features[0],
        "low": network.backbone.features[3],
        "high": network.backbone.features[17],
        "aspp": network.aspp,
        "boundary": network.decoder.last_conv_boundary[8],
        "mask": network.decoder.last_conv[3],
    }
    hooks = [
        part.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
        for name, part in parts.items()
    ]
    encoded = network.encode(torch.zeros(1, 3, size, size))
    context = network.context(encoded)
    logits, feature = network.decode(context, encoded)
    for hook in hooks:
        hook.remove()
    half, fourth, sixteenth = ((size // k, size // k) for k in (2, 4, 16))
    assert shapes == {
        "stem": (32, *half),
        "low": (24, *fourth),
        "high": (320, *sixteenth),
        "aspp": (256, *sixteenth),
        "boundary": (1, *fourth),
        "mask": (2, *fourth),
    }
    assert encoded.context.shape == context.shape == (1, 256, *sixteenth)
    assert encoded.high is not None and encoded.high.shape == (1, 320, *sixteenth)
    assert encoded.low.shape == (1, 48, *fourth)
    assert feature.shape == (1, 305, *fourth)
    assert logits.shape == (1, 2, size, size)
    assert encoded.size == (size, size)


def test_the_last_block_alone_is_dilated(network: Any) -> None:
    """O14: the blocks of 160 channels lose their stride and get no dilation for it."""
    dilations = {
        position: {m.dilation[0] for m in block.modules() if isinstance(m, nn.Conv2d)}
        for position, block in enumerate(network.backbone.features)
    }
    assert [k for k, found in dilations.items() if found != {1}] == [17]
    assert dilations[17] == {1, 2}
    strides = [m.stride[0] for m in network.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert strides.count(2) == 4 and set(strides) == {1, 2}


def test_the_state_dict_has_the_released_names(network: Any) -> None:
    names = list(network.state_dict())
    backbone = [name for name in names if name.startswith("backbone.")]
    assert len(backbone) == 306
    assert all(re.match(r"backbone\.features\.\d+\.", name) for name in backbone)
    assert len([name for name in backbone if int(name.split(".")[2]) < 4]) == 54
    layers = {name.rpartition(".")[0] for name in names if not name.startswith("backbone.")}
    assert layers == {
        *(f"aspp.aspp{k}.{part}" for k in (1, 2, 3, 4) for part in ("atrous_conv", "bn")),
        *(f"aspp.{part}" for part in ("global_avg_pool.1", "global_avg_pool.2", "conv1", "bn1")),
        *(f"decoder.{part}" for part in ("conv1", "bn1", "last_conv.0", "last_conv.3")),
        *(f"decoder.last_conv_boundary.{k}" for k in (0, 1, 4, 5, 8)),
    }


def _norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return batch_norm(x, mean, var, weight, bias, training=False, eps=1e-5)


def _block(state: dict[str, Tensor], number: int, x: Tensor, stride: int, dilation: int) -> Tensor:
    """An inverted residual: what lies beyond the border is ReLU6(BN(0)) for the 3x3 convolution."""
    name, y, first = f"backbone.features.{number}.conv", x, 0
    beyond = torch.zeros(1, x.shape[1], 1, 1)
    if number > 1:
        expand = state[f"{name}.0.weight"]
        y = relu6(_norm(state, f"{name}.1", conv2d(y, expand)))
        beyond = relu6(_norm(state, f"{name}.1", torch.zeros(1, expand.shape[0], 1, 1)))
        first = 3
    height, width = y.shape[-2:]
    framed = beyond.expand(y.shape[0], -1, height + 2 * dilation, width + 2 * dilation).clone()
    framed[:, :, dilation : dilation + height, dilation : dilation + width] = y
    weight = state[f"{name}.{first}.weight"]
    y = conv2d(framed, weight, stride=stride, dilation=dilation, groups=weight.shape[0])
    y = relu6(_norm(state, f"{name}.{first + 1}", y))
    y = _norm(state, f"{name}.{first + 4}", conv2d(y, state[f"{name}.{first + 3}.weight"]))
    return x + y if stride == 1 and x.shape == y.shape else y


def _up(x: Tensor, size: Any) -> Tensor:
    return interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def _encode(state: dict[str, Tensor], image: Tensor, pooling_bn: bool = True) -> Any:
    x = conv2d(image, state["backbone.features.0.0.weight"], stride=2, padding=1)
    x = relu6(_norm(state, "backbone.features.0.1", x))
    for number in range(1, 18):
        stride = 2 if number in (2, 4, 7) else 1
        x = _block(state, number, x, stride, 2 if number == 17 else 1)
        if number == 3:
            low = x
    branches = []
    for number, rate in zip((1, 2, 3, 4), (0, 6, 12, 18), strict=True):
        weight = state[f"aspp.aspp{number}.atrous_conv.weight"]
        y = conv2d(x, weight, padding=rate, dilation=max(1, rate))
        branches.append(relu(_norm(state, f"aspp.aspp{number}.bn", y)))
    pooled = conv2d(avg_pool2d(x, x.shape[-2:]), state["aspp.global_avg_pool.1.weight"])
    if pooling_bn:
        pooled = _norm(state, "aspp.global_avg_pool.2", pooled)
    branches.append(_up(relu(pooled), x.shape[-2:]))
    x = conv2d(torch.cat(branches, 1), state["aspp.conv1.weight"])
    return relu(_norm(state, "aspp.bn1", x)), low


def _reference(
    state: dict[str, Tensor], image: Tensor, train: bool, pooling_bn: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits and feature with running statistics; ``train`` switches the four dropouts."""
    context, low = _encode(state, image, pooling_bn)
    context = dropout(context, 0.5, train)
    low = relu(_norm(state, "decoder.bn1", conv2d(low, state["decoder.conv1.weight"])))
    merged = torch.cat([_up(context, low.shape[-2:]), low], 1)
    name = "decoder.last_conv_boundary"
    y = conv2d(merged, state[f"{name}.0.weight"], padding=1)
    y = dropout(relu(_norm(state, f"{name}.1", y)), 0.5, train)
    y = conv2d(y, state[f"{name}.4.weight"], padding=1)
    y = dropout(relu(_norm(state, f"{name}.5", y)), 0.1, train)
    boundary = conv2d(y, state[f"{name}.8.weight"], state[f"{name}.8.bias"])
    feature = torch.cat([merged, boundary], 1)
    y = dropout(relu(_norm(state, "decoder.last_conv.0", feature)), 0.1, train)
    y = conv2d(y, state["decoder.last_conv.3.weight"], state["decoder.last_conv.3.bias"])
    return _up(y, image.shape[-2:]), feature


def sampling(network: DplDeepLabV3Plus, on: bool) -> None:
    network.eval()
    for module in network.sampled_dropout():
        module.train(on)


@torch.no_grad()
@pytest.mark.parametrize("dropout_on", [False, True])
def test_the_network_is_the_one_of_the_text_and_draws_in_its_order(
    network: Any, image: Tensor, dropout_on: bool
) -> None:
    sampling(network, dropout_on)
    torch.manual_seed(7)
    encoded = network.encode(image)
    logits, feature = network.decode(network.context(encoded), encoded)
    drawn = torch.get_rng_state()
    torch.manual_seed(7)
    expected_logits, expected_feature = _reference(network.state_dict(), image, dropout_on)
    assert torch.equal(drawn, torch.get_rng_state())
    torch.testing.assert_close(logits, expected_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(feature, expected_feature, rtol=1e-4, atol=1e-4)
    sampling(network, False)


@torch.no_grad()
def test_padding_after_the_expansion_would_be_another_network(network: Any) -> None:
    block = network.backbone.features[3]
    x = torch.randn(1, 24, 8, 8)
    expand, depthwise = block.conv[:3], block.conv[3:]
    other = x + depthwise(pad(expand(x), [1] * 4))
    difference = (block(x) - other).abs().amax(dim=(0, 1))
    assert difference[1:-1, 1:-1].max() < 1e-5
    assert difference[0].min() > 1e-4


@pytest.mark.parametrize("train", [True, False])
def test_forward_is_the_tap_sequence_in_bits_and_draws_with_and_without_gradients(
    network: Any, image: Tensor, train: bool
) -> None:
    outputs, draws = [], []
    for gradients in (True, False):
        for whole in (True, False):
            model = randomised().train(train)
            torch.manual_seed(3)
            with torch.set_grad_enabled(gradients):
                if whole:
                    outputs.append(model(image))
                else:
                    encoded = model.encode(image)
                    outputs.append(model.decode(model.context(encoded), encoded)[0])
            draws.append(torch.get_rng_state())
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert all(torch.equal(draws[0], other) for other in draws)


def test_every_parameter_gets_a_gradient(image: Tensor) -> None:
    model = randomised().train()
    model(image).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_all_dropout_is_sampled_and_listed_in_drawing_order(network: Any) -> None:
    assert set(network.sampled_dropout()) == set(dropout_layers(network).values())
    assert [module.p for module in network.sampled_dropout()] == [0.5, 0.5, 0.1, 0.1]


def test_one_image_in_train_mode_is_refused(network: Any, image: Tensor) -> None:
    """O14; batch statistics with a floor, and the network without its pooling norm, allow it."""
    with pytest.raises(UsageError, match="batch of one image cannot be normalised in train mode"):
        build().train()(image[:1])
    with torch.no_grad(), use_batch_statistics(network, min_samples=8) as override:
        assert network(image[:1]).isfinite().all()
    assert override.kept_source == ("aspp.global_avg_pool.2",)
    without = build().train()
    without.pooling_bn = False
    assert without(image[:1]).isfinite().all()


def test_train_mode_moves_every_statistic_and_eval_mode_none(image: Tensor) -> None:
    for train in (True, False):
        model = build().train(train)
        before = {name: value.clone() for name, value in model.named_buffers()}
        with torch.no_grad():
            model(image)
        moved = {n for n, value in model.named_buffers() if not torch.equal(value, before[n])}
        assert moved == (set(before) if train else set())
    # With the four of the similarity head these are the 126 that the released stage 2 moves.
    assert len([name for name in before if "running" in name]) == 126 - 4


@torch.no_grad()
def test_the_pooling_branch_without_its_norm_is_the_one_of_the_text(
    network: Any, image: Tensor
) -> None:
    with_norm = network(image)
    network.pooling_bn = False
    without = network(image)
    network.pooling_bn = True
    expected = _reference(network.state_dict(), image, train=False, pooling_bn=False)[0]
    torch.testing.assert_close(without, expected, rtol=1e-4, atol=1e-4)
    assert (with_norm - without).abs().max() > 1e-3
    assert torch.equal(network(image), with_norm)


@torch.no_grad()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_prepared_decoder_differs_by_rounding_and_draws_the_same(
    image: Tensor, layout: torch.memory_format
) -> None:
    network = randomised().to(memory_format=layout)
    sampling(network, True)
    encoded = network.encode(image)
    prepared = network.repeated_decoder(encoded)
    results, draws = [], []
    for decode in (lambda context: network.decode(context, encoded), prepared):
        torch.manual_seed(11)
        results.append([decode(network.context(encoded)) for _ in range(3)])
        draws.append(torch.get_rng_state())
    assert torch.equal(*draws)
    for plain, fast in zip(*results, strict=True):
        for expected, actual in zip(plain, fast, strict=True):
            scale = expected.abs().max()
            assert (actual - expected).abs().max() < 1e-5 * scale
    assert not torch.equal(results[0][0][0], results[0][1][0])


def test_another_encoder_is_refused() -> None:
    with pytest.raises(UsageError, match="its only one is mobilenet_v2"):
        build("resnet18")


def torchvision_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the backbone's tensors as torchvision names them: each step of a block nested."""
    first = {0: "0.0", 1: "0.1", 3: "1", 4: "2"}
    others = {0: "0.0", 1: "0.1", 3: "1.0", 4: "1.1", 6: "2", 7: "3"}
    nested = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[2] == "conv":
            parts[3] = (first if parts[1] == "1" else others)[int(parts[3])]
        nested[".".join(parts)] = value
    extra = {
        "features.18.0.weight": torch.zeros(1280, 320, 1, 1),
        "classifier.1.bias": torch.ones(9),
    }
    return {**nested, **extra}


@pytest.mark.parametrize("layout", ["own", "torchvision"])
def test_encoder_weights_come_from_a_file_in_either_layout(
    network: Any, tmp_path: Any, layout: str
) -> None:
    own = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    state = own if layout == "own" else torchvision_names(own)
    save_file(state, tmp_path / "encoder.safetensors")
    loaded = build(encoder_weights=tmp_path / "encoder.safetensors")
    assert all(torch.equal(loaded.backbone.state_dict()[name], own[name]) for name in own)
    assert not torch.equal(loaded.aspp.conv1.weight, network.aspp.conv1.weight)


def test_torchvisions_own_state_dict_fits() -> None:
    models = pytest.importorskip("torchvision.models")
    state = encoder_weights.flat_mobilenet_keys(models.mobilenet_v2(weights=None).state_dict())
    own = build().backbone.state_dict()
    assert {k for k in state if not k.startswith("classifier.")} == set(own)
    assert all(state[name].shape == own[name].shape for name in own)


def test_imagenet_weights_go_into_the_backbone(
    network: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    save_file(torchvision_names(own), tmp_path / "model.safetensors")
    cached = str(tmp_path / "model.safetensors")
    monkeypatch.setattr(encoder_weights, "try_to_load_from_cache", lambda *a, **k: cached)
    monkeypatch.setattr(encoder_weights, "hf_hub_download", lambda *a, **k: cached)
    loaded = build(encoder_weights="imagenet").backbone.state_dict()
    assert all(torch.equal(loaded[name], own[name]) for name in own)


def test_imagenet_without_a_network_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_weights, "try_to_load_from_cache", lambda *a, **k: None)
    monkeypatch.setattr(encoder_weights, "_reachable", lambda url: False)
    with pytest.raises(EnvironmentProblem, match="mobilenet_v2") as error:
        build(encoder_weights="imagenet")
    assert "--encoder-weights none" in str(error.value.hint)


def test_a_file_of_another_encoder_names_keys_and_shapes(network: Any, tmp_path: Any) -> None:
    state = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    state["surprise.weight"] = state.pop("features.0.0.weight")
    state["features.0.1.bias"] = torch.zeros(3)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(
        DataError, match=r"features\.0\.0\.weight.*surprise\.weight.*\(3,\) instead"
    ):
        build(encoder_weights=tmp_path / "other.safetensors")

import time

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from sfuda_bench.errors import DataError, EnvironmentProblem, UsageError
from sfuda_bench.networks import encoder_weights
from sfuda_bench.networks.batch_norm import (
    batch_norm_layers,
    dropout_layers,
    estimate_statistics,
    use_batch_statistics,
)
from sfuda_bench.networks.deeplabv3plus import build


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build().eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_taps_have_the_documented_shapes(network, image):
    encoded = network.encode(image)
    context = network.context(encoded)
    logits, feature = network.decode(context, encoded)
    assert encoded.size == (64, 64)
    assert encoded.context.shape == context.shape == (2, 256, 4, 4)
    assert encoded.low.shape == (2, 48, 16, 16)
    assert feature.shape == (2, network.feature_channels, 16, 16)
    assert logits.shape == (2, 2, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("train", [True, False])
def test_forward_equals_the_library_network_in_bits_and_random_draws(network, image, train):
    reference = smp.DeepLabV3Plus(
        "mobilenet_v2", encoder_weights=None, classes=2, decoder_atrous_rates=(6, 12, 18)
    )
    reference.load_state_dict(network.state_dict())
    state = {k: v.clone() for k, v in network.state_dict().items()}
    outputs, draws = [], []
    for model in (network.train(train), reference.train(train)):
        torch.manual_seed(7)
        outputs.append(model(image))
        draws.append(torch.get_rng_state())
    network.eval().load_state_dict(state)
    assert torch.equal(*outputs)
    assert torch.equal(*draws)


@torch.no_grad()
def test_the_feature_is_the_input_of_the_last_convolution(network, image):
    encoded = network.encode(image)
    logits, feature = network.decode(network.context(encoded), encoded)
    assert torch.equal(network.segmentation_head(feature), logits)


def test_the_dilations_are_those_of_stride_16(network):
    branches = network.decoder.aspp[0].convs[1:4]
    assert [branch[0][0].dilation[0] for branch in branches] == [6, 12, 18]


def test_the_only_dropout_is_the_sampled_one(network):
    assert list(dropout_layers(network).values()) == network.sampled_dropout()


@torch.no_grad()
def test_context_follows_the_mode_of_the_dropout_alone(network, image):
    encoded = network.encode(image)
    assert torch.equal(network.context(encoded), encoded.context)
    network.sampled_dropout()[0].train()
    dropped = network.context(encoded)
    network.eval()
    assert 0.3 < (dropped == 0).float().mean() < 1
    assert not torch.equal(dropped, encoded.context)


def test_one_image_in_train_mode_is_refused_but_not_under_batch_statistics(network, image):
    with pytest.raises(UsageError, match="batch of one image cannot be normalised in train mode"):
        build().train()(image[:1])
    with torch.no_grad(), use_batch_statistics(network, min_samples=8) as override:
        assert network(image[:1]).isfinite().all()
    assert override.kept_source == ("decoder.aspp.0.convs.4.2",)


def test_re_estimation_finds_all_layers_and_keeps_the_pooling_branch(image):
    network = build()
    report = estimate_statistics(network, [image], min_samples=8)
    assert report.layers == len(batch_norm_layers(network)) > 50
    assert report.kept_source == ("decoder.aspp.0.convs.4.2",)


def test_a_side_not_divisible_by_16_is_refused(network):
    with pytest.raises(UsageError, match="65 x 64") as error:
        network.encode(torch.zeros(1, 3, 65, 64))
    assert error.value.hint == "--image-size 64"


@pytest.mark.parametrize("name", ["mobilenet_v3", "vgg16", "tu-nosuchnet"])
def test_an_encoder_that_cannot_be_built_is_a_usage_error(name):
    with pytest.raises(UsageError, match=name):
        build(name)


def test_an_unknown_encoder_suggests_the_nearest():
    with pytest.raises(UsageError, match=r"did you mean 'mobilenet_v2'\?"):
        build("mobilnet_v2")


@torch.no_grad()
def test_another_encoder_has_the_same_taps(image):
    network = build("resnet18").eval()
    encoded = network.encode(image)
    assert encoded.context.shape == (2, 256, 4, 4)
    assert network(image).shape == (2, 2, 64, 64)


def _encoder_state(network):
    return {k: v.clone() for k, v in network.encoder.state_dict().items()}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_encoder_weights_come_from_a_file(network, tmp_path, suffix):
    path = tmp_path / f"encoder.{suffix}"
    state = {**_encoder_state(network), "classifier.1.bias": torch.zeros(3)}
    if suffix == "pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    torch.manual_seed(99)
    loaded = build(encoder_weights=path).encoder.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in network.encoder.state_dict().items())


def test_a_file_of_another_encoder_names_missing_and_unexpected_keys(network, tmp_path):
    state = _encoder_state(network)
    state["surprise.weight"] = state.pop("features.0.0.weight")
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match=r"missing keys features\.0\.0\.weight.*surprise\.weight"):
        build(encoder_weights=tmp_path / "other.safetensors")


@pytest.mark.parametrize("name", ["broken.safetensors", "broken.pth"])
def test_a_damaged_weights_file_is_a_data_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"not weights")
    with pytest.raises(DataError, match=name):
        build(encoder_weights=tmp_path / name)


def test_a_missing_weights_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        build(encoder_weights=tmp_path / "absent.pth")


def test_imagenet_without_a_network_fails_within_two_seconds(monkeypatch):
    class Silent:
        def head(self, url, timeout):
            time.sleep(10)

    monkeypatch.setattr(encoder_weights, "get_session", Silent)
    monkeypatch.setattr(encoder_weights, "try_to_load_from_cache", lambda *a, **k: None)
    start = time.monotonic()
    with pytest.raises(EnvironmentProblem, match="mobilenet_v2") as error:
        build(encoder_weights="imagenet")
    assert time.monotonic() - start < 2
    assert "--encoder-weights none" in error.value.hint


def test_an_encoder_without_imagenet_weights_is_a_usage_error(monkeypatch):
    with pytest.raises(UsageError, match="no weights 'noisy'"):
        encoder_weights.require_pretrained("mobilenet_v2", "noisy")

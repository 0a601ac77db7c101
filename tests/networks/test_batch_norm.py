import copy

import pytest
import torch
from torch import nn

from sfuda_bench.blocks.entropy import binary_entropy
from sfuda_bench.errors import UsageError
from sfuda_bench.networks.batch_norm import (
    batch_norm_depth,
    batch_norm_layers,
    dropout_layers,
    enable_dropout,
    estimate_statistics,
    freeze_batch_norm,
    mixed_statistics,
    prior_alpha,
    scale_and_shift,
    train_batch_norm_only,
    use_batch_statistics,
)


class SynchronizedBatchNorm2d(nn.modules.batchnorm._BatchNorm):
    """A batch norm that is no ``BatchNorm2d``, as some networks use."""

    def _check_input_dim(self, x):
        pass


class Tiny(nn.Module):
    """Convolutions without padding, a pooled branch beside them, dropout before the last layer."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), norm(6), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(6, 6, 3, bias=False), norm(6), nn.ReLU())
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), norm(4), nn.ReLU())
        self.last = nn.Sequential(norm(10), nn.Dropout(0.5), nn.Conv2d(10, 2, 1))

    def forward(self, image):
        x = self.stem(image)
        x, pooled = self.body(x), self.pool(x)
        return self.last(torch.cat([x, pooled.expand(-1, -1, *x.shape[-2:])], dim=1))


def _network(norm=nn.BatchNorm2d, dtype=torch.float64):
    torch.manual_seed(0)
    network = Tiny(norm).to(dtype)
    for layer in batch_norm_layers(network).values():
        layer.running_mean.normal_(0, 0.3)
        layer.running_var.uniform_(0.5, 2)
        nn.init.normal_(layer.weight, 1, 0.2)
        nn.init.normal_(layer.bias, 0, 0.2)
    return network.train()


def _images(count=12, dtype=torch.float64):
    return torch.rand(count, 3, 10, 10, generator=torch.Generator().manual_seed(1), dtype=dtype)


def _state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _changed(before, model):
    return {name for name, value in model.state_dict().items() if not value.equal(before[name])}


def _estimated(images, size, estimator, network=None, **kwargs):
    network = network or _network()
    report = estimate_statistics(network, lambda: images.split(size), estimator, **kwargs)
    return network, report


@torch.no_grad()
def _with_batch(network, images, **kwargs):
    with use_batch_statistics(network, **kwargs):
        return network(images)


# Finding and freezing


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, SynchronizedBatchNorm2d, nn.SyncBatchNorm])
def test_layers_are_found_for_every_subclass(norm):
    assert list(batch_norm_layers(Tiny(norm))) == ["stem.1", "body.1", "pool.2", "last.0"]


def test_a_network_without_batch_norm_is_an_error():
    for function in (batch_norm_layers, scale_and_shift, freeze_batch_norm):
        with pytest.raises(UsageError, match="no batch-norm layer"):
            function(nn.Conv2d(3, 2, 1))


def test_only_scale_and_shift_are_trainable_two_per_layer():
    network = _network()
    parameters = train_batch_norm_only(network)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    names = batch_norm_layers(network)
    assert trainable == {f"{name}.{kind}" for name in names for kind in ("weight", "bias")}
    assert len(parameters) == 2 * len(names)
    assert not any(module.training for module in network.modules())


def test_enable_dropout_trains_dropout_only():
    network = _network()
    enable_dropout(network)
    training = {name for name, module in network.named_modules() if module.training}
    assert training == set(dropout_layers(network)) == {"last.1"}


def test_frozen_batch_norm_keeps_its_statistics_in_a_train_mode_forward():
    network = _network()
    before = _state(network)
    freeze_batch_norm(network)
    network(_images())
    assert not _changed(before, network)


# Normalising by the batch


def test_batch_statistics_normalise_by_the_biased_moments_of_the_batch():
    norm = nn.Sequential(nn.BatchNorm2d(3).double())
    x = _images()
    with use_batch_statistics(norm):
        actual = norm(x)
    mean = x.mean((0, 2, 3), keepdim=True)
    var = x.var((0, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(actual, (x - mean) / (var + 1e-5).sqrt())


def test_overrides_leave_buffers_counters_and_modes_untouched():
    network = _network()
    network.stem.eval()
    before, modes = _state(network), [m.training for m in network.modules()]
    for override in (use_batch_statistics, lambda model: mixed_statistics(model, 0.5)):
        with override(network):
            network(_images())
        assert not _changed(before, network)
        assert [m.training for m in network.modules()] == modes
        assert all(layer.track_running_stats for layer in batch_norm_layers(network).values())
        assert not any(m._forward_pre_hooks for m in network.modules())


def test_an_override_ends_when_its_block_fails():
    network = _network()
    with pytest.raises(RuntimeError), use_batch_statistics(network):
        network(torch.zeros(1, 5, 4, 4).double())
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, SynchronizedBatchNorm2d])
def test_one_image_works_and_the_pooled_branch_is_listed(norm):
    network = _network(norm)
    with use_batch_statistics(network, min_samples=32) as override:
        assert network(_images(1)).isfinite().all()
        assert override.kept_source == ("pool.2",)


def test_overrides_do_not_nest():
    network = _network()
    with use_batch_statistics(network), pytest.raises(RuntimeError, match="already overridden"):
        mixed_statistics(network, 0.5)
    use_batch_statistics(network).remove()


def test_dropout_is_off_under_overrides():
    network = _network()
    with use_batch_statistics(network):
        assert torch.equal(network(_images()), network(_images()))


def test_gradients_flow_through_the_moments_of_the_batch():
    network = _network()
    images = _images().requires_grad_()
    plain = copy.deepcopy(network).train()
    plain.last[1].eval()
    (expected,) = torch.autograd.grad(binary_entropy(plain(images)).mean(), images)
    with use_batch_statistics(network, min_samples=2):
        (actual,) = torch.autograd.grad(binary_entropy(network(images)).mean(), images)
    torch.testing.assert_close(actual, expected)
    with mixed_statistics(network, 1.0, min_samples=2):
        (mixed,) = torch.autograd.grad(binary_entropy(network(images)).mean(), images)
    torch.testing.assert_close(mixed, expected)


def test_one_small_entropy_step_lowers_the_entropy_of_its_batch():
    network = _network()
    parameters = train_batch_norm_only(network)
    with use_batch_statistics(network):
        entropy = binary_entropy(network(_images())).mean()
        for parameter, grad in zip(
            parameters, torch.autograd.grad(entropy, parameters), strict=True
        ):
            parameter.data -= 1e-3 * grad
        assert binary_entropy(network(_images())).mean() < entropy


# Mixing


def test_alpha_zero_is_the_source_and_alpha_one_is_the_batch():
    network, images = _network().eval(), _images()
    with mixed_statistics(network, 0.0):
        assert torch.equal(network(images), _network().eval()(images))
    with mixed_statistics(network, 1.0):
        mixed = network(images)
    torch.testing.assert_close(mixed, _with_batch(network, images))


@pytest.mark.parametrize(("mixture", "variance"), [(False, 2.5), (True, 27.5)])
def test_mixed_moments_have_golden_values(mixture, variance):
    norm = nn.BatchNorm1d(1).double()
    norm.running_var.fill_(4)
    x = torch.tensor([9.0, 11.0] * 8).double()[:, None]  # mean 10, variance 1; source 0 and 4
    with mixed_statistics(norm, 0.5, min_samples=2, mixture_variance=mixture):
        actual = norm(x)
    torch.testing.assert_close(actual, (x - 5) / (variance + 1e-5) ** 0.5)


@pytest.mark.parametrize(("images", "weight"), [(1, 0.941176), (4, 0.8), (8, 0.666667), (64, 0.2)])
def test_the_prior_of_16_images_has_golden_source_weights(images, weight):
    assert 1 - prior_alpha(16, images) == pytest.approx(weight, abs=1e-6)


# Estimating


class _Identity(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1).double()

    def forward(self, x):
        return self.norm(x)


def _toy(estimator, **kwargs):
    """Statistics from the batches {0, 2} and {10, 12}."""
    model = _Identity()
    batches = [torch.tensor(b, dtype=torch.float64)[:, None] for b in ([0, 2], [10, 12])]
    estimate_statistics(model, lambda: batches, estimator, min_samples=2, **kwargs)
    return model.norm.running_mean.item(), model.norm.running_var.item()


def test_pooling_two_batches_has_golden_moments():
    assert _toy("onepass_pooled") == pytest.approx((6, 26))
    assert _toy("exact") == pytest.approx((6, 26))
    assert _toy("cma") == pytest.approx((6, 2))
    assert _toy("ema", momentum=0.5) == pytest.approx((0.25 * 0 + 0.25 * 1 + 0.5 * 11, 1.75))


def test_pooling_weights_a_short_batch_by_its_samples():
    x = torch.arange(10.0).double()[:, None] ** 2
    model = _Identity()
    estimate_statistics(model, x.split([7, 3]), min_samples=2)
    assert model.norm.running_mean.item() == pytest.approx(x.mean().item())
    assert model.norm.running_var.item() == pytest.approx(x.var(correction=0).item())


def test_ema_equals_a_train_mode_epoch_and_forgets_the_source_geometrically():
    network, plain = _network(), _network()
    plain.last[1].eval()
    with torch.no_grad():
        for batch in _images().split(4):
            plain(batch)
    estimate_statistics(network, _images().split(4), "ema", min_samples=2)
    for name, buffer in network.named_buffers():
        if "num_batches" not in name:
            torch.testing.assert_close(buffer, dict(plain.named_buffers())[name])
    model = _Identity()
    model.norm.running_mean.fill_(1)
    estimate_statistics(model, [torch.zeros(4, 1).double()] * 14, "ema", min_samples=2)
    assert model.norm.running_mean.item() == pytest.approx(0.9**14)


def test_the_depth_is_counted_on_the_longest_path():
    assert batch_norm_depth(_network(), _images(2)) == 3


@pytest.mark.parametrize("size", [1, 5, 12])
def test_exact_is_independent_of_batch_size_and_order(size):
    reference, report = _estimated(_images(), 4, "exact", min_samples=2)
    assert report.passes == 3
    other, _ = _estimated(_images().flip(0), size, "exact", min_samples=2)
    for one, two in zip(reference.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_exact_is_idempotent_and_stopping_early_is_not_exact():
    network, _ = _estimated(_images(), 4, "exact", min_samples=2)
    before = _state(network)
    _estimated(_images(), 4, "exact", network=network, min_samples=2)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=1e-12, rtol=0)
    early, _ = _estimated(_images(), 4, "exact", min_samples=2, passes=2)
    assert (early.last[0].running_mean - network.last[0].running_mean).abs().max() > 1e-3


def test_exact_equals_one_full_batch_and_pooling_over_one_batch():
    images = _images()
    exact, _ = _estimated(images, 5, "exact", min_samples=2)
    pooled, _ = _estimated(images, len(images), "onepass_pooled", min_samples=2)
    expected = _with_batch(_network(), images, min_samples=2)
    for network in (exact, pooled):
        torch.testing.assert_close(network.eval()(images), expected, atol=1e-9, rtol=0)


def test_estimation_changes_running_moments_only_and_reports_the_pooled_branch():
    network = _network()
    before, modes = _state(network), [m.training for m in network.modules()]
    report = estimate_statistics(network, _images().split(4), min_samples=32)
    assert report.kept_source == ("pool.2",)
    assert (report.images, report.layers) == (12, 4)
    names = ("stem.1", "body.1", "last.0")
    assert _changed(before, network) == {f"{n}.running_{m}" for n in names for m in ("mean", "var")}
    assert [m.training for m in network.modules()] == modes


@pytest.mark.parametrize("estimator", ["onepass_pooled", "exact"])
def test_adapted_statistics_undo_a_global_contrast_and_brightness_change(estimator):
    source = _images(dtype=torch.float64)
    network, _ = _estimated(source, 12, "exact", min_samples=2)
    network.eval()
    expected = network(source)
    shift = torch.tensor([0.2, -0.1, 0.4]).double().view(1, 3, 1, 1)
    target = 1.7 * source + shift
    unadapted = (network(target) - expected).abs().mean()
    _estimated(target, 12, estimator, network=network, min_samples=2)
    adapted = (network(target) - expected).abs().mean()
    assert adapted < 1e-3
    assert unadapted > 100 * adapted


def test_estimation_refuses_no_images_and_one_shot_batches():
    with pytest.raises(UsageError, match="no image"):
        estimate_statistics(_network(), [])
    with pytest.raises(UsageError, match="callable"):
        estimate_statistics(_network(), [_images()], "exact")
    with pytest.raises(UsageError, match="unknown estimator 'median'"):
        estimate_statistics(_network(), [_images()], "median")

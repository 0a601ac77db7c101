"""Batch-norm layers of any network: finding, freezing, mixing and re-estimating statistics.

Every helper selects by the common base class, so synchronised and fused subclasses count, and a
network without batch norm is an error: methods that adapt it would silently do nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle

from sfuda_bench.errors import UsageError

Estimator = Literal["onepass_pooled", "cma", "exact", "ema"]
Batches = Iterable[Tensor] | Callable[[], Iterable[Tensor]]
_overridden: WeakSet[_BatchNorm] = WeakSet()
_NO_NORM_HINT = "choose a method that does not adapt batch norm, or another network"


def batch_norm_layers(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norm layers of ``model`` by name, in module order.

    Raises:
        UsageError: There are none.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    if not layers:
        raise UsageError(
            f"{type(model).__name__} has no batch-norm layer to adapt", hint=_NO_NORM_HINT
        )
    return layers


def scale_and_shift(model: nn.Module) -> list[nn.Parameter]:
    """Return the affine parameters of all batch-norm layers: weight, bias, weight, ...

    Raises:
        UsageError: There are none.
    """
    layers = batch_norm_layers(model).values()
    found = [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
    if not found:
        raise UsageError(
            f"the batch norm of {type(model).__name__} has no scale and shift", hint=_NO_NORM_HINT
        )
    return found


def dropout_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the dropout layers of ``model`` by name; an empty dict when there are none."""
    return {name: m for name, m in model.named_modules() if isinstance(m, _DropoutNd)}


def enable_dropout(model: nn.Module) -> None:
    """Put only the dropout layers of ``model`` in train mode and all other modules in eval mode."""
    model.eval()
    for layer in dropout_layers(model).values():
        layer.train()


def freeze_batch_norm(model: nn.Module) -> None:
    """Put the batch-norm layers in eval mode, so that their running statistics are used and kept.

    Call it after every ``model.train()``; scale and shift stay trainable.
    """
    for layer in batch_norm_layers(model).values():
        layer.eval()


def train_batch_norm_only(model: nn.Module) -> list[nn.Parameter]:
    """Make scale and shift of batch norm the only trainable parameters, and return them.

    All modules go to eval mode, dropout included; combine with :func:`use_batch_statistics` to
    normalise by the batch.
    """
    parameters = scale_and_shift(model)
    model.eval()
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    return parameters


def prior_alpha(prior: float, images: int) -> float:
    """Return the batch's weight n / (N + n) for a source prior of ``prior`` images.

    Source: Schneider et al., NeurIPS 2020.
    """
    if prior < 0 or images < 1:
        raise UsageError(f"prior {prior} and images {images}: expected at least 0 and 1")
    return images / (prior + images)


class StatisticsOverride:
    """Another way of normalising, in force until :meth:`remove` or the end of a ``with`` block.

    The running buffers, batch counters included, are neither used up nor changed, all other
    modules (dropout included) are in eval mode, and every mode is put back afterwards. Do not copy
    or save the model itself meanwhile; its state dict is unaffected.
    """

    def __init__(self, model: nn.Module, min_samples: int) -> None:
        if min_samples < 2:
            raise UsageError(f"min_samples is {min_samples}; a variance needs at least 2 samples")
        self._min_samples = min_samples
        self._layers = batch_norm_layers(model)
        if any(layer in _overridden for layer in self._layers.values()):
            raise RuntimeError(
                "batch norm of this network is already overridden: remove() that first"
            )
        _overridden.update(self._layers.values())
        self._modes = [(module, module.training) for module in model.modules()]
        self._tracking = [(layer, layer.track_running_stats) for layer in self._layers.values()]
        self._kept: dict[str, None] = {}
        self._handles: list[RemovableHandle] = []
        model.eval()

    @property
    def kept_source(self) -> tuple[str, ...]:
        """Names of the layers that had too few samples at least once and kept the source's."""
        return tuple(self._kept)

    def remove(self) -> None:
        """Restore ordinary batch norm and the modes found at the start."""
        for handle in self._handles:
            handle.remove()
        _overridden.difference_update(self._layers.values())
        for layer, tracking in self._tracking:
            layer.track_running_stats = tracking
        for module, mode in self._modes:
            module.training = mode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def _install(self, before: Callable[[_BatchNorm, Tensor], Tensor | None]) -> None:
        """Call ``before(layer, x)`` ahead of each layer; a tensor it returns replaces ``x``."""
        for name, layer in self._layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name, before)))

    def _hook(
        self, name: str, before: Callable[[_BatchNorm, Tensor], Tensor | None]
    ) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> Any:
            enough = _samples(args[0]) >= self._min_samples
            layer.eval()
            if not enough:
                self._kept[name] = None
                return None
            replaced = before(layer, args[0])  # type: ignore[arg-type]  # hooked on batch norm
            return None if replaced is None else (replaced, *args[1:])

        return hook


def use_batch_statistics(model: nn.Module, min_samples: int = 32) -> StatisticsOverride:
    """Normalise by the moments of the current batch (prediction-time batch norm).

    Gradients flow through the moments. A layer that sees fewer than ``min_samples`` values per
    channel (the pooling branch of an ASPP) keeps the source statistics and is listed in
    ``kept_source``.

    Args:
        model: Network with batch norm.
        min_samples: Values per channel below which a layer keeps its running statistics.

    Returns:
        A handle: ``with use_batch_statistics(model): ...`` or ``handle.remove()``.

    Source: Nado et al., arXiv 2006.10963 (A1).
    """
    override = StatisticsOverride(model, min_samples)
    for layer in batch_norm_layers(model).values():
        layer.track_running_stats = False  # in train mode: moments of the batch, no buffer touched

    def by_batch(layer: _BatchNorm, x: Tensor) -> None:
        layer.train()

    override._install(by_batch)
    return override


def mixed_statistics(
    model: nn.Module, alpha: float, min_samples: int = 32, *, mixture_variance: bool = False
) -> StatisticsOverride:
    """Normalise by (1 - alpha) source + alpha batch moments (alpha-BN; biased batch variance).

    ``alpha=0`` is the source model bit for bit, ``alpha=1`` is prediction-time batch norm.
    Gradients flow through the batch moments.

    Args:
        model: Network with batch norm.
        alpha: Weight of the batch, 0..1; see :func:`prior_alpha` for the prior-count form.
        min_samples: Values per channel below which a layer keeps its running statistics.
        mixture_variance: Add alpha (1 - alpha) (source mean - batch mean)^2, the variance of the
            true mixture, which the published rule leaves out.

    Source: Schneider et al., NeurIPS 2020; alpha-BN (A3).
    """
    if not 0 <= alpha <= 1:
        raise UsageError(f"alpha is {alpha}; expected 0..1")
    override = StatisticsOverride(model, min_samples)

    def mix(layer: _BatchNorm, x: Tensor) -> Tensor | None:
        if alpha == 0:
            return None
        source_mean, source_var = _running(layer)
        batch_var, batch_mean = _moments(x.to(source_mean.dtype))
        mean = torch.lerp(source_mean, batch_mean, alpha)
        var = torch.lerp(source_var, batch_var, alpha)
        if mixture_variance:
            var = var + alpha * (1 - alpha) * (source_mean - batch_mean).square()
        # Moving the input, not the buffers, keeps gradients and subclasses' own forward.
        scale = ((source_var + layer.eps) / (var + layer.eps)).sqrt()
        return (_spread(scale, x) * x + _spread(source_mean - mean * scale, x)).to(x.dtype)

    override._install(mix)
    return override


@dataclass(frozen=True)
class StatisticsReport:
    """What an estimation of running statistics did.

    Args:
        estimator: Name of the rule.
        layers: Number of batch-norm layers.
        kept_source: Layers with too few samples, whose statistics are still the source's.
        images: Images seen per pass.
        passes: Passes over the images.
    """

    estimator: str
    layers: int
    kept_source: tuple[str, ...]
    images: int
    passes: int


def estimate_statistics(
    model: nn.Module,
    batches: Batches,
    estimator: Estimator = "onepass_pooled",
    momentum: float = 0.1,
    min_samples: int = 32,
    passes: int | None = None,
) -> StatisticsReport:
    """Replace the running means and variances of ``model`` by those of ``batches``, in place.

    Nothing else changes: no weight, no batch counter, no mode; dropout is off.

    * ``onepass_pooled``: each batch normalised by its own moments; sample-weighted pooling over
      batches with the between-batch variance (biased).
    * ``cma``: the same forward; plain average of batch means and unbiased variances, what
      ``momentum=None`` does. It omits the between-batch variance.
    * ``ema``: the same forward; exponential average with ``momentum`` and unbiased variances,
      what a train-mode epoch does. After K batches the source's weight is (1 - momentum)^K.
    * ``exact``: moments of each layer given exact statistics of all layers before it; repeated
      passes that swap all statistics at their end, as many as batch-norm layers lie on the longest
      path. Independent of batch size and order; intermediate passes are not usable.

    Args:
        model: Network with batch norm; called as ``model(image)``.
        batches: Image batches (B, 3, H, W); for ``exact`` a callable that returns them anew.
        estimator: One of the four above.
        momentum: Weight of a batch, ``ema`` only.
        min_samples: A layer with fewer values per channel in a batch does not use that batch and
            normalises it by the source's; for ``exact`` the values of the whole set count.
        passes: Passes of ``exact``; ``None`` counts the depth. Fewer than that is not exact.

    Returns:
        The report, with the layers that kept the source statistics.

    Raises:
        UsageError: No batch, an unknown estimator, or one-shot batches for ``exact``.

    Source: Li et al., 2018 (AdaBN).
    """
    layers = batch_norm_layers(model)
    if estimator == "exact":
        return _estimate_exact(model, layers, batches, min_samples, passes)
    if estimator not in _POOLS:
        raise UsageError(
            f"unknown estimator '{estimator}'", hint="onepass_pooled, cma, exact or ema"
        )
    pools = {
        name: _POOLS[estimator](*_running(layer), momentum=momentum)
        for name, layer in layers.items()
    }
    with use_batch_statistics(model, min_samples), _collect(layers, pools, min_samples):
        images = _forward_all(model, batches)
    return _store(layers, pools, StatisticsReport(estimator, len(layers), (), images, 1))


def batch_norm_depth(model: nn.Module, image: Tensor) -> int:
    """Return how many batch-norm layers lie on the longest path from ``image`` to the output."""
    marked: dict[Any, None] = {}

    def mark(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if output.grad_fn is not None:
            marked[output.grad_fn] = None

    modes = [(module, module.training) for module in model.modules()]
    layers = batch_norm_layers(model).values()
    handles = [layer.register_forward_hook(mark) for layer in layers]
    try:
        model.eval()
        with torch.enable_grad():
            output = model(image[:1].detach().clone().requires_grad_(True))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return _longest_path(output.grad_fn, marked)


class _Pooled:
    """Sample-weighted moments over batches, by the law of total variance (biased)."""

    def __init__(self, mean: Tensor, var: Tensor, momentum: float) -> None:
        self.samples = 0
        self.mean = torch.zeros_like(mean, dtype=torch.float64)
        self.var = torch.zeros_like(var, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        var, mean = (moment.double() for moment in _moments(x))
        self.samples += (samples := _samples(x))
        weight = samples / self.samples
        step = mean - self.mean
        self.mean += weight * step
        # The between-batch term of two groups: w (1 - w) (difference of means)^2.
        self.var += weight * (var - self.var) + weight * (1 - weight) * step.square()


class _Averaged:
    """Moving average of means and unbiased variances; of constant or of falling weight."""

    def __init__(self, mean: Tensor, var: Tensor, momentum: float | None) -> None:
        self.samples = 0
        self.mean, self.var = mean.double(), var.double()
        self._momentum = momentum
        self._batches = 0

    def add(self, x: Tensor) -> None:
        var, mean = (moment.double() for moment in _moments(x))
        samples = _samples(x)
        self.samples += samples
        self._batches += 1
        weight = 1 / self._batches if self._momentum is None else self._momentum
        self.mean = torch.lerp(self.mean, mean, weight)
        self.var = torch.lerp(self.var, var * (samples / (samples - 1)), weight)


class _Cumulative(_Averaged):
    def __init__(self, mean: Tensor, var: Tensor, momentum: float) -> None:
        super().__init__(mean, var, None)


_Pool = _Pooled | _Averaged
_POOLS: dict[str, type[_Pooled] | type[_Averaged]] = {
    "onepass_pooled": _Pooled,
    "cma": _Cumulative,
    "ema": _Averaged,
}


def _estimate_exact(
    model: nn.Module,
    layers: dict[str, _BatchNorm],
    batches: Batches,
    min_samples: int,
    passes: int | None,
) -> StatisticsReport:
    if not callable(batches):
        raise UsageError("estimator 'exact' repeats its passes: give a callable that returns them")
    if passes is None:
        first = next(iter(batches()), None)
        passes = 1 if first is None else batch_norm_depth(model, first)
    report = StatisticsReport("exact", len(layers), (), 0, passes)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for _ in range(passes):
            pools: dict[str, _Pool] = {
                name: _Pooled(*_running(layer), momentum=0.0) for name, layer in layers.items()
            }
            with _collect(layers, pools, 1):
                images = _forward_all(model, batches)
            report = StatisticsReport("exact", len(layers), (), images, passes)
            report = _store(layers, pools, report, min_samples)
    finally:
        for module, mode in modes:
            module.training = mode
    return report


@contextmanager
def _collect(
    layers: dict[str, _BatchNorm], pools: dict[str, _Pool], min_samples: int
) -> Iterator[None]:
    """Add the input of every layer to its pool during the block."""

    def collector(pool: _Pool) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def collect(layer: nn.Module, args: tuple[Any, ...]) -> None:
            if _samples(args[0]) >= min_samples:
                pool.add(args[0].detach())

        return collect

    handles = [
        layer.register_forward_pre_hook(collector(pools[name])) for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _forward_all(model: nn.Module, batches: Batches) -> int:
    images = 0
    for image in batches() if callable(batches) else batches:
        model(image)
        images += image.shape[0]
    if not images:
        raise UsageError("no image to estimate batch-norm statistics from")
    return images


@torch.no_grad()
def _store(
    layers: dict[str, _BatchNorm],
    pools: dict[str, _Pool],
    report: StatisticsReport,
    min_samples: int = 1,
) -> StatisticsReport:
    """Write the pools into the running buffers; name the layers whose pool holds too little."""
    kept = []
    for name, layer in layers.items():
        if pools[name].samples < min_samples:
            kept.append(name)
            continue
        mean, var = _running(layer)
        mean.copy_(pools[name].mean)
        var.copy_(pools[name].var)
    return StatisticsReport(
        report.estimator, report.layers, tuple(kept), report.images, report.passes
    )


def _running(layer: _BatchNorm) -> tuple[Tensor, Tensor]:
    if layer.running_mean is None or layer.running_var is None:
        raise UsageError("a batch-norm layer has no running statistics", hint=_NO_NORM_HINT)
    return layer.running_mean, layer.running_var


def _samples(x: Tensor) -> int:
    """Return the number of values per channel of (B, C, ...)."""
    return x.shape[0] * math.prod(x.shape[2:])


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the biased variance and the mean per channel, in float32 at least."""
    x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    return var, mean


def _spread(value: Tensor, x: Tensor) -> Tensor:
    """Return a per-channel value in a shape that broadcasts over (B, C, ...)."""
    return value.view(1, -1, *[1] * (x.dim() - 2))


def _longest_path(root: Any, marked: dict[Any, None]) -> int:
    """Return the largest number of marked nodes on a path below ``root`` of an autograd graph."""
    depth: dict[Any, int] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        below = [child for child, _ in node.next_functions if child is not None]
        waiting = [child for child in below if child not in depth]
        if waiting:
            stack.extend(waiting)
            continue
        stack.pop()
        depth[node] = max((depth[child] for child in below), default=0) + (node in marked)
    return depth[root]

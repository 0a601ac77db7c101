"""Stages that several methods share: initial labels, and training on fixed labels.

The only blocks that know the port: they take its tasks and carry its mark for frozen steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sfuda_bench.blocks.prototypes import (
    class_agreement,
    class_prototypes,
    reliable_mask,
    uncertainty_quantile,
)
from sfuda_bench.blocks.pseudo_labels import (
    McStatistics,
    mc_dropout_statistics,
    threshold_labels,
)
from sfuda_bench.errors import MethodWarning, UsageError
from sfuda_bench.methods import AdaptationTask, Artefact, FrozenTask, Photometric, frozen_step
from sfuda_bench.networks.batch_norm import freeze_batch_norm, use_batch_statistics
from sfuda_bench.networks.taps import SegmentationNetwork

_MOST_RELIABLE, _LEAST_RELIABLE = 0.995, 0.20


@frozen_step(version=1)
def initial_labels(
    task: FrozenTask,
    *,
    passes: int,
    temperature: float,
    threshold: float,
    uncertainty_threshold: float,
    uncertainty_quantile_share: float | None,
    bn: Literal["running", "batch"],
    batch_size: int,
    mc_dropout: bool = True,
    decoder: Literal["exact", "prepared"] = "exact",
) -> dict[str, Tensor]:
    """Label the target with the source model: MC dropout, threshold, prototypes, reliability.

    Args:
        task: The frozen task; order is by content digest, nothing is augmented.
        passes: Dropout passes T.
        temperature: Divides the logits whose spread is the uncertainty.
        threshold: A pixel is foreground when its mean probability exceeds this.
        uncertainty_threshold: eta; used when no quantile is given.
        uncertainty_quantile_share: Share of pixels of a batch that count as certain, instead of a
            fixed eta, for networks whose dropout hardly moves the output.
        bn: ``running`` (CPR) or ``batch`` statistics (DPL's train mode).
        batch_size: Images per batch, which is also the scope of the prototypes.
        mc_dropout: Sample dropout; off, one pass without it and an uncertainty of 0.
        decoder: ``exact`` has the bits of complete forwards; ``prepared`` is faster on networks
            that can prepare their decoder, and equal up to rounding.

    Returns:
        ``prob`` (N, 2, S, S) float32; ``label``, ``prototype_class`` (q, the class of the nearer
        prototype) and ``reliable`` (N, 2, S, S) uint8;
        ``missing_prototypes`` (1,) int64, the number of (batch, structure) without a prototype.

    Source:
        DPL ``generate_pseudo.py`` at 634de5b and CPR's at 1fea8d4.
    """
    model = task.source_model
    names = ("prob", "label", "prototype_class", "reliable")
    results: dict[str, list[Tensor]] = {name: [] for name in names}
    missing = 0
    for batch in task.target.batches(batch_size):
        if mc_dropout:
            statistics = mc_dropout_statistics(model, batch.image, passes, temperature, bn, decoder)
        else:
            statistics = _single_pass(model, batch.image, bn)
        label = threshold_labels(statistics.prob, threshold)
        eta = uncertainty_threshold
        if uncertainty_quantile_share is not None:
            eta = uncertainty_quantile(statistics.uncertainty, uncertainty_quantile_share)
        prototypes = class_prototypes(
            statistics.feature, label, statistics.prob, statistics.uncertainty, eta
        )
        agreement = class_agreement(statistics.feature, prototypes, label.shape[-2:])
        reliable = reliable_mask(statistics.uncertainty, label, agreement, eta)
        missing += int(torch.as_tensor(prototypes.missing).sum())
        values = (statistics.prob, label, agreement, reliable)
        for name, value in zip(results, values, strict=True):
            small = value if value.is_floating_point() else value.to(torch.uint8)
            results[name].append(small.cpu())
    tensors = {name: torch.cat(parts) for name, parts in results.items()}
    return {**tensors, "missing_prototypes": torch.tensor([missing])}


@torch.no_grad()
def _single_pass(
    model: SegmentationNetwork, image: Tensor, bn: Literal["running", "batch"]
) -> McStatistics:
    """Return what MC dropout returns, of one pass without dropout: nothing is uncertain."""
    by_batch = use_batch_statistics(model, min_samples=2) if bn == "batch" else nullcontext()
    with by_batch:
        encoded = model.encode(image)
        logits, feature = model.decode(model.context(encoded), encoded)
    prob = torch.sigmoid(logits.double()).float()
    return McStatistics(prob, torch.zeros_like(prob), feature.float())


class InitialLabelling(Protocol):
    """The settings of :func:`label_initially`, as a method's config declares them."""

    @property
    def passes(self) -> int:
        """Dropout passes T."""
        ...

    @property
    def temperature(self) -> float:
        """Divides the logits whose spread is the uncertainty."""
        ...

    @property
    def initial_threshold(self) -> float:
        """Probability above which a pixel is foreground."""
        ...

    @property
    def uncertainty_threshold(self) -> float:
        """eta, the largest standard deviation of a certain pixel."""
        ...

    @property
    def uncertainty_quantile(self) -> float | None:
        """Share of pixels that count as certain; replaces eta when given."""
        ...

    @property
    def mc_bn(self) -> Literal["running", "batch"]:
        """Batch norm during the dropout passes."""
        ...

    @property
    def mc_batch(self) -> int:
        """Images per batch and scope of the prototypes."""
        ...

    @property
    def mc_decoder(self) -> Literal["exact", "prepared"]:
        """Repeat the decoder as it is, or prepared for repetition."""
        ...

    @property
    def mc_dropout(self) -> bool:
        """Sample dropout, or run once without it."""
        ...


def check_labelling(config: InitialLabelling, owner: str) -> None:
    """Refuse dropout passes that would normalise a single image by itself.

    Raises:
        UsageError: ``mc_bn = batch`` with ``mc_batch = 1``.
    """
    if config.mc_bn == "batch" and config.mc_batch == 1:
        raise UsageError(
            f"{owner}.mc_bn = batch with {owner}.mc_batch = 1: the pooling branch cannot normalise "
            "a single image by itself",
            hint=f"--set {owner}.mc_batch=4, or {owner}.mc_bn=running",
        )


def label_initially(task: AdaptationTask, config: InitialLabelling) -> Artefact:
    """Return the artefact of :func:`initial_labels` for a method's settings.

    Tracks the share of reliable pixels, and warns when the reliability mask keeps nearly
    everything or little.
    """
    labels = task.frozen(
        initial_labels,
        passes=config.passes,
        temperature=config.temperature,
        threshold=config.initial_threshold,
        uncertainty_threshold=config.uncertainty_threshold,
        uncertainty_quantile_share=config.uncertainty_quantile,
        bn=config.mc_bn,
        batch_size=config.mc_batch,
        mc_dropout=config.mc_dropout,
        decoder=config.mc_decoder,
    )
    share = float(labels["reliable"].float().mean())
    task.track(reliable_share=share)
    if share > _MOST_RELIABLE or share < _LEAST_RELIABLE:
        warnings.warn(
            f"{share:.1%} of the initial labels count as reliable; the uncertainty threshold "
            "does not separate pixels on this network (see uncertainty_quantile)",
            MethodWarning,
            stacklevel=2,
        )
    return labels


class SelfTraining(Protocol):
    """The settings of :func:`train_on_labels`, as a method's config declares them."""

    @property
    def lr(self) -> float:
        """Learning rate of Adam."""
        ...

    @property
    def beta1(self) -> float:
        """First momentum of Adam."""
        ...

    @property
    def beta2(self) -> float:
        """Second momentum of Adam."""
        ...

    @property
    def epochs(self) -> int:
        """Epochs over the target images."""
        ...

    @property
    def batch_size(self) -> int:
        """Images per step."""
        ...

    @property
    def shuffle(self) -> bool:
        """Draw the order."""
        ...

    @property
    def augment(self) -> Photometric:
        """Photometric augmentation of the images."""
        ...

    @property
    def bn_stats(self) -> str:
        """``target``, or ``frozen_source`` to keep the statistics that training starts from."""
        ...


def train_on_labels(
    task: AdaptationTask,
    model: nn.Module,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    config: SelfTraining,
    before_epoch: Callable[[], None] | None = None,
) -> nn.Module:
    """Train a whole network on fixed labels of the target images, in train mode.

    Args:
        task: The adaptation task.
        model: The network to train, in place.
        loss_of: Takes logits (B, 2, H, W) float32 and the images' positions (B,), and returns
            the scalar loss.
        config: Optimiser, schedule and augmentation.
        before_epoch: Called at each epoch's start; what it does to modes is undone.

    Returns:
        The same network in eval mode.

    Source:
        ``train_target.py`` of DPL (634de5b) and CPR (1fea8d4): Adam, static labels, images
        augmented photometrically.
    """
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.lr, betas=(config.beta1, config.beta2)
    )
    for _ in task.epochs(config.epochs, model=model, optimizer=optimizer):
        if before_epoch is not None:
            before_epoch()
        model.train()
        if config.bn_stats == "frozen_source":
            freeze_batch_norm(model)
        losses: list[Tensor] = []  # read at the end: a device is not waited for at every step
        sizes: list[int] = []
        for batch in task.target.batches(
            config.batch_size, augment=config.augment, shuffle=config.shuffle
        ):
            with task.autocast():
                logits = model(batch.image)
            loss = loss_of(logits.float(), batch.index.to(task.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(batch.index))
        task.track(loss=weighted_mean(losses, sizes))
    return model.eval()


def weighted_mean(losses: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Return the mean of the batches' scalar losses, weighted by their numbers of images."""
    total = 0.0
    for loss, size in zip(torch.stack(list(losses)).tolist(), sizes, strict=True):
        total += loss * size
    return total / sum(sizes)


@torch.no_grad()
def nearer_class(
    task: AdaptationTask,
    model: SegmentationNetwork,
    label: Tensor,
    prob: Tensor,
    batch_size: int,
) -> Tensor:
    """Decide each pixel's class by prototypes of the network's present features.

    The network is put in eval mode and sees the images as they are. Prototypes are those of
    :func:`~sfuda_bench.blocks.prototypes.class_prototypes` with every pixel certain, since the
    pseudo-labels of this stage carry no uncertainty.

    Args:
        task: The adaptation task.
        model: The network as it is now.
        label: (N, 2, S, S) bool pseudo-labels.
        prob: (N, 2, S, S) float, their probabilities; the prototypes' weights.
        batch_size: Images per batch, which is also the scope of the prototypes.

    Returns:
        q (N, 2, S, S) bool.

    Undefined:
        Without foreground (or background) in a batch, q is background there.
    """
    model.eval()
    decisions = []
    for batch in task.target.batches(batch_size):
        index = batch.index.to(task.device)
        with task.autocast():
            encoded = model.encode(batch.image)
            _, feature = model.decode(model.context(encoded), encoded)
        one_prob, feature = prob[index], feature.float()
        prototypes = class_prototypes(feature, label[index], one_prob, torch.zeros_like(one_prob))
        decisions.append(class_agreement(feature, prototypes, label.shape[-2:]))
    return torch.cat(decisions)

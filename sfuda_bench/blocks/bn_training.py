"""Gradient steps on unlabelled images under batch statistics: what Tent-like methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from sfuda_bench.networks.batch_norm import (
    estimate_statistics,
    train_batch_norm_only,
    use_batch_statistics,
)

if TYPE_CHECKING:
    from sfuda_bench.methods import AdaptationTask, Photometric

Part = Literal["whole", "bn_affine"]
BnMode = Literal["batch", "source"]
Terms = dict[str, Tensor]


class BatchNormTrainer:
    """A source model in training: what is trainable, its optimiser, and how it normalises.

    Dropout stays off. Under ``bn_mode="batch"`` the running statistics are neither used nor
    changed by a step; :meth:`refresh` re-estimates them.

    Args:
        task: The adaptation task; its source model is trained in place.
        terms_of: Takes logits (B, 2, H, W) float32 and returns scalars by name; the one called
            ``"loss"`` is minimised.
        part: Train every weight, or scale and shift of batch norm only.
        lr: Learning rate of Adam.
        betas: Momenta of Adam.
        weight_decay: L2 penalty, added to the gradient.
        bn_mode: Normalise by the batch, or by the statistics of the source.
        min_samples: A layer that sees fewer values per channel keeps its running statistics.

    Raises:
        UsageError: The network has no batch norm.
    """

    def __init__(
        self,
        task: AdaptationTask,
        terms_of: Callable[[Tensor], Terms],
        *,
        part: Part,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        bn_mode: BnMode = "batch",
        min_samples: int = 32,
    ) -> None:
        self.task, self.terms_of = task, terms_of
        self.bn_mode, self.min_samples = bn_mode, min_samples
        self.model = task.source_model
        parameters = train_batch_norm_only(self.model)
        if part == "whole":
            parameters = list(self.model.requires_grad_(True).parameters())
        self.optimizer = torch.optim.Adam(parameters, lr=lr, betas=betas, weight_decay=weight_decay)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, 2, H, W) of normalised images under the chosen statistics."""
        batch = self.bn_mode == "batch"
        with (
            use_batch_statistics(self.model, self.min_samples) if batch else nullcontext(),
            self.task.autocast(),
        ):
            logits: Tensor = self.model(image)
        return logits

    @torch.enable_grad()
    def update(self, image: Tensor) -> tuple[Tensor, Terms]:
        """Take one step; return the logits before it and the terms, both detached."""
        logits = self.forward(image)
        terms = self.terms_of(logits.float())
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        self.optimizer.step()
        return logits.detach(), {name: term.detach() for name, term in terms.items()}

    def refresh(self, batch_size: int) -> None:
        """Re-estimate the running statistics over the target (pooled, one pass).

        Does nothing under ``bn_mode="source"``.
        """
        if self.bn_mode == "source":
            return

        def images() -> Iterator[Tensor]:
            for batch in self.task.target.batches(batch_size):
                yield batch.image

        with torch.no_grad(), self.task.autocast():
            estimate_statistics(self.model, images, min_samples=self.min_samples)

    def fit(
        self,
        *,
        epochs: int,
        batch_size: int,
        shuffle: bool = True,
        augment: Photometric = "none",
        lr_decay: float = 1.0,
        lr_decay_every: int = 1,
    ) -> nn.Module:
        """Train over the target images, refreshing the statistics at each epoch's end.

        Args:
            epochs: Passes over the target images.
            batch_size: Images per step.
            shuffle: Draw the order of each epoch.
            augment: Photometric augmentation of the training images.
            lr_decay: The learning rate is multiplied by this ...
            lr_decay_every: ... after every so many epochs.

        Returns:
            The adapted network in eval mode, every parameter trainable again.
        """
        task, group = self.task, self.optimizer.param_groups[0]
        lr = group["lr"]
        for epoch in task.epochs(epochs, model=self.model, optimizer=self.optimizer):
            group["lr"] = lr * lr_decay ** ((epoch - 1) // lr_decay_every)
            totals: dict[str, float] = {}
            for batch in task.target.batches(batch_size, augment=augment, shuffle=shuffle):
                _, terms = self.update(batch.image)
                for name, term in terms.items():
                    totals[name] = totals.get(name, 0.0) + float(term) * len(batch.image)
            task.track(**{name: total / len(task.target) for name, total in totals.items()})
            self.refresh(batch_size)
        return self.model.requires_grad_(True).eval()

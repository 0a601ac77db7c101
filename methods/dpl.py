"""DPL: train on the source model's own labels where prototypes and dropout agree with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sfuda_bench.blocks.losses import masked_bce
from sfuda_bench.blocks.stages import (
    check_labelling,
    initial_labels,
    label_initially,
    train_on_labels,
)
from sfuda_bench.methods import AdaptationTask, Photometric, register
from sfuda_bench.tunable import BELOW_ONE, setting, tunable


@dataclass(frozen=True, kw_only=True)
class DplConfig:
    """Settings of DPL with clean scoring: the released training, running statistics elsewhere.

    Attributes:
        passes: Dropout passes T.
        temperature: Divides the logits whose spread is the uncertainty.
        uncertainty_threshold: eta, the largest standard deviation of a certain pixel.
        uncertainty_quantile: Share of pixels that count as certain; replaces eta when given.
        initial_threshold: Probability above which a pixel is foreground.
        mc_bn: Batch norm during the dropout passes.
        mc_batch: Images per batch and scope of the prototypes.
        mc_decoder: ``prepared`` repeats dropout passes faster on networks that can, up to rounding.
        mc_dropout: Sample dropout; off, one pass without it and an uncertainty of 0.
        lr: Learning rate of Adam.
        epochs: Epochs over the target images.
        batch_size: Images per step.
        shuffle: Draw the order; the released code keeps the file order.
        augment: Photometric augmentation of the images (never of the labels).
        bn_stats: Let batch norm follow the target while training, or keep the source's.
        beta1: First momentum of Adam.
        beta2: Second momentum of Adam.
    """

    passes: int = setting(10, 2, 1000, symbol="T")
    temperature: float = setting(2.0, 0.1, 100.0)
    uncertainty_threshold: float = tunable(0.05, 0.0, 0.5, symbol="eta")
    uncertainty_quantile: float | None = setting(None, 1e-6, 1.0)
    initial_threshold: float = tunable(0.75, 0.0, 1.0, symbol="gamma")
    mc_bn: Literal["running", "batch"] = "running"
    mc_batch: int = setting(8, 1, 1024)
    mc_dropout: bool = setting(True, added=True)
    mc_decoder: Literal["exact", "prepared"] = setting("exact", added=True)
    lr: float = tunable(2e-3, 0.0, 1.0, symbol="lr")
    epochs: int = tunable(2, 0, 1000)
    batch_size: int = setting(8, 2, 1024)
    shuffle: bool = False
    augment: Photometric = "dpl"
    bn_stats: Literal["target", "frozen_source"] = "target"
    beta1: float = setting(0.9, 0.0, BELOW_ONE)
    beta2: float = setting(0.99, 0.0, BELOW_ONE)


@register(
    "dpl",
    version=1,
    config=DplConfig,
    updates={"whole"},
    inert={"lr": 0.0, "bn_stats": "frozen_source"},
    title="DPL",
    source="Chen et al., Denoised Pseudo-Labeling, MICCAI 2021; cchen-cc/SFDA-DPL@634de5b",
    frozen_steps=(initial_labels,),
    check=lambda config, image_size: check_labelling(config, "dpl"),
)
def adapt(task: AdaptationTask, config: DplConfig) -> nn.Module:
    """Train the whole network on the reliable pixels of fixed pseudo-labels.

    Source:
        DPL ``train_target.py`` at 634de5b: BCE averaged over reliable pixels, Adam (0.9, 0.99),
        2 epochs. Departures: the adapted network is run in ordinary eval mode; a batch without
        reliable pixels has loss 0 (there NaN); order by content instead of by file name.
    """
    labels = label_initially(task, config)
    label, reliable = labels["label"].float(), labels["reliable"].bool()
    task.pseudo_labels("initial", label.bool())
    task.pseudo_labels("masked", label.bool(), reliable)

    def loss_of(logits: Tensor, index: Tensor) -> Tensor:
        return masked_bce(logits, label[index], reliable[index])

    return train_on_labels(task, task.source_model, loss_of, config)

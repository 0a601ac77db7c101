"""CPR: refine the source model's labels by learned context similarity, then train on them.

Four stages, each frozen one computed once and shared by trials and variants: ``initial_labels``
-> ``similarity_head`` -> ``refined_labels`` -> training. ``cpr_cbam`` is the same with CBAM
attention in the similarity head; the segmentation path never sees the attention, so any gain
comes from better pseudo-labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sfuda_bench.blocks.context_similarity import (
    Border,
    Neighbourhood,
    Reduce,
    grid_labels,
    pair_index,
    pair_labels,
    similarity_loss,
)
from sfuda_bench.blocks.losses import Reduction, confident_pixels, focal_masked_bce
from sfuda_bench.blocks.refinement import calibrate, grid_prob, refine, upsample_refined
from sfuda_bench.blocks.resample import scaled_side
from sfuda_bench.blocks.stages import (
    check_labelling,
    initial_labels,
    label_initially,
    nearer_class,
    train_on_labels,
    weighted_mean,
)
from sfuda_bench.errors import UsageError
from sfuda_bench.methods import (
    AdaptationTask,
    Artefact,
    FrozenTask,
    Photometric,
    frozen_step,
    register,
)
from sfuda_bench.networks.batch_norm import enable_dropout
from sfuda_bench.networks.similarity_head import SimilarityHead
from sfuda_bench.networks.taps import Encoded, SegmentationNetwork
from sfuda_bench.tunable import BELOW_ONE, setting, tunable

_STRIDE = 16  # pixels of the model input per cell of the context map
AttentionAt = Literal["context", "backbone"]


@dataclass(frozen=True, kw_only=True)
class CprConfig:
    """Settings of CPR; the defaults are the released code's, for REFUGE -> Drishti-GS.

    Attributes:
        passes: Dropout passes T of stage 1.
        temperature: Divides the logits whose spread is the uncertainty.
        uncertainty_threshold: eta, the largest standard deviation of a certain pixel.
        uncertainty_quantile: Share of pixels that count as certain; replaces eta when given.
        initial_threshold: Probability above which stage 1 calls a pixel foreground.
        mc_bn: Batch norm during the dropout passes.
        mc_batch: Images per batch of stage 1 and scope of the prototypes.
        mc_decoder: ``prepared`` repeats dropout passes faster on networks that can, up to rounding.
        mc_dropout: Sample dropout in stage 1; off, one pass without it and an uncertainty of 0.
        radius: r, in cells of the context map.
        neighbourhood: Distance below r (``lt``, code) or up to r (``le``, report).
        border: ``official`` drops anchors near the border as the code does; ``full`` keeps all.
        similarity_reduce: exp of minus the mean (code) or the sum (formula) of differences.
        attention: CBAM before the 1 x 1 convolution of the head.
        shared_attention: One CBAM for both branches.
        attention_at: What the attention weights and the head then reads: the context map (ASPP
            output) or the backbone's output. Without attention the head reads the context map.
        head_norm: Batch norm and ReLU after the 1 x 1 convolution of the head.
        head_gain: Of the convolution's Xavier-uniform initialisation.
        head_lr: Learning rate of stage 2.
        head_epochs: Epochs of stage 2.
        head_batch: Images per step of stage 2.
        head_shuffle: Draw the order in stage 2.
        head_decoder: Whether what follows the context map runs in stage 2, where only its batch
            norm can gain from it: skipped, stage 4 starts from the source's statistics there.
        encoder_bn: Batch norm of the frozen network in stage 2 follows the target or stays.
        refinement: Refine by context similarity (off: the initial probabilities are kept).
        refine_scale: Size of the refinement forward over the model input; above 1 the images are
            read from files with that many pixels, and smaller files are refused.
        beta: Sharpens similarities.
        iterations: t, random-walk steps.
        calibrate: Divide each map by its own maximum, or not.
        threshold: gamma, above which a refined pixel is foreground.
        low: gamma_low; pixels below it are kept.
        high: gamma_high; pixels above it are kept.
        pixel_mask: Keep only pixels outside [low, high].
        class_mask: Keep only pixels whose label is the class of the nearer prototype: in the
            source model's features (stage 1), in those of the network as it adapts (eval mode,
            anew before each epoch), or keep all.
        focal_exponent: Of the focal weight; 0 is plain cross-entropy.
        loss_reduction: Mean over kept pixels (code) or sum (formula).
        lr: Learning rate of stage 4.
        epochs: Epochs of stage 4.
        batch_size: Images per step of stage 4.
        shuffle: Draw the order in stage 4.
        augment: Photometric augmentation in stages 2 and 4.
        initial_weights: Start stage 4 from stage 2's drifted statistics or from the source model.
        bn_stats: Let batch norm follow the target in stage 4, or keep what it started from.
        beta1: First momentum of Adam.
        beta2: Second momentum of Adam.
    """

    passes: int = setting(100, 2, 1000, symbol="T")
    temperature: float = setting(2.0, 0.1, 100.0)
    uncertainty_threshold: float = setting(0.05, 0.0, 0.5, symbol="eta")
    uncertainty_quantile: float | None = setting(None, 1e-6, 1.0)
    initial_threshold: float = setting(0.75, 0.0, 1.0)
    mc_bn: Literal["running", "batch"] = "running"
    mc_batch: int = setting(4, 1, 1024)
    mc_dropout: bool = setting(True, added=True)
    mc_decoder: Literal["exact", "prepared"] = setting("exact", added=True)
    radius: int = tunable(4, 2, 12, symbol="r")
    neighbourhood: Neighbourhood = "lt"
    border: Border = "official"
    similarity_reduce: Reduce = "mean"
    attention: bool = False
    shared_attention: bool = False
    attention_at: Literal["context", "backbone"] = setting("context", added=True)
    head_norm: bool = setting(True, added=True)
    head_gain: float = setting(4.0, 0.01, 100.0, added=True)
    head_lr: float = setting(3e-2, 0.0, 1.0)
    head_epochs: int = setting(16, 1, 1000)
    head_batch: int = setting(8, 2, 1024)
    head_shuffle: bool = False
    head_decoder: Literal["run", "skip"] = setting("run", added=True)
    encoder_bn: Literal["adapt", "frozen"] = "adapt"
    refinement: bool = True
    refine_scale: float = setting(1.0, 0.25, 4.0)
    beta: float = tunable(2.0, 0.25, 16.0, log=True, symbol="beta")
    iterations: int = tunable(4, 1, 64, log=True, symbol="t")
    calibrate: Literal["max", "none"] = "max"
    threshold: float = tunable(0.75, 0.0, 1.0, symbol="gamma")
    low: float = tunable(0.4, 0.0, 1.0, symbol="gamma_low")
    high: float = tunable(0.85, 0.0, 1.0, symbol="gamma_high")
    pixel_mask: bool = True
    class_mask: Literal["source", "target", "none"] = "source"
    focal_exponent: float = setting(2.0, 0.0, 10.0)
    loss_reduction: Reduction = "mean"
    lr: float = setting(3e-4, 0.0, 1.0)
    epochs: int = setting(20, 0, 1000)
    batch_size: int = setting(8, 2, 1024)
    shuffle: bool = False
    augment: Photometric = "dpl"
    initial_weights: Literal["stage2", "source"] = "stage2"
    bn_stats: Literal["target", "frozen_source"] = "target"
    beta1: float = setting(0.9, 0.0, BELOW_ONE)
    beta2: float = setting(0.99, 0.0, BELOW_ONE)

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UsageError(f"cpr.low = {self.low} exceeds cpr.high = {self.high}")


@dataclass(frozen=True, kw_only=True)
class CprCbamConfig(CprConfig):
    """CPR with CBAM attention in the similarity head."""

    attention: bool = True


def check_grid(config: CprConfig, image_size: int) -> None:
    """Refuse a radius that leaves no pairs on the context map of this image size."""
    check_labelling(config, "cpr")
    for scale in {1.0, config.refine_scale}:
        side = scaled_side(image_size, scale) // _STRIDE
        try:
            pair_index(side, side, config.radius, config.neighbourhood, config.border)
        except UsageError as error:
            raise UsageError(
                f"cpr.radius = {config.radius} at {image_size} px: {error.message}", hint=error.hint
            ) from error


def refinement_scale(config: CprConfig) -> float:
    """Return the size of the target images that stage 3 reads over the model's input."""
    return config.refine_scale if config.refinement else 1.0


@frozen_step(version=2)
def similarity_head(
    task: FrozenTask,
    *,
    labels: Artefact,
    radius: int,
    neighbourhood: Neighbourhood,
    border: Border,
    reduce: Reduce,
    attention: bool,
    shared_attention: bool,
    lr: float,
    epochs: int,
    batch_size: int,
    shuffle: bool,
    encoder_bn: Literal["adapt", "frozen"],
    augment: Photometric,
    beta1: float,
    beta2: float,
    attention_at: AttentionAt = "context",
    norm: bool = True,
    gain: float = 4.0,
    decoder: Literal["run", "skip"] = "run",
) -> dict[str, Tensor]:
    """Stage 2: learn which neighbouring cells belong to the same class.

    Returns:
        ``head.*``: the head's state; ``model.*``: the batch-norm buffers of the network, which
        drift to the target while ``encoder_bn`` is ``adapt``; ``loss`` (epochs,) float32.

    Source:
        CPR ``sim_learn.py`` at 1fea8d4. The decoder runs as well (``decoder``), so that its
        statistics drift too; the released script's logging against target ground truth has no
        counterpart here.
    """
    model = task.source_model.requires_grad_(False)
    head = _head(model, attention, shared_attention, attention_at, norm, gain).to(task.device)
    optimizer = torch.optim.Adam(head.parameters(), lr=lr, betas=(beta1, beta2))
    label = labels["label"]
    side = label.shape[-1] // _STRIDE
    pairs = pair_index(side, side, radius, neighbourhood, border)
    kinds = pair_labels(grid_labels(label, labels["reliable"], (side, side)), pairs)
    decoded = encoder_bn == "adapt" and decoder == "run"
    curve = torch.zeros(epochs)
    carried = {"model": model, "head": head, "optimizer": optimizer, "curve": curve}
    for epoch in task.epochs(epochs, state=carried):
        model.train(encoder_bn == "adapt")
        if encoder_bn == "frozen":
            enable_dropout(model)
        head.train()
        losses, sizes = [], []
        for batch in task.target.batches(batch_size, augment=augment, shuffle=shuffle):
            with torch.no_grad(), task.autocast():
                encoded = model.encode(batch.image)
                context = model.context(encoded)
                if decoded:
                    model.decode(context, encoded)
                seen = _seen(encoded, context, attention_at)
            index = batch.index.to(task.device)
            loss = similarity_loss(head(seen.float()), kinds[index], pairs, reduce)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(index))
        curve[epoch - 1] = weighted_mean(losses, sizes)
    state = {f"head.{name}": value for name, value in head.state_dict().items()}
    state |= {f"model.{name}": value for name, value in model.named_buffers()}
    return {**state, "loss": curve}


@frozen_step(version=1)
@torch.no_grad()
def refined_labels(
    task: FrozenTask,
    *,
    labels: Artefact,
    head: Artefact,
    attention: bool,
    shared_attention: bool,
    radius: int,
    neighbourhood: Neighbourhood,
    border: Border,
    reduce: Reduce,
    beta: float,
    iterations: int,
    calibration: Literal["max", "none"],
    scale: float,
    batch_size: int,
    attention_at: AttentionAt = "context",
    norm: bool = True,
) -> dict[str, Tensor]:
    """Stage 3: random walk of the initial probabilities along the learned similarity.

    Returns:
        ``prob`` (N, 2, S, S) float32 in [0, 1], refined, up-sampled and calibrated; ``peak``
        (N, 2, 1, 1) float32, each map's maximum before calibration.

    Source:
        CPR ``pl_refine.py`` at 1fea8d4, as a stencil instead of squared dense matrices. The
        released similarity comes from 800 x 800 px beside labels of 512 x 512: a scale of 1.5625.
    """
    model = _with_buffers(task.source_model, head)
    similarity = _head(model, attention, shared_attention, attention_at, norm)
    similarity.load_state_dict(_part(head, "head."))
    similarity = similarity.to(task.device).eval()
    initial = labels["prob"]
    size = initial.shape[-2:]
    refined, peaks = [], []
    for batch in task.target.batches(batch_size, scale=scale):
        with task.autocast():
            encoded = model.encode(batch.image)
            seen = _seen(encoded, model.context(encoded), attention_at)
        features = similarity(seen.float())
        prob = initial[batch.index.to(task.device)]
        walked = refine(
            grid_prob(prob, features.shape[-2:]),
            features,
            radius,
            beta,
            iterations,
            neighbourhood,
            border,
            reduce,
        )
        smooth = upsample_refined(walked, size)
        peaks.append(smooth.amax(dim=(-2, -1), keepdim=True).cpu())
        refined.append(calibrate(smooth, calibration).cpu())
    return {"prob": torch.cat(refined), "peak": torch.cat(peaks)}


@frozen_step(version=1)
@torch.no_grad()
def context_maps(
    task: FrozenTask,
    *,
    labels: Artefact,
    head: Artefact,
    attention: bool,
    shared_attention: bool,
    reduce: Reduce,
    images: int,
    attention_at: AttentionAt,
    norm: bool,
) -> dict[str, Tensor]:
    """Show what the head has learned: how alike every cell is to the least certain cell.

    Returns:
        ``similarity`` (K, 2, h, w) float32 in (0, 1], of every cell with the anchor; ``anchor``
        (K, 2, 2) int64, row and column of the cell whose initial probability is nearest 0.5.
    """
    model = _with_buffers(task.source_model, head)
    similarity = _head(model, attention, shared_attention, attention_at, norm)
    similarity.load_state_dict(_part(head, "head."))
    similarity = similarity.to(task.device).eval()
    batch = next(iter(task.target.batches(images)))
    encoded = model.encode(batch.image)
    features = similarity(_seen(encoded, model.context(encoded), attention_at).float())
    side = features.shape[-1]
    prob = grid_prob(labels["prob"][batch.index.to(task.device)], features.shape[-2:])
    place = (prob - 0.5).abs().flatten(2).argmin(dim=-1)
    flat = features.flatten(3)
    anchor = flat.gather(3, place[:, :, None, None].expand(-1, -1, flat.shape[2], 1))
    distance = (flat - anchor).abs()
    distance = distance.mean(dim=2) if reduce == "mean" else distance.sum(dim=2)
    return {
        "similarity": torch.exp(-distance).unflatten(-1, features.shape[-2:]).cpu(),
        "anchor": torch.stack([place // side, place % side], dim=-1).cpu(),
    }


def context_pictures(task: AdaptationTask, config: CprConfig, images: int) -> dict[str, Tensor]:
    """Return the maps of :func:`context_maps` for the first target images."""
    labels = label_initially(task, config)
    head = _learn_head(task, config, labels)
    rule = _pair_rule(config)
    names = ("attention", "shared_attention", "reduce", "attention_at", "norm")
    maps = task.frozen(
        context_maps, labels=labels, head=head, images=images, **{n: rule[n] for n in names}
    )
    return {name: maps[name] for name in maps.names()}


def _head(
    model: SegmentationNetwork,
    attention: bool,
    shared_attention: bool,
    attention_at: AttentionAt,
    norm: bool,
    gain: float = 4.0,
) -> SimilarityHead:
    """Return a new head for the map that it reads.

    Raises:
        UsageError: The network does not offer its backbone's output.
    """
    at_context = attention_at == "context"
    channels = model.context_channels if at_context else model.high_channels
    if not channels:
        raise UsageError(
            f"attention_at = backbone: {type(model).__name__} does not offer its backbone's output",
            hint="use attention_at = context, or give the network high_channels and Encoded.high",
        )
    return SimilarityHead(
        attention=attention,
        shared_attention=shared_attention,
        channels=channels,
        norm=norm,
        gain=gain,
    )


def _seen(encoded: Encoded, context: Tensor, attention_at: AttentionAt) -> Tensor:
    """Return the map that the head reads, (B, C, h, w)."""
    if attention_at == "backbone" and encoded.high is not None:
        return encoded.high
    return context


def _part(artefact: Artefact, prefix: str) -> dict[str, Tensor]:
    names = [name for name in artefact.names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): artefact[name] for name in names}


def _with_buffers(model: SegmentationNetwork, head: Artefact) -> SegmentationNetwork:
    """Give a fresh source model the batch-norm statistics that stage 2 left."""
    model.load_state_dict({**model.state_dict(), **_part(head, "model.")})
    return model.eval()


@register(
    "cpr",
    version=1,
    config=CprConfig,
    updates={"whole"},
    inert={"lr": 0.0, "bn_stats": "frozen_source", "initial_weights": "source"},
    title="CPR",
    source="Huai et al., Context-Aware Pseudo-Label Refinement, MICCAI 2023; xmed-lab/CPR@1fea8d4",
    frozen_steps=(initial_labels, similarity_head, refined_labels),
    check=check_grid,
    pictures=context_pictures,
    target_scale=refinement_scale,
)
@register(
    "cpr_cbam",
    version=1,
    config=CprCbamConfig,
    parent="cpr",
    updates={"whole"},
    inert={"lr": 0.0, "bn_stats": "frozen_source", "initial_weights": "source"},
    title="CPR+CBAM",
    source="CPR with CBAM (Woo et al., ECCV 2018) in the context-similarity head",
    frozen_steps=(initial_labels, similarity_head, refined_labels),
    check=check_grid,
    pictures=context_pictures,
    target_scale=refinement_scale,
)
def adapt(task: AdaptationTask, config: CprConfig) -> nn.Module:
    """Run the four stages and return the network trained on the refined labels.

    Source:
        CPR ``train_target.py`` at 1fea8d4: focal-weighted BCE averaged over pixels that are
        confident and agree with the source prototypes, last epoch. Departure: a batch without
        such pixels has loss 0 (there NaN).
    """
    labels = label_initially(task, config)
    task.pseudo_labels("initial", labels["label"].bool(), labels["reliable"].bool())
    model, prob = _start(task, config, labels)
    label = prob > config.threshold
    task.pseudo_labels("calibrated", label)
    keep, choose_again = _selection(task, config, labels, model, prob)

    def loss_of(logits: Tensor, index: Tensor) -> Tensor:
        return focal_masked_bce(
            logits, label[index].float(), keep[index], config.focal_exponent, config.loss_reduction
        )

    return train_on_labels(task, model, loss_of, config, choose_again)


def _start(
    task: AdaptationTask, config: CprConfig, labels: Artefact
) -> tuple[SegmentationNetwork, Tensor]:
    """Run stages 2 and 3; return the network that stage 4 starts from and the probabilities."""
    model, prob = task.source_model, labels["prob"]
    if config.refinement or config.initial_weights == "stage2":
        head = _learn_head(task, config, labels)
        if config.refinement:
            refined = _refine(task, config, labels, head)
            prob = refined["prob"]
            _report_refined(task, config, refined, prob)
        if config.initial_weights == "stage2":
            _with_buffers(model, head)
    if not config.refinement:
        prob = calibrate(prob, config.calibrate)
    return model, prob


def _report_refined(
    task: AdaptationTask, config: CprConfig, refined: Artefact, prob: Tensor
) -> None:
    """Report the refined labels as they are before calibration, under the same threshold."""
    if config.calibrate == "none":
        task.pseudo_labels("refined", prob > config.threshold)
    elif "peak" in refined.names():  # artefacts of an earlier release lack it
        task.pseudo_labels("refined", prob * refined["peak"] > config.threshold)


def _selection(
    task: AdaptationTask,
    config: CprConfig,
    labels: Artefact,
    model: SegmentationNetwork,
    prob: Tensor,
) -> tuple[Tensor, Callable[[], None] | None]:
    """Return which pixels teach, (N, 2, S, S) bool, and what updates them before an epoch."""
    label = prob > config.threshold
    keep = torch.ones_like(label)
    if config.pixel_mask:
        keep &= confident_pixels(prob, config.low, config.high)
    if config.class_mask == "target":
        return _following(task, config, model, prob, label, keep)
    if config.class_mask == "source":
        keep &= label == labels["prototype_class"].bool()
    task.track(kept_share=float(keep.float().mean()))
    task.pseudo_labels("masked", label, keep)
    return keep, None


def _following(
    task: AdaptationTask,
    config: CprConfig,
    model: SegmentationNetwork,
    prob: Tensor,
    label: Tensor,
    confident: Tensor,
) -> tuple[Tensor, Callable[[], None]]:
    """Return a selection that follows the prototypes of the adapting network.

    Source:
        The report words the class mask by the target model's feature distribution; the released
        code keeps the source model's decision. Reported as ``masked`` is the first selection.
    """
    keep = torch.empty_like(confident)
    reported = False

    def choose_again() -> None:
        nonlocal reported
        nearer = nearer_class(task, model, label, prob, config.mc_batch)
        keep.copy_(confident & (label == nearer))
        task.track(kept_share=float(keep.float().mean()))
        if not reported:
            task.pseudo_labels("masked", label, keep.clone())
            reported = True

    return keep, choose_again


def _learn_head(task: AdaptationTask, config: CprConfig, labels: Artefact) -> Artefact:
    return task.frozen(
        similarity_head,
        labels=labels,
        **_pair_rule(config),
        lr=config.head_lr,
        epochs=config.head_epochs,
        batch_size=config.head_batch,
        shuffle=config.head_shuffle,
        encoder_bn=config.encoder_bn,
        augment=config.augment,
        beta1=config.beta1,
        beta2=config.beta2,
        gain=config.head_gain,
        decoder=config.head_decoder,
    )


def _refine(task: AdaptationTask, config: CprConfig, labels: Artefact, head: Artefact) -> Artefact:
    return task.frozen(
        refined_labels,
        labels=labels,
        head=head,
        **_pair_rule(config),
        beta=config.beta,
        iterations=config.iterations,
        calibration=config.calibrate,
        scale=config.refine_scale,
        batch_size=config.head_batch,
    )


def _pair_rule(config: CprConfig) -> dict[str, Any]:
    """Return what stages 2 and 3 must agree on."""
    return {
        "radius": config.radius,
        "neighbourhood": config.neighbourhood,
        "border": config.border,
        "reduce": config.similarity_reduce,
        "attention": config.attention,
        "shared_attention": config.shared_attention,
        "attention_at": config.attention_at if config.attention else "context",
        "norm": config.head_norm,
    }

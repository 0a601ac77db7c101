"""The parity table: how far each stage is from its formula, worked in float64.

``python -m tests.golden.parity`` prints it, the worst over the border and neighbourhood rules;
``--all`` prints every rule. Both sides get the same float32 inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from sfuda_bench.blocks import context_similarity as similarity_block
from sfuda_bench.blocks import losses, prototypes, refinement
from sfuda_bench.blocks.pseudo_labels import mc_dropout_statistics, threshold_labels
from sfuda_bench.blocks.resample import nearest
from sfuda_bench.networks.cbam import CBAM
from sfuda_bench.networks.similarity_head import SimilarityHead
from tests.golden import reference

EXACT = 0.0
FLOAT64 = "numpy, float64"
RULES: list[tuple[similarity_block.Neighbourhood, similarity_block.Border]] = [
    ("lt", "official"),
    ("lt", "full"),
    ("le", "official"),
    ("le", "full"),
]
REDUCTIONS: tuple[similarity_block.Reduce, ...] = ("mean", "sum")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        stage: What was computed.
        difference: Largest absolute difference; for decisions, the number that differ.
        against: What it was compared with.
        tolerance: What the test allows.
    """

    stage: str
    difference: float
    against: str
    tolerance: float


def rows() -> Iterator[Row]:
    """Compute every stage on fixed small inputs and yield its line."""
    for stage in STAGES:
        yield from stage()


def _row(stage: str, ours: Any, theirs: Any, tolerance: float, against: str = FLOAT64) -> Row:
    one, two = (np.asarray(x.detach() if isinstance(x, Tensor) else x) for x in (ours, theirs))
    assert one.shape == two.shape, f"{stage}: {one.shape} against {two.shape}"
    if one.dtype == bool:
        return Row(stage, float((one != two).sum()), against, EXACT)
    return Row(stage, float(np.abs(one.astype(np.float64) - two).max()), against, tolerance)


def _normal(seed: int, *shape: int) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return torch.from_numpy(values)


def _uniform(seed: int, *shape: int) -> Tensor:
    values = np.random.default_rng(seed).random(shape).astype(np.float32)
    return torch.from_numpy(values)


def _wide(x: Any) -> reference.Array:
    return np.asarray(x.detach().numpy(), dtype=np.float64)


# -- stage 1 ---------------------------------------------------------------------------------


class _Recorded(nn.Module):
    """A network whose dropout passes are given."""

    def __init__(self, logits: Tensor, features: Tensor) -> None:
        super().__init__()
        self.passes = iter(zip(logits, features, strict=True))

    def encode(self, image: Tensor) -> Any: ...

    def context(self, encoded: Any) -> Tensor:
        return torch.zeros(1)

    def decode(self, context: Tensor, encoded: Any) -> tuple[Tensor, Tensor]:
        return cast(tuple[Tensor, Tensor], next(self.passes))

    def sampled_dropout(self) -> list[nn.Module]:
        return []


def mc_statistics() -> Iterator[Row]:
    """Probability, uncertainty and feature of 100 passes that hardly differ, and the label."""
    logits = 3 * _normal(0, 1, 2, 2, 16, 16) + 0.1 * _normal(1, 100, 2, 2, 16, 16)
    features = _normal(2, 100, 2, 5, 4, 4)
    network = _Recorded(logits, features)
    ours = mc_dropout_statistics(network, torch.zeros(2, 3, 16, 16), 100)
    prob, uncertainty, feature = reference.mc_statistics(_wide(logits), _wide(features))
    yield _row("MC probability", ours.prob, prob, 1e-6)
    yield _row("MC uncertainty", ours.uncertainty, uncertainty, 1e-7)
    yield _row("MC feature", ours.feature, feature, 1e-6)
    yield _row("initial label", threshold_labels(ours.prob, 0.75), prob > 0.75, EXACT)


def prototype_masks() -> Iterator[Row]:
    """Prototypes, the decision q and the reliability mask of one mini-batch."""
    feature, prob = _normal(3, 3, 7, 8, 8), _uniform(4, 3, 2, 32, 32)
    uncertainty = 0.1 * _uniform(5, 3, 2, 32, 32)
    label = prob > 0.5
    ours = prototypes.class_prototypes(feature, label, prob, uncertainty, 0.05)
    mask = label.numpy()
    obj, background = reference.prototypes(
        _wide(feature), mask, _wide(prob), _wide(uncertainty), 0.05
    )
    yield _row("prototypes, object", ours.object, obj, 1e-6)
    yield _row("prototypes, background", ours.background, background, 1e-6)
    decision = prototypes.class_agreement(feature, ours, (32, 32))
    expected = reference.class_decision(_wide(feature), obj, background, 32, 32)
    yield _row("class decision q", decision, expected, EXACT)
    chosen = prototypes.reliable_mask(uncertainty, label, decision, 0.05)
    yield _row(
        "reliability mask",
        chosen,
        reference.reliable(_wide(uncertainty), mask, expected, float(np.float32(0.05))),
        EXACT,
    )


# -- stage 2 ---------------------------------------------------------------------------------


def _cells(side: int) -> tuple[Tensor, Tensor]:
    """Return pseudo-labels and reliability at 16 px a cell: two blobs with uncertain pixels."""
    label = (_uniform(6, 2, 2, side * 16, side * 16) > 0.5).to(torch.uint8)
    return label, _uniform(7, 2, 2, side * 16, side * 16) > 0.2


def pairs_and_loss() -> Iterator[Row]:
    """Pair labels, similarity, its loss and gradient under each rule and reduction."""
    side, features = 9, torch.relu(_normal(8, 2, 2, 16, 9, 9))
    label, mask = _cells(side)
    grid = similarity_block.grid_labels(label, mask, (side, side))
    for neighbourhood, border in RULES:
        pairs = similarity_block.pair_index(side, side, 4, neighbourhood, border)
        listed = _pairs(side, 4, neighbourhood, border)
        name = f"{neighbourhood}, {border}"
        order = torch.stack(pairs.indices(), dim=1).numpy() == np.asarray(listed)
        yield _row(f"pair set ({name})", order, np.ones_like(order), EXACT)
        kinds = reference.pair_kinds(label.numpy(), mask.numpy(), side, side, listed)
        ours = similarity_block.pair_labels(grid, pairs)
        for value, kind in enumerate((ours.background, ours.foreground, ours.negative)):
            yield _row(f"pair labels, {_KINDS[value]} ({name})", kind, kinds == value, EXACT)
        for reduce in REDUCTIONS:
            yield from _loss(features, grid, pairs, listed, kinds, reduce, name)


_KINDS = ("bg-bg", "fg-fg", "fg-bg")


def _loss(
    features: Tensor,
    grid: Tensor,
    pairs: similarity_block.Pairs,
    listed: list[reference.Pair],
    kinds: reference.Values,
    reduce: similarity_block.Reduce,
    name: str,
) -> Iterator[Row]:
    scaled = (features if reduce == "mean" else features / 8).requires_grad_()
    distance = reference.distances(_wide(scaled), listed, reduce)
    s = similarity_block.similarity(scaled, pairs, reduce)
    yield _row(f"similarity, {reduce} ({name})", s, np.exp(-distance), 1e-6)
    loss = similarity_block.similarity_loss(scaled, grid, pairs, reduce)
    expected = reference.similarity_loss(distance, kinds, reduce)
    yield _row(f"similarity loss, {reduce} ({name})", loss, expected, 1e-6)
    (gradient,) = torch.autograd.grad(loss, scaled)
    by_hand = reference.similarity_loss_gradient(_wide(scaled), kinds, listed, reduce)
    yield _row(f"similarity gradient, {reduce} ({name})", gradient, by_hand, 1e-7)


def _pairs(side: int, radius: int, neighbourhood: str, border: str) -> list[reference.Pair]:
    return reference.pair_list(
        side, side, radius, closed=neighbourhood == "le", official=border == "official"
    )


def head() -> Iterator[Row]:
    """The similarity head with CBAM: in training by the batch's moments, afterwards by its own."""
    torch.manual_seed(0)
    network, x = SimilarityHead(attention=True), _normal(9, 2, 256, 5, 5)
    cbam = cast(CBAM, network.attention[0])
    down, up = (_wide(cast(nn.Linear, cbam.mlp[i]).weight) for i in (0, 2))
    attended = reference.cbam(_wide(x), down, up, _wide(cbam.spatial.weight)[0])
    yield _row("CBAM", cbam(x), attended, 1e-6)
    convolution, norm = (cast(nn.Sequential, network.branches[0])[i] for i in (0, 1))
    weight = _wide(convolution.weight)[:, :, 0, 0]
    affine = _wide(norm.weight), _wide(norm.bias)
    trained = network.train()(x)[:, 0]
    expected = reference.head_branch(attended, weight, *affine)
    yield _row("similarity head, train", trained, expected, 5e-5)
    moments = _wide(norm.running_mean), _wide(norm.running_var)
    expected = reference.head_branch(attended, weight, *affine, moments)
    yield _row("similarity head, eval", network.eval()(x)[:, 0], expected, 5e-5)


# -- stage 3 ---------------------------------------------------------------------------------


def refinements() -> Iterator[Row]:
    """The stencil against the dense matrix and float64, under each rule, 4 and 32 steps."""
    side = 12
    prob, features = _uniform(10, 2, 2, side, side), torch.relu(_normal(11, 2, 2, 16, side, side))
    for neighbourhood, border in RULES:
        pairs = similarity_block.pair_index(side, side, 4, neighbourhood, border)
        listed = _pairs(side, 4, neighbourhood, border)
        for steps in (4, 32):
            name = f"({neighbourhood}, {border}, t = {steps})"
            ours = refinement.refine(prob, features, 4, 2.0, steps, neighbourhood, border)
            power = torch.linalg.matrix_power(refinement.dense_transition(features, pairs), steps)
            dense = (prob.flatten(2).unsqueeze(2) @ power).view_as(prob)
            exact = reference.refine(_wide(prob), _wide(features), listed, 2.0, steps)
            yield _row(f"refinement, stencil {name}", ours, exact, 1e-5)
            yield _row(f"refinement, dense squaring {name}", dense, exact, 1e-5)
            yield _row(f"refinement, stencil {name}", ours, dense, 1e-5, "dense squaring, float32")


def from_grid_to_label() -> Iterator[Row]:
    """Down-sampling, up-sampling, calibration and the refined label."""
    prob = _uniform(12, 2, 2, 96, 96) ** 3
    grid = reference.nearest(_wide(prob), 10, 10)
    yield _row("probability on the grid", refinement.grid_prob(prob, (10, 10)), grid, EXACT)
    large = reference.bilinear(grid, 96, 96, aligned=False)
    ours = refinement.upsample_refined(nearest(prob, (10, 10)), (96, 96))
    # Source coordinates up to 10 cells are rounded to 6e-7 of a cell; the maximum is below 1.
    yield _row("up-sampling", ours, large, 2e-6)
    calibrated = refinement.calibrate(ours)
    yield _row("calibration", calibrated, reference.calibrate(large), 4e-6)
    yield _row("refined label", calibrated > 0.75, reference.calibrate(large) > 0.75, EXACT)


# -- stage 4 ---------------------------------------------------------------------------------


def adaptation() -> Iterator[Row]:
    """Masks, and the losses of CPR and DPL with their gradients."""
    prob, decision = _uniform(13, 2, 2, 6, 6), _uniform(14, 2, 2, 6, 6) > 0.4
    label = prob > 0.75
    keep = losses.confident_pixels(prob, 0.4, 0.85)
    expected = reference.pixel_mask(_wide(prob), 0.4, 0.85)
    yield _row("pixel mask", keep, expected, EXACT)
    mask = expected & (label.numpy() == decision.numpy())
    yield _row("pixel and class mask", keep & (label == decision), mask, EXACT)
    logits = (2 * _normal(15, 2, 2, 6, 6)).requires_grad_()
    for name, focal in (("CPR", 2.0), ("DPL", 0.0)):
        for reduction in ("mean", "sum"):
            ours = losses.focal_masked_bce(
                logits,
                label,
                torch.from_numpy(mask),
                focal,
                reduction,
            )
            value = reference.adaptation_loss(_wide(logits), label.numpy(), mask, focal, reduction)
            yield _row(f"{name} loss, {reduction}", ours, value, 1e-5)
        loss = losses.focal_masked_bce(logits, label, torch.from_numpy(mask), focal)
        (gradient,) = torch.autograd.grad(loss, logits)
        by_steps = reference.adaptation_gradient(_wide(logits), label.numpy(), mask, focal)
        yield _row(
            f"{name} loss, gradient", gradient, by_steps, 1e-7, "central differences, float64"
        )


STAGES: tuple[Callable[[], Iterator[Row]], ...] = (
    mc_statistics,
    prototype_masks,
    pairs_and_loss,
    head,
    refinements,
    from_grid_to_label,
    adaptation,
)


def worst_of_rules(found: Iterable[Row]) -> list[Row]:
    """Return one row per stage and comparison: the worst over border rules and step counts."""
    worst: dict[tuple[str, str], Row] = {}
    for row in found:
        short = replace(row, stage=row.stage.split(" (")[0])
        kept = worst.setdefault((short.stage, short.against), short)
        if row.difference > kept.difference:
            worst[short.stage, short.against] = short
    return list(worst.values())


def table(found: Iterable[Row]) -> str:
    """Return the parity table as Markdown."""
    lines = ["| stage | max abs difference | against | allowed |", "| --- | ---: | --- | ---: |"]
    for row in found:
        lines.append(
            f"| {row.stage} | {row.difference:.1e} | {row.against} | {row.tolerance:.0e} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(rows() if "--all" in sys.argv[1:] else worst_of_rules(rows())))

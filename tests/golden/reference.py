"""Every stage of DPL and CPR in float64, one formula after the other.

Written from the description of the methods alone, as plainly as possible and slowly where that is
plainer: nothing here knows the package that it checks, and nothing here is fast. Maps are
(B, 2, H, W), cup first; features (B, C, h, w) or, for the similarity head, (B, 2, C, h, w).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Values = NDArray[Any]
Pair = tuple[int, int]
IGNORED = 255


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


# -- resampling ------------------------------------------------------------------------------


def nearest(x: Values, height: int, width: int) -> Values:
    """Pick row floor(i * H / h) and column floor(j * W / w)."""
    rows = [math.floor(i * x.shape[-2] / height) for i in range(height)]
    columns = [math.floor(j * x.shape[-1] / width) for j in range(width)]
    return np.asarray(x[..., rows, :][..., columns])


def _weights(old: int, new: int, aligned: bool) -> Array:
    """Return the (new, old) matrix of linear interpolation along one axis."""
    matrix = np.zeros((new, old))
    for i in range(new):
        if aligned:
            at = i * (old - 1) / (new - 1) if new > 1 else 0.0
        else:
            at = max(0.0, (i + 0.5) * old / new - 0.5)
        first = min(math.floor(at), old - 1)
        second = min(first + 1, old - 1)
        matrix[i, first] += 1 - (at - first)
        matrix[i, second] += at - first
    return matrix


def bilinear(x: Array, height: int, width: int, *, aligned: bool) -> Array:
    """Interpolate linearly along rows and columns, corner pixels aligned or pixel areas aligned."""
    rows = _weights(x.shape[-2], height, aligned)
    columns = _weights(x.shape[-1], width, aligned)
    return np.asarray(np.einsum("ih,...hw,jw->...ij", rows, x, columns))


# -- stage 1: labels of the source model -----------------------------------------------------


def mc_statistics(
    logits: Array, features: Array, temperature: float = 2.0
) -> tuple[Array, Array, Array]:
    """Return probability, uncertainty and mean feature of T stacked dropout passes.

    The probability is the mean of sigma(logit); the uncertainty the standard deviation, divided
    by T - 1, of sigma(logit / temperature).
    """
    passes = len(logits)
    soft = sigmoid(logits / temperature)
    mean = soft.sum(axis=0) / passes
    variance = ((soft - mean) ** 2).sum(axis=0) / (passes - 1)
    return sigmoid(logits).sum(axis=0) / passes, np.sqrt(variance), features.sum(axis=0) / passes


def prototypes(
    feature: Array, label: Values, prob: Array, uncertainty: Array, eta: float
) -> tuple[Array, Array]:
    """Return object and background prototypes (2, C) of one mini-batch; NaN without pixels."""
    height, width = feature.shape[-2:]
    label = nearest(label.astype(np.float64), height, width)
    prob = bilinear(prob, height, width, aligned=True)
    certain = bilinear(uncertainty, height, width, aligned=True) < eta
    found = []
    for weight in (label * certain * prob, (1 - label) * certain * (1 - prob)):
        rows = []
        for structure in range(2):
            w = weight[:, structure]
            total = w.sum()
            rows.append(
                (feature * w[:, None]).sum(axis=(0, 2, 3)) / total
                if total
                else np.full(feature.shape[1], np.nan)
            )
        found.append(np.stack(rows))
    return found[0], found[1]


def class_decision(feature: Array, obj: Array, background: Array, height: int, width: int) -> Mask:
    """Return q = 1[squared distance to the object prototype < that to the background one]."""
    decisions = []
    for structure in range(2):
        to_object = ((feature - obj[structure][None, :, None, None]) ** 2).sum(axis=1)
        to_background = ((feature - background[structure][None, :, None, None]) ** 2).sum(axis=1)
        decisions.append(to_object < to_background)  # a comparison with NaN is False
    return nearest(np.stack(decisions, axis=1), height, width)


def reliable(uncertainty: Array, label: Mask, decision: Mask, eta: float) -> Mask:
    """Return M = 1[u < eta] 1[label = q]."""
    return np.asarray((uncertainty < eta) & (label == decision))


# -- stage 2: similarity of neighbours -------------------------------------------------------


def offsets(radius: int, closed: bool) -> list[tuple[int, int]]:
    """Return half of the disc around a cell: what lies after it in reading order."""
    inside = []
    for dy in range(radius + 1):
        for dx in range(-radius, radius + 1):
            after = dy > 0 or dx > 0
            square = dy * dy + dx * dx
            near = square <= radius * radius if closed else square < radius * radius
            if after and near:
                inside.append((dy, dx))
    return inside


def pair_list(height: int, width: int, radius: int, *, closed: bool, official: bool) -> list[Pair]:
    """Return the flat indices of all pairs, offset by offset, anchors in reading order.

    The official border rule leaves out anchors of the last rows and of the outer columns, as many
    as the neighbourhood reaches.
    """
    reach = radius if closed else radius - 1
    pairs = []
    for dy, dx in offsets(radius, closed):
        for y in range(height):
            for x in range(width):
                if official and not (y < height - reach and reach <= x < width - reach):
                    continue
                if y + dy < height and 0 <= x + dx < width:
                    pairs.append((y * width + x, (y + dy) * width + x + dx))
    return pairs


def pair_kinds(label: Values, mask: Mask, height: int, width: int, pairs: list[Pair]) -> Values:
    """Return 0 (both background), 1 (both foreground), 2 (one of each) or 255 for each pair."""
    marked = np.where(mask, label.astype(np.int64), IGNORED)
    cells = nearest(marked, height, width).reshape(*label.shape[:2], -1)
    kinds = np.full((*label.shape[:2], len(pairs)), IGNORED)
    for number, (one, two) in enumerate(pairs):
        a, b = cells[..., one], cells[..., two]
        kinds[..., number] = np.where(
            (a == IGNORED) | (b == IGNORED), IGNORED, np.where(a == b, a, 2)
        )
    return kinds


def distances(features: Array, pairs: list[Pair], reduce: str) -> Array:
    """Return the L1 distance of each pair over channels, their mean or their sum."""
    flat = features.reshape(*features.shape[:3], -1)
    one = flat[..., [pair[0] for pair in pairs]]
    two = flat[..., [pair[1] for pair in pairs]]
    total = np.abs(one - two).sum(axis=2)
    return np.asarray(total / features.shape[2] if reduce == "mean" else total)


def similarity_loss(distance: Array, kinds: Values, reduce: str, eps: float = 1e-5) -> float:
    """Return a quarter of each positive kind's mean and half of the negative one's, cup and disc.

    With summed distances -log S is the distance, and there is nothing to guard.
    """
    losses = []
    for structure in range(2):
        d, kind = distance[:, structure], kinds[:, structure]
        s = np.exp(-d)
        alike = d if reduce == "sum" else -np.log(s + eps)
        unlike = -np.log(1 + eps - s)
        terms = []
        for which, values in ((0, alike), (1, alike), (2, unlike)):
            chosen = kind == which
            terms.append(values[chosen].sum() / (chosen.sum() + eps))
        losses.append(0.25 * terms[0] + 0.25 * terms[1] + 0.5 * terms[2])
    return float(np.mean(losses))


def similarity_loss_gradient(
    features: Array, kinds: Values, pairs: list[Pair], reduce: str, eps: float = 1e-5
) -> Array:
    """Return the loss's derivative with respect to each feature, pair by pair."""
    d = distances(features, pairs, reduce)
    s = np.exp(-d)
    slope = np.zeros_like(d)
    for structure in range(2):
        kind = kinds[:, structure]
        part, sims = slope[:, structure], s[:, structure]
        for which, share in ((0, 0.25), (1, 0.25), (2, 0.5)):
            chosen = kind == which
            count = chosen.sum() + eps
            if which == 2:
                value = -sims / (1 + eps - sims)
            else:
                value = np.ones_like(sims) if reduce == "sum" else sims / (sims + eps)
            part[chosen] += share * value[chosen] / count / 2
    flat = features.reshape(*features.shape[:3], -1)
    gradient = np.zeros_like(flat)
    scale = 1 / features.shape[2] if reduce == "mean" else 1.0
    for number, (one, two) in enumerate(pairs):
        step = np.sign(flat[..., one] - flat[..., two]) * slope[:, :, None, number] * scale
        gradient[..., one] += step
        gradient[..., two] -= step
    return np.asarray(gradient.reshape(features.shape))


def head_branch(
    x: Array, weight: Array, scale: Array, shift: Array, moments: tuple[Array, Array] | None = None
) -> Array:
    """Return ReLU(BN(1 x 1 convolution)) of (B, C, h, w), by the batch's moments unless given."""
    y = np.einsum("oc,bchw->bohw", weight, x)
    if moments is None:
        moments = y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3))
    mean, variance = (value[None, :, None, None] for value in moments)
    normed = (y - mean) / np.sqrt(variance + 1e-5)
    scaled = normed * scale[None, :, None, None] + shift[None, :, None, None]
    return np.asarray(np.maximum(scaled, 0))


def cbam(x: Array, down: Array, up: Array, kernel: Array) -> Array:
    """Return CBAM of (B, C, h, w): channel attention, then spatial attention.

    Args:
        x: The map.
        down: (C / 16, C), first layer of the shared perceptron.
        up: (C, C / 16), its second layer.
        kernel: (2, k, k), weights for the mean and the maximum over channels.
    """
    hidden = [np.maximum(pooled @ down.T, 0) @ up.T for pooled in (x.mean((2, 3)), x.max((2, 3)))]
    x = x * sigmoid(hidden[0] + hidden[1])[:, :, None, None]
    pooled = np.stack([x.mean(axis=1), x.max(axis=1)], axis=1)
    pad = kernel.shape[-1] // 2
    padded = np.pad(pooled, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    out = np.zeros((len(x), *x.shape[-2:]))
    for i in range(x.shape[-2]):
        for j in range(x.shape[-1]):
            window = padded[:, :, i : i + kernel.shape[-2], j : j + kernel.shape[-1]]
            out[:, i, j] = (window * kernel).sum(axis=(1, 2, 3))
    return np.asarray(x * sigmoid(out)[:, None])


# -- stage 3: refinement ---------------------------------------------------------------------


def transition(distance: Array, cells: int, pairs: list[Pair], beta: float) -> Array:
    """Return T, (cells, cells), of one image and structure: A divided by its column sums."""
    affinity = np.eye(cells)
    for number, (one, two) in enumerate(pairs):
        affinity[one, two] = affinity[two, one] = math.exp(-distance[number]) ** beta
    return np.asarray(affinity / affinity.sum(axis=0))


def refine(prob: Array, features: Array, pairs: list[Pair], beta: float, steps: int) -> Array:
    """Return p T^steps of every map, T from the mean distances."""
    cells = prob.shape[-2] * prob.shape[-1]
    distance = distances(features, pairs, "mean")
    refined = np.empty_like(prob)
    for image in range(len(prob)):
        for structure in range(2):
            matrix = transition(distance[image, structure], cells, pairs, beta)
            row = prob[image, structure].reshape(-1)
            for _ in range(steps):
                row = row @ matrix
            refined[image, structure] = row.reshape(prob.shape[-2:])
    return refined


def calibrate(prob: Array) -> Array:
    """Divide each map by its maximum; a map of zeros stays."""
    peak = prob.max(axis=(-2, -1), keepdims=True)
    return np.asarray(prob / np.where(peak > 0, peak, 1.0))


# -- stage 4: adaptation ---------------------------------------------------------------------


def pixel_mask(prob: Array, low: float, high: float) -> Mask:
    """Return 1[p < low or p > high]."""
    return np.asarray((prob < low) | (prob > high))


def adaptation_loss(
    logits: Array, label: Values, mask: Mask, focal: float, reduction: str = "mean"
) -> float:
    """Return the masked, focal-weighted cross-entropy; focal 0 is DPL's loss.

    The weight of a pixel is (1 - s)^focal for foreground and s^focal for background, s the
    network's probability; the mean is over kept pixels, of both structures and all images.
    """
    s = sigmoid(logits)
    entropy = -np.where(label.astype(bool), np.log(s), np.log(1 - s))
    weight = np.where(label.astype(bool), (1 - s) ** focal, s**focal)
    if not mask.any():
        return 0.0
    total = float((entropy * weight)[mask].sum())
    return total / int(mask.sum()) if reduction == "mean" else total


def adaptation_gradient(
    logits: Array, label: Values, mask: Mask, focal: float, step: float = 1e-5
) -> Array:
    """Return central differences of the loss with respect to each logit."""
    gradient = np.zeros_like(logits)
    for at in np.ndindex(logits.shape):
        values = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[at] += sign * step
            values.append(adaptation_loss(moved, label, mask, focal))
        gradient[at] = (values[0] - values[1]) / (2 * step)
    return gradient

"""Context similarity as gathered pairs and dense matrices, labels as loops over offsets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_EPS = 1e-5


@dataclass(frozen=True)
class Paths:
    """Flat indices of anchors (A,) and of their partners (offsets, A) on one grid."""

    size: int
    anchors: NDArray[np.int64]
    partners: NDArray[np.int64]

    @classmethod
    def of(cls, size: int, radius: int) -> Paths:
        """List the pairs of a square grid whose distance is below ``radius``.

        Anchors in the last rows and the outer columns are left out, so that every partner exists.
        """
        offsets = [(0, dx) for dx in range(1, radius)]
        for dy in range(1, radius):
            for dx in range(-radius + 1, radius):
                if dx * dx + dy * dy < radius * radius:
                    offsets.append((dy, dx))
        cells = np.arange(size * size).reshape(size, size)
        high, left, right = size - radius + 1, radius - 1, size - radius + 1
        anchors = cells[:high, left:right].reshape(-1)
        partners = [cells[dy : dy + high, left + dx : right + dx].reshape(-1) for dy, dx in offsets]
        return cls(size, anchors, np.stack(partners))


def affinity(features: Tensor, paths: Paths) -> Tensor:
    """Return S (B, offsets, A) of one structure's features (B, C, h, w), by gathering all pairs."""
    flat = features.flatten(2)
    from_ = torch.index_select(flat, 2, torch.from_numpy(paths.anchors))
    to = torch.index_select(flat, 2, torch.from_numpy(paths.partners.reshape(-1)))
    to = to.view(*flat.shape[:2], *paths.partners.shape)
    return torch.exp(-(to - from_.unsqueeze(2)).abs().mean(dim=1))


def label_affinity(
    label: NDArray[np.uint8], paths: Paths
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Return which pairs of one grid label (h, w) are background, foreground and negative.

    255 is ignored. Each (offsets, A) float32.
    """
    flat = label.reshape(-1)
    first = np.repeat(flat[paths.anchors][None], len(paths.partners), axis=0)
    second = np.stack([flat[row] for row in paths.partners])
    valid = np.logical_and(first < 255, second < 255)
    same = np.logical_and(first == second, valid)
    background = np.logical_and(same, first == 0).astype(np.float32)
    foreground = np.logical_and(same, first == 1).astype(np.float32)
    negative = np.logical_and(first != second, valid).astype(np.float32)
    return background, foreground, negative


def loss(similarity: Tensor, background: Tensor, foreground: Tensor, negative: Tensor) -> Tensor:
    """Return one structure's similarity loss; all (B, offsets, A)."""
    like = -torch.log(similarity + _EPS)
    unlike = -torch.log(1.0 + _EPS - similarity)
    return (
        (background * like).sum() / (background.sum() + _EPS) / 4
        + (foreground * like).sum() / (foreground.sum() + _EPS) / 4
        + (negative * unlike).sum() / (negative.sum() + _EPS) / 2
    )


def dense_matrix(similarity: Tensor, paths: Paths) -> Tensor:
    """Return the dense symmetric W (n, n) of one image's S (offsets, A)."""
    anchors = torch.from_numpy(np.repeat(paths.anchors[None], len(paths.partners), axis=0))
    partners = torch.from_numpy(paths.partners)
    dense = torch.eye(paths.size * paths.size)
    dense[anchors, partners] = similarity
    dense[partners, anchors] = similarity
    return dense


def walked(similarity: Tensor, prob: Tensor, paths: Paths, beta: float, logt: int) -> Tensor:
    """Return one map (h, w) after 2 ** logt steps, by squaring the dense transition matrix."""
    affinities = dense_matrix(similarity, paths) ** beta
    transition = affinities / affinities.sum(dim=0, keepdim=True)
    for _ in range(logt):
        transition = torch.matmul(transition, transition)
    return torch.matmul(prob.reshape(1, -1), transition).view_as(prob)

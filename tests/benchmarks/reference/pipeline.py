"""CPR as four plain scripts: what the released code does, with its waste, on one pair.

Every stage reads PNG files again, sample by sample, and leaves npz files of float32 for the next;
Monte-Carlo passes are whole forwards on stacks; neighbour labels are extracted for every sample
and epoch; all pairs are gathered, also in the forwards of the last stage; transition matrices are
dense and squared; after every epoch the test images are evaluated one by one with medpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # the field's name for it

from sfuda_bench.networks.similarity_head import SimilarityHead
from sfuda_bench.networks.taps import SegmentationNetwork
from tests.benchmarks.reference.context_similarity import (
    Paths,
    affinity,
    label_affinity,
    loss,
    walked,
)
from tests.benchmarks.reference.images import Sample, files, load, read_mask
from tests.benchmarks.reference.mc_dropout import stacked_statistics

Array = NDArray[Any]
PairLabels = tuple[Array, Array, Array]
_STRIDE = 16


@dataclass(frozen=True)
class Recipe:
    """The settings of one run, named as in the method's config.

    Attributes:
        size: Side of the model input, px.
        grid: Side of the evaluation grid, px.
        passes: Dropout passes.
        quantile: Share of certain pixels per batch, or ``None`` for the fixed ``eta``.
        head_epochs: Epochs of stage 2.
        epochs: Epochs of stage 4.
    """

    size: int
    grid: int
    passes: int
    head_epochs: int
    epochs: int
    quantile: float | None = None
    eta: float = 0.05
    threshold: float = 0.75
    mc_batch: int = 4
    batch: int = 8
    head_lr: float = 3e-2
    lr: float = 3e-4
    radius: int = 4
    beta: float = 2.0
    logt: int = 2
    low: float = 0.4
    high: float = 0.85


class Pair:
    """One target domain and the network that is adapted to it.

    Args:
        network: The source model; changed in place.
        root: Folder of the target domain.
        folder: Where the stages leave their files.
        recipe: The settings.
        seed: Of augmentation, dropout and initialisation.
    """

    def __init__(
        self, network: SegmentationNetwork, root: Path, folder: Path, recipe: Recipe, seed: int = 0
    ) -> None:
        self.network, self.root, self.folder, self.recipe = network, root, folder, recipe
        self.rng = np.random.default_rng(seed)
        self.paths = Paths.of(recipe.size // _STRIDE, recipe.radius)
        self.head = SimilarityHead(generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(seed)
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> dict[str, list[float]]:
        """Run all stages and return the scores of :meth:`evaluate`."""
        self.generate()
        self.learn_similarity()
        self.refine()
        return self.adapt()

    # -- stage 1 ----------------------------------------------------------------------------

    def generate(self) -> None:
        """Label the target by Monte-Carlo dropout and prototypes; write one large npz file."""
        found: dict[str, dict[str, Any]] = {
            k: {} for k in ("label", "spread", "nearer", "prob", "eta")
        }
        for samples in self._batches(self.recipe.mc_batch, augment=False):
            image = _stack(samples)
            prob, spread, feature, _ = stacked_statistics(self.network, image, self.recipe.passes)
            label = (prob > self.recipe.threshold).float()
            eta = self.recipe.eta
            if self.recipe.quantile is not None:
                eta = float(np.quantile(spread.numpy(), self.recipe.quantile))
            nearer = nearer_prototype(feature, label, prob, spread, eta)
            for i, sample in enumerate(samples):
                values = (label, spread, nearer, prob)
                for name, value in zip(found, values, strict=False):
                    found[name][sample.name] = value[i].numpy()
                found["eta"][sample.name] = np.array(eta)
        for name, arrays in found.items():
            np.savez(self.folder / f"{name}.npz", **arrays)

    # -- stage 2 ----------------------------------------------------------------------------

    def learn_similarity(self, *, log: bool = True) -> list[float]:
        """Train the similarity head; return the loss of each step.

        Args:
            log: After each epoch go through the data once more, whole forwards and neighbour
                labels of the ground truth, for a loss that is only printed.
        """
        stored = self._read("label", "spread", "nearer", "eta")
        self.network.requires_grad_(False)
        optimizer = torch.optim.Adam(
            self.head.parameters(), lr=self.recipe.head_lr, betas=(0.9, 0.99)
        )
        losses = []
        for _ in range(self.recipe.head_epochs):
            for samples in self._batches(self.recipe.batch, augment=True):
                labels = [self._pair_labels(stored, sample) for sample in samples]
                for sample in samples:  # the loader extracts those of the ground truth as well
                    _neighbours(sample.mask.astype(np.uint8), self.paths)
                losses.append(self.similarity_step(_stack(samples), labels, optimizer))
            if log:
                self._log_against_truth(stored)
        self.network.requires_grad_(True)
        return losses

    @torch.no_grad()
    def _log_against_truth(self, stored: dict[str, dict[str, Array]]) -> None:
        self.network.eval()
        self.head.eval()
        for samples in self._batches(self.recipe.batch, augment=True):
            for sample in samples:
                self._pair_labels(stored, sample)
            truth = [_neighbours(sample.mask.astype(np.uint8), self.paths) for sample in samples]
            _, similar = self._whole_forward(_stack(samples))
            for k, one in enumerate(similar):
                loss(one, *_kinds(truth, k))

    def similarity_step(
        self,
        image: Tensor,
        labels: list[list[PairLabels]],
        optimizer: torch.optim.Optimizer,
    ) -> float:
        """Take one step on images (B, 3, S, S) and each image's and structure's pair labels."""
        self.network.train()
        self.head.train()
        _, similar = self._whole_forward(image)
        total = torch.zeros(())
        for k, one in enumerate(similar):
            total = total + loss(one, *_kinds(labels, k)) / 2
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        return total.item()

    def pair_labels_of(self, samples: list[Sample]) -> list[list[PairLabels]]:
        """Extract the neighbour labels of some samples from the stored stage 1."""
        stored = self._read("label", "spread", "nearer", "eta")
        return [self._pair_labels(stored, sample) for sample in samples]

    def _pair_labels(self, stored: dict[str, dict[str, Array]], sample: Sample) -> list[PairLabels]:
        """Extract the neighbour labels of one sample: 255 where the label is not reliable."""
        name = sample.name
        label, nearer = stored["label"][name], stored["nearer"][name]
        certain = stored["spread"][name] < stored["eta"][name]
        marked = np.where(certain & (label == nearer), label, 255).astype(np.uint8)
        return _neighbours(marked, self.paths)

    def _whole_forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits and both structures' similarities: the network computes them always."""
        encoded = self.network.encode(image)
        context = self.network.context(encoded)
        logits, _ = self.network.decode(context, encoded)
        features = self.head(context)
        return logits, [affinity(features[:, k], self.paths) for k in range(2)]

    # -- stage 3 ----------------------------------------------------------------------------

    @torch.no_grad()
    def refine(self) -> None:
        """Refine the probabilities image by image; write labels and maps."""
        stored = self._read("prob")["prob"]
        self.network.eval()
        self.head.eval()
        size, side = self.recipe.size, self.paths.size
        labels: dict[str, Any] = {}
        maps: dict[str, Any] = {}
        for (sample,) in self._batches(1, augment=False):
            _, similar = self._whole_forward(_stack([sample]))
            prob = torch.from_numpy(stored[sample.name])[None]
            small = F.interpolate(prob, size=(side, side), mode="nearest")[0]
            refined = torch.stack([
                walked(one[0], small[k], self.paths, self.recipe.beta, self.recipe.logt)
                for k, one in enumerate(similar)
            ])  # fmt: skip
            large = F.interpolate(
                refined[None], size=(size, size), mode="bilinear", align_corners=False
            )
            scaled = (large / large.amax(dim=(2, 3), keepdim=True))[0].numpy()
            maps[sample.name] = scaled
            labels[sample.name] = (scaled > self.recipe.threshold).astype(np.float32)
        np.savez(self.folder / "refined_prob.npz", **maps)
        np.savez(self.folder / "refined_label.npz", **labels)

    # -- stage 4 ----------------------------------------------------------------------------

    def adapt(self) -> dict[str, list[float]]:
        """Train the whole network on the refined labels; return the scores of the last epoch."""
        scores: dict[str, list[float]] = {}
        stored = self._read("refined_prob", "refined_label", "nearer")
        optimizer = torch.optim.Adam(
            self.network.parameters(), lr=self.recipe.lr, betas=(0.9, 0.99)
        )
        for _ in range(self.recipe.epochs):
            for samples in self._batches(self.recipe.batch, augment=True):
                prob, label, nearer = (
                    torch.from_numpy(np.stack([stored[kind][s.name] for s in samples]))
                    for kind in ("refined_prob", "refined_label", "nearer")
                )
                mask = ((prob < self.recipe.low) | (prob > self.recipe.high)).float()
                mask = mask * (label == nearer).float()
                self.network.train()
                logits, _ = self._whole_forward(_stack(samples))
                guess = torch.sigmoid(logits)
                weight = (1 - guess) ** 2 * label + guess**2 * (1 - label)
                each = weight * F.binary_cross_entropy(guess, label, reduction="none")
                total = (each * mask).sum() / mask.sum()
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
            scores = self.evaluate()
        return scores

    @torch.no_grad()
    def evaluate(self) -> dict[str, list[float]]:
        """Score the test split image by image, at batch 1: Dice, and ASSD of medpy at 0.75.

        Returns:
            ``dice-0.5`` and ``dice-0.75``: the mean Dice of cup and disc.
        """
        binary: Any = importlib.import_module("medpy.metric.binary")  # ships no types
        self.network.eval()
        self.head.eval()
        grid = (self.recipe.grid, self.recipe.grid)
        scores: dict[str, list[list[float]]] = {"dice-0.5": [], "dice-0.75": []}
        for path in files(self.root, "test"):
            logits, _ = self._whole_forward(_stack([load(path, self.recipe.size, None)]))
            prob = F.interpolate(torch.sigmoid(logits), grid, mode="bilinear")[0]
            truth = read_mask(path, self.recipe.grid).astype(bool)
            for threshold in (0.5, 0.75):
                both = list(zip((prob > threshold).numpy(), truth, strict=True))
                scores[f"dice-{threshold}"].append([float(binary.dc(a, b)) for a, b in both])
                for mine, true in both:
                    if threshold == 0.75 and mine.any() and true.any():
                        binary.assd(mine, true)
        return {name: list(np.mean(values, axis=0)) for name, values in scores.items()}

    # -- files ------------------------------------------------------------------------------

    def _batches(self, size: int, *, augment: bool) -> Iterator[list[Sample]]:
        """Read the target's train split again, sample by sample; one image never stands alone."""
        found = files(self.root, "train")
        starts = list(range(0, len(found), size))
        if size > 1 and len(starts) > 1 and len(found) - starts[-1] == 1:
            starts.pop()
        ends = [*starts[1:], len(found)]
        for start, end in zip(starts, ends, strict=True):
            yield [
                load(p, self.recipe.size, self.rng if augment else None) for p in found[start:end]
            ]

    def _read(self, *names: str) -> dict[str, dict[str, Array]]:
        return {name: dict(np.load(self.folder / f"{name}.npz")) for name in names}


def _stack(samples: list[Sample]) -> Tensor:
    return torch.from_numpy(np.stack([sample.image for sample in samples]))


def _kinds(labels: list[list[PairLabels]], structure: int) -> list[Tensor]:
    """Return the three kinds of pairs of one structure as batches."""
    return [torch.from_numpy(np.stack([one[structure][j] for one in labels])) for j in range(3)]


def _neighbours(label: NDArray[np.uint8], paths: Paths) -> list[PairLabels]:
    """Return the pair labels of both structures of a full-size label (2, S, S)."""
    step = label.shape[-1] // paths.size
    return [label_affinity(one[::step, ::step], paths) for one in label]


def nearer_prototype(
    feature: Tensor, label: Tensor, prob: Tensor, spread: Tensor, eta: float
) -> Tensor:
    """Return q (B, 2, S, S) float: 1 where the object's prototype is the nearer one."""
    size = feature.shape[-2:]
    small = F.interpolate(label, size=size, mode="nearest")
    p, u = (
        F.interpolate(x, size=size, mode="bilinear", align_corners=True) for x in (prob, spread)
    )
    certain = (u < eta).float()
    decisions = []
    for k in range(2):
        weight = (small * certain * p)[:, k : k + 1]
        other = ((1 - small) * certain * (1 - p))[:, k : k + 1]
        both = []
        for w in (weight, other):
            centre = (feature * w).sum(dim=(0, 2, 3), keepdim=True) / w.sum()
            both.append((feature - centre).pow(2).sum(dim=1))
        decisions.append((both[0] < both[1]).float())
    return F.interpolate(torch.stack(decisions, dim=1), size=label.shape[-2:], mode="nearest")


def train_plainly(
    network: SegmentationNetwork, root: Path, size: int, updates: int, batch: int = 8, seed: int = 0
) -> SegmentationNetwork:
    """Fit a network to a labelled domain for some updates: a source model to start from."""
    samples = [load(path, size, None) for path in files(root, "train")]
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.99))
    network.train()
    for update in range(updates):
        if update == int(0.75 * updates):
            optimizer.param_groups[0]["lr"] = 2e-4
        chosen = torch.randint(len(samples), (batch,), generator=draw).tolist()
        image = _stack([samples[i] for i in chosen])
        truth = torch.from_numpy(np.stack([samples[i].mask for i in chosen]))
        if update % 2:
            image, truth = image.flip(-1), truth.flip(-1)
        total = F.binary_cross_entropy_with_logits(network(image), truth)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return network.eval()

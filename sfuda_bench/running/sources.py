"""Source models: supervised training on the source ``train`` split, and the model card.

Runs in the label worker, the only process that opens masks.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfuda_bench.errors import DataError, StoreSchemaError
from sfuda_bench.images.augment import augment_source
from sfuda_bench.images.packed import load_pack
from sfuda_bench.images.resident import ResidentImages, batch_indices, normalise
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.checkpoint import Checkpoints, checkpoints_of
from sfuda_bench.running.code_digest import code_digest
from sfuda_bench.running.keys import derive_seed, digest, model_sha256
from sfuda_bench.running.predict import predict
from sfuda_bench.running.runtime import autocast
from sfuda_bench.running.seals import check_listed_file
from sfuda_bench.running.store import Store, write_json
from sfuda_bench.running.streams import Streams
from sfuda_bench.scoring.codes import decode
from sfuda_bench.scoring.vcdr import vertical_cup_to_disc_ratio
from sfuda_bench.settings import Inference, NetworkSettings, SourceRecipe
from sfuda_bench.tunable import keyed_values

SOURCE_VERSION = 1
CARD_THRESHOLDS = (0.5, 0.75)
_SELECTION_THRESHOLD = 0.5
SOURCE_TEST_BEST = "source_test_best"
_SOURCE_TEST_THRESHOLD = 0.75  # at which the released code validates
_CHOSEN_ON = {
    "source_val": "held-out images of the source train split",
    "last": "nothing: the last epoch",
    SOURCE_TEST_BEST: "the source test split, whose scores are therefore no estimate",
}
_log = logging.getLogger(__name__)

Emit = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LabelledSet:
    """Images and masks of one split at one size, packed in the same order.

    Attributes:
        images: (N, S, S, 3) uint8.
        masks: (N, 2, S, S) bool.
    """

    images: np.ndarray[Any, Any]
    masks: np.ndarray[Any, Any]

    def take(self, index: np.ndarray[Any, Any]) -> LabelledSet:
        """Return the subset at ``index``."""
        return LabelledSet(self.images[index], self.masks[index])


def build_network(settings: NetworkSettings) -> SegmentationNetwork:
    """Build a network from its settings (``encoder_weights`` ``"none"`` means from scratch)."""
    weights = None if settings.encoder_weights == "none" else settings.encoder_weights
    return NETWORKS.get(settings.name).build(settings.encoder, weights)


def validation_indices(count: int, fraction: float, key: str) -> np.ndarray[Any, Any]:
    """Choose the validation images of a source ``train`` split.

    The packed order follows the content digest, so this choice follows content and not names.

    Returns:
        Sorted positions, at least one and at most ``count - 1`` of them.
    """
    size = min(max(1, round(fraction * count)), count - 1)
    order = sorted(range(count), key=lambda position: digest([key, position]))
    return np.array(sorted(order[:size]))


def train_source(
    train: LabelledSet,
    train_large: LabelledSet,
    network_settings: NetworkSettings,
    recipe: SourceRecipe,
    *,
    key: str,
    source_seed: int,
    device: torch.device,
    precision: str,
    emit: Emit,
    test: LabelledSet | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Train a segmentation network on labelled source images.

    Args:
        train: The ``train`` split at the model's input size (validated on).
        train_large: The same at ``train_scale`` times that size (crops are taken from it).
        network_settings: Which network.
        recipe: Optimiser, schedule, augmentation and selection.
        key: Recipe key; the random streams derive from it.
        source_seed: Seed of initialisation, order and augmentation.
        device: Where to train.
        precision: ``"float32"`` or ``"bfloat16"``.
        emit: Called with (stage, epoch, epochs).
        test: The ``test`` split, on which ``source_test_best`` chooses; nothing is held out of
            ``train`` then.
        checkpoints: Where finished epochs are kept until the model is committed.

    Returns:
        The selected network in eval mode, and facts for its card.

    Raises:
        DataError: ``source_test_best`` without a labelled ``test`` split.

    Source:
        DPL/CPR ``train_source.py``: BCE on two sigmoid channels, Adam (0.9, 0.99), batch 8.
        ``source_test_best`` is CPR's choice at 1fea8d4: the best sum of cup and disc Dice at
        threshold 0.75 on the source test split (DPL at 634de5b validates on the *target* test
        split, which no setting repeats). Departure of the default, ``source_val``: a held-out
        share of the source ``train`` split, at threshold 0.5.
    """
    streams = Streams(digest({"source": key, "seed": source_seed}))
    torch.manual_seed(derive_seed(key, source_seed, "init"))
    network = build_network(network_settings).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks this form
    optimizer = torch.optim.Adam(
        network.parameters(), lr=recipe.lr, betas=(recipe.beta1, recipe.beta2)
    )
    fitting, validation, threshold = _parts(train, train_large, test, recipe)
    trainer = _Trainer(network, optimizer, fitting, recipe, streams, device, precision)
    best = _Best()
    carried = {"network": network, "optimizer": optimizer, "best": best}
    epoch = 0 if checkpoints is None else checkpoints.begin(carried)
    updates = epoch * trainer.steps
    while not _finished(recipe, epoch, updates, best):
        epoch += 1
        loss = trainer.epoch(epoch, crop=train.images.shape[1])
        updates += trainer.steps
        emit("training", epoch, recipe.epochs)
        if epoch % recipe.validate_every == 0 or epoch == recipe.epochs:
            score = mean_dice(network, validation, device, precision)[threshold]
            best.offer(sum(score) / 2, epoch, updates, network)
            _log.info(
                "epoch %d updates %d loss %.4f validation dice %s", epoch, updates, loss, score
            )
        if checkpoints is not None:
            checkpoints.offer(epoch, carried)
    if recipe.selection != "last":
        network.load_state_dict(best.state)
    facts = {
        "epochs": epoch,
        "updates": updates,
        "selected_epoch": best.epoch if recipe.selection != "last" else epoch,
        "selected_on": _CHOSEN_ON[recipe.selection],
        "validation_images": len(validation.images),
        "validation_dice": _by_threshold(mean_dice(network, validation, device, precision)),
        "validation_curve": best.history,
    }
    return network.eval(), facts


def _parts(
    train: LabelledSet, train_large: LabelledSet, test: LabelledSet | None, recipe: SourceRecipe
) -> tuple[LabelledSet, LabelledSet, float]:
    """Return what is trained on, what validates, and the threshold of the validation."""
    if recipe.selection == SOURCE_TEST_BEST:
        if test is None:
            raise DataError(
                f"source.selection = {SOURCE_TEST_BEST}: the source test split has no masks",
                hint="--set source.selection=source_val",
            )
        return train_large, test, _SOURCE_TEST_THRESHOLD
    held_out = validation_indices(len(train.images), recipe.validation_fraction, "source_val")
    fit_on = np.setdiff1d(np.arange(len(train.images)), held_out)
    return train_large.take(fit_on), train.take(held_out), _SELECTION_THRESHOLD


class _Best:
    """The best validation score so far and how long ago it was."""

    def __init__(self) -> None:
        self.score = -math.inf
        self.epoch = 0
        self.updates = 0
        self.since: list[int] = []
        self.state: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)

    def offer(self, score: float, epoch: int, updates: int, network: nn.Module) -> None:
        self.history.append({"epoch": epoch, "updates": updates, "dice": round(score, 6)})
        if score > self.score:
            self.score, self.epoch, self.since = score, epoch, []
            self.state = {k: v.detach().clone() for k, v in network.state_dict().items()}
        else:
            self.since.append(updates)


def _finished(recipe: SourceRecipe, epoch: int, updates: int, best: _Best) -> bool:
    """Stop at the epoch limit, or at a plateau once the minimum of updates is done."""
    if epoch >= recipe.epochs:
        return True
    waited = sum(1 for at in best.since if at >= recipe.min_updates)
    return updates >= recipe.min_updates and 0 < recipe.patience <= waited


@dataclass
class _Trainer:
    network: SegmentationNetwork
    optimizer: torch.optim.Optimizer
    data: LabelledSet
    recipe: SourceRecipe
    streams: Streams
    device: torch.device
    precision: str

    def __post_init__(self) -> None:
        self.images = ResidentImages(self.data.images, self.device)
        self.masks = torch.from_numpy(self.data.masks).to(self.device)

    @property
    def steps(self) -> int:
        """Updates in one epoch."""
        return len(batch_indices(len(self.images), self.recipe.batch_size))

    def epoch(self, epoch: int, crop: int) -> float:
        """Train one epoch and return the mean loss."""
        self.streams.begin(epoch)
        self._set_lr(epoch)
        self.network.train()
        order = self.streams.generator("order")
        augment = self.streams.generator("augment", self.device)
        total = 0.0
        batches = batch_indices(len(self.images), self.recipe.batch_size, order, shuffle=True)
        for index in batches:
            index = index.to(self.device)
            image, mask = augment_source(
                self.images.images[index], self.masks[index], crop, augment, self.recipe.augment
            )
            with autocast(self.device, self.precision):
                logits = self.network(normalise(image))
            loss = nn.functional.binary_cross_entropy_with_logits(logits.float(), mask.float())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach())
        return total / len(batches)

    def _set_lr(self, epoch: int) -> None:
        """Drop the rate once: lr * factor from the drop epoch on, not compounded."""
        dropped = epoch > self.recipe.lr_drop_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr * (self.recipe.lr_drop_factor if dropped else 1.0)


def mean_dice(
    network: nn.Module, data: LabelledSet, device: torch.device, precision: str
) -> dict[float, tuple[float, float]]:
    """Return the mean smoothed Dice (cup, disc) at each of :data:`CARD_THRESHOLDS`.

    Computed at the model's input size; it selects checkpoints and describes source models, and
    is not the score that tables show.
    """
    prob = decode(
        predict(network, ResidentImages(data.images, device).images, Inference(), precision)
    )
    scores = {}
    for threshold in CARD_THRESHOLDS:
        hard = prob > threshold
        overlap = (hard & data.masks).sum(axis=(2, 3))
        total = hard.sum(axis=(2, 3)) + data.masks.sum(axis=(2, 3))
        cup, disc = ((2 * overlap + 1) / (total + 1)).mean(axis=0)
        scores[threshold] = (float(cup), float(disc))
    return scores


def _by_threshold(scores: dict[float, tuple[float, float]]) -> dict[str, dict[str, float]]:
    return {
        str(threshold): {"cup": round(cup, 6), "disc": round(disc, 6)}
        for threshold, (cup, disc) in scores.items()
    }


def area_prior(masks: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Summarise source training labels in a few scalars (strictness class S1).

    Args:
        masks: (N, 2, H, W) bool.

    Returns:
        Mean and quantiles (1, 25, 50, 75, 99 %) over images of the area ratios of cup, disc and
        rim inside the ROI and of the vertical cup-to-disc ratio (images without disc left out).
    """
    cup, disc = masks.mean(axis=(2, 3)).T
    ratios = np.array([vertical_cup_to_disc_ratio(mask) for mask in masks])
    values = {"cup": cup, "disc": disc, "rim": disc - cup, "vcdr": ratios[np.isfinite(ratios)]}
    levels = (0.01, 0.25, 0.5, 0.75, 0.99)
    return {
        name: {
            "mean": float(np.mean(series)),
            "quantiles": {str(q): float(np.quantile(series, q)) for q in levels},
        }
        for name, series in values.items()
        if len(series)
    }


def compute_source(job: dict[str, Any], store: Store, device: torch.device, emit: Emit) -> None:
    """Train, describe and commit one source model (label worker)."""
    started = time.time()
    network_settings = NetworkSettings(**job["network"])
    recipe = SourceRecipe(**job["recipe"])
    checkpoints = checkpoints_of(job, store, device, code_digest(Path(__file__)))
    train = _load_set(job["train"])
    same = job["train_large"] == job["train"]
    train_large = train if same else _load_set(job["train_large"])
    test = None if job["test"] is None else _load_set(job["test"])
    network, facts = train_source(
        train,
        train_large,
        network_settings,
        recipe,
        key=job["key"],
        source_seed=job["source_seed"],
        device=device,
        precision=job["precision"],
        emit=emit,
        test=test,
        checkpoints=checkpoints,
    )
    state = {
        name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()
    }
    folder = store.staging(job["key"], "source")
    save_file(state, folder / "model.safetensors")
    write_json(folder / "aux" / "area_prior.json", area_prior(train.masks))
    card: dict[str, Any] = {
        "key": job["key"],
        "domain": job["domain"],
        "source_seed": job["source_seed"],
        "recipe": asdict(recipe),
        "network": asdict(network_settings),
        "image_size": job["image_size"],
        "roi_crop_px": job["roi_crop_px"],
        "precision": job["precision"],
        "train_images": len(train.images),
        "selection": recipe.selection,
        "data_digest": job["data_digest"],
        "model_sha256": model_sha256(state),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "seconds": round(time.time() - started, 1),
        **facts,
    }
    if test is not None:
        card["test_images"] = len(test.images)
        card["test_dice"] = _by_threshold(mean_dice(network, test, device, job["precision"]))
    write_json(folder / "card.json", card)
    store.keep_log(job["key"], folder)
    store.commit(folder, store.source(job["domain"], job["key"]))


def _load_set(paths: dict[str, str]) -> LabelledSet:
    images, masks = (load_pack(Path(paths[kind])) for kind in ("images", "masks"))
    return LabelledSet(np.array(images), masks.astype(bool))


def load_source_model(
    folder: Path, settings: NetworkSettings, device: torch.device
) -> SegmentationNetwork:
    """Load a committed source model in eval mode.

    Raises:
        StoreSchemaError: The file is damaged or belongs to another network.
    """
    # The stored weights replace whatever the encoder started from: nothing is downloaded again.
    network = NETWORKS.get(settings.name).build(settings.encoder, None)
    path = folder / "model.safetensors"
    check_listed_file(path)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise StoreSchemaError(
            f"{path}: not a readable model of network '{settings.name}' ({error})",
            hint=f"delete {folder} and run the same command again",
        ) from error
    return network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]  # torch's stub lacks this form


def source_key(
    *,
    data_digest: dict[str, str],
    network: NetworkSettings,
    network_version: int,
    encoder_digest: str,
    image_size: int,
    recipe: SourceRecipe,
    precision: str,
    source_seed: int,
) -> str:
    """Return the recipe key of a source model, known before it is trained."""
    return digest(
        {
            "source": SOURCE_VERSION,
            "data": data_digest,
            "network": [network.name, network.encoder, encoder_digest, network_version],
            "image_size": image_size,
            "recipe": keyed_values(recipe),
            "precision": precision,
            "source_seed": source_seed,
        }
    )

"""A network in a file, and what is known of it: the card beside it, or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sfuda_bench.errors import DataError, StoreSchemaError, UsageError
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.networks.state_files import read_state
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.keys import file_digest, model_sha256
from sfuda_bench.running.source_import import load_network
from sfuda_bench.running.store import Store, read_json
from sfuda_bench.settings import Inference, NetworkSettings
from sfuda_bench.tunable import build_config

ADAPTED = "adapted model"
"""The ``kind`` in the card of a model that was adapted to one's own images."""
Kind = Literal["source", "cell", "adapted", "bare"]
_WEIGHTS = "model.safetensors"
_OWN_SOURCE = "own_source"
_SETTINGS = ("network", "image_size", "roi_crop_px", "inference", "inference_seed", "precision")
_DIGESTS = {
    "source": "model_sha256",
    "cell": "adapted_model_sha256",
    "adapted": "adapted_model_sha256",
}


@dataclass(frozen=True)
class OwnModel:
    """A file of weights and what its card says.

    Attributes:
        file: The weights.
        kind: ``source`` (a store's source model), ``cell`` (a store's adapted model), ``adapted``
            (adapted to one's own images), ``bare`` (weights and no card).
        card: The card, empty for ``bare``.
    """

    file: Path
    kind: Kind
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> NetworkSettings | None:
        """The network whose weights these are, where the card says it."""
        return NetworkSettings(**self.card["network"]) if "network" in self.card else None

    @property
    def image_size(self) -> int | None:
        """Side of the input that it was trained for, px."""
        size = self.card.get("image_size")
        return None if size is None else int(size)

    @property
    def domain(self) -> str:
        """The domain it was trained on; a name of its own where that is unknown."""
        return str(self.card["domain"]) if self.kind == "source" else _OWN_SOURCE

    @property
    def inference(self) -> Inference:
        """How it is run: as its card says, else with running statistics and no dropout."""
        return Inference(**self.card.get("inference", {}))

    @property
    def aux(self) -> frozenset[str]:
        """Names of the source-side extras stored with it."""
        if self.kind != "source":
            return frozenset()
        return frozenset(path.stem for path in (self.file.parent / "aux").glob("*.json"))

    def offer(self, store: Store) -> str:
        """Make it usable by a run over ``store``; return the text for ``--source-model``.

        A source model keeps its key, and with it the random streams of every run that uses it.
        """
        if self.kind != "source":
            return str(self.file)
        folder = store.source(self.domain, str(self.card["key"]))
        if not (folder / "card.json").is_file():
            staged = store.staging(str(self.card["key"]), "source")
            shutil.copytree(self.file.parent, staged, dirs_exist_ok=True)
            store.commit(staged, folder)
        return str(self.card["key"])


def is_kind(record: Path, kind: str) -> bool:
    """Whether a JSON file is there, can be read, and is a record of this ``kind`` of ours."""
    try:
        return record.is_file() and read_json(record).get("kind") == kind
    except StoreSchemaError:
        return False


def find_model(path: Path) -> OwnModel:
    """Open a file of weights, or the folder of a stored model, and check it against its card.

    Raises:
        DataError: No such file, or unreadable weights.
        StoreSchemaError: The card is damaged or belongs to other weights.
    """
    file = path / _WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"--model {file}: no such file", hint="sfuda-bench source ls --out STORE")
    kind, card_file = _card_of(file)
    if card_file is None:
        return OwnModel(file, kind)
    card = read_json(card_file)
    lacking = [k for k in ("network", _DIGESTS[kind]) if k not in card]
    if lacking:
        raise StoreSchemaError(
            f"{card_file}: the card of a model without {', '.join(lacking)}",
            hint=f"restore the card, or move it away and name the network of {file.name}",
        )
    _check_card(card_file, card)
    if model_sha256(read_state(file, "--model", "check the path")) != card[_DIGESTS[kind]]:
        raise StoreSchemaError(
            f"--model {file}: other weights than those that {card_file.name} describes",
            hint="copy model and card together, or move the card away and name the network",
        )
    return OwnModel(file, kind, card)


def run_like(model: OwnModel, card: Path) -> OwnModel:
    """Return the model with the network, size, window and inference that another card says.

    Raises:
        UsageError: The card is of no adapted model, or of another network.
        StoreSchemaError: It is damaged.
    """
    found = read_json(card) if card.is_file() else {}
    if found.get("kind") != ADAPTED:
        raise UsageError(
            f"--card {card}: not the card of an adapted model",
            hint="give the .json that was written beside it",
        )
    _check_card(card, found)
    network = NetworkSettings(**found["network"])
    if model.network is not None:
        network_of(model, network.name, network.encoder)
    return replace(model, card={name: found[name] for name in _SETTINGS if name in found})


def _check_card(file: Path, card: Mapping[str, Any]) -> None:
    """Check the kinds of what a card says of how its model is run.

    Raises:
        StoreSchemaError: Something that no card holds; the message names the card.
    """
    try:
        build_config(NetworkSettings, dict(card["network"]), owner="network")
        build_config(Inference, dict(card.get("inference", {})), owner="inference")
        for name in ("image_size", "roi_crop_px", "inference_seed"):
            number = card.get(name)
            if number is not None and (type(number) is not int or number < 0):
                raise ValueError(f"{name} = {number!r}")
        if card.get("precision", "float32") not in ("float32", "bfloat16"):
            raise ValueError(f"precision = {card['precision']!r}")
    except (UsageError, ValueError, TypeError, KeyError) as error:
        raise StoreSchemaError(
            f"{file}: a damaged card: {error}",
            hint="restore the card, or move it away and name the network with --network",
        ) from error


def _card_of(file: Path) -> tuple[Kind, Path | None]:
    """Return what kind of model a file holds, and its card."""
    beside = file.with_suffix(".json")
    if file.suffix == ".safetensors" and beside.is_file() and _is_adapted(beside):
        return "adapted", beside
    if file.name == _WEIGHTS:
        if (card := file.with_name("card.json")).is_file():
            return "source", card
        if (cell := file.with_name("cell.json")).is_file():
            return "cell", cell
    return "bare", None


def _is_adapted(card: Path) -> bool:
    """Whether a JSON file is a card of ours; another file of that name is none of our business."""
    return ADAPTED.encode() in card.read_bytes()  # a damaged one must not pass for none


def load_own(
    model: OwnModel, network: NetworkSettings, device: torch.device
) -> SegmentationNetwork:
    """Return the network with these weights, in eval mode on the device.

    Raises:
        DataError: The weights are unreadable, not finite, or of another network.
    """
    loaded, _ = load_network(model.file, network)
    return loaded.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]  # torch's stub lacks this form


def network_of(model: OwnModel, name: str | None, encoder: str | None) -> NetworkSettings:
    """Return the network of a model: its card's, or what the flags name for a file without one.

    Raises:
        UsageError: No card and no ``--network``, or flags that contradict the card.
    """
    known = model.network
    if known is None:
        if name is None:
            raise UsageError(
                f"--model {model.file}: no card beside it says which network this is",
                hint=f"--network NAME, one of {', '.join(NETWORKS.names())}",
            )
        return NetworkSettings(name=name, **({"encoder": encoder} if encoder else {}))
    for flag, given, own in (("network", name, known.name), ("encoder", encoder, known.encoder)):
        if given is not None and given != own:
            raise UsageError(
                f"--{flag} {given}: the card of {model.file} says {own}",
                hint=f"leave out --{flag}",
            )
    return known


def describe(model: OwnModel) -> dict[str, Any]:
    """Return what a card says of the model it started from: name and digests, no folder."""
    return {
        "file": model.file.name,
        "kind": model.kind,
        "sha256": file_digest(model.file),
        "domain": model.card.get("domain") if model.kind == "source" else None,
        "key": model.card.get("key"),
    }

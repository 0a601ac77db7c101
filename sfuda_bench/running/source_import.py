"""Source models from files: released checkpoints, or weights trained elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from sfuda_bench.datasets import canonical_name, domain_index, read_domain
from sfuda_bench.errors import DataError, MissingMasks, UsageError
from sfuda_bench.images.packed import PackedMasks, pack_masks
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.networks.state_files import fit_state, read_state
from sfuda_bench.networks.taps import SegmentationNetwork
from sfuda_bench.running.keys import digest, file_digest, model_sha256
from sfuda_bench.running.sources import area_prior
from sfuda_bench.running.store import Store, read_json, write_json
from sfuda_bench.settings import NetworkSettings

IMPORT_VERSION = 1
"""Raise it when the same file gives another source model."""
IMPORTED = "imported"
"""What a record says of the selection of a source model from a file."""
_SHORTEST_KEY = 4
_WHAT = "source model"


@dataclass(frozen=True)
class StoredSource:
    """A source model that a run uses instead of training one.

    Attributes:
        folder: ``DIR/sources/<domain>/<key>``.
        card: Its card.
    """

    folder: Path
    card: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The full key, which cells' keys contain."""
        return str(self.card["key"])

    @property
    def selection(self) -> str:
        """How its checkpoint was chosen, as far as that is known here."""
        recipe = self.card.get("recipe")
        return str(recipe["selection"]) if recipe else IMPORTED

    def lacking(self, aux: Iterable[str]) -> list[str]:
        """Return the names of source-side extras that it does not have."""
        return sorted(name for name in aux if not (self.folder / "aux" / f"{name}.json").is_file())


def import_source(
    file: Path,
    domain: str,
    network: NetworkSettings,
    store: Store,
    masks: PackedMasks | None = None,
) -> StoredSource:
    """Copy the weights in a file into the store as the source model of a domain.

    The key is the digest of the file's bytes, the network, and the masks of which the area prior
    is made; the same import again changes nothing.

    Args:
        file: ``.safetensors`` or a ``torch.save`` file, itself a state dict or holding one under
            ``model_state_dict``; nothing in it is executed.
        domain: Name of the domain it was trained on.
        network: The network whose weights these are.
        store: Where the model goes.
        masks: Masks of the domain's ``train`` split, for methods that need the area prior.

    Raises:
        DataError: The file cannot be read, or its names, shapes or values are not the network's.
        UsageError: Unknown network.
    """
    key = _import_key(file, network, masks)
    folder = store.source(domain, key)
    if not (folder / "card.json").is_file():
        with store.lock(key, wait=True):
            if not (folder / "card.json").is_file():
                _import(file, domain, network, store, masks, key)
            store.clear_attempt(key)
    return StoredSource(folder, read_json(folder / "card.json"))


def find_source(
    text: str,
    domain: str,
    network: NetworkSettings,
    store: Store,
    masks: PackedMasks | None = None,
) -> StoredSource:
    """Return the source model that ``--source-model DOMAIN=FILE|KEY`` means.

    Args:
        text: A file, which is imported, or the beginning of a stored source model's key.
        domain: Domain before the equals sign.
        network: Network of the run.
        store: Where stored models are.
        masks: As in :func:`import_source`.

    Raises:
        UsageError: Neither a file nor one stored model, or a model of another network.
        DataError: As in :func:`import_source`.
    """
    if Path(text).is_file():
        return import_source(Path(text), domain, network, store, masks)
    cards = sorted((store.root / "sources" / domain).glob("*/card.json"))
    stored = [StoredSource(path.parent, read_json(path)) for path in cards]
    found = [source for source in stored if source.key.startswith(text)]
    if len(text) < _SHORTEST_KEY or len(found) != 1:
        raise UsageError(
            f"--source-model {domain}={text}: no such file, and "
            f"{len(found) or 'no'} stored source models of {domain} have a key that begins so",
            hint=f"sfuda-bench source ls --out {store.root}",
        )
    _check_network(found[0].card["network"], network, f"--source-model {domain}={text}")
    return found[0]


def _check_network(stored: Mapping[str, Any], wanted: NetworkSettings, what: str) -> None:
    if (stored["name"], stored["encoder"]) != (wanted.name, wanted.encoder):
        raise UsageError(
            f"{what} is a model of network {stored['name']} ({stored['encoder']}), this run uses "
            f"{wanted.name} ({wanted.encoder})",
            hint=f"--network {stored['name']} --encoder {stored['encoder']}",
        )


def parse_source_models(values: list[str]) -> tuple[tuple[str, str], ...]:
    """Return (domain, file or key) of each ``DOMAIN=FILE|KEY``.

    Raises:
        UsageError: Not of that form, or a domain named twice.
    """
    models: dict[str, str] = {}
    for value in values:
        domain, equals, text = value.partition("=")
        if not (equals and domain.strip() and text.strip()):
            raise UsageError(
                f"--source-model {value}: expected DOMAIN=FILE or DOMAIN=KEY",
                hint="--source-model DOMAIN=checkpoint.pth.tar",
            )
        name = canonical_name(domain.strip())
        if name in models:
            raise UsageError(
                f"--source-model names {name} twice", hint="one source model per domain"
            )
        models[name] = text.strip()
    return tuple(models.items())


def train_masks(data_root: Path | None, domain: str, size: int, store: Store) -> PackedMasks | None:
    """Return the packed masks of a domain's ``train`` split, or ``None`` without them."""
    folder = domain_index(data_root).get(domain) if data_root else None
    if folder is None:
        return None
    try:
        return pack_masks(read_domain(folder).split("train"), size, store.packed, optional=True)
    except MissingMasks:
        return None


def _import_key(file: Path, network: NetworkSettings, masks: PackedMasks | None) -> str:
    if not file.is_file():
        raise DataError(f"{_WHAT} '{file}': no such file", hint="check the path")
    spec = NETWORKS.get(network.name)
    return digest(
        {
            "source_import": IMPORT_VERSION,
            "file": file_digest(file),
            "network": [spec.name, network.encoder, spec.version],
            "area_prior": masks.mask_digest if masks else None,
        }
    )


def _import(
    file: Path,
    domain: str,
    network: NetworkSettings,
    store: Store,
    masks: PackedMasks | None,
    key: str,
) -> None:
    """Check, convert and commit one file; the caller holds the lock of ``key``."""
    model, ignored = load_network(file, network)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    folder = store.staging(key, "source")
    save_file(state, folder / "model.safetensors")
    if masks is not None:
        labels = np.load(masks.path).astype(bool)
        write_json(folder / "aux" / "area_prior.json", area_prior(labels))
    card = {
        "key": key,
        "domain": domain,
        "source_seed": 0,
        "imported": {
            "file": file.name,
            "sha256": file_digest(file),
            "ignored": ignored,
        },
        "recipe": None,
        "network": {**asdict(network), "encoder_weights": "none"},
        "image_size": None,
        "model_sha256": model_sha256(state),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    write_json(folder / "card.json", card)
    store.commit(folder, store.source(domain, key))


def load_network(file: Path, network: NetworkSettings) -> tuple[SegmentationNetwork, list[str]]:
    """Return the network with the file's weights, and the names in it that were not used.

    Raises:
        DataError: The file cannot be read, or its names, shapes or values are not the network's.
        UsageError: Unknown network.
    """
    model = NETWORKS.get(network.name).build(network.encoder, None)
    state: Mapping[str, Tensor]
    state, ignored = model.own_state(read_state(file, _WHAT, "check the path"))
    bad = [name for name, value in state.items() if not value.isfinite().all()]
    if bad:
        raise DataError(
            f"{_WHAT} '{file}': {bad[0]} has values that are not finite",
            hint="export the checkpoint again",
        )
    fit_state(
        model,
        state,
        f"{_WHAT} '{file}' does not fit network {network.name} ({network.encoder})",
        "name the network it was trained with: --network, --encoder",
    )
    return model, ignored

"""Starting weights of an encoder: a local file, or the ImageNet weights of the library."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import get_session, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import HF_HUB_CACHE
from segmentation_models_pytorch.encoders import encoders as _encoders
from torch import Tensor, nn

from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.networks.state_files import fit_state, read_state

_CLASSIFIER = ("classifier.", "fc.", "last_linear.", "head.")
_NESTED = re.compile(r"features\.\d+\.conv\.\d+\.\d+\.")
_IN_BLOCK = re.compile(r"features\.(\d+)\.conv\.(\d+\.\d+|\d+)\.(.+)")
# Where torchvision's places in a block are in a flat one; the first block has no expansion.
_FIRST_BLOCK = {"0.0": "0", "0.1": "1", "1": "3", "2": "4"}
_OTHER_BLOCKS = {"0.0": "0", "0.1": "1", "1.0": "3", "1.1": "4", "2": "6", "3": "7"}
_ANSWER_SECONDS = 1.5
_FILE = "model.safetensors"
_library: dict[str, Any] = _encoders
_OFFLINE_HINT = "train without them: --encoder-weights none, or name a local file: FILE.safetensors"


def load_encoder_file(encoder: nn.Module, path: Path) -> None:
    """Load a state dict of the encoder from ``path`` into ``encoder``.

    A classification head in the file is ignored, as are missing batch counters.

    Args:
        encoder: Encoder whose own keys the file must have.
        path: ``.safetensors``, or ``.pth`` / ``.pt`` (read with ``weights_only=True``).

    Raises:
        DataError: The file is missing, unreadable, or of another encoder.
    """
    load_encoder_state(encoder, read_encoder_file(path), f"'{path}'")


def load_encoder_state(encoder: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load ``state`` into ``encoder``, without the classification head that it may have.

    Raises:
        DataError: The keys or shapes are those of another encoder.
    """
    own = encoder.state_dict()
    kept = {k: v for k, v in state.items() if k in own or not k.startswith(_CLASSIFIER)}
    fit_state(
        encoder,
        kept,
        f"{name} holds no weights of this encoder",
        "save encoder.state_dict() of the same encoder, or name another --encoder",
    )


def read_encoder_file(path: Path) -> dict[str, Tensor]:
    """Read the state dict of an encoder from ``path``.

    Raises:
        DataError: The file is missing, unreadable or no state dict.
    """
    return read_state(path, "encoder weights", "--encoder-weights none|imagenet|FILE.safetensors")


def flat_mobilenet_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a MobileNetV2 state dict under flat names, ``features.<block>.conv.<index>.*``.

    torchvision nests convolution, batch norm and activation of each step in a block; here they
    follow one another. What torchvision has beyond the last block is left out. A state dict that
    is flat already is returned as it is.
    """
    if not any(_NESTED.match(name) for name in state):
        return dict(state)
    flat = {}
    for name, value in state.items():
        match = _IN_BLOCK.match(name)
        if match:
            block, place, rest = match.groups()
            first = _FIRST_BLOCK if block == "1" else _OTHER_BLOCKS
            name = f"features.{block}.conv.{first.get(place, place)}.{rest}"
        if not name.startswith("features.18."):
            flat[name] = value
    return flat


def pretrained_state(encoder: str, weights: str = "imagenet") -> dict[str, Tensor]:
    """Return the library's pre-trained weights of an encoder, from the cache or downloaded.

    Raises:
        UsageError: The library has no such weights for this encoder.
        EnvironmentProblem: The download failed.
    """
    repository, revision = _repository(encoder, weights)
    try:
        path = hf_hub_download(repository, _FILE, revision=revision)
    except Exception as error:  # no route, no such file, a full disk: each has its own
        raise EnvironmentProblem(
            f"the '{weights}' weights of encoder '{encoder}' cannot be downloaded: {error}",
            hint=_OFFLINE_HINT,
        ) from error
    return read_encoder_file(Path(path))


def require_pretrained(encoder: str, weights: str = "imagenet") -> None:
    """Say quickly when pre-trained weights are neither cached nor within reach.

    Without a network the download client retries for most of a minute; here a server has to
    answer within moments. A cached copy needs no network.

    Args:
        encoder: Name of an encoder of the library; ``tu-NAME`` for timm's.
        weights: Name of a set of pre-trained weights.

    Raises:
        UsageError: The library has no such weights for this encoder.
        EnvironmentProblem: They are neither cached nor downloadable.
    """
    repository, revision = _repository(encoder, weights)
    if isinstance(try_to_load_from_cache(repository, _FILE, revision=revision), str):
        return
    if not _reachable(hf_hub_url(repository, _FILE, revision=revision)):
        raise EnvironmentProblem(
            f"the '{weights}' weights of encoder '{encoder}' are not in the local cache and the "
            "server that has them does not answer",
            hint=_OFFLINE_HINT,
        )


def cached_weights(encoder: str, weights: str = "imagenet") -> tuple[str, bool]:
    """Return the folder where pre-trained weights are looked for, and whether they are there.

    Raises:
        UsageError: The library has no such weights for this encoder.
    """
    repository, revision = _repository(encoder, weights)
    found = try_to_load_from_cache(repository, _FILE, revision=revision)
    return str(HF_HUB_CACHE), isinstance(found, str)


def _repository(encoder: str, weights: str) -> tuple[str, str | None]:
    """Return where the weights are published, and their revision."""
    if encoder not in _library:
        found = timm.models.get_pretrained_cfg(encoder.removeprefix("tu-").removeprefix("timm-"))
        if found is None or not found.hf_hub_id:
            raise UsageError(
                f"encoder '{encoder}' has no pre-trained weights", hint="--encoder-weights none"
            )
        return found.hf_hub_id, None
    sets = _library[encoder]["pretrained_settings"]
    if weights not in sets:
        raise UsageError(
            f"encoder '{encoder}' has no weights '{weights}'; it has: {', '.join(sets)}",
            hint="--encoder-weights none",
        )
    return sets[weights]["repo_id"], sets[weights]["revision"]


def _reachable(url: str) -> bool:
    """Return whether any answer to a request for ``url`` arrives in time."""
    answered: list[bool] = []

    def ask() -> None:
        try:
            get_session().head(url, timeout=_ANSWER_SECONDS)
        except Exception:  # offline mode, name resolution, transport: each has its own
            return
        answered.append(True)

    thread = threading.Thread(target=ask, daemon=True)  # name resolution has no timeout of its own
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return bool(answered)

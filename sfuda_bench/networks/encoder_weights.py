"""Starting weights of an encoder: a local file, or the ImageNet weights of the library."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from safetensors.torch import load_file
from segmentation_models_pytorch.encoders import encoders as _encoders
from torch import Tensor, nn

from sfuda_bench.errors import DataError, EnvironmentProblem, UsageError

_CLASSIFIER = ("classifier.", "fc.", "last_linear.", "head.")
_WRAPPERS = ("state_dict", "model_state_dict")
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
    own = encoder.state_dict()
    state = {k: v for k, v in _read(path).items() if k in own or not k.startswith(_CLASSIFIER)}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    reshaped = [k for k in state if k in own and state[k].shape != own[k].shape]
    if missing or unexpected or reshaped:
        raise DataError(
            f"'{path}' holds no weights of this encoder: {_named('missing keys', missing)}; "
            f"{_named('unexpected keys', unexpected)}; {_named('other shapes', reshaped)}",
            hint="save encoder.state_dict() of the same encoder, or name another --encoder",
        )
    nn.Module.load_state_dict(encoder, {**own, **state})


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


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise DataError(
            f"encoder weights '{path}': no such file; expected none, imagenet or a file",
            hint="--encoder-weights none|imagenet|FILE.safetensors",
        )
    try:
        state: Any
        if path.suffix == ".safetensors":
            state = load_file(path, device="cpu")
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format raises its own kinds for a damaged file
        raise DataError(
            f"encoder weights '{path}' cannot be read: {error}",
            hint="expected .safetensors, or a .pth that holds tensors only",
        ) from error
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(
            f"encoder weights '{path}' is not a state dict (names to tensors)",
            hint="save encoder.state_dict()",
        )
    return state


def _named(what: str, keys: list[str]) -> str:
    if not keys:
        return f"no {what}"
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}"

"""State dicts in files: reading them without running anything, and fitting them to a module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import safe_globals

from sfuda_bench.errors import DataError

_WRAPPERS = ("state_dict", "model_state_dict")
_COUNTER = "num_batches_tracked"
_SHOWN = 3
# Checkpoints also hold scores as numpy scalars: plain numbers, no code runs to read them.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def read_state(path: Path, what: str, hint: str) -> dict[str, Tensor]:
    """Read a state dict from ``.safetensors``, or from a ``torch.save`` file of plain data.

    A checkpoint that holds the state dict under ``state_dict`` or ``model_state_dict`` is opened,
    and the prefix ``module.`` of a parallel wrapper is taken off. Nothing in the file is executed.

    Args:
        path: The file.
        what: What the file is to the user, for messages.
        hint: What helps if there is no such file.

    Raises:
        DataError: The file is missing, unreadable, needs code to be read, or is no state dict.
    """
    if not path.is_file():
        raise DataError(f"{what} '{path}': no such file", hint=hint)
    state = _load(path, what)
    for key in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise DataError(
            f"{what} '{path}' is not a state dict (names to tensors)",
            hint="save module.state_dict()",
        )
    parallel = bool(state) and all(name.startswith("module.") for name in state)
    return {name.removeprefix("module.") if parallel else name: v for name, v in state.items()}


def _load(path: Path, what: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        with safe_globals(_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format raises its own kinds for a damaged file
        first = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{what} '{path}' cannot be read: {first}",
            hint="expected .safetensors, or a torch.save file that holds tensors and numbers only",
        ) from error


def fit_state(module: nn.Module, state: Mapping[str, Tensor], what: str, hint: str) -> None:
    """Load ``state`` into ``module``; batch counters may be missing, nothing else.

    Raises:
        DataError: Names or shapes differ; the message lists the first of each kind.
    """
    own = module.state_dict()
    problems = [
        *_listed("missing keys", (k for k in own if k not in state and not k.endswith(_COUNTER))),
        *_listed("unexpected keys", (k for k in state if k not in own)),
        *_listed(
            "other shapes",
            (
                f"{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}"
                for k in own
                if k in state and state[k].shape != own[k].shape
            ),
        ),
    ]
    if problems:
        raise DataError(f"{what}: {'; '.join(problems)}", hint=hint)
    nn.Module.load_state_dict(module, {**own, **state})


def _listed(what: str, found: Iterable[str]) -> list[str]:
    """Return one text with the first of ``found`` and how many more there are, or none."""
    names = list(found)
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{what} {', '.join(names[:_SHOWN])}{more}"]

"""Content keys: sha256 over canonical JSON, and over the bytes of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces and no NaN, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 hex digest (64 characters) of a JSON-able value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def derive_seed(*parts: Any) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on nothing else."""
    return int(digest(list(parts))[:16], 16) >> 1


def file_digest(path: Path) -> str:
    """Return the sha256 hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def score_key(
    cell_key: str,
    mask_digest: str,
    profile_fields: Mapping[str, Any],
    engine: str,
    average_last: int | None,
    scorer_version: int,
) -> str:
    """Return the key of one scoring: the cell, the masks, the profile and the scorer.

    ``average_last`` is ``None`` for a cell without tracked epochs, where it means nothing.
    """
    fields: dict[str, Any] = {
        "cell": cell_key,
        "masks": mask_digest,
        "profile": profile_fields,
        "scorer": scorer_version,
        "engine": engine,
    }
    if average_last is not None:
        fields["average_last"] = average_last
    return digest(fields)


def model_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the digest of a state dict: sorted names, dtypes, shapes, little-endian bytes.

    Buffers count as well, so a drifted batch-norm statistic changes the digest.
    """
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        array = tensor.reshape(-1).numpy()
        total.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return total.hexdigest()

"""Which values of a stored model differ from those of another, read without its framework."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sfuda_bench.errors import StoreSchemaError

_STATISTICS = ("running_mean", "running_var")
_LENGTH = 8  # bytes of the header's own length, little-endian


def changed_values(before: Path, after: Path) -> tuple[int, int]:
    """Count the values of the tensors that differ between two safetensors files.

    A tensor counts as a whole. Integer counters, such as batches seen, are left out.

    Args:
        before: Source model.
        after: Adapted model with tensors of the same names.

    Returns:
        Values of trained parameters, and of batch-norm statistics.

    Raises:
        StoreSchemaError: A file is damaged.
    """
    old, new = _tensors(before), _tensors(after)
    counts = [0, 0]
    for name, (kind, shape, data) in new.items():
        if kind.startswith(("F", "BF")) and old.get(name) != (kind, shape, data):
            counts[name.endswith(_STATISTICS)] += math.prod(shape)
    return counts[0], counts[1]


def _tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of each tensor: a JSON header gives their offsets."""
    try:
        raw = path.read_bytes()
        start = _LENGTH + int.from_bytes(raw[:_LENGTH], "little")
        header: dict[str, Any] = json.loads(raw[_LENGTH:start])
        return {
            name: (
                entry["dtype"],
                tuple(entry["shape"]),
                raw[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]],
            )
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreSchemaError(
            f"{path}: damaged model ({error})",
            hint=f"delete the folder {path.parent} and run the same command again",
        ) from error

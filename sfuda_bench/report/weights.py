"""Which values of a stored model differ from those of another, read without its framework."""

from __future__ import annotations

import math
from pathlib import Path

from sfuda_bench.tensors import read_tensors

_STATISTICS = ("running_mean", "running_var")


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
    old, new = read_tensors(before), read_tensors(after)
    counts = [0, 0]
    for name, (kind, shape, data) in new.items():
        if kind.startswith(("F", "BF")) and old.get(name) != (kind, shape, data):
            counts[name.endswith(_STATISTICS)] += math.prod(shape)
    return counts[0], counts[1]

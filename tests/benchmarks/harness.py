"""What every benchmark shares: interleaved timing, peak memory, a row, and the printed table.

A row compares ours with a plain reference of the same run. Its ratio is always reference over
ours, so that more is better, and its aim is the least ratio that is wanted.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported: no log lines

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from sfuda_bench.running.runtime import keep_freed_memory, set_malloc

MB = 1e6


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What is compared.
        reference: Median of the plain reference, in ``unit``.
        ours: Median of ours, in ``unit``.
        ratio: Reference over ours; the median of the repetitions' own ratios.
        unit: ``s``, or ``MB`` and others where something else than time is compared.
        aim: Least ratio wanted, or ``None`` for a row that only informs.
        difference: Largest absolute difference of the two results; NaN where none is defined.
        allowed: Largest difference that still counts as equal.
        memory_mb: Peak tensor bytes of reference and ours beyond what was there before.
        spread: Smallest and largest ratio of the repetitions.
        note: What the sizes were, and what the difference is of.
    """

    name: str
    reference: float
    ours: float
    ratio: float
    unit: str = "s"
    aim: float | None = None
    difference: float = float("nan")
    allowed: float = float("inf")
    memory_mb: tuple[float, float] | None = None
    spread: tuple[float, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the ratio reaches its aim."""
        return self.aim is None or bool(self.ratio >= self.aim)

    @property
    def equal(self) -> bool:
        """Whether the results agree as closely as they must."""
        return bool(np.isnan(self.difference) or self.difference <= self.allowed)


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition, reference and ours in turn."""

    reference: tuple[float, ...]
    ours: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """Reference over ours, repetition by repetition: what drifts slowly cancels."""
        return [a / b for a, b in zip(self.reference, self.ours, strict=True)]

    def row(self, name: str, **more: Any) -> Row:
        """Return the row of these times."""
        ratios = self.ratios
        return Row(
            name,
            statistics.median(self.reference),
            statistics.median(self.ours),
            statistics.median(ratios),
            spread=(min(ratios), max(ratios)),
            **more,
        )


def interleaved(
    reference: Callable[[], object],
    ours: Callable[[], object],
    repeats: int,
    *,
    warm: bool = True,
) -> Timing:
    """Time two functions in turn, so that a busy machine hits both alike.

    Args:
        reference: The plain way; it runs in torch's default mode.
        ours: Our way.
        repeats: Calls of each that count.
        warm: Call both once before.
    """
    if warm:
        reference()
        ours()
    gc.collect()  # garbage of earlier benchmarks is not theirs
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        with plain_torch():
            before = seconds(reference)
        times.append((before, seconds(ours)))
    return Timing(tuple(a for a, _ in times), tuple(b for _, b in times))


@contextmanager
def plain_torch() -> Iterator[None]:
    """Run a block as torch comes: without deterministic algorithms, with malloc's own limits.

    The limits are those that glibc reaches by itself in a process that frees blocks of 32 MB.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    set_malloc(mmap_max=65536, mmap_threshold=32 << 20, trim_threshold=64 << 20)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=True)
        keep_freed_memory()


def seconds(function: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_mb(function: Callable[[], object]) -> float:
    """Return the most tensor bytes alive during a call beyond those before it, in MB.

    Counts what torch's CPU allocator hands out, scratch space of its kernels included; results
    that the call returns count as long as it runs.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        function()
    steps = [
        (event.start_ns(), event.nbytes())
        for event in trace.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    alive, most = 0, 0
    for _, step in sorted(steps, key=lambda one: one[0]):
        alive += step
        most = max(most, alive)
    return most / MB


def largest_difference(one: Iterable[Any], other: Iterable[Any]) -> float:
    """Return the largest absolute difference of two sequences of tensors or arrays."""
    found = 0.0
    for a, b in zip(one, other, strict=True):
        x, y = (np.asarray(v, dtype=np.float64) for v in (a, b))
        if x.shape != y.shape:
            raise ValueError(f"shapes {x.shape} and {y.shape} cannot be compared")
        found = max(found, float(np.abs(x - y).max()) if x.size else 0.0)
    return found


# -- the machine ----------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return what a reader needs to know about where the numbers come from."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": "cpu",
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


# -- the table ------------------------------------------------------------------------------------

HEADER = (
    "benchmark",
    "reference",
    "ours",
    "ratio",
    "aim",
    "met",
    "max abs difference",
    "peak MB",
)


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's text, column by column."""
    return (
        row.name,
        _quantity(row.reference, row.unit),
        _quantity(row.ours, row.unit),
        f"{row.ratio:.1f}x",
        "-" if row.aim is None else f"{row.aim:g}x",
        "-" if row.aim is None else ("yes" if row.met else "NO"),
        _difference(row),
        "-" if row.memory_mb is None else " / ".join(f"{v:.0f}" for v in row.memory_mb),
    )


def _quantity(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"
    return f"{1000 * value:.3g} ms" if value < 0.9995 else f"{value:.3g} s"


def _difference(row: Row) -> str:
    if np.isnan(row.difference):
        return "-"
    text = "0" if row.difference == 0 else f"{row.difference:.1e}"
    return text if row.equal else f"{text} > {row.allowed:.0e} (DIFFERS)"


def plain_table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [HEADER, *map(cells, rows)]
    widths = [max(len(line[k]) for line in lines) for k in range(len(HEADER))]
    texts = ["  ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)).rstrip()
             for line in lines]  # fmt: skip
    return "\n".join([texts[0], "-" * max(map(len, texts)), *texts[1:]])


def markdown_table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table, notes in the last column."""
    header = [*HEADER, "sizes"]
    lines = [header, ["---"] * len(header), *([*cells(row), row.note] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def document(rows: Sequence[Row], seconds_by_module: dict[str, float]) -> dict[str, Any]:
    """Return everything as JSON values."""
    found = []
    for row in rows:
        values = {k: None if isinstance(v, float) and not np.isfinite(v) else v
                  for k, v in asdict(row).items()}  # fmt: skip
        found.append({**values, "met": row.met, "equal": row.equal})
    return {"machine": machine(), "seconds": seconds_by_module, "rows": found}

"""Report of a synthetic store of 100,000 rows: tables against reading the records with pandas.

``python -m tests.benchmarks.bench_report [ROWS]`` also times statistics, figures and the page.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sfuda_bench.report.comparison import compare_store, write_comparisons
from sfuda_bench.report.extra import write_extra_tables
from sfuda_bench.report.figures import write_figures
from sfuda_bench.report.html import write_html
from sfuda_bench.report.tables import write_tables
from tests.benchmarks.harness import Row, interleaved
from tests.report.rich_store import METHODS, RichStore

ROWS = 100_000
_PAIRS, _SELECTIONS, _STRUCTURES, _SEEDS = 6, 3, 2, 5


def build(folder: Path, rows: int = ROWS, seeds: int = _SEEDS) -> Path:
    """Write a synthetic store with at least ``rows`` rows of cases under one profile."""
    per_image = len(METHODS) * _PAIRS * seeds * _STRUCTURES  # selections only add to it
    images = max(4, -(-rows // per_image))
    return RichStore(
        folder / "store", seeds=seeds, images=images, profiles=("standard",), lost=()
    ).out


def read_with_pandas(out: Path) -> int:
    """Read every record of scores with pandas alone: the plain reference."""
    paths = sorted(out.glob("cells/*/*/*/cases-standard.parquet"))
    return len(pd.concat([pd.read_parquet(path) for path in paths]))


def timed(function: Callable[[], object], repeats: int) -> float:
    """Return the smallest time of some repetitions, seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def measure(rows: int = ROWS, repeats: int = 3) -> dict[str, float]:
    """Return rows, seconds of each part, and the ratio of tables to reading."""
    with tempfile.TemporaryDirectory() as folder:
        out = build(Path(folder), rows)
        found: dict[str, float] = {"rows": read_with_pandas(out)}
        found["read_s"] = timed(lambda: read_with_pandas(out), repeats)
        found["tables_s"] = timed(lambda: write_tables(out), repeats)
        found["ratio"] = found["tables_s"] / found["read_s"]
        found["statistics_s"] = timed(lambda: compare_store(out), 1)
        found["comparisons_s"] = timed(lambda: write_comparisons(out), 1)
        found["extra_s"] = timed(lambda: write_extra_tables(out), 1)
        found["figures_s"] = timed(lambda: write_figures(out), 1)
        found["html_s"] = timed(lambda: write_html(out), 1)
        return found


def rows(full: bool = True) -> list[Row]:
    """Return the row of this benchmark: below 1x is what tables take beyond reading."""
    with tempfile.TemporaryDirectory() as folder:
        out = build(Path(folder), ROWS, _SEEDS) if full else build(Path(folder), 1, 1)
        count = read_with_pandas(out)
        times = interleaved(lambda: read_with_pandas(out), lambda: write_tables(out), 1)
        note = f"{count} rows; the reference only reads the records"
        return [times.row("tables of a store", note=note)]


if __name__ == "__main__":
    for name, value in measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS).items():
        print(f"{name:14} {value:10.2f}")

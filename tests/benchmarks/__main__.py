"""Run the benchmarks: ``python -m tests.benchmarks [NAME ...] [--markdown FILE] [--json FILE]``.

Exit code 0 when every aim is met and every result equals its reference's, 6 otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the benchmarks, without their prefix."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and print one table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(names())}")
    parser.add_argument("--small", action="store_true", help="smallest sizes: does it run at all")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a Markdown table")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all values")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(names())
    if unknown:
        parser.error(f"unknown benchmarks {sorted(unknown)}; there are {', '.join(names())}")
    return run(given.names or names(), not given.small, given.threads, given.markdown, given.json)


def run(
    wanted: Sequence[str],
    full: bool,
    threads: int,
    markdown: Path | None = None,
    json_file: Path | None = None,
) -> int:
    """Run benchmarks by name; see :func:`main`."""
    from sfuda_bench.running.runtime import configure
    from tests.benchmarks import harness

    configure(threads)
    rows: list[harness.Row] = []
    spent: dict[str, float] = {}
    for name in wanted:
        started = time.perf_counter()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        found = importlib.import_module(f"tests.benchmarks.bench_{name}").rows(full)
        spent[name] = round(time.perf_counter() - started, 1)
        print(f"{spent[name]} s\n{harness.plain_table(found)}", file=sys.stderr, flush=True)
        rows += found if full else [replace(row, aim=None) for row in found]
    print(harness.plain_table(rows))
    print(", ".join(f"{key} {value}" for key, value in harness.machine().items()))
    if markdown is not None:
        markdown.write_text(harness.markdown_table(rows) + "\n", encoding="utf-8")
    if json_file is not None:
        text = json.dumps(harness.document(rows, spent), indent=1, sort_keys=True)
        json_file.write_text(text + "\n", encoding="utf-8")
    return 0 if all(row.met and row.equal for row in rows) else 6


if __name__ == "__main__":
    if str(FOLDER.parents[1]) not in sys.path:
        sys.path.insert(0, str(FOLDER.parents[1]))
    sys.exit(main())

"""What looks at the images of a data root and changes nothing: ``data verify``, ``data stats``."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.commands.shared import (
    DEFAULT_OUT,
    CommandParser,
    add_data_root,
    add_plugin,
    load_plugins,
    note,
)
from sfuda_bench.errors import UsageError

if TYPE_CHECKING:
    from sfuda_bench.images.statistics import SplitNumbers
    from sfuda_bench.report.domains import DomainEyes

STATS_OUT = DEFAULT_OUT / "data-stats"
_DRAWN_COUNTS = (40, 20)


def add(data: CommandParser) -> None:
    """Add ``verify`` and ``stats`` to the group ``data``."""
    check = data.command("verify", _verify, "check a data root before a run")
    add_data_root(check)
    add_plugin(check)
    stats = data.command("stats", _stats, "areas, colours and contrasts of a data root's images")
    add_data_root(stats)
    add_plugin(stats)
    stats.add_argument(
        "--out", type=Path, default=STATS_OUT, metavar="DIR", help=f"default: {STATS_OUT}"
    )
    stats.add_argument(
        "--figures",
        action="store_true",
        help="draw contact sheets, distributions and a t-SNE; they show the images themselves",
    )


def data_root_of(arguments: argparse.Namespace, command: str) -> Path:
    """Return the data root of a command that cannot do without.

    Raises:
        UsageError: There is none.
    """
    root: Path | None = arguments.data_root
    if root is None:
        raise UsageError(f"data {command} needs --data-root DIR", hint="or set SFUDA_DATA_ROOT")
    return root


def _verify(arguments: argparse.Namespace) -> int:
    from sfuda_bench.images.verify import inspect_root

    load_plugins(arguments)
    found = inspect_root(data_root_of(arguments, "verify"))
    if arguments.json:
        print(json.dumps(found.to_json()))
        return 3 if found.errors else 0
    for finding in found.findings:
        print(f"{finding.severity}: {finding.path}: {finding.message}")
    for split in found.splits:
        if split.images:
            print(_split_line(split))
    print(f"{found.errors} errors, {len(found.findings) - found.errors} warnings")
    return 3 if found.errors else 0


def _split_line(split: SplitNumbers) -> str:
    """Return the numbers of a split as a line to read."""
    low, high = split.sides_px or (0, 0)
    size = f"{low} px" if low == high else f"{low} to {high} px"
    parts = [f"{split.images} images, {split.masks} masks", size]
    values = {key: spread.mean for key, spread in split.values.items()}
    if "disc_scale" in values:
        parts += [
            f"disc {values['disc_share']:.1%} of the area, {values['disc_scale']:.1%} of the side",
            f"vCDR {values['vcdr']:.3f}",
        ]
    if "red" in values:
        parts.append("RGB " + " ".join(f"{values[name]:.0f}" for name in ("red", "green", "blue")))
    return f"{split.domain} {split.split}: {', '.join(parts)}"


def _stats(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.domains import domains_table, measure_root, write_domains
    from sfuda_bench.report.plain import to_markdown

    load_plugins(arguments)
    out: Path = arguments.out
    _refuse_inside(out, arguments.data_root)
    with _root(arguments.data_root) as root:
        domains = measure_root(root, lambda name: note(f"reading {name}"))
        paths = write_domains(out, domains)
        if arguments.figures:
            from sfuda_bench.report.figures_domains import write_domain_figures

            paths += write_domain_figures(out, domains, lambda name: note(f"drawing {name}"))
    if arguments.json:
        print(json.dumps(_stats_json(domains, paths)))
        return 0
    print(to_markdown(domains_table(domains)))
    note(f"{len(paths)} files in {out}")
    return 0


def _refuse_inside(out: Path, root: Path | None) -> None:
    """Keep figures out of the data: they would be taken for images or shared with them."""
    if root is not None and out.resolve().is_relative_to(root.resolve()):
        raise UsageError(f"--out {out} lies inside the data root {root}", hint=f"--out {STATS_OUT}")


@contextmanager
def _root(root: Path | None) -> Iterator[Path]:
    """Give the data root; without one the built-in domains are drawn for the moment."""
    if root is not None:
        yield root
        return
    from sfuda_bench.datasets import materialise_synthetic

    note("no --data-root: the built-in synthetic domains are measured")
    with tempfile.TemporaryDirectory() as folder:
        materialise_synthetic(Path(folder), counts=_DRAWN_COUNTS)
        yield Path(folder)


def _stats_json(domains: Sequence[DomainEyes], paths: Sequence[Path]) -> dict[str, Any]:
    from sfuda_bench.datasets import SPLITS

    return {
        "splits": [domain.numbers(split).to_json() for domain in domains for split in SPLITS],
        "roi_centers": {domain.domain.name: domain.domain.roi_center for domain in domains},
        "files": [str(path) for path in paths],
    }

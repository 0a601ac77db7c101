"""Tables, figures, other scores and claims from what is stored."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sfuda_bench.commands.shared import (
    CommandParser,
    add_out,
    note,
    positive,
    write_tables,
)
from sfuda_bench.errors import CheckFailed

if TYPE_CHECKING:
    from sfuda_bench.report.write import Written


def add(parser: CommandParser) -> None:
    """Add ``report``, ``rescore``, ``claim`` and ``cite``."""
    _add_report(parser.command("report", _report, "write the tables from stored scores"))
    _add_rescore(parser.command("rescore", _rescore, "score stored predictions again"))
    _add_claim(parser.command("claim", _claim, "is 'A > B on cup dice' supported? exit 6 if not"))
    add_out(parser.command("cite", _cite, "print BibTeX of the methods and data sets used"))


def _add_report(report: argparse.ArgumentParser) -> None:
    add_out(report)
    report.add_argument(
        "--selection", default="last", help="last, average-last-K or oracle (default: last)"
    )
    report.add_argument("--figures", action="store_true", help="also draw the figures")
    report.add_argument(
        "--gallery", action="store_true", help="also overlays on test images, in DIR/gallery"
    )
    report.add_argument("--html", action="store_true", help="also one HTML file with the figures")


def _add_rescore(rescore: argparse.ArgumentParser) -> None:
    add_out(rescore)
    rescore.add_argument("--profile", default="standard", help="scoring profile")
    rescore.add_argument("--engine", default="core", help="core, or medpy as independent reference")
    rescore.add_argument("--jobs", type=positive, default=1, help="processes (default: 1)")
    rescore.add_argument(
        "--thresholds", action="store_true", help="Dice over thresholds and calibration instead"
    )


def _report(arguments: argparse.Namespace) -> int:
    tables = write_tables(arguments.out, arguments.selection, None, show=not arguments.json)
    drawn = _drawn(arguments, tables)
    if arguments.json:
        written = {"tables": list(tables.paths), **drawn}
        names = {kind: [str(path) for path in found] for kind, found in written.items()}
        print(json.dumps({"out": str(arguments.out), **names}))
    return 0


def _drawn(arguments: argparse.Namespace, tables: Written) -> dict[str, list[Path]]:
    """Write the figures and the page that were asked for; the page needs the figures."""
    from sfuda_bench.report.figures import write_figures
    from sfuda_bench.report.html import write_html

    def drawing(name: str) -> None:
        note(f"drawing {name}")

    gallery: dict[str, list[Path]] = {}
    if arguments.gallery:
        from sfuda_bench.report.gallery import write_gallery

        gallery = {"gallery": write_gallery(arguments.out, arguments.selection, note=drawing)}
    if arguments.html:
        page = write_html(
            arguments.out, arguments.selection, drawing, tables.compared, tables.rankings
        )
        note(f"page: {page}")
        return {**gallery, "html": [page]}
    if arguments.figures:
        figures = write_figures(arguments.out, arguments.selection, note=drawing)
        return {**gallery, "figures": figures}
    return gallery


def _rescore(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.rescore import rescore

    if arguments.thresholds:
        return _rescore_thresholds(arguments)
    cells = rescore(arguments.out, arguments.profile, arguments.engine, jobs=arguments.jobs)
    write_tables(arguments.out, "last", [arguments.profile], show=not arguments.json)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "rescored": cells}))
    return 0


def _rescore_thresholds(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.threshold_records import write_store_thresholds

    cells = write_store_thresholds(arguments.out, jobs=arguments.jobs)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), "thresholds": cells}))
    else:
        print(f"Dice over thresholds of {cells} cells written", file=sys.stderr)
    return 0


def _claim(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.claim import claim_from

    result = claim_from(
        arguments.claim,
        out=arguments.out,
        csv=arguments.csv,
        pairs=arguments.pairs,
        profile=arguments.profile,
        selection=arguments.selection,
        rope=arguments.rope,
        alpha=arguments.alpha,
    )
    print(json.dumps(result.to_json()) if arguments.json else result.text())
    if not result.supported:
        raise CheckFailed(f"claim '{result.claim}': {result.overall.verdict}")
    return 0


def _cite(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.cite import citations, to_bibtex

    found = citations(arguments.out)
    if arguments.json:
        print(json.dumps([citation.to_json() for citation in found]))
    else:
        print(to_bibtex(found), end="")
    return 0


def _add_claim(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("claim", help="'A > B on (cup|disc|avg) (dice|asd|hd95|nsd)'; > means better")
    add_out(parser)
    add("--csv", type=Path, metavar="FILE", help="scores of another program instead of a store")
    add("--pairs", default="all", help="all, 'a:*', '*:b' or a:b,c:d (default: all)")
    add("--profile", default="standard", help="scoring profile (default: standard)")
    add("--selection", default="last", help="which epoch is scored (default: last)")
    add("--rope", type=float, default=0.5, help="practically equal within this (default: 0.5)")
    add("--alpha", type=float, default=0.05, help="level of the tests (default: 0.05)")

"""Setting a store beside others' numbers, and handing it to others."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.commands.shared import (
    SOME_FAILED,
    CommandParser,
    add_out,
    add_request,
    make_request,
    note,
    stdout_for_data,
    write_tables,
)

if TYPE_CHECKING:
    from sfuda_bench.report.published import PublishedValue


def add(parser: CommandParser) -> None:
    """Add ``reproduce``, ``export`` and ``merge``."""
    _add_reproduce(parser.command("reproduce", _reproduce, "compare with published numbers"))
    _add_export(parser.command("export", _export, "hand results to other tools or machines"))
    merge = parser.command("merge", _merge, "join stores that were computed apart")
    merge.add_argument("stores", type=Path, nargs="+", metavar="DIR", help="stores to join")
    merge.add_argument("--out", type=Path, required=True, help="where they are joined")


def _add_reproduce(reproduce: argparse.ArgumentParser) -> None:
    reproduce.add_argument("table", nargs="?", default="table1", help="a published table, or all")
    reproduce.add_argument("--selection", default="last", help="where the source states none")
    reproduce.add_argument(
        "--stand-in", metavar="DOMAIN", help="takes the place of a missing domain, and is marked"
    )
    add_request(reproduce)
    # A data root makes it run the table's pairs first, so it must be asked for.
    reproduce.set_defaults(data_root=None, methods=PUBLISHED_METHODS)
    reproduce.add_argument("--strict", action="store_true", help="exit 6 unless reproduced")


def _add_export(export: argparse.ArgumentParser) -> None:
    add_out(export)
    export.add_argument(
        "--format", required=True, choices=("challenger", "bundle"), help="CSV, or zip of records"
    )
    export.add_argument("--to", type=Path, required=True, metavar="FILE", help="what is written")
    export.add_argument("--profile", default="standard", help="scoring profile of the CSV")
    export.add_argument("--metric", default="dice", choices=("dice", "asd"), help="of the CSV")
    export.add_argument("--selection", default="last", help="of the CSV (default: last)")


PUBLISHED_METHODS = "source_only,dpl,cpr,cpr_cbam"


def _reproduce(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.plain import to_markdown
    from sfuda_bench.report.reproduce import (
        check_reproduced,
        measured_table,
        published_values,
        reproduce,
        reproduce_table,
    )
    from sfuda_bench.report.scope import read_scope

    values = published_values(arguments.table)
    done = None if arguments.data_root is None else _run_published(arguments, values)
    stand_ins = done["stand_ins"] if done else {}
    scope = read_scope(arguments.out, arguments.selection)
    found = reproduce(scope, arguments.table, stand_ins=stand_ins)
    if arguments.json:
        rows = [comparison.to_json() for comparison in found]
        document = {"out": str(arguments.out), "comparisons": rows}
        print(json.dumps({**document, **(done or {})}))
    else:
        if done:
            print(to_markdown(measured_table(scope, arguments.table, values, stand_ins)))
        print(to_markdown(reproduce_table(found, arguments.table)), end="")
    if arguments.strict:
        check_reproduced(found)
    return SOME_FAILED if done and done["run"]["failed"] else 0


def _run_published(
    arguments: argparse.Namespace, values: Sequence[PublishedValue]
) -> dict[str, Any]:
    """Run the pairs of a published table with the domains that are there."""
    from sfuda_bench.progress import Progress
    from sfuda_bench.report.reproduce_data import arrange
    from sfuda_bench.running.engine import execute
    from sfuda_bench.running.plan import build_plan
    from sfuda_bench.scoring.profiles import PROFILES

    pairs = [value.pair for value in values]
    found = arrange(pairs, arguments.data_root, arguments.stand_in, arguments.pairs)
    for text in found.notes:
        note(text)
    arguments.pairs = ",".join(map(str, found.pairs))
    profiles = [*arguments.profiles.split(","), *(value.profile for value in values)]
    arguments.profiles = ",".join(p for p in dict.fromkeys(profiles) if p in PROFILES)
    request = make_request(arguments)
    settings = request.settings.with_stand_ins(found.stand_ins)
    plan = build_plan(replace(request, settings=settings))
    with stdout_for_data(), Progress() as progress:
        for warning in plan.warnings:
            progress.note(f"warning: {warning}")
        summary = execute(plan, progress)
    write_tables(arguments.out, arguments.selection, None, show=False)
    return {
        "missing": dict(found.missing),
        "stand_ins": dict(found.stand_ins),
        "run": summary.to_json(),
    }


def _export(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.export import export

    text = export(
        arguments.out,
        arguments.to,
        arguments.format,
        profile=arguments.profile,
        metric=arguments.metric,
        selection=arguments.selection,
    )
    if arguments.json:
        print(json.dumps({"file": str(arguments.to), "format": arguments.format, "note": text}))
    else:
        print(text, file=sys.stderr)
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.merge import merge

    done = merge(arguments.stores, arguments.out)
    if arguments.json:
        print(json.dumps({"out": str(arguments.out), **done.to_json()}))
    for name in done.different:
        note(f"warning: {name}: the stores hold different results, the first one is kept")
    note(f"{done.copied} cells copied, {done.shared} found twice; merged into {arguments.out}")
    return 0

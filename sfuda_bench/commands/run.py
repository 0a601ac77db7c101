"""The main job, and what it would do, and what it has done."""

from __future__ import annotations

import argparse
import json
import sys

from sfuda_bench.commands.cluster import add_cluster, request_workers
from sfuda_bench.commands.shared import (
    SOME_FAILED,
    CommandParser,
    add_out,
    add_request,
    make_request,
    print_rich,
    stdout_for_data,
    write_tables,
)


def add(parser: CommandParser) -> None:
    """Add ``run``, ``plan`` and ``status``."""
    run = parser.command("run", _run, "compute what is missing, score it, write the tables")
    add_request(run)
    add_cluster(run)
    plan = parser.command("plan", _plan, "show what run would compute")
    add_request(plan)
    plan.add_argument(
        "--explain", action="store_true", help="also the settings that keep their default"
    )
    add_out(parser.command("status", _status, "show what is done, running, failed, todo"))


def _run(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.running.engine import execute
    from sfuda_bench.running.plan import build_plan

    with request_workers(arguments, make_request(arguments)) as (request, pool):
        plan = build_plan(request)
        with stdout_for_data(), Progress() as progress:
            for warning in plan.warnings:
                progress.note(f"warning: {warning}")
            summary = execute(plan, progress, pool)
    write_tables(request.out, "last", request.profiles, show=not arguments.json)
    if arguments.json:
        print(json.dumps(summary.to_json()))
    else:
        held_back = f" ({summary.not_run} of them not run)" if summary.not_run else ""
        print(
            f"{summary.cells} cells: {summary.computed} computed, {summary.reused} reused, "
            f"{summary.failed} failed{held_back}; results in {summary.out}",
            file=sys.stderr,
        )
    return SOME_FAILED if summary.failed else 0


def _plan(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.plan import build_plan
    from sfuda_bench.settings import DEFAULT_ORIGIN, explain, explain_pairs

    request = make_request(arguments)
    plan = build_plan(request)
    document = plan.to_json()
    settings = explain(request.settings)
    by_pair = explain_pairs(request.settings, dict.fromkeys(cell.pair for cell in plan.cells))
    document["settings"] = {
        key: {"value": value, "origin": origin} for key, value, origin in settings
    }
    document["pair_settings"] = {
        pair: {key: {"value": value, "origin": origin} for key, value, origin in rows}
        for pair, rows in by_pair.items()
    }
    if arguments.json:
        print(json.dumps(document))
        return 0
    for cell in plan.cells:
        note = f"  ({cell.reason})" if cell.reason else ""
        print(f"{cell.state:8}{cell.name}  {cell.protocol}  {cell.key[:16]}{note}")
    for key, value, origin in settings:
        if arguments.explain or origin != DEFAULT_ORIGIN:
            print(f"{key} = {value!r}  [{origin}]")
    for pair, rows in by_pair.items():
        for key, value, origin in rows:
            print(f"{pair}: {key} = {value!r}  [{origin}]")
    for warning in document["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    counts = ", ".join(f"{document[state]} {state}" for state in ("todo", "done", "blocked"))
    seconds = document["seconds_estimate"]
    time = "unknown until a cell is stored" if seconds is None else f"about {seconds / 60:.0f} min"
    print(f"{counts}; disk about {document['disk_bytes'] / 1e6:.0f} MB; time {time}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.status import render_status, status

    found = status(arguments.out)
    if arguments.json:
        print(json.dumps(found))
    else:
        print_rich(render_status(found, plain=not sys.stdout.isatty()))
    return 0

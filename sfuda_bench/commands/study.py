"""Study files: searches with Optuna, and ablations."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sfuda_bench.commands.cluster import add_cluster, study_workers
from sfuda_bench.commands.shared import (
    SOME_FAILED,
    CommandParser,
    add_out,
    add_study_request,
    note,
    say_synthetic,
    stdout_for_data,
    study_flags,
)


def add(parser: CommandParser) -> None:
    """Add ``study run|status|export|ls`` and ``ablate``."""
    study = parser.group("study", "search settings with Optuna")
    run = study.command("run", _study_run, "run a study file, or go on with it")
    add_study_request(run)
    add_cluster(run)
    run.add_argument(
        "--allow-oracle", action="store_true", help="let target labels choose; tables say so"
    )
    status = study.command("status", _study_status, "show a study's trials, also while it runs")
    export = study.command("export", _study_export, "write the chosen settings for run --config")
    for command in (status, export):
        command.add_argument("study", metavar="FILE|NAME", help="a study file, or a study's name")
        add_out(command)
    for command in (run, status):
        command.add_argument(
            "--storage", metavar="URL", help="postgresql://... (default: a journal in the store)"
        )
    export.add_argument("--method", help="of a study of several methods")
    export.add_argument("--trial", type=int, help="another trial than the chosen one")
    export.add_argument("--for", dest="pair", metavar="SOURCE:TARGET", help="a pair, for transfer")
    export.add_argument("--to", type=Path, metavar="FILE.toml", help="default: stdout")
    study.command("ls", _study_ls, "list the shipped study files")
    ablate = parser.command("ablate", _ablate, "switch parts of a method, show their effects")
    add_study_request(ablate)
    add_cluster(ablate)
    ablate.add_argument("--dry-run", action="store_true", help="list the cells, compute nothing")


def _study_run(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.search.commands import run_study

    say_synthetic(arguments)
    with (
        study_workers(arguments, study_flags(arguments)) as (flags, pool),
        stdout_for_data(),
        Progress() as progress,
    ):
        result = run_study(
            arguments.study,
            flags,
            progress,
            allow_oracle=arguments.allow_oracle,
            storage=arguments.storage,
            pool=pool,
        )
    print(json.dumps(result.document) if arguments.json else result.text)
    return SOME_FAILED if result.failed else 0


def _ablate(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.search.ablation import planned_cells, run_ablation

    say_synthetic(arguments)
    flags = study_flags(arguments)
    if arguments.dry_run:
        cells = planned_cells(arguments.study, flags)
        lines = [f"{c['state']:8}{c['cell']}  [{c['row']}]  {c['key'][:16]}" for c in cells]
        print(json.dumps(cells) if arguments.json else "\n".join(lines))
        return 0
    with (
        study_workers(arguments, flags) as (flags, pool),
        stdout_for_data(),
        Progress() as progress,
    ):
        found = run_ablation(arguments.study, flags, progress, pool)
    print(json.dumps(found.to_json()) if arguments.json else found.text())
    note(f"{found.asked} cells, {found.failed} failed; tables and pictures in {found.folder}")
    return SOME_FAILED if found.failed else 0


def _study_status(arguments: argparse.Namespace) -> int:
    from sfuda_bench.search.commands import study_status, study_status_text

    found = study_status(arguments.study, arguments.out, arguments.storage)
    print(json.dumps(found) if arguments.json else study_status_text(found))
    return 0


def _study_export(arguments: argparse.Namespace) -> int:
    from sfuda_bench.search.commands import export_study

    text = export_study(
        arguments.study,
        arguments.out,
        method=arguments.method,
        trial=arguments.trial,
        pair=arguments.pair,
        to=arguments.to,
    )
    if arguments.json:
        print(json.dumps({"file": str(arguments.to) if arguments.to else None, "toml": text}))
    elif arguments.to is None:
        print(text, end="")
    else:
        print(f"sfuda-bench run --config {arguments.to}", file=sys.stderr)
    return 0


def _study_ls(arguments: argparse.Namespace) -> int:
    from sfuda_bench.search.commands import list_studies

    rows = list_studies()
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['name']:32}{row['kind']:10}{row['question']}")
    return 0

"""The command line: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sfuda_bench.errors import CheckFailed, EnvironmentProblem, SfudaError, UsageError
from sfuda_bench.registry import did_you_mean

if TYPE_CHECKING:
    from sfuda_bench.report.published import PublishedValue
    from sfuda_bench.report.write import Written
    from sfuda_bench.running.request import RunRequest
    from sfuda_bench.search.cells import Flags
    from sfuda_bench.settings import Settings

DEFAULT_OUT = Path("results/local")
PUBLISHED_METHODS = "source_only,dpl,cpr,cpr_cbam"
DEFAULT_METHODS = "source_only,bn_adapt,entropy_min,dpl,cpr,cpr_cbam,target_supervised"
_INTERRUPTED = 130
_SOME_FAILED = 4
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors suggest the nearest flag and follow our exit codes."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^\s='(]+)", message)
        nearest = did_you_mean(wrong[1], _words(self)) if wrong else ""
        raise UsageError(f"{message}{nearest}", hint=f"{self.prog} --help")


def _interrupt(number: int, frame: object) -> NoReturn:
    """Treat a request to terminate like Ctrl-C: stop the workers, keep what is finished."""
    raise KeyboardInterrupt


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags, choices and commands of a parser and of its commands."""
    words: list[str] = []
    for action in parser._actions:
        words += [*action.option_strings, *map(str, action.choices or ())]
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                words += _words(child)
    return words


def _positive(text: str) -> int:
    """Convert the text of a flag that counts something."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected an integer of at least 1")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    # Waiting threads must sleep: workers share the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _interrupt)
    parsed = argparse.Namespace()
    try:
        _parser().parse_args(arguments, parsed)
        code: int = parsed.command(parsed)
        sys.stdout.flush()
        return code
    except SfudaError as error:
        return _explain(error)
    except KeyboardInterrupt:
        print("interrupted: what was finished is kept; run the same command again", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader has left, as `head` does; what is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            where = f": {error.filename}" if error.filename else ""
            text = f"the disk is full{where}; what was finished is kept"
            return _explain(EnvironmentProblem(text, hint="free some space and run it again"))
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print(f"hint: {_keep_traceback(parsed)}", file=sys.stderr)
        return 1


def _explain(error: SfudaError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _keep_traceback(parsed: argparse.Namespace) -> str:
    """Show the traceback if that was asked for, else log it in the store; say where it is."""
    out = getattr(parsed, "out", None)
    verbose = getattr(parsed, "verbose", False)
    if not verbose and out is not None and (out / "store.json").is_file():
        log = out / "log" / "errors.txt"
        try:
            log.parent.mkdir(exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
        except OSError:
            return "add -v for the traceback"
        return f"the traceback is in {log}"
    if verbose:
        traceback.print_exc()
        return "see the traceback above"
    return "add -v for the traceback"


@contextmanager
def _stdout_for_data() -> Iterator[None]:
    """Send what plug-ins and worker processes print to stderr: stdout carries only data."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    except BrokenPipeError as error:  # not our reader's: nothing here writes to the real stdout
        raise RuntimeError("the pipe to a worker process broke") from error
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


# -- commands ---------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.running.engine import execute
    from sfuda_bench.running.plan import build_plan

    request = _request(arguments)
    plan = build_plan(request)
    with _stdout_for_data(), Progress() as progress:
        for warning in plan.warnings:
            progress.note(f"warning: {warning}")
        summary = execute(plan, progress)
    _tables(request.out, "last", request.profiles, show=not arguments.json)
    if arguments.json:
        print(json.dumps(summary.to_json()))
    else:
        print(
            f"{summary.cells} cells: {summary.computed} computed, {summary.reused} reused, "
            f"{summary.failed} failed; results in {summary.out}",
            file=sys.stderr,
        )
    return _SOME_FAILED if summary.failed else 0


def _plan(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.plan import build_plan
    from sfuda_bench.settings import DEFAULT_ORIGIN, explain, explain_pairs

    request = _request(arguments)
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
        _print(render_status(found, plain=not sys.stdout.isatty()))
    return 0


def _ls(arguments: argparse.Namespace) -> int:
    rows = _LISTS[arguments.what](arguments)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print("  ".join(str(value) for value in row.values() if value not in (None, "")))
    return 0


def _list_methods(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.methods import METHODS

    _load_plugins(arguments)
    specs = [METHODS.get(name) for name in METHODS.names()]
    return [
        {
            "name": spec.name,
            "title": spec.title,
            "version": f"v{spec.version}",
            "protocols": ",".join(spec.protocols),
            "strictness": "oracle" if spec.oracle else spec.strictness,
            "source": spec.source,
            "file": spec.origin,
        }
        for spec in specs
    ]


def _list_datasets(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.datasets import dataset_names, get_dataset

    _load_plugins(arguments)
    rows = []
    for name in dataset_names():
        spec = get_dataset(name)
        counts = spec.published_counts
        rows.append(
            {
                "name": spec.name,
                "title": spec.title,
                "published": "/".join(map(str, counts)) if counts else "",
                "aliases": ",".join(spec.aliases),
                "homepage": spec.homepage,
            }
        )
    return rows


def _list_networks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.networks.registry import NETWORKS

    _load_plugins(arguments)
    specs = [NETWORKS.get(name) for name in NETWORKS.names()]
    return [
        {"name": spec.name, "version": f"v{spec.version}", "description": spec.description}
        for spec in specs
    ]


def _list_validators(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.scoring.validators import VALIDATORS

    _load_plugins(arguments)
    specs = [VALIDATORS.get(name) for name in VALIDATORS.names()]
    return [
        {
            "name": spec.name,
            "version": f"v{spec.version}",
            "strictness": spec.strictness,
            "needs": ",".join(sorted(spec.needs)),
            "description": spec.description,
        }
        for spec in specs
    ]


def _list_pairs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.datasets import canonical_name, dataset_names, find_domains, get_dataset
    from sfuda_bench.selectors import parse_pairs

    if arguments.data_root is not None:
        names = list(find_domains(arguments.data_root))
    else:
        names = [name for name in dataset_names() if get_dataset(name).synthetic]
    pairs = parse_pairs("all", names, canonical_name)
    return [{"pair": str(pair), "source": pair.source, "target": pair.target} for pair in pairs]


_LISTS = {
    "methods": _list_methods,
    "datasets": _list_datasets,
    "networks": _list_networks,
    "pairs": _list_pairs,
    "validators": _list_validators,
}


def _report(arguments: argparse.Namespace) -> int:
    tables = _tables(arguments.out, arguments.selection, None, show=not arguments.json)
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

    def note(name: str) -> None:
        _note(f"drawing {name}")

    gallery: dict[str, list[Path]] = {}
    if arguments.gallery:
        from sfuda_bench.report.gallery import write_gallery

        gallery = {"gallery": write_gallery(arguments.out, arguments.selection, note=note)}
    if arguments.html:
        page = write_html(
            arguments.out, arguments.selection, note, tables.compared, tables.rankings
        )
        _note(f"page: {page}")
        return {**gallery, "html": [page]}
    if arguments.figures:
        return {**gallery, "figures": write_figures(arguments.out, arguments.selection, note=note)}
    return gallery


def _rescore(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.rescore import rescore

    if arguments.thresholds:
        return _rescore_thresholds(arguments)
    cells = rescore(arguments.out, arguments.profile, arguments.engine, jobs=arguments.jobs)
    _tables(arguments.out, "last", [arguments.profile], show=not arguments.json)
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
    return _SOME_FAILED if done and done["run"]["failed"] else 0


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
    for note in found.notes:
        _note(note)
    arguments.pairs = ",".join(map(str, found.pairs))
    profiles = [*arguments.profiles.split(","), *(value.profile for value in values)]
    arguments.profiles = ",".join(p for p in dict.fromkeys(profiles) if p in PROFILES)
    request = _request(arguments)
    settings = request.settings.with_stand_ins(found.stand_ins)
    plan = build_plan(replace(request, settings=settings))
    with _stdout_for_data(), Progress() as progress:
        for warning in plan.warnings:
            progress.note(f"warning: {warning}")
        summary = execute(plan, progress)
    _tables(arguments.out, arguments.selection, None, show=False)
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
        _note(f"warning: {name}: the stores hold different results, the first one is kept")
    _note(f"{done.copied} cells copied, {done.shared} found twice; merged into {arguments.out}")
    return 0


def _cite(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.cite import citations, to_bibtex

    found = citations(arguments.out)
    if arguments.json:
        print(json.dumps([citation.to_json() for citation in found]))
    else:
        print(to_bibtex(found), end="")
    return 0


def _source_train(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.running.engine import train_sources
    from sfuda_bench.running.plan import build_plan

    plan = build_plan(_request(arguments))
    with _stdout_for_data(), Progress() as progress:
        summary = train_sources(plan, progress)
    print(json.dumps(summary.to_json()) if arguments.json else _source_text(arguments.out))
    return _SOME_FAILED if summary.failed else 0


def _source_ls(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.cards import list_sources

    if arguments.json:
        print(json.dumps(list_sources(arguments.out)))
    else:
        print(_source_text(arguments.out))
    return 0


def _source_import(arguments: argparse.Namespace) -> int:
    from sfuda_bench.datasets import canonical_name
    from sfuda_bench.running.source_import import import_source, train_masks
    from sfuda_bench.running.store import Store
    from sfuda_bench.settings import NetworkSettings

    _load_plugins(arguments)
    domain, store = canonical_name(arguments.domain), Store.open(arguments.out)
    network = NetworkSettings(name=arguments.network, encoder=arguments.encoder)
    masks = train_masks(arguments.data_root, domain, arguments.image_size, store)
    source = import_source(arguments.file, domain, network, store, masks)
    if ignored := len(source.card["imported"]["ignored"]):
        _note(f"{arguments.file}: {ignored} tensors are not of the network and were left out")
    _note(f"use it: run --source-model {domain}={source.key[:16]} --network {network.name}")
    print(json.dumps(source.card) if arguments.json else source.key[:16])
    return 0


def _source_text(out: Path) -> str:
    from sfuda_bench.running.cards import list_sources

    lines = []
    for card in list_sources(out):
        test = card.get("test_dice", {}).get("0.5")
        score = (
            f"test Dice cup {test['cup']:.3f} disc {test['disc']:.3f}" if test else "no test masks"
        )
        made = f"{card['image_size']} px  {card.get('updates')} updates  {score}"
        if card.get("imported"):
            made = f"imported from {card['imported']['file']}"
        lines.append(
            f"{card['domain']}  seed {card['source_seed']}  {card['key'][:16]}  "
            f"{card['network']['name']} {made}"
        )
    return "\n".join(lines)


def _data_verify(arguments: argparse.Namespace) -> int:
    from sfuda_bench.images.verify import verify

    if arguments.data_root is None:
        raise UsageError("data verify needs --data-root DIR", hint="or set SFUDA_DATA_ROOT")
    findings = verify(arguments.data_root)
    errors = [finding for finding in findings if finding.severity == "error"]
    if arguments.json:
        rows = [
            {"severity": f.severity, "path": str(f.path), "message": f.message} for f in findings
        ]
        print(json.dumps({"errors": len(errors), "findings": rows}))
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.path}: {finding.message}")
        print(f"{len(errors)} errors, {len(findings) - len(errors)} warnings")
    return 3 if errors else 0


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


def _study_run(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.search.commands import run_study

    _say_synthetic(arguments)
    with _stdout_for_data(), Progress() as progress:
        result = run_study(
            arguments.study,
            _flags(arguments),
            progress,
            allow_oracle=arguments.allow_oracle,
            storage=arguments.storage,
        )
    print(json.dumps(result.document) if arguments.json else result.text)
    return _SOME_FAILED if result.failed else 0


def _ablate(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.search.ablation import planned_cells, run_ablation

    _say_synthetic(arguments)
    flags = _flags(arguments)
    if arguments.dry_run:
        cells = planned_cells(arguments.study, flags)
        lines = [f"{c['state']:8}{c['cell']}  [{c['row']}]  {c['key'][:16]}" for c in cells]
        print(json.dumps(cells) if arguments.json else "\n".join(lines))
        return 0
    with _stdout_for_data(), Progress() as progress:
        found = run_ablation(arguments.study, flags, progress)
    print(json.dumps(found.to_json()) if arguments.json else found.text())
    _note(f"{found.asked} cells, {found.failed} failed; tables and pictures in {found.folder}")
    return _SOME_FAILED if found.failed else 0


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


# -- what commands share ----------------------------------------------------------------------


def _flags(arguments: argparse.Namespace) -> Flags:
    """Return what the command line adds to a study file."""
    from sfuda_bench.search.cells import Flags

    return Flags(
        out=arguments.out,
        data_root=arguments.data_root,
        preset=arguments.preset,
        pairs=arguments.pairs,
        seeds=arguments.seeds,
        overrides=tuple(arguments.set),
        jobs=arguments.jobs,
        device=arguments.device,
        plugins=tuple(arguments.plugin),
    )


def _say_synthetic(arguments: argparse.Namespace) -> None:
    if arguments.data_root is None:
        print("no --data-root: the built-in synthetic domains are used", file=sys.stderr)


def _request(arguments: argparse.Namespace) -> RunRequest:
    """Turn parsed arguments into a request, resolving names and settings."""
    from sfuda_bench.running.request import RunRequest
    from sfuda_bench.scoring.profiles import get_profile
    from sfuda_bench.selectors import parse_methods, parse_seeds

    _load_plugins(arguments)
    methods = tuple(parse_methods(arguments.methods))
    profiles = tuple(part.strip() for part in arguments.profiles.split(","))
    for profile in profiles:
        get_profile(profile)
    if arguments.data_root is None:
        print("no --data-root: the built-in synthetic domains are used", file=sys.stderr)
    return RunRequest(
        methods=methods,
        pairs=arguments.pairs,
        seeds=tuple(parse_seeds(arguments.seeds)),
        source_seeds=tuple(parse_seeds(arguments.source_seeds, "--source-seeds")),
        settings=_settings(arguments, methods),
        data_root=arguments.data_root,
        out=arguments.out,
        device=arguments.device,
        jobs=arguments.jobs,
        protocol=arguments.protocol,
        record=_records(arguments),
        profiles=profiles,
        average_last=arguments.average_last,
        keep_models=not arguments.no_models,
        plugins=tuple(arguments.plugin),
        source_models=_source_models(arguments),
    )


def _source_models(arguments: argparse.Namespace) -> tuple[tuple[str, str], ...]:
    if not arguments.source_model:
        return ()
    from sfuda_bench.running.source_import import parse_source_models

    return parse_source_models(arguments.source_model)


def _records(arguments: argparse.Namespace) -> frozenset[str]:
    from sfuda_bench.running.request import check_records

    asked = [name.strip() for name in arguments.record.split(",") if name.strip()]
    return check_records(
        [*asked, *(("epochs", "validators") if arguments.track == "epochs" else ())]
    )


def _settings(arguments: argparse.Namespace, methods: Sequence[str]) -> Settings:
    from sfuda_bench.settings import resolve

    preset = arguments.preset or ("quick" if arguments.data_root is None else "reproduction")
    flags = {
        "data.image_size": arguments.image_size,
        "network.name": arguments.network,
        "network.encoder": arguments.encoder,
        "network.encoder_weights": arguments.encoder_weights,
        "run.precision": arguments.precision,
    }
    return resolve(
        preset,
        config_file=arguments.config,
        overrides=arguments.set,
        flags={key: value for key, value in flags.items() if value is not None},
        methods=methods,
    )


def _load_plugins(arguments: argparse.Namespace) -> None:
    from sfuda_bench.registry import load_plugin_file

    for path in arguments.plugin:
        load_plugin_file(path)


def _tables(out: Path, selection: str, profiles: Sequence[str] | None, *, show: bool) -> Written:
    """Write the tables of a store and, unless a document is wanted, print the main ones."""
    from rich.console import Console

    from sfuda_bench.report.tables import print_tables
    from sfuda_bench.report.write import write_report

    written = write_report(out, selection, profiles, lambda stage: _note(f"report: {stage}"))
    if show:
        print_tables(out, Console(), selection, written.evidence)
    return written


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _print(renderable: object) -> None:
    from rich.console import Console

    Console().print(renderable)


# -- the parser -------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sfuda-bench",
        description="Compare source-free domain adaptation methods for optic cup and disc.",
        epilog="The main job: sfuda-bench run --methods cpr,cpr_cbam --pairs all",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sfuda-bench {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(parent: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
        child: argparse.ArgumentParser = parent.add_parser(
            name, help=text, description=text, allow_abbrev=False
        )
        child.set_defaults(command=function)
        child.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        child.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        return child

    run = command(commands, "run", _run, "compute what is missing, score it, write the tables")
    _add_request(run)
    plan = command(commands, "plan", _plan, "show what run would compute")
    _add_request(plan)
    plan.add_argument(
        "--explain", action="store_true", help="also the settings that keep their default"
    )
    status = command(commands, "status", _status, "show what is done, running, failed, todo")
    _add_out(status)
    listing = command(commands, "ls", _ls, "list what can be named")
    listing.add_argument("what", choices=tuple(_LISTS))
    _add_data_root(listing)
    _add_plugin(listing)
    report = command(commands, "report", _report, "write the tables from stored scores")
    _add_out(report)
    report.add_argument(
        "--selection", default="last", help="last, average-last-K or oracle (default: last)"
    )
    report.add_argument("--figures", action="store_true", help="also draw the figures")
    report.add_argument(
        "--gallery", action="store_true", help="also overlays on test images, in DIR/gallery"
    )
    report.add_argument("--html", action="store_true", help="also one HTML file with the figures")
    rescore = command(commands, "rescore", _rescore, "score stored predictions again")
    _add_out(rescore)
    rescore.add_argument("--profile", default="standard", help="scoring profile")
    rescore.add_argument("--engine", default="core", help="core, or medpy as independent reference")
    rescore.add_argument("--jobs", type=_positive, default=1, help="processes (default: 1)")
    rescore.add_argument(
        "--thresholds", action="store_true", help="Dice over thresholds and calibration instead"
    )
    _add_sharing(command, commands)
    _add_study(command, commands)
    _add_ablate(command, commands)
    claim = command(commands, "claim", _claim, "is 'A > B on cup dice' supported? exit 6 if not")
    _add_claim(claim)
    source = commands.add_parser("source", help="source models").add_subparsers(required=True)
    train = command(source, "train", _source_train, "train the source models that run would need")
    _add_request(train)
    _add_out(command(source, "ls", _source_ls, "list stored source models and their scores"))
    _add_import(command(source, "import", _source_import, "store weights from a file, e.g. .pth"))
    data = commands.add_parser("data", help="images and masks").add_subparsers(required=True)
    verify = command(data, "verify", _data_verify, "check a data root before a run")
    _add_data_root(verify)
    return parser


def _add_sharing(command: Any, commands: Any) -> None:
    """Add the commands that set a store beside others' numbers or hand it to others."""
    reproduce = command(commands, "reproduce", _reproduce, "compare with published numbers")
    reproduce.add_argument("table", nargs="?", default="table1", help="a published table, or all")
    reproduce.add_argument("--selection", default="last", help="where the source states none")
    reproduce.add_argument(
        "--stand-in", metavar="DOMAIN", help="takes the place of a missing domain, and is marked"
    )
    _add_request(reproduce)
    # A data root makes it run the table's pairs first, so it must be asked for.
    reproduce.set_defaults(data_root=None, methods=PUBLISHED_METHODS)
    reproduce.add_argument("--strict", action="store_true", help="exit 6 unless reproduced")
    export = command(commands, "export", _export, "hand results to other tools or machines")
    _add_out(export)
    export.add_argument(
        "--format", required=True, choices=("challenger", "bundle"), help="CSV, or zip of records"
    )
    export.add_argument("--to", type=Path, required=True, metavar="FILE", help="what is written")
    export.add_argument("--profile", default="standard", help="scoring profile of the CSV")
    export.add_argument("--metric", default="dice", choices=("dice", "asd"), help="of the CSV")
    export.add_argument("--selection", default="last", help="of the CSV (default: last)")
    merge = command(commands, "merge", _merge, "join stores that were computed apart")
    merge.add_argument("stores", type=Path, nargs="+", metavar="DIR", help="stores to join")
    merge.add_argument("--out", type=Path, required=True, help="where they are joined")
    cite = command(commands, "cite", _cite, "print BibTeX of the methods and data sets used")
    _add_out(cite)


def _add_study(command: Any, commands: Any) -> None:
    """Add the commands around study files."""
    study = commands.add_parser("study", help="search settings with Optuna").add_subparsers(
        required=True
    )
    run = command(study, "run", _study_run, "run a study file, or go on with it")
    _add_study_request(run)
    run.add_argument(
        "--allow-oracle", action="store_true", help="let target labels choose; tables say so"
    )
    status = command(study, "status", _study_status, "show a study's trials, also while it runs")
    export = command(study, "export", _study_export, "write the chosen settings for run --config")
    for parser in (status, export):
        parser.add_argument("study", metavar="FILE|NAME", help="a study file, or a study's name")
        _add_out(parser)
    for parser in (run, status):
        parser.add_argument(
            "--storage", metavar="URL", help="postgresql://... (default: a journal in the store)"
        )
    export.add_argument("--method", help="of a study of several methods")
    export.add_argument("--trial", type=int, help="another trial than the chosen one")
    export.add_argument("--for", dest="pair", metavar="SOURCE:TARGET", help="a pair, for transfer")
    export.add_argument("--to", type=Path, metavar="FILE.toml", help="default: stdout")
    command(study, "ls", _study_ls, "list the shipped study files")


def _add_ablate(command: Any, commands: Any) -> None:
    """Add the command that says what each part of a method is worth."""
    ablate = command(commands, "ablate", _ablate, "switch parts of a method, show their effects")
    _add_study_request(ablate)
    ablate.add_argument("--dry-run", action="store_true", help="list the cells, compute nothing")


def _add_study_request(parser: argparse.ArgumentParser) -> None:
    """Add a study file and what the command line may say instead of it."""
    add = parser.add_argument
    add("study", metavar="FILE|NAME", help="a study file, or the name of a shipped one")
    _add_data_root(parser)
    _add_out(parser)
    add("--pairs", help="instead of the file's: all, 'a:*', '*:b' or a:b,c:d")
    add("--seeds", help="instead of the file's, e.g. 0..4")
    add("--preset", help="instead of the file's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. cpr.epochs=6")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--jobs", type=_positive, default=1, help="cells computed at once (default: 1)")
    _add_plugin(parser)


def _add_request(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--methods", default=DEFAULT_METHODS, help="comma-separated (default: all main methods)")
    add("--pairs", default="all", help="all, 'a:*', '*:b' or a:b,c:d (default: all)")
    add("--seeds", default="0", help="adaptation seeds, e.g. 0..4 (default: 0)")
    add("--source-seeds", default="0", help="seeds of the source models (default: 0)")
    add(
        "--source-model",
        action="append",
        default=[],
        metavar="DOMAIN=FILE|KEY",
        help="use this source model instead of training one",
    )
    _add_data_root(parser)
    _add_out(parser)
    add("--preset", help="quick, small, reproduction, paper, official, dpl-official, dpl-clean")
    add("--config", type=Path, metavar="FILE.toml", help="settings on top of the preset")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. cpr.radius=6")
    add("--image-size", type=int, help="side of the model input, px")
    add("--network", help="see `ls networks`")
    add("--encoder", help="encoder of segmentation-models-pytorch")
    add("--encoder-weights", metavar="none|imagenet|FILE", help="start of the encoder")
    add("--precision", choices=("float32", "bfloat16", "auto"), help="numerical precision")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--jobs", type=_positive, default=1, help="cells computed at once (default: 1)")
    add("--protocol", choices=("offline", "transductive", "online", "episodic"))
    add(
        "--track",
        choices=("none", "epochs"),
        default="none",
        help="keep every epoch's predictions and label-free validators",
    )
    add(
        "--record",
        default="",
        metavar="LIST",
        help="what cells keep besides: epochs, validators, train, labels",
    )
    add(
        "--average-last",
        type=_positive,
        default=5,
        metavar="K",
        help="K of average-last-K (default: 5)",
    )
    add("--profiles", default="standard,cpr-2023", help="scoring profiles")
    add("--no-models", action="store_true", help="do not store adapted models")
    _add_plugin(parser)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a released checkpoint, or .safetensors")
    add("--domain", required=True, help="the domain it was trained on")
    add("--network", default="dpl_deeplabv3plus", help="default: dpl_deeplabv3plus")
    add("--encoder", default="mobilenet_v2", help="default: mobilenet_v2")
    add("--image-size", type=int, default=512, help="of the area prior's masks (default: 512)")
    _add_data_root(parser)
    _add_out(parser)
    _add_plugin(parser)


def _add_claim(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("claim", help="'A > B on (cup|disc|avg) (dice|asd|hd95|nsd)'; > means better")
    _add_out(parser)
    add("--csv", type=Path, metavar="FILE", help="scores of another program instead of a store")
    add("--pairs", default="all", help="all, 'a:*', '*:b' or a:b,c:d (default: all)")
    add("--profile", default="standard", help="scoring profile (default: standard)")
    add("--selection", default="last", help="which epoch is scored (default: last)")
    add("--rope", type=float, default=0.5, help="practically equal within this (default: 0.5)")
    add("--alpha", type=float, default=0.05, help="level of the tests (default: 0.05)")


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help=f"the store (default: {DEFAULT_OUT})"
    )


def _add_data_root(parser: argparse.ArgumentParser) -> None:
    root = os.environ.get("SFUDA_DATA_ROOT")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path(root) if root else None,
        help="folder of domains (default: $SFUDA_DATA_ROOT, else the synthetic domains)",
    )


def _add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], metavar="FILE.py", help="more plug-ins"
    )


def _version() -> str:
    try:
        return version("sfuda-bench")
    except PackageNotFoundError:
        return "unknown (not installed)"


if __name__ == "__main__":
    sys.exit(main())

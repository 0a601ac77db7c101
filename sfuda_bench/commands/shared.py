"""What commands share: the parser's parts, and what turns parsed arguments into a request.

A group of commands is a module of this package with one public function,
``add(parser: CommandParser) -> None``; its commands are functions from parsed arguments to an
exit code, and import what is heavy inside.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sfuda_bench.report.write import Written
    from sfuda_bench.running.request import RunRequest
    from sfuda_bench.search.cells import Flags
    from sfuda_bench.settings import Settings

Command = Callable[[argparse.Namespace], int]


class CommandParser:
    """Adds commands, and groups of commands, to a parser.

    Args:
        commands: What ``ArgumentParser.add_subparsers`` returned.
    """

    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def command(self, name: str, function: Command, text: str) -> argparse.ArgumentParser:
        """Add a command that calls ``function``, with the flags that every command has."""
        child: argparse.ArgumentParser = self._commands.add_parser(
            name, help=text, description=text, allow_abbrev=False
        )
        child.set_defaults(command=function)
        child.add_argument("--json", action="store_true", help="print one JSON document on stdout")
        child.add_argument("-v", "--verbose", action="store_true", help="show tracebacks")
        return child

    def group(self, name: str, text: str) -> CommandParser:
        """Add a command that has commands of its own."""
        return CommandParser(
            self._commands.add_parser(name, help=text).add_subparsers(required=True)
        )


DEFAULT_OUT = Path("results/local")


DEFAULT_METHODS = "source_only,bn_adapt,entropy_min,dpl,cpr,cpr_cbam,target_supervised"


SOME_FAILED = 4


def seconds(text: str) -> float:
    """Convert the text of a flag that is a time."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}': expected seconds, 0 or more")
    return number


def positive(text: str) -> int:
    """Convert the text of a flag that counts something."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"'{text}': expected an integer of at least 1")
    return number


@contextmanager
def stdout_for_data() -> Iterator[None]:
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


def study_flags(arguments: argparse.Namespace) -> Flags:
    """Return what the command line adds to a study file."""
    from sfuda_bench.search.cells import Flags

    return Flags(
        out=arguments.out,
        data_root=arguments.data_root,
        preset=arguments.preset,
        pairs=arguments.pairs,
        seeds=arguments.seeds,
        overrides=tuple(arguments.set),
        jobs=arguments.jobs or 1,
        device=arguments.device,
        plugins=tuple(arguments.plugin),
        **limits_of(arguments),
    )


def limits_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return where cells run and what happens to one that fails, as fields of a request."""
    from sfuda_bench.running.failures import OnError

    OnError.parse(arguments.on_error)
    gpus = arguments.gpus.split(",") if arguments.gpus else []
    return {
        "timeout": arguments.timeout or None,
        "hang_after": arguments.hang_after,
        "on_error": arguments.on_error,
        "gpus": tuple(name.strip() for name in gpus),
        "per_gpu": arguments.per_gpu,
    }


def say_synthetic(arguments: argparse.Namespace) -> None:
    """Say on stderr that there is no data root."""
    if arguments.data_root is None:
        print("no --data-root: the built-in synthetic domains are used", file=sys.stderr)


def make_request(arguments: argparse.Namespace) -> RunRequest:
    """Turn parsed arguments into a request, resolving names and settings."""
    from sfuda_bench.running.request import RunRequest
    from sfuda_bench.scoring.profiles import get_profile
    from sfuda_bench.selectors import parse_methods, parse_seeds

    load_plugins(arguments)
    methods = tuple(parse_methods(arguments.methods))
    profiles = tuple(part.strip() for part in arguments.profiles.split(","))
    for profile in profiles:
        get_profile(profile)
    say_synthetic(arguments)
    return RunRequest(
        methods=methods,
        pairs=arguments.pairs,
        seeds=tuple(parse_seeds(arguments.seeds)),
        source_seeds=tuple(parse_seeds(arguments.source_seeds, "--source-seeds")),
        settings=_settings(arguments, methods),
        data_root=arguments.data_root,
        out=arguments.out,
        device=arguments.device,
        jobs=arguments.jobs or 1,
        protocol=arguments.protocol,
        record=_records(arguments),
        profiles=profiles,
        average_last=arguments.average_last,
        keep_models=not arguments.no_models,
        plugins=tuple(arguments.plugin),
        source_models=_source_models(arguments),
        checkpoint_every=arguments.checkpoint_every,
        **limits_of(arguments),
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


def load_plugins(arguments: argparse.Namespace) -> None:
    """Import the files that ``--plugin`` names."""
    from sfuda_bench.registry import load_plugin_file

    for path in arguments.plugin:
        load_plugin_file(path)


def write_tables(
    out: Path, selection: str, profiles: Sequence[str] | None, *, show: bool
) -> Written:
    """Write the tables of a store and, unless a document is wanted, print the main ones."""
    from rich.console import Console

    from sfuda_bench.report.tables import print_tables
    from sfuda_bench.report.write import write_report

    written = write_report(out, selection, profiles, lambda stage: note(f"report: {stage}"))
    if show:
        print_tables(out, Console(), selection, written.evidence)
    return written


def note(text: str) -> None:
    """Print a message on stderr."""
    print(text, file=sys.stderr)


def print_rich(renderable: object) -> None:
    """Print a table, or anything else that rich can draw, on stdout."""
    from rich.console import Console

    Console().print(renderable)


def add_study_request(parser: argparse.ArgumentParser) -> None:
    """Add a study file and what the command line may say instead of it."""
    add = parser.add_argument
    add("study", metavar="FILE|NAME", help="a study file, or the name of a shipped one")
    add_data_root(parser)
    add_out(parser)
    add("--pairs", help="instead of the file's: all, 'a:*', '*:b' or a:b,c:d")
    add("--seeds", help="instead of the file's, e.g. 0..4")
    add("--preset", help="instead of the file's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. cpr.epochs=6")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--jobs", type=positive, help="cells at once (default: 1; --cluster: all it can)")
    add_limits(parser)
    add_plugin(parser)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add where cells run, how long they may take, and what follows when one fails."""
    add = parser.add_argument
    add("--gpus", default="", metavar="LIST", help="e.g. 0,1: computes on these, instead of --jobs")
    add(
        "--per-gpu",
        type=positive,
        default=1,
        metavar="N",
        help="cells at once on each (default: 1)",
    )
    add(
        "--timeout",
        type=seconds,
        default=0.0,
        metavar="SECONDS",
        help="stop a cell or source model that takes longer (default: 0, never)",
    )
    add(
        "--hang-after",
        type=seconds,
        default=900.0,
        metavar="SECONDS",
        help="stop one whose process neither computes nor waits for another's result this long "
        "(default: 900; 0: never); one that computes without end is found by --timeout only",
    )
    add(
        "--on-error",
        default="continue",
        metavar="stop|continue|retry:N",
        help="after a failure start nothing new, go on, or try it again from its last checkpoint, "
        "up to N times (default: continue); what lacked memory is tried once more, alone",
    )


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add what asks for cells: methods, pairs, seeds, settings, where and how they run."""
    add = parser.add_argument
    add("--methods", default=DEFAULT_METHODS, help="comma-separated (default: all main methods)")
    add(
        "--pairs",
        default="all",
        help="all, 'a:*', '*:b' or a:b,c:d (default: all); with knobs of a generated domain: "
        "a:a@blur=0.4, a:a@blur=0..1/5 (five steps), 'a:a@*=0..1/3' (each knob alone)",
    )
    add("--seeds", default="0", help="adaptation seeds, e.g. 0..4 (default: 0)")
    add("--source-seeds", default="0", help="seeds of the source models (default: 0)")
    add(
        "--source-model",
        action="append",
        default=[],
        metavar="DOMAIN=FILE|KEY",
        help="use this source model instead of training one",
    )
    add_data_root(parser)
    add_out(parser)
    add("--preset", help="quick, small, reproduction, paper, official, dpl-official, dpl-clean")
    add("--config", type=Path, metavar="FILE.toml", help="settings on top of the preset")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. cpr.radius=6")
    add("--image-size", type=int, help="side of the model input, px")
    add("--network", help="see `ls networks`")
    add("--encoder", help="encoder of segmentation-models-pytorch")
    add("--encoder-weights", metavar="none|imagenet|FILE", help="start of the encoder")
    add("--precision", choices=("float32", "bfloat16", "auto"), help="numerical precision")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add("--jobs", type=positive, help="cells at once (default: 1; --cluster: all it can)")
    add_limits(parser)
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
        type=positive,
        default=5,
        metavar="K",
        help="K of average-last-K (default: 5)",
    )
    add("--profiles", default="standard,cpr-2023", help="scoring profiles")
    add("--no-models", action="store_true", help="do not store adapted models")
    add(
        "--checkpoint-every",
        type=seconds,
        default=5.0,
        metavar="SECONDS",
        help="keep the last finished epoch of what is being computed (default: 5; 0: every epoch)",
    )
    add_plugin(parser)


def add_out(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``."""
    parser.add_argument(
        "--out", type=Path, default=DEFAULT_OUT, help=f"the store (default: {DEFAULT_OUT})"
    )


def add_data_root(parser: argparse.ArgumentParser) -> None:
    """Add ``--data-root``."""
    root = os.environ.get("SFUDA_DATA_ROOT")
    parser.add_argument(
        "--data-root",
        type=Path,
        default=Path(root) if root else None,
        help="folder of domains (default: $SFUDA_DATA_ROOT, else the synthetic domains)",
    )


def add_plugin(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin``."""
    parser.add_argument(
        "--plugin", type=Path, action="append", default=[], metavar="FILE.py", help="more plug-ins"
    )

"""The command line: parse, call, print. Heavy imports happen inside the commands."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from sfuda_bench.commands.shared import CommandParser
from sfuda_bench.errors import EnvironmentProblem, SfudaError, UsageError
from sfuda_bench.registry import did_you_mean

COMMANDS = ("run", "ls", "report", "sharing", "study", "source", "data", "plugin", "own", "inspect")
"""Modules of :mod:`sfuda_bench.commands`, in the order of the help."""
_INTERRUPTED = 130
_LONG = 300  # characters of a path in a message
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors suggest the nearest flag and follow our exit codes."""

    def error(self, message: str) -> NoReturn:
        wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^\s='(]+)", message)
        nearest = ""
        if wrong:
            own = [word for action in self._actions for word in map(str, action.choices or ())]
            nearest = did_you_mean(wrong[1], own) or did_you_mean(wrong[1], _words(self))
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
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            text = f"{_shown(error.filename)}: {error.strerror}"
            return _explain(EnvironmentProblem(text, hint=_keep_traceback(parsed)))
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        print(f"hint: {_keep_traceback(parsed)}", file=sys.stderr)
        return 1


def _explain(error: SfudaError) -> int:
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)
    return error.exit_code


def _shown(path: object) -> str:
    text = str(path)
    return text if len(text) < _LONG else f"{text[:_LONG]}..."


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


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="sfuda-bench",
        description="Compare source-free domain adaptation methods for optic cup and disc.",
        epilog="The main job: sfuda-bench run --methods cpr,cpr_cbam --pairs all",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sfuda-bench {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        import_module(f"sfuda_bench.commands.{name}").add(CommandParser(commands))
    return parser


def _version() -> str:
    try:
        return version("sfuda-bench")
    except PackageNotFoundError:
        return "unknown (not installed)"


if __name__ == "__main__":
    sys.exit(main())

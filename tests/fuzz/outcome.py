"""What a program may do with bad bytes: an error of ours that helps, or a right answer."""

from __future__ import annotations

import contextlib
import io
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sfuda_bench.cli import main
from sfuda_bench.errors import SfudaError

EXIT_CODES = frozenset({0, 2, 3, 4, 5, 6, 7})


class Finding(AssertionError):  # noqa: N818  # it is what was found, of whatever kind
    """A target did what no user should see."""


@dataclass(frozen=True)
class Ran:
    """One call of the command line."""

    code: int
    stdout: str
    stderr: str


def only_our_errors(function: Callable[[], Any], names: str | None = None) -> Any:
    """Call a function; it returns something, or raises an error of ours, and nothing else.

    Args:
        function: What is tried.
        names: A text that the message of an error must contain: a file, a key or a flag.

    Raises:
        Finding: Another exception, or an error that does not name what was wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function()
    except SfudaError as error:
        if not error.message.strip():
            raise Finding("an error without a message") from error
        if names is not None and names not in error.message:
            raise Finding(f"the error does not name {names!r}: {error.message}") from error
        return error
    except Exception as error:
        raise Finding("".join(traceback.format_exception(error))) from error


def command(arguments: Sequence[str]) -> Ran:
    """Run a command in this process; whatever it prints is kept.

    Raises:
        Finding: It ended with another exit code than ours, or showed a traceback.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _quiet():
        try:
            code = main([*arguments, "-v"])
        except SystemExit as left:
            code = int(left.code or 0)
    ran = Ran(code, out.getvalue(), err.getvalue())
    if code not in EXIT_CODES or "unexpected " in ran.stderr:
        raise Finding(f"{' '.join(arguments)}: exit code {code}\n{ran.stderr[-3000:]}")
    if code and not ran.stderr.strip():
        raise Finding(f"{' '.join(arguments)}: exit code {code} without a word")
    return ran


@contextlib.contextmanager
def _quiet() -> Any:
    """Send what is written to the descriptors themselves to nowhere, and silence warnings."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

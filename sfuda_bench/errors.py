"""Errors meant for the user; each knows its exit code and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class SfudaError(Exception):
    """An error whose message is shown to the user without a traceback.

    Args:
        message: What was wrong, where (file, key or flag) and what was expected.
        hint: One command or step that helps.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the hint when the error crosses a process boundary."""
        return (_rebuild, (type(self), self.message, self.hint))


class MethodWarning(UserWarning):
    """Something about a cell that its reader should know; recorded and shown, never fatal."""


def _rebuild(kind: type[SfudaError], message: str, hint: str | None) -> SfudaError:
    return kind(message, hint=hint)


class UsageError(SfudaError):
    """A command line, selector, study or configuration that cannot be used."""

    exit_code = 2


class DataError(SfudaError):
    """Images or masks that are missing or fail verification."""

    exit_code = 3


class MissingMasks(DataError):
    """Some images of a split have masks and others lack them."""


class CellsFailed(SfudaError):
    """Some of the cells that were asked for could not be computed."""

    exit_code = 4


class EnvironmentProblem(SfudaError):
    """A machine that cannot do what was asked: weights, disk, device, versions."""

    exit_code = 5


class CheckFailed(SfudaError):
    """A check that was asked for did not hold."""

    exit_code = 6


class StoreSchemaError(SfudaError):
    """A result store written under another schema, or damaged."""

    exit_code = 7


def spoilt(path: Path, problem: str) -> StoreSchemaError:
    """Return the error for a file of a result that cannot be used: computing it again helps.

    Args:
        path: The file, in the folder of its result.
        problem: What is wrong with it, e.g. ``damaged``.
    """
    if path.name == "store.json":  # its folder is the whole store
        hint = f"delete this file alone; the next `sfuda-bench run --out {path.parent}` writes it"
    else:
        hint = f"delete the folder {path.parent} and run the same command again"
    return StoreSchemaError(f"{path}: {problem}", hint=hint)

"""What is known of a job that failed, how it is recorded, and when it is tried again."""

from __future__ import annotations

import errno
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfuda_bench.errors import SfudaError, StoreSchemaError, UsageError
from sfuda_bench.running.store import Store, read_json, write_bytes, write_sealed

FAILURES = {
    "raised": "the code raised an error",
    "oom": "memory ran out, also when nothing else ran",
    "timeout": "it took longer than --timeout",
    "hung": "its process neither computed nor reported for --hang-after",
    "died": "its worker process died",
    "not_finite": "a weight or an artefact was NaN or infinite",
    "refused": "it tried to open what adaptation must not see",
}
"""Classes of failures, as ``failure`` in ``error.json``, and what they mean."""

BLOCKED = "blocked"
"""What stands in a summary for a job that was never tried: something that it needs is missing."""
FIREWALL = "label firewall"
"""How messages of the firewall begin."""
_CERTAIN = frozenset({"not_finite", "refused"})  # the same seed would end the same way
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


@dataclass(frozen=True)
class Failure:
    """One failed attempt, as the parent process knows it.

    Attributes:
        kind: A key of :data:`FAILURES`, or :data:`BLOCKED`.
        text: One line for the user.
        certain: Whether another attempt would fail in the same way.
        exit_code: Of a worker that died, ``-N`` after signal N.
    """

    kind: str
    text: str
    certain: bool = False
    exit_code: int | None = None

    @property
    def of_memory(self) -> bool:
        """Whether memory ran out, or may have: a kernel that lacks memory kills by SIGKILL."""
        return self.kind == "oom" or (
            self.kind == "died" and self.exit_code == -int(signal.SIGKILL)
        )


@dataclass(frozen=True)
class OnError:
    """What ``--on-error`` says: go on, stop after the first failure, or try again.

    Attributes:
        stop: Start nothing new once a job has failed for good.
        retries: How often a failed job is tried again.
    """

    stop: bool = False
    retries: int = 0

    @classmethod
    def parse(cls, text: str) -> OnError:
        """Read ``continue``, ``stop`` or ``retry:N``.

        Raises:
            UsageError: It is none of these.
        """
        word, _, number = text.partition(":")
        if text in ("continue", "stop"):
            return cls(stop=text == "stop")
        if word == "retry" and number.isdecimal() and int(number) > 0:
            return cls(retries=int(number))
        raise UsageError(
            f"--on-error {text}: expected stop, continue or retry:N with N of at least 1",
            hint="--on-error retry:2",
        )


def classify(error: BaseException) -> str:
    """Return the key of :data:`FAILURES` for an error; what caused it counts as well."""
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, PermissionError) and str(chain).startswith(FIREWALL):
            return "refused"
        if _is_out_of_memory(chain):
            return "oom"
        if isinstance(chain, FloatingPointError):
            return "not_finite"
        chain = chain.__cause__
    return "raised"


def _is_out_of_memory(error: BaseException) -> bool:
    # By name: this module is read by what must not import torch.
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)


def is_certain(error: BaseException) -> bool:
    """Whether another attempt at the same job would fail in the same way."""
    return isinstance(error, SfudaError) or classify(error) in _CERTAIN


def record_error(store: Store, job: Mapping[str, Any], error: BaseException) -> None:
    """Record an error that the caller has just caught: ``error.json`` and ``error.txt``."""
    text = "".join(traceback.format_exception(error))
    _record(store, job, text, type(error).__name__, str(error), classify(error), None)


def record_failure(
    store: Store, job: Mapping[str, Any], failure: Failure, stack: str, kind: str = ""
) -> None:
    """Record what the parent process saw of a job whose worker could not do it itself.

    Args:
        store: Where.
        job: The job.
        failure: What happened.
        stack: Where the process was in the code, or a traceback; may be empty.
        kind: Class of the error, by default one that suits the failure.
    """
    kind = kind or ("TimeoutError" if failure.kind in ("timeout", "hung") else "RuntimeError")
    text = f"{failure.text}\n\n{stack or 'Nothing is known about where it was in the code.'}\n"
    _record(store, job, text, kind, failure.text, failure.kind, failure.exit_code)


def _record(
    store: Store,
    job: Mapping[str, Any],
    traceback_text: str,
    error_class: str,
    message: str,
    failure: str,
    exit_code: int | None,
) -> None:
    attempt = store.attempt(job["key"])
    cell = job.get("cell", {})
    write_bytes(attempt / "error.txt", traceback_text.encode("utf-8", "replace"))
    write_sealed(
        attempt / "error.json",
        {
            "key": job["key"],
            "kind": job["kind"],
            "method": cell.get("method", job["kind"]),
            "source": cell.get("source", job.get("domain")),
            "target": cell.get("target"),
            "seed": cell.get("seed"),
            "source_seed": cell.get("source_seed", job.get("source_seed")),
            "failure": failure,
            "class": error_class,
            "message": message,
            "attempts": attempts(attempt) + 1,
            "log": str((attempt / "log.txt").relative_to(store.root)),
            "exit_code": exit_code,
            "signal": signal_name(exit_code),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        },
    )


def attempts(folder: Path) -> int:
    """Return how many failed attempts an attempt folder has recorded."""
    if not (folder / "error.json").is_file():
        return 0
    try:
        found = read_json(folder / "error.json").get("attempts", 1)
    except StoreSchemaError:  # torn when its writer died
        return 1
    return found if isinstance(found, int) else 1


def signal_name(exit_code: int | None) -> str | None:
    """Return the name of the signal behind a negative exit code, such as ``SIGKILL``."""
    if exit_code is None or exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"

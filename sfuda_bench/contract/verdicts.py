"""Invariants, and the verdicts on them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

from sfuda_bench.contract.laboratory import Broken
from sfuda_bench.errors import SfudaError

S = TypeVar("S")
L = TypeVar("L")

PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True)
class Verdict:
    """What became of one invariant.

    Attributes:
        invariant: Its name.
        says: What it demands, in one sentence.
        verdict: ``"passed"``, ``"failed"`` or ``"not applicable"``.
        evidence: What was seen, or why there was nothing to see.
    """

    invariant: str
    says: str
    verdict: str
    evidence: str

    def to_json(self) -> dict[str, str]:
        """Return the row of the JSON document."""
        return asdict(self)


class NothingToCheck(str):
    """Says, in the place of evidence, why an invariant does not apply after all."""


@dataclass(frozen=True)
class Invariant(Generic[S, L]):
    """Something that holds for every plug-in that it applies to.

    Attributes:
        name: Name in tables.
        says: What it demands, in one sentence.
        applies: Whether it applies to a plug-in's spec.
        check: Takes the laboratory and the spec; returns evidence, or why there is
            :class:`NothingToCheck`, or raises :class:`sfuda_bench.contract.laboratory.Broken`.
    """

    name: str
    says: str
    applies: Callable[[S], bool]
    check: Callable[[L, S], str]

    def verdict(self, laboratory: L, spec: S) -> Verdict:
        """Check a plug-in; whatever it raises is evidence against it."""
        if not self.applies(spec):
            return Verdict(self.name, self.says, NOT_APPLICABLE, "")
        try:
            seen = self.check(laboratory, spec)
            verdict = NOT_APPLICABLE if isinstance(seen, NothingToCheck) else PASSED
            return Verdict(self.name, self.says, verdict, str(seen))
        except Broken as error:
            return Verdict(self.name, self.says, FAILED, error.message)
        except SfudaError as error:
            hint = f" ({error.hint})" if error.hint else ""
            return Verdict(self.name, self.says, FAILED, error.message + hint)
        except Exception as error:
            return Verdict(self.name, self.says, FAILED, f"{type(error).__name__}: {error}")


class Invariants(Generic[S, L]):
    """The invariants of one kind of plug-in, in the order of their definition."""

    def __init__(self) -> None:
        self._all: list[Invariant[S, L]] = []

    def add(
        self, name: str, applies: Callable[[S], bool] = lambda spec: True
    ) -> Callable[[Callable[[L, S], str]], Callable[[L, S], str]]:
        """Make the decorated function the check of an invariant; its docstring is what it says."""

        def decorate(check: Callable[[L, S], str]) -> Callable[[L, S], str]:
            says = (inspect.getdoc(check) or "").partition("\n\n")[0].replace("\n", " ")
            self._all.append(Invariant(name, says, applies, check))
            return check

        return decorate

    def __iter__(self) -> Iterator[Invariant[S, L]]:
        return iter(self._all)

    def judge(self, laboratory: L, spec: S) -> Iterator[Verdict]:
        """Yield the verdict on each invariant."""
        for invariant in self._all:
            yield invariant.verdict(laboratory, spec)


def failed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts on what does not hold."""
    return [verdict for verdict in verdicts if verdict.verdict == FAILED]


def demand(holds: Any, message: str) -> None:
    """Raise when something does not hold.

    Raises:
        Broken: With this message.
    """
    if not holds:
        raise Broken(message)

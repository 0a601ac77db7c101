"""The grammar of --methods, --pairs and --seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import did_you_mean

_MOST_SEEDS = 10_000
_HINT = "--pairs all, --pairs 'refuge_train:*', --pairs '*:drishti_gs' or --pairs a:b,c:d"


@dataclass(frozen=True, order=True)
class Pair:
    """Two different domains: where the network was trained, and where it must work."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}:{self.target}"


def parse_methods(text: str) -> list[str]:
    """Return the method names of ``a,b``, in the given order without repeats.

    Raises:
        UsageError: An unknown name, or none at all.
    """
    names = [METHODS.canonical(part.strip()) for part in text.split(",") if part.strip()]
    if not names:
        raise UsageError("--methods names no method", hint="sfuda-bench ls methods")
    return list(dict.fromkeys(names))


def parse_pairs(
    text: str,
    domains: Sequence[str],
    canonical: Callable[[str], str],
    only_sources: Sequence[str] = (),
) -> list[Pair]:
    """Return the pairs that a selector matches, sorted by source and target.

    Args:
        text: ``all``, or comma-separated ``source:target`` (also ``source->target``) in which
            ``*`` stands for every domain.
        domains: The domains that are present.
        canonical: Turns an alias into a domain's name; raises for an ambiguous one.
        only_sources: Domains without images whose source model is at hand.

    Raises:
        UsageError: A domain that is not present, a pair with itself, or nothing matched.
    """
    if text.strip() == "all":
        text = "*:*"
    found: set[Pair] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found |= _match(part, ([*domains, *only_sources], domains), canonical)
    if not found:
        present = ", ".join(domains) or "none"
        raise UsageError(f"--pairs {text}: matches no pair; domains present: {present}", hint=_HINT)
    return sorted(found)


def _match(
    part: str, domains: tuple[Sequence[str], Sequence[str]], canonical: Callable[[str], str]
) -> set[Pair]:
    ends = [end.strip() for end in part.replace("->", ":").split(":")]
    if len(ends) != 2 or not all(ends):
        raise UsageError(f"--pairs {part}: expected source:target", hint=_HINT)
    sources, targets = (
        _domains_of(end, present, canonical) for end, present in zip(ends, domains, strict=True)
    )
    if "*" not in ends and sources == targets:
        raise UsageError(f"--pairs {part}: a pair needs two different domains", hint=_HINT)
    return {Pair(s, t) for s in sources for t in targets if s != t}


def _domains_of(end: str, domains: Sequence[str], canonical: Callable[[str], str]) -> list[str]:
    if end == "*":
        return list(domains)
    name = canonical(end)
    if name not in domains:
        nearest = did_you_mean(name, list(domains))
        raise UsageError(
            f"--pairs: no domain '{end}' here{nearest}; present: {', '.join(domains) or 'none'}",
            hint="sfuda-bench ls pairs",
        )
    return [name]


def parse_seeds(text: str, flag: str = "--seeds") -> list[int]:
    """Return the integers of ``0..2,5`` (ranges include both ends), without repeats.

    Raises:
        UsageError: Not a list of non-negative integers and ranges.
    """
    seeds: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        ends = (first, last if dots else first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise UsageError(f"{flag} {text}: expected integers like 0,1 or 0..4", hint="0..4")
        if int(ends[1]) - int(ends[0]) >= _MOST_SEEDS:
            raise UsageError(f"{flag} {text}: more than {_MOST_SEEDS} seeds", hint="0..4")
        seeds += range(int(ends[0]), int(ends[1]) + 1)
    return list(dict.fromkeys(seeds))

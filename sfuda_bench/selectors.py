"""The grammar of --methods, --pairs and --seeds.

    --methods a,b             in this order, without repeats
    --pairs a:b,c:d           source:target (or source->target); * is every domain, all is *:*
    --pairs a:a@blur=0..1/5   a generated domain with a knob turned: 0, 0.2, ... 1 (five steps)
    --pairs "a:a@*=0..1/3"    each of its knobs alone; several at once: a@blur=0.2+noise=0..1/3
    --seeds 0..4,7            ranges include both ends

A derived domain such as ``a@blur=0.4`` is drawn on demand and is a domain like any other. Severity
0 of every knob is the base domain itself, called ``a@0`` where ``a`` is also the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.registry import did_you_mean
from sfuda_bench.severity import UNTURNED, Derived, expand, is_derived

_MOST_SEEDS = 10_000
_MOST_PAIRS = 10_000
_MOST_DIGITS = 18  # of a seed: it must fit into 64 bits
_SHOWN = 200  # characters of a text that is refused
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
    knobs: Callable[[str], Sequence[str]] = lambda name: (),
) -> list[Pair]:
    """Return the pairs that a selector matches, sorted by source and target.

    Args:
        text: ``all``, or comma-separated ``source:target`` (also ``source->target``) in which
            ``*`` stands for every domain.
        domains: The domains that are present.
        canonical: Turns an alias into a domain's name; raises for an ambiguous one.
        only_sources: Domains without images whose source model is at hand.
        knobs: Gives the knobs of a generated domain, which need not be present itself.

    Raises:
        UsageError: A domain that is not present, a pair with itself, nothing matched, or a
            derived domain whose base has no such knob.
    """
    if text.strip() == "all":
        text = "*:*"
    found: set[Pair] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        found |= _match(part, ([*domains, *only_sources], domains), canonical, knobs)
    if not found:
        present = ", ".join(domains) or "none"
        raise UsageError(f"--pairs {text}: matches no pair; domains present: {present}", hint=_HINT)
    return sorted(found)


def _match(
    part: str,
    domains: tuple[Sequence[str], Sequence[str]],
    canonical: Callable[[str], str],
    knobs: Callable[[str], Sequence[str]],
) -> set[Pair]:
    ends = [end.strip() for end in part.replace("->", ":").split(":")]
    if len(ends) != 2 or not all(ends):
        raise UsageError(f"--pairs {part}: expected source:target", hint=_HINT)
    sources, targets = (
        _domains_of(end, present, canonical, knobs)
        for end, present in zip(ends, domains, strict=True)
    )
    sources = [_unturned(name, domains[0]) for name in sources]
    if "*" not in ends and sources == targets:
        raise UsageError(f"--pairs {part}: a pair needs two different domains", hint=_HINT)
    if len(sources) * len(targets) > _MOST_PAIRS:
        raise UsageError(f"--pairs {part}: more than {_MOST_PAIRS} pairs", hint=_HINT)
    pairs = {(s, t) for s in sources for t in targets if s != t}
    # The base domain under its own name has the same cells: it is called so where it can be.
    return {Pair(s, t if s == _unturned(t, [s]) else _unturned(t, domains[1])) for s, t in pairs}


def _unturned(name: str, present: Sequence[str]) -> str:
    """Return the base of ``base@0``, if it is present."""
    base = name.removesuffix(UNTURNED)
    return base if base in present and name not in present else name


def _domains_of(
    end: str,
    domains: Sequence[str],
    canonical: Callable[[str], str],
    knobs: Callable[[str], Sequence[str]],
) -> list[str]:
    if end == "*":
        return list(domains)
    if is_derived(end) and (turnable := knobs(end)) and end not in domains:
        base = canonical(end.partition("@")[0].strip())
        found = [Derived(base, one.severity).name for one in expand(end, turnable)]
        return list(dict.fromkeys(found))
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
        whole = all(end.isdecimal() and len(end) <= _MOST_DIGITS for end in ends)
        if not whole or int(ends[0]) > int(ends[1]):
            raise UsageError(
                f"{flag} {text[:_SHOWN]}: expected integers like 0,1 or 0..4", hint="0..4"
            )
        if int(ends[1]) - int(ends[0]) >= _MOST_SEEDS:
            raise UsageError(f"{flag} {text}: more than {_MOST_SEEDS} seeds", hint="0..4")
        seeds += range(int(ends[0]), int(ends[1]) + 1)
    return list(dict.fromkeys(seeds))

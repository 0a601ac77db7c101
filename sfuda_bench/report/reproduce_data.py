"""Which pairs of a published table can be run with the domains that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.datasets import DATASETS, DatasetSpec, canonical_name, domain_index, get_dataset
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.report.published import NOT_STATED
from sfuda_bench.selectors import Pair, parse_pairs

_HINT = "--stand-in DOMAIN, or --stand-in MISSING=DOMAIN"


@dataclass(frozen=True)
class Arrangement:
    """What of a published table can be run.

    Attributes:
        pairs: Pairs to run, those with a stand-in included.
        missing: Missing domain to where it is expected and how to get it.
        stand_ins: Missing domain to the one that takes its place.
    """

    pairs: tuple[Pair, ...]
    missing: Mapping[str, str]
    stand_ins: Mapping[str, str]

    @property
    def notes(self) -> list[str]:
        """Sentences for the user: what is missing, and what stands for it."""
        notes = []
        for name, where in self.missing.items():
            if name in self.stand_ins:
                notes.append(
                    f"{name} is missing; {self.stand_ins[name]} stands in for it, so that its "
                    f"numbers are not those of the publication; {where}"
                )
            else:
                notes.append(f"{name} is missing: {where}")
        return notes


def arrange(
    pairs: Sequence[tuple[str, str]], root: Path, stand_in: str | None, selector: str = "all"
) -> Arrangement:
    """Match the pairs of a table with the domains below a data root.

    Args:
        pairs: Source and target of every published number.
        root: Folder of domains.
        stand_in: A domain that takes the place of the missing one of its family
            (``refuge_train`` for ``refuge_val``), ``MISSING=DOMAIN``, or ``None``.
        selector: Which of the table's pairs are wanted, in the grammar of ``--pairs``.

    Raises:
        DataError: Not one pair can be run; says what is missing and where to put it.
        UsageError: A stand-in that is not there, or that could stand for nothing or for several.
    """
    wanted = [pair for pair in dict.fromkeys(pairs) if NOT_STATED not in pair]
    present = list(domain_index(root))
    names = dict.fromkeys(name for pair in wanted for name in pair)
    missing = {name: _where(name, root) for name in names if name not in present}
    stand_ins = _stand_ins(stand_in, list(names), list(missing), present)
    found, chosen = [], set(parse_pairs(selector, present, canonical_name))
    for pair in wanted:
        source, target = (stand_ins.get(name, name) for name in pair)
        if Pair(source, target) in chosen:
            found.append(Pair(source, target))
    arrangement = Arrangement(tuple(dict.fromkeys(found)), missing, stand_ins)
    if not found:
        notes = "; ".join(arrangement.notes) or f"--pairs {selector} names none of them"
        raise DataError(f"no pair of the table can be run: {notes}", hint=_offer(missing, present))
    return arrangement


def _where(name: str, root: Path) -> str:
    """Say where a domain is expected, under which names, with how many images, and its source."""
    spec = _spec(name)
    text = f"put it at {root / name}/{{train,test}}/ROIs/{{image,mask}}/*.png"
    if spec is None:
        return text
    domains = [alias for alias in spec.aliases if alias.startswith("Domain")]
    if domains:
        text += f" (or as {', '.join(str(root / alias) for alias in domains)})"
    if spec.published_counts:
        train, test = spec.published_counts
        text += f"; {train} train and {test} test images"
    return f"{text}; {spec.title}: {spec.homepage}"


def _spec(name: str) -> DatasetSpec | None:
    return get_dataset(name) if name in DATASETS.names() else None


def _stand_ins(
    text: str | None, names: Sequence[str], missing: Sequence[str], present: Sequence[str]
) -> dict[str, str]:
    """Return missing domain to stand-in; nothing when the domain it could replace is there."""
    if text is None:
        return {}
    ends = [part.strip() for part in text.split("=")]
    if len(ends) > 2 or not all(ends):
        raise UsageError(f"--stand-in {text}: expected DOMAIN or MISSING=DOMAIN", hint=_HINT)
    *replaced, other = [canonical_name(end) for end in ends]
    if other not in present:
        raise UsageError(
            f"--stand-in {text}: no domain '{other}' here; present: {', '.join(present)}",
            hint="sfuda-bench ls pairs",
        )
    if replaced and replaced[0] not in names:
        raise UsageError(
            f"--stand-in {text}: the table has no domain '{replaced[0]}'"
            f"{did_you_mean(replaced[0], list(names))}; it has {', '.join(names)}",
            hint=_HINT,
        )
    family = replaced or [name for name in names if _related(name, other)]
    if missing and len(family) != 1:
        raise UsageError(
            f"--stand-in {text}: it is not said for which domain; missing: {', '.join(missing)}",
            hint=f"--stand-in {missing[0]}={other}",
        )
    return {name: other for name in family if name in missing}


def _related(first: str, second: str) -> bool:
    """Whether two data sets share a family name."""
    specs = (_spec(first), _spec(second))
    families = [set(spec.families) if spec else set() for spec in specs]
    return bool(families[0] & families[1])


def _offer(missing: Mapping[str, str], present: Sequence[str]) -> str:
    for name in missing:
        for other in present:
            if _related(name, other):
                return f"--stand-in {other}"
    return _HINT

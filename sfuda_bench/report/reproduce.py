"""Our numbers beside published ones: match, within the interval, off, or not comparable and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from sfuda_bench.errors import CheckFailed, UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.report.plain import PlainColumn, PlainTable
from sfuda_bench.report.published import (
    NO_PROFILE,
    NOT_STATED,
    PARTS,
    PublishedValue,
    read_published,
)
from sfuda_bench.report.records import CellRecord, read_cases, read_scoring
from sfuda_bench.report.rows import MethodRow
from sfuda_bench.report.scope import Scope, pair_label
from sfuda_bench.report.summary import METRICS, CellCases, Statistic, cases_by_cell, summarise
from sfuda_bench.running.store import read_json

ALL = "all"
MATCH, WITHIN, OFF, NOT_COMPARABLE = "match", "within CI", "off", "not comparable"
_CONFIDENCE = 0.95
_SHORT = 16  # hex digits of a key in a path


@dataclass(frozen=True)
class Comparison:
    """One published number and ours.

    Attributes:
        published: The number and its source.
        label: Our row.
        ours: Our mean in the same unit, if there is one.
        low: Lower end of our 95 % confidence interval over images.
        high: Upper end.
        verdict: ``match`` (equal as printed), ``within CI``, ``off`` or ``not comparable``.
        reasons: Why it is not comparable.
        caveats: What is unknown and might explain a difference.
    """

    published: PublishedValue
    label: str
    ours: float | None
    low: float | None
    high: float | None
    verdict: str
    reasons: tuple[str, ...]
    caveats: tuple[str, ...]

    @property
    def difference(self) -> float | None:
        """Ours minus the published number."""
        return None if self.ours is None else self.ours - self.published.value

    @property
    def verdict_text(self) -> str:
        """The verdict, with the distance if it is off."""
        if self.verdict == OFF and self.difference is not None:
            return f"off by {self.difference:+.{self.published.decimals}f}"
        return self.verdict

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        own = {name: getattr(self, name) for name in ("label", "ours", "low", "high", "verdict")}
        more = {"reasons": list(self.reasons), "caveats": list(self.caveats)}
        pair = ":".join(self.published.pair)
        return asdict(self.published) | {"pair": pair, "difference": self.difference} | own | more


def reproduce(
    scope: Scope,
    name: str = ALL,
    tables: Mapping[str, Sequence[PublishedValue]] | None = None,
    stand_ins: Mapping[str, str] | None = None,
) -> list[Comparison]:
    """Compare a store with published numbers.

    Args:
        scope: The store's cells.
        name: Name of a published table, or ``all``.
        tables: Published numbers by table; ``None`` for those that ship with the package.
        stand_ins: Missing domain to the one that takes its place here; never comparable.

    Raises:
        UsageError: There is no such table.
    """
    lookup = _Lookup(scope)
    values = published_values(name, tables)
    return [found for value in values for found in _compare(value, lookup, stand_ins or {})]


def published_values(
    name: str, tables: Mapping[str, Sequence[PublishedValue]] | None = None
) -> list[PublishedValue]:
    """Return the numbers of a published table, or of ``all``.

    Raises:
        UsageError: There is no such table.
    """
    known = read_published() if tables is None else tables
    if name != ALL and name not in known:
        raise UsageError(
            f"no published table '{name}'{did_you_mean(name, [*known, ALL])}",
            hint=f"choose one of: {', '.join([*known, ALL])}",
        )
    return [value for key in known if name in (key, ALL) for value in known[key]]


def check_reproduced(comparisons: Sequence[Comparison]) -> None:
    """Raise unless something was compared and nothing is off.

    Raises:
        CheckFailed: Says what is off, or that nothing could be compared.
    """
    off = [found for found in comparisons if found.verdict == OFF]
    if off:
        first = off[0].published
        raise CheckFailed(
            f"{len(off)} published numbers are not reproduced, first: {first.method} "
            f"{':'.join(first.pair)} {first.metric} {first.structure}, {off[0].verdict_text}"
        )
    if all(found.verdict == NOT_COMPARABLE for found in comparisons):
        raise CheckFailed(
            "none of the published numbers could be compared with this store",
            hint="sfuda-bench reproduce --json lists the reasons",
        )


def reproduce_table(comparisons: Sequence[Comparison], name: str) -> PlainTable:
    """Return comparisons as a table.

    Args:
        comparisons: From :func:`reproduce`.
        name: What was compared, for the file's name.
    """
    rows = [
        (
            found.published.table,
            pair_label(found.published.pair),
            found.label,
            found.published.metric,
            found.published.structure,
            f"{found.published.value:.{found.published.decimals}f}",
            found.published.std,
            found.ours,
            found.difference,
            found.low,
            found.high,
            found.verdict_text,
            "; ".join(found.reasons),
            "; ".join(found.caveats),
            found.published.profile,
            found.published.source,
        )
        for found in comparisons
    ]
    caption = (
        "Dice in percent, ASD in pixels of the evaluation grid. Ours under the scoring profile of "
        "the published number, with the 95 % confidence interval over test images.",
        "Match: equal as printed. Within CI: the published number lies in our interval. "
        "Not comparable: the settings differ, so that neither agreement nor distance means much.",
    )
    title = "Published numbers beside this store's."
    return PlainTable(f"reproduce-{name}", title, caption, _COLUMNS, tuple(rows), keys=5)


def measured_table(
    scope: Scope,
    name: str,
    values: Sequence[PublishedValue],
    stand_ins: Mapping[str, str] | None = None,
) -> PlainTable:
    """Return every method's measured numbers in the pairs of a published table, beside it.

    All rows of a pair are scored by the rules of the published numbers, also those of methods
    for which nothing was published.

    Args:
        scope: The store's cells.
        name: What was compared, for the file's name.
        values: The published numbers.
        stand_ins: Missing domain to the one that takes its place here.
    """
    replaced = stand_ins or {}
    lookup = _Lookup(scope)
    rows: list[tuple[Any, ...]] = []
    for pair in dict.fromkeys(value.pair for value in values):
        here = (replaced.get(pair[0], pair[0]), replaced.get(pair[1], pair[1]))
        label = pair_label(here) if here == pair else f"{pair_label(here)} ({_instead(pair, here)})"
        ours = [value for value in values if value.pair == pair]
        for row in scope.rows:
            if row.of_pair(here):
                rows += _measured(label, row, here, ours, lookup)
    profiles = ", ".join(dict.fromkeys(value.profile for value in values))
    caption = (
        f"Dice in percent, ASD in pixels of the evaluation grid, scoring profile {profiles}; "
        "mean ± standard deviation over test images. Published numbers on the right.",
        *scope.marks,
    )
    title = "Measured beside published."
    return PlainTable(f"measured-{name}", title, caption, _MEASURED, tuple(rows), keys=3)


def _instead(pair: tuple[str, str], here: tuple[str, str]) -> str:
    missing = [was for was, now in zip(pair, here, strict=True) if was != now]
    return f"stand-in for {', '.join(missing)}"


def _measured(
    label: str,
    row: MethodRow,
    pair: tuple[str, str],
    values: Sequence[PublishedValue],
    lookup: _Lookup,
) -> list[tuple[Any, ...]]:
    """Return a row per metric: measured means and deviations, then the published numbers."""
    selection = lookup.scope.selection
    profile = next((value.profile for value in values if value.profile != NO_PROFILE), "")
    found = summarise(row.of_pair(pair), lookup.cases(profile, selection)) if profile else None
    rows = []
    for metric in METRICS:
        printed = {
            value.structure: value.value
            for value in values
            if (value.method, value.metric) == (row.method, metric)
        }
        ours = [(found or {}).get(f"{metric}_{part}", Statistic()) for part in PARTS]
        numbers = [number for one in ours for number in (one.mean, one.std)]
        published = [printed.get(part) for part in PARTS]
        rows.append((label, lookup.scope.row_name(row), metric, *numbers, *published))
    return rows


_MEASURED = (
    PlainColumn("pair", "pair"),
    PlainColumn("method", "method"),
    PlainColumn("metric", "metric"),
    *(
        column
        for part in PARTS
        for column in (PlainColumn(part, part), PlainColumn(f"{part}_std", "±"))
    ),
    *(PlainColumn(f"published_{part}", f"published {part}") for part in PARTS),
)

_COLUMNS = (
    PlainColumn("table", "table"),
    PlainColumn("pair", "pair"),
    PlainColumn("method", "method"),
    PlainColumn("metric", "metric"),
    PlainColumn("structure", "structure"),
    PlainColumn("published", "published"),
    PlainColumn("published_std", "std", printed=False),
    PlainColumn("ours", "ours"),
    PlainColumn("difference", "difference", signed=True),
    PlainColumn("ci_low", "CI low"),
    PlainColumn("ci_high", "CI high"),
    PlainColumn("verdict", "verdict"),
    PlainColumn("reasons", "why not comparable"),
    PlainColumn("caveats", "caveats"),
    PlainColumn("profile", "profile", printed=False),
    PlainColumn("source", "source", printed=False),
)


class _Lookup:
    """The scores of a store, read once per profile and selection."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.cases = cache(self._cases)

    def _cases(self, profile: str, selection: str) -> dict[str, CellCases]:
        cells = list(self.scope.stored.values())
        definition = read_scoring(cells, profile).get("asd_definition", "directed")
        frame = read_cases(cells, profile)
        return cases_by_cell(frame, self.scope.stored, selection, definition)


def _compare(
    value: PublishedValue, lookup: _Lookup, stand_ins: Mapping[str, str]
) -> list[Comparison]:
    """Compare in the value's pair, or in the one that stands for it."""
    source, target = (stand_ins.get(domain, domain) for domain in value.pair)
    here = replace(value, pair=(source, target))
    found = _compare_here(here, lookup)
    if here.pair == value.pair:
        return found
    reason = f"stand-in: {pair_label(here.pair)} in place of {pair_label(value.pair)}"
    return [
        replace(one, published=value, verdict=NOT_COMPARABLE, reasons=(reason, *one.reasons))
        for one in found
    ]


def _compare_here(value: PublishedValue, lookup: _Lookup) -> list[Comparison]:
    """Compare with each of our rows of the method in the pair; one entry if there is none."""
    scope = lookup.scope
    rows = [row for row in scope.rows if row.method == value.method]
    missing = _absence(value, rows, scope)
    if missing:
        return [_comparison(value, value.method, Statistic(), [missing], [])]
    return [_compare_row(value, row, lookup) for row in rows if row.of_pair(value.pair)]


def _absence(value: PublishedValue, rows: Sequence[MethodRow], scope: Scope) -> str:
    """Return why there is nothing of ours to compare with, or an empty text."""
    if NOT_STATED in value.pair:
        return "pair: the source domain is not stated"
    if value.pair not in scope.pairs:
        return "pair: missing here"
    if not any(row.of_pair(value.pair) for row in rows):
        return "method: missing here"
    return ""


def _compare_row(value: PublishedValue, row: MethodRow, lookup: _Lookup) -> Comparison:
    cells = lookup.scope.cells_of(row, value.pair)
    if cells is None:
        return _comparison(value, row.label, Statistic(), ["cells: missing or failed here"], [])
    reasons, caveats = _setting(value, cells, lookup.scope.out)
    selection = lookup.scope.selection if value.selection == NOT_STATED else value.selection
    ours, missing = Statistic(), ""
    if value.profile == NO_PROFILE:
        missing = "profile: its scoring rules are not among ours"
    elif value.metric == "dice_gain":
        missing = "metric: a gain over another unadapted model"
    else:
        cases = lookup.cases(value.profile, selection)
        found = summarise(row.of_pair(value.pair), cases)
        if found is None:
            missing = f"selection: '{selection}' is not stored under profile {value.profile}"
        else:
            ours = found[f"{value.metric}_{value.structure}"]
            reasons += _split(value, cells, cases)
    return _comparison(value, row.label, ours, [missing, *reasons] if missing else reasons, caveats)


def _split(
    value: PublishedValue, cells: Sequence[CellRecord], cases: Mapping[str, CellCases]
) -> list[str]:
    counts = {len({image for _, image in cases[cell.key]}) for cell in cells}
    if value.test_images is None or counts == {value.test_images}:
        return []
    ours = ", ".join(map(str, sorted(counts)))
    return [f"split: {value.test_images} test images, here {ours}"]


def _setting(
    value: PublishedValue, cells: Sequence[CellRecord], out: Path
) -> tuple[list[str], list[str]]:
    """Return what differs between the settings, and what is unknown."""
    reasons = ["synthetic images here"] if any(cell.synthetic for cell in cells) else []
    caveats = [] if value.selection != NOT_STATED else ["selection not stated"]
    protocols = {cell.protocol for cell in cells}
    if value.protocol == NOT_STATED:
        caveats.append("protocol not stated")
    elif protocols != {value.protocol}:
        reasons.append(f"protocol: {value.protocol}, here {', '.join(sorted(protocols))}")
    sizes = {cell.image_size for cell in cells}
    if value.image_size is not None and sizes != {value.image_size}:
        here = ", ".join(map(str, sorted(sizes)))
        reasons.append(f"image size: {value.image_size} px, here {here}")
    networks = sorted({str(cell.network.get("name")) for cell in cells})
    if value.network and any(value.network not in name for name in networks):
        reasons.append(f"network: {value.network}, here {', '.join(networks)}")
    elif not value.network:
        caveats.append("network not stated")
    if value.source_model == "released" and not all(_imported(cell, out) for cell in cells):
        reasons.append("source model: released weights, here trained anew")
    if value.source_model == NOT_STATED:
        caveats.append("source model not stated")
    if value.roi:
        caveats.append(f"crop: {value.roi}, here not recorded")
    return reasons, caveats


def _imported(cell: CellRecord, out: Path) -> bool:
    """Whether the source model came from a file instead of our training."""
    key = str(cell.record.get("source_key", ""))
    card = out / "sources" / cell.source / key[:_SHORT] / "card.json"
    return card.is_file() and bool(read_json(card).get("imported"))


def _comparison(
    value: PublishedValue,
    label: str,
    ours: Statistic,
    reasons: Sequence[str],
    caveats: Sequence[str],
) -> Comparison:
    low, high = _interval(ours)
    if reasons or ours.mean is None:
        verdict = NOT_COMPARABLE
        reasons = reasons or ["undefined here"]
    elif f"{ours.mean:.{value.decimals}f}" == f"{value.value:.{value.decimals}f}":
        verdict = MATCH
    else:
        inside = low is not None and high is not None and low <= value.value <= high
        verdict = WITHIN if inside else OFF
    return Comparison(value, label, ours.mean, low, high, verdict, tuple(reasons), tuple(caveats))


def _interval(ours: Statistic) -> tuple[float | None, float | None]:
    """Return the 95 % t interval of a mean over images."""
    if ours.mean is None or ours.std is None:
        return None, None
    quantile = float(student.ppf(0.5 + _CONFIDENCE / 2, ours.n - 1))
    half = quantile * ours.std / math.sqrt(ours.n)
    return ours.mean - half, ours.mean + half

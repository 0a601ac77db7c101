"""Everything that a store's records say, as files: main tables, comparisons, harm, the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sfuda_bench.report.comparison import (
    Comparison,
    Scores,
    compare_store,
    write_comparisons,
)
from sfuda_bench.report.extra import write_extra_tables
from sfuda_bench.report.harm import evidence, write_harm
from sfuda_bench.report.plain import PlainTable, write_plain
from sfuda_bench.report.ranking_table import ranking_tables
from sfuda_bench.report.tables import Evidence, write_tables


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        paths: Files, main tables first.
        compared: Scores and comparisons by profile.
        rankings: Tables of rankings, whose bootstrap is not worth doing twice.
    """

    paths: tuple[Path, ...]
    compared: Mapping[str, tuple[Scores, Comparison]]
    rankings: tuple[PlainTable, ...] = ()

    @property
    def evidence(self) -> dict[str, Evidence]:
        """What tests and checks say, by profile."""
        return evidence(self.compared)


def write_report(
    out: Path,
    selection: str = "last",
    profiles: Iterable[str] | None = None,
    note: Callable[[str], None] | None = None,
) -> Written:
    """Write every table of a store into ``DIR/tables``; equal scores, equal bytes.

    Args:
        out: The store.
        selection: Which epoch counts.
        profiles: Profiles of the main and the comparison tables, or ``None`` for those found.
        note: Told about each stage before it starts.

    Raises:
        UsageError: There is no store, or nothing comparable in it.
        StoreSchemaError: It has another schema or is damaged.
    """
    tell = note or (lambda stage: None)
    tell("statistics: paired tests and bootstrap")
    compared = compare_store(out, selection, profiles)
    written = Written((), compared)
    tell("main tables")
    paths = write_tables(out, selection, profiles, written.evidence)
    tell("further tables")
    paths += write_comparisons(out, selection, compared=compared)
    paths += write_harm(out, selection, scores={n: scores for n, (scores, _) in compared.items()})
    tell("rankings")
    rankings = tuple(ranking_tables({name: scores for name, (scores, _) in compared.items()}))
    for table in rankings:
        paths += write_plain(out, table)
    paths += write_extra_tables(out, selection)
    return replace(written, paths=tuple(paths), rankings=rankings)

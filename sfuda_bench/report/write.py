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
from sfuda_bench.report.ranking_table import write_rankings
from sfuda_bench.report.tables import Evidence, write_tables


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        paths: Files, main tables first.
        compared: Scores and comparisons by profile.
    """

    paths: tuple[Path, ...]
    compared: Mapping[str, tuple[Scores, Comparison]]

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
    paths += write_rankings(out, {name: scores for name, (scores, _) in compared.items()})
    paths += write_extra_tables(out, selection)
    return replace(written, paths=tuple(paths))

"""The table of rankings: three schemes side by side, each with its bootstrap interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sfuda_bench.report.comparison import (
    NAMES,
    PARTS,
    Panel,
    Scores,
    file_name,
    pair_text,
    panels,
)
from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.ranking import RERANKINGS, SCHEMES, Ranking, rank_panel

_FEWEST = 2  # methods without target labels that a ranking needs
_METRIC = "dice"
_COLUMNS = (
    PlainColumn("pair", "Pair"),
    PlainColumn("score", "Score"),
    PlainColumn("label", "Method"),
    *(PlainColumn(f"rank_{s.replace('-', '_')}", s.replace("-", " ")) for s in SCHEMES),
    *(
        PlainColumn(f"{end}_{s.replace('-', '_')}", "", printed=False)
        for s in SCHEMES
        for end in ("low", "high", "tau")
    ),
)


def ranking_table(scores: Scores, name: str) -> PlainTable | None:
    """Rank the methods by Dice in every pair and structure.

    Args:
        scores: From ``comparison.read_scores``.
        name: Stem of its files.

    Returns:
        ``None`` where no pair has two complete methods without target labels.
    """
    ranked = [entrant.label for entrant in scores.entrants if not entrant.oracle]
    rows: list[tuple[Value, ...]] = []
    for panel in panels(scores, (_METRIC,)):
        labels = [label for label in ranked if label in panel.scores]
        if len(labels) >= _FEWEST and panel.structure in PARTS:
            rows += _panel_rows(panel, labels, pair_text(panel.pair, scores.marks))
    if not rows:
        return None
    caption = (
        f"Rank by Dice with its 95 % interval over {RERANKINGS} bootstrap samples of the test "
        "images; rows with target labels are not ranked, equal values share the better rank.",
        "Aggregate then rank: by mean Dice. Rank then aggregate: by the mean of the ranks in each "
        "image. Test then rank: by the number of methods beaten in one-sided Wilcoxon tests, "
        "Holm-adjusted over all pairs of methods. Where the three disagree, the order depends on "
        "the scheme and not on the methods.",
        f"Scoring profile {scores.profile}, selection {scores.selection}.",
        *scores.explanations,
    )
    title = "Rankings in three schemes, and how stable they are."
    return PlainTable(name, title, caption, _COLUMNS, tuple(rows), keys=3)


def ranking_tables(scores: Mapping[str, Scores]) -> Iterable[PlainTable]:
    """Return the tables of the profiles that have a ranking."""
    for profile, found in scores.items():
        table = ranking_table(found, file_name("ranking", profile, found.selection))
        if table is not None:
            yield table


def _panel_rows(panel: Panel, labels: list[str], pair: str) -> list[tuple[Value, ...]]:
    rankings = [rank_panel(panel, scheme, labels) for scheme in SCHEMES]
    order = np.argsort(rankings[0].ranks, kind="stable")
    rows = []
    for place in order:
        numbers: list[Value] = []
        for ranking in rankings:
            tau = np.nanmedian(ranking.taus) if not np.isnan(ranking.taus).all() else np.nan
            ends = [ranking.rank_low[place], ranking.rank_high[place], tau]
            numbers += [None if np.isnan(value) else float(value) for value in ends]
        texts = [_text(ranking, int(place)) for ranking in rankings]
        rows.append((pair, f"{NAMES[_METRIC]} {panel.structure}", labels[place], *texts, *numbers))
    return rows


def _text(ranking: Ranking, place: int) -> str:
    low, high = ranking.rank_low[place], ranking.rank_high[place]
    return f"{ranking.ranks[place]} ({low:.0f} to {high:.0f})"

"""Rankings: critical difference over pairs, and how stable ranks are within a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import FigureData
from sfuda_bench.report.ranking import CriticalDifference, critical_difference, rank
from sfuda_bench.report.scope import LABEL_CENTER_MARK, SYNTHETIC_MARK
from sfuda_bench.scoring.codes import STRUCTURES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEWEST = 3  # methods that a ranking, and pairs that a critical difference, needs
_LARGEST_BLOB = 330.0


def critical_difference_figure(data: FigureData) -> Figure | None:
    """Draw mean ranks over pairs, with bars that join what Nemenyi's test cannot separate.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.

    Returns:
        ``None`` with fewer than three pairs, or fewer than three ranked rows that have them all.
    """
    rows, scores = _pair_means(data)
    if len(rows) < _FEWEST or len(data.pairs) < _FEWEST:
        return None
    found = critical_difference(scores, [data.lines[row].label for row in rows])
    colours = {data.lines[row].label: data.lines[row].colour for row in rows}
    half = -(-len(rows) // 2)
    figure = style.new_figure(7.0, 1.6 + 0.24 * (half + len(found.groups)))
    axes = style.grid(figure, 1, 1)[0]
    _draw_axis(axes, found, colours, half)
    pairs = f"{found.blocks} pairs"
    if any(pair.synthetic for pair in data.pairs):
        pairs += f", {SYNTHETIC_MARK} synthetic images among them"
    if any(pair.positions_from_labels for pair in data.pairs):
        pairs += f", {LABEL_CENTER_MARK} crops centred on annotated discs among them"
    style.set_title(
        figure,
        f"Mean rank of Dice (mean of cup and disc) over {pairs}; {data.profile}; "
        f"Friedman p = {found.p:.3g}, Iman-Davenport p = {found.p_iman_davenport:.3g}",
    )
    return figure


def _draw_axis(axes: Axes, found: CriticalDifference, colours: dict[str, str], half: int) -> None:
    methods = len(found.labels)
    bars = len(found.groups)
    axes.set(xlim=(methods + 1.2, -0.2), ylim=(-half - bars * 0.6 - 0.8, 1.5))
    axes.axis("off")
    axes.plot([1, methods], [0, 0], color="black", linewidth=1.0)
    for tick in range(1, methods + 1):
        axes.plot([tick, tick], [0, 0.18], color="black", linewidth=1.0)
        axes.annotate(str(tick), (tick, 0.25), ha="center", va="bottom")
    distance = found.critical_difference
    axes.plot([1, min(1 + distance, methods + 1)], [1.1, 1.1], color="black", linewidth=2)
    axes.annotate(f"critical difference {distance:.2f}", (1, 1.2), ha="right", va="bottom")
    for index, (first, last) in enumerate(found.groups):
        level = -0.35 - 0.5 * index
        ends = [found.mean_ranks[first] - 0.06, found.mean_ranks[last] + 0.06]
        axes.plot(ends, [level, level], color="#444444", linewidth=3, solid_capstyle="round")
    for position, (label, mean) in enumerate(zip(found.labels, found.mean_ranks, strict=True)):
        best = position < half
        depth = position if best else methods - 1 - position
        level = -0.6 * bars - 0.6 - depth
        edge = 0.4 if best else methods + 0.6
        axes.plot([mean, mean, edge], [0, level, level], color=colours[label], linewidth=1.1)
        axes.annotate(
            f"{label}  {mean:.2f}",
            (edge, level),
            xytext=(4 if best else -4, 0),
            textcoords="offset points",
            ha="left" if best else "right",
            va="center",
        )


def rank_stability(data: FigureData, pair: int) -> Figure | None:
    """Draw how often each method has each rank when the test images are resampled.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.
        pair: Position of the pair.

    Returns:
        ``None`` with fewer than three ranked rows in the pair.
    """
    rows = [row for row in data.rows_of(data.cases, pair) if not data.lines[row].oracle]
    if len(rows) < _FEWEST:
        return None
    figure = style.new_figure(7.6, 2.3 + 0.16 * len(rows))
    panels = style.grid(figure, len(STRUCTURES), len(STRUCTURES))
    for axes, structure in zip(panels, STRUCTURES, strict=True):
        _stability_panel(axes, data, pair, rows, structure)
    style.set_title(figure, f"Stability of the ranking by mean Dice, {data.pairs[pair].title}")
    return figure


def _stability_panel(
    axes: Axes, data: FigureData, pair: int, rows: list[int], structure: str
) -> None:
    cases = data.cases
    cases = cases[(cases["pair"] == pair) & (cases["structure"] == structure)]
    table = cases.pivot(index="image", columns="row", values="dice").sort_index()[rows]
    found = rank(table.to_numpy(float), [data.lines[row].label for row in rows])
    order = np.argsort(found.ranks, kind="stable")
    places = np.arange(1, len(rows) + 1)
    for x, position in enumerate(order):
        line = data.lines[rows[position]]
        sizes = found.frequency[position] * _LARGEST_BLOB
        axes.scatter([x] * len(rows), places, s=sizes, color=line.colour, alpha=0.75, linewidth=0)
        ends = [found.rank_low[position], found.rank_high[position]]
        axes.plot([x, x], ends, color="black", linewidth=0.9)
        axes.plot(x, found.ranks[position], marker="_", color="black", markersize=9)
    labels = [style.wrapped(data.lines[rows[position]].label, 16, 2) for position in order]
    axes.set_xticks(range(len(rows)), labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.set(title=f"optic {structure}", ylabel="rank", yticks=places)
    axes.set_ylim(len(rows) + 0.6, 0.4)
    axes.set_xlim(-0.6, len(rows) - 0.4)


def _pair_means(data: FigureData) -> tuple[list[int], np.ndarray]:
    """Return ranked rows that are complete, and their mean Dice, (pairs, rows)."""
    means = data.cases.groupby(["pair", "row"])["dice"].mean()
    pairs = range(len(data.pairs))
    rows = [
        row
        for row, line in enumerate(data.lines)
        if not line.oracle and all((pair, row) in means.index for pair in pairs)
    ]
    return rows, np.array([[means.loc[pair, row] for row in rows] for pair in pairs])

"""Figures of Dice: heat map over pairs, scores per image, change from the source model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import FigureData, FigurePair, Line
from sfuda_bench.report.summary import MISSING
from sfuda_bench.scoring.codes import STRUCTURES

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORSE_BY = 1.0
"""Dice points from which an image counts as made worse."""
_SLOPE_COLUMNS = 6


def heat_map(data: FigureData) -> Figure:
    """Draw the mean Dice of every method in every pair, one panel per structure.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.

    Returns:
        Entries of the best ranked row per column are bold; a light square with a dash has a
        missing run. The last column is the mean over pairs of rows that have all of them.
    """
    columns = len(data.pairs) + (len(data.pairs) > 1)
    width = 2.6 + 0.72 * columns
    height = 1.5 + len(STRUCTURES) * (0.55 + 0.27 * len(data.lines))
    figure = style.new_figure(max(width, 5.0), height)
    panels = style.grid(figure, len(STRUCTURES), 1, sharex=True)
    for axes, structure in zip(panels, STRUCTURES, strict=True):
        _heat_panel(axes, data, structure)
    labels = [_pair_tick(pair) for pair in data.pairs]
    panels[-1].set_xticks(
        [index + 0.5 for index in range(columns)],
        [*labels, "average\nover pairs"][:columns],
        rotation=40 if columns > 4 else 0,
        ha="right" if columns > 4 else "center",
        rotation_mode="anchor" if columns > 4 else None,
    )
    note = "".join(f", {words}" for words in data.mark_words)
    style.set_title(figure, f"Mean Dice [%] per method and pair ({data.profile}{note})")
    return figure


def _heat_panel(axes: Axes, data: FigureData, structure: str) -> None:
    import numpy as np
    import seaborn

    means = heat_values(data, structure)
    texts = [[MISSING if math.isnan(v) else f"{v:.1f}" for v in row] for row in means]
    seaborn.heatmap(
        means,
        ax=axes,
        annot=np.array(texts),
        fmt="",
        cmap=style.HEAT_MAP,
        mask=np.isnan(means),
        linewidths=0.8,
        linecolor="white",
        annot_kws={"fontsize": 7.5},
        cbar_kws={"label": "Dice [%]", "pad": 0.01, "aspect": 12},
    )
    axes.set_facecolor(style.MISSING_COLOUR)
    for row, column in zip(*np.nonzero(np.isnan(means)), strict=True):
        axes.text(column + 0.5, row + 0.5, MISSING, ha="center", va="center", fontsize=7.5)
    _bold_best(axes, data.lines, means)
    axes.grid(visible=False)
    axes.set_title(f"optic {structure}")
    axes.set_yticks(
        [index + 0.5 for index in range(len(data.lines))],
        [style.wrapped(line.label, 34, 1) for line in data.lines],
        rotation=0,
    )
    axes.tick_params(length=0)
    ranked = sum(not line.oracle for line in data.lines)
    if 0 < ranked < len(data.lines):
        axes.axhline(ranked, color="black", linewidth=1)
    if len(data.pairs) > 1:
        axes.axvline(len(data.pairs), color="black", linewidth=1)


def heat_values(data: FigureData, structure: str) -> np.ndarray:
    """Return the mean Dice [%] by row and pair, and the mean over pairs if there are several.

    Returns:
        float64, shape (rows, pairs) or (rows, pairs + 1); NaN where a run is missing.
    """
    import numpy as np

    means = np.full((len(data.lines), len(data.pairs)), np.nan)
    cases = data.cases[data.cases["structure"] == structure]
    averaged = cases.groupby(["pair", "row"], as_index=False)["dice"].mean()
    means[averaged["row"].astype(int), averaged["pair"].astype(int)] = averaged["dice"]
    if len(data.pairs) > 1:
        means = np.column_stack([means, means.mean(axis=1)])
    return means


def _bold_best(axes: Axes, lines: tuple[Line, ...], means: np.ndarray) -> None:
    """Print the best of every column among ranked rows in bold; ties are ties of what is printed.

    Seaborn writes one text per value, in reading order, before those of missing values.
    """
    import numpy as np

    shown = means.round(1)
    ranked = [row for row, line in enumerate(lines) if not line.oracle]
    places = np.argwhere(~np.isnan(means))
    for text, (row, column) in zip(axes.texts, places, strict=False):
        best = np.nanmax(shown[ranked, column]) if row in ranked else math.nan
        if shown[row, column] == best:
            text.set_fontweight("bold")
            text.set_fontsize(8.5)


def _pair_tick(pair: FigurePair) -> str:
    source, target = (style.wrapped(name, 18, 1) for name in (pair.source, pair.target))
    return f"{source}\n→ {target} {pair.marks}".rstrip()


def image_scores(data: FigureData, pair: int) -> Figure | None:
    """Draw the Dice of every test image as box and points, one panel per structure.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.
        pair: Position of the pair.

    Returns:
        ``None`` if no row of the pair is complete. The dashed line is the baseline's median;
        a point keeps its height over methods, so an image can be followed.
    """
    rows = data.rows_of(data.cases, pair)
    if not rows:
        return None
    figure = style.new_figure(7.6, 1.3 + 0.36 * len(rows))
    panels = style.grid(figure, len(STRUCTURES), len(STRUCTURES), sharey=True)
    for axes, structure in zip(panels, STRUCTURES, strict=True):
        _image_panel(axes, data, pair, rows, structure)
    panels[0].set_yticks(
        range(len(rows)), [style.wrapped(data.lines[row].label, 30, 2) for row in rows]
    )
    panels[0].invert_yaxis()
    title = f"Dice per test image, {data.pairs[pair].title}"
    style.set_title(figure, f"{title} [{data.profile}]")
    return figure


def _image_panel(axes: Axes, data: FigureData, pair: int, rows: list[int], structure: str) -> None:
    frame = data.cases[(data.cases["pair"] == pair) & (data.cases["structure"] == structure)]
    for place, row in enumerate(rows):
        values = frame.loc[frame["row"] == row, "dice"].to_numpy()
        colour = data.lines[row].colour
        pen = {"color": colour, "linewidth": 1.0}
        axes.boxplot(
            values,
            positions=[place],
            orientation="horizontal",
            widths=0.62,
            showfliers=False,  # every image is a point
            boxprops=pen,
            whiskerprops=pen,
            capprops=pen,
            medianprops={**pen, "linewidth": 1.6},
        )
        heights = [place + offset for offset in style.spread(len(values), 0.44)]
        axes.scatter(values, heights, s=5, color=colour, alpha=0.45, linewidth=0, zorder=1)
    if data.baseline in rows:
        median = frame.loc[frame["row"] == data.baseline, "dice"].median()
        axes.axvline(median, color=style.BASELINE_COLOUR, linestyle="--", linewidth=1, zorder=0)
    axes.grid(visible=False, axis="y")
    axes.set(title=f"optic {structure}", xlabel="Dice [%]", ylabel="")
    axes.set_xlim(right=min(axes.get_xlim()[1], 100.5))


def slopes(data: FigureData, pair: int) -> Figure | None:
    """Draw each image's Dice before and after adaptation, one panel per method and structure.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.
        pair: Position of the pair.

    Returns:
        ``None`` if the pair has no unadapted source model, or nothing beside it.
    """
    rows = [row for row in data.rows_of(data.cases, pair) if row != data.baseline]
    if not rows or data.baseline not in data.rows_of(data.cases, pair):
        return None
    bands = -(-len(rows) // _SLOPE_COLUMNS)
    columns = -(-len(rows) // bands)
    figure = style.new_figure(max(1.45 * columns + 0.8, 4.2), 0.7 + 3.9 * bands)
    bands_of = figure.subfigures(bands, 1, squeeze=False).flat
    for band, subfigure in enumerate(bands_of):
        chosen = rows[band * columns : (band + 1) * columns]
        panels = subfigure.subplots(len(STRUCTURES), columns, squeeze=False, sharey="row")
        for index, structure in enumerate(STRUCTURES):
            for place, row in enumerate(chosen):
                _slope_panel(panels[index, place], data, pair, row, structure)
                if index == 0:
                    label = style.wrapped(data.lines[row].label, 17, 3)
                    panels[0, place].set_title(label, fontweight="bold", fontsize=8)
            panels[index, 0].set_ylabel(f"{structure} Dice [%]")
            panels[index, 0].set_ylim(*_limits(data, pair, structure))
            for empty in panels[index, len(chosen) :]:
                empty.remove()
    title = f"Source model to adapted model per image, {data.pairs[pair].title}"
    style.set_title(figure, f"{title} [{data.profile}]")
    return figure


def _limits(data: FigureData, pair: int, structure: str) -> tuple[float, float]:
    """Return limits that hold all methods, so that bands of panels share one scale."""
    chosen = (data.cases["pair"] == pair) & (data.cases["structure"] == structure)
    dice = data.cases.loc[chosen, "dice"]
    margin = 0.05 * (dice.max() - dice.min()) or 1.0
    return float(dice.min() - margin), float(dice.max() + margin)


def _slope_panel(axes: Axes, data: FigureData, pair: int, row: int, structure: str) -> None:
    from matplotlib.collections import LineCollection

    frame = data.cases[(data.cases["pair"] == pair) & (data.cases["structure"] == structure)]
    after = frame[frame["row"] == row].set_index("image")["dice"]
    before = frame[frame["row"] == data.baseline].set_index("image")["dice"]
    images = after.index.intersection(before.index).sort_values()
    after, before = after[images], before[images]
    steps = list(zip(before, after, strict=True))
    lines = LineCollection(
        [[(0, start), (1, end)] for start, end in steps],
        colors=[style.WORSE if end < start else style.BETTER for start, end in steps],
        alpha=0.4,
        linewidths=0.8,
    )
    axes.add_collection(lines)
    axes.plot(
        [0, 1], [before.mean(), after.mean()], color="black", marker="o", markersize=4, linewidth=2
    )
    change = after - before
    worse = 100 * (change < -WORSE_BY).mean() if len(change) else 0.0
    axes.set_xlabel(f"mean {change.mean():+.1f}\n{worse:.0f} % worse by > {WORSE_BY:g}")
    axes.set_xticks([0, 1], ["source", "adapted"], fontsize=7)
    axes.set_xlim(-0.2, 1.2)
    axes.grid(visible=False, axis="x")

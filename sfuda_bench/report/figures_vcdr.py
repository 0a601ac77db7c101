"""Bland-Altman plots of the vertical cup-to-disc ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import FigureData

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LIMITS_SD = 1.96
_COLUMNS = 4


def bland_altman(data: FigureData, pair: int) -> Figure | None:
    """Draw prediction minus truth over their mean, one panel per method.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.
        pair: Position of the pair.

    Returns:
        ``None`` if the pair has no defined ratio. The solid line is the bias, the dashed lines
        are the 95 % limits of agreement (bias ± 1.96 sample standard deviations).
    """
    eyes = data.eyes[data.eyes["pair"] == pair]
    rows = data.rows_of(eyes, pair)
    if not len(eyes.dropna()):
        return None
    columns = min(len(rows), _COLUMNS)
    bands = -(-len(rows) // columns)
    figure = style.new_figure(max(1.9 * columns + 0.5, 4.2), 0.8 + 1.75 * bands)
    panels = style.grid(figure, len(rows), columns, sharex=True, sharey=True)
    for axes, row in zip(panels, rows, strict=True):
        line = data.lines[row]
        _panel(axes, eyes[eyes["row"] == row].sort_values("image"), line.colour)
        axes.set_title(style.wrapped(line.label, 26, 2), fontweight="bold", fontsize=8)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low - 0.22 * (high - low), high)  # shared; makes place for the text
    for place, axes in enumerate(panels):
        if place + columns >= len(panels):
            axes.set_xlabel("mean of prediction and truth", fontsize=7)
            axes.tick_params(labelbottom=True)
    figure.supylabel("vCDR prediction minus truth", fontsize=8)
    title = f"Bland-Altman of the vertical cup-to-disc ratio, {data.pairs[pair].title}"
    style.set_title(figure, f"{title} [{data.profile}]")
    return figure


def _panel(axes: Axes, eyes: pd.DataFrame, colour: str) -> None:
    defined = eyes.dropna(subset=["vcdr_prediction", "vcdr_truth"])
    difference = defined["vcdr_prediction"] - defined["vcdr_truth"]
    middle = (defined["vcdr_prediction"] + defined["vcdr_truth"]) / 2
    axes.axhline(0, color="black", linewidth=0.6)
    axes.scatter(middle, difference, s=9, color=colour, alpha=0.6, linewidth=0)
    text = "no defined ratio"
    if len(defined):
        bias = difference.mean()
        axes.axhline(bias, color=colour, linewidth=1.3)
        text = f"bias {bias:+.3f}"
    if len(defined) > 1:
        limit = _LIMITS_SD * difference.std(ddof=1)
        for end in (bias - limit, bias + limit):
            axes.axhline(end, color=colour, linewidth=1, linestyle="--")
        text += f", limits ± {limit:.3f}"
    text += f"\nn = {len(defined)}"
    if len(defined) < len(eyes):
        text += f", {len(eyes) - len(defined)} undefined"
    axes.annotate(
        text,
        (0.03, 0.03),
        xycoords="axes fraction",
        fontsize=6,
        bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1},
    )

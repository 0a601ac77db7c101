"""Dice over the threshold, and what happened during adaptation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import HARM_POINTS, FigureData
from sfuda_bench.scoring.codes import STRUCTURES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVE_COLUMNS = 4
_DICE, _HARM = "", " "  # panels that are no tracked scalar; both come before every name


def threshold_curves(data: FigureData, pair: int) -> Figure | None:
    """Draw the mean Dice over the threshold, with each method's best threshold marked.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.
        pair: Position of the pair.

    Returns:
        ``None`` if no cell of the pair has scores over thresholds.
    """
    rows = data.rows_of(data.thresholds, pair)
    if not rows:
        return None
    figure = style.new_figure(7.6, 2.9 + 0.14 * max(len(rows) - 9, 0))
    panels = style.grid(figure, len(STRUCTURES), len(STRUCTURES))
    for axes, structure in zip(panels, STRUCTURES, strict=True):
        _threshold_panel(axes, data, pair, rows, structure)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center")
    style.set_title(figure, f"Dice over the threshold, {data.pairs[pair].title}")
    return figure


def _threshold_panel(
    axes: Axes, data: FigureData, pair: int, rows: list[int], structure: str
) -> None:
    frame = data.thresholds
    frame = frame[(frame["pair"] == pair) & (frame["structure"] == structure)]
    for row in rows:
        line = data.lines[row]
        curve = frame[frame["row"] == row].sort_values("threshold")
        axes.plot(
            curve["threshold"],
            curve["dice"],
            color=line.colour,
            linestyle=line.dash,
            label=style.wrapped(line.label, 26, 2),
        )
        best = curve.nlargest(1, "dice")  # of equal ones the lowest threshold
        axes.plot(best["threshold"], best["dice"], marker="v", color=line.colour, markersize=5)
    by_threshold: dict[float, list[str]] = {}
    for name, threshold in data.thresholds_used.items():
        by_threshold.setdefault(threshold, []).append(name)
    for threshold, names in by_threshold.items():
        axes.axvline(threshold, color="black", linewidth=0.7, linestyle=":")
        axes.annotate(
            ", ".join(names),
            (threshold, 0.02),
            xycoords=("data", "axes fraction"),
            rotation=90,
            fontsize=6.5,
            ha="right",
        )
    axes.set(title=f"optic {structure}", xlabel="threshold", ylabel="Dice [%]")


def adaptation_curves(data: FigureData, pair: int) -> Figure | None:
    """Draw losses and label-free scalars over epochs, and Dice where epochs were scored.

    Args:
        data: From :func:`~sfuda_bench.report.figures_data.load`.
        pair: Position of the pair.

    Returns:
        ``None`` if nothing of the pair has more than one epoch. Thin lines are runs, a thick
        line is their mean. On Dice: square = last, shaded = average of the last epochs,
        star = oracle.
    """
    curves = data.curves[data.curves["pair"] == pair]
    several = curves.groupby(["row", "name"])["epoch"].transform("nunique") > 1
    curves = curves[several]
    epochs = data.epochs[data.epochs["pair"] == pair]
    panels = {(int(row), str(name)) for row, name in curves[["row", "name"]].to_numpy()}
    for row in data.rows_of(epochs, pair):
        if _epoch_count(epochs, row) > 1:
            panels |= {(row, _DICE), (row, _HARM)}
    if not panels:
        return None
    columns = min(len(panels), _CURVE_COLUMNS)
    bands = -(-len(panels) // columns)
    figure = style.new_figure(max(2.0 * columns + 0.3, 4.2), 0.7 + 1.6 * bands)
    axes = style.grid(figure, len(panels), columns)
    for panel, (row, name) in zip(axes, sorted(panels), strict=True):
        line = data.lines[row]
        of_row = epochs[epochs["row"] == row].sort_values("epoch")
        if name == _DICE:
            _dice_panel(panel, of_row, data.average_last, line.colour)
        elif name == _HARM:
            _harm_panel(panel, of_row, line.colour)
        else:
            chosen = curves[(curves["row"] == row) & (curves["name"] == name)]
            _scalar_panel(panel, chosen, line.colour)
        _panel_title(panel, line.label, _TITLES.get(name, name))
    for panel in axes[-columns:]:
        panel.set_xlabel("epoch")
    style.set_title(figure, f"During adaptation, {data.pairs[pair].title}")
    return figure


_TITLES = {_DICE: "Dice [%], mean of cup and disc", _HARM: "images made worse [%]"}


def _epoch_count(epochs: pd.DataFrame, row: int) -> int:
    return int(epochs.loc[epochs["row"] == row, "epoch"].nunique())


def _panel_title(axes: Axes, label: str, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(f"{style.wrapped(label, 28, 2)}\n{style.wrapped(name, 32, 1)}", fontsize=7.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))


def _scalar_panel(axes: Axes, curves: pd.DataFrame, colour: str) -> None:
    runs = list(curves.groupby("key", sort=True))
    for _, run in runs:
        axes.plot(run["epoch"], run["value"], color=colour, alpha=0.35, linewidth=0.8)
    mean = curves.groupby("epoch")["value"].mean()
    axes.plot(mean.index, mean, color=colour, linewidth=1.6, marker=".", markersize=4)


def _harm_panel(axes: Axes, epochs: pd.DataFrame, colour: str) -> None:
    for points, dash in zip(HARM_POINTS, ("-", "--"), strict=True):
        share = epochs[f"worse_{points}"]
        axes.plot(epochs["epoch"], share, dash, color=colour, linewidth=1.6, label=f"> {points}")
    axes.set_ylim(-3, 103)
    axes.legend(loc="upper left", title="Dice points", title_fontsize=6, fontsize=6)


def _dice_panel(axes: Axes, epochs: pd.DataFrame, average_last: int, colour: str) -> None:
    curve = epochs.sort_values("epoch").set_index("epoch")["dice"]
    axes.plot(curve.index, curve, color=colour, linewidth=1.6, marker=".", markersize=4)
    last = int(curve.index[-1])
    if average_last:
        start = max(last - average_last + 1, 1)
        axes.axvspan(start - 0.5, last + 0.5, color=colour, alpha=0.12, linewidth=0)
    axes.plot(last, curve.iloc[-1], marker="s", color="black", markersize=5, linestyle="none")
    # Rounded, so that a tie is a tie in spite of a sum's last bits; the earlier epoch wins.
    best = int(curve.round(10).to_numpy().argmax())
    axes.plot(
        curve.index[best],
        curve.iloc[best],
        marker="*",
        color="black",
        markersize=9,
        linestyle="none",
    )

"""Pictures of what parts are worth and of how choices without labels fare, from plain frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sfuda_bench.report import style
from sfuda_bench.report.scope import ORACLE_MARK, SYNTHETIC_MARK
from sfuda_bench.scoring.codes import STRUCTURES
from sfuda_bench.search.pictures import styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def _marker(number: int) -> str:
    """Return the marker beside a colour; the two together repeat after 49 numbers."""
    return MARKERS[(number + number // len(style.PALETTE)) % len(MARKERS)]


def _pairs(frame: pd.DataFrame) -> list[tuple[str, str]]:
    found = frame[["source", "target"]].drop_duplicates()
    pairs = [(str(source), str(target)) for source, target in found.to_numpy()]
    return [pair for pair in pairs if pair != ("all", "all")]


def _pair_text(pair: tuple[str, str], synthetic: bool) -> str:
    text = f"{pair[0]} → {pair[1]}"
    return f"{text} {SYNTHETIC_MARK}" if synthetic else text


def _marked(title: str, synthetic: bool) -> str:
    return f"{title} ({SYNTHETIC_MARK} synthetic images, not of patients)" if synthetic else title


@styled
def effects_plot(
    frame: pd.DataFrame, *, kinds: Sequence[str] = ("effect", "step", "versus"), **how: Any
) -> Figure:
    """Draw effects with intervals: a panel per structure, a row per part, a mark per pair.

    Args:
        frame: From :func:`~sfuda_bench.search.effects.effects`.
        kinds: Kinds of contrasts; the first that is present is drawn.
        how: ``synthetic`` (bool) marks the title; ``title`` replaces it.
    """
    kind = next((kind for kind in kinds if (frame["kind"] == kind).any()), kinds[0])
    shown = frame[frame["kind"] == kind]
    parts = list(dict.fromkeys(shown["title"].tolist()))
    pairs = _pairs(shown)
    synthetic = bool(how.get("synthetic", False))
    each = max(0.11 * len(pairs), 0.2)
    figure = style.new_figure(7.6, 1.2 + (each + 0.12) * len(parts) + 0.1 * len(pairs))
    panels = style.grid(figure, len(STRUCTURES), len(STRUCTURES), sharey=True)
    offsets = _offsets(len(pairs))
    for axes, structure in zip(panels, STRUCTURES, strict=True):
        _bands(axes, len(parts))
        for number, pair in enumerate(pairs):
            _effect_marks(axes, shown, parts, pair, structure, number, offsets[number], synthetic)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(f"optic {structure}")
        axes.set_xlabel("change of Dice [points]")
    panels[0].set_yticks(range(len(parts)), [style.wrapped(part, 30, 2) for part in parts])
    panels[0].set_ylim(len(parts) - 0.5, -0.5)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
    handles, labels = panels[0].get_legend_handles_labels()
    columns = 3 if len(labels) > 2 else max(len(labels), 1)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    titles = {
        "effect": "With the part minus without it, 95 % intervals",
        "step": "Each row minus the row above, 95 % intervals",
        "versus": "Each row minus the reference, 95 % intervals",
    }
    style.set_title(figure, _marked(str(how.get("title") or titles.get(kind, kind)), synthetic))
    return figure


def _offsets(marks: int) -> np.ndarray:
    """Return where the marks of one row lie around its middle."""
    step = min(0.7 / max(marks, 1), 0.2)
    places: np.ndarray = (np.arange(marks) - (marks - 1) / 2) * step
    return places


def _bands(axes: Axes, rows: int) -> None:
    """Shade every other row, so that marks are read in the right one."""
    for row in range(0, rows, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    axes.grid(visible=False, axis="y")


def _effect_marks(
    axes: Axes,
    frame: pd.DataFrame,
    parts: list[str],
    pair: tuple[str, str],
    structure: str,
    number: int,
    offset: float,
    synthetic: bool,
) -> None:
    here = (frame["source"] == pair[0]) & (frame["target"] == pair[1])
    found = frame[here & (frame["structure"] == structure)].set_index("title").reindex(parts)
    effect = found["effect"].to_numpy(float)
    low = effect - found["ci_low"].to_numpy(float)
    high = found["ci_high"].to_numpy(float) - effect
    axes.errorbar(
        effect,
        np.arange(len(parts)) + offset,
        xerr=np.vstack([low, high]).clip(min=0),
        fmt=_marker(number),
        color=style.PALETTE[number % len(style.PALETTE)],
        markersize=4,
        elinewidth=1.1,
        capsize=0,
        label=_pair_text(pair, synthetic),
    )


@styled
def interaction_plot(
    means: pd.DataFrame,
    levels: Mapping[str, Mapping[str, bool]],
    titles: Mapping[str, str],
    *,
    structure: str = "avg",
    synthetic: bool = False,
) -> Figure:
    """Draw, for every two switches, the Dice over one at both positions of the other.

    Parallel lines mean no interaction. Dice is the mean over the other switches, and over pairs.

    Args:
        means: From :func:`~sfuda_bench.search.effects.means`, of a factorial design.
        levels: Row to switch to position.
        titles: Switch to its title.
        structure: ``cup``, ``disc`` or ``avg``.
        synthetic: Marks the title.

    Undefined:
        A pair that lacks a row is left out of every panel; without a complete pair: no lines.
    """
    shown = means[(means["structure"] == structure) & means["row"].isin(list(levels))]
    wide = shown.pivot(index=["source", "target"], columns="row", values="dice")
    wide = wide.dropna(how="any")
    couples = list(itertools.combinations(titles, 2))
    columns = min(max(len(couples), 1), 3)
    bands = -(-len(couples) // columns)
    figure = style.new_figure(max(2.4 * columns + 0.4, 4.0), 0.9 + 2.1 * bands)
    panels = style.grid(figure, len(couples), columns, sharey=True)
    for position, (axes, (first, second)) in enumerate(zip(panels, couples, strict=True)):
        _interaction_panel(axes, wide, levels, (first, second), titles)
        if position % columns == 0:
            axes.set_ylabel("Dice [%]" if structure == "avg" else f"{structure} Dice [%]")
    where = "mean over 1 pair" if len(wide) == 1 else f"mean over {len(wide)} pairs"
    title = f"Interactions, {where}; parallel = none"
    style.set_title(figure, _marked(title, synthetic))
    return figure


def _interaction_panel(
    axes: Axes,
    wide: pd.DataFrame,
    levels: Mapping[str, Mapping[str, bool]],
    switches: tuple[str, str],
    titles: Mapping[str, str],
) -> None:
    first, second = switches
    for number, position in enumerate((True, False)):
        heights = []
        for at in (False, True):
            rows = [r for r, found in levels.items() if found[first] == at]
            rows = [r for r in rows if levels[r][second] == position and r in wide.columns]
            heights.append(
                float(wide[rows].mean(axis=1).mean()) if rows and len(wide) else math.nan
            )
        axes.plot(
            [0, 1],
            heights,
            marker=MARKERS[number],
            linestyle=style.DASHES[number],
            color=style.PALETTE[number],
            label=f"{titles[second]} {'on' if position else 'off'}",
        )
    axes.set_xticks([0, 1], [f"{titles[first]}\noff", f"{titles[first]}\non"])
    axes.set_xlim(-0.3, 1.3)
    axes.grid(visible=False, axis="x")
    axes.legend(loc="best", fontsize=6.5)


@styled
def shares_plot(frame: pd.DataFrame, *, structure: str = "avg", synthetic: bool = False) -> Figure:
    """Draw gains over the baseline: the whole method, its control, and the method without.

    Args:
        frame: From :func:`~sfuda_bench.search.effects.shares`.
        structure: ``cup``, ``disc`` or ``avg``.
        synthetic: Marks the title.
    """
    shown = frame[frame["structure"] == structure]
    names = list(dict.fromkeys(shown["name"].tolist()))
    pairs = _pairs(shown)
    figure = style.new_figure(max(2.2 + 0.9 * len(pairs), 4.6), 0.9 + 2.0 * len(names))
    panels = style.grid(figure, len(names), 1, sharex=True)
    parts = {"gain": "whole method", "control": "control", "without": "without the part"}
    for axes, name in zip(panels, names, strict=True):
        found = shown[shown["name"] == name].set_index(["source", "target"]).reindex(pairs)
        for number, (part, label) in enumerate(parts.items()):
            _gain_bars(axes, found, part, label, number)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.grid(visible=False, axis="x")
        axes.set_title(name)
        axes.set_ylabel("gain [points]")
    texts = [_pair_text(pair, synthetic).replace(" → ", "\n→ ") for pair in pairs]
    panels[-1].set_xticks(range(len(pairs)), texts)
    panels[-1].set_xlim(-0.9, len(pairs) - 0.1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    what = "mean of cup and disc" if structure == "avg" else f"optic {structure}"
    title = f"Dice gained over the baseline, {what}, 95 % intervals"
    style.set_title(figure, _marked(title, synthetic))
    return figure


def _gain_bars(axes: Axes, found: pd.DataFrame, part: str, label: str, number: int) -> None:
    value = found[part].to_numpy(float)
    low = value - found[f"{part}_low"].to_numpy(float)
    high = found[f"{part}_high"].to_numpy(float) - value
    axes.bar(
        np.arange(len(found)) + (number - 1) * 0.26,
        value,
        width=0.24,
        color=(style.PALETTE[0], style.PALETTE[4], style.PALETTE[2])[number],
        yerr=np.vstack([low, high]).clip(min=0),
        error_kw={"elinewidth": 0.9, "ecolor": "black"},
        label=label,
    )


@styled
def funnel_plot(frame: pd.DataFrame, *, row: str | None = None, synthetic: bool = False) -> Figure:
    """Draw the pseudo-labels from stage to stage: coverage, purity, Dice and area bias.

    Args:
        frame: From :func:`~sfuda_bench.search.ablation_tables.funnel_means`, in percent.
        row: Which row; the first by default.
        synthetic: Marks the title.
    """
    row = row if row is not None else str(frame["row"].iloc[0])
    shown = frame[frame["row"] == row]
    measures = {
        "coverage": "coverage [%]",
        "purity": "purity [%]",
        "dice": "label Dice [%]",
        "area_bias": "area bias [%]",
    }
    pairs = _pairs(shown)
    stages = shown[["order", "stage"]].drop_duplicates().sort_values("order")
    names = stages["stage"].tolist()
    figure = style.new_figure(8.6, 4.7)
    panels = style.grid(figure, 2 * len(measures), len(measures), sharex=True)
    for position, axes in enumerate(panels):
        structure = STRUCTURES[position // len(measures)]
        key = list(measures)[position % len(measures)]
        for number, pair in enumerate(pairs):
            here = (shown["source"] == pair[0]) & (shown["target"] == pair[1])
            curve = shown[here & (shown["structure"] == structure)].set_index("stage")
            axes.plot(
                range(len(names)),
                curve[key].reindex(names),
                color=style.PALETTE[number % len(style.PALETTE)],
                marker=_marker(number),
                markersize=4,
                label=_pair_text(pair, synthetic),
            )
        axes.set_title(f"optic {structure}: {measures[key]}", fontsize=8)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_xlim(-0.3, len(names) - 0.7)
        if key == "area_bias":
            axes.axhline(0, color="black", linewidth=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3))
    title = f"Pseudo-labels of '{row}' {ORACLE_MARK} (uses target labels)"
    style.set_title(figure, _marked(title, synthetic))
    return figure


# -- choosing without labels ----------------------------------------------------------------------


@styled
def regret_plot(frame: pd.DataFrame, *, title: str = "", synthetic: bool = False) -> Figure:
    """Draw the regret of every objective: a panel per method, a mark per pair, a bar at the median.

    Args:
        frame: From :func:`~sfuda_bench.search.pool.analyse`, rows of one structure. Where an
            objective has rows with the collapse filter, those are drawn.
        title: Instead of the usual one.
        synthetic: Marks the title.
    """
    filtered = frame.groupby("objective")["filtered"].transform("max").astype(bool)
    shown = frame[frame["regret"].notna() & (frame["filtered"].astype(bool) == filtered)]
    order = shown.groupby("objective")["regret"].median().sort_values(kind="stable")
    objectives = [str(name) for name in order.index]
    methods = sorted(set(shown["method"]))
    pairs = _pairs(shown.sort_values(["source", "target"]))
    height = 1.5 + 0.24 * len(objectives) + 0.08 * len(pairs)
    figure = style.new_figure(min(2.6 + 3.2 * len(methods), 10.0), height)
    panels = style.grid(figure, len(methods), 3, sharey=True)
    for axes, method in zip(panels, methods, strict=True):
        found = shown[shown["method"] == method]
        _regret_panel(axes, found, objectives, pairs, synthetic)
        axes.set_title(method)
    oracles = set(shown.loc[shown["oracle"], "objective"])
    names = [f"{name} {ORACLE_MARK}" if name in oracles else name for name in objectives]
    panels[0].set_yticks(range(len(objectives)), names)
    panels[0].set_ylim(len(objectives) - 0.5, -0.5)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(2, len(methods)) + 1)
    usual = f"Regret of each choice; hollow = below the source model; {ORACLE_MARK} uses labels"
    style.set_title(figure, _marked(title or usual, synthetic))
    return figure


def _regret_panel(
    axes: Axes,
    found: pd.DataFrame,
    objectives: list[str],
    pairs: Sequence[tuple[str, str]],
    synthetic: bool,
) -> None:
    _bands(axes, len(objectives))
    offsets = _offsets(len(pairs))
    for number, pair in enumerate(pairs):
        here = (found["source"] == pair[0]) & (found["target"] == pair[1])
        line = found[here].set_index("objective").reindex(objectives)
        colour = style.PALETTE[number % len(style.PALETTE)]
        axes.scatter(
            line["regret"],
            np.arange(len(objectives)) + offsets[number],
            marker=_marker(number),
            facecolors=["white" if harmed is True else colour for harmed in line["harm"].tolist()],
            edgecolors=colour,
            s=22,
            label=_pair_text(pair, synthetic),
            zorder=3,
        )
    medians = found.groupby("objective")["regret"].median().reindex(objectives)
    axes.plot(
        medians.to_numpy(),
        range(len(objectives)),
        marker="|",
        markersize=13,
        markeredgewidth=2.0,
        color="black",
        linestyle="none",
        label="median over pairs",
    )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("regret [Dice points]")

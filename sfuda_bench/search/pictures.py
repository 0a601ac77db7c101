"""Pictures of Optuna studies; every function takes a plain frame of trials, draws one figure.

``trials`` is a frame with the columns ``number`` (int), ``value`` (float, higher is better),
``state`` (``COMPLETE``, ``PRUNED``, ``FAIL``, ...) and ``params`` (a dict by parameter name), one
line per trial.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np
import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution

P = ParamSpec("P")

_SYMBOLS = {"beta": "β", "gamma": "γ", "gamma_low": "γ low", "gamma_high": "γ high", "eta": "η"}  # noqa: RUF001  # Greek letters of the papers
_LEVELS = 12
_FEWEST_FOR_CONTOUR = 4
_FEWEST_FOR_IMPORTANCE = 4
_COMPLETE = "COMPLETE"


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make a function draw in the report's style."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.figure_style():
            return draw(*args, **kwargs)

    return drawn


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.pdf`` and ``<name>.png``; equal figures give equal bytes.

    Args:
        figure: From one of the functions below.
        folder: Where files go.
        name: Stem of the files.
    """
    with style.figure_style():
        style.freeze_layout(figure)
        return style.save(figure, folder, style.slug(name))


# -- Optuna studies -------------------------------------------------------------------------------


def study_pictures(
    trials: pd.DataFrame,
    folder: Path,
    *,
    symbols: Mapping[str, str] | None = None,
    space: Mapping[str, BaseDistribution] | None = None,
    log: Sequence[str] = (),
    objective: str = "objective",
    title: str = "",
    prefix: str = "",
) -> list[Path]:
    """Draw history, importance, slices and contours of one finished study.

    Args:
        trials: See the module's docstring.
        folder: Where files go.
        symbols: Parameter to its symbol in papers.
        space: Parameter to its Optuna distribution; guessed from the values when not given.
        log: Parameters on a logarithmic axis, besides those whose distribution says so.
        objective: Name of the value, for axes.
        title: Of which method and pair.
        prefix: Goes before the files' names.

    Returns:
        Files written; importance, slices and contours only where enough trials completed.
    """
    names = varied(trials)
    logs = {*log, *(n for n in names if getattr((space or {}).get(n), "log", False))}
    shown: dict[str, Any] = {"symbols": symbols, "objective": objective, "title": title}
    figures = {"history": optimisation_history(trials, objective=objective, title=title)}
    if names:
        figures["slices"] = slice_plot(trials, log=sorted(logs), **shown)
        if _has_importance(trials):
            found = importances(trials, space=space)
            figures["importance"] = importance_plot(found, symbols=symbols, title=title)
        if len(names) > 1 and len(_complete(trials)) >= _FEWEST_FOR_CONTOUR:
            figures["contours"] = contour_plot(trials, log=sorted(logs), **shown)
    return [path for n, figure in figures.items() for path in save(figure, folder, f"{prefix}{n}")]


def varied(trials: pd.DataFrame) -> list[str]:
    """Return the parameters that completed trials have in common and that differ among them."""
    values = [dict(params) for params in _complete(trials)["params"]]
    if not values:
        return []
    shared = [name for name in values[0] if all(name in other for other in values)]
    return [name for name in shared if len({repr(other[name]) for other in values}) > 1]


def importances(
    trials: pd.DataFrame, *, space: Mapping[str, BaseDistribution] | None = None
) -> pd.Series:
    """Return PED-ANOVA importances of the parameters, summing to 1, largest first.

    Args:
        trials: See the module's docstring; only completed ones count.
        space: Parameter to its Optuna distribution; guessed from the values when not given.

    Raises:
        UsageError: Fewer than four completed trials, one value for all of them, or no parameter
            that differs.

    Source:
        Watanabe et al., PED-ANOVA, IJCAI 2023, as in ``optuna.importance``.
    """
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator

    complete, names = _complete(trials), varied(trials)
    if not names or not _has_importance(trials):
        raise UsageError(
            f"importance needs {_FEWEST_FOR_IMPORTANCE} completed trials whose settings and values "
            f"differ; there are {len(complete)}",
            hint="raise the budget of the study",
        )
    found = {name: (space or {}).get(name) or _guessed(complete, name) for name in names}
    previous = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        for params, value in zip(complete["params"], complete["value"], strict=True):
            shared = {name: params[name] for name in names}
            trial = optuna.trial.create_trial(
                params=shared, distributions=found, value=float(value)
            )
            study.add_trial(trial)
        evaluated = optuna.importance.get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), params=names
        )
    finally:
        optuna.logging.set_verbosity(previous)
    values = pd.Series(evaluated, dtype=float)
    return values.sort_index().sort_values(ascending=False, kind="stable")


def _has_importance(trials: pd.DataFrame) -> bool:
    complete = _complete(trials)
    return len(complete) >= _FEWEST_FOR_IMPORTANCE and complete["value"].nunique() > 1


def _guessed(trials: pd.DataFrame, name: str) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    values = [params[name] for params in trials["params"]]
    if any(isinstance(value, bool | str) or value is None for value in values):
        return CategoricalDistribution(tuple(sorted(set(values), key=repr)))
    if all(isinstance(value, int) for value in values):
        return IntDistribution(min(values), max(values))
    return FloatDistribution(float(min(values)), float(max(values)))


@styled
def optimisation_history(
    trials: pd.DataFrame, *, objective: str = "objective", title: str = ""
) -> Figure:
    """Draw every completed trial's value, and the best so far; other trials as ticks below."""
    complete = _complete(trials)
    figure = style.new_figure(5.2, 3.0)
    (axes,) = style.grid(figure, 1, 1)
    axes.scatter(
        complete["number"],
        complete["value"],
        s=16,
        color=style.PALETTE[0],
        alpha=0.75,
        linewidths=0,
        label="trial",
        zorder=3,
    )
    if len(complete):
        best = complete["value"].cummax()
        axes.step(
            complete["number"],
            best,
            where="post",
            color=style.PALETTE[1],
            linewidth=1.6,
            label="best so far",
        )
        top = int(complete["value"].to_numpy().argmax())
        axes.plot(
            complete["number"].iloc[top],
            complete["value"].iloc[top],
            marker="*",
            color="black",
            markersize=9,
            linestyle="none",
            label=f"best: trial {complete['number'].iloc[top]}",
            zorder=4,
        )
    others = trials[trials["state"] != _COMPLETE]
    if len(others):
        axes.plot(
            others["number"],
            np.full(len(others), 0.02),
            marker="|",
            color=style.BASELINE_COLOUR,
            linestyle="none",
            transform=axes.get_xaxis_transform(),
            label="failed or pruned",
        )
    _integers(axes)
    axes.set(xlabel="trial", ylabel=objective)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    style.set_title(figure, _titled("Optimisation history", title))
    return figure


@styled
def importance_plot(
    values: pd.Series, *, symbols: Mapping[str, str] | None = None, title: str = ""
) -> Figure:
    """Draw parameter importances as bars.

    Args:
        values: From :func:`importances`.
        symbols: Parameter to its symbol in papers.
        title: Of which method and pair.
    """
    figure = style.new_figure(4.6, 1.1 + 0.3 * len(values))
    (axes,) = style.grid(figure, 1, 1)
    places = range(len(values))
    axes.barh(places, values.to_numpy(), color=style.PALETTE[0], height=0.65)
    for place, value in zip(places, values, strict=True):
        axes.text(value + 0.01, place, f"{value:.2f}", va="center", fontsize=7.5)
    axes.set_yticks(list(places), [_label(str(name), symbols) for name in values.index])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.08 * max(float(values.max()), 0.1))
    axes.set_xlabel("PED-ANOVA importance (share)")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    style.set_title(figure, _titled("Parameter importance", title))
    return figure


@styled
def slice_plot(
    trials: pd.DataFrame,
    *,
    params: Sequence[str] | None = None,
    symbols: Mapping[str, str] | None = None,
    log: Sequence[str] = (),
    objective: str = "objective",
    title: str = "",
) -> Figure:
    """Draw the value over each parameter, one panel each; later trials are darker.

    Args:
        trials: See the module's docstring.
        params: Which parameters; all that differ by default.
        symbols: Parameter to its symbol in papers.
        log: Parameters on a logarithmic axis.
        objective: Name of the value.
        title: Of which method and pair.

    Raises:
        UsageError: No completed trial has such a parameter.
    """
    from matplotlib.colors import Normalize

    complete = _complete(trials)
    names = _wanted(trials, params)
    columns = min(len(names), 3)
    bands = -(-len(names) // columns)
    figure = style.new_figure(max(2.3 * columns + 0.7, 3.6), 0.8 + 2.0 * bands)
    panels = style.grid(figure, len(names), columns, sharey=True)
    best = int(complete["value"].to_numpy().argmax())
    numbers = complete["number"].to_numpy(float)
    scale = Normalize(numbers.min(), max(numbers.max(), numbers.min() + 1))
    drawn = None
    for position, (axes, name) in enumerate(zip(panels, names, strict=True)):
        values, ticks = _axis(complete, name)
        drawn = axes.scatter(
            values,
            complete["value"],
            c=numbers,
            cmap="Blues",
            norm=scale,
            s=20,
            edgecolors="black",
            linewidths=0.4,
            zorder=3,
        )
        axes.plot(
            values[best],
            complete["value"].iloc[best],
            marker="*",
            color=style.PALETTE[1],
            markeredgecolor="black",
            markeredgewidth=0.4,
            markersize=11,
            linestyle="none",
            zorder=4,
        )
        _scale(axes, "x", ticks, name in log, values)
        axes.set_xlabel(_label(name, symbols))
        if position % columns == 0:
            axes.set_ylabel(style.wrapped(objective, 22, 2))
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, label="trial", shrink=0.85, pad=0.02)
        bar.outline.set_visible(False)
        _integers(bar.ax, "y")
    style.set_title(figure, _titled("Slices; star = best trial", title))
    return figure


@styled
def contour_plot(
    trials: pd.DataFrame,
    *,
    params: Sequence[str] | None = None,
    symbols: Mapping[str, str] | None = None,
    log: Sequence[str] = (),
    objective: str = "objective",
    title: str = "",
) -> Figure:
    """Draw the value over every two parameters, interpolated linearly between trials.

    Where trials do not surround a point nothing is drawn: there is no extrapolation.

    Args:
        trials: See the module's docstring.
        params: Which parameters; all that differ by default.
        symbols: Parameter to its symbol in papers.
        log: Parameters on a logarithmic axis.
        objective: Name of the value.
        title: Of which method and pair.

    Raises:
        UsageError: Fewer than two such parameters.
    """
    complete = _complete(trials)
    names = _wanted(trials, params)
    pairs = list(itertools.combinations(names, 2))
    if not pairs:
        raise UsageError("a contour plot needs two parameters that differ", hint="see slices")
    columns = min(len(pairs), 3)
    bands = -(-len(pairs) // columns)
    figure = style.new_figure(2.4 * columns + 0.9, 0.8 + 2.1 * bands)
    panels = style.grid(figure, len(pairs), columns)
    low, high = float(complete["value"].min()), float(complete["value"].max())
    levels = np.linspace(low, high if high > low else low + 1e-9, _LEVELS)
    drawn = None
    for axes, (first, second) in zip(panels, pairs, strict=True):
        drawn = _contour(axes, complete, first, second, log, levels)
        axes.set(xlabel=_label(first, symbols), ylabel=_label(second, symbols))
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, label=objective, shrink=0.85, pad=0.02)
        bar.outline.set_visible(False)
    style.set_title(figure, _titled("Contours; star = best trial", title))
    return figure


def _contour(
    axes: Axes,
    trials: pd.DataFrame,
    first: str,
    second: str,
    log: Sequence[str],
    levels: np.ndarray,
) -> Any:
    """Draw one panel and return what a colour bar can read: the points."""
    from matplotlib.colors import Normalize

    x, x_ticks = _axis(trials, first)
    y, y_ticks = _axis(trials, second)
    means = pd.DataFrame({"x": x, "y": y, "value": trials["value"].to_numpy(float)})
    means = means.groupby(["x", "y"])["value"].mean().reset_index()
    scaled = [
        _unit(means["x"], first in log and x_ticks is None),
        _unit(means["y"], second in log and y_ticks is None),
    ]
    colours = Normalize(levels[0], levels[-1])
    surface = _surface(scaled[0], scaled[1], means["value"].to_numpy(float))
    if surface is not None:
        grid_x = _back(surface[0], means["x"], first in log and x_ticks is None)
        grid_y = _back(surface[1], means["y"], second in log and y_ticks is None)
        axes.contourf(grid_x, grid_y, surface[2], levels, cmap=style.HEAT_MAP, norm=colours)
    drawn = axes.scatter(
        means["x"],
        means["y"],
        c=means["value"],
        cmap=style.HEAT_MAP,
        norm=colours,
        s=16,
        edgecolors="black",
        linewidths=0.5,
        zorder=3,
    )
    best = int(trials["value"].to_numpy().argmax())
    axes.plot(
        x[best],
        y[best],
        marker="*",
        color=style.PALETTE[1],
        markeredgecolor="black",
        markeredgewidth=0.4,
        markersize=11,
        linestyle="none",
        zorder=4,
    )
    _scale(axes, "x", x_ticks, first in log, x)
    _scale(axes, "y", y_ticks, second in log, y)
    axes.set_xlim(*_limits(x, first in log and x_ticks is None))
    axes.set_ylim(*_limits(y, second in log and y_ticks is None))
    axes.grid(visible=False)
    return drawn


def _limits(values: np.ndarray, log: bool) -> tuple[float, float]:
    """Return an axis' ends with room for the marks at its border."""
    low, high = float(values.min()), float(values.max())
    if log:
        room = (high / low) ** 0.05 if high > low else 1.1
        return low / room, high * room
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _surface(
    x: np.ndarray, y: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Interpolate on a grid of the unit square; ``None`` for points on a line."""
    from scipy.interpolate import griddata
    from scipy.spatial import QhullError

    lines = np.linspace(0, 1, 60)
    grid_x, grid_y = np.meshgrid(lines, lines)
    try:
        found = griddata(np.column_stack([x, y]), values, (grid_x, grid_y), method="linear")
    except (QhullError, ValueError):
        return None
    return lines, lines, np.ma.masked_invalid(found)


def _unit(values: pd.Series, log: bool) -> np.ndarray:
    numbers = values.to_numpy(float)
    numbers = np.log(numbers) if log else numbers
    span = numbers.max() - numbers.min()
    unit: np.ndarray = (numbers - numbers.min()) / span if span > 0 else np.zeros(len(numbers))
    return unit


def _back(unit: np.ndarray, values: pd.Series, log: bool) -> np.ndarray:
    numbers = values.to_numpy(float)
    numbers = np.log(numbers) if log else numbers
    found = numbers.min() + unit * (numbers.max() - numbers.min())
    back: np.ndarray = np.exp(found) if log else found
    return back


def _complete(trials: pd.DataFrame) -> pd.DataFrame:
    found = trials[(trials["state"] == _COMPLETE) & trials["value"].notna()]
    return found.sort_values("number").reset_index(drop=True)


def _wanted(trials: pd.DataFrame, params: Sequence[str] | None) -> list[str]:
    names = varied(trials)
    if params is not None:
        names = [name for name in params if name in names]
    if not names:
        raise UsageError(
            "no completed trial has parameters that differ", hint="sfuda-bench study status NAME"
        )
    return names


def _axis(trials: pd.DataFrame, name: str) -> tuple[np.ndarray, list[str] | None]:
    """Return a parameter's positions, and the tick texts of one that is no number."""
    values = [params[name] for params in trials["params"]]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return np.array(values, dtype=float), None
    texts = sorted({str(value) for value in values})
    return np.array([texts.index(str(value)) for value in values], dtype=float), texts


def _scale(axes: Axes, which: str, ticks: list[str] | None, log: bool, values: np.ndarray) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    if ticks is not None:
        axis.set_major_locator(FixedLocator(range(len(ticks))))
        axis.set_major_formatter(FuncFormatter(lambda at, _: ticks[min(int(at), len(ticks) - 1)]))
    elif log:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log", base=2)
        axis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))
        axis.set_minor_locator(NullLocator())
    elif np.equal(np.mod(values, 1), 0).all():
        _integers(axes, which)


def _integers(axes: Axes, which: str = "x") -> None:
    from matplotlib.ticker import MaxNLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _label(name: str, symbols: Mapping[str, str] | None) -> str:
    symbol = (symbols or {}).get(name, "")
    shown = _SYMBOLS.get(symbol, symbol)
    return f"{name} ({shown})" if shown and shown != name else name


def _titled(what: str, title: str) -> str:
    return f"{what}: {title}" if title else what

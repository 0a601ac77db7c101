"""Dice over the severity of each knob, one line per method, a band over its runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sfuda_bench.report import style
from sfuda_bench.report.figures_data import FigurePair
from sfuda_bench.report.severity import Curve, Point, SeverityScores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sfuda_bench.report.figures_data import Line

CAPTION = (
    "A panel is one knob of the synthetic world, a line one method: mean over test images and "
    "runs; the band spans the lowest and the highest run (seeds and source seeds). At severity 0 "
    "the target is the base domain itself. Above the line of the unadapted source model a method "
    "repairs, below it harms. Synthetic images, not of patients."
)
TITLES = {"avg": "mean of cup and disc", "cup": "optic cup", "disc": "optic disc"}
_COLUMNS = 4


def families(curves: Sequence[Curve]) -> list[tuple[str, str]]:
    """Return source and base of the curves, each once, in their order."""
    return list(dict.fromkeys((curve.source, curve.base) for curve in curves))


def severity_curves(
    scores: SeverityScores, lines: Sequence[Line], family: tuple[str, str], part: str
) -> Figure | None:
    """Draw the curves of one source and base domain.

    Args:
        scores: Of the report.
        lines: How each row of ``scores`` looks, in the same order.
        family: Source and base.
        part: ``cup``, ``disc`` or ``avg``.

    Returns:
        ``None`` if no row is complete at two severities of any knob.
    """
    curves = [curve for curve in scores.curves if (curve.source, curve.base) == family]
    found = [(curve, [scores.points(curve, row) for row in scores.rows]) for curve in curves]
    found = [(c, rows) for c, rows in found if any(len(points) > 1 for points in rows)]
    if not found:
        return None
    columns = min(len(found), _COLUMNS)
    bands = -(-len(found) // columns)
    figure = style.new_figure(max(2.1 * columns + 2.0, 5.0), 0.8 + 2.0 * bands)
    panels = style.grid(figure, len(found), columns, sharey=True)
    for place, (axes, (curve, rows)) in enumerate(zip(panels, found, strict=True)):
        for order, (line, points) in enumerate(zip(lines, rows, strict=True)):
            # Thinner from line to line: of two that coincide both are seen.
            _draw(axes, line, points, part, width=max(2.4 - 0.3 * order, 1.0))
        axes.set_title(style.wrapped(curve.label, 30, 2))
        axes.set_xlabel("severity")
        if place % columns == 0:
            axes.set_ylabel("Dice [%]")
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right center")
    where = FigurePair(*family, synthetic=True).title
    style.set_title(figure, f"Dice over severity, {TITLES[part]}, {where}")
    return figure


def _draw(axes: Axes, line: Line, points: Sequence[Point], part: str, width: float) -> None:
    if not points:
        return
    severity = [point.severity for point in points]
    runs = [point.means[part] for point in points]
    if any(len(values) > 1 for values in runs):
        low, high = [min(values) for values in runs], [max(values) for values in runs]
        axes.fill_between(severity, low, high, color=line.colour, alpha=0.15, linewidth=0)
    axes.plot(
        severity,
        [point.mean(part) for point in points],
        color=line.colour,
        linestyle=line.dash,
        marker=".",
        markersize=4,
        linewidth=width,
        label=style.wrapped(line.label, 26, 2),
    )

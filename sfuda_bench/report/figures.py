"""All figures of a store: drawn from records, saved as PDF for papers and PNG for screens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sfuda_bench.report import style
from sfuda_bench.report.figures_curves import adaptation_curves, threshold_curves
from sfuda_bench.report.figures_data import FigureData, FigurePair, load
from sfuda_bench.report.figures_ranking import critical_difference_figure, rank_stability
from sfuda_bench.report.figures_scores import heat_map, image_scores, slopes
from sfuda_bench.report.figures_severity import CAPTION as SEVERITY_CAPTION
from sfuda_bench.report.figures_severity import TITLES as SEVERITY_TITLES
from sfuda_bench.report.figures_severity import families, severity_curves
from sfuda_bench.report.figures_vcdr import bland_altman
from sfuda_bench.report.scope import LABEL_CENTER_SENTENCE, read_scope
from sfuda_bench.report.severity import SeverityScores, on_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Note = Callable[[str], None]
"""Told the name of every figure before it is drawn."""


@dataclass(frozen=True)
class SavedFigure:
    """One figure on disk.

    Attributes:
        kind: Heading under which it is shown.
        title: What it shows, of which pair.
        caption: How to read it.
        paths: Its files: PDF, PNG.
    """

    kind: str
    title: str
    caption: str
    paths: tuple[Path, ...]

    @property
    def png(self) -> Path:
        """The file for screens."""
        return next(path for path in self.paths if path.suffix == ".png")


@dataclass(frozen=True)
class _Kind:
    """One kind of figure per pair: file name, heading, caption and what draws it."""

    name: str
    heading: str
    caption: str
    draw: Callable[[FigureData, int], Figure | None]
    scored: bool = True


_MEANS = "Each image's score is first averaged over seeds and source seeds."
_KINDS = (
    _Kind(
        "images",
        "Dice per image",
        f"A point is one test image, a box its quartiles. {_MEANS} A point keeps its place within "
        "the row over methods. Dashed: median of the unadapted source model.",
        image_scores,
    ),
    _Kind(
        "slopes",
        "Change per image",
        f"A line is one test image, from the source model to the adapted model. {_MEANS} "
        "Blue: better or equal, vermilion: worse, black: mean.",
        slopes,
    ),
    _Kind(
        "ranks",
        "Stability of ranks",
        f"Area of a disc: share of 1,000 bootstrap samples of the test images in which the method "
        f"has that rank. {_MEANS} Bar: rank on the images themselves; line: 95 % interval. Rows "
        "with target labels are not ranked.",
        rank_stability,
    ),
    _Kind(
        "vcdr",
        "Vertical cup-to-disc ratio",
        f"A point is one test image. {_MEANS} Solid: bias; dashed: 95 % limits of agreement "
        "(bias ± 1.96 sample standard deviations).",
        bland_altman,
    ),
    _Kind(
        "thresholds",
        "Dice over the threshold",
        "Mean over runs and test images. Triangle: a method's best threshold, which needs the "
        "target labels. Dotted: the thresholds of the scoring profiles.",
        threshold_curves,
        scored=False,
    ),
    _Kind(
        "curves",
        "Adaptation curves",
        "Thin: single runs, thick: their mean. Losses of different methods share no scale. On "
        "Dice: square = last epoch, shaded = epochs of average-last-k, star = best epoch on the "
        "target test labels (oracle). Made worse: share of test images whose Dice is lower than "
        "before adaptation by more than 1 and 5 points.",
        adaptation_curves,
        scored=False,
    ),
)
_CRITICAL_DIFFERENCE_CAPTION = (
    "Mean rank of each method over pairs; a thick bar joins methods whose mean ranks differ by "
    "less than Nemenyi's critical difference. Pairs share source and target images, so this is a "
    "picture and no evidence by itself."
)
_HEAT_MAP_CAPTION = (
    "Mean over test images. Bold: best of a column among the rows without target labels. "
    "A dash: a run is missing, failed or unscored, or an average that would need it."
)


def write_figures(
    out: Path, selection: str = "last", profile: str | None = None, note: Note | None = None
) -> list[Path]:
    """Draw every figure of a store into ``DIR/figures``; equal scores give equal bytes.

    Args:
        out: The store.
        selection: Which epoch counts; any but ``last`` is named in the file name.
        profile: Name of the profile; ``None``: ``standard``, or else the first that was used.
        note: Told the name of each figure before it is drawn.

    Returns:
        Files written, a PDF and a PNG per figure.

    Raises:
        UsageError: There is no store, or nothing in it is scored that way.
        StoreSchemaError: It has another schema or is damaged.
    """
    saved = save_figures(out, selection, profile, note)
    return [path for figure in saved for path in figure.paths]


def save_figures(
    out: Path, selection: str = "last", profile: str | None = None, note: Note | None = None
) -> list[SavedFigure]:
    """Draw and save every figure; see :func:`write_figures`, whose arguments these are."""
    data = load(out, selection, profile)
    saved = []
    severity = SeverityScores(read_scope(out, selection), data.profile)
    with style.figure_style():
        for name, kind, title, caption, draw in _drawings(data, severity):
            if note is not None:
                note(name)
            figure = draw()
            if figure is None:
                continue
            style.freeze_layout(figure)
            paths = tuple(style.save(figure, out / "figures", name))
            saved.append(SavedFigure(kind, title, caption, paths))
    return saved


def _drawings(
    data: FigureData, severity: SeverityScores
) -> Iterator[tuple[str, str, str, str, Callable[[], Figure | None]]]:
    """Give name, heading, title, caption and drawing of every figure, in the order to show."""
    chosen = "" if data.selection == "last" else f"-{style.slug(data.selection)}"
    scored = f"{style.slug(data.profile)}{chosen}"
    oracle = " † uses target labels (oracle)." if any(line.oracle for line in data.lines) else ""
    how = f" Profile: {data.profile}, selection: {data.selection}.{oracle}"
    if data.pairs and data.lines:
        over_pairs = how
        if any(pair.positions_from_labels for pair in data.pairs):
            over_pairs += f" {LABEL_CENTER_SENTENCE}"
        yield (
            f"heatmap-{scored}",
            "Overview",
            "Mean Dice per method and pair",
            _HEAT_MAP_CAPTION + over_pairs,
            lambda: heat_map(data),
        )
        yield (
            f"critical-difference-{scored}",
            "Overview",
            "Mean ranks over pairs",
            _CRITICAL_DIFFERENCE_CAPTION + over_pairs,
            lambda: critical_difference_figure(data),
        )
    for source, base in families(severity.curves):
        # The targets are drawn; only their source can be cut out by labels.
        marked = any(p.positions_from_labels for p in data.pairs if p.source == source)
        family = FigurePair(source, base, synthetic=True, positions_from_labels=marked)
        for part, words in SEVERITY_TITLES.items():
            yield (
                f"severity-{part}-{scored}-{style.slug(f'{source}-{base}')}",
                "Dice over severity",
                f"{family.title}, {words}",
                SEVERITY_CAPTION + how,
                partial(severity_curves, severity, data.lines, (source, base), part),
            )
    shown = on_curves((pair.source, pair.target) for pair in data.pairs)
    for kind in _KINDS:
        for position, pair in enumerate(data.pairs):
            if (pair.source, pair.target) in shown:
                continue  # dozens of points of curves, each with six figures, would hide the rest
            yield (
                f"{kind.name}-{scored}-{pair.slug}",
                kind.heading,
                pair.title,
                kind.caption + (how if kind.scored else oracle),
                _bound(kind, data, position),
            )


def _bound(kind: _Kind, data: FigureData, position: int) -> Callable[[], Figure | None]:
    return lambda: kind.draw(data, position)

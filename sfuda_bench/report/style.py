"""How every figure looks, and how it is saved: the same numbers give the same bytes."""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.running.store import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6A3D9A")
"""Okabe and Ito's colours, apart under the common forms of colour blindness; yellow and black are
left out because lines in yellow fade on paper and black stands for the oracle rows."""
BASELINE_COLOUR = "#7F7F7F"
ORACLE_COLOUR = "#000000"
BETTER, WORSE = PALETTE[0], PALETTE[1]
MISSING_COLOUR = "#EEEEEE"
HEAT_MAP = "YlGnBu"
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1, 1.5)))
"""A second cue beside the colour: it changes whenever the palette starts again."""
FORMATS = ("pdf", "png")
_DPI = 150
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so equal on every machine
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "figure.dpi": _DPI,
    "savefig.dpi": _DPI,
    "pdf.fonttype": 42,  # text stays text; many publishers refuse the default type 3
    "svg.hashsalt": "sfuda-bench",
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "axes.formatter.use_mathtext": False,
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the report's style whatever the user's matplotlibrc says."""
    from matplotlib import style

    with style.context(["default", _STYLE]):
        yield


def new_figure(width_in: float, height_in: float) -> Figure:
    """Return an empty figure that belongs to no window and to no global list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def freeze_layout(figure: Figure) -> None:
    """Place all parts once, so that each file format need not do it again."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def encode(figure: Figure, extension: str) -> bytes:
    """Return a figure as the bytes of a file, without date or library version.

    Args:
        figure: Drawn inside :func:`figure_style`, which must still be active.
        extension: ``pdf`` or ``png``.
    """
    stream = io.BytesIO()
    figure.savefig(stream, format=extension, metadata=_METADATA[extension])
    return stream.getvalue()


def save(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Write a figure in every one of :data:`FORMATS`, inside :func:`figure_style`.

    Returns:
        The files, in the order of the formats.
    """
    paths = [folder / f"{stem}.{extension}" for extension in FORMATS]
    for path, extension in zip(paths, FORMATS, strict=True):
        write_bytes(path, encode(figure, extension))
    return paths


def set_title(figure: Figure, title: str) -> None:
    """Set the figure's title, left-aligned and wrapped to its width."""
    letters = max(int(figure.get_figwidth() * 12.5), 30)
    wrapped = "\n".join(textwrap.wrap(title, letters))
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=9.5, fontweight="bold")


def wrapped(label: str, width: int = 24, lines: int = 3) -> str:
    """Return a label in short lines, cut with an ellipsis when it needs too many."""
    return "\n".join(
        textwrap.wrap(label, width, max_lines=lines, placeholder=" …", break_long_words=True)
    )


def slug(text: str) -> str:
    """Return a file name for any text: equal if it is one already, else with a short digest.

    Two texts never share a name, and none leaves its folder.
    """
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-.")
    if plain == text and 0 < len(text) <= 120:
        return text
    return f"{plain[:100] or 'unnamed'}-{short_digest(text)}"


def short_digest(text: str) -> str:
    """Return eight hex digits that tell two texts of one name apart."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def spread(number: int, width: float) -> list[float]:
    """Return offsets that keep points apart, the same for the same position every time.

    Multiples of the golden ratio fill any interval evenly, so no random numbers are needed.

    Args:
        number: How many points.
        width: The offsets lie between ``-width / 2`` and ``width / 2``.
    """
    return [((index * 0.6180339887) % 1.0 - 0.5) * width for index in range(number)]


def grid(
    figure: Figure, panels: int, columns: int, *, sharex: bool = False, sharey: bool = False
) -> list[Axes]:
    """Return one axes per panel, row by row; places of the last row that stay empty are removed."""
    columns = max(min(columns, panels), 1)
    rows = -(-panels // columns)
    axes = figure.subplots(rows, columns, sharex=sharex, sharey=sharey, squeeze=False).flat
    used: Sequence[Axes] = list(axes)
    for unused in used[panels:]:
        unused.remove()
    return list(used[:panels])

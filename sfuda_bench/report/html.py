"""One HTML file that holds the whole report: it opens offline, on a phone and in print."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sfuda_bench.report.comparison import Comparison, Scores
from sfuda_bench.report.figures import Note, SavedFigure, save_figures
from sfuda_bench.report.html_data import ReportData, report_data
from sfuda_bench.report.plain import PlainTable
from sfuda_bench.report.style import slug
from sfuda_bench.running.store import write_bytes

_TEMPLATES = Path(__file__).parent / "templates"


def write_html(
    out: Path,
    selection: str = "last",
    note: Note | None = None,
    compared: Mapping[str, tuple[Scores, Comparison]] | None = None,
    rankings: Iterable[PlainTable] | None = None,
) -> Path:
    """Write ``DIR/report.html`` and the figures in it; equal records give equal bytes.

    The file asks the network for nothing: style, script and figures are inside, and its own
    security policy forbids every request and every script but its own.

    Args:
        out: The store.
        selection: Which epoch counts; any but ``last`` is named in the file name.
        note: Told the name of each figure before it is drawn.
        compared: From ``comparison.compare_store``, if it was called before.
        rankings: From ``ranking_table.ranking_tables``, likewise.

    Returns:
        The file.

    Raises:
        UsageError: There is no store, or nothing comparable in it.
        StoreSchemaError: It has another schema or is damaged.
    """
    data = report_data(out, selection, compared, rankings)
    scored = any(detail["state"] == "finished" for detail in data.cells.values())
    figures = save_figures(out, selection, note=note) if scored else []
    chosen = "" if selection == "last" else f"-{slug(selection)}"
    path = out / f"report{chosen}.html"
    write_bytes(path, render_html(data, figures, selection).encode())
    return path


def render_html(data: ReportData, figures: Iterable[SavedFigure], selection: str = "last") -> str:
    """Return the page.

    Args:
        data: Tables and cells.
        figures: Saved figures, whose PNG files are embedded.
        selection: Named in the page's head.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = (_TEMPLATES / "report.css").read_text("utf-8")
    script = (_TEMPLATES / "report.js").read_text("utf-8")
    return environment.get_template("report.html").render(
        data=data,
        selection=selection,
        synthetic=any(r.block.synthetic for table in data.tables for r in table.rows),
        label_centred=any(
            r.block.positions_from_labels for table in data.tables for r in table.rows
        ),
        groups=_figure_groups(figures),
        # Both are files of ours and hold no stored text.
        css=Markup(css),
        script=Markup(script),
        policy=_policy(css, script),
        cells=Markup(_script_json(data.cells)),
    )


def _policy(css: str, script: str) -> str:
    """Return the content security policy: our style, our script, embedded images, no more."""
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src '{_source_hash(css)}'; script-src '{_source_hash(script)}'"
    )


def _source_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _script_json(value: Mapping[str, Any]) -> str:
    r"""Return JSON that may stand inside a script element: ``<``, ``>`` and ``&`` are escaped."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@dataclass(frozen=True)
class _EmbeddedFigure:
    title: str
    caption: str
    name: str
    source: str
    width_px: int
    height_px: int


def _figure_groups(figures: Iterable[SavedFigure]) -> list[tuple[str, list[_EmbeddedFigure]]]:
    """Return headings and their figures; a caption that does not change is given once."""
    groups = []
    for kind, found in groupby(figures, key=lambda figure: figure.kind):
        embedded, caption = [], ""
        for figure in found:
            embedded.append(_embed(figure, "" if figure.caption == caption else figure.caption))
            caption = figure.caption
        groups.append((kind, embedded))
    return groups


def _embed(figure: SavedFigure, caption: str) -> _EmbeddedFigure:
    data = figure.png.read_bytes()
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    # The size stands in the header chunk; it keeps the page from jumping while it loads.
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    return _EmbeddedFigure(figure.title, caption, figure.png.stem, source, width, height)

"""Running an ablation: all cells through the ordinary store, then effects, funnel, pictures."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sfuda_bench.errors import UsageError
from sfuda_bench.frames import read_parquet
from sfuda_bench.report.plain import PlainTable, to_markdown
from sfuda_bench.report.scope import LABEL_CENTER_SENTENCE
from sfuda_bench.report.severity import find_curves
from sfuda_bench.running.request import RunRequest
from sfuda_bench.running.store import read_json
from sfuda_bench.search import ablation_tables as tables
from sfuda_bench.search.ablation_file import Ablation, Row, parse
from sfuda_bench.search.cells import Flags, base_request, cell_dice, requests_for
from sfuda_bench.search.effects import Share, effects, inert, means, shares
from sfuda_bench.search.pictures import save
from sfuda_bench.search.pictures_effects import (
    effects_plot,
    funnel_plot,
    interaction_plot,
    shares_plot,
)
from sfuda_bench.search.severity import write_severity
from sfuda_bench.search.toml_file import find_study, read_study_tables
from sfuda_bench.selectors import parse_methods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sfuda_bench.running.engine import ProgressSink
    from sfuda_bench.running.plan import CellPlan, Plan
    from sfuda_bench.running.pool import WorkerPool

FUNNEL = "funnel.parquet"
_PLACES = ("source", "target", "source_seed", "seed")


@dataclass(frozen=True)
class Report:
    """What an ablation found.

    Attributes:
        name: Of the study.
        folder: Where its tables and pictures lie.
        cells: One line per stored cell: ``row``, ``method``, ``source``, ``target``,
            ``source_seed``, ``seed``, ``key``, ``digest``, ``synthetic``, ``from_labels``,
            ``folder``.
        asked: Number of cells asked for.
        frames: Numbers by table name.
        tables: Readable tables, the first one is the answer.
        paths: Files written.
        warnings: What planning warned of.
    """

    name: str
    folder: Path
    cells: pd.DataFrame
    asked: int
    frames: Mapping[str, pd.DataFrame]
    tables: Sequence[PlainTable]
    paths: Sequence[Path]
    warnings: Sequence[str] = ()

    @property
    def failed(self) -> int:
        """Number of cells that are not stored."""
        return self.asked - len(self.cells)

    def text(self) -> str:
        """Return the tables of the first profile as Markdown."""
        return "\n".join(to_markdown(table) for table in self.tables)

    def to_json(self) -> dict[str, Any]:
        """Return one JSON-able document with every number; NaN becomes null."""
        frames = {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in self.frames.items()
        }
        return {
            "study": self.name,
            "folder": str(self.folder),
            "cells": self.asked,
            "failed": self.failed,
            "warnings": list(self.warnings),
            "files": [str(path) for path in self.paths],
            **frames,
        }


def read_ablation(given: str | Path) -> Ablation:
    """Read and check an ablation file.

    Args:
        given: A path, or the name of a shipped study.

    Raises:
        UsageError: No such study, or something in it that cannot be used.
    """
    name, found, digest = read_study_tables(given)
    return parse(name, found, digest)


def requests(ablation: Ablation, flags: Flags) -> list[RunRequest]:
    """Return the request of every row: the preset, the command line, then what the row sets.

    Args:
        ablation: The study.
        flags: What the command line adds; a row that names a preset keeps it.

    Raises:
        UsageError: An unknown method, setting or value, or ``--set`` of what the study moves.
    """
    found = [_request(ablation, row, flags) for row in ablation.rows]
    if ablation.method:  # a misspelt one must not hide behind rows that name their own
        parse_methods(ablation.method)
    moved = {key for row, request in zip(ablation.rows, found, strict=True)
             for key in _moved(row, request.methods[0])}  # fmt: skip
    for text in flags.overrides:
        key = text.partition("=")[0].strip().removeprefix("methods.")
        if key in moved:
            raise UsageError(
                f"--set {text}: study '{ablation.name}' moves '{key}' itself",
                hint="leave it out, or change the study file",
            )
    return found


def _request(ablation: Ablation, row: Row, flags: Flags) -> RunRequest:
    where = f"study {ablation.name}, row '{row.name}'"
    own = {key: value for key, value in row.values.items() if "." not in key}
    others = {key: value for key, value in row.values.items() if "." in key}
    texts = [*ablation.run.get("set", ()), *(f"{k}={_text(v)}" for k, v in others.items())]
    run: dict[str, Any] = {**ablation.run, "set": texts}
    if row.preset is not None:
        run["preset"] = row.preset
        flags = dataclasses.replace(flags, preset=None)
    base = base_request(where, {"run": run}, flags, methods=[row.method], record=ablation.record)
    return requests_for(base, {base.methods[0]: own}, origin=where)


def _text(value: Any) -> str:
    """Return a TOML value as ``--set`` takes it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _moved(row: Row, method: str) -> set[str]:
    return {key if "." in key else f"{method}.{key}" for key in row.values}


def plan_ablation(ablation: Ablation, flags: Flags) -> tuple[Plan, list[Plan]]:
    """Plan every row, and join the plans: cells that rows share are in it once.

    Raises:
        UsageError: A switch whose two positions are one configuration in every pair.
        DataError: Missing images.
    """
    from sfuda_bench.running.plan import build_plan, merge_plans

    plans = [build_plan(request) for request in requests(ablation, flags)]
    by_row = dict(zip((row.name for row in ablation.rows), plans, strict=True))
    for contrast in ablation.contrasts:
        keys = [[{c.key for c in by_row[row].cells} for row in pair] for pair in contrast.pairs]
        if contrast.kind == "effect" and all(first == second for first, second in keys):
            raise UsageError(
                f"study '{ablation.name}': switch '{contrast.name}' has equal settings at both "
                f"positions under preset '{plans[0].request.settings.preset}'",
                hint="write both values out under 'on' and 'off'",
            )
    return merge_plans(plans), plans


def planned_cells(given: str | Path, flags: Flags) -> list[dict[str, str]]:
    """Return the row, name, key and state of every cell that an ablation asks for."""
    ablation = read_ablation(given)
    _, plans = plan_ablation(ablation, flags)
    return [
        {"row": row.name, "cell": cell.name, "key": cell.key, "state": cell.state}
        for row, plan in zip(ablation.rows, plans, strict=True)
        for cell in plan.cells
    ]


def run_ablation(
    given: str | Path, flags: Flags, progress: ProgressSink, pool: WorkerPool | None = None
) -> Report:
    """Compute what an ablation lacks, then write its tables and pictures.

    A failing cell stops nothing: what needs it is undefined and says so.

    Args:
        given: A path, or the name of a shipped study.
        flags: What the command line adds.
        progress: Where progress goes.
        pool: Workers that live on between calls.

    Raises:
        UsageError: A study or setting that cannot be used.
        DataError: Images or masks are missing.
    """
    from sfuda_bench.running.engine import execute

    ablation = read_ablation(given)
    merged, plans = plan_ablation(ablation, flags)
    for warning in merged.warnings:
        progress.note(f"warning: {warning}")
    execute(merged, progress, pool, remember=False)
    folder = flags.out / "studies" / ablation.name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(find_study(given), folder / "study.toml")
    return report(ablation, plans, folder)


def report(ablation: Ablation, plans: Sequence[Plan], folder: Path) -> Report:
    """Read the stored cells of an ablation and write its tables and pictures.

    Args:
        ablation: The study.
        plans: The plan of each row, in their order.
        folder: Where files go.
    """
    cells = _stored(ablation, [plan.cells for plan in plans])
    profiles = plans[0].request.profiles
    writer = _Writer(ablation, cells, folder)
    for position, profile in enumerate(profiles):
        writer.scores(profile, drawn=position == 0)
    writer.identity()
    writer.funnel()
    writer.severity(plans, profiles)
    return Report(
        name=ablation.name,
        folder=folder,
        cells=cells,
        asked=sum(len(plan.cells) for plan in plans),
        frames=writer.frames,
        tables=writer.tables,
        paths=writer.paths,
        warnings=sorted({warning for plan in plans for warning in plan.warnings}),
    )


def _stored(ablation: Ablation, cells: Sequence[Sequence[CellPlan]]) -> pd.DataFrame:
    """Return one line per stored cell; a row without any has none."""
    lines = []
    for row, planned in zip(ablation.rows, cells, strict=True):
        for cell in planned:
            if not (cell.folder / "cell.json").is_file():
                continue
            record = read_json(cell.folder / "cell.json")
            lines.append(
                {
                    "row": row.name,
                    "method": cell.method,
                    "source": cell.pair.source,
                    "target": cell.pair.target,
                    "source_seed": cell.source_seed,
                    "seed": cell.seed,
                    "key": cell.key,
                    "digest": str(record["adapted_model_sha256"]),
                    "synthetic": bool(record["synthetic"]),
                    "from_labels": cell.positions_from_labels,
                    "folder": str(cell.folder),
                }
            )
    columns = ["row", "method", *_PLACES, "key", "digest", "synthetic", "from_labels", "folder"]
    return pd.DataFrame(lines, columns=columns)


def read_scores(cells: pd.DataFrame, profile: str) -> pd.DataFrame:
    """Return the per-image Dice (percent) of cells, as the functions of ``effects`` take it.

    Args:
        cells: As in :class:`Report`; those that are not scored are left out.
        profile: Name of the scoring profile.
    """
    parts = []
    for cell in cells.to_dict("records"):
        folder = Path(cell["folder"])
        if not (folder / f"cases-{profile}.parquet").is_file():
            continue
        dice = cell_dice(folder, profile)
        identity = {key: cell[key] for key in ("row", *_PLACES)}
        parts.append(dice.assign(**identity, dice=100 * dice["dice"]))
    columns = ["row", *_PLACES, "image", "structure", "dice"]
    return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def read_funnel(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the recorded pseudo-label stages of cells; a method without any has none."""
    parts = []
    for cell in cells.to_dict("records"):
        path = Path(cell["folder"]) / FUNNEL
        if path.is_file():
            identity = {key: cell[key] for key in ("row", *_PLACES)}
            parts.append(read_parquet(path).assign(**identity))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


class _Writer:
    """Writes the files of one ablation and remembers what it wrote."""

    def __init__(self, ablation: Ablation, cells: pd.DataFrame, folder: Path) -> None:
        self.ablation = ablation
        self.cells = cells
        self.folder = folder
        self.frames: dict[str, pd.DataFrame] = {}
        self.tables: list[PlainTable] = []
        self.paths: list[Path] = []
        marked = cells[cells["synthetic"]]
        pairs = zip(marked["source"], marked["target"], strict=True)
        self.synthetic = {(str(source), str(target)) for source, target in pairs}
        self.verdicts = inert(cells, ablation.contrasts)

    @property
    def marks(self) -> tuple[str, ...]:
        found = [tables.SYNTHETIC_SENTENCE] if self.synthetic else []
        if self.cells.get("from_labels", pd.Series(dtype=bool)).any():
            found.append(LABEL_CENTER_SENTENCE)
        return tuple(found)

    def scores(self, profile: str, *, drawn: bool) -> None:
        """Write what follows from the scores of one profile; pictures for the first only."""
        scores = read_scores(self.cells, profile)
        if scores.empty:
            return
        rows = [row.name for row in self.ablation.rows]
        how = (f"Dice points, scoring profile {profile}.", tables.INTERVALS, tables.OVER_PAIRS)
        caption = (*how, *self._about(), *self.marks)
        found = effects(scores, self.ablation.contrasts)
        self._effect_tables(found, profile, caption, shown=drawn)
        parts = shares(scores, self.ablation.shares)
        if len(parts):
            about = (*_SHARES, *map(_ends, self.ablation.shares), *how[:2], *self.marks)
            table = tables.shares_table(parts, f"shares-{profile}", about, self.synthetic)
            self._save(table, parts, first=True, shown=drawn)
        averages = means(scores, rows)
        methods = dict(zip(self.cells["row"], self.cells["method"], strict=True))
        methods = {row.name: methods.get(row.name, row.method) for row in self.ablation.rows}
        title = "Mean Dice of every row."
        table = tables.rows_table(
            averages, methods, f"rows-{profile}", title, caption, self.synthetic
        )
        self._save(table, averages, shown=drawn)
        if drawn:
            self._draw(found, averages, parts, profile)

    def _about(self) -> tuple[str, ...]:
        ablation = self.ablation
        if ablation.kind == "ablation":
            design = ablation.design.replace("_", " ")
            return (f"Design: {design}. An effect is the Dice with the part minus without it.",)
        return (f"Compared with: {ablation.reference}.",)

    def _effect_tables(
        self, found: pd.DataFrame, profile: str, caption: Sequence[str], *, shown: bool
    ) -> None:
        kinds = {
            "effects": (("effect", "step", "versus"), "What each part is worth."),
            "interactions": (("interaction",), "How much one part's effect depends on another."),
        }
        for name, (wanted, title) in kinds.items():
            frame = found[found["kind"].isin(wanted)]
            if frame.empty:
                continue
            table = tables.effects_table(
                frame,
                self.verdicts,
                wanted,
                f"{name}-{profile}",
                f"{title} {self.ablation.question}".strip(),
                caption,
                self.synthetic,
            )
            self._save(table, frame, shown=shown)

    def identity(self) -> None:
        """Write which parts changed nothing at all."""
        if len(self.verdicts):
            self._save(tables.inert_table(self.verdicts, "inert"), self.verdicts)

    def funnel(self) -> None:
        """Write the pseudo-label funnel, if any cell recorded its labels."""
        found = read_funnel(self.cells)
        if found.empty:
            return
        frame = tables.funnel_means(found)
        table = tables.funnel_table(frame, "funnel", self.marks, self.synthetic)
        self._save(table, frame, shown=False)
        self._picture("funnel", funnel_plot(frame, synthetic=bool(self.synthetic)))

    def severity(self, plans: Sequence[Plan], profiles: Sequence[str]) -> None:
        """Write curves over severity, if the pairs turn knobs of a generated domain."""
        if not find_curves(zip(self.cells["source"], self.cells["target"], strict=True)):
            return
        names = [row.name for row in self.ablation.rows]
        tables_found, paths = write_severity(names, plans, self.folder, profiles)
        self.paths += paths
        self.tables += tables_found[:1]

    def _draw(
        self, found: pd.DataFrame, averages: pd.DataFrame, parts: pd.DataFrame, profile: str
    ) -> None:
        synthetic = bool(self.synthetic)
        drawn = {
            "effects": effects_plot(found, synthetic=synthetic),
            "shares": shares_plot(parts, synthetic=synthetic) if len(parts) else None,
        }
        if (found["kind"] == "interaction").any():
            levels = {row.name: row.levels for row in self.ablation.rows}
            titles = {switch.name: switch.title for switch in self.ablation.switches}
            drawn["interactions"] = interaction_plot(averages, levels, titles, synthetic=synthetic)
        for name, figure in drawn.items():
            if figure is not None:
                self._picture(f"{name}-{profile}", figure)

    def _save(
        self, table: PlainTable, numbers: pd.DataFrame, *, first: bool = False, shown: bool = True
    ) -> None:
        self.paths += tables.save_table(self.folder, table, numbers)
        self.frames[table.name] = numbers
        if shown:
            self.tables.insert(0 if first else len(self.tables), table)

    def _picture(self, name: str, figure: Figure) -> None:
        self.paths += save(figure, self.folder, name)


def _ends(share: Share) -> str:
    """Return which rows a share compares."""
    without = f", without it '{share.without}'" if share.without else ""
    return (
        f"{share.name}: baseline '{share.baseline}', whole '{share.full}', "
        f"control '{share.control}'{without}."
    )


_SHARES = (
    "Gain: the whole method minus the baseline. Of it, control: the control row minus the "
    "baseline. Beyond the control: the whole method minus the control row. Gain without it: the "
    "row without the part minus the baseline.",
    "Share of the control: its gain over the whole gain; none is given for a gain below 0.5 "
    "points or one whose interval includes zero.",
)

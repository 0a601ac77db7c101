"""What each method costs: time, memory, values changed, and what it needs from the source."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfuda_bench.report.plain import PlainColumn, PlainTable, Value
from sfuda_bench.report.records import CellRecord
from sfuda_bench.report.scope import Scope
from sfuda_bench.report.summary import statistic
from sfuda_bench.report.weights import changed_values
from sfuda_bench.running.store import read_json

_SHORT = 16  # hex digits of a key in a path
_MIB = 2**20

COLUMNS = (
    PlainColumn("pair", "pair"),
    PlainColumn("method", "method"),
    PlainColumn("strictness", "strictness"),
    PlainColumn("runs", "runs"),
    PlainColumn("epochs", "epochs"),
    PlainColumn("seconds", "cell [s]", 1),
    PlainColumn("artefacts", "artefacts"),
    PlainColumn("artefact_seconds", "artefacts [s]", 1),
    PlainColumn("charged_seconds", "charged [s]", 1),
    PlainColumn("source_training_seconds", "source training [s]", 1),
    PlainColumn("peak_gpu_mib", "peak GPU [MiB]", 0),
    PlainColumn("forward_images", "forward [images]", 0),
    PlainColumn("backward_images", "backward [images]", 0),
    PlainColumn("parameters_changed", "parameters changed"),
    PlainColumn("statistics_changed", "BN statistics changed"),
    PlainColumn("device", "device"),
    PlainColumn("threads", "threads"),
)


def cost_table(scope: Scope) -> PlainTable | None:
    """Build the table, or ``None`` when no cell has a record of its run.

    Args:
        scope: The cells.
    """
    rows: list[tuple[Value, ...]] = []
    for pair in scope.pairs:
        for row in scope.rows:
            cells = scope.cells_of(row, pair)
            runs = [_run(cell) for cell in cells or ()]
            head = (scope.pair_name(pair), scope.row_name(row), row.strictness)
            if not cells or not all(runs):
                rows.append((*head, *([None] * (len(COLUMNS) - 3))))
                continue
            rows.append((*head, *_entries(scope.out, cells, runs)))
    if all(row[3] is None for row in rows):
        return None
    caption = (
        "Means over runs; a dash is not recorded. Cell: adapting and predicting, with the frozen "
        "steps that this cell happened to compute first, without what was only recorded.",
        "Artefacts: results of frozen steps that the cell used, its own or shared. Charged: the "
        "cell without the frozen steps it computed, plus all that it used, so that who ran first "
        "does not matter. Forward and backward: images through the network's encoder while "
        "adapting, charged in the same way; backward are those with gradients.",
        "Source training is shared by all methods. Values changed: sizes of the tensors that "
        "differ from the source model, in the first run.",
        "Times compare only on equal devices and threads.",
        *scope.marks,
    )
    return PlainTable("cost", "Cost of each method.", caption, COLUMNS, tuple(rows))


def _entries(out: Path, cells: Sequence[CellRecord], runs: Sequence[dict[str, Any]]) -> list[Value]:
    peaks = [run.get("peak_gpu_bytes") for run in runs]
    return [
        len(cells),
        _joined(cell.epochs for cell in cells),
        _mean([_own(run, "seconds") for run in runs]),
        _joined(len(set(run.get("artefacts", ()))) for run in runs),
        _mean([_of_steps(out, run.get("artefacts", []), "seconds") for run in runs]),
        _mean([_charged(out, run, "seconds") for run in runs]),
        _mean([_source_seconds(out, cell) for cell in cells]),
        _mean([None if peak is None else peak / _MIB for peak in peaks]),
        _mean([_charged(out, run, "forward_images") for run in runs]),
        _mean([_charged(out, run, "backward_images") for run in runs]),
        *_changed(out, cells[0]),
        _joined(run.get("device", "unknown") for run in runs),
        _joined(run.get("threads", "unknown") for run in runs),
    ]


def _run(cell: CellRecord) -> dict[str, Any]:
    path = cell.folder / "run.json"
    return read_json(path) if path.is_file() else {}


def _own(run: Mapping[str, Any], what: str) -> float | None:
    """Return what a cell spent itself, without looking at models for the record."""
    spent = run.get(what)
    if spent is None:
        return None
    return float(spent) - (float(run.get("recording_seconds", 0)) if what == "seconds" else 0)


def _of_steps(out: Path, names: Iterable[str], what: str) -> float | None:
    """Return what frozen steps cost, each once; ``None`` if any is unknown."""
    steps = [_of_step(out, name, what) for name in sorted(set(names))]
    known = [cost for cost in steps if cost is not None]
    return sum(known) if len(known) == len(steps) else None


def _charged(out: Path, run: Mapping[str, Any], what: str) -> float | None:
    """Return the cell's cost as if it had computed every frozen step it used."""
    used = run.get("artefacts", [])
    own = _own(run, what)
    if own is None or (used and "artefacts_computed" not in run):
        return None
    computed = [f"{step['name']}/{step['key']}" for step in run.get("artefacts_computed", [])]
    of_used, of_own = _of_steps(out, used, what), _of_steps(out, computed, what)
    return None if of_used is None or of_own is None else own - of_own + of_used


def _of_step(out: Path, name: str, what: str) -> float | None:
    """Return what the frozen step ``<function>/<key>`` cost, if that was recorded."""
    function, key = name.split("/")
    path = out / "artefacts" / function / key[:_SHORT] / "cost.json"
    cost = read_json(path).get(what) if path.is_file() else None
    return None if cost is None else float(cost)


def _source_seconds(out: Path, cell: CellRecord) -> float | None:
    key = str(cell.record.get("source_key", ""))
    path = out / "sources" / cell.source / key[:_SHORT] / "card.json"
    seconds = read_json(path).get("seconds") if path.is_file() else None
    return None if seconds is None else float(seconds)


def _changed(out: Path, cell: CellRecord) -> tuple[int | None, int | None]:
    key = str(cell.record.get("source_key", ""))
    before = out / "sources" / cell.source / key[:_SHORT] / "model.safetensors"
    after = cell.folder / "model.safetensors"
    if not (before.is_file() and after.is_file()):
        return None, None
    return changed_values(before, after)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return statistic(known).mean if len(known) == len(values) else None


def _joined(values: Iterable[object]) -> str:
    """Return the different values, in order of their text."""
    return ", ".join(sorted({str(value) for value in values}))

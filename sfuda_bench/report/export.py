"""Results for other tools and other machines: challengeR's CSV, and a bundle without images."""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path

from sfuda_bench.errors import UsageError
from sfuda_bench.report.records import check_store, read_cases, read_scoring
from sfuda_bench.report.rows import MethodRow, Pair
from sfuda_bench.report.scope import Scope, read_scope
from sfuda_bench.report.summary import CellCases, cases_by_cell
from sfuda_bench.running.store import write_bytes
from sfuda_bench.scoring.codes import STRUCTURES

FORMATS = ("challenger", "bundle")
METRICS = ("dice", "asd")
BUNDLED = (
    "store.json",
    "plans/last.json",
    "cells/*/*/*/cell.json",
    "cells/*/*/*/run.json",
    "cells/*/*/*/scores-*.json",
    "cells/*/*/*/cases-*.parquet",
    "cells/*/*/*/eyes-*.parquet",
    "cells/*/*/*/curve.parquet",
    "cells/*/*/*/funnel.parquet",
    "cells/*/*/*/selections.json",
    "cells/*/*/*/validators.parquet",
    "cells/*/*/*/epochs-*.parquet",
    "cells/*/*/*/thresholds.json",
    "cells/*/*/*/thresholds.parquet",
    "artefacts/*/*/meta.json",
    "artefacts/*/*/cost.json",
    "sources/*/*/card.json",
    "attempts/*/error.json",
    "figures/*.p[dn][fg]",
)
"""What a bundle holds: records and figures of them, no image, mask, prediction or weight."""

_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: equal records give equal bytes
_MODE = 0o644 << 16


def challenger_csv(
    out: Path, profile: str = "standard", metric: str = "dice", selection: str = "last"
) -> str:
    """Return a store as the table that the R package challengeR reads.

    One task per pair and structure; an image's value is the mean over the runs of a method. A
    method with a missing cell, and a distance that is undefined, has ``NA``. Oracle rows are left
    out: they are no competitors.

    Args:
        out: The store.
        profile: Name of the scoring profile.
        metric: ``dice`` (fraction) or ``asd`` (pixels).
        selection: Which epoch counts.

    Returns:
        CSV with the columns Task, TestCase, Algorithm, MetricValue, sorted by case.

    Raises:
        UsageError: There is no store, an unknown metric, or no score of the profile.
    """
    if metric not in METRICS:
        raise UsageError(f"--metric {metric}: expected one of {', '.join(METRICS)}")
    scope = read_scope(out, selection)
    cells = list(scope.stored.values())
    if profile not in scope.profiles:
        raise UsageError(
            f"{out}: no cell was scored under profile '{profile}'",
            hint=f"stored profiles: {', '.join(scope.profiles) or 'none'}",
        )
    definition = read_scoring(cells, profile).get("asd_definition", "directed")
    cases = cases_by_cell(read_cases(cells, profile), scope.stored, selection, definition)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["Task", "TestCase", "Algorithm", "MetricValue"])
    for pair in scope.pairs:
        for structure in STRUCTURES:
            writer.writerows(_task(scope, pair, structure, metric, cases))
    return stream.getvalue()


def write_bundle(out: Path, path: Path) -> int:
    """Write the records of a store into a zip that ``report --out`` renders once unpacked.

    Equal records give equal bytes. Images, masks, predictions and weights stay behind; file names
    of test images are part of the scores.

    Args:
        out: The store.
        path: The zip to write.

    Returns:
        The number of files in it.

    Raises:
        UsageError: There is no store.
    """
    check_store(out)
    files = sorted({file for pattern in BUNDLED for file in out.glob(pattern)})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for file in files:
            info = zipfile.ZipInfo(file.relative_to(out).as_posix(), _DATE)
            info.external_attr = _MODE
            info.create_system = 3  # the same on every machine
            archive.writestr(info, file.read_bytes(), zipfile.ZIP_DEFLATED, 9)
    write_bytes(path, stream.getvalue())
    return len(files)


def export(
    out: Path,
    to: Path,
    kind: str,
    *,
    profile: str = "standard",
    metric: str = "dice",
    selection: str = "last",
) -> str:
    """Write an export and return one sentence on what it holds.

    Args:
        out: The store.
        to: The file to write.
        kind: ``challenger`` or ``bundle``.
        profile: Scoring profile of challengeR's table.
        metric: Its metric.
        selection: Its selection.

    Raises:
        UsageError: There is no store, or an argument is unknown.
    """
    if kind == "bundle":
        return f"{write_bundle(out, to)} files in {to}"
    if kind != "challenger":
        raise UsageError(f"--format {kind}: expected one of {', '.join(FORMATS)}")
    text = challenger_csv(out, profile, metric, selection)
    write_bytes(to, text.encode())
    better = "larger" if metric == "dice" else "smaller"
    return f"{len(text.splitlines()) - 1} values in {to}; {better} is better"


def _task(
    scope: Scope, pair: Pair, structure: str, metric: str, cases: dict[str, CellCases]
) -> Iterator[tuple[str, str, str, str]]:
    rows = [row for row in scope.rows if not row.oracle and row.of_pair(pair)]
    images = {
        image
        for row in rows
        for cell in row.of_pair(pair)
        for name, image in cases.get(cell.key, {})
        if name == structure
    }
    task = f"{pair[0]}:{pair[1]} {structure}"
    for image in sorted(images):
        for row in rows:
            yield task, image, row.label, _value(row, pair, (structure, image), metric, cases)


def _value(
    row: MethodRow,
    pair: Pair,
    place: tuple[str, str],
    metric: str,
    cases: dict[str, CellCases],
) -> str:
    found = [cases.get(cell.key, {}).get(place) for cell in row.of_pair(pair)]
    values = [_metric(case.dice, case.asd, metric) for case in found if case is not None]
    defined = [value for value in values if not math.isnan(value)]
    if len(values) < len(found) or not defined:
        return "NA"
    return f"{math.fsum(defined) / len(defined):.6f}"


def _metric(dice_percent: float, asd_px: float, metric: str) -> float:
    return dice_percent / 100 if metric == "dice" else asd_px

"""Cells of a study: they are planned, computed and stored like those of any run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import CellsFailed, StoreSchemaError, UsageError
from sfuda_bench.running.request import HANG_AFTER, RunRequest
from sfuda_bench.search.toml_file import build_table, table_of

if TYPE_CHECKING:
    import pandas as pd

    from sfuda_bench.running.engine import ProgressSink
    from sfuda_bench.running.plan import CellPlan
    from sfuda_bench.running.pool import WorkerPool

_MOST_NAMED = 3  # failed cells that a message names


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the command line adds to a study file; what is given here wins over the file.

    Attributes:
        out: The store.
        data_root: Folder of domains, or ``None`` for the built-in synthetic ones.
        preset: Name of a preset, or ``None`` for the file's.
        pairs: Pair selector, or ``None`` for the file's.
        seeds: Adaptation seeds, or ``None`` for the file's.
        overrides: ``key=value`` texts, applied after those of the file.
        jobs: Cells computed at once.
        device: ``auto``, ``cpu`` or ``cuda``.
        plugins: Python files that register further plug-ins.
        profiles: Scoring profiles, or ``None`` for the file's.
        timeout: As in :class:`RunRequest`, like the fields below.
        hang_after: Seconds.
        on_error: ``"stop"``, ``"continue"`` or ``"retry:N"``.
        gpus: GPUs to use, instead of ``jobs``.
        per_gpu: Cells computed at once on each.
    """

    out: Path
    data_root: Path | None = None
    preset: str | None = None
    pairs: str | None = None
    seeds: str | None = None
    overrides: tuple[str, ...] = ()
    jobs: int = 1
    device: str = "auto"
    plugins: tuple[Path, ...] = ()
    profiles: tuple[str, ...] | None = None
    timeout: float | None = None
    hang_after: float = HANG_AFTER
    on_error: str = "continue"
    gpus: tuple[str, ...] = ()
    per_gpu: int = 1


@dataclass(frozen=True, kw_only=True)
class RunTable:
    """The ``[run]`` table of a study file, in the grammar of the flags of ``run``.

    Attributes:
        methods: Registered method names.
        pairs: Pair selector, e.g. ``"all"``.
        seeds: Adaptation seeds, e.g. ``"0..2"``.
        source_seeds: Seeds of the source models.
        preset: Name of a preset; without one, that of ``run``.
        protocol: Protocol for every method, or none for each method's default.
        profiles: Scoring profiles; the first one scores objectives with labels.
        set: ``key=value`` texts as for ``--set``.
        average_last: k of the selection ``average-last-k``.
    """

    methods: tuple[str, ...] = ()
    pairs: str = "all"
    seeds: str = "0"
    source_seeds: str = "0"
    preset: str | None = None
    protocol: str | None = None
    profiles: tuple[str, ...] = ("standard", "cpr-2023")
    set: tuple[str, ...] = ()
    average_last: int = 5


def base_request(
    where: str,
    tables: Mapping[str, Any],
    flags: Flags,
    *,
    methods: Sequence[str] | None = None,
    record: frozenset[str] = frozenset(),
) -> RunRequest:
    """Turn the ``[run]`` table of a study file and the command line into a request.

    Args:
        where: The file, for messages.
        tables: The file's tables.
        flags: What the command line says; it wins.
        methods: Instead of those in the table.
        record: What cells keep besides their result; see :class:`RunRequest`.

    Raises:
        UsageError: An unknown key, name or value.
    """
    from sfuda_bench.registry import load_plugin_file
    from sfuda_bench.scoring.profiles import get_profile
    from sfuda_bench.selectors import parse_methods, parse_seeds
    from sfuda_bench.settings import resolve

    for path in flags.plugins:
        load_plugin_file(path)
    found = table_of(where, tables, "run")
    run = build_table(RunTable, where, "run", found)
    names = tuple(parse_methods(",".join(run.methods if methods is None else methods)))
    profiles = flags.profiles or run.profiles
    for profile in profiles:
        get_profile(profile)
    preset = flags.preset or run.preset
    return RunRequest(
        methods=names,
        pairs=flags.pairs or run.pairs,
        seeds=tuple(parse_seeds(flags.seeds or run.seeds)),
        source_seeds=tuple(parse_seeds(run.source_seeds, "source_seeds")),
        settings=resolve(
            preset or ("quick" if flags.data_root is None else "reproduction"),
            overrides=(*run.set, *flags.overrides),
            methods=names,
        ),
        data_root=flags.data_root,
        out=flags.out,
        device=flags.device,
        jobs=flags.jobs,
        protocol=run.protocol,
        profiles=tuple(profiles),
        average_last=run.average_last,
        keep_models=False,
        plugins=flags.plugins,
        record=record,
        timeout=flags.timeout,
        hang_after=flags.hang_after,
        on_error=flags.on_error,
        gpus=flags.gpus,
        per_gpu=flags.per_gpu,
    )


def requests_for(
    base: RunRequest, overrides: Mapping[str, Mapping[str, Any]], *, origin: str = "study"
) -> RunRequest:
    """Return a request for the overridden methods alone, whose settings have the overrides.

    Args:
        base: The request of the study.
        overrides: Method name to setting to value; an empty table keeps the method as it is.
        origin: Where the values come from, e.g. ``"study cpr_r_beta_t_gamma"``.

    Raises:
        UsageError: A method that the base lacks, an unknown setting, a value out of its range,
            or values that exclude each other.
    """
    for method in overrides:
        if method not in base.settings.methods:
            raise UsageError(
                f"{origin}: '{method}' is none of its methods: {', '.join(base.settings.methods)}",
                hint="name it in methods of the table [run]",
            )
    settings = base.settings.with_values(overrides, origin)
    return dataclasses.replace(base, methods=tuple(overrides), settings=settings)


def evaluate(
    requests: Sequence[RunRequest], progress: ProgressSink, pool: WorkerPool | None = None
) -> list[list[CellPlan]]:
    """Compute the cells of several requests over one store at once.

    Args:
        requests: What is asked; cells that several of them share are computed once.
        progress: Where progress goes.
        pool: Workers that live on between calls.

    Returns:
        The cells of each request, in plan order; all of them are stored.

    Raises:
        CellsFailed: Some cell failed; the message names it and says why.
        DataError: Images or masks are missing.
    """
    from sfuda_bench.running.engine import execute
    from sfuda_bench.running.plan import build_plan, merge_plans

    plans = [build_plan(request) for request in requests]
    if plans:
        execute(merge_plans(plans), progress, pool, remember=False)
    _check_stored([cell for plan in plans for cell in plan.cells], requests)
    return [plan.cells for plan in plans]


def cell_dice(folder: Path, profile: str, selection: str = "last") -> pd.DataFrame:
    """Return the Dice of every image and structure of a stored cell.

    Args:
        folder: The cell's folder.
        profile: A scoring profile that was asked for.
        selection: Which epoch is scored, e.g. ``last``.

    Returns:
        ``image``, ``structure``, ``dice`` (in [0, 1]), sorted by structure and image.

    Raises:
        StoreSchemaError: No scores of this profile, or none of this selection.
    """
    from sfuda_bench.frames import read_parquet

    path = folder / f"cases-{profile}.parquet"
    cases = read_parquet(path)
    chosen = cases.loc[cases["selection"] == selection, ["image", "structure", "dice"]]
    if chosen.empty:
        known = ", ".join(sorted(set(cases["selection"])))
        raise StoreSchemaError(
            f"{path}: no selection '{selection}'; it holds {known}",
            hint="selections other than 'last' need the record 'epochs'",
        )
    return chosen.sort_values(["structure", "image"]).reset_index(drop=True)


def _check_stored(cells: Sequence[CellPlan], requests: Sequence[RunRequest]) -> None:
    missing = {cell.key: cell for cell in cells if not (cell.folder / "cell.json").is_file()}
    if not missing:
        return
    named = [f"{c.name}: {_failure(c, requests[0].out)}" for c in missing.values()]
    rest = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
    raise CellsFailed(
        f"{len(named)} cells failed: {'; '.join(named[:_MOST_NAMED])}{rest}",
        hint=f"sfuda-bench status --out {requests[0].out}",
    )


def _failure(cell: CellPlan, out: Path) -> str:
    from sfuda_bench.running.store import Store, read_json

    if cell.state == "blocked":
        return cell.reason
    store = Store(out)
    for key in (cell.key, cell.source.key):
        try:
            return str(read_json(store.attempt(key) / "error.json")["message"])
        except (StoreSchemaError, KeyError):
            continue
    return "no record of why"

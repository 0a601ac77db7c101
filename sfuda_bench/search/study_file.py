"""Study files that search settings: checked before anything is computed.

Two kinds. ``kind = "search"`` looks for good settings of one or several methods with the same
budget and objective; ``kind = "pool"`` evaluates points that no objective has influenced, so
that objectives can be compared on them afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfuda_bench.errors import UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.running.request import RECORDS, RunRequest
from sfuda_bench.search.cells import Flags, base_request
from sfuda_bench.search.objectives import LABEL_FREE, PRIMARY, Objective, parse_objective
from sfuda_bench.search.samplers import HISTORY_FREE, SAMPLERS
from sfuda_bench.search.spaces import Space, read_space
from sfuda_bench.search.toml_file import (
    build_table,
    check_keys,
    find_study,
    read_study_tables,
    table_of,
)
from sfuda_bench.tunable import setting

SEARCH, POOL = "search", "pool"
KINDS = (SEARCH, POOL)
OTHER_KINDS = ("ablation", "variants")
"""Kinds of files that ``ablate`` runs."""

_POOL_RECORD = frozenset({"epochs", "validators"})


@dataclass(frozen=True, kw_only=True)
class SearchTable:
    """The ``[search]`` table.

    Attributes:
        trials: Budget per method; a grid without it takes every point.
        sampler: ``tpe``, ``qmc``, ``grid`` or ``random``.
        seed: Of the sampler.
        objective: See :mod:`sfuda_bench.search.objectives`.
        prune: Stop trials whose first pairs do worse than the median of the others.
        confirm_seeds: Fresh adaptation seeds with which the chosen settings are run again.
        probe: Move each setting alone, from the chosen point, to find inert ones.
    """

    trials: int | None = setting(None, 1, 100_000)
    sampler: str = setting("tpe", choices=SAMPLERS)
    seed: int = setting(0, 0, 2**31)
    objective: str = f"{LABEL_FREE}:{PRIMARY}"
    prune: bool = False
    confirm_seeds: str = ""
    probe: bool = False


@dataclass(frozen=True)
class StudyFile:
    """A checked study file together with the command line.

    Attributes:
        name: The file's stem.
        kind: ``search`` or ``pool``.
        question: What it asks.
        path: The file.
        request: What every trial runs, before its point is put on. Its settings also hold the
            unadapted method, for comparison.
        search: The ``[search]`` table.
        trials: Budget per method.
        objective: The selection rule.
        spaces: Method to what is moved of it.
        confirm_seeds: Fresh seeds, perhaps none.
    """

    name: str
    kind: str
    question: str
    path: Path
    request: RunRequest
    search: SearchTable
    trials: int
    objective: Objective
    spaces: Mapping[str, Space]
    confirm_seeds: tuple[int, ...]


def read_study(given: str | Path, flags: Flags, *, allow_oracle: bool = False) -> StudyFile:
    """Read and check a study file of kind ``search`` or ``pool``.

    Args:
        given: A path, or the name of a shipped study.
        flags: What the command line adds.
        allow_oracle: Whether labels of the judged targets may choose.

    Raises:
        UsageError: Anything in it that cannot be used; the message names the file and the key.
    """
    name, tables, _ = read_study_tables(given)
    where = str(given)
    kind = _kind(where, tables)
    check_keys(
        where, tables, ["kind", "question", "run", "record", "search", "space", "constraints"]
    )
    search = _search_table(where, kind, table_of(where, tables, "search"))
    record = _record(where, kind, tables)
    methods = base_request(where, tables, flags).methods
    request = base_request(where, tables, flags, methods=with_unadapted(methods), record=record)
    objective = parse_objective(f"{where} [search]", search.objective, request.profiles[0])
    _check_allowed(where, search, objective, allow_oracle)
    request = dataclasses.replace(
        request, methods=methods, record=request.record | objective.record
    )
    spaces = _spaces(where, tables, request)
    return StudyFile(
        name=name,
        kind=kind,
        question=str(tables.get("question", "")),
        path=find_study(given),
        request=request,
        search=search,
        trials=_trials(where, search, spaces),
        objective=objective,
        spaces=spaces,
        confirm_seeds=_confirm_seeds(where, search, request),
    )


def unadapted_method() -> str:
    """Return the registered method that leaves the source model as it is.

    Raises:
        UsageError: None is registered.
    """
    from sfuda_bench.methods import METHODS

    for name in METHODS.names():
        spec = METHODS.get(name)
        if not spec.updates and not spec.oracle and spec.inert == {}:
            return name
    raise UsageError("no registered method leaves the model unadapted", hint="see methods/")


def with_unadapted(methods: Sequence[str]) -> tuple[str, ...]:
    """Return the methods of a study with the unadapted one in front."""
    return tuple(dict.fromkeys([unadapted_method(), *methods]))


def _kind(where: str, tables: Mapping[str, Any]) -> str:
    kind = tables.get("kind")
    if kind in KINDS:
        return str(kind)
    if kind in OTHER_KINDS:
        raise UsageError(
            f"{where}: kind = '{kind}' is not searched but ablated",
            hint=f"sfuda-bench ablate {where}",
        )
    near = did_you_mean(str(kind), [*KINDS, *OTHER_KINDS])
    raise UsageError(
        f"{where}: kind = {kind!r}{near}; expected {', '.join([*KINDS, *OTHER_KINDS])}",
        hint='kind = "search"',
    )


def _search_table(where: str, kind: str, table: Mapping[str, Any]) -> SearchTable:
    if kind == POOL:
        table = {"sampler": "qmc", **table}
    search = build_table(SearchTable, where, "search", table)
    if kind == POOL and search.sampler not in HISTORY_FREE:
        raise UsageError(
            f"{where} [search]: sampler = '{search.sampler}': a pool must not be led by any "
            f"objective; expected {', '.join(HISTORY_FREE)}",
            hint='sampler = "qmc"',
        )
    return search


def _record(where: str, kind: str, tables: Mapping[str, Any]) -> frozenset[str]:
    given = tables.get("record", [])
    if not isinstance(given, list):
        raise UsageError(
            f"{where}: record = {given!r}: expected a list", hint='record = ["epochs"]'
        )
    for name in given:
        if name not in RECORDS:
            raise UsageError(
                f"{where}: record: unknown '{name}'{did_you_mean(str(name), list(RECORDS))}; "
                f"known: {', '.join(RECORDS)}",
                hint='record = ["epochs", "validators"]',
            )
    return frozenset(given) | (_POOL_RECORD if kind == POOL else frozenset())


def _check_allowed(
    where: str, search: SearchTable, objective: Objective, allow_oracle: bool
) -> None:
    if objective.oracle and not allow_oracle:
        raise UsageError(
            f"{where}: objective '{objective.text}' chooses by labels of the target; its result "
            "is an upper bound, not what a method achieves",
            hint=f'--allow-oracle, or objective = "{LABEL_FREE}:{PRIMARY}"',
        )
    if search.prune and not objective.label_free:
        raise UsageError(
            f"{where}: prune = true with objective '{objective.text}': labels must not stop trials",
            hint="prune = false, or a label-free objective",
        )
    if objective.kind == "transfer" and search.sampler not in HISTORY_FREE:
        raise UsageError(
            f"{where}: objective 'transfer' with sampler '{search.sampler}': the judged target's "
            f"labels would lead the search; expected {', '.join(HISTORY_FREE)}",
            hint='sampler = "qmc"',
        )


def _spaces(where: str, tables: Mapping[str, Any], request: RunRequest) -> dict[str, Space]:
    from sfuda_bench.methods import METHODS

    given = {METHODS.canonical(n): t for n, t in table_of(where, tables, "space").items()}
    rules = {METHODS.canonical(n): t for n, t in table_of(where, tables, "constraints").items()}
    for kind, table in (("space", given), ("constraints", rules)):
        check_keys(f"{where} [{kind}]", table, request.methods)
    spaces = {}
    for method in request.methods:
        texts = rules.get(method, [])
        if not isinstance(texts, list):
            raise UsageError(
                f"{where} [constraints]: {method} = {texts!r}: expected a list of texts",
                hint=f'{method} = ["low <= high"]',
            )
        spaces[method] = read_space(
            where,
            METHODS.get(method),
            table_of(f"{where} [space]", given, method),
            texts,
            request.settings.methods[method],
            request.settings.data.image_size,
        )
    return spaces


def _trials(where: str, search: SearchTable, spaces: Mapping[str, Space]) -> int:
    if search.trials is not None:
        return search.trials
    if search.sampler != "grid":
        raise UsageError(f"{where} [search]: trials is missing", hint="trials = 24")
    sizes = {method: sum(1 for _ in space.grid()) for method, space in spaces.items()}
    if len(set(sizes.values())) > 1:
        text = ", ".join(f"{method} {size}" for method, size in sizes.items())
        raise UsageError(
            f"{where} [search]: grids of different sizes ({text}): every method gets one budget",
            hint=f"trials = {min(sizes.values())}",
        )
    (size,) = set(sizes.values())
    if size == 0:
        raise UsageError(
            f"{where}: no point of the grid can be run", hint="widen the ranges or constraints"
        )
    return size


def _confirm_seeds(where: str, search: SearchTable, request: RunRequest) -> tuple[int, ...]:
    from sfuda_bench.selectors import parse_seeds

    if not search.confirm_seeds:
        return ()
    seeds = tuple(parse_seeds(search.confirm_seeds, f"{where} [search] confirm_seeds"))
    shared: Sequence[int] = sorted(set(seeds) & set(request.seeds))
    if shared:
        raise UsageError(
            f"{where} [search]: confirm_seeds = '{search.confirm_seeds}': "
            f"{', '.join(map(str, shared))} took part in the choice already",
            hint='confirm_seeds = "100..102"',
        )
    return seeds

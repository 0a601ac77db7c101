"""Ablation files: which parts of a method are switched, or which rows are walked through.

Two kinds. ``kind = "ablation"`` names component switches and a design; ``kind = "variants"``
lists rows one by one. Both end as :class:`Ablation`: rows to compute and contrasts to report.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfuda_bench.errors import UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.search.effects import Contrast, Share
from sfuda_bench.search.toml_file import check_keys

KINDS = ("ablation", "variants")
SEARCHED = ("search", "pool")
"""Kinds of files that ``study run`` takes."""
DESIGNS = ("leave_one_out", "one_at_a_time", "factorial")
RECORDS = ("epochs", "validators", "train", "labels")
REFERENCE = "reference"
_MOST_SWITCHES = 7  # of a factorial design: 128 rows
_COMMON = ("kind", "question", "run", "record")
_HINT = "studies/README.md lists the keys"


@dataclass(frozen=True)
class Level:
    """One position of a switch.

    Attributes:
        method: A sibling method instead of the file's, or ``None``.
        values: Settings on top of the preset, by dotted or bare key.
    """

    method: str | None
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Switch:
    """One component.

    Attributes:
        name: Key in the file.
        title: What tables print.
        on: With the component.
        off: Without it.
        reference: Its position in the reference row.
    """

    name: str
    title: str
    on: Level
    off: Level
    reference: bool

    def level(self, on: bool) -> Level:
        """Return one position."""
        return self.on if on else self.off


@dataclass(frozen=True)
class Row:
    """One configuration.

    Attributes:
        name: What tables print; unique.
        method: Registered method.
        preset: Name of a preset, or ``None`` for that of the run.
        values: Settings on top of the preset. A bare key is a setting of the method, a dotted
            one (``inference.batch_norm``) belongs to a section.
        levels: Switch to position, for the rows of a design.
    """

    name: str
    method: str
    preset: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    levels: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Ablation:
    """A checked ablation file.

    Attributes:
        name: The file's name without its ending.
        kind: ``ablation`` or ``variants``.
        design: The design; empty for ``variants``.
        question: What it asks, for captions.
        method: The file's method, or empty where every row names its own.
        record: What cells keep besides their result.
        reference: The row that others are compared with.
        rows: In table order, the reference among them.
        switches: Empty for ``variants``.
        contrasts: What is reported.
        shares: Which part of which gain is reported.
        run: The ``[run]`` table.
        digest: sha256 of the file's text.
    """

    name: str
    kind: str
    design: str
    question: str
    method: str
    record: frozenset[str]
    reference: str
    rows: tuple[Row, ...]
    switches: tuple[Switch, ...]
    contrasts: tuple[Contrast, ...]
    shares: tuple[Share, ...]
    run: Mapping[str, Any]
    digest: str = ""


def parse(name: str, tables: Mapping[str, Any], digest: str = "") -> Ablation:
    """Check the tables of an ablation file.

    Names and values of settings are checked when the rows' settings are resolved; everything
    else is checked here.

    Args:
        name: Of the study, for messages.
        tables: What the file holds.
        digest: Of its text.

    Raises:
        UsageError: It names the table and the key, and what was expected.
    """
    if tables.get("kind") in SEARCHED:
        raise UsageError(
            f"{name}: kind = '{tables['kind']}' is not ablated but searched",
            hint=f"sfuda-bench study run {name}",
        )
    kind = _choice(name, tables, "kind", KINDS)
    if kind == "ablation":
        return _ablation(name, tables, digest)
    return _variants(name, tables, digest)


# -- designs ------------------------------------------------------------------------------------


def _ablation(name: str, tables: Mapping[str, Any], digest: str) -> Ablation:
    check_keys(name, tables, [*_COMMON, "method", "design", "switches"])
    design = _choice(name, tables, "design", DESIGNS)
    method = _text(name, tables, "method")
    switches = _switches(name, tables, start=design != "one_at_a_time")
    _check_disjoint(name, switches)
    if design == "factorial" and len(switches) > _MOST_SWITCHES:
        raise UsageError(
            f"{name}: a factorial design of {len(switches)} switches has {2 ** len(switches)} "
            f"rows; at most {_MOST_SWITCHES} switches are taken",
            hint="design = 'leave_one_out', or fewer switches",
        )
    rows = [_designed(method, switches, levels) for levels in _levels(design, switches)]
    return Ablation(
        name=name,
        kind="ablation",
        design=design,
        question=_question(name, tables),
        method=method,
        record=_record(name, tables),
        reference=rows[0].name,
        rows=tuple(rows),
        switches=tuple(switches),
        contrasts=tuple(_effects(switches, rows) + _interactions(switches, rows)),
        shares=(),
        run=_run_table(name, tables),
        digest=digest,
    )


def _levels(design: str, switches: Sequence[Switch]) -> list[dict[str, bool]]:
    """Return the positions of all switches, row by row, the reference first."""
    reference = {switch.name: switch.reference for switch in switches}
    if design != "factorial":
        return [reference, *({**reference, s.name: not s.reference} for s in switches)]
    orders = [(s.reference, not s.reference) for s in switches]
    names = [s.name for s in switches]
    return [dict(zip(names, found, strict=True)) for found in itertools.product(*orders)]


def _designed(method: str, switches: Sequence[Switch], levels: Mapping[str, bool]) -> Row:
    chosen = [switch.level(levels[switch.name]) for switch in switches]
    methods = [level.method for level in chosen if level.method is not None]
    values = {key: value for level in chosen for key, value in level.values.items()}
    moved = [s for s in switches if levels[s.name] != s.reference]
    name = ", ".join(f"{s.title} {'on' if levels[s.name] else 'off'}" for s in moved)
    return Row(name or REFERENCE, methods[0] if methods else method, None, values, dict(levels))


def _effects(switches: Sequence[Switch], rows: Sequence[Row]) -> list[Contrast]:
    """Return one contrast per switch: with minus without it, everything else equal."""
    by_levels = {frozenset(row.levels.items()): row.name for row in rows}
    contrasts = []
    for switch in switches:
        pairs = []
        for row in rows:
            without = frozenset({**row.levels, switch.name: False}.items())
            if row.levels[switch.name] and without in by_levels:
                pairs.append((row.name, by_levels[without]))
        contrasts.append(Contrast.effect(switch.name, switch.title, pairs))
    return contrasts


def _interactions(switches: Sequence[Switch], rows: Sequence[Row]) -> list[Contrast]:
    """Return one contrast per two switches of a full design, else none."""
    if len(rows) < 2 ** len(switches) or len(switches) < 2:
        return []
    return [
        Contrast.interaction(
            f"{first.name} x {second.name}",
            f"{first.title} × {second.title}",  # noqa: RUF001  # a product of factors
            [row.name for row in rows if row.levels[first.name] == row.levels[second.name]],
            [row.name for row in rows if row.levels[first.name] != row.levels[second.name]],
        )
        for first, second in itertools.combinations(switches, 2)
    ]


def _switches(name: str, tables: Mapping[str, Any], *, start: bool) -> list[Switch]:
    found = tables.get("switches")
    if not isinstance(found, Mapping) or not found:
        raise UsageError(
            f"{name}: no switches; expected a table [switches.NAME] with 'on' and 'off' each",
            hint=_HINT,
        )
    return [_switch(name, key, value, start=start) for key, value in found.items()]


def _switch(file: str, name: str, table: Any, *, start: bool) -> Switch:
    where = f"{file} [switches.{name}]"
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: expected a table with 'on' and 'off'", hint=_HINT)
    check_keys(where, table, ["on", "off", "title", "reference"])
    for key in ("on", "off"):
        if not isinstance(table.get(key), Mapping):
            raise UsageError(
                f"{where}: '{key}' is missing or no table; expected settings, or a sibling method",
                hint=f'{key} = {{ refinement = true }}, or {key} = {{ method = "NAME" }}',
            )
    on, off = (_level(f"{where} {key}", table[key]) for key in ("on", "off"))
    if on == off:
        raise UsageError(f"{where}: 'on' and 'off' are equal, so it switches nothing", hint=_HINT)
    position = "on" if start else "off"
    if "reference" in table:
        position = _choice(where, table, "reference", ("on", "off"))
    title = _text(where, table, "title") if "title" in table else name.replace("_", " ")
    return Switch(name, title, on, off, position == "on")


def _level(where: str, table: Mapping[str, Any]) -> Level:
    values = _flat(where, {key: value for key, value in table.items() if key != "method"})
    return Level(_text(where, table, "method") if "method" in table else None, values)


def _check_disjoint(name: str, switches: Sequence[Switch]) -> None:
    """Refuse two switches that set the same thing: which one holds would depend on their order."""
    owner: dict[str, str] = {}
    for switch in switches:
        keys = {*switch.on.values, *switch.off.values}
        if switch.on.method or switch.off.method:
            keys.add("method")
        for key in sorted(keys):
            if key in owner:
                raise UsageError(
                    f"{name}: switches '{owner[key]}' and '{switch.name}' both set '{key}'",
                    hint="give each switch settings of its own",
                )
            owner[key] = switch.name


# -- rows one by one ------------------------------------------------------------------------------


def _variants(name: str, tables: Mapping[str, Any], digest: str) -> Ablation:
    known = [*_COMMON, "method", "rows", "cumulative", "reference", "shares"]
    check_keys(name, tables, known)
    found = tables.get("rows")
    if not isinstance(found, list) or len(found) < 2:
        raise UsageError(f"{name}: expected at least two tables [[rows]]", hint=_HINT)
    cumulative = tables.get("cumulative", False)
    if not isinstance(cumulative, bool):
        raise UsageError(f"{name}: cumulative = {cumulative!r}: expected true or false", hint=_HINT)
    method = _text(name, tables, "method") if "method" in tables else None
    rows: list[Row] = []
    for position, table in enumerate(found, 1):
        above = rows[-1] if cumulative and rows else None
        rows.append(_row(f"{name} [[rows]] number {position}", table, method, above))
    names = [row.name for row in rows]
    for row in names:
        if names.count(row) > 1:
            raise UsageError(f"{name}: two rows are called '{row}'", hint="give each its own name")
    reference = names[0]
    if "reference" in tables:
        reference = _row_name(name, "reference", _text(name, tables, "reference"), names)
    return Ablation(
        name=name,
        kind="variants",
        design="walk" if cumulative else "",
        question=_question(name, tables),
        method=method or "",
        record=_record(name, tables),
        reference=reference,
        rows=tuple(rows),
        switches=(),
        contrasts=tuple(_differences(names, reference, cumulative=cumulative)),
        shares=_shares(name, tables, names),
        run=_run_table(name, tables),
        digest=digest,
    )


def _row(where: str, table: Any, method: str | None, above: Row | None) -> Row:
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: expected a table", hint=_HINT)
    check_keys(where, table, ["name", "method", "preset", "set"])
    name = _text(where, table, "name")
    values = table.get("set", {})
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: 'set' must be a table of settings", hint="set = { radius = 4 }")
    flat = _flat(where, values)
    preset = _text(where, table, "preset") if "preset" in table else None
    own = _text(where, table, "method") if "method" in table else None
    if above is not None:
        return Row(name, own or above.method, preset or above.preset, {**above.values, **flat})
    if (own or method) is None:
        raise UsageError(f"{where}: no method", hint="name one here, or at the top of the file")
    return Row(name, own or str(method), preset, flat)


def _differences(names: Sequence[str], reference: str, *, cumulative: bool) -> list[Contrast]:
    """Return each row minus the reference; in a walk, each row minus the one above it first."""
    steps = [
        Contrast.difference("step", below, above) for above, below in itertools.pairwise(names)
    ]
    totals = [Contrast.difference("versus", n, reference) for n in names if n != reference]
    return [*steps, *totals] if cumulative else totals


def _shares(name: str, tables: Mapping[str, Any], rows: Sequence[str]) -> tuple[Share, ...]:
    found = tables.get("shares", [])
    if not isinstance(found, list):
        raise UsageError(f"{name}: expected tables [[shares]]", hint=_HINT)
    shares = []
    for position, table in enumerate(found, 1):
        where = f"{name} [[shares]] number {position}"
        if not isinstance(table, Mapping):
            raise UsageError(f"{where}: expected a table", hint=_HINT)
        check_keys(where, table, ["name", "baseline", "full", "control", "without"])
        for key in ("name", "baseline", "full", "control"):
            _text(where, table, key)
        ends = {
            key: _row_name(where, key, _text(where, table, key), rows)
            for key in ("baseline", "full", "control", "without")
            if key in table
        }
        shares.append(Share(name=_text(where, table, "name"), **ends))
    return tuple(shares)


def _row_name(where: str, key: str, given: str, rows: Sequence[str]) -> str:
    if given in rows:
        return given
    near = did_you_mean(given, list(rows))
    raise UsageError(
        f"{where}: {key} = '{given}' is no row{near}; rows: {', '.join(rows)}", hint=_HINT
    )


# -- values ---------------------------------------------------------------------------------------


def _flat(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted key; ``inference = { dropout = true }`` may be written nested."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, leaf in inner:
            if isinstance(leaf, Mapping):
                raise UsageError(f"{where}: '{key}.{name}' is nested too deep", hint=_HINT)
            flat[f"{key}.{name}" if name else key] = leaf
    return flat


def _run_table(name: str, tables: Mapping[str, Any]) -> Mapping[str, Any]:
    run = tables.get("run", {})
    if not isinstance(run, Mapping):
        raise UsageError(f"{name}: 'run' must be a table", hint="[run]")
    if "methods" in run:
        raise UsageError(
            f"{name} [run]: unknown key 'methods'; the rows of an ablation name their methods",
            hint='method = "NAME" at the top of the file',
        )
    return run


def _record(name: str, tables: Mapping[str, Any]) -> frozenset[str]:
    found = tables.get("record", [])
    items: Iterable[Any] = found.split(",") if isinstance(found, str) else found
    if not isinstance(items, list):
        raise UsageError(f"{name}: record = {found!r}: expected a list", hint='record = ["labels"]')
    for item in items:
        if item not in RECORDS:
            near = did_you_mean(str(item), list(RECORDS))
            raise UsageError(
                f"{name}: record: unknown entry '{item}'{near}; known: {', '.join(RECORDS)}",
                hint='record = ["labels"]',
            )
    return frozenset(str(item) for item in items)


def _question(name: str, tables: Mapping[str, Any]) -> str:
    return _text(name, tables, "question") if "question" in tables else ""


def _text(where: str, table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        problem = "is missing" if value is None else f"= {value!r} is no text"
        raise UsageError(f"{where}: '{key}' {problem}", hint=f'{key} = "..."')
    return value.strip()


def _choice(where: str, table: Mapping[str, Any], key: str, known: Sequence[str]) -> str:
    value = _text(where, table, key)
    if value not in known:
        near = did_you_mean(value, list(known))
        raise UsageError(
            f"{where}: {key} = '{value}' is unknown{near}; known: {', '.join(known)}",
            hint=f'{key} = "{known[0]}"',
        )
    return value

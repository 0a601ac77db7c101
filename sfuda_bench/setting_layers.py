"""The places that set values, one layer each: a preset, a config file, flags, ``--set``.

A layer's tables may hold for every run, for one network or for some pairs::

    [methods.cpr]                                # every run
    [on_network.deeplabv3plus.methods.cpr]       # only with this network; also its sections
    [pair."drishti_gs:rim_one_r3".methods.cpr]   # only this pair; "*" stands for any domain
    [pair]
    fallback = "drishti_gs:rim_one_r3"           # whose values the pairs without a table take

Within a layer a network's table beats the general one, a pair's table both, and a table that
names more of the pair one that names less. A later layer beats an earlier one altogether.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sfuda_bench.datasets import canonical_name, dataset_names
from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import did_you_mean
from sfuda_bench.tunable import checked_values

ANY = "*"
_PAIR_HINT = '[pair."drishti_gs:rim_one_r3".methods.NAME], or "*:drishti_gs", "drishti_gs:*"'

Values = Mapping[str, Any]
Tables = Mapping[str, Values]


@dataclass(frozen=True)
class PairValue:
    """A method's setting that holds for some pairs only.

    Attributes:
        method: Registered name.
        pattern: ``source:target``, either of which may be ``*``.
        name: The setting.
        value: Its value, checked.
        origin: Where it is set.
    """

    method: str
    pattern: str
    name: str
    value: Any
    origin: str

    def applies(self, pair: str) -> bool:
        """Whether it holds for the pair ``source:target``."""
        ends = zip(self.pattern.split(":"), pair.split(":"), strict=True)
        return all(wanted in (ANY, given) for wanted, given in ends)


@dataclass(frozen=True)
class Table:
    """What one condition sets; ``where`` names it, empty for every run."""

    where: tuple[str, ...] = ()
    sections: Tables = field(default_factory=dict)
    methods: Tables = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """The values that one place sets.

    Attributes:
        place: E.g. ``preset small`` or ``--set``.
        always: What holds for every run.
        networks: What holds on one network, by its name.
        pairs: What holds for some pairs, by pattern; the more a pattern names the later.
        fallback: Pattern whose values also hold where no other table says anything.
    """

    place: str
    always: Table
    networks: Mapping[str, Table]
    pairs: Mapping[str, Table]
    fallback: str | None

    def general(self, network: str) -> list[Table]:
        """Return the tables that hold for every pair on a network, weakest first."""
        return [self.always, *(t for name, t in self.networks.items() if name == network)]

    def tables(self) -> Iterator[Table]:
        """Yield every table of the layer."""
        yield self.always
        yield from self.networks.values()
        yield from self.pairs.values()

    def origin(self, table: Table, owner: str, name: str) -> str:
        """Return where this layer sets ``owner.name``, as precisely as a reader can use."""
        if self.place == "flag":
            return "--network" if name == "name" else f"--{name.replace('_', '-')}"
        if self.place.startswith("--config "):
            inner = f"methods.{owner}" if owner in table.methods else owner
            quoted = [f'"{part}"' if ":" in part else part for part in table.where]
            return f"{self.place.removeprefix('--config ')}:{'.'.join([*quoted, inner, name])}"
        return f"{self.place} [{' '.join(table.where)}]" if table.where else self.place


# -- reading ----------------------------------------------------------------------------------


def read_layer(place: str, tables: Mapping[str, Any], sections: Mapping[str, type[Any]]) -> Layer:
    """Check the names of a layer's tables and keys; values are checked when all are merged.

    Args:
        place: What sets the values, for messages.
        tables: The parsed tables.
        sections: Section name to its config class.

    Raises:
        UsageError: An unknown section, method, setting or network, or a malformed pair.
    """
    check_known(place, "section", tables, [*sections, "methods", "on_network", "pair"])
    check_tables(place, tables)
    conditions = ("on_network", "pair")
    always = {name: values for name, values in tables.items() if name not in conditions}
    pairs, fallback = _pair_tables(place, tables.get("pair", {}))
    return Layer(
        place,
        _table(place, (), always, sections),
        _network_tables(place, tables.get("on_network", {}), sections),
        pairs,
        fallback,
    )


def _table(
    at: str, where: tuple[str, ...], tables: Mapping[str, Any], sections: Mapping[str, type[Any]]
) -> Table:
    found = {name: values for name, values in tables.items() if name in sections}
    for name, values in found.items():
        check_known(at, f"setting of {name}", values, _field_names(sections[name]))
    return Table(where, found, _method_tables(at, tables.get("methods", {})))


def _method_tables(place: str, methods: Mapping[str, Any]) -> Tables:
    check_tables(place, {f"methods.{name}": values for name, values in methods.items()})
    by_name: dict[str, Values] = {}
    for given, values in methods.items():
        _check_method(place, given)
        method = METHODS.canonical(given)
        config = METHODS.get(method).config
        check_known(place, f"setting of {method}", values, _field_names(config))
        by_name[method] = {**by_name.get(method, {}), **values}
    return by_name


def _network_tables(
    place: str, networks: Mapping[str, Any], sections: Mapping[str, type[Any]]
) -> dict[str, Table]:
    found = {}
    for name, tables in networks.items():
        at = f"{place}: on_network.{name}"
        if name not in NETWORKS.names():
            near = did_you_mean(name, NETWORKS.names())
            raise UsageError(
                f"{place}: on_network: unknown network '{name}'{near}; "
                f"known: {', '.join(NETWORKS.names())}",
                hint="sfuda-bench ls networks",
            )
        check_tables(place, {f"on_network.{name}": tables})
        check_known(at, "table", tables, [*sections, "methods"])
        check_tables(at, tables)
        if "network" in tables:
            raise UsageError(
                f"{at}: 'network' cannot depend on the network", hint="set it in [network]"
            )
        found[name] = _table(at, ("on_network", name), tables, sections)
    return found


def _pair_tables(place: str, pairs: Mapping[str, Any]) -> tuple[dict[str, Table], str | None]:
    found: dict[str, Table] = {}
    for given, tables in pairs.items():
        if given == "fallback":
            continue
        pattern = _pattern(place, given)
        at = f'{place}: pair."{given}"'
        check_tables(place, {f'pair."{given}"': tables})
        # Source models and images are shared by all pairs: only methods may depend on a pair.
        check_known(at, "table", tables, ["methods"])
        check_tables(at, tables)
        if pattern in found:
            raise UsageError(f"{at}: a second table for {pattern}", hint="keep one of them")
        found[pattern] = _table(at, ("pair", pattern), tables, {})
    found = dict(sorted(found.items(), key=lambda item: -item[0].split(":").count(ANY)))
    return found, _fallback(place, pairs, found)


def _fallback(place: str, pairs: Mapping[str, Any], found: Mapping[str, Table]) -> str | None:
    if "fallback" not in pairs:
        return None
    given = pairs["fallback"]
    pattern = _pattern(f"{place}: pair.fallback", given if isinstance(given, str) else str(given))
    if pattern not in found:
        raise UsageError(
            f"{place}: pair.fallback = '{given}': there is no table for it; "
            f"known: {', '.join(found) or '-'}",
            hint=_PAIR_HINT,
        )
    return pattern


def _pattern(place: str, text: str) -> str:
    """Return ``source:target`` in canonical names; ``*`` stands for any domain."""
    ends = [end.strip() for end in text.replace("->", ":").split(":")]
    if len(ends) != 2 or not all(ends):
        raise UsageError(f"{place}: pair '{text}': expected source:target", hint=_PAIR_HINT)
    try:
        names = [end if end == ANY else canonical_name(end) for end in ends]
    except UsageError as error:
        raise UsageError(f"{place}: pair '{text}': {error.message}", hint=error.hint) from error
    if names[0] == names[1] != ANY:
        raise UsageError(
            f"{place}: pair '{text}': a pair needs two different domains", hint=_PAIR_HINT
        )
    return ":".join(names)


def check_pair_names(values: Sequence[PairValue], present: Sequence[str]) -> None:
    """Refuse values for a pair whose domains are neither registered nor present.

    Args:
        values: Settings that hold for some pairs only.
        present: The domains that were found.

    Raises:
        UsageError: Names the domain and where it is written.
    """
    known = sorted({*present, *dataset_names(), ANY})
    for value in values:
        for end in value.pattern.split(":"):
            if end not in known:
                raise UsageError(
                    f"{value.origin}: no domain '{end}'{did_you_mean(end, known)}; "
                    f"present: {', '.join(present) or 'none'}",
                    hint="sfuda-bench ls pairs, sfuda-bench ls datasets",
                )


def check_known(place: str, kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        UsageError: The message suggests the nearest known name.
    """
    for name in given:
        if name not in known:
            near = did_you_mean(name, list(known))
            raise UsageError(
                f"{place}: unknown {kind} '{name}'{near}; known: {', '.join(sorted(known)) or '-'}",
                hint="sfuda-bench plan --explain",
            )


def check_tables(place: str, tables: Mapping[str, Any]) -> None:
    """Refuse a value where a table is expected.

    Raises:
        UsageError: Names the key.
    """
    for name, values in tables.items():
        if not isinstance(values, Mapping):
            raise UsageError(
                f"{place}: '{name}' must be a table of keys and values", hint=f"[{name}]"
            )


def _check_method(place: str, name: str) -> None:
    if name.lower() in (known.lower() for known in METHODS.names()):
        return
    known = METHODS.names()
    # "--set sourc.epochs=3" may mean a section as well as a method.
    candidates = [*_SECTION_NAMES, *known] if place == "--set" else known
    raise UsageError(
        f"{place}: unknown method '{name}'{did_you_mean(name, candidates)}; "
        f"known: {', '.join(known)}",
        hint="sfuda-bench ls methods",
    )


_SECTION_NAMES = ("data", "network", "source", "inference", "run")


def _field_names(config: type[Any]) -> list[str]:
    return [field.name for field in dataclasses.fields(config)]


# -- merging ----------------------------------------------------------------------------------


@dataclass
class Merged:
    """What the layers say about one method.

    Attributes:
        values: Setting to value where no pair says otherwise.
        origins: Dotted key to where that value comes from.
        pairs: Values that hold for some pairs only, weakest first.
        fallbacks: Dotted key to the pair whose value ``values`` holds, and who says so.
    """

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    pairs: list[PairValue] = field(default_factory=list)
    fallbacks: dict[str, str] = field(default_factory=dict)


def merge_section(
    name: str, layers: Sequence[Layer], network: str, origins: dict[str, str]
) -> dict[str, Any]:
    """Return the values of a section; a later layer and a network's table win.

    Args:
        name: The section.
        layers: Weakest first.
        network: Name of the network, or an empty text while it is not known.
        origins: Gets the origin of every value, by dotted key.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        for table in layer.general(network):
            for key, value in table.sections.get(name, {}).items():
                merged[key] = value
                origins[f"{name}.{key}"] = layer.origin(table, name, key)
    return merged


def merge_method(method: str, layers: Sequence[Layer], network: str) -> Merged:
    """Return the values of a method; a variant takes from its parent what it may inherit.

    Raises:
        UsageError: A value for some pairs is out of its range.
    """
    merged = Merged()
    parent = METHODS.get(method).parent
    inherited = _inherited(method, parent)
    for layer in layers:
        if parent is not None:
            _apply(merged, method, layer, parent, network, inherited)
        _apply(merged, method, layer, method, network, None)
    return merged


def _apply(
    merged: Merged, method: str, layer: Layer, owner: str, network: str, only: set[str] | None
) -> None:
    """Put one layer's values for ``owner`` on top of what is merged for ``method``."""

    def of(table: Table) -> Iterator[tuple[str, Any, str]]:
        for name, value in table.methods.get(owner, {}).items():
            if only is None or name in only:
                origin = layer.origin(table, owner, name)
                yield (
                    name,
                    value,
                    origin if owner == method else f"{origin} (inherited from {owner})",
                )

    for table in layer.general(network):
        for name, value, origin in of(table):
            _set(merged, method, name, value, origin)
    if layer.fallback is not None:
        for name, value, origin in of(layer.pairs[layer.fallback]):
            _set(merged, method, name, value, f"{origin}, fallback for other pairs")
            merged.fallbacks[f"{method}.{name}"] = f"{layer.fallback} ({layer.place})"
    for pattern, table in layer.pairs.items():
        for name, value, origin in of(table):
            config = METHODS.get(method).config
            checked = checked_from(config, {name: value}, method, origin)
            merged.pairs.append(PairValue(method, pattern, name, checked[name], origin))


def _set(merged: Merged, method: str, name: str, value: Any, origin: str) -> None:
    """Set a value for all pairs: what an earlier table says about some pairs is void."""
    merged.values[name] = value
    merged.origins[f"{method}.{name}"] = origin
    merged.fallbacks.pop(f"{method}.{name}", None)
    merged.pairs = [found for found in merged.pairs if found.name != name]


def _inherited(method: str, parent: str | None) -> set[str]:
    """Return the keys that a variant takes from its parent.

    A key whose default the variant declares anew is what makes it a variant: it stays.
    """
    if parent is None:
        return set()
    own, inherited = (
        {field.name: field.default for field in dataclasses.fields(METHODS.get(name).config)}
        for name in (method, parent)
    )
    return {key for key in own if key in inherited and own[key] == inherited[key]}


def checked_from(
    config: type[Any], values: Mapping[str, Any], owner: str, origin: str
) -> dict[str, Any]:
    """Check values one by one; an error says where they come from.

    Raises:
        UsageError: A wrong type, or a value out of its range.
    """
    try:
        return checked_values(config, values, owner=owner)
    except UsageError as error:
        raise UsageError(f"{error.message} (from {origin})", hint=error.hint) from error

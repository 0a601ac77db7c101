"""Settings of a trial as a TOML file for ``run --config``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

SECTIONS = ("data", "network", "source", "inference", "run")


def to_toml(
    settings: Mapping[str, Any],
    method: str,
    points: Mapping[str, Mapping[str, Any]],
    comment: Iterable[str],
) -> str:
    """Return every setting of a run of one method, so that no preset changes it.

    Args:
        settings: As :func:`sfuda_bench.settings.to_json` writes them, with the study's base.
        method: Registered name.
        points: Pair (or ``""`` for every pair) to the settings that were chosen for it.
        comment: Lines above the file.
    """
    lines = [f"# {line}".rstrip() for line in comment]
    for section in SECTIONS:
        lines += ["", f"[{section}]", *_values(settings[section])]
    general = points.get("", {})
    lines += ["", f"[methods.{method}]"]
    lines += _values(general, "chosen by the study")
    rest = {k: v for k, v in settings["methods"][method].items() if k not in general}
    lines += _values(rest)
    for pattern, values in _by_pair(settings, method, points).items():
        lines += ["", f"[pair.{json.dumps(pattern)}.methods.{method}]", *_values(values)]
    return "\n".join([*lines, ""])


def _by_pair(
    settings: Mapping[str, Any], method: str, points: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return what depends on the pair: the preset's values, then the chosen ones."""
    chosen = {name for values in points.values() for name in values}
    found: dict[str, dict[str, Any]] = {}
    for value in settings.get("pair_values", ()):
        if value["method"] == method and value["name"] not in chosen:
            found.setdefault(value["pattern"], {})[value["name"]] = value["value"]
    for pair, values in points.items():
        if pair:
            found.setdefault(pair, {}).update(values)
    return found


def _values(values: Mapping[str, Any], note: str = "") -> list[str]:
    end = f"  # {note}" if note else ""
    return [f"{name} = {_toml(value)}{end}" for name, value in values.items()]


def _toml(value: Any) -> str:
    if value is None:
        return '"none"'  # TOML has no null; settings read this word
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "inf" if value > 0 else "-inf" if value < 0 else "nan"
        return repr(value)
    if isinstance(value, int):
        return str(value)
    return json.dumps(str(value), ensure_ascii=False)

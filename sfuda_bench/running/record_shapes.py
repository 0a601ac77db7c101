"""Which fields the records of a store have, and of what kind: told apart by the file's name.

A field that is not named here may hold anything; one that is absent is the reader's business,
unless no version ever wrote a record without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfuda_bench.errors import spoilt


class _Word:
    """A text that can be part of a path: a name, or a key."""


class _Count:
    """An integer of 0 or more."""


_TEXTS: Mapping[Any, Any] = {str: str}
_DICE = {str: {str: float}}
_NETWORK: Mapping[Any, Any] = {"name": str, "encoder": str, "encoder_weights": str}
_CELL: Mapping[str, Any] = {
    "key": _Word,
    "method": _Word,
    "title": str,
    "oracle": bool,
    "strictness": str,
    "source": _Word,
    "target": _Word,
    "source_seed": _Count,
    "seed": _Count,
    "protocol": str,
    "synthetic": bool,
}
_MORE: Mapping[str, Any] = {
    "preset": str,
    "parent": (None, str),
    "citation": str,
    "method_version": _Count,
    "inference": {str: Any},
    "network": _NETWORK,
    "image_size": _Count,
    "precision": str,
    "config": {str: Any},
    "epochs": _Count,
    "source_key": str,
    "source_selection": str,
    "source_model_sha256": str,
    "adapted_model_sha256": str,
    "digests": _TEXTS,
    "tracked": bool,
    "recorded": [str],
    "code_digest": str,
}
_RUN: Mapping[str, Any] = {
    "started": str,
    "finished": str,
    "seconds": float,
    "recording_seconds": float,
    "forward_images": _Count,
    "backward_images": _Count,
    "peak_gpu_bytes": (None, _Count),
    "artefacts": [str],
    "artefacts_computed": [{"name": _Word, "key": _Word, "seconds": float}],
    "host": str,
    "device": str,
    "threads": _Count,
    "versions": _TEXTS,
    "run": (None, _Word),
    "roi_crop_px": _Count,
    "warnings": [str],
}
_CARD: Mapping[str, Any] = {
    "source_seed": _Count,
    "recipe": (None, {str: Any}),
    "imported": (None, {str: Any}),
    "network": _NETWORK,
    "image_size": (None, _Count),
    "roi_crop_px": _Count,
    "updates": _Count,
    "seconds": float,
    "test_dice": _DICE,
    "validation_dice": _DICE,
    "parameters": _Count,
    "selection": str,
    "model_sha256": str,
}
_SCORES: Mapping[str, Any] = {
    "profile": str,
    "profile_fields": {str: Any},
    "scorer_version": _Count,
    "engine": str,
    "evaluation_grid": _Count,
    "mask_digest": str,
    "average_last": (None, _Count),
    "score_key": str,
    "digest": str,
    "digests": _TEXTS,
    "bytes": _TEXTS,
}
_ERROR: Mapping[str, Any] = {
    "key": _Word,
    "method": (None, str),
    "source": (None, str),
    "target": (None, str),
    "source_seed": (None, _Count),
    "seed": (None, _Count),
    "failure": str,
    "class": str,
    "message": str,
    "attempts": _Count,
    "log": str,
    "exit_code": (None, int),
    "signal": (None, str),
    "time": str,
}
_SHAPES: Mapping[str, tuple[Mapping[Any, Any], Mapping[Any, Any]]] = {
    # file name: fields of every record, fields of some
    "store.json": ({"schema": int}, {}),
    "cell.json": ({}, {**_CELL, **_MORE}),  # whoever reads cells says what they lack
    "run.json": ({}, _RUN),
    "card.json": ({"key": _Word, "domain": _Word}, _CARD),
    "cost.json": (
        {},
        {"seconds": float, "forward_images": _Count, "backward_images": _Count},
    ),
    "error.json": ({}, _ERROR),
    "thresholds.json": ({}, {"ece": {str: float}, "mask_digest": str, "version": _Count}),
    "selections.json": ({str: _Count}, {}),
    "last.json": ({"cells": [(_CELL, _MORE)]}, {}),
    "manifest.json": ({}, {"files": _TEXTS, "seals": bool}),
    "committing.json": ({"staged": _Word, "final": str, "manifest": str}, {}),
}


def check_shape(path: Path, record: Mapping[str, Any]) -> None:
    """Check the kinds of a record's fields; records of other names may hold anything.

    Raises:
        StoreSchemaError: A field of every record is missing, or one is of another kind; the
            message names file and field.
    """
    scored = path.name.startswith("scores-") and path.suffix == ".json"
    shape = ({}, _SCORES) if scored else _SHAPES.get(path.name)
    problem = _wrong(record, shape, "") if shape else ""
    if problem:
        raise spoilt(path, f"damaged: {problem}")


def _wrong(value: Any, shape: Any, name: str) -> str:
    """Return what is wrong with a value, or an empty text."""
    if isinstance(shape, tuple) and isinstance(shape[0], Mapping):
        always, sometimes = shape
        return _wrong_record(value, always, sometimes, name)
    if isinstance(shape, tuple):
        return "" if value is None else _wrong(value, shape[1], name)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _expected(name, "a list", value)
        parts = ((part, shape[0], f"{name}[{place}]") for place, part in enumerate(value))
        return next(filter(None, (_wrong(*part) for part in parts)), "")
    if isinstance(shape, Mapping):
        return _wrong_record(value, {}, shape, name)
    return "" if _is(value, shape) else _expected(name, _NAMES[shape], value)


def _wrong_record(
    value: Any, always: Mapping[Any, Any], sometimes: Mapping[Any, Any], name: str
) -> str:
    if not isinstance(value, Mapping):
        return _expected(name, "an object", value)
    dot = f"{name}." if name else ""
    missing = [field for field in always if field is not str and field not in value]
    if missing:
        return f"lacks {', '.join(dot + field for field in missing)}"
    shapes = {**always, **sometimes}
    rest = shapes.get(str, Any)
    parts = ((value[n], shapes.get(n, rest), f"{dot}{n}") for n in value)
    return next(filter(None, (_wrong(*part) for part in parts)), "")


_NAMES = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a finite number",
    _Word: "a name",
    _Count: "an integer of 0 or more",
}


def _is(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is _Word:
        return isinstance(value, str) and bool(value) and not {*"/\\\0"} & {*value}
    if kind in (int, _Count):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and (kind is int or 0 <= value < 2**63)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and abs(value) < 1e300 and math.isfinite(value)
    return isinstance(value, kind)


def _expected(name: str, what: str, value: Any) -> str:
    return f"'{name}' is {repr(value)[:40]}, expected {what}"

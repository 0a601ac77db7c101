"""Numbers of others, each with its source, read from the TOML files that ship with the package."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from sfuda_bench.errors import UsageError
from sfuda_bench.scoring.profiles import PROFILES

PARTS = ("cup", "disc", "avg")
NOT_STATED = "not stated"
NO_PROFILE = "none"
SOURCE_MODELS = ("own", "released", NOT_STATED)
METRICS = {"dice": (0, 100), "asd": (0, 1000), "dice_gain": (-100, 100)}
"""Metrics and the range of a possible value."""

_HERE = Path(__file__).resolve().parents[1]
_SETTING = {"source_model": str, "roi": str, "image_size": int, "network": str}
_ABOUT = {"source": str, "profile": str, "protocol": str, "selection": str, "notes": str}
_OPTIONAL = ("notes", "roi", "image_size", "network", "test_images")
_RESULT = {"method": str, "pair": str, "metric": str, "test_images": int, **_ABOUT, **_SETTING}
_NUMBERS = (*PARTS, *(f"{part}_std" for part in PARTS))


@dataclass(frozen=True)
class PublishedValue:
    """One number that somebody else printed.

    Attributes:
        table: Name of the file's table.
        method: Our name of the method where we have it.
        pair: Source and target domain; ``not stated`` where the source is silent.
        structure: ``cup``, ``disc`` or ``avg``.
        metric: A key of ``METRICS``.
        value: In percent, pixels or points.
        decimals: Digits printed after the point.
        std: Deviation in the same unit, if printed.
        source: Paper, file or thread, with table or page.
        profile: Scoring profile, or ``none``.
        protocol: How it was adapted, or ``not stated``.
        selection: Which epoch, or ``not stated``.
        source_model: ``own``, ``released`` or ``not stated``.
        roi: How the images were cropped, empty if not stated.
        image_size: Side of the model's input in pixels, if stated.
        network: Name, empty if not stated.
        test_images: Number of test images, if stated.
        notes: What else a reader should know.
    """

    table: str
    method: str
    pair: tuple[str, str]
    structure: str
    metric: str
    value: float
    decimals: int
    std: float | None
    source: str
    profile: str
    protocol: str
    selection: str
    source_model: str
    roi: str
    image_size: int | None
    network: str
    test_images: int | None
    notes: str


def published_folder() -> Path:
    """Return where the files are: inside the installed package, or in the checkout."""
    installed = _HERE / "published"
    return installed if installed.is_dir() else _HERE.parent / "results" / "published"


def read_published(folder: Path | None = None) -> dict[str, list[PublishedValue]]:
    """Read every published number, by the name of its table.

    Args:
        folder: Folder of TOML files; ``None`` for those that ship with the package.

    Raises:
        UsageError: A file is malformed, lacks a source, or prints one number twice.
    """
    tables: dict[str, list[PublishedValue]] = {}
    for path in sorted((folder or published_folder()).glob("*.toml")):
        name, values = _read_file(path)
        if name in tables:
            raise UsageError(f"{path}: the name '{name}' is taken by another file")
        tables[name] = values
    return tables


def _read_file(path: Path) -> tuple[str, list[PublishedValue]]:
    try:
        document = tomllib.loads(path.read_text("utf-8"), parse_float=Decimal)
    except (ValueError, OSError) as error:
        raise UsageError(f"{path}: not readable as TOML ({error})") from error
    about = {key: document[key] for key in document if key not in ("result", "setting")}
    _check_types(path, about, {"name": str, "title": str, **_ABOUT})
    _require(path, about, ("name", "title", "source", "profile", "protocol", "selection"))
    _check_types(path, document.get("setting", {}), _SETTING)
    shared = {key: about[key] for key in about if key not in ("name", "title")}
    shared |= document.get("setting", {})
    values: list[PublishedValue] = []
    for position, result in enumerate(document.get("result", []), start=1):
        where = f"{path}: result {position}"
        numbers = {key: result[key] for key in result if key in _NUMBERS}
        own = {key: result[key] for key in result if key not in _NUMBERS}
        _check_types(where, own, _RESULT)
        notes = " ".join(filter(None, (shared.get("notes", ""), own.get("notes", ""))))
        fields = {**shared, **own, "notes": notes}
        _require(where, fields, [key for key in _RESULT if key not in _OPTIONAL])
        values += _expand(where, about["name"], fields, numbers)
    _refuse_twins(path, values)
    return about["name"], values


def _expand(
    where: str, table: str, fields: Mapping[str, Any], numbers: Mapping[str, Any]
) -> Iterator[PublishedValue]:
    pair = tuple(fields["pair"].split(":"))
    choices = {
        "metric": tuple(METRICS),
        "profile": (*PROFILES, NO_PROFILE),
        "source_model": SOURCE_MODELS,
    }
    for key, known in choices.items():
        if fields[key] not in known:
            raise UsageError(f"{where}: {key} = '{fields[key]}', expected one of {known}")
    if len(pair) != 2 or not all(pair):
        raise UsageError(f"{where}: pair = '{fields['pair']}', expected source:target")
    if not any(part in numbers for part in PARTS):
        raise UsageError(f"{where}: no number; expected any of {', '.join(PARTS)}")
    for part in PARTS:
        if part in numbers:
            value, decimals = _number(where, part, numbers[part], METRICS[fields["metric"]])
            std = numbers.get(f"{part}_std")
            yield PublishedValue(
                table=table,
                structure=part,
                value=value,
                decimals=decimals,
                std=None if std is None else _number(where, f"{part}_std", std, (0, 1000))[0],
                **{**_DEFAULTS, **fields, "pair": pair},
            )


_DEFAULTS = {"roi": "", "image_size": None, "network": "", "test_images": None}


def _number(where: str, key: str, value: object, limits: tuple[int, int]) -> tuple[float, int]:
    """Return a number and its printed decimals."""
    # A boolean is an int in Python, and no number here.
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise UsageError(f"{where}: {key} = {value!r}, expected a number")
    if not limits[0] <= value <= limits[1]:
        raise UsageError(f"{where}: {key} = {value}, expected {limits[0]} to {limits[1]}")
    exponent = Decimal(value).as_tuple().exponent
    return float(value), -exponent if isinstance(exponent, int) else 0


def _check_types(where: object, fields: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for key, value in fields.items():
        if key not in kinds:
            raise UsageError(f"{where}: unknown key '{key}', expected: {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise UsageError(f"{where}: {key} = {value!r}, expected {kinds[key].__name__}")


def _require(where: object, fields: Mapping[str, Any], keys: Any) -> None:
    missing = [key for key in keys if not str(fields.get(key, "")).strip()]
    if missing:
        raise UsageError(f"{where}: lacks {', '.join(missing)}")


def _refuse_twins(path: Path, values: list[PublishedValue]) -> None:
    seen: set[PublishedValue] = set()
    for value in values:
        identity = replace(value, value=0.0, decimals=0, std=None)
        if identity in seen:
            raise UsageError(
                f"{path}: {value.method} {':'.join(value.pair)} {value.metric} {value.structure} "
                "is there twice"
            )
        seen.add(identity)

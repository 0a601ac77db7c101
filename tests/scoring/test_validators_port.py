"""Registering a validator, and asking for one that needs what may not be had."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfuda_bench.cli import main
from sfuda_bench.errors import UsageError
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.scoring.validators import (
    VALIDATORS,
    ValidationRecord,
    evaluate,
    get_validator,
    register_validator,
)

PLUGIN = '''
from sfuda_bench.scoring.validators import ValidationRecord, register_validator


@register_validator("area_of_the_cup", version=3, source="for tests")
def area(record: ValidationRecord) -> tuple[float, float]:
    """The mean probability."""
    return float(record.prob[:, 0].mean()), float(record.prob[:, 1].mean())
'''


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what a test registers."""
    VALIDATORS.load()
    for name in ("_values", "_origins", "_aliases"):
        monkeypatch.setattr(VALIDATORS, name, dict(getattr(VALIDATORS, name)))
    yield


@pytest.mark.usefixtures("registry")
def test_a_plugin_file_adds_a_validator(tmp_path: Path) -> None:
    path = tmp_path / "cup_area.py"
    path.write_text(PLUGIN)
    load_plugin_file(path)
    spec = get_validator("area_of_the_cup")
    assert (spec.version, spec.strictness, spec.origin) == (3, "S0", str(path))
    prob = np.stack([np.full((4, 4), 0.25), np.full((4, 4), 0.5)])[None]
    assert evaluate(ValidationRecord(prob), [spec.name]) == {spec.name: (0.25, 0.5)}


@pytest.mark.parametrize("name", ["dev", "iwcv", "mmd", "knn", "source_val", "DEV"])
def test_a_validator_that_needs_source_images_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not source-free"):
        get_validator(name)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'consistency'"):
        get_validator("consistancy")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("primary", {}, "reserved"),
        ("collapsed", {}, "reserved"),
        ("dev", {}, "reserved"),
        ("mine", {"needs": {"labels"}}, "unknown 'labels'"),
        ("mine", {"needs": {"area_prior"}}, "at least S1"),
        ("mine", {"strictness": "S3"}, "strictness S3"),
    ],
)
def test_a_registration_that_cannot_hold_is_refused(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        register_validator(name, version=1, source="x", **options)


@pytest.mark.usefixtures("registry")
def test_two_validators_of_one_name_clash() -> None:
    with pytest.raises(UsageError, match="two validators named 'entropy'"):
        register_validator("entropy", version=1, source="x")(lambda record: (0.0, 0.0))


def test_validators_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "validators", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["imp_rev"]["strictness"] == "S1" and rows["imp_rev"]["needs"] == "area_prior"
    assert all(row["description"].endswith(".") for row in rows.values())

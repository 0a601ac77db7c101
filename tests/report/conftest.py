"""A small fabricated store whose means can be checked by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sfuda_bench.frames import write_parquet

REAL = ("drishti_gs", "rim_one_r3")
SYNTHETIC = ("syn_a", "syn_b")
PROFILE_FIELDS = {
    "standard": {
        "name": "standard",
        "threshold": 0.5,
        "smooth": 0.0,
        "empty_policy": "worst",
        "asd_definition": "directed",
    },
    "cpr-2023": {
        "name": "cpr-2023",
        "threshold": 0.75,
        "smooth": 1.0,
        "empty_policy": "exclude",
        "asd_definition": "pooled",
    },
}
METHODS = {
    "source_only": ("Source only", "offline", False, "S0"),
    "cpr_cbam": ("cpr_cbam", "offline", False, "S0"),
    "tent": ("Tent", "online", False, "S1"),
    "target_supervised": ("Target supervised", "offline", True, "S0"),
}

Scores = Mapping[str, tuple[float, ...]]
"""``dice_cup``, ``dice_disc``, ``asd_cup``, ``asd_disc``: one value per image."""


def key_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@dataclass
class FakeStore:
    out: Path

    def __post_init__(self) -> None:
        self.write("store.json", {"schema": 1})

    def write(self, name: str, value: Any) -> Path:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), "utf-8")
        return path

    def asked(self, method: str, pair: tuple[str, str], seed: int, **more: Any) -> dict[str, Any]:
        title, protocol, oracle, strictness = METHODS[method]
        cell = {
            "method": method,
            "title": title,
            "oracle": oracle,
            "strictness": strictness,
            "source": pair[0],
            "target": pair[1],
            "source_seed": 0,
            "seed": seed,
            "protocol": protocol,
            "preset": "quick",
            "synthetic": pair == SYNTHETIC,
        }
        cell["key"] = key_of(sorted(cell.items()), sorted(more.items()))
        return cell

    def add(
        self,
        method: str,
        pair: tuple[str, str],
        seed: int,
        scores: Scores | None,
        *,
        profiles: tuple[str, ...] = ("standard",),
        selections: tuple[str, ...] = ("last",),
        shuffle: int | None = None,
        config: Mapping[str, Any] | None = None,
        epochs: int = 2,
    ) -> Path:
        """Store one finished cell; ``scores=None`` leaves it unscored."""
        cell = self.asked(method, pair, seed, **(config or {}))
        folder: Path = self.out / "cells" / method / "-".join(pair) / cell["key"][:16]
        record = {
            **cell,
            "schema": 1,
            "method_version": 1,
            "inference": {"batch_norm": "running", "dropout": False, "pooling_bn": True},
            "network": {
                "name": "deeplabv3plus",
                "encoder": "mobilenet_v2",
                "encoder_weights": "none",
            },
            "image_size": 128,
            "precision": "float32",
            "config": dict(config or {}),
            "epochs": epochs,
        }
        self.write(f"{folder.relative_to(self.out)}/cell.json", record)
        for profile in profiles if scores else ():
            cases = pd.concat([_cases(cell, scores or {}, name) for name in selections])
            if shuffle is not None:
                cases = cases.sample(frac=1.0, random_state=shuffle)
            write_parquet(cases, folder / f"cases-{profile}.parquet")
            scoring = {
                "profile": profile,
                "profile_fields": PROFILE_FIELDS[profile],
                "scorer_version": 1,
                "engine": "core",
            }
            self.write(f"{folder.relative_to(self.out)}/scores-{profile}.json", scoring)
        return folder

    def plan(self, cells: list[dict[str, Any]]) -> None:
        self.write("plans/last.json", {"cells": cells})

    def fail(self, cell: dict[str, Any], message: str = "out of memory") -> Path:
        folder: Path = self.out / "attempts" / cell["key"][:16]
        names = ("key", "method", "source", "target", "seed", "source_seed")
        error = {name: cell[name] for name in names}
        error |= {"class": "RuntimeError", "message": message, "time": "2026-01-01T00:00:00"}
        self.write(f"attempts/{folder.name}/error.json", error)
        return folder


def _cases(cell: Mapping[str, Any], scores: Scores, selection: str) -> pd.DataFrame:
    identity = {name: cell[name] for name in ("method", "source", "target", "source_seed", "seed")}
    rows = []
    for structure in ("cup", "disc"):
        asds = scores[f"asd_{structure}"]
        for image, (dice, asd) in enumerate(zip(scores[f"dice_{structure}"], asds, strict=True)):
            rows.append(
                {
                    **identity,
                    "selection": selection,
                    "image": f"image{image}",
                    "structure": structure,
                    "dice": dice,
                    "assd_directed_px": asd,
                    "assd_pooled_px": asd + 1,
                    "empty_prediction": dice == 0,
                    "empty_truth": False,
                }
            )
    return pd.DataFrame(rows)


def constant(dice_cup: float, dice_disc: float, asd_cup: float, asd_disc: float) -> Scores:
    """Two images of equal scores."""
    return {
        "dice_cup": (dice_cup,) * 2,
        "dice_disc": (dice_disc,) * 2,
        "asd_cup": (asd_cup,) * 2,
        "asd_disc": (asd_disc,) * 2,
    }


def fill(store: FakeStore, shuffle: int | None = None) -> None:
    """Four methods, two pairs, seeds 0 and 1.

    ``tent`` failed on the real pair with seed 1; ``source_only`` is missing on the synthetic one.
    The images' means over seeds on the real pair are, for ``cpr_cbam``, cup 85 and 75.
    """
    source_only = {
        "dice_cup": (0.8, 0.6),
        "dice_disc": (0.90, 0.94),
        "asd_cup": (10.0, 14.0),
        "asd_disc": (4.0, 4.0),
    }
    asd = {"asd_cup": (8.0, 10.0), "asd_disc": (5.0, 5.0)}
    cpr = [
        {"dice_cup": (0.8, 0.7), "dice_disc": (0.92, 0.92), **asd},
        {"dice_cup": (0.9, 0.8), "dice_disc": (0.92, 0.92), **asd},
    ]
    for seed in (0, 1):
        store.add("source_only", REAL, seed, source_only, shuffle=shuffle, epochs=0)
        store.add("cpr_cbam", REAL, seed, cpr[seed], shuffle=shuffle)
        store.add("cpr_cbam", SYNTHETIC, seed, constant(0.9, 0.96, 3, 1), shuffle=shuffle)
        store.add("tent", SYNTHETIC, seed, constant(0.5, 0.0, 5, 181), shuffle=shuffle)
        for pair in (REAL, SYNTHETIC):
            upper = constant(0.95, 0.97, 2, 1)
            store.add("target_supervised", pair, seed, upper, shuffle=shuffle, epochs=0)
    store.add("tent", REAL, 0, constant(0.99, 0.99, 1, 1), shuffle=shuffle)
    asked = [
        store.asked(method, pair, seed)
        for pair in (REAL, SYNTHETIC)
        for method in METHODS
        for seed in (0, 1)
    ]
    store.plan(asked)
    store.fail(store.asked("tent", REAL, 1))


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    """An empty store."""
    return FakeStore(tmp_path / "out")


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., FakeStore]:
    """Build a filled store: ``make_store(name, shuffle=seed)``."""

    def make(name: str = "filled", shuffle: int | None = None) -> FakeStore:
        made = FakeStore(tmp_path / name)
        fill(made, shuffle)
        return made

    return make

"""A fabricated store with all that figures and the HTML report read: many methods, 6 pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sfuda_bench.frames import write_parquet

METHODS = {
    # title, oracle, strictness, gain in cup and disc Dice, epochs
    "source_only": ("Source only", False, "S0", (0.0, 0.0), 0),
    "bn_adapt": ("BN adaptation", False, "S0", (0.02, 0.005), 0),
    "entropy_min": ("Entropy minimisation", False, "S0", (-0.03, -0.01), 4),
    "dpl": ("DPL", False, "S0", (0.05, 0.01), 2),
    "area": ("Area prior", False, "S1", (0.04, 0.008), 6),
    "cpr": ("CPR", False, "S0", (0.07, 0.015), 10),
    "cpr_cbam": ("CPR + CBAM", False, "S0", (0.075, 0.015), 10),
    "upper": ("Target supervised", True, "S0", (0.15, 0.04), 10),
}
DOMAINS = ("drishti_gs", "rim_one_r3", "synthetic_a")
PROFILES = {"standard": 0.5, "cpr-2023": 0.75}
STRUCTURES = ("cup", "disc")


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class RichStore:
    """Writes a store; equal arguments write equal values, ``shuffle`` their rows in an order."""

    def __init__(
        self,
        out: Path,
        *,
        methods: Sequence[str] = tuple(METHODS),
        pairs: Sequence[tuple[str, str]] | None = None,
        seeds: int = 2,
        images: int = 50,
        profiles: Sequence[str] = tuple(PROFILES),
        shuffle: int | None = None,
        rename: dict[str, str] | None = None,
        lost: Sequence[str] = ("entropy_min",),
    ) -> None:
        self.out = out
        self.images = images
        self.profiles = profiles
        self.shuffle = shuffle
        self.rename = rename or {}
        self.pairs = pairs or [(a, b) for a in DOMAINS for b in DOMAINS if a != b]
        self._json("store.json", {"schema": 1})
        asked = []
        for pair in self.pairs:
            for method in methods:
                for seed in range(seeds):
                    cell = self._asked(method, pair, seed)
                    asked.append(cell)
                    if method in lost and pair == self.pairs[0] and seed == seeds - 1:
                        self._fail(cell)
                    elif method in lost and pair == self.pairs[-1] and seed == seeds - 1:
                        continue
                    else:
                        self._cell(method, pair, cell)
        self._json("plans/last.json", {"cells": asked})

    def _name(self, text: str) -> str:
        return self.rename.get(text, text)

    def _json(self, name: str, value: Any) -> None:
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), "utf-8")

    def _frame(self, frame: pd.DataFrame, path: Path) -> None:
        if self.shuffle is not None:
            frame = frame.sample(frac=1.0, random_state=self.shuffle)
        write_parquet(frame, path)

    def _asked(self, method: str, pair: tuple[str, str], seed: int) -> dict[str, Any]:
        title, oracle, strictness, _, _ = METHODS[method]
        return {
            "key": digest(method, pair, seed),
            "method": method,
            "title": self._name(title),
            "oracle": oracle,
            "strictness": strictness,
            "source": self._name(pair[0]),
            "target": self._name(pair[1]),
            "source_seed": 0,
            "seed": seed,
            "protocol": "offline",
            "preset": "quick",
            "synthetic": "synthetic_a" in pair,
        }

    def _fail(self, cell: dict[str, Any]) -> None:
        folder = f"attempts/{cell['key'][:16]}"
        names = ("key", "method", "source", "target", "seed", "source_seed")
        error = {name: cell[name] for name in names}
        text = self._name("out of memory")
        error |= {"class": "RuntimeError", "message": text, "time": "2026-01-01T00:00:00"}
        self._json(f"{folder}/error.json", error)
        trace = f"Traceback (most recent call last):\nRuntimeError: {text}"
        (self.out / folder / "error.txt").write_text(trace, "utf-8")

    def _cell(self, method: str, pair: tuple[str, str], cell: dict[str, Any]) -> None:
        *_, gain, epochs = METHODS[method]
        folder = f"cells/{method}/{cell['source']}-{cell['target']}/{cell['key'][:16]}"
        source = digest("source", pair[0])
        record = {
            **cell,
            "schema": 1,
            "method_version": 1,
            "parent": None,
            "citation": "An Author, A Journal, 2020",
            "inference": {"batch_norm": "running", "dropout": False, "pooling_bn": True},
            "network": {"name": "tiny", "encoder": "mobilenet_v2", "encoder_weights": "none"},
            "image_size": 128,
            "precision": "float32",
            "config": {"epochs": epochs, "lr": 1e-3, "note": self._name("none")} if epochs else {},
            "source_key": digest("key", pair[0]),
            "source_model_sha256": source,
            "adapted_model_sha256": source if method == "source_only" else digest(cell["key"]),
            "digests": {"target_train": digest(pair[1], 0), "target_test": digest(pair[1], 1)},
            "epochs": epochs,
            "tracked": epochs > 0,
            "code_digest": digest("code", method),
        }
        self._json(f"{folder}/cell.json", record)
        warnings = [self._name("99.9 % of the pixels count as reliable")] if method == "dpl" else []
        self._json(
            f"{folder}/run.json",
            {
                "started": "2026-01-01T00:00:00+00:00",
                "seconds": 61.5,
                "host": "a-host",
                "device": "cpu",
                "threads": 1,
                "versions": {"torch": "2.14.0"},
                "warnings": warnings,
            },
        )
        path = self.out / folder
        (path / "log.txt").write_text(f"adapted {method}\n", "utf-8")
        for profile in self.profiles:
            self._scores(path, pair, cell, gain, epochs, profile)
        self._frame(pd.DataFrame(self._curve(cell, epochs)), path / "curve.parquet")
        self._frame(pd.DataFrame(self._thresholds(pair, gain)), path / "thresholds.parquet")

    def _dice(
        self, pair: tuple[str, str], structure: str, gain: tuple[float, float], seed: int
    ) -> np.ndarray:
        """Per-image Dice: hard images are hard for every method."""
        index = STRUCTURES.index(structure)
        base = np.random.default_rng(int(digest(pair, structure)[:8], 16))
        noise = np.random.default_rng(int(digest(pair, structure, gain, seed)[:8], 16))
        level = (0.74, 0.92)[index] + base.normal(0, (0.03, 0.01)[index])
        hard = np.abs(base.normal(0, (0.10, 0.03)[index], self.images))
        dice = level + 0.08 - hard + gain[index] + noise.normal(0, 0.02, self.images)
        return np.clip(dice, 0, 0.99)

    def _scores(
        self,
        path: Path,
        pair: tuple[str, str],
        cell: dict[str, Any],
        gain: tuple[float, float],
        epochs: int,
        profile: str,
    ) -> None:
        names = ("method", "source", "target", "source_seed", "seed")
        identity = {name: cell[name] for name in names}
        parts, eyes = [], []
        for selection in ("last", "average-last-5", "oracle") if epochs else ("last",):
            shift = 0.01 if selection == "oracle" else 0.0
            for structure in STRUCTURES:
                dice = np.clip(self._dice(pair, structure, gain, cell["seed"]) + shift, 0, 0.99)
                dice = dice - (0.02 if profile == "cpr-2023" else 0)
                frame = pd.DataFrame({"image": [f"image{i}" for i in range(self.images)]})
                frame = frame.assign(
                    **identity,
                    selection=selection,
                    structure=structure,
                    dice=dice,
                    assd_directed_px=60 * (1 - dice),
                    assd_pooled_px=55 * (1 - dice),
                    hd95_px=150 * (1 - dice),
                    nsd=dice,
                    empty_prediction=False,
                    empty_truth=False,
                )
                parts.append(frame)
            rng = np.random.default_rng(int(digest(pair, gain, cell["seed"])[:8], 16))
            truth = np.random.default_rng(7).uniform(0.3, 0.8, self.images)
            error = rng.normal(0.05 - gain[0] / 2, 0.06, self.images)
            error[0] = np.nan
            eye = pd.DataFrame({"image": [f"image{i}" for i in range(self.images)]})
            prediction = truth + error
            eyes.append(
                eye.assign(
                    **identity,
                    selection=selection,
                    vcdr_prediction=prediction,
                    vcdr_truth=truth,
                    vcdr_error=prediction - truth,
                )
            )
        self._frame(pd.concat(parts), path / f"cases-{profile}.parquet")
        self._frame(pd.concat(eyes), path / f"eyes-{profile}.parquet")
        scoring = {
            "profile": profile,
            "profile_fields": {
                "name": profile,
                "threshold": PROFILES[profile],
                "smooth": 0.0,
                "empty_policy": "worst",
                "asd_definition": "directed",
            },
            "scorer_version": 1,
            "engine": "core",
            "evaluation_grid": 512,
        }
        self._json(f"{path.relative_to(self.out)}/scores-{profile}.json", scoring)
        if epochs:
            self._frame(
                pd.DataFrame(self._epochs(cell, epochs)), path / f"epochs-{profile}.parquet"
            )

    def _curve(self, cell: dict[str, Any], epochs: int) -> dict[str, list[Any]]:
        rows = [(0, "reliable_share", 0.8)] if epochs else []
        for epoch in range(1, epochs + 1):
            rows.append((epoch, "loss", 0.5 / epoch + 0.02 * cell["seed"]))
            rows.append((epoch, "kept_share", 0.6 + 0.02 * epoch))
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        names = ("epoch", "name", "value")
        return {n: list(c) for n, c in zip(names, columns, strict=True)}

    def _epochs(self, cell: dict[str, Any], epochs: int) -> Iterator[dict[str, Any]]:
        for epoch in range(epochs + 1):
            for structure in STRUCTURES:
                for image in range(self.images):
                    yield {
                        "epoch": epoch,
                        "structure": structure,
                        "image": f"image{image}",
                        "dice": 0.8 + 0.02 * epoch - 0.002 * epoch**2 + 0.001 * cell["seed"],
                    }

    def _thresholds(
        self, pair: tuple[str, str], gain: tuple[float, float]
    ) -> Iterator[dict[str, Any]]:
        for structure in STRUCTURES:
            dice = self._dice(pair, structure, gain, 0)
            for threshold in np.linspace(0.05, 0.95, 19):
                shape = 0.3 * (threshold - 0.5 - gain[0]) ** 2
                for image in range(self.images):
                    yield {
                        "threshold": float(threshold),
                        "structure": structure,
                        "image": f"image{image}",
                        "dice": float(max(dice[image] - shape, 0)),
                    }

"""From a request to cells: what has to be computed, under which keys, from which files.

Every key is known before anything is trained. Planning decodes and packs the images it needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sfuda_bench.datasets import (
    Domain,
    canonical_name,
    domain_index,
    materialise_synthetic,
    read_domain,
)
from sfuda_bench.errors import EnvironmentProblem, MissingMasks, UsageError
from sfuda_bench.images.packed import PackedImages, PackedMasks, pack_images, pack_masks
from sfuda_bench.methods import METHODS, MethodSpec
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.code_digest import code_digest
from sfuda_bench.running.keys import digest, file_digest
from sfuda_bench.running.request import RunRequest
from sfuda_bench.running.score import needs_scoring, score_key
from sfuda_bench.running.sources import source_key
from sfuda_bench.running.store import SCHEMA, Store, read_json, write_json
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.selectors import Pair, parse_pairs
from sfuda_bench.tunable import keyed_values

_ENGINE = "core"
CELL_VERSION = 1
"""Raise it when the harness itself (augmentation, packing, prediction) changes results."""


@dataclass(frozen=True)
class SourcePlan:
    """One source model: its recipe key and the job that trains it."""

    key: str
    domain: str
    source_seed: int
    folder: Path
    job: Mapping[str, Any]
    blocked: str = ""

    @property
    def done(self) -> bool:
        """Whether it is committed."""
        return (self.folder / "card.json").is_file()


@dataclass(frozen=True)
class CellPlan:
    """One cell: its key, its state, and the job that computes it."""

    key: str
    method: str
    pair: Pair
    seed: int
    source_seed: int
    protocol: str
    state: str
    reason: str
    role: str
    folder: Path
    source: SourcePlan
    job: Mapping[str, Any]
    scoring: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Short name for messages, e.g. ``cpr refuge_train:drishti_gs seed 0``."""
        seeds = f"seed {self.seed}"
        if self.source_seed:
            seeds += f" source seed {self.source_seed}"
        return f"{self.method} {self.pair} {seeds}"


@dataclass
class Plan:
    """Everything that one command asks for.

    Attributes:
        request: The request it follows from.
        store: The open store.
        cells: Asked cells in table order.
        sources: Source models they need, without repeats.
        disk_bytes: Rough disk use of what is still to do.
        seconds_estimate: From the times of stored cells of the same method and image size, or
            ``None`` when there are none.
        warnings: What the user should know before the run.
        forbidden: Folders that an adapting process must not open: masks, names, raw files.
    """

    request: RunRequest
    store: Store
    cells: list[CellPlan]
    sources: list[SourcePlan]
    disk_bytes: int = 0
    seconds_estimate: float | None = None
    warnings: list[str] = field(default_factory=list)
    forbidden: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the plan as one JSON document."""
        counts = {state: sum(c.state == state for c in self.cells) for state in _STATES}
        return {
            "out": str(self.request.out),
            "preset": self.request.settings.preset,
            **counts,
            "disk_bytes": self.disk_bytes,
            "seconds_estimate": self.seconds_estimate,
            "warnings": self.warnings,
            "sources": [
                {
                    "domain": s.domain,
                    "source_seed": s.source_seed,
                    "key": s.key,
                    "state": "done" if s.done else "blocked" if s.blocked else "todo",
                    "reason": s.blocked,
                }
                for s in self.sources
            ],
            "cells": [
                {
                    "method": c.method,
                    "source": c.pair.source,
                    "target": c.pair.target,
                    "seed": c.seed,
                    "source_seed": c.source_seed,
                    "protocol": c.protocol,
                    "key": c.key,
                    "state": c.state,
                    "reason": c.reason,
                }
                for c in self.cells
            ],
        }


_STATES = ("todo", "done", "blocked")


def build_plan(request: RunRequest) -> Plan:
    """Plan every asked cell.

    Raises:
        UsageError: Unknown names, a protocol that a method lacks.
        DataError: Missing or unreadable images.
        EnvironmentProblem: A folder that cannot be written.
    """
    for path in request.plugins:
        load_plugin_file(path)
    store = Store.open(request.out)
    return _Planner(request, store).plan()


class _Planner:
    """Holds what the cells of one plan share: domains, packed splits, source plans."""

    def __init__(self, request: RunRequest, store: Store) -> None:
        self.request = request
        self.settings = request.settings
        self.store = store
        self.precision = _precision(request)
        self.folders = _domain_folders(request, store)
        self._domains: dict[str, Domain] = {}
        self.profiles = [get_profile(name) for name in request.profiles]
        self._images: dict[tuple[str, str, int], PackedImages] = {}
        self._masks: dict[tuple[str, str, int], PackedMasks | None] = {}
        self._sources: dict[tuple[str, int], SourcePlan] = {}

    def plan(self) -> Plan:
        for method in self.request.methods:
            spec = METHODS.get(method)
            if spec.check is not None:
                spec.check(self.settings.methods[method], self.settings.data.image_size)
        pairs = parse_pairs(self.request.pairs, list(self.folders), canonical_name)
        cells = [
            self.cell(METHODS.get(method), pair, source_seed, seed)
            for pair in pairs
            for method in self.request.methods
            for source_seed in self.request.source_seeds
            for seed in self.request.seeds
        ]
        sources = list(self._sources.values())
        plan = Plan(self.request, self.store, cells, sources)
        plan.disk_bytes = self._disk_bytes(cells)
        plan.seconds_estimate = self._estimate(cells)
        packed = self.store.packed
        plan.forbidden = (packed / "masks", packed / "names", *self.folders.values())
        plan.warnings = sorted({warning for cell in cells for warning in cell.warnings})
        return plan

    def domain(self, name: str) -> Domain:
        """Return a domain, read when the first pair needs it: others may be incomplete."""
        if name not in self._domains:
            self._domains[name] = read_domain(self.folders[name])
        return self._domains[name]

    # -- packed splits ----------------------------------------------------------------------

    def images(self, domain: str, split: str, size: int) -> PackedImages:
        at = (domain, split, size)
        if at not in self._images:
            chosen = self.domain(domain).split(split)
            self._images[at] = pack_images(chosen, size, self.store.packed)
        return self._images[at]

    def masks(self, domain: str, split: str, size: int) -> PackedMasks | None:
        at = (domain, split, size)
        if at not in self._masks:
            chosen = self.domain(domain).split(split)
            self._masks[at] = pack_masks(chosen, size, self.store.packed, optional=True)
        return self._masks[at]

    # -- source models ----------------------------------------------------------------------

    def source(self, domain: str, source_seed: int) -> SourcePlan:
        at = (domain, source_seed)
        if at not in self._sources:
            self._sources[at] = self._plan_source(domain, source_seed)
        return self._sources[at]

    def _plan_source(self, domain: str, source_seed: int) -> SourcePlan:
        size = self.settings.data.image_size
        large = round(self.settings.source.train_scale * size)
        images, masks, blocked = self.images(domain, "train", size), None, ""
        try:
            masks = self.masks(domain, "train", size)
            if masks is None:
                blocked = f"{domain}/train has no masks, so no source model can be trained"
        except MissingMasks as error:
            blocked = f"no source model of {domain}: {error.message}"
        data = {"images": images.set_digest, "masks": masks.mask_digest if masks else "none"}
        network = self.settings.network
        key = source_key(
            data_digest=data,
            network=network,
            network_version=NETWORKS.get(network.name).version,
            encoder_digest=_encoder_digest(network.encoder_weights),
            image_size=size,
            recipe=self.settings.source,
            precision=self.precision,
            source_seed=source_seed,
        )
        folder = self.store.source(domain, key)
        job = {
            "kind": "source",
            "key": key,
            "domain": domain,
            "source_seed": source_seed,
            "network": asdict(network),
            "recipe": asdict(self.settings.source),
            "image_size": size,
            "precision": self.precision,
            "data_digest": data,
            "source_dir": str(folder),
        }
        if not blocked and not (folder / "card.json").is_file():
            job["train"] = self._labelled(domain, "train", size)
            job["train_large"] = self._labelled(domain, "train", large)
            job["test"] = self._labelled_test(domain, size)
        return SourcePlan(key, domain, source_seed, folder, job, blocked)

    def _labelled(self, domain: str, split: str, size: int) -> dict[str, str] | None:
        masks = self.masks(domain, split, size)
        if masks is None:
            return None
        return {"images": str(self.images(domain, split, size).path), "masks": str(masks.path)}

    def _labelled_test(self, domain: str, size: int) -> dict[str, str] | None:
        """Return the ``test`` split for the model card, or ``None`` without its masks."""
        try:
            return self._labelled(domain, "test", size)
        except MissingMasks:
            return None

    # -- cells ------------------------------------------------------------------------------

    def cell(self, spec: MethodSpec, pair: Pair, source_seed: int, seed: int) -> CellPlan:
        protocol = self._protocol(spec)
        source = self.source(pair.target if spec.oracle else pair.source, source_seed)
        size = self.settings.data.image_size
        train = self.images(pair.target, "train", size)
        test = self.images(pair.target, "test", size)
        digests = {"target_test": test.set_digest}
        if protocol == "offline" and not spec.oracle:
            digests["target_train"] = train.set_digest
        key_fields = self._key_fields(spec, source, protocol, seed, digests)
        if spec.oracle:  # its model does not depend on the pair's source; its cell must
            key_fields["pair"] = str(pair)
        key = digest(key_fields)
        folder = self.store.cell(spec.name, pair.source, pair.target, key)
        adapted_on = digests.get("target_train", test.set_digest)
        shared = {**_shared(key_fields), "adapted_on": adapted_on}
        record = self._record(spec, pair, source_seed, key, key_fields, source, digests)
        job = {
            "kind": "reference" if spec.oracle else "cell",
            "key": key,
            "cell": record,
            "cell_dir": str(folder),
            "source_dir": str(source.folder),
            "images": {
                "train": {"images": str(train.path), "ids": train.ids},
                "test": {"images": str(test.path), "ids": test.ids},
            },
            "network": asdict(self.settings.network),
            "inference": asdict(self.settings.inference),
            "precision": self.precision,
            "stream_key": digest({"streams": shared}),
            "artefact_base": shared,
            "track": self.request.track,
            "keep_model": self.request.keep_models,
            "code_digest": code_digest(Path(spec.origin)),
        }
        state, reason, warnings = self._state(folder, source, job)
        scoring: tuple[Mapping[str, Any], ...] = ()
        try:
            scoring = self._scoring(pair.target, key, folder)
        except MissingMasks as error:
            state, reason = "blocked", f"{pair.target} cannot be scored: {error.message}"
        return CellPlan(
            key=key,
            method=spec.name,
            pair=pair,
            seed=seed,
            source_seed=source_seed,
            protocol=protocol,
            state=state,
            reason=reason,
            role="label" if spec.oracle else "adapt",
            folder=folder,
            source=source,
            job=job,
            scoring=scoring,
            warnings=warnings,
        )

    def _protocol(self, spec: MethodSpec) -> str:
        asked = self.request.protocol
        if asked is None or spec.oracle:
            return spec.protocols[0]
        if asked not in spec.protocols:
            raise UsageError(
                f"--protocol {asked}: method '{spec.name}' supports only "
                f"{', '.join(spec.protocols)}",
                hint=f"leave out '{spec.name}', or --protocol",
            )
        return asked

    def _key_fields(
        self,
        spec: MethodSpec,
        source: SourcePlan,
        protocol: str,
        seed: int,
        digests: Mapping[str, str],
    ) -> dict[str, Any]:
        network = self.settings.network
        return {
            "cell": CELL_VERSION,
            "method": spec.name,
            "version": spec.version,
            "config": keyed_values(self.settings.methods[spec.name]),
            "frozen": {f.__name__: f.frozen_version for f in spec.frozen_steps},  # type: ignore[attr-defined]  # marked by frozen_step
            "target": dict(digests),
            "source": source.key,
            "seed": seed,
            "protocol": protocol,
            "inference": keyed_values(self.settings.inference),
            "network": [network.name, NETWORKS.get(network.name).version, network.encoder],
            "image_size": self.settings.data.image_size,
            "precision": self.precision,
        }

    def _record(
        self,
        spec: MethodSpec,
        pair: Pair,
        source_seed: int,
        key: str,
        fields: Mapping[str, Any],
        source: SourcePlan,
        digests: Mapping[str, str],
    ) -> dict[str, Any]:
        """Return the planned part of ``cell.json``."""
        ends = (self.domain(pair.source), self.domain(pair.target))
        return {
            "schema": SCHEMA,
            "key": key,
            "method": spec.name,
            "method_version": spec.version,
            "title": spec.title,
            "parent": spec.parent,
            "oracle": spec.oracle,
            "strictness": spec.strictness,
            "citation": spec.source,
            "source": pair.source,
            "target": pair.target,
            "source_seed": source_seed,
            "seed": fields["seed"],
            "protocol": fields["protocol"],
            "inference": asdict(self.settings.inference),
            "network": asdict(self.settings.network),
            "image_size": fields["image_size"],
            "precision": fields["precision"],
            "preset": self.settings.preset,
            "synthetic": any(domain.synthetic for domain in ends),
            "config": config_json(self.settings.methods[spec.name]),
            "source_key": source.key,
            "digests": dict(digests),
        }

    def _state(
        self, folder: Path, source: SourcePlan, job: Mapping[str, Any]
    ) -> tuple[str, str, tuple[str, ...]]:
        stored = folder / "cell.json"
        if stored.is_file():
            cell = read_json(stored)
            if self.request.track and not cell["tracked"]:
                return "todo", "stored without --track epochs", ()
            if cell["code_digest"] != job["code_digest"]:
                name = cell["method"]
                return (
                    "done",
                    "stored",
                    (
                        f"the code of '{name}' differs from the code that computed stored cells; "
                        "raise its version if results change",
                    ),
                )
            return "done", "stored", ()
        if source.blocked:
            return "blocked", source.blocked, ()
        return "todo", "" if source.done else "waits for its source model", ()

    def _scoring(self, target: str, key: str, folder: Path) -> tuple[Mapping[str, Any], ...]:
        """Return one scoring job per profile; none when the test split has no masks."""
        grid = self.settings.data.evaluation_grid
        masks = self.masks(target, "test", grid)
        if masks is None:
            return ()
        test = self.images(target, "test", self.settings.data.image_size)
        pairing = digest([masks.mask_digest, grid])
        where = {
            "masks": str(masks.path),
            "names": str(self.store.packed / "names" / f"{test.key}.json"),
            "ids": list(test.ids),
            "digest": pairing,
        }
        tracked = self.request.track or _is_tracked(folder)
        average_last = self.request.average_last if tracked else None
        jobs = []
        for profile in self.profiles:
            jobs.append(
                {
                    "kind": "score",
                    "key": score_key(key, pairing, profile, _ENGINE, average_last),
                    "cell_dir": str(folder),
                    "profile": profile.name,
                    "engine": _ENGINE,
                    "average_last": self.request.average_last,
                    "masks": where,
                }
            )
        return tuple(jobs)

    # -- estimates --------------------------------------------------------------------------

    def _disk_bytes(self, cells: list[CellPlan]) -> int:
        """Guess from stored cells, or 25 MB a cell (model, predictions), plus what steps freeze."""
        todo = [cell for cell in cells if cell.state == "todo"]
        sizes = [
            sum(path.stat().st_size for path in folder.parent.rglob("*") if path.is_file())
            for folder in list(self.store.root.glob("cells/*/*/*/cell.json"))[:20]
        ]
        frozen = sum(len(METHODS.get(c.method).frozen_steps) * self._label_bytes(c) for c in todo)
        return int(len(todo) * (median(sizes) if sizes else 25e6) + frozen)

    def _label_bytes(self, cell: CellPlan) -> int:
        """Bytes of one float32 map per structure over the target's ``train`` images."""
        size = self.settings.data.image_size
        return 8 * len(self.images(cell.pair.target, "train", size)) * size * size

    def _estimate(self, cells: list[CellPlan]) -> float | None:
        times: dict[str, list[float]] = {}
        for path in self.store.root.glob("cells/*/*/*/run.json"):
            cell = read_json(path.with_name("cell.json"))
            if cell["image_size"] == self.settings.data.image_size:
                times.setdefault(cell["method"], []).append(read_json(path)["seconds"])
        todo = [cell.method for cell in cells if cell.state == "todo"]
        if not todo or any(method not in times for method in todo):
            return None
        return sum(median(times[method]) for method in todo) / max(1, self.request.jobs)


def _is_tracked(folder: Path) -> bool:
    stored = folder / "cell.json"
    return stored.is_file() and bool(read_json(stored)["tracked"])


def scoring_todo(cell: CellPlan) -> list[Mapping[str, Any]]:
    """Return the scoring jobs of a committed cell whose stored scores are missing or outdated."""
    return [job for job in cell.scoring if needs_scoring(cell.folder, job["key"], job["profile"])]


def record_plan(plan: Plan) -> None:
    """Remember which cells the newest run asked for, so that tables show what is missing."""
    asked = [dict(cell.job["cell"]) for cell in plan.cells]
    write_json(plan.store.root / "plans" / "last.json", {"cells": asked})


def check_disk(plan: Plan) -> None:
    """Refuse to start when the disk cannot hold what is planned.

    Raises:
        EnvironmentProblem: Free space is below the estimate.
    """
    free = shutil.disk_usage(plan.store.root).free
    if free < plan.disk_bytes:
        raise EnvironmentProblem(
            f"--out {plan.store.root}: {free / 1e9:.1f} GB free, about "
            f"{plan.disk_bytes / 1e9:.1f} GB needed",
            hint="free some space, choose another --out, or add --no-models",
        )


def config_json(config: Any) -> dict[str, Any]:
    """Return a config as a JSON-able dict (tuples become lists)."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def _shared(key_fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a key that the random streams and the artefacts depend on.

    Without the method's name, version and settings: variants draw the same augmentations and
    share artefacts. Without the test images, unless they are what is adapted on.
    """
    kept = ("source", "seed", "protocol", "network", "image_size", "precision")
    return {name: key_fields[name] for name in kept}


def _domain_folders(request: RunRequest, store: Store) -> dict[str, Path]:
    """Return the domains' folders by name; without a data root the synthetic ones are drawn."""
    if request.data_root is not None:
        return domain_index(request.data_root)
    root = store.root / "synthetic"
    materialise_synthetic(root)
    return domain_index(root)


def _precision(request: RunRequest) -> str:
    from sfuda_bench.running.runtime import resolve_device, resolve_precision

    return resolve_precision(request.settings.precision, resolve_device(request.device).type)


def _encoder_digest(weights: str) -> str:
    """Return what identifies the starting weights: a word, or the digest of a file."""
    if weights in ("none", "imagenet"):
        return weights
    path = Path(weights)
    if not path.is_file():
        raise UsageError(
            f"--encoder-weights {weights}: expected none, imagenet or an existing file",
            hint="--encoder-weights none trains from scratch",
        )
    return file_digest(path)

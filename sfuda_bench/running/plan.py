"""From a request to cells: what has to be computed, under which keys, from which files.

Every key is known before anything is trained. Planning decodes and packs the images it needs.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from sfuda_bench.blocks.resample import scaled_side
from sfuda_bench.datasets import (
    Domain,
    canonical_name,
    dataset_knobs,
    domain_index,
    materialise_derived,
    materialise_synthetic,
    read_domain,
)
from sfuda_bench.errors import EnvironmentProblem, MissingMasks, UsageError
from sfuda_bench.images.packed import PackedImages, PackedMasks, pack_images, pack_masks
from sfuda_bench.methods import METHODS, MethodSpec
from sfuda_bench.networks.registry import NETWORKS
from sfuda_bench.registry import load_plugin_file
from sfuda_bench.running.code_digest import code_digest
from sfuda_bench.running.keys import digest, file_digest, score_key
from sfuda_bench.running.request import RunRequest, recordable
from sfuda_bench.running.score import needs_scoring
from sfuda_bench.running.source_import import find_source
from sfuda_bench.running.sources import SOURCE_TEST_BEST, source_key
from sfuda_bench.running.store import SCHEMA, Store, read_json, stored_records, write_sealed
from sfuda_bench.scoring.profiles import get_profile
from sfuda_bench.scoring.scorer import SCORER_VERSION
from sfuda_bench.selectors import Pair, parse_pairs
from sfuda_bench.setting_layers import check_pair_names
from sfuda_bench.settings import fallback_notes
from sfuda_bench.severity import is_derived
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
    lacking: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        """Whether it is committed."""
        return (self.folder / "card.json").is_file()


@dataclass(frozen=True)
class CellPlan:
    """One cell: its key, its state, and the jobs that compute and score it.

    ``scoring`` has one job per profile, none when the test split has no masks;
    ``oracle_scoring`` has those that judge a cell on the images it adapted to.
    """

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
    oracle_scoring: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    preset: str = ""
    positions_from_labels: bool = False

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
                    "selection": s.job["recipe"]["selection"],
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
        self.given = dict(request.source_models)
        if self.given and len(request.source_seeds) > 1:
            raise UsageError(
                "--source-model gives one source model per domain, --source-seeds asks for more",
                hint=f"--source-seeds {request.source_seeds[0]}",
            )

    def plan(self) -> Plan:
        without_images = [name for name in self.given if name not in self.folders]
        check_pair_names(self.settings.pair_values, [*self.folders, *without_images])
        pairs = parse_pairs(
            self.request.pairs, list(self.folders), canonical_name, without_images, dataset_knobs
        )
        self._draw({end for pair in pairs for end in (pair.source, pair.target)})
        for method in self.request.methods:
            check = METHODS.get(method).check
            if check is not None:
                for pair in pairs:
                    check(self.settings.config_for(method, pair), self.settings.data.image_size)
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
        warnings = {warning for cell in cells for warning in cell.warnings}
        plan.warnings = sorted(warnings | {*self._notes(pairs, sources)})
        return plan

    def _notes(self, pairs: Sequence[Pair], sources: Sequence[SourcePlan]) -> list[str]:
        """Say what these settings mean for the pairs and the source models."""
        notes = fallback_notes(self.settings, pairs)
        trained = {source.domain for source in sources} - self.given.keys()
        recipe, domains = self.settings.source, sorted(trained)
        if recipe.selection == SOURCE_TEST_BEST and domains:
            notes.append(
                f"source models of {', '.join(domains)} are chosen on their own test split "
                f"({SOURCE_TEST_BEST}): their source-domain test scores are optimistic, and so is "
                "every row trained on target labels"
            )
        large = round(recipe.train_scale * self.settings.data.image_size)
        for domain in domains:
            images = self.images(domain, "train", self.settings.data.image_size)
            native = min(min(sides) for sides in images.native_sizes)
            if recipe.train_scale > 1 and native < large:
                notes.append(
                    f"source.train_scale = {recipe.train_scale:g} enlarges {domain}/train "
                    f"({native} px files) to {large} px"
                )
        return notes

    def _draw(self, names: Iterable[str]) -> None:
        """Draw the derived domains among these, beside the built-in ones but not among them."""
        for name in sorted(set(names) - self.folders.keys() - self.given.keys()):
            self.folders[name] = materialise_derived(self.store.root / "synthetic/derived", name)

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
            crop = self.settings.data.roi_crop_px
            self._images[at] = pack_images(chosen, size, self.store.packed, crop_px=crop)
        return self._images[at]

    def masks(self, domain: str, split: str, size: int) -> PackedMasks | None:
        at = (domain, split, size)
        if at not in self._masks:
            chosen = self.domain(domain).split(split)
            crop = self.settings.data.roi_crop_px
            self._masks[at] = pack_masks(
                chosen, size, self.store.packed, optional=True, crop_px=crop
            )
        return self._masks[at]

    # -- source models ----------------------------------------------------------------------

    def source(self, domain: str, source_seed: int) -> SourcePlan:
        at = (domain, source_seed)
        if at not in self._sources:
            plan = self._given_source if domain in self.given else self._plan_source
            self._sources[at] = plan(domain, source_seed)
        return self._sources[at]

    def _given_source(self, domain: str, source_seed: int) -> SourcePlan:
        """Return the source model that the user named instead of training one."""
        masks = None
        try:
            if domain in self.folders:
                masks = self.masks(domain, "train", self.settings.data.image_size)
        except MissingMasks:
            pass  # only the area prior is made of them
        found = find_source(self.given[domain], domain, self.settings.network, self.store, masks)
        wanted = {name for method in self.request.methods for name in METHODS.get(method).requires}
        job = {"recipe": {"selection": found.selection}}
        lacking = tuple(found.lacking(wanted))
        return SourcePlan(found.key, domain, source_seed, found.folder, job, lacking=lacking)

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
        if self.settings.source.selection == SOURCE_TEST_BEST:
            data |= self._test_digests(domain, size)
            if data["test_masks"] == "none" and not blocked:
                blocked = (
                    f"source.selection = {SOURCE_TEST_BEST} needs the masks of {domain}/test; "
                    "source_val needs none"
                )
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
            "roi_crop_px": self.settings.data.roi_crop_px,
            "source_dir": str(folder),
            "checkpoint_every": self.request.checkpoint_every,
        }
        if not blocked and not (folder / "card.json").is_file():
            job["train"] = self._labelled(domain, "train", size)
            job["train_large"] = self._labelled(domain, "train", large)
            job["test"] = self._labelled_test(domain, size)
        return SourcePlan(key, domain, source_seed, folder, job, blocked)

    def _test_digests(self, domain: str, size: int) -> dict[str, str]:
        """Return what the choice of a checkpoint on the ``test`` split depends on."""
        try:
            masks = self.masks(domain, "test", size)
        except MissingMasks:
            masks = None
        images = self.images(domain, "test", size).set_digest
        return {"test_images": images, "test_masks": masks.mask_digest if masks else "none"}

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
        config = self.settings.config_for(spec.name, pair)
        images: dict[str, dict[str, Any]] = {
            "train": {"images": str(train.path), "ids": train.ids},
            "test": {"images": str(test.path), "ids": test.ids},
        }
        adapted_on_split = "train" if protocol == "offline" else "test"
        images[adapted_on_split] |= self._large(spec, config, pair.target, adapted_on_split)
        key_fields = self._key_fields(spec, config, source, protocol, seed, digests)
        if spec.oracle or _is_drawn(pair):
            # An oracle's model does not depend on the pair's source, and two derived domains may
            # have equal images (other masks only); their cells must differ.
            key_fields["pair"] = str(pair)
        key = digest(key_fields)
        folder = self.store.cell(spec.name, pair.source, pair.target, key)
        adapted_on = digests.get("target_train", test.set_digest)
        shared = {**_shared(key_fields), "adapted_on": adapted_on}
        record = self._record(spec, pair, source_seed, key, key_fields, source, digests)
        records = self._records(protocol, folder)
        job: dict[str, Any] = {
            "kind": "reference" if spec.oracle else "cell",
            "key": key,
            "cell": record,
            "cell_dir": str(folder),
            "source_dir": str(source.folder),
            "images": images,
            "network": asdict(self.settings.network),
            "inference": asdict(self.settings.inference),
            "precision": self.precision,
            "stream_key": digest({"streams": shared}),
            "artefact_base": shared,
            "roi_crop_px": self.settings.data.roi_crop_px,
            "record": sorted(records),
            "keep_model": self.request.keep_models,
            "code_digest": code_digest(Path(spec.origin)),
            "checkpoint_every": self.request.checkpoint_every,
        }
        state, reason, warnings = self._state(folder, source, job)
        scoring: tuple[Mapping[str, Any], ...] = ()
        try:
            scoring = self._scoring(pair.target, key, folder, records)
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
            oracle_scoring=self._oracle_scoring(pair.target, key, folder, records, protocol),
            warnings=warnings,
            preset=self.settings.preset,
            positions_from_labels=any(
                self.domain(name).positions_from_labels
                for name in (pair.source, pair.target)
                if name in self.folders
            ),
        )

    def _large(self, spec: MethodSpec, config: Any, domain: str, split: str) -> dict[str, str]:
        """Return the file of larger copies of the target images, where the settings ask for it."""
        size, crop = self.settings.data.image_size, self.settings.data.roi_crop_px
        scale = spec.target_scale(config) if spec.target_scale else 1.0
        side = scaled_side(size, scale)
        if side <= size:
            return {}
        native = min(min(sides) for sides in self.images(domain, split, size).native_sizes)
        pixels = min(native, crop) if crop else native
        if pixels < side:
            raise UsageError(
                f"'{spec.name}' needs {domain}/{split} at {side} px ({scale:g} times the model's "
                f"input of {size} px), but its smallest image has {pixels} px",
                hint=f"lower --image-size, or the scale in the settings of '{spec.name}'",
            )
        return {"large": str(self.images(domain, split, side).path)}

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
        config: Any,
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
            "config": keyed_values(config),
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
        ends = [self.domain(name) for name in (pair.source, pair.target) if name in self.folders]
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
            "source_selection": source.job["recipe"]["selection"],
            "synthetic": any(domain.synthetic for domain in ends),
            "config": config_json(self.settings.config_for(spec.name, pair)),
            "source_key": source.key,
            "digests": dict(digests),
            "key_fields": dict(fields),
        }

    def _state(
        self, folder: Path, source: SourcePlan, job: Mapping[str, Any]
    ) -> tuple[str, str, tuple[str, ...]]:
        stored = folder / "cell.json"
        if stored.is_file():
            cell = read_json(stored)
            missing = sorted({*job["record"]} - stored_records(cell))
            if missing:
                return "todo", f"stored without the record of {', '.join(missing)}", ()
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
        lacking = METHODS.get(job["cell"]["method"]).requires & {*source.lacking}
        if lacking:
            reason = (
                f"the given source model of {source.domain} has no {', '.join(sorted(lacking))}, "
                "which are made of its train split's masks"
            )
            return "blocked", reason, ()
        return "todo", "" if source.done else "waits for its source model", ()

    def _records(self, protocol: str, folder: Path) -> frozenset[str]:
        """Return what a cell is to record: what is asked, and what it has recorded before."""
        stored = folder / "cell.json"
        before = stored_records(read_json(stored)) if stored.is_file() else frozenset()
        return (self.request.record | before) & recordable(protocol)

    def _scoring(
        self, target: str, key: str, folder: Path, record: frozenset[str]
    ) -> tuple[Mapping[str, Any], ...]:
        """Return one scoring job per profile; none when the test split has no masks."""
        masks = self._masks_of(target, "test", self.settings.data.evaluation_grid)
        if masks is None:
            return ()
        average_last = self.request.average_last if "epochs" in record else None
        return tuple(
            {
                "kind": "score",
                "key": score_key(
                    key,
                    masks["digest"],
                    profile.digest_fields(),
                    _ENGINE,
                    average_last,
                    SCORER_VERSION,
                ),
                "record": f"scores-{profile.name}.json",
                "cell_dir": str(folder),
                "profile": profile.name,
                "engine": _ENGINE,
                "average_last": self.request.average_last,
                "masks": masks,
            }
            for profile in self.profiles
        )

    def _oracle_scoring(
        self, target: str, key: str, folder: Path, record: frozenset[str], protocol: str
    ) -> tuple[Mapping[str, Any], ...]:
        """Return what judges a cell on labels of the images that it adapted to, where known."""
        size, grid = self.settings.data.image_size, self.settings.data.evaluation_grid
        jobs: list[Mapping[str, Any]] = []
        if "train" in record and (masks := self._masks_beside(target, "train", grid)):
            jobs += [
                {
                    "kind": "score-train",
                    "key": digest(
                        ["train", key, masks["digest"], profile.digest_fields(), SCORER_VERSION]
                    ),
                    "record": f"train-{profile.name}.json",
                    "cell_dir": str(folder),
                    "profile": profile.name,
                    "masks": masks,
                }
                for profile in self.profiles
            ]
        split = "train" if protocol == "offline" else "test"
        if "labels" in record and (masks := self._masks_beside(target, split, size)):
            jobs.append(
                {
                    "kind": "score-labels",
                    "key": digest(["labels", key, masks["digest"], SCORER_VERSION]),
                    "record": "funnel.json",
                    "cell_dir": str(folder),
                    "profile": "",
                    "masks": masks,
                }
            )
        return tuple(jobs)

    def _masks_beside(self, domain: str, split: str, size: int) -> dict[str, Any] | None:
        """Return the masks that only extra numbers need; ``None`` where one is missing."""
        try:
            return self._masks_of(domain, split, size)
        except MissingMasks:
            return None

    def _masks_of(self, domain: str, split: str, side: int) -> dict[str, Any] | None:
        """Return masks, names and ids of a split as a scoring job has them."""
        masks = self.masks(domain, split, side)
        if masks is None:
            return None
        images = self.images(domain, split, self.settings.data.image_size)
        return {
            "masks": str(masks.path),
            "names": str(self.store.packed / "names" / f"{images.key}.json"),
            "ids": list(images.ids),
            "digest": digest([masks.mask_digest, side]),
        }

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
        return sum(median(times[method]) for method in todo) / self.request.at_once


def merge_plans(plans: Sequence[Plan]) -> Plan:
    """Join plans over one store: cells and source models without repeats.

    A cell that several plans ask for records and is scored by what any of them asks.

    Args:
        plans: At least one; the first one's request says where cells are computed.

    Raises:
        UsageError: No plan, or plans over several stores.
    """
    if len({plan.store.root for plan in plans}) != 1:
        raise UsageError("only plans over one store can be merged", hint="give all the same --out")
    cells: dict[str, CellPlan] = {}
    for cell in (cell for plan in plans for cell in plan.cells):
        cells[cell.key] = _joined(cells[cell.key], cell) if cell.key in cells else cell
    sources = {source.key: source for plan in plans for source in plan.sources}
    todo = [cell for plan in plans for cell in plan.cells if cell.state == "todo"]
    once = sum(cell.state == "todo" for cell in cells.values()) / max(1, len(todo))
    requests = [plan.request for plan in plans]
    plugins = tuple(dict.fromkeys(path for request in requests for path in request.plugins))
    jobs = max(request.jobs for request in requests)
    return Plan(
        request=replace(requests[0], plugins=plugins, jobs=jobs),
        store=plans[0].store,
        cells=list(cells.values()),
        sources=list(sources.values()),
        disk_bytes=int(once * sum(plan.disk_bytes for plan in plans)),
        warnings=sorted({warning for plan in plans for warning in plan.warnings}),
        forbidden=tuple(dict.fromkeys(path for plan in plans for path in plan.forbidden)),
    )


def _joined(first: CellPlan, second: CellPlan) -> CellPlan:
    """Return one cell that serves both plans."""
    lead = min(first, second, key=lambda cell: _STATES.index(cell.state))
    job = {
        **lead.job,
        "record": sorted({*first.job["record"], *second.job["record"]}),
        "keep_model": first.job["keep_model"] or second.job["keep_model"],
    }
    # Scores of tracked cells hold more: their jobs win.
    both = sorted((first, second), key=lambda cell: "epochs" in cell.job["record"])
    scoring = {job["record"]: job for cell in both for job in cell.scoring}
    oracle = {job["record"]: job for cell in both for job in cell.oracle_scoring}
    return replace(
        lead, job=job, scoring=tuple(scoring.values()), oracle_scoring=tuple(oracle.values())
    )


def scoring_todo(cell: CellPlan) -> list[Mapping[str, Any]]:
    """Return the scoring jobs of a committed cell whose stored scores are missing or outdated."""
    jobs = (*cell.scoring, *cell.oracle_scoring)
    return [job for job in jobs if needs_scoring(cell.folder, job)]


def record_plan(plan: Plan) -> None:
    """Remember which cells the newest run asked for, so that tables show what is missing.

    What stands here and not in the cells: the preset, because two presets may share a cell, whose
    settings are what it is known by; and whether crops are centred on annotations, because equal
    images give equal cells wherever the images came from.
    """
    asked = [asked_record(cell) for cell in plan.cells]
    write_sealed(plan.store.root / "plans" / "last.json", {"cells": asked})


def asked_record(cell: CellPlan) -> dict[str, Any]:
    """Return what a plan remembers of a cell: more than the cell itself will say."""
    return {
        **cell.job["cell"],
        "preset": cell.preset,
        "positions_from_labels": cell.positions_from_labels,
    }


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


def _is_drawn(pair: Pair) -> bool:
    """Whether an end of a pair is a derived domain: a generated one with its knobs turned."""
    return any(is_derived(end) and dataset_knobs(end) for end in (pair.source, pair.target))


def _precision(request: RunRequest) -> str:
    from sfuda_bench.running.runtime import resolve_device, resolve_precision, visible_gpus

    visible_gpus(request.gpus, request.device)  # refused before anything is packed
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

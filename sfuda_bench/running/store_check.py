"""Whether a store holds what its records say: every digest computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.frames import frame_digest, read_parquet
from sfuda_bench.images.packed import load_pack, open_images, open_masks, set_digest, stems_of
from sfuda_bench.running.keys import digest, file_digest, score_key
from sfuda_bench.running.seals import MANIFEST, listed_digest
from sfuda_bench.running.store import SCHEMA, Store, read_json
from sfuda_bench.running.store_digest import (
    COMMITTED,
    result_files,
    tensors_sha256,
    value_digest,
)
from sfuda_bench.scoring.codes import STRUCTURES

_MODEL = "model.safetensors"
_LATER = frozenset({".json", ".parquet"})
"""Kinds of files that are written into a committed folder later: records, and what they tell of."""
_LOOSE = ("runs/*.json", "plans/*.json", "studies/*/trials.json", "studies/*/result.json")
"""Records that belong to no committed folder."""


@dataclass(frozen=True)
class Mismatch:
    """One thing that is not what a record says.

    Attributes:
        path: Relative to the store.
        what: What was compared.
        expected: What the record says.
        found: What is there.
    """

    path: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}: expected {self.expected}, found {self.found}"


@dataclass
class Verdict:
    """What a verification looked at and what it found.

    Attributes:
        out: The store.
        checked: Numbers of cells, sources, artefacts, files and packs of images and masks.
        mismatches: Everything that is wrong.
        not_recorded: How many folders lack a digest that older versions did not record, by name.
    """

    out: Path
    checked: Counter[str] = field(default_factory=Counter)
    mismatches: list[Mismatch] = field(default_factory=list)
    not_recorded: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``verify --json`` prints."""
        return {
            "out": str(self.out),
            "ok": not self.mismatches,
            "checked": {name: self.checked[name] for name in (*COMMITTED, "files", "packs")},
            "not_recorded": dict(sorted(self.not_recorded.items())),
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches],
        }


def verify_store(out: Path, *, note: Callable[[str], None] = lambda text: None) -> Verdict:
    """Compute every recorded digest of a store again and compare.

    Args:
        out: The store; nothing in it is changed.
        note: Called with the relative path of each folder before it is read.

    Raises:
        UsageError: There is no store.
        StoreSchemaError: It has another schema.
    """
    if not (out / "store.json").is_file():
        raise UsageError(f"no store at {out}", hint="sfuda-bench verify DIR")
    Store.open(out, create=False)
    return _Verification(out, note).run()


class _Verification:
    def __init__(self, out: Path, note: Callable[[str], None]) -> None:
        self.out, self.note = out, note
        self.verdict = Verdict(out)
        self.models: dict[str, str] = {}
        self.images: dict[tuple[str, ...], tuple[str, ...]] = {}  # digests by ids

    def run(self) -> Verdict:
        checks = {"sources": self._source, "artefacts": self._artefact, "cells": self._cell}
        for kind, check in checks.items():
            depth, _, name = COMMITTED[kind].rpartition("/")
            for folder in sorted(self.out.glob(depth)):
                if not folder.is_dir() or folder.name.startswith("."):
                    continue
                self.note(self._name(folder))
                self.verdict.checked[kind] += 1
                try:
                    record = read_json(folder / name, checked=False)
                    self._manifest(folder)
                    self._records(folder)
                    check(folder, record)
                except StoreSchemaError as error:
                    self._wrong(folder, "record", "a readable file", error.message)
                except (KeyError, TypeError, ValueError, AttributeError) as error:
                    self._wrong(folder, "record", "every field", f"{type(error).__name__} {error}")
        for pattern in _LOOSE:
            for path in sorted(self.out.glob(pattern)):
                self._record(path)
        self._packs("images", self._packed_images)
        self._packs("masks", self._packed_masks)
        return self.verdict

    def _name(self, path: Path) -> str:
        return path.relative_to(self.out).as_posix()

    def _wrong(self, path: Path, what: str, expected: Any, found: Any) -> None:
        mismatch = Mismatch(self._name(path), what, str(expected), str(found))
        self.verdict.mismatches.append(mismatch)

    def _same(self, path: Path, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            self._wrong(path, what, expected, found)

    # -- what every committed folder has ------------------------------------------------------

    def _manifest(self, folder: Path) -> None:
        """Compare the bytes of what was committed."""
        path = folder / MANIFEST
        if not path.is_file():
            self.verdict.not_recorded["file digests"] += 1
            return
        for name, expected in read_json(path, checked=False)["files"].items():
            file = folder / name
            self.verdict.checked["files"] += 1
            self._bytes(file, expected)
        for file in result_files(folder):
            later = file.parent == folder and file.suffix in _LATER
            if not later and listed_digest(file) is None:
                self._wrong(file, "file", "one that was committed", "an unknown file")

    def _bytes(self, file: Path, expected: str) -> None:
        found = file_digest(file) if file.is_file() else "no such file"
        self._same(file, "sha256 of its bytes", expected, found)

    def _records(self, folder: Path) -> None:
        """Read the records that no manifest lists, and the frames that they speak of."""
        for path in sorted(folder.glob("*.json")):
            if listed_digest(path) is None and path.name != MANIFEST:
                for name, expected in self._record(path).get("bytes", {}).items():
                    self._bytes(folder / name, expected)

    def _record(self, path: Path) -> Mapping[str, Any]:
        """Return a record with the right seal and fields of the right kinds, or an empty one."""
        try:
            return read_json(path)
        except StoreSchemaError as error:
            self._wrong(path, "record", "what was written", error.message)
            return {}

    def _model(self, folder: Path, expected: str) -> None:
        path = folder / _MODEL
        if not path.is_file():
            return
        try:
            self._same(path, "weights", expected, tensors_sha256(path))
        except StoreSchemaError as error:
            self._wrong(path, "weights", expected, error.message)

    # -- by kind ------------------------------------------------------------------------------

    def _source(self, folder: Path, card: Mapping[str, Any]) -> None:
        self._same(folder, "folder of the key", card["key"][:16], folder.name)
        self._same(folder, "folder of the domain", card["domain"], folder.parent.name)
        self.models[card["key"]] = card["model_sha256"]
        if not (folder / _MODEL).is_file():
            self._wrong(folder / _MODEL, "weights", card["model_sha256"], "no such file")
        self._model(folder, card["model_sha256"])

    def _artefact(self, folder: Path, meta: Mapping[str, Any]) -> None:
        self._same(folder, "key of its fields", digest(meta)[:16], folder.name)
        self._same(folder, "folder of the step", meta["frozen"], folder.parent.name)
        tensors_sha256(folder / "tensors.safetensors")

    def _cell(self, folder: Path, cell: Mapping[str, Any]) -> None:
        self._same(folder, "schema", SCHEMA, cell.get("schema", SCHEMA))
        self._same(folder, "folder of the key", cell["key"][:16], folder.name)
        pair = f"{cell['source']}-{cell['target']}"
        self._same(folder, "folder of the pair", pair, folder.parent.name)
        self._same(folder, "folder of the method", cell["method"], folder.parent.parent.name)
        self._key(folder, cell)
        self._model(folder, cell["adapted_model_sha256"])
        found = self.models.get(cell["source_key"], "no such source model in the store")
        self._same(folder / "cell.json", "source model", cell["source_model_sha256"], found)
        self._predictions(folder)
        self._scores(folder, cell)

    def _key(self, folder: Path, cell: Mapping[str, Any]) -> None:
        """Compute the key again, and compare the fields that stand in the record twice."""
        fields = cell.get("key_fields")
        if fields is None:
            self.verdict.not_recorded["fields of the key"] += 1
            return
        path = folder / "cell.json"
        self._same(path, "key of its fields", digest(fields), cell["key"])
        shared = {
            "method": fields["method"],
            "method_version": fields["version"],
            "seed": fields["seed"],
            "protocol": fields["protocol"],
            "source_key": fields["source"],
            "digests": fields["target"],
            "image_size": fields["image_size"],
            "precision": fields["precision"],
        }
        for name, value in shared.items():
            self._same(path, f"field '{name}'", value, cell[name])
        for name, value in fields["config"].items():
            self._same(path, f"setting '{name}'", value, cell["config"].get(name))

    def _predictions(self, folder: Path) -> None:
        """Read every prediction; each image has all structures, in each recorded epoch."""
        base = folder / "predictions"
        asked = _images(base)
        if not asked:
            self._wrong(base, "predictions", "at least one image", "none")
        for part in (base, *sorted(base.glob("epoch-*")), folder / "predictions-train"):
            if part.is_dir():
                self._images_of(part, asked if part.parent != folder else _images(part))

    def _images_of(self, part: Path, asked: set[str]) -> None:
        for name in sorted(asked | _images(part)):
            for structure in STRUCTURES:
                path = part / f"{name}-{structure}.png"
                if not path.is_file():
                    self._wrong(path, "prediction", "an image", "no such file")
                    continue
                try:
                    value_digest(path)
                except StoreSchemaError as error:
                    self._wrong(path, "prediction", "a readable image", error.message)

    def _scores(self, folder: Path, cell: Mapping[str, Any]) -> None:
        for path in sorted(folder.glob("scores-*.json")):
            record = read_json(path, checked=False)
            self._same(path, "score key", _score_key(cell["key"], record), record["score_key"])
            profile = record["profile"]
            frames = record.get("digests") or {"cases": record["digest"]}
            if "digests" not in record:
                self.verdict.not_recorded["digests of eyes and epochs"] += 1
            for name, expected in frames.items():
                self._frame(folder / f"{name}-{profile}.parquet", expected)
        path = folder / "thresholds.json"
        if path.is_file():
            self._frame(folder / "thresholds.parquet", read_json(path, checked=False)["digest"])

    def _frame(self, path: Path, expected: str) -> None:
        try:
            self._same(path, "values", expected, frame_digest(read_parquet(path, checked=False)))
        except StoreSchemaError as error:
            self._wrong(path, "values", expected, error.message)

    # -- packed images and masks --------------------------------------------------------------

    def _packs(self, kind: str, check: Callable[[Path], None]) -> None:
        for path in sorted((self.out / "packed" / kind).glob("*.json")):
            self.verdict.checked["packs"] += 1
            try:
                load_pack(path.with_suffix(".npy"))
                check(path.with_suffix(".npy"))
            except StoreSchemaError as error:
                self._wrong(path, "pack", "what was packed", error.message)

    def _packed_images(self, path: Path) -> None:
        pack = open_images(path)
        self._same(path, "key", path.stem, pack.key)
        self._same(path, "digest of the set", set_digest(pack.digests), pack.set_digest)
        begins = [name.partition("-")[0] for name in pack.ids]
        self._same(path, "ids", [text[: len(begins[0])] for text in pack.digests], begins)
        stems_of(self.out / "packed" / "names" / f"{path.stem}.json", pack.ids)
        self.images[pack.ids] = pack.digests

    def _packed_masks(self, path: Path) -> None:
        pack = open_masks(path)
        self._same(path, "key", path.stem, pack.key)
        images = self.images.get(pack.ids)
        if images is None:
            self._wrong(path, "ids", "those of packed images", "others")
            return
        pairs = [f"{image}:{mask}" for image, mask in zip(images, pack.digests, strict=True)]
        self._same(path, "digest of the pairs", set_digest(pairs), pack.mask_digest)


def _images(folder: Path) -> set[str]:
    """Return the ids of the images that a folder has a prediction of."""
    return {name for structure in STRUCTURES for name in _names(folder, f"-{structure}.png")}


def _names(folder: Path, ending: str) -> Iterator[str]:
    for path in folder.glob(f"*{ending}"):
        yield path.name.removesuffix(ending)


def _score_key(cell_key: str, record: Mapping[str, Any]) -> str:
    """Return the score key of a record's own fields."""
    return score_key(
        cell_key,
        record["mask_digest"],
        record["profile_fields"],
        record["engine"],
        record["average_last"],
        record["scorer_version"],
    )

"""Whether a store holds what its records say: every digest computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.frames import frame_digest, read_parquet
from sfuda_bench.running.keys import digest, file_digest, score_key
from sfuda_bench.running.seals import MANIFEST, listed_digest
from sfuda_bench.running.store import SCHEMA, Store, read_json
from sfuda_bench.running.store_digest import COMMITTED, tensors_sha256, value_digest
from sfuda_bench.scoring.codes import STRUCTURES

_MODEL = "model.safetensors"


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
        checked: Numbers of cells, sources, artefacts and files.
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
            "checked": {name: self.checked[name] for name in (*COMMITTED, "files")},
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
            found = file_digest(file) if file.is_file() else "no such file"
            self._same(file, "sha256 of its bytes", expected, found)

    def _records(self, folder: Path) -> None:
        """Read the records that no manifest lists: each has a seal, and fields of known kinds."""
        for path in sorted(folder.glob("*.json")):
            if listed_digest(path) is None:
                try:
                    read_json(path)
                except StoreSchemaError as error:
                    self._wrong(path, "record", "what was written", error.message)

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

"""Why a cell is stored, would be computed, or failed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import StoreSchemaError, UsageError
from sfuda_bench.running.failures import FAILURES
from sfuda_bench.running.store import Store, lock_owner, read_json

if TYPE_CHECKING:
    from sfuda_bench.running.plan import CellPlan

_SHORTEST_KEY = 4
_LAST_LINES = 12  # of a traceback
_RECORDED = (
    "method_version",
    "config",
    "digests",
    "source_key",
    "seed",
    "protocol",
    "inference",
    "network",
    "image_size",
    "precision",
)
"""What the records of older stores tell of a key."""
_SOURCE = ("source_seed", "recipe", "data_digest", "network", "image_size", "precision")
"""What a source model's card tells of its key."""


@dataclass(frozen=True)
class Difference:
    """One field of two keys.

    Attributes:
        name: The field, with dots for what lies inside another.
        wanted: Its value in the cell that was asked about.
        stored: Its value in the stored cell.
    """

    name: str
    wanted: Any
    stored: Any


@dataclass
class Answer:
    """What is known about one cell.

    Attributes:
        state: ``stored``, ``failed``, ``running``, ``blocked`` or ``todo``.
        cell: Method, pair and seeds.
        key: Its full key, or as much as is known of it.
        folder: Where it is, or where its last attempt is.
        facts: What to print, name and value.
        neighbour: The key of the stored cell of the same method and pair that is most like it.
        differences: Fields of the key in which the two differ.
        traceback: The end of it, for a failure.
    """

    state: str
    cell: str
    key: str
    folder: str
    facts: dict[str, Any] = field(default_factory=dict)
    neighbour: str | None = None
    differences: list[Difference] = field(default_factory=list)
    traceback: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as a JSON-able dict."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return the answer as lines of text."""
        text = [f"{self.cell}: {self.state}", f"  key: {self.key}", f"  folder: {self.folder}"]
        text += [f"  {name}: {value}" for name, value in self.facts.items()]
        if self.neighbour and self.differences:
            text.append(f"  differs from the stored cell {self.neighbour[:16]} in")
            text += [f"    {d.name}: {d.wanted!r}, stored {d.stored!r}" for d in self.differences]
        return [*text, *(f"  | {line}" for line in self.traceback)]


class Inquiry:
    """Answers questions about the cells of one store.

    Args:
        out: The store.
        planned: Cells of a plan made for the question; by default those that the newest run asked
            for are known, without the settings of their source models.

    Raises:
        UsageError: There is no store.
        StoreSchemaError: It has another schema or is damaged.
    """

    def __init__(self, out: Path, planned: Sequence[CellPlan] | None = None) -> None:
        if not (out / "store.json").is_file():
            raise UsageError(f"no store at {out}", hint="sfuda-bench why CELL --out DIR")
        self.out, self.store = out, Store.open(out, create=False)
        self.stored = {
            str(record["key"]): (path.parent, record)
            for path in sorted(out.glob("cells/*/*/*/cell.json"))
            for record in [read_json(path)]
        }
        self.blocked: dict[str, str] = {}
        self.sources: dict[str, Mapping[str, Any]] = {}
        if planned is None:
            self.asked = {str(cell["key"]): cell for cell in _last_plan(out)}
        else:
            self.asked = {cell.key: dict(cell.job["cell"]) for cell in planned}
            self.blocked = {cell.key: cell.reason for cell in planned if cell.state == "blocked"}
            self.sources = {cell.source.key: cell.source.job for cell in planned}
        for path in sorted(out.glob("sources/*/*/card.json")):
            card = read_json(path)
            self.sources[str(card["key"])] = card

    def answer(self, words: Sequence[str]) -> list[Answer]:
        """Answer for a key's beginning, a method and a pair, or a path in the store.

        Raises:
            UsageError: Nothing is known of such a cell, or a key's beginning is ambiguous.
        """
        name = " ".join(words)
        if len(words) == 2:
            keys = self._by_name(*words)
        elif len(words) == 1:
            keys = self._by_path(Path(words[0])) or self._by_key(words[0])
        else:
            raise UsageError(f"why {name}: expected one cell", hint=_HINT)
        if not keys:
            raise UsageError(f"why {name}: {self.out} knows of no such cell", hint=_HINT)
        return [self._about(key) for key in keys]

    # -- which cell ---------------------------------------------------------------------------

    def _by_name(self, method: str, pair: str) -> list[str]:
        """Return the asked cells of a method and pair; the stored ones when none was asked for."""
        source, _, target = pair.replace("->", ":").partition(":")
        wanted = (method, source.strip(), target.strip())
        known = ((key, record) for key, (_, record) in self.stored.items())
        for cells in (self.asked.items(), known, self._failed().items()):
            found = [key for key, cell in cells if _name(cell) == wanted]
            if found:
                return found
        return []

    def _by_path(self, path: Path) -> list[str]:
        """Return the key of the cell or attempt whose folder, or a file in it, a path names."""
        for candidate in (path, self.out / path):
            if not candidate.exists():
                continue
            place = Path(os.path.relpath(candidate.resolve(), self.out.resolve())).parts
            depth = {"cells": 3, "attempts": 1}.get(place[0])
            if depth is not None and len(place) > depth:
                return self._by_key(place[depth])
        return []

    def _by_key(self, start: str) -> list[str]:
        known = {**self.asked, **self.stored, **self._failed()}
        found = sorted({key for key in known if key.startswith(start)})
        if len(start) < _SHORTEST_KEY:
            return []
        if len(found) > 1:
            raise UsageError(
                f"why {start}: {len(found)} cells have a key that begins so",
                hint=f"sfuda-bench why {found[0][:16]}",
            )
        return found

    def _failed(self) -> dict[str, dict[str, Any]]:
        """Return the records of failed attempts by key."""
        errors = (_error(path) for path in sorted(self.out.glob("attempts/*/error.json")))
        return {str(error["key"]): error for error in errors if "key" in error}

    # -- what about it ------------------------------------------------------------------------

    def _about(self, key: str) -> Answer:
        if key in self.stored:
            return self._stored(key)
        attempt = self.store.attempt(key)
        owner = lock_owner(attempt / "lock")
        if owner is not None:
            cell = self.asked.get(key) or {}
            return Answer("running", _title(cell), key, str(attempt), {"by": owner})
        if (attempt / "error.json").is_file():
            return self._failure(key, attempt)
        return self._missing(key)

    def _stored(self, key: str) -> Answer:
        folder, cell = self.stored[key]
        run = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
        facts = {
            "since": run.get("finished", "not recorded"),
            "took": f"{run['seconds']} s" if "seconds" in run else "not recorded",
            "on": " ".join(str(run[n]) for n in ("host", "device") if n in run) or "not recorded",
            "command": self._command(run),
            "source model": cell["source_key"],
            "scores": ", ".join(
                sorted(path.stem.removeprefix("scores-") for path in folder.glob("scores-*.json"))
            )
            or "none",
        }
        return Answer("stored", _title(cell), key, str(folder), facts)

    def _command(self, run: Mapping[str, Any]) -> str:
        path = self.out / "runs" / f"{run.get('run')}.json"
        return str(read_json(path).get("command")) if path.is_file() else "not recorded"

    def _failure(self, key: str, attempt: Path) -> Answer:
        error = _error(attempt / "error.json")
        log = self.out / error["log"] if "log" in error else attempt / "log.txt"
        kind = str(error.get("failure", "raised"))
        facts = {
            "failure": f"{kind}: {FAILURES[kind]}" if kind in FAILURES else kind,
            "error": f"{error.get('class', '?')}: {error.get('message', '?')}",
            "at": error.get("time", "not recorded"),
            "attempts": error.get("attempts", 1),
            "log": str(log) if log.is_file() else "none was written",
            "retry": "run the same command again: cells that failed are computed again",
        }
        if error.get("exit_code") is not None:
            facts["exit code of the worker"] = error.get("signal") or error["exit_code"]
        answer = Answer("failed", _title(error), key, str(attempt), facts)
        text = attempt / "error.txt"
        if text.is_file():
            answer.traceback = text.read_text("utf-8", "replace").splitlines()[-_LAST_LINES:]
        return answer

    def _missing(self, key: str) -> Answer:
        cell = self.asked[key]
        state = "blocked" if key in self.blocked else "todo"
        folder = self.store.cell(cell["method"], cell["source"], cell["target"], key)
        answer = Answer(state, _title(cell), key, f"{folder} (not there)")
        if key in self.blocked:
            answer.facts["reason"] = self.blocked[key]
        alike = [record for _, record in self.stored.values() if _name(record) == _name(cell)]
        compared = [(self._differences(cell, record), str(record["key"])) for record in alike]
        if not compared:
            answer.facts["neighbours"] = "no stored cell of this method and pair"
        else:
            # Of equally near ones the one whose fields read first, so that the answer is stable.
            answer.differences, answer.neighbour = min(
                compared, key=lambda pair: (len(pair[0]), [d.name for d in pair[0]], pair[1])
            )
        return answer

    def _differences(
        self, wanted: Mapping[str, Any], stored: Mapping[str, Any]
    ) -> list[Difference]:
        """Return the fields of the key in which two cells differ."""
        found = differences(_key_fields(wanted, stored), _key_fields(stored, wanted))
        for position, difference in enumerate(found):
            if difference.name in ("source", "source_key"):
                inner = self._source_differences(str(difference.wanted), str(difference.stored))
                found[position : position + 1] = inner or [difference]
                break
        return found

    def _source_differences(self, wanted: str, stored: str) -> list[Difference]:
        """Return the settings in which two source models differ, as far as they are known."""
        cards = [self.sources.get(key, {}) for key in (wanted, stored)]
        first, second = ({name: card[name] for name in _SOURCE if name in card} for card in cards)
        return differences(first, second, "source.") if first and second else []


_HINT = "sfuda-bench why KEY, or why METHOD SOURCE:TARGET, with the flags of the run"


def differences(
    wanted: Mapping[str, Any], stored: Mapping[str, Any], prefix: str = ""
) -> list[Difference]:
    """Return what differs between two nested records, by dotted names.

    A field that one of them lacks has the value ``"not set"`` there.
    """
    first, second = dict(_flat(wanted, prefix)), dict(_flat(stored, prefix))
    return [
        Difference(name, first.get(name, _UNSET), second.get(name, _UNSET))
        for name in dict.fromkeys((*first, *second))
        if first.get(name, _UNSET) != second.get(name, _UNSET)
    ]


_UNSET = "not set"


def _flat(value: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(inner) if isinstance(inner, tuple) else inner


def _key_fields(cell: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a cell's key that both cells recorded."""
    if "key_fields" in cell and "key_fields" in other:
        return dict(cell["key_fields"])
    return {name: cell[name] for name in _RECORDED if name in cell and name in other}


def _name(cell: Mapping[str, Any]) -> tuple[str, str, str]:
    return str(cell.get("method")), str(cell.get("source")), str(cell.get("target"))


def _title(cell: Mapping[str, Any]) -> str:
    method, source, target = _name(cell)
    if not cell:
        return "a cell of another command"
    text = f"{method} {source}:{target}" if cell.get("target") else f"{method} of {source}"
    seeds = [("seed", cell.get("seed")), ("source seed", cell.get("source_seed"))]
    return " ".join([text, *(f"{name} {seed}" for name, seed in seeds if seed is not None)])


def _error(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except StoreSchemaError:
        return {"message": "its error.json cannot be read"}


def _last_plan(out: Path) -> list[dict[str, Any]]:
    path = out / "plans" / "last.json"
    return list(read_json(path).get("cells", [])) if path.is_file() else []

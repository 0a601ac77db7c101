"""Target: a store with one damaged file, read by every command that reads stores."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sfuda_bench.contract.bench import trained_bench
from sfuda_bench.running.failures import record_error
from sfuda_bench.running.plan import record_plan
from sfuda_bench.running.store import Store
from sfuda_bench.running.threshold_records import write_store_thresholds
from tests.conftest import SMALL, TINY
from tests.fuzz.mutations import damaged, other_json
from tests.fuzz.outcome import Finding, Ran, command

CLAIM = "cpr > source_only on cup dice".replace("cpr", "dpl")
FREE_TEXT = ("log.txt", "error.txt", "error.json", "index.json")
"""Files whose content is told as it is, or only a shortcut: they hold no result."""
WRITTEN = ("tables", "figures", "log", "gallery")
"""Folders of a store that commands write and do not read."""


@dataclass
class World:
    """An undamaged store, and what each command says of it.

    Attributes:
        root: Where it lies, with its data.
        said: Command to its exit code and output.
    """

    root: Path
    said: dict[tuple[str, ...], tuple[int, str]] = field(default_factory=dict)

    @classmethod
    def build(cls, root: Path) -> World:
        """Compute a store: two methods, one of them recorded in full, and one failed cell."""
        bench = trained_bench(
            root, domains=("toy_a", "toy_b"), base=SMALL, short={"epochs": 2}, plugins=(TINY,)
        )
        both = ["source_only", "dpl"]
        record = frozenset({"epochs", "validators", "train", "labels"})
        plan = bench.plan(both, pairs="all", record=record)
        bench.compute(plan)
        failed = bench.plan("bn_adapt")
        try:
            raise FloatingPointError("the loss is not a number")
        except FloatingPointError as error:
            record_error(Store(bench.out), failed.cells[0].job, error)
        plan.cells += failed.cells
        record_plan(plan)
        write_store_thresholds(bench.out)
        return cls(root)

    @property
    def store(self) -> Path:
        """The undamaged store."""
        return self.root / "store"

    def files(self) -> list[Path]:
        """Return every file that a command may read, relative to the store."""
        found = (path.relative_to(self.store) for path in sorted(self.store.rglob("*")))
        return [p for p in found if (self.store / p).is_file() and p.parts[0] not in WRITTEN]

    def copy(self, folder: Path) -> Path:
        """Return a copy of the store; unchanged files are links."""
        return Path(shutil.copytree(self.store, folder / "store", copy_function=os.link))

    def commands(self) -> dict[str, Callable[[Path], list[str]]]:
        """Return the commands that read a store, by name: quick ones first."""
        cell = sorted(self.store.glob("cells/dpl/*/*"))[0].name
        wanted = [word for setting in SMALL for word in ("--set", setting)]
        request = [
            *("--methods", "source_only,dpl,bn_adapt", "--preset", "small", *wanted),
            *("--data-root", str(self.root / "data"), "--plugin", str(TINY), "--device", "cpu"),
        ]
        return {
            "status": lambda out: ["status", "--out", str(out)],
            "status --json": lambda out: ["status", "--json", "--out", str(out)],
            "source ls": lambda out: ["source", "ls", "--out", str(out)],
            "cite": lambda out: ["cite", "--out", str(out)],
            "why": lambda out: ["why", cell, "--out", str(out)],
            "why failed": lambda out: ["why", "bn_adapt", "toy_a:toy_b", "--out", str(out)],
            "verify": lambda out: ["verify", "--digest", "--out", str(out)],
            "plan": lambda out: ["plan", *request, "--out", str(out)],
            "claim": lambda out: ["claim", CLAIM, "--out", str(out)],
            "export": lambda out: _export(out, "challenger"),
            "bundle": lambda out: _export(out, "bundle"),
            "merge": lambda out: ["merge", str(self.store), str(out), "--out", f"{out}-merged"],
            "thresholds": lambda out: ["rescore", "--thresholds", "--out", str(out)],
            "rescore": lambda out: [
                "rescore",
                "--profile",
                "standard",
                "--json",
                "--out",
                str(out),
            ],
            "report": lambda out: ["report", "--out", str(out)],
            "report oracle": lambda out: ["report", "--selection", "oracle", "--out", str(out)],
            "report --html": lambda out: [
                "report",
                "--html",
                "--gallery",
                "--json",
                "--out",
                str(out),
            ],
        }

    def undamaged(self, name: str, folder: Path) -> tuple[int, str]:
        """Return what a command says of an undamaged copy."""
        if (name,) not in self.said:
            out = self.copy(folder)
            self.said[(name,)] = _told(name, command(self.commands()[name](out)), out)
            _remove(out)
        return self.said[(name,)]


SLOW = ("thresholds", "rescore", "report", "report oracle", "report --html")


def attack(
    rng: random.Random, world: World, folder: Path, names: Sequence[str] = (), *, at_once: int = 3
) -> str:
    """Damage one file of a copy of the store and run commands over it.

    Returns:
        What was damaged.

    Raises:
        Finding: A traceback, an exit code of nobody, an error that does not say where, or an
            answer that is not the undamaged store's.
    """
    names = names or [name for name in world.commands() if name not in SLOW]
    files = world.files()
    pictures = [path for path in files if path.suffix == ".png"]
    rest = [path for path in files if path.suffix != ".png"]
    path = rng.choice(pictures if rng.random() < 0.05 else rest)
    data = _other(world.store / path, rng, files, world.store)
    chosen = rng.sample(list(names), min(at_once, len(names)))
    check(world, folder, path, data, chosen)
    return str(path)


def check(world: World, folder: Path, path: Path, data: bytes, names: Sequence[str]) -> None:
    """Put other bytes into one file and compare what commands say.

    Raises:
        Finding: See :func:`attack`.
    """
    before = {name: world.undamaged(name, folder) for name in names}
    out = world.copy(folder)
    try:
        (out / path).unlink()
        (out / path).write_bytes(data)
        for name in names:
            shutil.rmtree(out / "tables", ignore_errors=True)
            try:
                ran = command(world.commands()[name](out))
            except Finding as finding:
                raise Finding(f"{path}: {finding}") from finding
            _judge(name, path, ran, _told(name, ran, out), before[name])
    finally:
        _remove(out)


def _judge(name: str, path: Path, ran: Ran, told: tuple[int, str], before: tuple[int, str]) -> None:
    if path.name in FREE_TEXT or told == before:
        return
    if ran.code == before[0] and ran.code in (0, 6) and not (ran.code == 6 and name == "verify"):
        raise Finding(
            f"{name}: {path} is damaged, and the answer is another one:\n{_diff(told, before)}"
        )
    places = (path.name, path.parent.name, path.parent.parent.name or "-")
    if ran.code and not any(place in ran.stderr + ran.stdout for place in places):
        raise Finding(
            f"{name}: {path} is damaged, and the error does not say so: {ran.stderr[-800:]}"
        )
    if ran.code == 0:
        raise Finding(f"{name}: exit code 0 instead of {before[0]} when {path} is damaged")


def _other(path: Path, rng: random.Random, files: Sequence[Path], store: Path) -> bytes:
    data = path.read_bytes()
    kind = rng.random()
    if kind < 0.1:
        return b""
    if kind < 0.2:
        return (store / rng.choice(list(files))).read_bytes()
    if path.suffix == ".json" and kind < 0.7:
        return other_json(data, rng)
    return damaged(data, rng)


def _told(name: str, ran: Ran, out: Path) -> tuple[int, str]:
    """Return exit code and answer, with the numbers that the command wrote."""
    text = [ran.stdout]
    for path in sorted(out.parent.glob(_WRITES.get(name, "no such file"))):
        if path.is_file():
            text.append(f"== {path.name}\n{path.read_text('utf-8', 'replace')}")
    lines = "\n".join(text).splitlines()
    # Space follows from the bytes, and a digest is there to tell that something changed.
    kept = [line for line in lines if "disk about" not in line and not line.startswith("digest ")]
    return ran.code, "\n".join(kept).replace(str(out), "STORE")


_WRITES = {
    "export": "challenger.csv",
    "rescore": "store/cells/*/*/*/scores-standard.json",
    "report": "store/tables/*",
    "report oracle": "store/tables/*",
}
"""What a command writes besides its output, relative to the folder of the store."""


def _export(out: Path, kind: str) -> list[str]:
    to = out.with_name("challenger.csv" if kind == "challenger" else "bundle.zip")
    return ["export", "--to", str(to), "--format", kind, "--out", str(out)]


def _remove(out: Path) -> None:
    for path in (out, out.with_name("store-merged")):
        shutil.rmtree(path, ignore_errors=True)
    for name in ("challenger.csv", "bundle.zip"):
        out.with_name(name).unlink(missing_ok=True)


def _diff(told: tuple[int, str], before: tuple[int, str]) -> str:
    pairs = zip(told[1].splitlines(), before[1].splitlines(), strict=False)
    lines = [f"- {was}\n+ {now}" for now, was in pairs if now != was]
    return "\n".join(lines[:4])[:1500] or f"{told[0]} {before[0]}: other lengths"

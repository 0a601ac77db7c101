"""Target: a study with a damaged journal, asked by the commands that read studies."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from sfuda_bench.running.store import write_json
from sfuda_bench.search.storage import JOURNAL
from tests.fuzz.mutations import damaged, other_json
from tests.fuzz.outcome import command
from tests.search import stub_study

NAME = "stub_study"
COMMANDS = (["status", NAME], ["status", NAME, "--json"], ["export", NAME])


@dataclass(frozen=True)
class Study:
    """A finished study of three trials.

    Attributes:
        out: The store that holds it.
        journal: Its journal.
        data: The undamaged journal.
        status: What ``study status`` says of it.
    """

    out: Path
    journal: Path
    data: bytes
    status: str

    @classmethod
    def build(cls, out: Path) -> Study:
        """Run a study whose cells are a formula."""
        write_json(out / "store.json", {"schema": 1})
        folder = out / "studies" / NAME
        trials = stub_study.build(folder, "qmc", 3)
        trials.run(stub_study.evaluate, lambda text: None)
        status = command(["study", "status", NAME, "--out", str(out)]).stdout
        return cls(out, folder / JOURNAL, (folder / JOURNAL).read_bytes(), status)

    def ask(self, data: bytes) -> list[tuple[int, str]]:
        """Return exit code and answer of every command over another journal.

        Raises:
            Finding: A traceback, or an exit code of nobody.
        """
        self.journal.write_bytes(data)
        found = (command(["study", *words, "--out", str(self.out)]) for words in COMMANDS)
        return [(ran.code, ran.stdout) for ran in found]


def attack(rng: random.Random, study: Study) -> None:
    """Damage the journal and ask.

    Raises:
        Finding: See :meth:`Study.ask`.
    """
    if rng.random() < 0.5:
        study.ask(damaged(study.data, rng))
        return
    lines = study.data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = other_json(lines[place], rng)
    study.ask(b"\n".join(lines) + b"\n")

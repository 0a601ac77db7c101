"""Goes on where the bounded tests stop: python -m tests.fuzz --seconds 60 --seed 1."""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz import pictures, stores, studies, texts, weights
from tests.fuzz.outcome import Finding

Target = Callable[[random.Random], object]
_MEMORY = 12 * 2**30  # bytes of address space: what asks for more is a finding, not a dead machine


def targets(folder: Path) -> Mapping[str, Callable[[], Target]]:
    """Return what is attacked, by name; a target is made ready when it is first needed."""

    def of_stores(names: tuple[str, ...] = ()) -> Callable[[], Target]:
        def ready() -> Target:
            world = stores.World.build(Path(tempfile.mkdtemp(dir=folder)))
            place = Path(tempfile.mkdtemp(dir=folder))
            return lambda rng: stores.attack(rng, world, place, names)

        return ready

    def of_studies() -> Target:
        study = studies.Study.build(Path(tempfile.mkdtemp(dir=folder)) / "out")
        return lambda rng: studies.attack(rng, study)

    return {
        "pictures": lambda: lambda rng: pictures.attack(rng, folder),
        "settings": lambda: texts.settings_values,
        "files of settings": lambda: lambda rng: texts.settings_file(rng, folder),
        "study files": lambda: lambda rng: texts.study_file(rng, folder),
        "selectors": lambda: texts.selectors,
        "weights": lambda: lambda rng: weights.attack(rng, folder),
        "studies": of_studies,
        "stores": of_stores(),
        "reports": of_stores(stores.SLOW),
    }


def main() -> int:
    """Attack every target for its share of the time; return 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the cases (default: 0)")
    parser.add_argument("--only", default="", help="names of targets, comma-separated")
    parser.add_argument("--case", type=int, help="this case only, with --only NAME")
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        known = targets(Path(folder))
        chosen = [
            name for name in known if given.only in ("", name) or name in given.only.split(",")
        ]
        for name in chosen:
            failed += _fuzz(name, known[name](), given, given.seconds / len(chosen))
    return int(failed > 0)


def _fuzz(name: str, target: Target, given: argparse.Namespace, seconds: float) -> int:
    """Run cases until the time is over; print each kind of finding once."""
    end = time.monotonic() + seconds
    kinds: dict[str, int] = {}
    number = given.case or 0
    while time.monotonic() < end:
        try:
            target(random.Random(f"{given.seed} {name} {number}"))
        except Finding as finding:
            text = str(finding).strip()
            kind = text.splitlines()[-1][:200]
            if kind not in kinds:
                again = f"--seed {given.seed} --only '{name}' --case {number}"
                print(f"FOUND {name}, case {number} ({again}):\n{text[-4000:]}\n", flush=True)
            kinds[kind] = kinds.get(kind, 0) + 1
        number += 1
        if given.case is not None:
            break
    count = number - (given.case or 0)
    print(f"{name}: {count} cases, {sum(kinds.values())} findings", flush=True)
    return len(kinds)


if __name__ == "__main__":
    sys.exit(main())

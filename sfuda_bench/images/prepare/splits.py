"""Which eyes are train and which are test, and who says so."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfuda_bench.datasets import SPLITS, RawDomain, RawEye
from sfuda_bench.errors import DataError
from sfuda_bench.images.prepare.tables import eye_name, read_table

TEST_SHARE = 0.2
_LISTED = 8


@dataclass(frozen=True)
class Assigned:
    """The split of one domain.

    Args:
        sides: ``"train"`` or ``"test"`` by the eye's name and position in the list of eyes.
        origin: Who says so, in a few words.
        published: Whether numbers on this split may be compared with published ones.
        missing: Names of the published split that the download lacks, by side.
        notes: What the user should know.
    """

    sides: tuple[str, ...]
    origin: str
    published: bool
    missing: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


def assign_split(
    found: RawDomain, eyes: Sequence[RawEye], split_file: Path | None, seed: int
) -> Assigned:
    """Assign every eye to train or test.

    A file of the user comes first, then what the layout says. Eyes that it does not name, or all
    of them if one side would stay empty, are split here: a fifth for test, drawn by a hash of the
    name, in equal shares of every stratum.

    Args:
        found: What the layout says about the split.
        eyes: The eyes to assign.
        split_file: CSV with the columns ``name`` and ``split``.
        seed: Seed of a split that is drawn here.

    Raises:
        DataError: There are fewer than two eyes, or the file lacks one.
    """
    if len(eyes) < 2:
        raise DataError(
            f"{len(eyes)} usable eyes: a domain needs one for train and one for test",
            hint="check --raw",
        )
    if split_file is not None:
        return _from_file(eyes, split_file)
    named = [eye.split for eye in eyes]
    missing = _missing(found, eyes)
    notes = [_missing_note(side, names, found) for side, names in missing.items() if names]
    empty = [side for side in SPLITS if side not in named]
    drawn = f"drawn here: a fifth for test, by sha256 of the name, seed {seed}"
    if empty:
        if any(named):
            notes.append(
                f"the split that is laid down ({found.split_origin}) is not used: it would leave "
                f"{empty[0]} empty"
            )
        return Assigned(draw_split(eyes, seed), drawn, False, missing, tuple(notes))
    if None in named:
        notes.append(f"not in {found.split_origin}, drawn here: {_names(_unnamed(eyes))}")
        origin = f"{found.split_origin}; what it does not name {drawn}"
        return Assigned(_completed(eyes, seed), origin, False, missing, tuple(notes))
    complete = found.published and not any(missing.values())
    sides = tuple(str(side) for side in named)
    return Assigned(sides, found.split_origin, complete, missing, tuple(notes))


def _completed(eyes: Sequence[RawEye], seed: int) -> tuple[str, ...]:
    """Keep the sides that are laid down and draw the others among themselves."""
    others = [eye for eye in eyes if eye.split is None]
    drawn = iter(draw_split(others, seed))
    return tuple(eye.split if eye.split is not None else next(drawn) for eye in eyes)


def _unnamed(eyes: Sequence[RawEye]) -> list[str]:
    return [eye.name for eye in eyes if eye.split is None]


def draw_split(eyes: Sequence[RawEye], seed: int) -> tuple[str, ...]:
    """Draw a fifth for test: at least one, never all, in equal shares of every stratum.

    It depends on names, strata, patients and the seed alone, not on the order of the eyes. The
    eyes of one patient stay together: what is drawn is the first of them.
    """
    patients = [eye.patient or eye.name for eye in eyes]
    if len({*patients}) < len(eyes):
        firsts: dict[str, RawEye] = {}
        for eye, patient in sorted(zip(eyes, patients, strict=True), key=lambda pair: pair[0].name):
            firsts.setdefault(patient, replace(eye, patient=""))
        drawn = dict(zip(firsts, draw_split(list(firsts.values()), seed), strict=True))
        return tuple(drawn[patient] for patient in patients)
    ordered: dict[str, list[int]] = defaultdict(list)
    digests = [hashlib.sha256(f"{seed}:{eye.name}".encode()).hexdigest() for eye in eyes]
    for index in sorted(range(len(eyes)), key=lambda i: (digests[i], eyes[i].name)):
        ordered[eyes[index].stratum].append(index)
    place = {
        index: ((rank + 0.5) / len(group), digests[index])
        for group in ordered.values()
        for rank, index in enumerate(group)
    }
    count = max(0, min(max(1, round(TEST_SHARE * len(eyes))), len(eyes) - 1))
    test = set(sorted(place, key=lambda index: place[index])[:count])
    return tuple("test" if index in test else "train" for index in range(len(eyes)))


def _from_file(eyes: Sequence[RawEye], path: Path) -> Assigned:
    table = read_table(path, "--split-file", ("name", "split"))
    found = [table.get(eye_name(eye.name), {}).get("split", "") for eye in eyes]
    lacking = [eye.name for eye, side in zip(eyes, found, strict=True) if side not in SPLITS]
    if lacking:
        raise DataError(
            f"--split-file {path}: no train or test for {_names(lacking)}", hint="add these rows"
        )
    sides = tuple(found)
    empty = [side for side in SPLITS if side not in sides]
    if empty:
        raise DataError(f"--split-file {path}: no eye is {empty[0]}", hint="both need one")
    return Assigned(sides, f"the user's file {path.name}", False, {}, ())


def _missing(found: RawDomain, eyes: Sequence[RawEye]) -> dict[str, tuple[str, ...]]:
    present = {eye.name for eye in eyes}
    return {
        side: tuple(name for name in names if name not in present)
        for side, names in found.expected.items()
    }


def _missing_note(side: str, names: Sequence[str], found: RawDomain) -> str:
    total = len(found.expected[side])
    return f"{len(names)} of the {total} {side} eyes of the published split are not here: " + (
        _names(names)
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown

"""Turn a download into a domain: find, check, centre, cut, write, and commit by one rename."""

from __future__ import annotations

import fcntl
import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sfuda_bench.datasets import MANIFEST, SPLITS, RawDomain, RawEye
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.images.prepare.centres import Centres, make_centres
from sfuda_bench.images.prepare.eyes import EyeJob, raw_files_of, write_eye
from sfuda_bench.images.prepare.manifest import (
    MADE_BY,
    SCHEMA,
    damaged_files,
    read_manifest,
    recipe_digest,
    write_manifest,
)
from sfuda_bench.images.prepare.options import PrepareRequest, Resolved, resolve
from sfuda_bench.images.prepare.raw_files import RawTree, open_raw
from sfuda_bench.images.prepare.splits import Assigned, assign_split
from sfuda_bench.images.prepare.vcdr_check import Agreement, EyeRatio, compare
from sfuda_bench.images.prepare.window import window_px

VERSION = 1
"""Raised when the same download and options give other bytes."""

FAR_DIAMETERS = 0.5
"""Centre error above which an eye is named, in disc diameters."""
_SOURCE_EYES = 3
"""Train eyes a source model needs: one is held out to choose the epoch, and a batch has two."""
_LISTED = 6
_NO_TEXT = {"Cc", "Cs"}  # control characters, and bytes that are not UTF-8
_WORKERS = 4

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prepared:
    """A prepared domain.

    Args:
        folder: Where it lies.
        manifest: Its manifest.
        changed: Whether anything was written.
        agreement: With the graders' own cup-to-disc ratios, where the owners publish them.
    """

    folder: Path
    manifest: dict[str, Any]
    changed: bool
    agreement: Agreement | None


def prepare(request: PrepareRequest, progress: Progress | None = None) -> Prepared:
    """Prepare one domain.

    Nothing is written into the domain's folder before everything is ready; a domain that exists
    with the same options and raw bytes is left alone.

    Args:
        request: The flags.
        progress: Called with the number of eyes done and of all eyes.

    Raises:
        UsageError: A flag does not fit, or a folder of that name exists and is another one.
        DataError: Raw files are missing, damaged, or contradict what is declared about them.
    """
    resolved = resolve(request)
    request.out.mkdir(parents=True, exist_ok=True)
    with _work_folder(request.out, resolved.domain) as work:
        tree = open_raw(request.raw, work / "raw")
        eyes, assigned, found = _find(resolved, tree)
        jobs = _jobs(eyes, assigned, tree)
        recipe = _recipe(resolved, jobs)
        folder = request.out / resolved.domain
        existing = _existing(folder, recipe, replace=request.replace)
        if existing is not None:
            return Prepared(folder, existing, False, _agreement(existing["eyes"]))
        entries = _write(jobs, work / "domain", resolved, progress)
        manifest = _manifest(resolved, recipe, entries, assigned, found)
        write_manifest(work / "domain", manifest)
        _commit(work, folder)
    return Prepared(folder, manifest, True, _agreement(entries))


# -- finding ---------------------------------------------------------------------------------


def _find(resolved: Resolved, tree: RawTree) -> tuple[list[RawEye], Assigned, RawDomain]:
    found = resolved.layout.read(tree, resolved.choice)
    eyes = sorted(found.eyes, key=lambda eye: (eye.name, eye.image))
    if not eyes:
        raise DataError(
            f"--raw {tree.root}: no photograph of '{resolved.domain}' among "
            f"{len(tree.files)} files",
            hint=f"unpack {tree.packed[0]} by hand"
            if tree.packed
            else f"expected {resolved.layout.tree}",
        )
    _refuse_foreign_names(eyes)
    request = resolved.request
    assigned = assign_split(found, eyes, request.split_file, request.split_seed)
    incomplete = _incomplete(eyes, assigned.sides)
    if incomplete and not request.skip_incomplete:
        lacking = [f"{eye.name} ({', '.join(eye.missing)})" for eye in incomplete]
        raise DataError(
            f"--raw {tree.root}: {len(incomplete)} of {len(eyes)} photographs lack masks: "
            f"{_listed(lacking)}",
            hint="add the files, or leave these eyes out with --skip-incomplete",
        )
    if incomplete:
        eyes = [eye for eye in eyes if eye not in incomplete]
        assigned = assign_split(found, eyes, request.split_file, request.split_seed)
    _refuse_twins(eyes, assigned.sides)
    return eyes, assigned, found


def _refuse_foreign_names(eyes: Sequence[RawEye]) -> None:
    """Refuse file names that are no text: they can be written into no manifest."""
    for name in (name for eye in eyes for name in raw_files_of(eye)):
        if any(unicodedata.category(letter) in _NO_TEXT for letter in name):
            raise DataError(
                f"{name!r}: the file's name has characters that cannot be written",
                hint="rename it in UTF-8, without control characters",
            )


def _incomplete(eyes: Sequence[RawEye], sides: Sequence[str]) -> list[RawEye]:
    """Return eyes without masks on a side where others have them: a side has all or none."""
    labelled = {side for eye, side in zip(eyes, sides, strict=True) if eye.masks}
    pairs = zip(eyes, sides, strict=True)
    return [eye for eye, side in pairs if not eye.masks and side in labelled]


def _refuse_twins(eyes: Sequence[RawEye], sides: Sequence[str]) -> None:
    seen: dict[tuple[str, str], RawEye] = {}
    for eye, side in zip(eyes, sides, strict=True):
        twin = seen.setdefault((side, eye.name.lower()), eye)
        if twin is not eye:
            raise DataError(
                f"two photographs would be written as {side}/{eye.name}.png: "
                f"{twin.image} and {eye.image}",
                hint="rename one of them",
            )


def _jobs(eyes: Sequence[RawEye], assigned: Assigned, tree: RawTree) -> list[EyeJob]:
    names = list(dict.fromkeys(name for eye in eyes for name in raw_files_of(eye)))
    with ThreadPoolExecutor(_WORKERS) as pool:
        digests = dict(zip(names, pool.map(tree.sha256, names), strict=True))
    return [
        EyeJob(eye, side, {name: (tree.files[name], digests[name]) for name in raw_files_of(eye)})
        for eye, side in zip(eyes, assigned.sides, strict=True)
    ]


def _recipe(resolved: Resolved, jobs: Sequence[EyeJob]) -> str:
    return recipe_digest(
        {
            "version": VERSION,
            "domain": resolved.domain,
            "options": resolved.options,
            "centre": Centres(resolved.centre, {}).description,
            "eyes": [
                [job.eye.name, job.split, {name: digest for name, (_, digest) in job.files.items()}]
                for job in jobs
            ],
        }
    )


# -- writing ---------------------------------------------------------------------------------


def _write(
    jobs: Sequence[EyeJob], folder: Path, resolved: Resolved, progress: Progress | None
) -> list[dict[str, Any]]:
    request = resolved.request
    centres = make_centres(resolved.centre, request.centres, cropped=resolved.layout.cropped)
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        tasks = [pool.submit(write_eye, job, folder, resolved, centres) for job in jobs]
        try:
            entries = _results(tasks, [job.eye.name for job in jobs], progress)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    entries.sort(key=lambda entry: (SPLITS.index(entry["split"]), entry["name"]))
    leaving = [entry for entry in entries if entry.get("cup_outside_disc_px")]
    if leaving and not request.repair:
        listed = [f"{entry['name']} ({entry['cup_outside_disc_px']} px)" for entry in leaving]
        raise DataError(
            f"the cup leaves the disc in {len(leaving)} of {len(entries)} eyes: {_listed(listed)}",
            hint="--repair clips the cup to the disc and counts the pixels in the manifest",
        )
    return entries


def _results(
    tasks: Sequence[Future[dict[str, Any]]], names: Sequence[str], progress: Progress | None
) -> list[dict[str, Any]]:
    """Return the entries of all eyes, or name every eye that has none.

    What fails in each of the first eyes is a wrong declaration, and will in the others.
    """
    entries: list[dict[str, Any]] = []
    failed: dict[str, DataError] = {}
    for done, (name, task) in enumerate(zip(names, tasks, strict=True), 1):
        try:
            entries.append(task.result())
        except DataError as error:
            failed[name] = error
            if len(failed) == _LISTED and not entries:
                break
        if progress is not None:
            progress(done, len(tasks))
    if failed:
        first, *others = failed
        more = f"; and {len(others)} other eyes fail: {', '.join(others)}" if others else ""
        raise DataError(failed[first].message + more, hint=failed[first].hint) from failed[first]
    return entries


def _manifest(
    resolved: Resolved,
    recipe: str,
    entries: list[dict[str, Any]],
    assigned: Assigned,
    found: RawDomain,
) -> dict[str, Any]:
    spec = resolved.spec
    window = window_px(resolved.roi_mode)
    return {
        "schema": SCHEMA,
        "made_by": MADE_BY,
        "domain": resolved.domain,
        "title": spec.title if spec else resolved.domain,
        "owner": {
            "homepage": spec.homepage if spec else "not stated",
            "licence": spec.licence if spec else "not stated",
            "citation": spec.citation if spec else "not stated",
        },
        "roi_center": resolved.centre,
        "roi_scale": "native" if window else "owner",
        "window_px": window or None,
        "size_px": resolved.size_px,
        "split": {
            "origin": assigned.origin,
            "published": assigned.published,
            "counts": {side: assigned.sides.count(side) for side in SPLITS},
            "missing": {side: list(names) for side, names in assigned.missing.items()},
        },
        "options": resolved.options,
        "recipe_sha256": recipe,
        "summary": _summary(entries),
        "notes": [*found.notes, *assigned.notes, *_notes(resolved, entries, assigned)],
        "eyes": entries,
    }


def _summary(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    labelled = [entry for entry in entries if "vcdr" in entry]
    errors = np.array([entry["centre_error_disc_diameters"] for entry in labelled])
    summary: dict[str, Any] = {
        "eyes": len(entries),
        "labelled": len(labelled),
        "cup_outside_disc": {
            "eyes": sum(entry["cup_outside_disc_px"] > 0 for entry in labelled),
            "px": sum(entry["cup_outside_disc_px"] for entry in labelled),
        },
        "masks_resized": sum(entry["mask_resized"] for entry in labelled),
        "discs_cut_off": sum(entry["disc_cut_off"] for entry in labelled),
    }
    if len(errors):
        summary["centre_error_disc_diameters"] = {
            "mean": round(float(errors.mean()), 4),
            "median": round(float(np.median(errors)), 4),
            "p95": round(float(np.quantile(errors, 0.95)), 4),
            "worst": round(float(errors.max()), 4),
            "worst_eye": labelled[int(errors.argmax())]["name"],
        }
    return summary


def _notes(resolved: Resolved, entries: Sequence[dict[str, Any]], assigned: Assigned) -> list[str]:
    notes = []
    train = assigned.sides.count("train")
    if train < _SOURCE_EYES:
        notes.append(
            f"{train} train eyes: usable as a target; a source model needs at least {_SOURCE_EYES}"
        )
    for side in SPLITS:
        if not any("vcdr" in entry for entry in entries if entry["split"] == side):
            notes.append(f"no masks for {side}")
    if resolved.centre == "gt":
        notes.append("the crops' position comes from labels")
    far = [
        entry["name"]
        for entry in entries
        if entry.get("centre_error_disc_diameters", 0) > FAR_DIAMETERS
    ]
    if far:
        notes.append(
            f"the centre is more than {FAR_DIAMETERS} disc diameters off in {len(far)} eyes: "
            + _listed(far)
        )
    resized = [entry["name"] for entry in entries if entry.get("mask_resized")]
    if resized:
        notes.append(
            f"masks of another size than their photograph, resized, in {len(resized)} eyes: "
            + _listed(resized)
        )
    cut = [entry["name"] for entry in entries if entry.get("disc_cut_off")]
    if cut:
        notes.append(f"the window cuts the disc in {len(cut)} eyes: {_listed(cut)}")
    return notes


def _agreement(entries: Sequence[dict[str, Any]]) -> Agreement | None:
    return compare(
        [
            EyeRatio(entry["name"], entry["vcdr"], tuple(entry["graders_vcdr"]))
            for entry in entries
            if "graders_vcdr" in entry
        ]
    )


# -- folders ---------------------------------------------------------------------------------


@contextmanager
def _work_folder(out: Path, domain: str) -> Iterator[Path]:
    """Hold ``out/.<domain>.preparing`` alone; what a killed run left there is removed."""
    lock = out / f".{domain}.lock"
    work = out / f".{domain}.preparing"
    with lock.open("w") as handle:
        if not _locked(lock, handle.fileno()):
            raise DataError(
                f"{out / domain} is being prepared by another process", hint="wait for it"
            )
        _recover(work, out / domain)
        work.mkdir()
        try:
            yield work
        finally:
            _recover(work, out / domain)
            lock.unlink(missing_ok=True)


def _locked(lock: Path, descriptor: int) -> bool:
    """Take the lock; False if another process has it, or has just removed this very file."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == lock.stat().st_ino
    except OSError:
        return False


def _recover(work: Path, folder: Path) -> None:
    """Undo a replacement that was killed between its two renames; remove leftovers."""
    if (work / "old").is_dir() and not folder.exists():
        (work / "old").rename(folder)
    shutil.rmtree(work, ignore_errors=True)


def _existing(folder: Path, recipe: str, *, replace: bool) -> dict[str, Any] | None:
    """Return the manifest of a domain that is what was asked for; ``None`` to write it."""
    if not folder.exists():
        return None
    manifest = read_manifest(folder, any_schema=replace)
    if manifest is None:
        raise UsageError(
            f"{folder} exists and was not made by `data prepare`",
            hint="choose another --out or --name; it is never overwritten",
        )
    try:
        damaged = damaged_files(folder, manifest)
    except (KeyError, TypeError, AttributeError):
        damaged = [MANIFEST]
    same = manifest.get("schema") == SCHEMA and manifest.get("recipe_sha256") == recipe
    if same and not damaged:
        return manifest
    if replace:
        return None
    reason = (
        f"files changed since: {_listed(damaged)}"
        if damaged
        else "other options, raw files or version"
    )
    raise UsageError(
        f"{folder} is prepared already, and differs: {reason}",
        hint="--replace prepares it anew; --name or --out keeps both",
    )


def _commit(work: Path, folder: Path) -> None:
    if folder.exists():
        folder.rename(work / "old")
    (work / "domain").rename(folder)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_LISTED])
    return f"{shown} and {len(names) - _LISTED} more" if len(names) > _LISTED else shown

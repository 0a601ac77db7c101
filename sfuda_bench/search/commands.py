"""The commands around study files: run, status, export, list."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import CellsFailed, StoreSchemaError, UsageError
from sfuda_bench.registry import did_you_mean
from sfuda_bench.running.store import Store, read_json, write_bytes
from sfuda_bench.search.cells import Flags
from sfuda_bench.search.toml_file import read_study_tables, shipped_studies

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from sfuda_bench.running.engine import ProgressSink
    from sfuda_bench.running.pool import WorkerPool
    from sfuda_bench.search.results import StudyResult
    from sfuda_bench.search.session import Session
    from sfuda_bench.search.study import Trials

_FEW = 3  # failures that a message names


def run_study(
    given: str | Path,
    flags: Flags,
    progress: ProgressSink,
    *,
    allow_oracle: bool = False,
    storage: str | None = None,
    pool: WorkerPool | None = None,
) -> StudyResult:
    """Run a study file, or go on with it; several processes may do so at once.

    Args:
        given: A path, or the name of a shipped study.
        flags: What the command line adds.
        progress: Where progress goes.
        allow_oracle: Whether labels of the judged targets may choose.
        storage: ``postgresql://...``, or ``None`` for the journal in the store.
        pool: Workers that live on after this call; by default they end with it.

    Raises:
        UsageError: Something in the file that cannot be used, or that has changed since trials
            exist.
        DataError: Missing images, or masks that the objective needs.
        EnvironmentProblem: The storage cannot be reached.
        CellsFailed: No trial completed, or a cell of the comparison failed.
    """
    from sfuda_bench.running.pool import WorkerPool
    from sfuda_bench.search.results import find
    from sfuda_bench.search.session import Session, study_folder
    from sfuda_bench.search.storage import lost_server, open_storage, study_lock
    from sfuda_bench.search.study_file import read_study

    file = read_study(given, flags, allow_oracle=allow_oracle)
    folder = study_folder(flags.out, file.name)
    Store.open(flags.out)
    trials_storage = open_storage(folder, storage)
    with lost_server(storage), nullcontext(pool) if pool else WorkerPool() as pool:
        session = Session(file, progress, pool)
        for warning in session.plan.warnings:
            progress.note(f"warning: {warning}")
        trials = _open_trials(session, folder, trials_storage, shared=storage is not None)
        shutil.copyfile(file.path, folder / "study.toml")
        for one in trials:
            one.run(session.trial, progress.note)
        _check_completed(file.name, trials)
        with study_lock(folder):  # whoever is last finds everything stored
            return find(session, trials, folder)


def _open_trials(session: Session, folder: Path, storage: Any, *, shared: bool) -> list[Trials]:
    """Open the trials of every method before the first one runs: mistakes show at once."""
    from sfuda_bench.search.study import Budget, Trials

    file = session.file
    budget = Budget(file.trials, file.search.sampler, file.search.seed, file.search.prune)
    found = []
    for method, space in session.spaces().items():
        trials = Trials(
            file.name, space, file.objective, budget, session.pairs, folder, storage, shared=shared
        )
        trials.open(session.document(method))
        found.append(trials)
    return found


def _check_completed(name: str, trials: list[Trials]) -> None:
    from sfuda_bench.search.results import failures

    for one in trials:
        if not one.finished():
            why = failures([one])
            rest = f" and {len(why) - _FEW} more" if len(why) > _FEW else ""
            raise CellsFailed(
                f"study {name}: none of the {one.budget.trials} trials of {one.space.method} "
                f"completed; {'; '.join(why[:_FEW])}{rest}",
                hint="mend what failed, then remove the study's folder or rename the file: a "
                "trial runs once",
            )


# -- status ---------------------------------------------------------------------------------------


def study_status(given: str, out: Path, storage: str | None = None) -> dict[str, Any]:
    """Return where a study stands; it may be running.

    Args:
        given: A study file, or a study's name.
        out: The store.
        storage: ``postgresql://...``, or ``None`` for the journal in the store.

    Raises:
        UsageError: There is no such study in this store.
    """
    import optuna

    from sfuda_bench.search.storage import open_storage

    name, folder = _named(given, out)
    opened = open_storage(folder, storage, create=False)
    names = [n for n in optuna.get_all_study_names(opened) if n.rpartition(".")[0] == name]
    if not names:
        raise UsageError(f"{folder}: no study of this name", hint=f"sfuda-bench study run {given}")
    with _reading(folder):
        methods = [_method_status(optuna.load_study(study_name=n, storage=opened), folder)
                   for n in names]  # fmt: skip
    return {"study": name, "folder": str(folder), "methods": methods}


@contextmanager
def _reading(what: Path) -> Iterator[None]:
    """Turn what goes wrong with records of another shape into an error that names them."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StoreSchemaError(
            f"{what}: damaged records of a study ({type(error).__name__}: {error})",
            hint="remove the study's folder and run it again; its cells stay",
        ) from error


def _method_status(study: Any, folder: Path) -> dict[str, Any]:
    from sfuda_bench.search.storage import is_locked

    method = study.study_name.rpartition(".")[2]
    document = study.user_attrs.get("document", {})
    trials = study.get_trials(deepcopy=False)
    running = [t for t in trials if t.state.name == "RUNNING"]
    alive = [t.number for t in running if is_locked(folder, f"{method}-{t.number}")]
    counts = {s: sum(t.state.name == s for t in trials) for s in _STATES}
    return {
        "method": method,
        "objective": document.get("objective", ""),
        "trials": len(trials),
        **{state.lower(): count for state, count in counts.items()},
        "running": alive,
        "interrupted": [t.number for t in running if t.number not in alive],
        "best": _best(trials, str(document.get("objective", ""))),
    }


_STATES = ("WAITING", "COMPLETE", "PRUNED", "FAIL")


def _best(trials: list[FrozenTrial], text: str) -> dict[str, Any] | None:
    """Return the trial that would be chosen now."""
    from optuna.trial import TrialState

    from sfuda_bench.search.choices import choose
    from sfuda_bench.search.objectives import Objective

    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    kind = text.partition(":")[0]
    if kind == "transfer" or not finished:
        return None  # of a transfer there is one per pair, when all trials are finished
    choices = choose(finished, Objective(text, kind), [r["pair"] for r in _cells(finished[0])])
    return (
        {"trial": choices[0].number, "value": choices[0].value, "point": choices[0].point}
        if choices
        else None
    )


def _cells(trial: FrozenTrial) -> list[dict[str, Any]]:
    return list(trial.user_attrs.get("cells", []))


def study_status_text(found: Mapping[str, Any]) -> str:
    """Return :func:`study_status` for readers."""
    lines = [f"study {found['study']}  {found['folder']}"]
    for one in found["methods"]:
        counts = [f"{one['complete']} of {one['trials']} complete"]
        counts += [f"{one[s]} {s}" for s in ("waiting", "pruned", "fail") if one[s]]
        for state in ("running", "interrupted"):
            if one[state]:
                counts.append(f"{state}: {', '.join(map(str, one[state]))}")
        lines.append(f"{one['method']}: {'; '.join(counts)}")
        if one["best"]:
            point = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}"
                             for k, v in one["best"]["point"].items())  # fmt: skip
            lines.append(f"  chosen now: trial {one['best']['trial']}  {point}")
    return "\n".join(lines)


# -- export ---------------------------------------------------------------------------------------


def export_study(
    given: str,
    out: Path,
    *,
    method: str | None = None,
    trial: int | None = None,
    pair: str | None = None,
    to: Path | None = None,
) -> str:
    """Return the settings of a trial as TOML for ``run --config``.

    Args:
        given: A study file, or a study's name.
        out: The store.
        method: Of a study of several methods.
        trial: Another trial than the chosen one.
        pair: Of an objective that chooses per pair.
        to: Also write it here.

    Raises:
        UsageError: No finished study, or a method, trial or pair that it lacks.
    """
    from sfuda_bench.search.export import to_toml
    from sfuda_bench.search.results import export_comment
    from sfuda_bench.search.session import settings_of

    name, folder = _named(given, out)
    if not (folder / "result.json").is_file():
        raise UsageError(
            f"study {name}: not finished, so nothing is chosen",
            hint=f"sfuda-bench study run {given} --out {out}",
        )
    result = read_json(folder / "result.json")
    with _reading(folder / "result.json"):
        method = _method_of(name, list(result["documents"]), method)
        document = result["documents"][method]
        points, numbers = _points(name, folder, result, method, trial, pair)
        comment = export_comment(name, result["objective"], numbers, document)
        if trial is None:
            comment.append(f"Information: {result['information']}.")
        text = to_toml(settings_of(document), method, points, comment)
    if to is not None:
        write_bytes(to, text.encode())
    return text


def _method_of(name: str, methods: list[str], method: str | None) -> str:
    if method in methods:
        return str(method)
    known = ", ".join(methods)
    if method is not None:
        near = did_you_mean(method, methods)
        raise UsageError(f"study {name}: no method '{method}'{near}; it has {known}", hint=known)
    if len(methods) > 1:
        raise UsageError(
            f"study {name} has several methods: {known}", hint=f"--method {methods[0]}"
        )
    return methods[0]


def _points(
    name: str,
    folder: Path,
    result: Mapping[str, Any],
    method: str,
    trial: int | None,
    pair: str | None,
) -> tuple[dict[str, Mapping[str, Any]], str]:
    """Return what :func:`to_toml` puts where, and the numbers of the trials it comes from."""
    if trial is not None:
        trials = read_json(folder / "trials.json")["trials"]
        points = {
            t["number"]: t["point"]
            for t in trials
            if t["method"] == method and t["state"] == "COMPLETE"
        }
        if trial not in points:
            raise UsageError(
                f"study {name}: no completed trial {trial} of {method}",
                hint=f"sfuda-bench study status {name}",
            )
        return {"": points[trial]}, str(trial)
    choices = [c for c in result["choices"] if c["method"] == method]
    if pair is not None:
        choices = [choice for choice in choices if pair in choice["pairs"]]
    if not choices:
        what = f"the pair {pair}" if pair else method
        raise UsageError(
            f"study {name}: nothing is chosen for {what}",
            hint=f"pairs: {', '.join(result['pairs'])}",
        )
    numbers = ", ".join(dict.fromkeys(str(choice["trial"]) for choice in choices))
    if len(choices) == 1:
        return {"": choices[0]["point"]}, numbers
    return {choice["pairs"][0]: choice["point"] for choice in choices}, numbers


# -- names ----------------------------------------------------------------------------------------


def list_studies() -> list[dict[str, str]]:
    """Return the shipped study files: name, kind, question, file."""
    rows = []
    for name, path in sorted(shipped_studies().items()):
        _, tables, _ = read_study_tables(path)
        kind, question = str(tables.get("kind", "")), str(tables.get("question", ""))
        rows.append({"name": name, "kind": kind, "question": question, "file": str(path)})
    return rows


def _named(given: str, out: Path) -> tuple[str, Path]:
    """Return the name and folder of a study of this store, from its name or its file."""
    name = Path(given).stem if given.endswith(".toml") else given
    folder = out / "studies" / name
    if folder.is_dir():
        return name, folder
    known = sorted(p.name for p in (out / "studies").glob("*") if p.is_dir())
    near = did_you_mean(name, known)
    raise UsageError(
        f"{out}: no study '{name}'{near}; it holds {', '.join(known) or 'none'}",
        hint=f"sfuda-bench study run {given} --out {out}",
    )

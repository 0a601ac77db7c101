"""The results of a finished study: chosen settings beside baselines, tables, pictures, files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from optuna.trial import TrialState

from sfuda_bench.report.plain import PlainTable, to_csv, to_markdown, write_texts
from sfuda_bench.report.scope import LABEL_CENTER_SENTENCE, ORACLE_MARK, SYNTHETIC_MARK
from sfuda_bench.running.store import write_bytes, write_sealed
from sfuda_bench.search.choices import (
    Choice,
    choose,
    inert_sentences,
    models_of,
    probes,
    same_models,
)
from sfuda_bench.search.export import to_toml
from sfuda_bench.search.objectives import CellResult
from sfuda_bench.search.pool_results import PoolFindings, judge_pool
from sfuda_bench.search.session import Asked, Session, settings_of
from sfuda_bench.search.study import Trials, error_of, results_of
from sfuda_bench.search.study_file import POOL, unadapted_method
from sfuda_bench.search.study_tables import (
    DEFAULT,
    FRESH,
    SELECTED,
    UNADAPTED,
    Row,
    comparison_table,
    preferences,
    trials_table,
)


@dataclass(frozen=True)
class StudyResult:
    """What a call of ``study run`` found.

    Attributes:
        document: Everything as one JSON document.
        text: Tables as Markdown.
        failed: Number of trials whose cells failed.
    """

    document: Mapping[str, Any]
    text: str
    failed: int


@dataclass
class MethodFindings:
    """What the trials of one method say."""

    trials: Trials
    choices: list[Choice]
    same: list[dict[str, Any]]
    probed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def method(self) -> str:
        """Registered name."""
        return self.trials.space.method


def find(session: Session, trials: Sequence[Trials], folder: Path) -> StudyResult:
    """Choose, compute what the comparison needs, and write a study's files.

    Args:
        session: The work on the study.
        trials: The finished trials of every method.
        folder: The study's folder.
    """
    findings = [
        MethodFindings(
            trials=t,
            choices=choose(t.finished(), session.file.objective, session.pairs),
            same=same_models(t.finished()),
        )
        for t in trials
    ]
    if session.file.search.probe:
        for found in findings:
            found.probed = _probe(session, found)
    rows = _rows(session, findings)
    return _Writer(session, findings, rows, folder).write()


def _probe(session: Session, found: MethodFindings) -> list[dict[str, Any]]:
    """Move each setting alone from the chosen point and see whether a model changes."""
    moved: list[tuple[Choice, str, Asked]] = []
    for choice in found.choices:
        for name, point in probes(found.trials.space, choice).items():
            asked = (found.method, point, ",".join(choice.pairs), session.file.request.seeds)
            moved.append((choice, name, asked))
    computed = session.compute([asked for _, _, asked in moved])
    return [
        {
            "knob": name,
            "pairs": list(choice.pairs),
            "from": choice.point[name],
            "to": asked[1][name],
            "changed": models_of(results) != models_of(choice.results),
        }
        for (choice, name, asked), results in zip(moved, computed, strict=True)
    ]


def _rows(session: Session, findings: Sequence[MethodFindings]) -> list[Row]:
    """Return the comparison: the unadapted model, then defaults and choice of every method."""
    file = session.file
    every, seeds, fresh = ",".join(session.pairs), file.request.seeds, file.confirm_seeds
    rows = [Row(unadapted_method(), UNADAPTED, "", [])]
    asked: list[list[Asked]] = [[(rows[0].method, {}, every, seeds)]]
    for found in findings:
        named = [(DEFAULT, seeds), *([(f"{DEFAULT}, {FRESH}", fresh)] if fresh else [])]
        for name, those in named:
            rows.append(Row(found.method, name, "", []))
            asked.append([(found.method, {}, every, those)])
        numbers = ", ".join(dict.fromkeys(str(choice.number) for choice in found.choices))
        oracle = file.objective.oracle
        # Stored already, unless another machine with a store of its own ran the trial.
        rows.append(Row(found.method, SELECTED, numbers, [], oracle))
        asked.append([(found.method, c.point, ",".join(c.pairs), seeds) for c in found.choices])
        if fresh and found.choices:
            rows.append(Row(found.method, f"{SELECTED}, {FRESH}", numbers, [], oracle))
            asked.append([(found.method, c.point, ",".join(c.pairs), fresh) for c in found.choices])
    computed = iter(session.compute([one for several in asked for one in several]))
    for row, several in zip(rows, asked, strict=True):
        row.results += [result for _ in several for result in next(computed)]
    return rows


class _Writer:
    """Writes the files of one finished study."""

    def __init__(
        self,
        session: Session,
        findings: Sequence[MethodFindings],
        rows: Sequence[Row],
        folder: Path,
    ) -> None:
        self.session = session
        self.file = session.file
        self.findings = findings
        self.rows = rows
        self.folder = folder
        self.paths: list[Path] = []

    def write(self) -> StudyResult:
        unchosen = [found.method for found in self.findings if not found.choices]
        comparison = comparison_table(self.session, self.rows, unchosen)
        self._table(comparison)
        for found in self.findings:
            self._table(trials_table(self.session, found.trials, found.choices))
            self._export(found)
            self._draw(found)
        write_sealed(self.folder / "trials.json", {"trials": self._trials_json()})
        pool = self._pool() if self.file.kind == POOL else None
        tables = [comparison, *(pool.tables if pool else ())]
        document = self._document(comparison)
        if pool is not None:
            document["pool"] = pool.to_json()
        write_sealed(self.folder / "result.json", document)
        text = "\n".join([*map(to_markdown, tables), *self._sentences()])
        return StudyResult(document, text, document["failed"])

    def _table(self, table: PlainTable) -> None:
        self.paths += write_texts(self.folder, table.name, table, to_csv(table))

    def _sentences(self) -> list[str]:
        sentences = [
            sentence
            for found in self.findings
            for sentence in inert_sentences(found.method, found.same, found.probed)
        ]
        return [*sentences, f"Files: {self.folder}"]

    def _pool(self) -> PoolFindings:
        defaults = {row.method: row.results for row in self.rows if row.name == DEFAULT}
        found = judge_pool(
            {f.method: self._stored(f) for f in self.findings},
            defaults,
            out=self.file.request.out,
            folder=self.folder,
            profile=self.file.objective.profile,
            synthetic=self.session.synthetic,
            title=f"Pool {self.file.name}: {self.file.question}".removesuffix(": "),
            remarks=(LABEL_CENTER_SENTENCE,) if self.session.positions_from_labels else (),
        )
        self.paths += found.paths
        return found

    def _stored(self, found: MethodFindings) -> dict[int, list[CellResult]]:
        """Return the cells of every completed trial, computed here where a store lacks them."""
        every, seeds = ",".join(self.session.pairs), self.file.request.seeds
        finished = found.trials.finished()
        asked: list[Asked] = [(found.method, dict(t.params), every, seeds) for t in finished]
        computed = self.session.compute(asked)
        return {trial.number: cells for trial, cells in zip(finished, computed, strict=True)}

    # -- other files ------------------------------------------------------------------------

    def _export(self, found: MethodFindings) -> None:
        if found.choices:
            path = self.folder / f"best-{found.method}.toml"
            write_bytes(path, self.export(found).encode())
            self.paths.append(path)

    def export(self, found: MethodFindings) -> str:
        """Return the chosen settings of a method as TOML."""
        points = {c.pairs[0] if len(found.choices) > 1 else "": c.point for c in found.choices}
        numbers = ", ".join(dict.fromkeys(str(choice.number) for choice in found.choices))
        document = self.session.document(found.method)
        return to_toml(
            settings_of(document),
            found.method,
            points,
            [
                *export_comment(self.file.name, self.file.objective.text, numbers, document),
                f"Information: {self.file.objective.information}.",
            ],
        )

    def _draw(self, found: MethodFindings) -> None:
        from sfuda_bench.search.pictures import study_pictures

        finished = found.trials.finished()
        if not finished:
            return
        preference = preferences(found.trials)
        # Trials compare by preference: it is what the sampler follows and the choice is made by.
        frame = pd.DataFrame(
            [
                {
                    "number": trial.number,
                    "value": preference.get(trial.number, math.nan),
                    "state": trial.state.name,
                    "params": dict(trial.params),
                }
                for trial in found.trials.all()
            ]
        )
        space = found.trials.space
        title = f"{space.method}, {', '.join(self.session.pairs)}"
        self.paths += study_pictures(
            frame,
            self.folder,
            symbols=space.symbols(),
            space=space.knobs,
            objective=self._axis(),
            title=f"{title} {SYNTHETIC_MARK}" if self.session.synthetic else title,
            prefix=f"{space.method}-",
        )

    def _axis(self) -> str:
        text = self.file.objective.text
        return f"mean rank by {text}" if self.file.objective.label_free else f"{text} {ORACLE_MARK}"

    def _trials_json(self) -> list[dict[str, Any]]:
        return [
            {
                "method": found.method,
                "number": trial.number,
                "state": trial.state.name,
                "point": dict(trial.params),
                "value": trial.value if trial.state == TrialState.COMPLETE else None,
                "error": error_of(trial),
                "cells": [result.to_json() for result in results_of(trial)],
            }
            for found in self.findings
            for trial in found.trials.all()
        ]

    def _document(self, comparison: PlainTable) -> dict[str, Any]:
        file = self.file
        states = [t.state.name for found in self.findings for t in found.trials.all()]
        keys = [column.key for column in comparison.columns]
        return {
            "study": file.name,
            "kind": file.kind,
            "question": file.question,
            "objective": file.objective.text,
            "information": file.objective.information,
            "oracle": file.objective.oracle,
            "synthetic": self.session.synthetic,
            "pairs": self.session.pairs,
            "trials": {state.lower(): states.count(state) for state in sorted(set(states))},
            "failed": states.count("FAIL"),
            "choices": [
                {
                    "method": found.method,
                    "pairs": list(choice.pairs),
                    "trial": choice.number,
                    "point": choice.point,
                }
                for found in self.findings
                for choice in found.choices
            ],
            "documents": {f.method: self.session.document(f.method) for f in self.findings},
            "comparison": [dict(zip(keys, row, strict=True)) for row in comparison.rows],
            "same_models": {found.method: found.same for found in self.findings},
            "probed": {found.method: found.probed for found in self.findings},
            "files": [path.name for path in self.paths],
            "folder": str(self.folder),
        }


def export_comment(name: str, objective: str, trial: str, document: Mapping[str, Any]) -> list[str]:
    """Return the lines above exported settings: where they come from and how to use them."""
    seeds = ",".join(map(str, document["seeds"]))
    return [
        f"Study {name}, objective {objective}, trial {trial}.",
        f"sfuda-bench run --config FILE --methods {next(iter(document['settings']['methods']))} "
        f"--pairs {','.join(document['pairs'])} --seeds {seeds}",
    ]


def failures(trials: Iterable[Trials]) -> list[str]:
    """Return why trials failed, one text per failed trial."""
    return [
        f"{t.space.method} trial {trial.number}: {error_of(trial)}"
        for t in trials
        for trial in t.all()
        if trial.state == TrialState.FAIL
    ]

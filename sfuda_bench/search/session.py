"""What a study computes through the ordinary store: trials, baselines, fresh seeds, probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.running.request import RunRequest
from sfuda_bench.search.cells import cell_dice, evaluate, requests_for
from sfuda_bench.search.objectives import CellResult
from sfuda_bench.search.spaces import Point, Space
from sfuda_bench.search.study import DEFAULT_CELLS
from sfuda_bench.search.study_file import StudyFile

if TYPE_CHECKING:
    import pandas as pd

    from sfuda_bench.running.engine import ProgressSink
    from sfuda_bench.running.plan import CellPlan, Plan
    from sfuda_bench.running.pool import WorkerPool

Asked = tuple[str, Point, str, tuple[int, ...]]
"""Method, point, pair selector, adaptation seeds."""


class Session:
    """One process's work on a study.

    Args:
        file: The checked study file.
        progress: Where progress goes.
        pool: Workers that live as long as the session.
    """

    def __init__(
        self, file: StudyFile, progress: ProgressSink, pool: WorkerPool | None = None
    ) -> None:
        self.file = file
        self.progress = progress
        self.pool = pool
        self.origin = f"study {file.name}"
        self.plan: Plan = _baseline_plan(file)
        self.pairs = list(dict.fromkeys(str(cell.pair) for cell in self.plan.cells))
        self.synthetic = any(cell.job["cell"]["synthetic"] for cell in self.plan.cells)
        self.positions_from_labels = any(cell.positions_from_labels for cell in self.plan.cells)
        _check_masks(file, self.plan)
        _check_targets(file, self.pairs)

    def spaces(self) -> dict[str, Space]:
        """Return the spaces, aware of what the settings say about single pairs."""
        settings = self.file.request.settings
        found = {}
        for method, space in self.file.spaces.items():
            configs = [settings.config_for(method, pair) for pair in self.pairs]
            others = tuple(dict.fromkeys(c for c in configs if c != space.base))
            found[method] = dataclasses.replace(space, pair_bases=others)
        return found

    def document(self, method: str) -> dict[str, Any]:
        """Return what must not change while a method's trials exist."""
        from sfuda_bench.settings import to_json

        file, request = self.file, self.file.request
        settings = to_json(request.settings)
        del settings["origins"]
        settings["methods"] = {method: settings["methods"][method]}
        cells = [cell for cell in self.plan.cells if cell.method == method]
        return {
            "kind": file.kind,
            "objective": file.objective.text,
            "profile": file.objective.profile,
            "sampler": file.search.sampler,
            "seed": file.search.seed,
            "prune": file.search.prune,
            "space": file.spaces[method].to_json(),
            "pairs": self.pairs,
            "seeds": list(request.seeds),
            "source_seeds": list(request.source_seeds),
            "protocol": request.protocol,
            "record": sorted(request.record),
            "settings": settings,
            # Whatever else a result depends on: images, source models, versions.
            DEFAULT_CELLS: {_place(cell): cell.key for cell in cells},
        }

    def trial(self, method: str, point: Point, pairs: str) -> list[CellResult]:
        """Compute the cells of one trial."""
        (found,) = self.compute([(method, point, pairs, self.file.request.seeds)])
        return found

    def compute(self, asked: Sequence[Asked]) -> list[list[CellResult]]:
        """Compute the cells of several points at once."""
        return [
            [self._result(cell) for cell in cells]
            for cells in evaluate([self._request(*one) for one in asked], self.progress, self.pool)
        ]

    def _request(self, method: str, point: Point, pairs: str, seeds: tuple[int, ...]) -> RunRequest:
        base = dataclasses.replace(self.file.request, pairs=pairs, seeds=seeds)
        return requests_for(base, {method: point}, origin=self.origin)

    def _result(self, cell: CellPlan) -> CellResult:
        from sfuda_bench.running.store import read_json

        scores, collapsed = self.file.objective.read(cell.folder)
        record = read_json(cell.folder / "cell.json")
        return CellResult(
            key=cell.key,
            folder=str(cell.folder.relative_to(self.file.request.out)),
            method=cell.method,
            pair=str(cell.pair),
            source_seed=cell.source_seed,
            seed=cell.seed,
            adapted=str(record["adapted_model_sha256"]),
            scores=scores,
            collapsed=collapsed,
        )

    def image_dice(self, results: Sequence[CellResult]) -> pd.DataFrame:
        """Return the test Dice in percent; a cell that was not scored is left out.

        Returns:
            ``pair``, ``source_seed``, ``seed``, ``image``, ``structure``, ``dice``.
        """
        import pandas as pd

        profile = self.file.objective.profile
        parts = []
        for result in results:
            folder = self.file.request.out / result.folder
            if (folder / f"cases-{profile}.parquet").is_file():
                cases = cell_dice(folder, profile)
                place = {n: getattr(result, n) for n in ("pair", "source_seed", "seed")}
                parts.append(cases.assign(**place, dice=100 * cases["dice"]))
        columns = ["pair", "source_seed", "seed", "image", "structure", "dice"]
        return (
            pd.concat(parts, ignore_index=True)[columns]
            if parts
            else pd.DataFrame({name: [] for name in columns})
        )


def _baseline_plan(file: StudyFile) -> Plan:
    """Plan the cells of the default settings: it checks pairs, images and names."""
    from sfuda_bench.running.plan import build_plan

    return build_plan(file.request)


def _place(cell: CellPlan) -> str:
    return f"{cell.pair}/{cell.source_seed}/{cell.seed}"


def _check_masks(file: StudyFile, plan: Plan) -> None:
    """Refuse an objective that needs labels where there are none, before anything is trained."""
    blocked = [cell for cell in plan.cells if cell.state == "blocked"]
    if blocked:
        raise DataError(blocked[0].reason, hint="sfuda-bench data verify --data-root DIR")
    unscored = [cell for cell in plan.cells if not cell.scoring]
    if unscored and file.objective.kind in ("oracle_test", "transfer"):
        raise DataError(
            f"objective '{file.objective.text}' needs the masks of {unscored[0].pair.target}/test",
            hint="a label-free objective needs none",
        )


def _check_targets(file: StudyFile, pairs: Sequence[str]) -> None:
    targets = {pair.partition(":")[2] for pair in pairs}
    if file.objective.kind == "transfer" and len(targets) < 2:
        raise UsageError(
            f"{file.name}: objective 'transfer' chooses on pairs with another target, but "
            f"{', '.join(targets)} is the only one",
            hint="--pairs all",
        )


def study_folder(out: Path, name: str) -> Path:
    """Return where a study's files lie."""
    return out / "studies" / name


def settings_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a study's document, as :func:`to_json` writes them."""
    return {**document["settings"], "origins": {}}

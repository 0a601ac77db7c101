"""Means and deviations of stored scores, equal whatever the order of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from sfuda_bench.report.records import AskedCell, CellRecord
from sfuda_bench.scoring.codes import STRUCTURES

METRICS = ("dice", "asd")
MISSING = "\N{EN DASH}"
"""What a table prints for a cell that has no score, and for every average that needs it."""
ASD_COLUMNS = {"directed": "assd_directed_px", "pooled": "assd_pooled_px"}


@dataclass(frozen=True, slots=True)
class Case:
    """The scores of one structure on one image.

    Attributes:
        dice: In percent.
        asd: In pixels of the evaluation grid; NaN where the profile leaves it undefined.
        empty_prediction: Nothing was predicted.
        empty_truth: Nothing was there.
    """

    dice: float
    asd: float
    empty_prediction: bool
    empty_truth: bool


CellCases = dict[tuple[str, str], Case]
"""The cases of one cell by (structure, image)."""


@dataclass(frozen=True)
class Statistic:
    """Mean and deviation of one column.

    Attributes:
        mean: ``None`` if nothing may be printed.
        std: Sample standard deviation (n - 1), ``None`` for fewer than two values.
        n: Number of values: images, or pairs in an average over pairs.
    """

    mean: float | None = None
    std: float | None = None
    n: int = 0


def cases_by_cell(
    cases: pd.DataFrame, stored: Mapping[str, CellRecord], selection: str, asd_definition: str
) -> dict[str, CellCases]:
    """Return the cases of every cell that has the selection, by the cell's key.

    A cell without a trained epoch has one model only, which every selection selects.

    Args:
        cases: From ``read_cases``.
        stored: Finished cells by key.
        selection: Name of the selection.
        asd_definition: ``directed`` or ``pooled``.
    """
    by_cell: dict[str, CellCases] = {}
    columns = ["dice", ASD_COLUMNS[asd_definition], "empty_prediction", "empty_truth"]
    names = ["key", "selection", "structure", "image", *columns]
    # What no cell can need is dropped first, as a whole: most rows belong to other selections.
    cases = cases.loc[cases["selection"].isin({selection, "last"}), names]
    for key, chosen, structure, image, *values in zip(
        *(cases[name].tolist() for name in names), strict=True
    ):
        if key not in stored or chosen != (selection if stored[key].epochs else "last"):
            continue
        dice, asd, empty_prediction, empty_truth = values
        case = Case(100 * dice, asd, bool(empty_prediction), bool(empty_truth))
        by_cell.setdefault(key, {})[(structure, image)] = case
    return by_cell


def summarise(
    asked: Iterable[AskedCell], cases: Mapping[str, CellCases]
) -> dict[str, Statistic] | None:
    """Return the statistics of one row in one pair, or ``None`` if a cell is missing.

    Each image's scores are averaged over the cells (seeds and source seeds), then over images.
    A NaN leaves both means. The average column is the mean of the cup's and the disc's mean;
    its deviation is over the images that have both.

    Args:
        asked: All cells of the row in the pair.
        cases: Cases by the cell's key.

    Returns:
        Statistics by ``dice_cup``, ``dice_disc``, ``dice_avg``, ``asd_cup``, ...
    """
    keys = [cell.key for cell in asked]
    if not keys or any(key not in cases for key in keys):
        return None
    statistics: dict[str, Statistic] = {}
    for metric in METRICS:
        by_structure = {
            structure: _image_means([cases[key] for key in keys], structure, metric)
            for structure in STRUCTURES
        }
        found = {name: statistic(values.values()) for name, values in by_structure.items()}
        statistics |= {f"{metric}_{name}": value for name, value in found.items()}
        statistics[f"{metric}_avg"] = _average(by_structure, found)
    return statistics


def statistic(values: Iterable[float]) -> Statistic:
    """Return mean, sample standard deviation and number of values, exact in any order."""
    numbers = list(values)
    n = len(numbers)
    if not n:
        return Statistic()
    mean = math.fsum(numbers) / n
    if n == 1:
        return Statistic(mean, None, n)
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (n - 1)
    return Statistic(mean, math.sqrt(variance), n)


def _image_means(cells: Sequence[CellCases], structure: str, metric: str) -> dict[str, float]:
    """Return each image's mean over cells, without images that have no defined value."""
    values: dict[str, list[float]] = {}
    for cell in cells:
        for (name, image), case in cell.items():
            value: float = getattr(case, metric)
            if name == structure and not math.isnan(value):
                values.setdefault(image, []).append(value)
    return {image: math.fsum(numbers) / len(numbers) for image, numbers in values.items()}


def _average(
    by_structure: Mapping[str, Mapping[str, float]], found: Mapping[str, Statistic]
) -> Statistic:
    means = [found[structure].mean for structure in STRUCTURES]
    shared = set.intersection(*(set(by_structure[structure]) for structure in STRUCTURES))
    spread = statistic(
        math.fsum(by_structure[structure][image] for structure in STRUCTURES) / len(STRUCTURES)
        for image in shared
    )
    defined = [mean for mean in means if mean is not None]
    if len(defined) < len(STRUCTURES):
        return Statistic()
    return Statistic(math.fsum(defined) / len(defined), spread.std, spread.n)

"""The caption of a table: everything a reader needs to know what its numbers are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfuda_bench.report.records import AskedCell, CellRecord
from sfuda_bench.report.rows import MethodRow
from sfuda_bench.report.scope import LABEL_CENTER_MARK, LABEL_CENTER_WORDS
from sfuda_bench.report.summary import MISSING, CellCases

_DEFINITIONS = {
    "directed": "mean of the two directed mean distances",
    "pooled": "mean over the pooled distances of both contours",
}
_STRICTNESS = {
    "S0": "source weights and preprocessing only",
    "S1": "also scalars of the source data",
    "S2": "also tensors from source images",
}
_ON_SOURCE_TEST = "source_test_best"
_SELECTIONS = {
    "last": "last epoch",
    "oracle": "best epoch on the target test labels (oracle †)",
}


@dataclass(frozen=True)
class Facts:
    """What a caption is made from.

    Attributes:
        asked: Cells of the table, finished or not.
        rows: Rows of the table.
        stored: Those of the cells that are finished.
        cases: Cases of those that are scored and have the selection, by key.
        scoring: Fields of the profile, engine and scorer version; empty if nothing is scored.
    """

    asked: Sequence[AskedCell]
    rows: Sequence[MethodRow]
    stored: Sequence[CellRecord]
    cases: Mapping[str, CellCases]
    scoring: Mapping[str, Any]


def caption_sentences(facts: Facts, *, profile: str, selection: str) -> list[str]:
    """Return the caption's sentences.

    Args:
        facts: The cells and scores behind the table.
        profile: Name of the profile.
        selection: Name of the selection.
    """
    sentences = [
        _numbers(facts),
        f"Selection: {_SELECTIONS.get(selection, selection)}.",
        _profile(profile, facts.scoring),
        _setting(facts),
        _strictness(facts.rows),
        _distance(facts.scoring),
        _empties(facts),
        _marks(facts),
    ]
    return [sentence for sentence in sentences if sentence]


def _numbers(facts: Facts) -> str:
    seeds = _list(sorted({cell.seed for cell in facts.asked}))
    source_seeds = _list(sorted({cell.source_seed for cell in facts.asked}))
    text = (
        "Mean ± sample standard deviation over test images of per-image scores, each first "
        f"averaged over seeds ({seeds}) and source seeds ({source_seeds}); "
        "avg is the mean of cup and disc"
    )
    runs = {len(row.of_pair(cell.pair)) for row in facts.rows for cell in row.cells}
    if len(runs) > 1:
        text += f"; entries average {min(runs)} to {max(runs)} runs"
    if len({cell.pair for cell in facts.asked}) > 1:
        text += "; in the average over pairs the deviation is over pairs"
    return text + "."


def _profile(profile: str, scoring: Mapping[str, Any]) -> str:
    if "threshold" not in scoring:
        return f"Scoring profile: {profile}."
    details = [f"threshold {scoring['threshold']:g}"]
    if scoring.get("cup_threshold") is not None:
        details = [f"threshold disc {scoring['threshold']:g}, cup {scoring['cup_threshold']:g}"]
    if scoring.get("postprocessing"):
        details.append(f"post-processing {scoring['postprocessing']}")
    if scoring.get("smooth"):
        details.append(f"Dice smoothed by {scoring['smooth']:g}")
    if scoring["engine"] != "core":
        details.append(f"engine {scoring['engine']}")
    return f"Scoring profile: {profile} ({', '.join(details)})."


def _setting(facts: Facts) -> str:
    presets = _list(dict.fromkeys(cell.preset for cell in facts.asked if cell.preset))
    text = f"Preset: {presets}." if presets else ""
    networks = dict.fromkeys(_network(cell.network) for cell in facts.stored)
    if networks:
        text += f" Network: {_list(networks)}."
    sizes = sorted({cell.image_size for cell in facts.stored})
    if sizes:
        text += f" Image size: {_list(sizes)} px."
    if any(cell.record.get("source_selection") == _ON_SOURCE_TEST for cell in facts.stored):
        text += f" Source models are chosen on their own test split ({_ON_SOURCE_TEST})."
    modes = dict.fromkeys(filter(None, (_inference(cell.inference) for cell in facts.stored)))
    if modes:
        text += f" Networks are run with {' or '.join(modes)}."
    return text.strip()


def _inference(inference: Mapping[str, Any]) -> str:
    """Return how a network is run, if that is not the ordinary way."""
    parts = ["each image's own batch norm"] if inference.get("batch_norm") == "per_image" else []
    parts += ["active dropout"] if inference.get("dropout") else []
    parts += ["no pooling batch norm"] if inference.get("pooling_bn") is False else []
    return ", ".join(parts)


def _network(network: Mapping[str, Any]) -> str:
    weights = network.get("encoder_weights", "none")
    # A file of weights is named by its last part: a path belongs in no paper.
    known = "no pretrained weights" if weights == "none" else str(weights).rsplit("/", 1)[-1]
    return f"{network.get('name')} ({network.get('encoder')}, {known})"


def _strictness(rows: Sequence[MethodRow]) -> str:
    ranked = [row for row in rows if not row.oracle] or rows
    classes: dict[str, list[str]] = {}
    for row in ranked:
        classes.setdefault(row.strictness, []).append(row.label)
    named = [
        f"{name}, {_STRICTNESS.get(name, 'undeclared')} "
        f"({'all methods' if len(classes) == 1 else ', '.join(dict.fromkeys(labels))})"
        for name, labels in sorted(classes.items())
    ]
    return f"Strictness: {'; '.join(named)}." if named else ""


def _distance(scoring: Mapping[str, Any]) -> str:
    definition = _DEFINITIONS.get(scoring.get("asd_definition", ""), "")
    detail = f" ({definition})" if definition else ""
    grid = scoring.get("evaluation_grid")
    size = f" ({grid} x {grid})" if grid else ""
    return f"ASD{detail} in pixels of the evaluation grid{size}."


def _empties(facts: Facts) -> str:
    cases = [case for cell in facts.cases.values() for case in cell.values()]
    predictions = sum(case.empty_prediction for case in cases)
    truths = sum(case.empty_truth for case in cases)
    undefined = sum(case.asd != case.asd for case in cases)  # only NaN differs from itself
    text = (
        f"Empty masks among {len(cases)} cases (one structure of one image in one run): "
        f"{predictions} predictions, {truths} truths"
    )
    excluded = facts.scoring.get("empty_policy") == "exclude"
    if undefined or excluded:
        text += f"; {undefined} undefined distances are left out of the ASD"
    elif predictions or truths:
        text += "; they count with the worst value unless both are empty"
    return text + "."


def _marks(facts: Facts) -> str:
    parts = ["Best in bold, second best underlined, per pair and column"]
    if any(row.oracle for row in facts.rows):
        parts.append("† uses target labels (oracle), not ranked")
    synthetic = {cell.pair for cell in facts.asked if cell.synthetic}
    if synthetic:
        parts.append("§ synthetic images, not of patients")
    if any(cell.positions_from_labels for cell in facts.asked):
        parts.append(f"{LABEL_CENTER_MARK} {LABEL_CENTER_WORDS}")
    missing = sum(cell.key not in facts.cases for cell in facts.asked)
    if missing:
        parts.append(
            f"{MISSING} missing, failed or unscored ({missing} of {len(facts.asked)} cells), "
            "or an average that would need it"
        )
    return "; ".join(parts) + "."


def _list(values: Iterable[object]) -> str:
    return ", ".join(str(value) for value in values)

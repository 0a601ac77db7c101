"""Data set cards: what a user has to know before using images, and whom to ask for them."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from sfuda_bench.datasets import (
    DATASETS,
    SPLITS,
    DatasetSpec,
    dataset_names,
    domain_index,
    get_dataset,
    read_domain,
)
from sfuda_bench.errors import DataError
from sfuda_bench.report.cite import dataset_citation

_CENTERS = {
    "gt": "annotations (position comes from labels)",
    "csv": "a file of the user",
    "detector": "a detected disc",
    "owner": "the owners' own crops",
    "unknown": "unknown",
}
_NOT_STATED = "See the owner's page."
_WIDTH = 88


def dataset_cards(root: Path | None = None) -> list[dict[str, Any]]:
    """Return one card per registered data set, by name.

    Args:
        root: Folder of domains; what is found there is counted.

    Raises:
        DataError: There is no such folder, or no domain in it.
    """
    folders = domain_index(root) if root is not None else {}
    return [_card(get_dataset(name), folders.get(name)) for name in dataset_names()]


def card_text(card: dict[str, Any]) -> str:
    """Return a card as lines to read."""
    published, found = card["published_counts"], card["found"]
    lines = [f"{card['title']} ({card['name']})", card["description"]]
    lines += _field("also called", ", ".join(card["aliases"]))
    lines += _field("camera", card["camera"])
    lines += _field("masks", card["encoding"])
    lines += _field("published split", _counts(published) if published else "none")
    if found is not None:
        problem = found.get("problem")
        text = problem or f"{_counts(found['counts'])}, {found['masks']} with masks"
        lines += _field("found", f"{text}: {found['folder']}")
    lines += _field("crops centred by", _CENTERS[card["roi_center"]])
    lines += _field("terms", card["licence"])
    lines += _field("ask for it at", card["homepage"])
    lines += _field("cite", card["citation"])
    for pitfall in card["pitfalls"]:
        lines += _field("mind", pitfall)
    return "\n".join([*lines, *([card["bibtex"]] if card["bibtex"] else [])])


def _card(spec: DatasetSpec, folder: Path | None) -> dict[str, Any]:
    citation = dataset_citation(spec.name, spec.citation)
    found = None if folder is None else _found(folder)
    return {
        "name": spec.name,
        "title": spec.title,
        "description": spec.description,
        "aliases": list(spec.aliases),
        "synthetic": spec.synthetic,
        "camera": spec.camera or _NOT_STATED,
        "encoding": spec.encoding or _NOT_STATED,
        "published_counts": list(spec.published_counts) if spec.published_counts else None,
        "found": found,
        "roi_center": (found or {}).get("roi_center", spec.roi_center),
        "licence": spec.licence or _NOT_STATED,
        "homepage": spec.homepage,
        "citation": spec.citation,
        "bibtex": citation.to_bibtex() if citation is not None else "",
        "pitfalls": list(spec.pitfalls),
        "raw_layout": spec.raw.tree if spec.raw is not None else None,
        "file": str(DATASETS.origin(spec.name)),
    }


def _found(folder: Path) -> dict[str, Any]:
    """Return how many images a folder has; one that cannot be read says why."""
    try:
        domain = read_domain(folder)
    except DataError as error:
        return {"folder": str(folder), "problem": error.message}
    splits = [domain.split(split) for split in SPLITS]
    return {
        "folder": str(folder),
        "counts": [len(split.samples) for split in splits],
        "masks": sum(sample.mask is not None for split in splits for sample in split.samples),
        "roi_center": domain.roi_center,
    }


def _counts(counts: list[int]) -> str:
    return f"{counts[0]} / {counts[1]} train / test"


def _field(name: str, text: str) -> list[str]:
    """Return the lines of one entry, none where there is nothing to say."""
    if not text:
        return []
    return textwrap.wrap(
        f"{name + ':':17} {text}",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent=" " * 20,
        break_long_words=False,
        break_on_hyphens=False,
    )

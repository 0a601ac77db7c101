"""What can be named on the command line."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sfuda_bench.commands.shared import (
    CommandParser,
    add_data_root,
    add_plugin,
    load_plugins,
)


def add(parser: CommandParser) -> None:
    """Add ``ls``."""
    listing = parser.command("ls", _ls, "list what can be named; -v: cards of the data sets")
    listing.add_argument("what", choices=tuple(_LISTS))
    add_data_root(listing)
    add_plugin(listing)


def _ls(arguments: argparse.Namespace) -> int:
    if arguments.what == "datasets" and arguments.verbose:
        return _print_cards(arguments)
    rows = _LISTS[arguments.what](arguments)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print("  ".join(str(value) for value in row.values() if value not in (None, "")))
    return 0


def _print_cards(arguments: argparse.Namespace) -> int:
    from sfuda_bench.report.cards import card_text, dataset_cards

    load_plugins(arguments)
    cards = dataset_cards(arguments.data_root)
    if arguments.json:
        print(json.dumps(cards))
    else:
        print("\n\n".join(map(card_text, cards)))
    return 0


def _list_methods(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.methods import METHODS

    load_plugins(arguments)
    specs = [METHODS.get(name) for name in METHODS.names()]
    return [
        {
            "name": spec.name,
            "title": spec.title,
            "version": f"v{spec.version}",
            "protocols": ",".join(spec.protocols),
            "strictness": "oracle" if spec.oracle else spec.strictness,
            "source": spec.source,
            "file": METHODS.origin(spec.name),
        }
        for spec in specs
    ]


def _list_datasets(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.datasets import DATASETS, dataset_names, get_dataset

    load_plugins(arguments)
    rows = []
    for name in dataset_names():
        spec = get_dataset(name)
        counts = spec.published_counts
        rows.append(
            {
                "name": spec.name,
                "title": spec.title,
                "published": "/".join(map(str, counts)) if counts else "",
                "aliases": ",".join(spec.aliases),
                "homepage": spec.homepage,
                "file": DATASETS.origin(name),
            }
        )
    return rows


def _list_networks(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.networks.registry import NETWORKS

    load_plugins(arguments)
    specs = [NETWORKS.get(name) for name in NETWORKS.names()]
    return [
        {
            "name": spec.name,
            "version": f"v{spec.version}",
            "description": spec.description,
            "file": NETWORKS.origin(spec.name),
        }
        for spec in specs
    ]


def _list_validators(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.scoring.validators import VALIDATORS

    load_plugins(arguments)
    specs = [VALIDATORS.get(name) for name in VALIDATORS.names()]
    return [
        {
            "name": spec.name,
            "version": f"v{spec.version}",
            "strictness": spec.strictness,
            "needs": ",".join(sorted(spec.needs)),
            "description": spec.description,
            "file": VALIDATORS.origin(spec.name),
        }
        for spec in specs
    ]


def _list_pairs(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    from sfuda_bench.datasets import canonical_name, dataset_names, find_domains, get_dataset
    from sfuda_bench.selectors import parse_pairs

    if arguments.data_root is not None:
        names = list(find_domains(arguments.data_root))
    else:
        names = [name for name in dataset_names() if get_dataset(name).synthetic]
    pairs = parse_pairs("all", names, canonical_name)
    return [{"pair": str(pair), "source": pair.source, "target": pair.target} for pair in pairs]


_LISTS = {
    "methods": _list_methods,
    "datasets": _list_datasets,
    "networks": _list_networks,
    "pairs": _list_pairs,
    "validators": _list_validators,
}

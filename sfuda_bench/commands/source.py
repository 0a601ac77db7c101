"""Source models: training, listing, importing."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sfuda_bench.commands.cluster import add_cluster, request_workers
from sfuda_bench.commands.shared import (
    SOME_FAILED,
    CommandParser,
    add_data_root,
    add_out,
    add_plugin,
    add_request,
    load_plugins,
    make_request,
    note,
    stdout_for_data,
)


def add(parser: CommandParser) -> None:
    """Add ``source train|ls|import``."""
    source = parser.group("source", "source models")
    train = source.command("train", _source_train, "train the source models that run would need")
    add_request(train)
    add_cluster(train)
    add_out(source.command("ls", _source_ls, "list stored source models and their scores"))
    _add_import(source.command("import", _source_import, "store weights from a file, e.g. .pth"))


def _source_train(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.running.engine import train_sources
    from sfuda_bench.running.plan import build_plan

    with request_workers(arguments, make_request(arguments)) as (request, pool):
        plan = build_plan(request)
        with stdout_for_data(), Progress() as progress:
            summary = train_sources(plan, progress, pool)
    print(json.dumps(summary.to_json()) if arguments.json else _source_text(arguments.out))
    return SOME_FAILED if summary.failed else 0


def _source_ls(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.cards import list_sources

    if arguments.json:
        print(json.dumps(list_sources(arguments.out)))
    else:
        print(_source_text(arguments.out))
    return 0


def _source_import(arguments: argparse.Namespace) -> int:
    from sfuda_bench.datasets import canonical_name
    from sfuda_bench.running.source_import import import_source, train_masks
    from sfuda_bench.running.store import Store
    from sfuda_bench.settings import NetworkSettings

    load_plugins(arguments)
    domain, store = canonical_name(arguments.domain), Store.open(arguments.out)
    network = NetworkSettings(name=arguments.network, encoder=arguments.encoder)
    masks = train_masks(arguments.data_root, domain, arguments.image_size, store)
    source = import_source(arguments.file, domain, network, store, masks)
    if ignored := len(source.card["imported"]["ignored"]):
        note(f"{arguments.file}: {ignored} tensors are not of the network and were left out")
    note(f"use it: run --source-model {domain}={source.key[:16]} --network {network.name}")
    print(json.dumps(source.card) if arguments.json else source.key[:16])
    return 0


def _source_text(out: Path) -> str:
    from sfuda_bench.running.cards import list_sources

    lines = []
    for card in list_sources(out):
        test = card.get("test_dice", {}).get("0.5")
        score = (
            f"test Dice cup {test['cup']:.3f} disc {test['disc']:.3f}" if test else "no test masks"
        )
        made = f"{card['image_size']} px  {card.get('updates')} updates  {score}"
        if card.get("imported"):
            made = f"imported from {card['imported']['file']}"
        lines.append(
            f"{card['domain']}  seed {card['source_seed']}  {card['key'][:16]}  "
            f"{card['network']['name']} {made}"
        )
    return "\n".join(lines)


def _add_import(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="a released checkpoint, or .safetensors")
    add("--domain", required=True, help="the domain it was trained on")
    add("--network", default="dpl_deeplabv3plus", help="default: dpl_deeplabv3plus")
    add("--encoder", default="mobilenet_v2", help="default: mobilenet_v2")
    add("--image-size", type=int, default=512, help="of the area prior's masks (default: 512)")
    add_data_root(parser)
    add_out(parser)
    add_plugin(parser)

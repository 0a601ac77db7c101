"""One's own network and images: adapting without labels, and predicting masks."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.commands.shared import (
    CommandParser,
    add_plugin,
    note,
    print_rich,
    stdout_for_data,
)
from sfuda_bench.errors import CheckFailed

if TYPE_CHECKING:
    from rich.table import Table

_STEP = 50  # images between two lines of progress


def add(parser: CommandParser) -> None:
    """Add ``adapt`` and ``predict``."""
    _add_adapt(
        parser.command(
            "adapt",
            _adapt,
            "adapt your network to your unlabelled images; exit 6 if its masks collapse",
        )
    )
    _add_predict(
        parser.command("predict", _predict, "write masks and cup-to-disc ratios of your images")
    )


def _adapt(arguments: argparse.Namespace) -> int:
    from sfuda_bench.progress import Progress
    from sfuda_bench.running.own.adapt import AdaptRequest, adapt

    request = AdaptRequest(
        method=arguments.method,
        model=arguments.model,
        images=arguments.images,
        out=arguments.out,
        preset=arguments.preset,
        config_file=arguments.config,
        overrides=tuple(arguments.set),
        image_size=arguments.image_size,
        network=arguments.network,
        encoder=arguments.encoder,
        precision=arguments.precision,
        seed=arguments.seed,
        device=arguments.device,
        plugins=tuple(arguments.plugin),
    )
    with stdout_for_data(), Progress() as progress:
        card = adapt(request, progress)
    found = card["evidence"]
    if arguments.json:
        print(json.dumps({"out": str(request.out), "card": card}))
    else:
        print_rich(_evidence_table(card))
    note(f"written: {request.out} and {request.out.with_suffix('.json').name}")
    for text in _advice(card, request.model, request.out):
        note(text)
    return CheckFailed.exit_code if found["collapsed"]["adapted"] else 0


def _advice(card: dict[str, Any], model: Path, out: Path) -> list[str]:
    """Return what to do with the adapted model, the most important last."""
    found = card["evidence"]
    lines = [
        f"{found['prefer_adapted']} of {found['asked']} validators prefer the adapted model",
        found["limits"],
        f"ADVICE: {found['advice']}: {found['reason']}",
    ]
    if found["keep"]:
        card_file = out.with_suffix(".json")
        lines.append(
            f"  sfuda-bench predict --model {model} --card {card_file} --images ... --out ..."
        )
    if lost := found["collapsed"]["adapted"]:
        lines.append(f"COLLAPSED: {' and '.join(lost)} masks of the adapted model; do not use it")
    return lines


def _evidence_table(card: dict[str, Any]) -> Table:
    """Draw what the validators say of both models, the better value bold."""
    from rich.table import Table
    from rich.text import Text

    found = card["evidence"]
    rows: dict[str, list[Text]] = {}
    table = Table("validator", show_edge=False, title=f"{card['method']}, without labels")
    for name in ("source cup", "adapted cup", "source disc", "adapted disc"):
        table.add_column(name, justify="right")
    for row in found["validators"]:
        name = f"{row['validator']} *" if row["primary"] else row["validator"]
        best = _better(row["source"], row["adapted"])
        rows.setdefault(name, []).extend(
            Text(_value(row[model]), style="bold" if best == place else "")
            for place, model in enumerate(("source", "adapted"))
        )
    for name, values in rows.items():
        table.add_row(name, *values)
    marks = [
        "yes" if structure in found["collapsed"][model] else "no"
        for structure in ("cup", "disc")
        for model in ("source", "adapted")
    ]
    table.add_row("collapsed", *marks)
    table.caption = "higher is better; * decides the advice, fixed in advance"
    return table


def _value(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"  # noqa: RUF001  # the dash of our tables


def _better(source: float | None, adapted: float | None) -> int:
    """Return 0 or 1 for the better of two values, -1 for a tie."""
    worst = float("-inf")
    first, second = (worst if v is None else v for v in (source, adapted))
    return -1 if first == second else int(second > first)


def _predict(arguments: argparse.Namespace) -> int:
    # What CUDA needs for repeatable matrix products, before it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    from sfuda_bench.running.own.predict import TABLE, PredictRequest, predict_folder
    from sfuda_bench.running.runtime import configure

    configure(torch.get_num_threads())
    request = PredictRequest(
        model=arguments.model,
        images=arguments.images,
        out=arguments.out,
        threshold=arguments.threshold,
        profile=arguments.profile,
        probabilities=arguments.probabilities,
        device=arguments.device,
        precision=arguments.precision,
        network=arguments.network,
        encoder=arguments.encoder,
        image_size=arguments.image_size,
        roi_crop_px=arguments.roi_crop_px,
        card=arguments.card,
        plugins=tuple(arguments.plugin),
    )
    with stdout_for_data():
        document = predict_folder(request, note, _teller())
    for text in document["warnings"]:
        note(f"warning: {text}")
    rows = document["images"]
    doubtful = sum(bool(row["warnings"]) for row in rows)
    undefined = sum(row["vcdr"] is None for row in rows)
    note(f"{len(rows)} masks in {request.out}; {doubtful} rows with warnings, {undefined} no ratio")
    print(json.dumps(document) if arguments.json else request.out / TABLE)
    return 0


def _teller() -> Callable[[int, int], None]:
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done == total or done - told >= _STEP:
            told = done
            note(f"predicted {done}/{total}")

    return tell


def _add_adapt(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", required=True, help="see `ls methods`")
    _add_model(parser)
    add("--out", type=Path, required=True, metavar="MODEL.safetensors", help="what is written")
    add("--preset", default="reproduction", help="settings to start from (default: reproduction)")
    add("--config", type=Path, metavar="FILE.toml", help="settings on top of the preset")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="e.g. data.roi_crop_px=0")
    add("--seed", type=int, default=0, help="of the adaptation (default: 0)")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_model(parser)
    add("--out", type=Path, required=True, metavar="DIR", help="for masks and vcdr.csv")
    add("--threshold", type=float, help="inside where the probability is above (default: 0.5)")
    add("--profile", help="thresholds and post-processing of a scoring profile instead")
    add("--probabilities", action="store_true", help="also the probabilities, at the model's size")
    add("--card", type=Path, metavar="FILE.json", help="run it as this adapted model is run")
    add("--roi-crop-px", type=int, metavar="N", help="central window (default: the model's)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, the images, and what a card would say."""
    add = parser.add_argument
    add(
        "--model", type=Path, required=True, metavar="FILE", help=".safetensors, or a released .pth"
    )
    add("--images", type=Path, required=True, metavar="DIR", help="images only; masks are not read")
    add("--image-size", type=int, help="side of the model input, px (default: the card's)")
    add("--network", help="of a file without a card; see `ls networks`")
    add("--encoder", help="of a file without a card")
    add("--precision", choices=("float32", "bfloat16", "auto"), help="numerical precision")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: auto")
    add_plugin(parser)

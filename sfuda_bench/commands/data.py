"""Images and masks: from a download to a domain, and checks before a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfuda_bench.commands import data_checks
from sfuda_bench.commands.shared import (
    CommandParser,
    add_data_root,
    add_plugin,
    load_plugins,
    note,
    positive,
)

if TYPE_CHECKING:
    from sfuda_bench.images.prepare.options import PrepareRequest
    from sfuda_bench.images.prepare.prepare import Prepared

CHECK_FAILED = 6


def add(parser: CommandParser) -> None:
    """Add ``data verify``, ``stats``, ``prepare`` and ``check-vcdr``."""
    data = parser.group("data", "images and masks")
    data_checks.add(data)
    _add_prepare(data.command("prepare", _data_prepare, "turn an owners' download into a domain"))
    check = data.command(
        "check-vcdr", _data_check_vcdr, "compare masks with the graders' own cup-to-disc ratios"
    )
    add_data_root(check)


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dataset", help="e.g. `sfuda-bench ls datasets`; any name with --layout plain")
    add("--raw", type=Path, required=True, metavar="DIR", help="the download: folder or archive")
    add("--out", type=Path, required=True, metavar="ROOT", help="folder of domains to write to")
    add("--name", help="name of the domain (default: the data set's)")
    add(
        "--layout",
        choices=("owner", "plain", "rois"),
        default="owner",
        help="plain: image/ and mask/; rois: the shared crops DomainN/{train,test}/ROIs/",
    )
    add("--cropped", action="store_true", help="plain layout: the images are disc crops already")
    add("--roi-mode", metavar="MODE", help="native800 (default), crop512, native<PX>, whole")
    add("--size", type=positive, metavar="PX", help="resample the window (default: native)")
    add(
        "--centre",
        "--center",
        choices=("detector", "csv", "gt", "owner"),
        help="where the window's position comes from (default: detector; gt uses labels)",
    )
    add("--centres", type=Path, metavar="FILE.csv", help="name,x_px,y_px for --centre csv")
    add("--expert", help="whose masks, where the owners publish several")
    add("--agreement", help="graders who must agree: any, half, most, all, or a share")
    add("--split", help="which of the owners' splits")
    add("--split-file", type=Path, metavar="FILE.csv", help="a split of your own: name,split")
    add("--split-seed", type=int, default=0, help="seed of a split that is drawn (default: 0)")
    add("--encoding", help="what gray values mean, e.g. 0=cup,128=rim,255=background, or dark")
    add("--repair", action="store_true", help="clip cups that leave the disc")
    add("--skip-incomplete", action="store_true", help="leave out photographs without masks")
    add("--replace", action="store_true", help="prepare anew what was prepared with other options")
    add_plugin(parser)


def _data_prepare(arguments: argparse.Namespace) -> int:
    from sfuda_bench.images.prepare.prepare import prepare

    load_plugins(arguments)
    prepared = prepare(_prepare_request(arguments), _progress)
    if arguments.json:
        print(json.dumps(_prepared_json(prepared)))
    else:
        _print_prepared(prepared)
    agreement = prepared.agreement
    if agreement is not None and not agreement.holds:
        note("error: the masks disagree with the graders' own ratios: wrong files or encoding?")
        return CHECK_FAILED
    return 0


def _prepare_request(arguments: argparse.Namespace) -> PrepareRequest:
    from sfuda_bench.images.prepare.encodings import Encoding, parse_encoding
    from sfuda_bench.images.prepare.options import PrepareRequest

    encoding = parse_encoding(arguments.encoding) if arguments.encoding else Encoding()
    return PrepareRequest(
        dataset=arguments.dataset,
        raw=arguments.raw,
        out=arguments.out,
        name=arguments.name,
        layout=arguments.layout,
        cropped=arguments.cropped,
        size_px=arguments.size,
        roi_mode=arguments.roi_mode,
        centre=arguments.centre,
        centres=arguments.centres,
        expert=arguments.expert,
        split=arguments.split,
        split_file=arguments.split_file,
        split_seed=arguments.split_seed,
        agreement=arguments.agreement,
        encoding=encoding,
        repair=arguments.repair,
        skip_incomplete=arguments.skip_incomplete,
        replace=arguments.replace,
    )


def _progress(done: int, total: int) -> None:
    step = max(1, total // 10)
    if done % step == 0 or done == total:
        note(f"prepared {done} of {total} eyes")


def _prepared_json(prepared: Prepared) -> dict[str, Any]:
    manifest = prepared.manifest
    kept = (
        "domain",
        "roi_center",
        "roi_scale",
        "window_px",
        "size_px",
        "split",
        "summary",
        "notes",
    )
    agreement = prepared.agreement
    return {
        "folder": str(prepared.folder),
        "changed": prepared.changed,
        **{key: manifest[key] for key in kept},
        "graders_vcdr": agreement.as_json() if agreement is not None else None,
    }


def _print_prepared(prepared: Prepared) -> None:
    manifest, summary = prepared.manifest, prepared.manifest["summary"]
    counts = manifest["split"]["counts"]
    state = "" if prepared.changed else " (unchanged)"
    print(f"{prepared.folder}{state}: {counts['train']} train, {counts['test']} test")
    print(f"split: {manifest['split']['origin']}")
    window = manifest["window_px"] or "the owners' crop"
    mark = ", POSITION FROM LABELS" if manifest["roi_center"] == "gt" else ""
    print(f"window: {window} -> {manifest['size_px']} px, centre: {manifest['roi_center']}{mark}")
    error = summary.get("centre_error_disc_diameters")
    if error:
        print(
            f"centre error in disc diameters: mean {error['mean']:.3f}, median "
            f"{error['median']:.3f}, 95 % {error['p95']:.3f}, worst {error['worst']:.3f} "
            f"({error['worst_eye']})"
        )
    outside = summary["cup_outside_disc"]
    if outside["eyes"]:
        print(f"repaired: {outside['px']} px of cup outside the disc in {outside['eyes']} eyes")
    if prepared.agreement is not None:
        print(prepared.agreement.sentence)
    for text in manifest["notes"]:
        print(f"note: {text}")
    print(f"terms: {manifest['owner']['licence']} {manifest['owner']['homepage']}")


def _data_check_vcdr(arguments: argparse.Namespace) -> int:
    from sfuda_bench.datasets import domain_folders
    from sfuda_bench.images.prepare.manifest import read_manifest
    from sfuda_bench.images.prepare.vcdr_check import check_domain

    root = data_checks.data_root_of(arguments, "check-vcdr")
    folders = [folder for folder in domain_folders(root) if read_manifest(folder) is not None]
    checked = {folder.name: check_domain(folder) for folder in folders}
    rated = {name: agreement for name, agreement in checked.items() if agreement is not None}
    if arguments.json:
        print(json.dumps({name: agreement.as_json() for name, agreement in rated.items()}))
    else:
        for name, agreement in rated.items():
            print(f"{name}: {agreement.sentence}")
            for suspect in agreement.suspects:
                print(f"{name}: {suspect} differs from every grader")
        if not rated:
            print("no prepared domain with graders' ratios")
    return 0 if all(agreement.holds for agreement in rated.values()) else CHECK_FAILED

"""Is everything in order: the store, the machine, and one cell in particular."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sfuda_bench.commands.shared import (
    DEFAULT_OUT,
    CommandParser,
    add_out,
    add_request,
    make_request,
    note,
    stdout_for_data,
)
from sfuda_bench.errors import CheckFailed, EnvironmentProblem, UsageError


def add(parser: CommandParser) -> None:
    """Add ``why``, ``verify`` and ``doctor``."""
    why = parser.command(
        "why",
        _why,
        "tell why a cell is stored, would be computed, or failed; with the flags of a run, "
        "of what that run would ask for",
    )
    why.add_argument(
        "cell", nargs="+", help="the beginning of a key, METHOD SOURCE:TARGET, or a path"
    )
    add_request(why)
    verify = parser.command("verify", _verify, "compute every digest of a store again")
    verify.add_argument("store", nargs="?", type=Path, metavar="DIR", help="the same as --out DIR")
    verify.add_argument("--out", type=Path, help=f"the store (default: {DEFAULT_OUT})")
    verify.add_argument("--digest", action="store_true", help="also the digest of all results")
    add_out(parser.command("doctor", _doctor, "try out the machine and the disk of a store"))


def _why(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.why import Inquiry

    planned = None
    if _asks(arguments):
        from sfuda_bench.running.plan import build_plan

        if len(arguments.cell) == 2:
            arguments.methods, arguments.pairs = arguments.cell
        with stdout_for_data():
            planned = build_plan(make_request(arguments)).cells
    answers = Inquiry(arguments.out, planned).answer(arguments.cell)
    if arguments.json:
        print(json.dumps({"cells": [answer.to_json() for answer in answers]}))
    else:
        print("\n".join(line for answer in answers for line in answer.lines()))
    return 0


def _asks(arguments: argparse.Namespace) -> bool:
    """Whether flags of a run were given that say which cells are meant."""
    parser = argparse.ArgumentParser()
    add_request(parser)
    defaults = vars(parser.parse_args([]))
    return any(
        value != defaults[name]
        for name, value in vars(arguments).items()
        if name in defaults and name != "out"
    )


def _verify(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.store_check import verify_store
    from sfuda_bench.running.store_digest import store_digest

    if arguments.store and arguments.out and arguments.store != arguments.out:
        raise UsageError(f"verify names two stores: {arguments.store} and {arguments.out}")
    out = arguments.store or arguments.out or DEFAULT_OUT
    verdict = verify_store(out, note=note if arguments.verbose else lambda text: None)
    document = verdict.to_json()
    if arguments.digest and not verdict.mismatches:
        document["digest"] = store_digest(out)
    counts = ", ".join(f"{count} {name}" for name, count in document["checked"].items())
    if arguments.json:
        print(json.dumps(document))
    else:
        for mismatch in verdict.mismatches:
            print(mismatch)
        for name, count in document["not_recorded"].items():
            note(f"{count} folders of an earlier version have not recorded: {name}")
        if "digest" in document:
            print(f"digest {document['digest']}")
        if not verdict.mismatches:
            print(f"{out}: {counts}: everything is in order")
    if verdict.mismatches:
        number = len(verdict.mismatches)
        raise CheckFailed(
            f"{out}: {counts}: {number} {'thing does' if number == 1 else 'things do'} not match",
            hint="delete the folders that are named, and run the command that made them again",
        )
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from sfuda_bench.running.doctor import PROBLEM, Check, examine

    def show(check: Check) -> None:
        if not arguments.json:
            print(check.line(), flush=True)

    checks = examine(arguments.out, show)
    problems = [check for check in checks if check.state == PROBLEM]
    if arguments.json:
        print(json.dumps({"ok": not problems, "checks": [check.to_json() for check in checks]}))
    if problems:
        names = ", ".join(check.name for check in problems)
        raise EnvironmentProblem(f"doctor: {names}: not in order", hint=problems[0].hint or None)
    return 0

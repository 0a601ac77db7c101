"""Plug-ins: writing a new one, and testing that one keeps the contract."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sfuda_bench.commands.shared import (
    CommandParser,
    add_data_root,
    add_plugin,
    note,
    positive,
    print_rich,
    stdout_for_data,
)
from sfuda_bench.errors import CheckFailed

if TYPE_CHECKING:
    from rich.table import Table

    from sfuda_bench.contract.verdicts import Verdict

KINDS = ("method", "dataset", "network", "validator")
_STYLES = {"passed": "green", "failed": "bold red", "not applicable": "dim"}


def add(parser: CommandParser) -> None:
    """Add ``plugin new|test``."""
    plugin = parser.group("plugin", "third-party methods, data sets, networks and validators")
    new = plugin.command("new", _new, "write NAME.py and test_NAME.py")
    new.add_argument("name", metavar="NAME", help="lower-case letters, digits, underscores")
    new.add_argument("--kind", choices=KINDS, default="method", help="default: method")
    new.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="default: here")
    test = plugin.command("test", _test, "check that a plug-in keeps the contract")
    test.add_argument("name", metavar="NAME", help="a registered name, or that of ./NAME.py")
    test.add_argument("--kind", choices=KINDS, help="when a name is of several kinds")
    test.add_argument(
        "--timeout", type=positive, default=300, metavar="SECONDS", help="per cell (default: 300)"
    )
    add_data_root(test)
    add_plugin(test)


def _new(arguments: argparse.Namespace) -> int:
    from sfuda_bench.contract.new import new_plugin

    written, test = new_plugin(arguments.name, arguments.kind, arguments.out)
    following = _following(arguments.name, arguments.kind, written)
    if arguments.json:
        print(json.dumps({"file": str(written), "test": str(test), "next": following}))
        return 0
    note(f"wrote {written} and {test}; next:")
    for command in following:
        print(command)
    return 0


def _following(name: str, kind: str, path: Path) -> list[str]:
    """Return the commands that come next."""
    plugin = "" if path.parent == Path() else f" --plugin {path}"
    use = {
        "method": f"run --methods source_only,{name} --plugin {path}",
        "dataset": f"ls datasets --plugin {path}",
        "network": f"run --network {name} --plugin {path}",
        "validator": f"run --record validators --plugin {path}",
    }[kind]
    return [f"sfuda-bench plugin test {name}{plugin}", f"sfuda-bench {use}"]


def _test(arguments: argparse.Namespace) -> int:
    from sfuda_bench.contract.check import check_plugin, find, registries
    from sfuda_bench.contract.verdicts import failed
    from sfuda_bench.registry import load_plugin_file

    plugins = arguments.plugin or _beside(arguments.name)
    for path in plugins:
        load_plugin_file(path)
    kind = find(arguments.name, arguments.kind)
    origin = registries()[kind].origin(arguments.name)
    verdicts: list[Verdict] = []
    with stdout_for_data():
        for verdict in check_plugin(
            arguments.name,
            kind,
            plugins=plugins,
            data_root=arguments.data_root,
            timeout=arguments.timeout,
        ):
            verdicts.append(verdict)
            print(f"{verdict.invariant}: {verdict.verdict}", file=sys.stderr)
    broken = failed(verdicts)
    if arguments.json:
        document = {
            "plugin": arguments.name,
            "kind": kind,
            "file": origin,
            "passed": not broken,
            "verdicts": [verdict.to_json() for verdict in verdicts],
        }
        print(json.dumps(document))
    else:
        print_rich(_table(f"{kind} '{arguments.name}'", verdicts))
    if broken:
        names = ", ".join(verdict.invariant for verdict in broken)
        raise CheckFailed(
            f"{origin}: '{arguments.name}' does not keep: {names}",
            hint="methods/README.md says what each invariant means",
        )
    return 0


def _beside(name: str) -> list[Path]:
    """Return ``./NAME.py`` if there is such a file and nothing of that name is registered."""
    from sfuda_bench.contract.check import registries

    path = Path(f"{name}.py")
    registered = any(registry.known(name) for registry in registries().values())
    return [path] if path.is_file() and not registered else []


def _table(title: str, verdicts: list[Verdict]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("invariant", "verdict", "evidence", title=title, title_justify="left")
    for verdict in verdicts:
        style = _STYLES[verdict.verdict]
        shown = f"[{style}]{verdict.verdict}[/]"
        table.add_row(escape(verdict.invariant), shown, escape(verdict.evidence))
    return table

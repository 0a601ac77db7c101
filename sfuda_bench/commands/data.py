"""Images and masks: checks before a run."""

from __future__ import annotations

import argparse
import json

from sfuda_bench.commands.shared import CommandParser, add_data_root
from sfuda_bench.errors import UsageError


def add(parser: CommandParser) -> None:
    """Add ``data verify``."""
    data = parser.group("data", "images and masks")
    add_data_root(data.command("verify", _data_verify, "check a data root before a run"))


def _data_verify(arguments: argparse.Namespace) -> int:
    from sfuda_bench.images.verify import verify

    if arguments.data_root is None:
        raise UsageError("data verify needs --data-root DIR", hint="or set SFUDA_DATA_ROOT")
    findings = verify(arguments.data_root)
    errors = [finding for finding in findings if finding.severity == "error"]
    if arguments.json:
        rows = [
            {"severity": f.severity, "path": str(f.path), "message": f.message} for f in findings
        ]
        print(json.dumps({"errors": len(errors), "findings": rows}))
    else:
        for finding in findings:
            print(f"{finding.severity}: {finding.path}: {finding.message}")
        print(f"{len(errors)} errors, {len(findings) - len(errors)} warnings")
    return 3 if errors else 0

"""Template name keeps the contract: what must not matter does not, and more."""

from __future__ import annotations

from pathlib import Path

from sfuda_bench.contract.check import check_plugin
from sfuda_bench.contract.verdicts import failed


def test_template_name_keeps_the_contract() -> None:
    """The same checks as ``sfuda-bench plugin test template_name``."""
    plugin = Path(__file__).with_name("template_name.py")
    broken = failed(check_plugin("template_name", "TEMPLATE_KIND", plugins=[plugin]))
    assert not broken, "\n".join(f"{verdict.invariant}: {verdict.evidence}" for verdict in broken)

"""Model cards of stored source models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfuda_bench.errors import UsageError
from sfuda_bench.running.store import read_json


def list_sources(out: Path) -> list[dict[str, Any]]:
    """Return the cards of all committed source models, sorted by domain and seed.

    Raises:
        UsageError: There is no store.
    """
    if not (out / "store.json").is_file():
        raise UsageError(f"no store at {out}", hint="sfuda-bench run --out DIR, or name another")
    cards = [read_json(path) for path in sorted(out.glob("sources/*/*/card.json"))]
    return sorted(cards, key=lambda card: (card["domain"], card["source_seed"], card["key"]))

"""A plug-in for workers that are to be interrupted; see ``interruption.py``."""

from __future__ import annotations

from sfuda_bench.contract.interruption import register_stand_ins

register_stand_ins()

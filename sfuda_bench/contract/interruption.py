"""Methods that are stopped as their second epoch begins, where a worker computes them.

Nobody can kill a process from outside at an exact epoch, so a worker that is to be interrupted
loads a stand-in for every method: it does what the method does, until it is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sfuda_bench.contract.bench import Stopped
from sfuda_bench.methods import METHODS

STAND_INS = Path(__file__).with_name("stand_ins.py")
"""The plug-in that registers the stand-ins; for a process that computes nothing else."""
_NAME = "{}.interrupted"


def stand_in_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return a cell's job for the stand-in of its method; the key stays, and so do the streams."""
    cell = job["cell"]
    return {**job, "cell": {**cell, "method": _NAME.format(cell["method"])}}


def register_stand_ins() -> None:
    """Register a stand-in for every method that adapts in epochs of its own."""
    for name in METHODS.names():
        spec = METHODS.get(name)
        if spec.adapt is not None:
            stand_in = replace(spec, adapt=_stopped(spec.adapt))  # errors name the method itself
            METHODS.add(_NAME.format(name), stand_in, origin=str(STAND_INS))


def _stopped(adapt: Callable[[Any, Any], nn.Module]) -> Callable[[Any, Any], nn.Module]:
    return lambda task, config: adapt(_OneEpoch(task), config)


class _OneEpoch:
    """A task whose second epoch never begins."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def epochs(self, *args: Any, **named: Any) -> Iterator[int]:
        """Yield the first epoch.

        Raises:
            Stopped: The second one begins; what the first one handed on is kept by then.
        """
        for epoch in self._task.epochs(*args, **named):
            if epoch > 1:
                raise Stopped
            yield epoch

"""Methods that harm the process they run in; the cells beside them must not notice."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfuda_bench.methods import AdaptationTask, register

Adapt = Callable[..., nn.Module]


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing to set."""


@dataclass(frozen=True, kw_only=True)
class CountConfig:
    """``folder``: where attempts are counted; ``failures``: how many of them fail."""

    folder: str = ""
    failures: int = 1


def _register(name: str, config: type[Any] = NoSettings) -> Callable[[Adapt], Adapt]:
    return register(name, version=1, config=config, updates={"whole"}, source="a test")


def _attempt(config: CountConfig, name: str) -> int:
    """Count this attempt and return its number, from 1."""
    folder = Path(config.folder) / name
    folder.mkdir(exist_ok=True)
    number = len(list(folder.iterdir())) + 1
    (folder / f"{number}-{time.monotonic()}").touch()
    return number


def _nudge(model: nn.Module) -> nn.Module:
    """Change a model a little, so that it is a result."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    return model


@_register("waits", CountConfig)
def waits(task: AdaptationTask, config: CountConfig) -> nn.Module:
    """Wait for what never comes, beside a child process (when there is one) that does the same."""
    with suppress(PermissionError):  # where the firewall cannot follow children, there are none
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (Path(config.folder) / "child").write_text(str(child.pid), "ascii")
    threading.Event().wait()
    return task.source_model


@_register("spins")
def spins(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Compute without end."""
    while True:
        pass


@_register("lacks_memory", CountConfig)
def lacks_memory(task: AdaptationTask, config: CountConfig) -> nn.Module:
    """Run out of memory the first ``failures`` times."""
    if _attempt(config, "lacks_memory") <= config.failures:
        raise MemoryError("a tensor of 10 PiB")
    time.sleep(0.2)
    return _nudge(task.source_model)


@_register("meddles")
def meddles(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Change what every cell of the process shares."""
    model = _nudge(task.source_model)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(False)
    nn.modules.module.register_module_forward_hook(lambda module, args, out: None)
    nn.functional.relu = lambda x, inplace=False: torch.sigmoid(x)  # type: ignore[assignment]  # that is the mischief
    return model

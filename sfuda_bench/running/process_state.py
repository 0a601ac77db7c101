"""What a job can leave behind in its process, so that the next job there would not start clean."""

from __future__ import annotations

import builtins
import gc
import os
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as hooks

_BACKEND_FLAGS = (
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.allow_tf32",
    "cuda.matmul.allow_tf32",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "mkldnn.enabled",
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1)
_CALLABLE = (types.FunctionType, types.BuiltinFunctionType, type)
_SET_BY_TORCH = frozenset({"CUDA_MODULE_LOADING"})  # when CUDA starts
_LONGEST = 60  # characters of a value in a message
_GIB = 2**30
_Code = tuple[str, Mapping[str, Any], str, Any]
"""Where it is, the names there, its name, what it is."""


class ProcessState:
    """The settings and the code that every job of this process shares, as they are now.

    Random states are not part of it: every job seeds them.
    """

    def __init__(self) -> None:
        self._values = dict(_values())
        self._code = list(_code())

    def changes(self) -> list[str]:
        """Return what differs now, one phrase each; empty when nothing does."""
        now = dict(_values())
        found = [
            f"{name}: {_short(before)} became {_short(now[name])}"
            for name, before in self._values.items()
            if now[name] != before
        ]
        found += [
            f"{where}.{name} was replaced"
            for where, space, name, before in self._code
            if space.get(name) is not before
        ]
        return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _values() -> Iterator[tuple[str, Any]]:
    yield from _torch_values()
    yield "numpy's error state", np.geterr()
    yield "the warning filters", list(warnings.filters)
    yield "the working directory", _working_directory()
    yield "sys.path", list(sys.path)
    yield "the recursion limit", sys.getrecursionlimit()
    yield "the garbage collector", gc.isenabled()
    yield "the trace function", (sys.gettrace(), sys.getprofile())
    yield "running threads", _threads()
    yield "child processes", _children()
    for number in _SIGNALS:
        yield f"the handler of {number.name}", signal.getsignal(number)
    environment = {k: v for k, v in os.environ.items() if k not in _SET_BY_TORCH}
    yield "the environment variables", environment


def _torch_values() -> Iterator[tuple[str, Any]]:
    yield "torch's default dtype", torch.get_default_dtype()
    yield "torch's default device", str(torch.get_default_device())
    yield "torch's number of threads", torch.get_num_threads()
    yield "torch's deterministic algorithms", torch.get_deterministic_debug_mode()
    yield (
        "torch's filling of new tensors",
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # a property of the module
    )
    yield "torch's float32 matmul precision", torch.get_float32_matmul_precision()
    yield "torch's grad mode", (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    yield "torch's anomaly mode", torch.is_anomaly_enabled()
    yield "torch's autocast", (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"))
    yield "torch's flushing of denormals", _flushes_denormals()
    for name in _BACKEND_FLAGS:
        yield f"torch.backends.{name}", _flag(name)
    for name, value in vars(hooks).items():
        if name.startswith("_global_") and isinstance(value, Mapping):
            yield f"hooks of all modules ({name})", dict(value)


def _flag(name: str) -> Any:
    value: Any = torch.backends
    try:
        for part in name.split("."):
            value = getattr(value, part)
    except RuntimeError:  # the older and the newer setting were both used, and disagree
        return "contradictory"
    return value


def _flushes_denormals() -> bool:
    tiny = torch.tensor([1e-310], dtype=torch.float64, device="cpu")
    return bool((tiny * 1.0 == 0).item())


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "(deleted)"


def _threads() -> set[str]:
    """Name the threads that Python code started."""
    return {
        f"{thread.name}"
        for thread in threading.enumerate()
        if not isinstance(thread, threading._DummyThread)
    }


def _children() -> list[int]:
    return sorted(child_processes(os.getpid()))


def child_processes(pid: int) -> list[int]:
    """Return the ids of a process's children; none where the system does not tell."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text("ascii").split())
        except OSError:  # the thread has just ended
            continue
    return found


def _code() -> Iterator[_Code]:
    """Find the functions, classes and methods of torch, numpy and this package."""
    shared = [builtins, torch, nn, nn.functional, nn.init, hooks, np]
    ours = [
        module
        for name, module in list(sys.modules.items())
        if name.split(".")[0] == "sfuda_bench" and module is not None
    ]
    for module in [*shared, *ours]:
        for name, value in list(vars(module).items()):
            if isinstance(value, _CALLABLE):
                yield module.__name__, vars(module), name, value
                if isinstance(value, type) and value.__module__ == module.__name__:
                    yield from _methods(value)
    for kind in (torch.Tensor, nn.Module, nn.Conv2d, nn.BatchNorm2d, nn.Dropout):
        yield from _methods(kind)


def _methods(kind: type) -> Iterator[_Code]:
    for name, value in list(vars(kind).items()):
        if isinstance(value, types.FunctionType):
            yield f"{kind.__module__}.{kind.__qualname__}", vars(kind), name, value


class MemoryWatch:
    """Notices a process whose memory grows from job to job.

    The first job loads libraries and fills caches: growth counts from its end.

    Args:
        limit: Bytes of growth that are too much, in memory and on the GPU each.
    """

    def __init__(self, limit: int = 2 * _GIB, measure: Callable[[], int] | None = None) -> None:
        self._limit = limit
        self._measure = measure or resident_bytes
        self._first: tuple[int, int] | None = None

    def grown(self) -> str | None:
        """Return what has grown too much since the first call, or ``None``."""
        now = self._measure(), _gpu_bytes()
        first = self._first = self._first or now
        if _growth(first, now) <= self._limit:
            return None
        gc.collect()  # what is only waiting to be collected is no leak
        growth = _growth(first, (self._measure(), _gpu_bytes()))
        if growth <= self._limit:
            return None
        return f"{growth / _GIB:.1f} GiB more memory than after its first job"


def _growth(first: tuple[int, int], now: tuple[int, int]) -> int:
    """Return by how many bytes memory or GPU memory has grown, whichever has more."""
    return max(now[0] - first[0], now[1] - first[1])


def resident_bytes() -> int:
    """Return the memory this process holds, in bytes; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _gpu_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0

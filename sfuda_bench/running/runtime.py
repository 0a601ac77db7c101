"""Device, precision, threads and what is recorded about the machine."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sfuda_bench.errors import EnvironmentProblem, UsageError
from sfuda_bench.running.trace import determinism, run_id

_RECORDED = ("sfuda-bench", "torch", "torchvision", "segmentation-models-pytorch", "numpy", "scipy")

# Parameters of glibc's mallopt, as malloc.h numbers them.
_MALLOC = {"trim_threshold": -1, "mmap_threshold": -3, "mmap_max": -4}


def resolve_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu`` or ``cuda``.

    Raises:
        EnvironmentProblem: CUDA was asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"--device {name}: torch {torch.__version__} sees no CUDA device",
            hint="use --device cpu, or check the driver with nvidia-smi",
        )
    return torch.device(name)


def visible_gpus(asked: Sequence[str], device: str) -> tuple[str, ...]:
    """Return ``CUDA_VISIBLE_DEVICES`` for a process on each of the GPUs that were asked for.

    Args:
        asked: Numbers, counted among those that this process sees, or ids such as ``GPU-8932f9``.
        device: What ``--device`` says.

    Raises:
        UsageError: One is named twice, or another device is asked for.
        EnvironmentProblem: There are not that many.
    """
    if not asked:
        return ()
    text = ",".join(asked)
    if len(set(asked)) < len(asked) or not all(asked):
        raise UsageError(f"--gpus {text}: expected different GPUs", hint="--gpus 0,1 --per-gpu 2")
    if device == "cpu":
        raise UsageError(f"--gpus {text} excludes --device cpu", hint="--jobs 4 --device cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbers = [int(name) for name in asked if name.isdecimal()]
    if not count or any(number >= count for number in numbers):
        raise EnvironmentProblem(
            f"--gpus {text}: torch {torch.__version__} sees {count or 'no'} CUDA devices",
            hint="nvidia-smi shows them; without one: --device cpu --jobs 4",
        )
    # A scheduler may have hidden some: numbers count what is left.
    left = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(left[int(n)] if n.isdecimal() and left else n for n in asked)


def resolve_precision(name: str, device_type: str) -> str:
    """Return ``float32`` or ``bfloat16``; ``auto`` is bfloat16 on CUDA, else float32."""
    if name == "auto":
        return "bfloat16" if device_type == "cuda" else "float32"
    return name


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the mixed-precision context for this device and precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def configure(threads: int) -> None:
    """Set the thread count and ask every library for repeatable kernels."""
    keep_freed_memory()
    torch.set_num_threads(max(1, threads))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # float32 means float32: without this, convolutions on recent cards run in TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode would fill every new tensor with NaN first: the same bits, a twentieth of
    # a training step slower.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module


def set_malloc(**values: int) -> bool:
    """Set limits of glibc's allocator, in bytes or blocks; return whether they are set.

    Args:
        **values: ``trim_threshold``, ``mmap_threshold`` or ``mmap_max``.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_MALLOC[name], value) for name, value in values.items()])


def keep_freed_memory() -> bool:
    """Let the process keep what it frees, for the next tensor; return whether it will.

    By default glibc gives every large block back to the system, which clears its pages when the
    next training step asks for them again: a fifth of the time of a step on a CPU. The process
    stays as large as it was at its peak. Elsewhere than on glibc nothing changes.
    """
    return set_malloc(mmap_max=0, trim_threshold=-1)


@cache
def _versions() -> dict[str, str]:
    """Return the versions of libraries, read once: parsing the metadata of all takes 10 ms."""
    found = {}
    for package in _RECORDED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """Return what ``run.json`` records about the machine and the libraries."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": f"{device.type} {card}".strip(),
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES") if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "versions": dict(_versions()),
        "run": run_id(),
        "determinism": determinism(),
    }

"""Device, precision, threads and what is recorded about the machine."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from sfuda_bench.errors import EnvironmentProblem

_RECORDED = ("sfuda-bench", "torch", "torchvision", "segmentation-models-pytorch", "numpy", "scipy")


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
    torch.set_num_threads(max(1, threads))
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    # float32 means float32: without this, convolutions on recent cards run in TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Deterministic mode would fill every new tensor with NaN first: the same bits, a twentieth of
    # a training step slower.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module


def environment(device: torch.device) -> dict[str, Any]:
    """Return what ``run.json`` records about the machine and the libraries."""
    versions = {}
    for package in _RECORDED:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "device": f"{device.type} {card}".strip(),
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "versions": versions,
    }

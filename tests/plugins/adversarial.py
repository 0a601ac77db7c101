"""Methods that look for what they must not see, or spoil what others need."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfuda_bench.methods import AdaptationTask, FrozenTask, frozen_step, register

Adapt = Callable[..., nn.Module]
_MASK_FILE = re.compile(r"/.*mask.*\.(png|npy)$")


@dataclass(frozen=True, kw_only=True)
class NoSettings:
    """Nothing to set."""


def _method(name: str, **declared: Any) -> Callable[[Adapt], Adapt]:
    defaults: dict[str, Any] = {"config": NoSettings, "updates": {"whole"}, "source": "a test"}
    return register(name, version=1, **{**defaults, **declared})


# -- searching ----------------------------------------------------------------------------------


def _like_masks(value: Any) -> bool:
    """Whether this could be masks: boolean, with two channels."""
    if isinstance(value, np.ndarray | Tensor):
        boolean = str(value.dtype).endswith("bool")
        return boolean and value.ndim >= 3 and value.shape[-3] == 2
    return False


def _like_images(value: Any) -> bool:
    """Whether this could be images: bytes, with three channels first or last."""
    if isinstance(value, np.ndarray | Tensor):
        bytes_ = str(value.dtype).endswith("uint8")
        return bytes_ and value.ndim == 4 and 3 in (value.shape[1], value.shape[-1])
    return False


def _parts(value: Any) -> Iterator[Any]:
    """What can be reached from an object in one step, code and types aside."""
    if isinstance(value, dict):
        yield from [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, types.FunctionType):
        yield from [cell.cell_contents for cell in value.__closure__ or ()]
        yield from value.__defaults__ or ()
    elif isinstance(value, types.MethodType):
        yield value.__self__
    elif isinstance(value, types.GeneratorType) and value.gi_frame is not None:
        yield from value.gi_frame.f_locals.values()
    elif not isinstance(value, types.ModuleType | type | np.ndarray | Tensor):
        yield from getattr(value, "__dict__", {}).values()
        slots = getattr(type(value), "__slots__", ())
        yield from [getattr(value, s, None) for s in slots if isinstance(s, str)]


def _reachable(*roots: Any) -> Iterator[Any]:
    seen: dict[int, Any] = {}
    todo = list(roots)
    while todo and len(seen) < 200_000:
        value = todo.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            yield value
            todo += _parts(value)


def _frames() -> Iterator[Any]:
    """The local variables of every thread, up to the harness and beyond."""
    for frame in sys._current_frames().values():
        step: types.FrameType | None = frame
        while step is not None:
            yield from list(step.f_locals.values())
            step = step.f_back


def _report(task: AdaptationTask, found: list[Any]) -> None:
    others = [v for v in found if _like_images(v) and len(v) != len(task.target)]
    texts = [v for v in found if isinstance(v, str | Path)]
    task.track(
        masks=sum(map(_like_masks, found)),
        other_images=len(others),
        mask_files=sum(bool(_MASK_FILE.match(str(t))) for t in texts),
        file_names=sum(Path(t).name.startswith(("train_0", "test_0")) for t in texts),
        seen=len(found),
    )


@_method("searches_the_task", updates=())
def searches_the_task(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Walk over everything that the task holds, in the middle of its epoch loop."""
    loop = task.epochs(1, model=task.source_model)
    for _ in loop:
        _report(task, list(_reachable(task, loop)))
    return task.source_model


@_method("searches_the_process", updates=())
def searches_the_process(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Walk over the garbage collector's objects and every thread's frames."""
    for _ in task.epochs(1, model=task.source_model):
        tracked = [v for v in gc.get_objects() if not isinstance(v, types.ModuleType)]
        arrays = [v for v in tracked if isinstance(v, np.ndarray | Tensor)]
        held = [part for v in tracked if type(v) in (list, tuple, dict) for part in _parts(v)]
        _report(task, [*arrays, *held, *_reachable(*_frames())])
    return task.source_model


@_method("searches_descriptors", updates=())
def searches_descriptors(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Look at the open files, the mapped files and the command line of this process."""
    for _ in task.epochs(1, model=task.source_model):
        found: list[Any] = list(sys.argv) + list(os.environ.values())
        for number in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{number}"))
            except OSError:
                continue
        found += [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
        _report(task, found)
    return task.source_model


def _job() -> dict[str, Any]:
    """The job of the running cell, found in the harness's frames."""
    for value in _frames():
        if isinstance(value, dict) and "source_dir" in value and "images" in value:
            return value
    raise LookupError("no job in any frame")


# -- reading ------------------------------------------------------------------------------------


def _bytes_by_torch(path: Path) -> Tensor:
    """Read a file without Python's help: the audit hook is not asked."""
    return torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)


def _nudge(model: nn.Module, number: float) -> nn.Module:
    """Let a number reach the weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-4 + 1e-6 * number)
    return model


@_method("reads_packed_masks")
def reads_packed_masks(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Guess the folder of the masks from that of the images; read past the audit hook."""
    images = Path(_job()["images"]["train"]["images"])
    masks = sorted(images.parents[1].glob("masks/*.npy")) if not _hooked() else _guessed(images)
    number = sum(float(_bytes_by_torch(path).float().mean()) for path in masks)
    return _nudge(task.source_model, number)


def _hooked() -> bool:
    from sfuda_bench.running.firewall import layers

    return bool(layers())


def _guessed(images: Path) -> list[Path]:
    """What an adapt process cannot list it can still guess, if it knows a name."""
    return [images.parents[1] / "masks" / "guessed.npy"]


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """``path``: a mask file, handed in by the user."""

    path: str = ""
    how: str = "torch"


@_method("is_told_a_mask", config=PathConfig)
def is_told_a_mask(task: AdaptationTask, config: PathConfig) -> nn.Module:
    """Read a mask file by one of several ways around Python's own ``open``."""
    path = Path(config.path)
    ways: dict[str, Callable[[], Any]] = {
        "torch": lambda: _bytes_by_torch(path).float().mean(),
        "child": lambda: len(subprocess.check_output(["cat", str(path)])),
        "libc": lambda: _by_libc(path),
        "memmap": lambda: np.memmap(path, mode="r").mean(),
    }
    return _nudge(task.source_model, float(ways[config.how]()))


def _by_libc(path: Path) -> int:
    handle = ctypes.CDLL(None, use_errno=True).open(str(path).encode(), os.O_RDONLY)
    if handle < 0:
        raise PermissionError(ctypes.get_errno(), "libc")
    return len(os.read(handle, 100))


@_method("guesses_test_images")
def guesses_test_images(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Read every packed file that is not the one it was given."""
    own = Path(_job()["images"]["train"]["images"])
    others = [path for path in own.parent.glob("*.npy") if path != own]
    return _nudge(task.source_model, sum(float(np.load(path).mean()) for path in others))


@_method("reads_test_images")
def reads_test_images(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Read the test images past the audit hook."""
    pixels = _bytes_by_torch(Path(_job()["images"]["test"]["images"]))
    return _nudge(task.source_model, float(pixels.float().mean()))


# -- spoiling -----------------------------------------------------------------------------------


@_method("spoils_images")
def spoils_images(task: Any, config: NoSettings) -> nn.Module:
    """Black out the resident images."""
    task.target.images.zero_()
    return _nudge(task.source_model, 0)


@frozen_step(version=1)
def mean_of_the_source(task: FrozenTask) -> dict[str, Tensor]:
    """Compute something that others would share."""
    return {"mean": torch.stack([p.mean() for p in task.source_model.parameters()])}


@_method("spoils_frozen_steps", frozen_steps=(mean_of_the_source,))
def spoils_frozen_steps(task: Any, config: NoSettings) -> nn.Module:
    """Change the source model that shared artefacts are computed from, then compute one."""
    with torch.no_grad():
        for parameter in task.artefacts.source_model.parameters():
            parameter.zero_()
    task.frozen(mean_of_the_source)
    return _nudge(task.source_model, 0)


@_method("spoils_the_source_file")
def spoils_the_source_file(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Write into the stored source model."""
    (Path(_job()["source_dir"]) / "model.safetensors").write_bytes(b"")
    return _nudge(task.source_model, 0)


@_method("spoils_packed_images")
def spoils_packed_images(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Write into the packed images."""
    np.load(_job()["images"]["train"]["images"], mmap_mode="r+")[:] = 0
    return _nudge(task.source_model, 0)


@_method("spoils_the_process")
def spoils_the_process(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Change what every cell of this process computes with, and leave memory behind."""
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(False)
    sys.modules["a_leak"] = [bytearray(2**20) for _ in range(8)]  # type: ignore[assignment]  # so
    return _nudge(task.source_model, 0)


@_method("sleeps")
def sleeps(task: AdaptationTask, config: NoSettings) -> nn.Module:
    """Hang."""
    time.sleep(3600)
    return task.source_model

"""Full precision inside a block, whatever autocast its caller runs under."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_HALF = (torch.float16, torch.bfloat16)


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function`` without autocast, its half-precision tensor arguments as float32.

    float64 arguments stay float64.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        values = [*args, *kwargs.values()]
        device = next((v.device.type for v in values if isinstance(v, Tensor)), "cpu")
        with torch.autocast(device, enabled=False):
            return function(
                *[_widen(v) for v in args],  # type: ignore[arg-type]  # same kinds, wider floats
                **{k: _widen(v) for k, v in kwargs.items()},  # type: ignore[arg-type]
            )

    return wrapped


def _widen(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value

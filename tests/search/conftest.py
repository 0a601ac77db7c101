"""A study whose cells are a formula; see ``stub_study.py``."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

STUB = Path(__file__).with_name("stub_study.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def stub() -> ModuleType:
    """Return the module of the stub study."""
    spec = importlib.util.spec_from_file_location("stub_study", STUB)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["stub_study"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stub_command() -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment that run the stub study as a process."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return [sys.executable, str(STUB)], {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

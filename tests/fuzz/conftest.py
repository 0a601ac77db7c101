"""One damaged world for all tests of bad bytes, and cases that are the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.stores import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a small computed store; tests must not change it."""
    return World.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that the cases of one module share: each uses its own files."""
    return tmp_path_factory.mktemp("bytes")

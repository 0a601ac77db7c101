"""A digest of the code behind a method that ignores comments, docstrings and layout.

It is recorded beside results and never part of a key: a version number declares that results
change, and this digest is the reminder when somebody forgot to raise it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

_FOLLOWED = ("sfuda_bench.blocks", "sfuda_bench.networks")
_HARNESS = (
    "sfuda_bench.images.augment",
    "sfuda_bench.images.resident",
    "sfuda_bench.networks.deeplabv3plus",
    "sfuda_bench.running.frozen",
    "sfuda_bench.running.predict",
    "sfuda_bench.running.streams",
    "sfuda_bench.running.target",
)
"""Modules behind every method, whatever it imports."""


def code_digest(plugin: Path) -> str:
    """Return the digest of a plug-in file, of what it uses, and of what is behind every method."""
    total = hashlib.sha256()
    # Sorted by content: where the files lie (checkout or installed package) must not matter.
    for file_digest in sorted(_file_digest(path) for path in _closure(plugin)):
        total.update(file_digest.encode())
    return total.hexdigest()


def _closure(start: Path) -> set[Path]:
    """Return the file and every followed module reachable through its imports."""
    seen: set[Path] = set()
    todo = [start, *(path for name in _HARNESS if (path := _locate(name)) is not None)]
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        todo += [
            found
            for name in _imports(path.read_text("utf-8"))
            if (found := _locate(name)) is not None
        ]
    return seen


@cache
def _imports(text: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if name.startswith(_FOLLOWED)}


@cache
def _locate(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _file_digest(path: Path) -> str:
    return _text_digest(path.read_text("utf-8"))


@cache
def _text_digest(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [item for item in node.body if not _is_docstring(item)] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_docstring(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )

"""Arrows point down only. Read from the source text: no module under test is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "sfuda_bench"
PORTS = ("methods", "datasets")
BASE = {"sfuda_bench.errors"}
"""What every module may import."""
SCIENCE = {"torch", "numpy", "scipy"}
NETWORK_LIBRARIES = {
    "segmentation_models_pytorch",  # the decoder and its encoders
    "timm",  # the encoders' pretrained weights
    "huggingface_hub",  # where these are kept
    "safetensors",  # weights from a file
}
STAGES = "sfuda_bench.blocks.stages"
PORT_IN_BLOCKS = {
    STAGES: {"sfuda_bench.methods"},  # its functions take the port's tasks and are frozen steps
}
NAMES_ALLOWED = {
    "sfuda_bench/commands/plugin.py": "the row that a new method is run beside",
    "sfuda_bench/contract/bench.py": "the method that inert settings must equal",
    "sfuda_bench/commands/shared.py": "the default of --methods, and examples in help texts",
    "sfuda_bench/commands/sharing.py": "the methods of the published table",
    "sfuda_bench/cli.py": "an example in the help text",
    "sfuda_bench/settings.py": "examples in hints",
    "sfuda_bench/setting_layers.py": "examples in hints",
    "sfuda_bench/selectors.py": "examples in hints",
}
"""Core files that may spell a plug-in's name in a string, and why."""
SAME_WORD = {
    "dpl": "the augmentation set of the DPL/CPR source recipe is called like the method",
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(pattern: str) -> list[Path]:
    found = sorted(PACKAGE.glob(pattern))
    assert found, f"nothing matches {pattern}"
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def imports(path: Path, *, lazy: bool = True, typing: bool = False) -> set[str]:
    """Return the modules that a file imports, as dotted names.

    ``from a import b`` gives ``a.b`` when that is a module of ours, else ``a``. Imports below
    ``if TYPE_CHECKING`` count only with ``typing``, those inside functions only with ``lazy``.
    """
    found: set[str] = set()
    for node in _walk(tree(path), lazy=lazy, typing=typing):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if _is_module(name) else str(node.module) for name in names}
    return found


def _walk(node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test) and not typing:
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not lazy:
            continue
        yield child
        yield from _walk(child, lazy=lazy, typing=typing)


@cache
def _is_module(name: str) -> bool:
    if not name.startswith("sfuda_bench."):
        return False
    base = ROOT / name.replace(".", "/")
    plugin = ROOT.joinpath(*name.split(".")[1:])
    return any(
        p.is_file()
        for p in (base.with_suffix(".py"), base / "__init__.py", plugin.with_suffix(".py"))
    )


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "sfuda_bench"}


def foreign(names: set[str]) -> set[str]:
    tops = {name.split(".")[0] for name in names}
    return tops - {"sfuda_bench"} - set(sys.stdlib_module_names)


def plugin_files() -> list[Path]:
    return sorted(path for kind in PORTS for path in (ROOT / kind).glob("*.py"))


def plugin_modules() -> set[str]:
    return {f"sfuda_bench.{path.parent.name}.{path.stem}" for path in plugin_files()}


# -- the pure parts ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", files("blocks/*.py"), ids=module_name)
def test_blocks_import_science_and_each_other(path: Path) -> None:
    found = imports(path)
    assert foreign(found) <= SCIENCE
    allowed = BASE | PORT_IN_BLOCKS.get(module_name(path), set())
    for name in ours(found) - allowed:
        assert name.startswith(("sfuda_bench.blocks.", "sfuda_bench.networks.")), name


@pytest.mark.parametrize("path", files("networks/*.py"), ids=module_name)
def test_networks_import_science_their_libraries_and_each_other(path: Path) -> None:
    found = imports(path)
    assert foreign(found) <= SCIENCE | NETWORK_LIBRARIES
    for name in ours(found) - BASE - {"sfuda_bench.registry"}:
        assert name.startswith("sfuda_bench.networks."), name


def test_the_metrics_import_science_only() -> None:
    found = imports(PACKAGE / "scoring/metrics.py")
    assert foreign(found) <= SCIENCE
    assert ours(found) <= BASE


# -- the ports --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PORTS)
def test_ports_know_the_registry_and_no_more(kind: str) -> None:
    allowed = {"sfuda_bench.registry", "sfuda_bench.tunable", "sfuda_bench._checkout"} | BASE
    allowed |= {"sfuda_bench.severity"}  # the names of derived domains
    found = imports(PACKAGE / kind / "__init__.py")
    assert ours(found) <= allowed
    assert not foreign(found)


def test_the_foundation_knows_errors_only() -> None:
    allowed = {
        "errors": set(),
        "_checkout": set(),
        "registry": BASE,
        "severity": BASE,
        "tunable": BASE | {"sfuda_bench.registry"},
    }
    for name, may in allowed.items():
        assert ours(imports(PACKAGE / f"{name}.py")) <= may, name


# -- plug-ins ---------------------------------------------------------------------------------


def test_nobody_imports_a_plugin_by_name() -> None:
    plugins = plugin_modules()
    short = {name.removeprefix("sfuda_bench.") for name in plugins}
    everything = [*PACKAGE.rglob("*.py"), *plugin_files(), *(ROOT / "tests").rglob("*.py")]
    for path in everything:
        found = imports(path, typing=True)
        assert not found & (plugins | short), f"{path} imports a plug-in; ask the registry"


@pytest.mark.parametrize("path", plugin_files(), ids=lambda p: f"{p.parent.name}.{p.stem}")
def test_a_plugin_uses_its_port_and_the_parts_below(path: Path) -> None:
    below = {
        "methods": ("sfuda_bench.methods", "sfuda_bench.blocks.", "sfuda_bench.networks."),
        "datasets": ("sfuda_bench.datasets", "sfuda_bench.images.synthetic."),
    }[path.parent.name]
    for name in ours(imports(path, typing=True)) - BASE - {"sfuda_bench.tunable"}:
        assert name.startswith(below), f"{path.name} imports {name}"
        assert name not in plugin_modules()


def test_the_core_spells_no_plugin_name() -> None:
    """Whole words of strings that are no docstrings; exceptions are listed with their reason."""
    names = registered_names()
    for path in PACKAGE.rglob("*.py"):
        relative = str(path.relative_to(ROOT))
        words = {w for text in strings(path) for w in re.findall(r"[\w-]+", text)}
        found = (words & names) - set(SAME_WORD)
        assert not found or relative in NAMES_ALLOWED, f"{relative} names {sorted(found)}"


@cache
def registered_names() -> set[str]:
    """Return the first string of every ``register(...)`` and ``name=...`` of a ``DatasetSpec``."""
    found: set[str] = set()
    for path in plugin_files():
        for node in ast.walk(tree(path)):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called == "register" and node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
            if called == "DatasetSpec":
                for keyword in node.keywords:
                    if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                        found.add(str(keyword.value.value))
    assert {"cpr", "cpr_cbam", "source_only", "drishti_gs"} <= found
    return found


@cache
def strings(path: Path) -> list[str]:
    """Return the string constants of a file, without docstrings."""
    skipped = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return [
        node.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in skipped
    ]


@pytest.mark.parametrize("path", sorted(NAMES_ALLOWED))
def test_an_exception_is_still_needed(path: str) -> None:
    words = {w for text in strings(ROOT / path) for w in re.findall(r"[\w-]+", text)}
    assert words & registered_names()


def test_presets_name_methods_and_the_core_reads_them_as_data() -> None:
    for path in PACKAGE.glob("presets/*.toml"):
        assert set(tomllib.loads(path.read_text("utf-8")).get("methods", {})) <= registered_names()


# -- what must start fast ---------------------------------------------------------------------

LIGHT = ["report/*.py", "frames.py", "tensors.py", "progress.py", "cli.py", "commands/*.py",
         "settings.py", "selectors.py", "registry.py", "tunable.py", "errors.py",
         "running/store.py", "running/request.py", "running/cards.py", "running/why.py",
         "running/store_check.py", "running/store_digest.py", "running/doctor.py",
         "running/trace.py", "networks/registry.py",
         "methods/__init__.py", "datasets/__init__.py"]  # fmt: skip
HEAVY = {"torch", "torchvision", "segmentation_models_pytorch", "timm", "safetensors"}


def path_of(module: str) -> Path | None:
    for path in (
        (ROOT / module.replace(".", "/")).with_suffix(".py"),
        (ROOT / module.replace(".", "/") / "__init__.py"),
    ):
        if path.is_file():
            return path
    return None


def closure(path: Path, *, lazy: bool) -> dict[str, set[str]]:
    """Return what a file and everything of ours that it imports import from others."""
    seen: dict[str, set[str]] = {}
    todo = [path]
    while todo:
        current = todo.pop()
        if str(current) in seen:
            continue
        found = imports(current, lazy=lazy and current == path)
        seen[str(current)] = foreign(found)
        for name in ours(found):
            parts = name.split(".")
            packages = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
            todo += [file for package in packages if (file := path_of(package)) is not None]
    return seen


@pytest.mark.parametrize("path", [p for pattern in LIGHT for p in files(pattern)], ids=module_name)
def test_light_modules_reach_no_torch_when_imported(path: Path) -> None:
    for where, found in closure(path, lazy=False).items():
        assert not found & HEAVY, f"{path.name} reaches {found & HEAVY} through {where}"


@pytest.mark.parametrize("path", files("report/*.py"), ids=module_name)
def test_the_report_reaches_no_torch_inside_its_functions_either(path: Path) -> None:
    for where, found in closure(path, lazy=True).items():
        assert not found & HEAVY, f"{path.name} reaches {found & HEAVY} through {where}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=module_name)
def test_package_files_export_nothing_heavy(path: Path) -> None:
    assert not foreign(imports(path, lazy=False))


ORDER = {
    "registry": 0, "tunable": 0, "errors": 0, "_checkout": 0, "severity": 0,
    "methods": 1, "datasets": 1,
    "blocks": 2, "networks": 2, "scoring": 2, "images": 2, "selectors": 2, "settings": 2,
    "setting_layers": 2,
    "running": 3, "frames": 3, "tensors": 3, "progress": 3,
    "report": 4, "search": 4,
    "contract": 4,
    "commands": 5,
    "cli": 6, "__main__": 6,
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=module_name)
def test_arrows_point_down(path: Path) -> None:
    """Cli > report, search > running > images, networks, blocks, scoring > ports > registry."""
    parts = module_name(path).split(".")
    if len(parts) == 1:
        assert not ours(imports(path))
        return
    level = ORDER[parts[1]]
    for name in ours(imports(path)):
        inner = name.split(".")[1:]
        assert not inner or ORDER[inner[0]] <= level, f"{module_name(path)} imports {name}"

"""What is installed: one package with every plug-in in it, usable from anywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfuda_bench.methods import METHODS
from sfuda_bench.settings import preset_names

ROOT = Path(__file__).resolve().parents[1]
TOP = ("sfuda_bench", "methods", "datasets", "studies", "results", "tests", "docs", ".ci")
TEXTS = {".py", ".md", ".toml", ".yml", ".yaml", ".cfg", ".txt", ".json", ".tex", ".csv", ""}
# A folder of some machine at the start of a word, whatever its owner is called.
MACHINE_PATH = re.compile(r"(?<![\w.~-])(/(home|root|Users|work|mnt|scratch|workspace)/|[A-Z]:\\)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel of this checkout without a network."""
    builders = pytest.importorskip(
        "hatchling.builders.wheel", reason="hatchling builds the wheel and is not installed here"
    )
    folder = tmp_path_factory.mktemp("wheel")
    (built,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(built)


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_top_level_is_one_package_and_its_metadata(names: list[str]) -> None:
    """No top-level ``methods`` or ``datasets`` that would shadow somebody else's package."""
    tops = {name.split("/")[0] for name in names}
    (info,) = tops - {"sfuda_bench"}
    assert re.fullmatch(r"sfuda_bench-[\d.]+\.dist-info", info)


def test_every_plugin_preset_and_module_is_in_the_wheel(names: list[str]) -> None:
    expected = {
        f"sfuda_bench/{kind}/{path.name}"
        for kind in ("methods", "datasets")
        for path in (ROOT / kind).glob("*.py")
    }
    expected |= {f"sfuda_bench/presets/{name}.toml" for name in preset_names()}
    expected |= {str(p.relative_to(ROOT)) for p in (ROOT / "sfuda_bench").rglob("*.py")}
    assert expected <= set(names)
    assert len(names) == len(set(names))


def test_nothing_else_is_in_the_wheel(names: list[str]) -> None:
    for name in names:
        assert not re.search(r"__pycache__|\.pyc$|/tests/|/local/|\.pkl$|\.pth$|\.png$", name), name


def test_the_plugin_folders_of_the_checkout_are_no_packages() -> None:
    for kind in ("methods", "datasets", "studies"):
        assert not (ROOT / kind / "__init__.py").exists()


def test_an_unpacked_wheel_lists_the_same_plugins_from_elsewhere(
    wheel: Path, tmp_path: Path
) -> None:
    target, elsewhere = tmp_path / "site", tmp_path / "cwd"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    code = (
        "import json, sys, sfuda_bench\n"
        "from sfuda_bench.methods import METHODS\n"
        "from sfuda_bench.datasets import dataset_names\n"
        "from sfuda_bench.settings import preset_names, resolve\n"
        "resolve('quick', methods=METHODS.names())\n"
        "origins = [METHODS.origin(name) for name in METHODS.names()]\n"
        "print(json.dumps([sfuda_bench.__file__, METHODS.names(), dataset_names(),"
        " preset_names(), origins]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    file, methods, datasets, presets, origins = json.loads(done.stdout)
    from sfuda_bench.datasets import DATASETS

    own = {n for n in METHODS.names() if Path(METHODS.origin(n)).parent == ROOT / "methods"}
    own_data = {n for n in DATASETS.names() if Path(DATASETS.origin(n)).parent == ROOT / "datasets"}
    assert Path(file).is_relative_to(target)
    assert (set(methods), set(datasets), presets) == (own, own_data, preset_names())
    assert all(
        Path(origin).is_relative_to(target / "sfuda_bench" / "methods") for origin in origins
    )


def test_the_version_is_said_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["scripts"] == {"sfuda-bench": "sfuda_bench.cli:main"}
    for path in (ROOT / "sfuda_bench").rglob("*.py"):
        assert f'"{project["version"]}"' not in path.read_text("utf-8"), path


def texts() -> Iterator[Path]:
    """Yield the text files of the project, without what is generated or ignored."""
    for path in [*ROOT.glob("*"), *(p for top in TOP for p in (ROOT / top).rglob("*"))]:
        ignored = {"__pycache__", "local", ".pytest_cache"} & set(path.relative_to(ROOT).parts)
        if path.is_file() and path.suffix in TEXTS and not ignored:
            yield path


def test_no_text_names_a_folder_of_some_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("folder", ["home", "work", "Users"])
def test_the_search_for_machine_paths_finds_them(folder: str) -> None:
    assert MACHINE_PATH.search(f"see /{folder}/ada/data")
    assert MACHINE_PATH.search(f"'/{folder}/x'")
    assert not MACHINE_PATH.search(f"DIR/{folder}/x and a/{folder}/b")

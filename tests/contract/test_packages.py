"""Plug-ins of an installed package: they join the built-ins, and a bad one is named."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.contract.bench import write_domain
from sfuda_bench.contract.new import new_plugin
from sfuda_bench.errors import UsageError
from sfuda_bench.registry import Registry

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "eye-lab"
version = "1.0"

[project.entry-points."sfuda_bench.methods"]
lab_shift = "eye_lab.lab_shift"
[project.entry-points."sfuda_bench.datasets"]
lab_photos = "eye_lab.lab_photos"
[project.entry-points."sfuda_bench.networks"]
lab_net = "eye_lab.lab_net"
[project.entry-points."sfuda_bench.validators"]
lab_view = "eye_lab.lab_view"
"""
PLUGINS = {
    "methods": "lab_shift",
    "datasets": "lab_photos",
    "networks": "lab_net",
    "validators": "lab_view",
}
QUICK = [
    "--image-size", "96", "--set", "source.epochs=1", "--set", "source.min_updates=0",
    "--set", "data.evaluation_grid=96", "--set", "lab_shift.epochs=1", "--set", "demo.epochs=1",
]  # fmt: skip


def command(*words: Any, site: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with the installed package on the path."""
    path = [str(site), *(p for p in sys.path if p)]
    return subprocess.run(
        [sys.executable, "-m", "sfuda_bench", *map(str, words)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a package outside the repository, one plug-in of each kind, and install it."""
    for needed in ("pip", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    root = tmp_path_factory.mktemp("package")
    package = root / "source" / "eye_lab"
    for kind, name in PLUGINS.items():
        _, test = new_plugin(name, kind.removesuffix("s"), package)
        test.unlink()
    (package / "__init__.py").write_text("")
    (root / "source" / "pyproject.toml").write_text(PROJECT)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", "--target", str(root / "site"), str(root / "source")],
        check=True, capture_output=True,
    )  # fmt: skip
    return root / "site"


@pytest.mark.parametrize(("kind", "name"), sorted(PLUGINS.items()))
def test_ls_shows_a_packages_plugin_and_where_it_comes_from(
    kind: str, name: str, site: Path, tmp_path: Path
) -> None:
    result = command("ls", kind, "--json", site=site, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row["file"] for row in json.loads(result.stdout)}
    assert rows[name] == f"{site / 'eye_lab' / name}.py (entry point of eye-lab)"
    assert all("entry point" not in file for other, file in rows.items() if other != name)


@pytest.mark.slow
def test_a_package_and_a_new_file_run_beside_the_built_ins(site: Path, tmp_path: Path) -> None:
    """Method, data set, network and validator of the package, and a fresh ``plugin new demo``."""
    write_domain(tmp_path / "data", "toy_a")
    write_domain(tmp_path / "data", "toy_b")
    (tmp_path / "data" / "toy_b").rename(tmp_path / "data" / "lab_photos")
    made = command("plugin", "new", "demo", site=site, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    methods = "source_only,bn_adapt,lab_shift,demo"
    result = command(
        "run", "--methods", methods, "--plugin", "demo.py", "--data-root", "data",
        "--pairs", "toy_a:lab_photos", "--network", "lab_net", "--preset", "small", *QUICK,
        "--record", "validators", "--out", "store", "--json", site=site, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["computed"] == 4
    tables = "".join(p.read_text("utf-8") for p in (tmp_path / "store/tables").glob("*.md"))
    assert all(word in tables for word in ("Lab shift", "Demo", "lab_photos")), tables
    from sfuda_bench.frames import read_parquet

    (recorded,) = (tmp_path / "store").glob("cells/lab_shift/*/*/validators.parquet")
    assert "lab_view" in set(read_parquet(recorded)["validator"])


# -- bad packages -------------------------------------------------------------------------------


@pytest.fixture
def announce(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that puts a distribution with modules and entry points on the path."""
    before = set(sys.modules)

    def write(distribution: str, modules: dict[str, str], points: dict[str, str]) -> Path:
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[sfuda_bench.things]", *lines]))
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        return folder

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    registry: Registry[int] = Registry("things")
    monkeypatch.setattr("sfuda_bench.registry.THINGS", registry, raising=False)
    return registry


ADD = "from sfuda_bench.registry import THINGS\nTHINGS.add({name!r}, 1, origin=__file__)\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit('no licence')", "SystemExit: no licence"),
        ("import not_there", "No module named 'not_there'"),
        ("def", "SyntaxError"),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_each_time(
    announce: Any, things: Registry[int], text: str, says: str
) -> None:
    folder = announce("bad_lab", {"bad_part": ADD.format(name="half") + text}, {"p": "bad_part"})
    for _ in range(2):
        with pytest.raises(UsageError) as caught:
            things.names()
        assert f"{folder / 'bad_part.py'} (entry point of bad_lab)" in caught.value.message
        assert says in caught.value.message
        assert "pip uninstall bad_lab" in str(caught.value.hint)
    (folder / "bad_part.py").write_text("")
    assert things.names() == [], "what it registered before it failed is forgotten"


@pytest.mark.parametrize("value", ["gone_module", "gone.deeper", "gone_module:function", "not a"])
def test_an_entry_point_that_leads_nowhere_names_its_distribution(
    announce: Any, things: Registry[int], value: str
) -> None:
    announce("lost_lab", {}, {"p": value})
    with pytest.raises(UsageError, match=r"entry point of lost_lab.*ModuleNotFoundError"):
        things.names()


def test_two_packages_of_one_name_clash_and_both_are_named(
    announce: Any, things: Registry[int]
) -> None:
    first = announce("lab_one", {"part_one": ADD.format(name="same")}, {"p": "part_one"})
    second = announce("lab_two", {"part_two": ADD.format(name="Same")}, {"p": "part_two"})
    with pytest.raises(UsageError, match="two things named 'Same'") as caught:
        things.names()
    for file, owner in ((first / "part_one.py", "lab_one"), (second / "part_two.py", "lab_two")):
        assert f"{file} (entry point of {owner})" in caught.value.message


def test_an_error_of_a_declaration_names_the_file(announce: Any, things: Registry[int]) -> None:
    text = "from sfuda_bench.errors import UsageError\nraise UsageError('unknown update')\n"
    folder = announce("odd_lab", {"odd_part": text}, {"p": "odd_part"})
    with pytest.raises(UsageError) as caught:
        things.names()
    assert caught.value.message == (
        f"unknown update (in {folder / 'odd_part.py'} (entry point of odd_lab))"
    )


def test_good_packages_are_loaded_in_the_order_of_their_names(
    announce: Any, things: Registry[int]
) -> None:
    announce("good_lab", {"part_a": ADD.format(name="a")}, {"a": "part_a"})
    assert things.names() == ["a"]
    assert things.known("A") and not things.known("b")
    assert things.origin("a").endswith("part_a.py (entry point of good_lab)")

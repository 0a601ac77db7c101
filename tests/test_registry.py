"""One registry for all plug-ins: names, clashes, and plug-ins that cannot be imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.methods import METHODS, PROTOCOLS, register
from sfuda_bench.registry import Registry, did_you_mean, load_plugin_file


@pytest.fixture
def registry() -> Registry[int]:
    made: Registry[int] = Registry("things")
    made.add("one", 1, origin="a.py", aliases=("Uno",))
    made.add("two", 2, origin="b.py")
    return made


@pytest.fixture
def modules() -> Iterator[None]:
    """Forget the modules that a test imports."""
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_names_are_sorted_and_found_in_any_case(registry: Registry[int]) -> None:
    assert registry.names() == ["one", "two"]
    assert registry.get("ONE") == registry.get("uno") == registry.get("UNO") == 1
    assert registry.canonical("uno") == "one"
    assert registry.origin("uno") == "a.py"


def test_an_unknown_name_gets_the_nearest_one(registry: Registry[int]) -> None:
    with pytest.raises(UsageError, match=r"'twoo' among the things.*'two'.*known: one, two"):
        registry.get("twoo")


@pytest.mark.parametrize("name", ["one", "ONE", "uno"])
def test_a_clash_names_both_files_and_changes_nothing(registry: Registry[int], name: str) -> None:
    with pytest.raises(UsageError, match=r"a\.py and c\.py"):
        registry.add(name, 3, origin="c.py")
    with pytest.raises(UsageError, match=r"a\.py and c\.py"):
        registry.add("three", 3, origin="c.py", aliases=(name,))
    assert registry.names() == ["one", "two"]


def test_did_you_mean_is_silent_without_a_near_name() -> None:
    assert did_you_mean("zzz", ["one"]) == ""
    assert did_you_mean("oen", ["one"]) == " (did you mean 'one'?)"


def test_a_broken_built_in_is_an_error_each_time_and_never_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modules: None
) -> None:
    port = tmp_path / "port_of_tests"
    port.mkdir()
    (port / "__init__.py").write_text("")
    (port / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry[int] = Registry("parts", "port_of_tests")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"broken\.py cannot be imported: ZeroDivisionError"):
            registry.names()
    (port / "broken.py").write_text("")
    assert registry.names() == []


def test_a_plugin_file_is_imported_once(tmp_path: Path, modules: None) -> None:
    path = tmp_path / "once.py"
    path.write_text("thing = object()\n")
    assert load_plugin_file(path) is load_plugin_file(tmp_path / "." / "once.py")


def test_two_plugin_files_of_one_name_are_both_imported(tmp_path: Path, modules: None) -> None:
    loaded = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "same.py"
        path.write_text(f"where = '{folder}'\n")
        loaded.append(load_plugin_file(path).where)
    assert loaded == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("none.py", None, r"--plugin .*none\.py: no such Python file"),
        ("notes.txt", "x = 1", r"--plugin .*notes\.txt: no such Python file"),
        ("bad.py", "def", r"bad\.py cannot be imported: SyntaxError"),
        ("sad.py", "import no_such_module", r"sad\.py cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_plugin_file_that_cannot_be_used_is_named(
    tmp_path: Path, modules: None, name: str, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    for _ in range(2):  # a failed import leaves nothing half imported behind
        with pytest.raises(UsageError, match=says):
            load_plugin_file(tmp_path / name)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"updates": {"weights"}}, "unknown update 'weights'"),
        ({"requires": {"masks"}}, "unknown aux field 'masks'"),
        ({"protocols": ("offlin",)}, "unknown protocol 'offlin'"),
    ],
)
def test_a_method_may_only_name_what_the_contract_has(
    argument: dict[str, object], says: str
) -> None:
    with pytest.raises(UsageError, match=f"method 'x' names an {says}"):
        register("x", version=1, config=object, source="s", **argument)  # type: ignore[arg-type]  # that is the test


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_says_what_it_is(name: str) -> None:
    spec = METHODS.get(name)
    assert spec.source.strip()
    assert spec.title.strip()
    assert spec.title != name, "a table needs a title, not an identifier"
    assert spec.version >= 1
    assert Path(spec.origin).is_file()
    assert set(spec.protocols) <= set(PROTOCOLS)
    assert spec.parent is None or spec.parent in METHODS.names()
    assert all(getattr(step, "frozen_version", 0) >= 1 for step in spec.frozen_steps)


def test_titles_are_unique() -> None:
    titles = [METHODS.get(name).title for name in METHODS.names()]
    assert len(titles) == len(set(titles))


def test_a_method_has_one_way_to_run_per_protocol() -> None:
    for spec in map(METHODS.get, METHODS.names()):
        whole = spec.supervised if spec.oracle else spec.adapt
        for protocol in spec.protocols:
            streamed = protocol in ("online", "episodic")
            assert (spec.online if streamed else whole) is not None, (spec.name, protocol)

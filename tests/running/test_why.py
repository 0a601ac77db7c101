"""``why CELL``: stored, to be computed and because of which field, running, or failed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.cli import main
from sfuda_bench.errors import UsageError
from sfuda_bench.running.plan import record_plan
from sfuda_bench.running.store import Store, read_json, write_json
from sfuda_bench.running.why import Difference, Inquiry, differences

PAIR = "toy_a:toy_b"


@pytest.fixture(scope="module")
def stored(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a bench with one stored cell; tests must not change it."""
    bench = copy_bench(trained, tmp_path_factory.mktemp("stored"))
    bench.compute(bench.plan("bn_adapt"))
    return bench


def test_a_stored_cell_says_where_it_is_and_since_when(stored: Any) -> None:
    cell = stored.plan("bn_adapt").cells[0]
    (answer,) = Inquiry(stored.out).answer([cell.key[:8]])
    assert answer.state == "stored" and answer.key == cell.key
    assert answer.folder == str(cell.folder)
    assert answer.facts["since"] == read_json(cell.folder / "run.json")["finished"]
    assert set(answer.facts["scores"].split(", ")) == {"standard", "cpr-2023"}


@pytest.mark.parametrize("how", ["folder", "file", "relative", "name"])
def test_a_cell_is_found_by_a_path_or_by_its_name(stored: Any, how: str) -> None:
    cell = stored.plan("bn_adapt").cells[0]
    words = {
        "folder": [str(cell.folder)],
        "file": [str(cell.folder / "run.json")],
        "relative": [str(cell.folder.relative_to(stored.out))],
        "name": ["bn_adapt", PAIR],
    }[how]
    assert [answer.key for answer in Inquiry(stored.out).answer(words)] == [cell.key]


@pytest.mark.parametrize(
    ("overrides", "request_fields", "name"),
    [
        (["bn_adapt.alpha=0.25"], {}, "config.alpha"),
        ([], {"seeds": (3,)}, "seed"),
        (["inference.dropout=true"], {}, "inference.dropout"),
        ([], {"protocol": "transductive"}, "protocol"),
    ],
)
def test_the_field_that_differs_is_named_with_both_values(
    stored: Any, overrides: list[str], request_fields: dict[str, Any], name: str
) -> None:
    plan = stored.plan("bn_adapt", overrides=overrides, **request_fields)
    (answer,) = Inquiry(stored.out, plan.cells).answer(["bn_adapt", PAIR])
    assert answer.state == "todo" and answer.neighbour is not None
    found = {difference.name: difference for difference in answer.differences}
    assert name in found
    assert found[name].wanted != found[name].stored


def test_a_source_model_that_differs_is_explained_by_its_recipe(stored: Any) -> None:
    plan = stored.plan("bn_adapt", overrides=["source.lr=0.5"])
    (answer,) = Inquiry(stored.out, plan.cells).answer(["bn_adapt", PAIR])
    assert answer.differences == [Difference("source.recipe.lr", 0.5, 0.01)]
    assert "source.recipe.lr: 0.5, stored 0.01" in "\n".join(answer.lines())


def test_cells_of_stores_without_key_fields_are_compared_by_their_records(
    trained: Any, copy_bench: Any, tmp_path: Path
) -> None:
    bench = copy_bench(trained, tmp_path)
    result = bench.run("source_only")
    kept = {name: value for name, value in result.cell.items() if name != "key_fields"}
    write_json(result.folder / "cell.json", kept)
    (result.folder / "manifest.json").unlink()  # which they do not have either
    plan = bench.plan("source_only", seeds=(5,))
    (answer,) = Inquiry(bench.out, plan.cells).answer(["source_only", PAIR])
    assert answer.differences == [Difference("seed", 5, 0)]


def test_what_the_newest_run_asked_for_is_known_without_a_plan(bench: Any) -> None:
    record_plan(bench.plan("source_only"))
    (answer,) = Inquiry(bench.out).answer(["source_only", PAIR])
    assert answer.state == "todo"
    assert answer.facts["neighbours"].startswith("no stored cell")


def test_a_failed_cell_shows_its_error_and_its_log(bench: Any) -> None:
    from sfuda_bench.running.failures import record_error

    plan = bench.plan("source_only")
    attempt = Store(bench.out).attempt(plan.cells[0].key)
    attempt.mkdir(parents=True)
    (attempt / "log.txt").write_text("it began\n")
    try:
        raise FloatingPointError("the loss is not a number")
    except FloatingPointError as error:
        record_error(Store(bench.out), plan.cells[0].job, error)
    for words in (["source_only", PAIR], [plan.cells[0].key], [str(attempt)]):
        (answer,) = Inquiry(bench.out).answer(words)
        assert answer.state == "failed"
        assert answer.facts["error"] == "FloatingPointError: the loss is not a number"
        assert answer.facts["failure"].startswith("not_finite")
        assert answer.facts["attempts"] == 1
        assert answer.facts["log"] == str(attempt / "log.txt")
        assert answer.traceback[-1] == "FloatingPointError: the loss is not a number"


def test_a_cell_that_is_being_computed_names_its_owner(bench: Any) -> None:
    import os
    import platform

    plan = bench.plan("source_only")
    with Store(bench.out).lock(plan.cells[0].key):
        (answer,) = Inquiry(bench.out, plan.cells).answer([plan.cells[0].key[:10]])
    assert answer.state == "running"
    assert answer.facts["by"] == f"{platform.node()} process {os.getpid()}"


def test_a_blocked_cell_says_what_it_lacks(bench: Any) -> None:
    for path in bench.images("toy_c", "train", "mask"):
        path.unlink()
    plan = bench.plan("source_only", pairs="toy_c:toy_b")
    (answer,) = Inquiry(bench.out, plan.cells).answer(["source_only", "toy_c:toy_b"])
    assert answer.state == "blocked" and "no masks" in answer.facts["reason"]


@pytest.mark.parametrize("words", [["0123456789"], ["cpr", PAIR], ["a"], ["a", "b", "c"]])
def test_what_is_not_known_is_an_error_of_use(stored: Any, words: list[str]) -> None:
    with pytest.raises(UsageError):
        Inquiry(stored.out).answer(words)


def test_differences_of_nested_records_have_dotted_names() -> None:
    found = differences({"a": {"b": 1, "c": (1, 2)}, "d": {}}, {"a": {"b": 2, "c": [1, 2]}})
    assert found == [Difference("a.b", 1, 2), Difference("d", {}, "not set")]


def test_the_command_with_flags_of_a_run_plans_what_that_run_would_ask_for(
    stored: Any, plugin_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--plugin", str(plugin_folder / "tiny.py"), "--data-root", str(stored.data)]
    flags += ["--out", str(stored.out), "--preset", "small", "--device", "cpu"]
    flags += [part for text in stored.base for part in ("--set", text)]
    assert main(["why", "bn_adapt", PAIR, *flags, "--seeds", "0,8", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["state"] for cell in cells] == ["stored", "todo"]
    assert [found["name"] for found in cells[1]["differences"]] == ["seed"]


def test_asking_about_what_a_store_knows_needs_no_torch(stored: Any) -> None:
    script = (
        "import sys; from sfuda_bench.cli import main; "
        f"code = main(['why', 'bn_adapt', '{PAIR}', '--out', {str(stored.out)!r}]); "
        "assert code == 0 and 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stored" in done.stdout

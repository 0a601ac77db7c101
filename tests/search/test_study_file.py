"""Study files: every mistake is named before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.errors import UsageError
from sfuda_bench.search.cells import Flags
from sfuda_bench.search.commands import list_studies
from sfuda_bench.search.study_file import StudyFile, read_study
from sfuda_bench.search.toml_file import find_study, read_study_tables, shipped_studies

GOOD = """
kind = "search"
question = "why?"
[run]
methods = ["entropy_min"]
pairs = "synthetic_a:synthetic_b"
[search]
trials = 4
sampler = "qmc"
objective = "label-free:entropy"
[space.entropy_min]
lr = { low = 1e-5, high = 1e-2, log = true }
"""
SEARCHED = ("search", "pool")


def read(tmp_path: Path, text: str, *, allow_oracle: bool = False, **flags: Any) -> StudyFile:
    path = tmp_path / "asked.toml"
    path.write_text(text)
    return read_study(path, Flags(out=tmp_path / "out", **flags), allow_oracle=allow_oracle)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    file = read(tmp_path, GOOD)
    assert (file.name, file.kind, file.trials) == ("asked", "search", 4)
    assert file.request.methods == ("entropy_min",)
    assert file.request.record == {"validators"}
    assert list(file.spaces["entropy_min"].knobs) == ["lr"]


def test_the_command_line_wins(tmp_path: Path) -> None:
    file = read(
        tmp_path,
        GOOD,
        pairs="all",
        seeds="3..4",
        preset="small",
        overrides=("entropy_min.epochs=7",),
        jobs=2,
    )
    assert file.request.pairs == "all" and file.request.seeds == (3, 4)
    assert file.request.settings.preset == "small" and file.request.jobs == 2
    assert file.request.settings.methods["entropy_min"].epochs == 7


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "search"', 'kind = "serch"', "did you mean 'search'"),
        ('kind = "search"', 'kind = "ablation"', "not searched but ablated"),
        ("question", "queston", "unknown key 'queston' .did you mean 'question'"),
        ("trials = 4", "trails = 4", "unknown key 'trails' .did you mean 'trials'"),
        ("trials = 4", "trials = 0", "trials = 0 is outside"),
        ("trials = 4\n", "", "trials is missing"),
        ('"qmc"', '"qcm"', "did you mean 'qmc'"),
        ("label-free:entropy", "label-free:entrpy", "entrpy"),
        ("label-free:entropy", "label-fre:entropy", "did you mean 'label-free'"),
        ("label-free:entropy", "label-free:dev", "not source-free"),
        ("label-free:entropy", "oracle_test", "chooses by labels of the target"),
        ("label-free:entropy", "oracle_train", "chooses by labels of the target"),
        ('["entropy_min"]', '["entropi_min"]', "did you mean 'entropy_min'"),
        ("lr = { low", "rl = { low", "unknown setting 'rl'"),
        ("high = 1e-2", "high = 1.0", "is not inside the declared range"),
        ("[space.entropy_min]", "[space.cpr]", "unknown key 'cpr'"),
        ('sampler = "qmc"', 'confirm_seeds = "0..2"', "0 took part in the choice"),
        ("[run]", "record = ['epoch']\n[run]", "did you mean 'epochs'"),
        ("[search]", "[constraints]\nentropy_min = 'lr <= 1'\n[search]", "expected a list"),
        ("[search]", "[constraints]\nentropy_min = ['lr <= x']\n[search]", "unknown setting 'x'"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    assert caught.value.exit_code == 2 and caught.value.hint


def test_pruning_on_an_oracle_objective_is_refused_even_where_oracles_are_allowed(
    tmp_path: Path,
) -> None:
    text = GOOD.replace("label-free:entropy", "oracle_test").replace(
        "[search]", "[search]\nprune = true"
    )
    with pytest.raises(UsageError, match="labels must not stop trials"):
        read(tmp_path, text, allow_oracle=True)
    assert read(tmp_path, text.replace("prune = true", ""), allow_oracle=True).objective.oracle


def test_transfer_takes_only_samplers_without_history(tmp_path: Path) -> None:
    text = GOOD.replace("label-free:entropy", "transfer")
    assert read(tmp_path, text).objective.kind == "transfer"
    with pytest.raises(UsageError, match="labels would lead the search"):
        read(tmp_path, text.replace('"qmc"', '"tpe"'))


def test_a_pool_is_led_by_no_objective(tmp_path: Path) -> None:
    text = GOOD.replace('"search"', '"pool"').replace('sampler = "qmc"\n', "")
    file = read(tmp_path, text)
    assert file.search.sampler == "qmc" and file.request.record >= {"epochs", "validators"}
    with pytest.raises(UsageError, match="must not be led"):
        read(tmp_path, text.replace("trials = 4", 'trials = 4\nsampler = "tpe"'))


def test_a_grid_counts_its_own_trials(tmp_path: Path) -> None:
    text = GOOD.replace("trials = 4\n", "").replace('"qmc"', '"grid"')
    text = text.replace("log = true", "log = true, points = 3")
    assert read(tmp_path, text).trials == 3


def test_no_such_study_and_no_toml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'entropy_min_lr'"):
        read_study_tables("entropy_min_ls")
    path = tmp_path / "x.toml"
    path.write_text("kind = ")
    with pytest.raises(UsageError, match="not TOML"):
        read_study_tables(path)


@pytest.mark.parametrize("name", sorted(shipped_studies()))
def test_shipped_studies_are_found_by_name_and_by_path(name: str) -> None:
    assert find_study(name) == find_study(f"studies/{name}.toml") or (
        find_study(name).samefile(find_study(f"studies/{name}.toml"))
    )
    _, tables, _ = read_study_tables(name)
    assert tables["kind"] and tables["question"]


@pytest.mark.parametrize("name", [row["name"] for row in list_studies() if row["kind"] in SEARCHED])
def test_shipped_studies_need_no_flag(tmp_path: Path, name: str) -> None:
    """Every method, setting, range and validator exists, and no label chooses."""
    file = read_study(name, Flags(out=tmp_path))
    assert file.objective.label_free
    assert set(file.spaces) == set(file.request.methods)


def test_the_question_of_this_project_is_shipped() -> None:
    names = {row["name"] for row in list_studies()}
    assert {"cpr_r_beta_t_gamma", "cpr_cbam_r_beta_t_gamma", "entropy_min_lr"} <= names
    assert {"equal_budget", "cpr_pool"} <= names
    for name in ("cpr_r_beta_t_gamma", "cpr_cbam_r_beta_t_gamma"):
        _, tables, _ = read_study_tables(name)
        (space,) = tables["space"].values()
        assert set(space) == {"radius", "beta", "iterations", "threshold", "low", "high"}

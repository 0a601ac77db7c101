"""Studies over real cells: toy domains, the smallest network, computed in this process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.cli import main
from sfuda_bench.errors import CellsFailed, DataError, UsageError
from sfuda_bench.running.store import read_json
from sfuda_bench.search import results, session
from sfuda_bench.search.cells import Flags
from sfuda_bench.search.commands import export_study, run_study, study_status
from sfuda_bench.search.results import StudyResult

TINY = Path(__file__).parents[1] / "plugins" / "tiny.py"
CPR = """
kind = "search"
question = "which?"
[run]
methods = ["cpr"]
pairs = "toy_a:toy_b"
preset = "small"
profiles = ["standard"]
[search]
trials = 8
sampler = "grid"
objective = "oracle_test"
probe = true
[space.cpr]
radius = { choices = [2, 3] }
beta = { choices = [1.0, 2.0] }
threshold = { choices = [0.5, 0.6] }
"""
LR = """
kind = "search"
question = "which?"
[run]
methods = ["entropy_min"]
pairs = "toy_a:toy_b"
preset = "small"
profiles = ["standard"]
[search]
trials = 3
sampler = "qmc"
objective = "label-free:primary"
[space.entropy_min]
lr = { low = 1e-4, high = 1e-2, log = true }
"""
FINISHED = LR.replace("[space", 'confirm_seeds = "9"\n[space')


@dataclass
class Desk:
    """Runs the text of a study file on a bench, without worker processes."""

    bench: Any
    progress: Any

    def evaluate(self, requests: Sequence[Any], progress: Any, pool: Any = None) -> list[Any]:
        from sfuda_bench.running.plan import build_plan

        plans = []
        for request in requests:
            plans.append(build_plan(request))
            self.bench.compute(plans[-1])
        return [plan.cells for plan in plans]

    def run(self, name: str, text: str, *, allow_oracle: bool = False, **flags: Any) -> StudyResult:
        path = self.bench.out.parent / f"{name}.toml"
        path.write_text(text)
        given = Flags(
            out=self.bench.out,
            data_root=self.bench.data,
            overrides=(*self.bench.base, "entropy_min.epochs=1"),
            device="cpu",
            plugins=(TINY,),
            **flags,
        )
        before = session.evaluate
        session.evaluate = self.evaluate
        try:
            return run_study(path, given, self.progress, allow_oracle=allow_oracle)
        finally:
            session.evaluate = before

    def without_masks(self, domain: str) -> None:
        for split in ("train", "test"):
            shutil.rmtree(self.bench.data / domain / split / "ROIs" / "mask")


class Quiet:
    """A progress display that shows nothing."""

    def note(self, text: str) -> None: ...


@pytest.fixture(scope="module")
def desk(trained: Any, copy_bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Return a desk that the tests share: its cells are computed once."""
    return Desk(copy_bench(trained, tmp_path_factory.mktemp("studies")), Quiet())


@pytest.fixture
def own_desk(bench: Any) -> Desk:
    """Return a desk whose data a test may spoil."""
    return Desk(bench, Quiet())


@pytest.fixture(scope="module")
def finished(desk: Desk) -> StudyResult:
    """Return a finished label-free study, with its pictures."""
    return desk.run("finished", FINISHED)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out the pictures, which take longer than all cells together."""
    monkeypatch.setattr(results._Writer, "_draw", lambda writer, found: None)
    yield


def test_tables_pictures_and_records_are_written(finished: StudyResult) -> None:
    names = {path.name for path in Path(finished.document["folder"]).iterdir()}
    for stem in ("comparison", "trials-entropy_min"):
        assert {f"{stem}.csv", f"{stem}.md", f"{stem}.tex"} <= names
    assert {"entropy_min-history.png", "entropy_min-history.pdf", "study.toml"} <= names
    assert {"journal.log", "result.json", "trials.json"} <= names
    assert finished.document["trials"] == {"complete": 3}
    assert "chosen without labels" in finished.text


def test_fresh_seeds_stand_beside_the_seeds_that_chose(finished: StudyResult) -> None:
    names = [row["row"] for row in finished.document["comparison"]]
    assert names[:4] == ["not adapted", "defaults", "defaults, fresh seeds", "selected"]
    if finished.document["choices"]:
        assert names[4:] == ["selected, fresh seeds"]


def test_a_finished_study_is_read_again_and_gives_the_same(
    desk: Desk, finished: StudyResult, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = desk.run("finished", FINISHED)
    for key in ("choices", "comparison", "trials", "documents"):
        assert again.document[key] == finished.document[key]


def test_exported_settings_are_the_trials_own_cell(
    desk: Desk, finished: StudyResult, capsys: Any
) -> None:
    file, out = desk.bench.out / "best.toml", desk.bench.out
    export_study("finished", out, trial=1, to=file)
    words = ["plan", "--json", "--config", str(file), "--methods", "entropy_min", "--pairs"]
    words += ["toy_a:toy_b", "--out", str(out), "--data-root", str(desk.bench.data)]
    capsys.readouterr()
    assert main([*words, "--plugin", str(TINY), "--preset", "small"]) == 0
    (cell,) = json.loads(capsys.readouterr().out)["cells"]
    trials = read_json(Path(finished.document["folder"]) / "trials.json")["trials"]
    assert cell["state"] == "done" and cell["key"] == trials[1]["cells"][0]["key"]
    text = file.read_text("utf-8")
    assert text.startswith("# Study finished, objective label-free:primary, trial 1.")


def test_export_names_what_is_missing(desk: Desk, finished: StudyResult) -> None:
    with pytest.raises(UsageError, match="no completed trial 7"):
        export_study("finished", desk.bench.out, trial=7)
    with pytest.raises(UsageError, match="no method 'cpr'"):
        export_study("finished", desk.bench.out, method="cpr")


def test_status_counts_trials_and_names_the_choice_so_far(
    desk: Desk, finished: StudyResult
) -> None:
    with pytest.raises(UsageError, match=r"no study 'finishd' .did you mean 'finished'"):
        study_status("finishd", desk.bench.out)
    (found,) = study_status("finished", desk.bench.out)["methods"]
    assert (found["complete"], found["waiting"], found["running"]) == (3, 0, [])
    chosen = finished.document["choices"]
    assert (found["best"] or {}).get("trial") == (chosen[0]["trial"] if chosen else None)


def test_a_changed_file_is_refused_and_the_change_named(
    desk: Desk, finished: StudyResult, undrawn: None
) -> None:
    with pytest.raises(UsageError, match=r"space\.knobs\.lr\.attributes\.high: 0\.01 -> 0\.005"):
        desk.run("finished", FINISHED.replace("high = 1e-2", "high = 5e-3"))
    with pytest.raises(UsageError, match=r'pairs: \["toy_a:toy_b"\] -> \["toy_a:toy_c"\]'):
        desk.run("finished", FINISHED, pairs="toy_a:toy_c")


def test_masks_change_nothing_in_a_label_free_study(
    own_desk: Desk, finished: StudyResult, undrawn: None
) -> None:
    """With every target mask deleted the same trials are found, and no Dice is shown."""
    own_desk.without_masks("toy_b")
    blind = own_desk.run("finished", FINISHED)
    assert blind.document["trials"] == {"complete": 3}
    assert blind.document["choices"] == finished.document["choices"]
    folders = [Path(found.document["folder"]) for found in (finished, blind)]
    first, second = (read_json(folder / "trials.json")["trials"] for folder in folders)
    assert [trial["value"] for trial in first] == [trial["value"] for trial in second]
    assert {row["mean_dice_percent"] for row in blind.document["comparison"]} == {None}
    with pytest.raises(DataError, match="needs the masks of toy_b/test"):
        own_desk.run("o", LR.replace("label-free:primary", "oracle_test"), allow_oracle=True)


def test_other_images_under_the_same_names_are_a_change(own_desk: Desk, undrawn: None) -> None:
    text = LR.replace("trials = 3", "trials = 1")
    own_desk.run("asked", text)
    image = own_desk.bench.images("toy_b", "train")[0]
    image.write_bytes(own_desk.bench.images("toy_c", "train")[0].read_bytes())
    with pytest.raises(UsageError, match="images, source models or a version"):
        own_desk.run("asked", text)


def test_an_oracle_marks_its_rows_and_says_what_it_is(desk: Desk, undrawn: None) -> None:
    text = LR.replace("label-free:primary", "oracle_test")
    with pytest.raises(UsageError, match="chooses by labels"):
        desk.run("oracle", text)
    result = desk.run("oracle", text, allow_oracle=True)
    assert result.document["oracle"] and "ORACLE" in result.text
    assert "| entropy_min † | selected |" in result.text
    rows = {row["row"]: row for row in result.document["comparison"]}
    trials = read_json(Path(result.document["folder"]) / "trials.json")["trials"]
    best = max(trial["value"] for trial in trials)
    assert rows["selected"]["mean_dice_percent"] == pytest.approx(100 * best)
    assert rows["selected"]["objective"] == pytest.approx(best)
    assert rows["selected"]["over_defaults_points"].startswith(("+", "-"))


def test_oracle_train_reads_the_target_train_images(desk: Desk, undrawn: None) -> None:
    text = LR.replace("label-free:primary", "oracle_train").replace("trials = 3", "trials = 1")
    result = desk.run("train", text, allow_oracle=True)
    assert "labels of the target train images" in result.text and result.document["oracle"]


def test_transfer_chooses_per_pair(desk: Desk, undrawn: None) -> None:
    text = LR.replace("label-free:primary", "transfer")
    result = desk.run("transfer", text, pairs="toy_a:toy_b,toy_a:toy_c")
    choices = result.document["choices"]
    assert [choice["pairs"] for choice in choices] == [["toy_a:toy_b"], ["toy_a:toy_c"]]
    assert '[pair."toy_a:toy_c".methods.entropy_min]' in export_study("transfer", desk.bench.out)
    with pytest.raises(UsageError, match="is the only one"):
        desk.run("transfer_one", text)


def test_a_pool_judges_every_objective_and_draws_regrets(desk: Desk, undrawn: None) -> None:
    text = LR.replace('"search"', '"pool"').replace("trials = 3", "trials = 2")
    result = desk.run("pool", text)
    judged = {row["objective"] for row in result.document["pool"]["results"]}
    assert {"oracle_test", "default", "last", "label-free:primary", "label-free:entropy"} <= judged
    names = {path.name for path in Path(result.document["folder"]).iterdir()}
    assert {"pool.csv", "pool.md", "pool-summary.tex", "regret.png", "regret.pdf"} <= names


def test_stages_are_reused_and_settings_that_change_nothing_are_named(
    desk: Desk, undrawn: None
) -> None:
    """Beta never retrains the head, gamma never repeats the refinement, nothing the MC pass.

    Between low and high the threshold decides nothing while the pixel mask is on.
    """
    result = desk.run("cpr", CPR, allow_oracle=True)
    assert result.document["trials"] == {"complete": 8}
    steps = {path.name: len(list(path.glob("*/meta.json")))
             for path in (desk.bench.out / "artefacts").iterdir()}  # fmt: skip
    assert steps["similarity_head"] == 2  # one per radius
    assert steps["refined_labels"] == 4  # radii x betas; the defaults are among them
    assert {count for name, count in steps.items() if name.startswith("initial")} == {1}
    same = result.document["same_models"]["cpr"]
    assert [entry["knobs"] for entry in same if entry["alone"]] == [["threshold"]] * 4
    probed = {p["knob"]: p["changed"] for p in result.document["probed"]["cpr"]}
    assert probed["threshold"] is False and probed["radius"] is True
    assert "threshold is inert" in result.text


def test_no_completed_trial_is_an_error_that_says_why(desk: Desk, undrawn: None) -> None:
    def fails(requests: Any, progress: Any, pool: Any = None) -> Any:
        raise CellsFailed("1 cells failed: entropy_min toy_a:toy_b seed 0: no memory")

    broken = Desk(desk.bench, desk.progress)
    broken.evaluate = fails  # type: ignore[method-assign]  # a stand-in for cells that fail
    with pytest.raises(CellsFailed, match=r"none of the 3 trials.*no memory") as caught:
        broken.run("failing", LR)
    assert caught.value.exit_code == 4


def test_shipped_studies_are_listed(capsys: Any) -> None:
    assert main(["study", "ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row["kind"] and row["question"] for row in rows)

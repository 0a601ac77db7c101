"""``data prepare`` and ``data check-vcdr`` on the command line: output, marks and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfuda_bench.cli import main
from tests.images import raw_trees as trees

QUICK = ["--roi-mode", "native64", "--centre", "gt"]


def run(*arguments: str | Path) -> int:
    return main(["data", *(str(argument) for argument in arguments)])


def test_json_is_one_document_and_progress_goes_to_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = trees.drishti(tmp_path / "raw")
    code = run("prepare", "drishti", "--raw", raw, "--out", tmp_path / "out", *QUICK, "--json")
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert code == 0
    assert document["changed"]
    assert document["domain"] == "drishti_gs"
    assert document["roi_center"] == "gt"
    assert document["split"]["counts"] == {"train": 3, "test": 2}
    assert document["graders_vcdr"]["holds"]
    assert "prepared 5 of 5 eyes" in printed.err


def test_the_text_marks_positions_from_labels_and_states_the_terms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = trees.drishti(tmp_path / "raw")
    assert run("prepare", "drishti_gs", "--raw", raw, "--out", tmp_path / "out", *QUICK) == 0
    printed = capsys.readouterr().out
    assert "POSITION FROM LABELS" in printed
    assert "terms: Research use" in printed
    assert "47 of the 50 train eyes" in printed


def test_masks_that_contradict_the_graders_fail_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = trees.drishti(tmp_path / "raw")
    for path in raw.rglob("*_cdrValues.txt"):
        path.write_text("0.9 0.9 0.9 0.9")
    command = ["prepare", "drishti_gs", "--raw", raw, "--out", tmp_path / "out", *QUICK]
    assert run(*command) == 6
    assert "disagree with the graders' own ratios" in capsys.readouterr().err
    assert run("check-vcdr", "--data-root", tmp_path / "out") == 6
    assert "drishtiGS_001 differs from every grader" in capsys.readouterr().out


def test_check_vcdr_passes_where_masks_agree_or_nobody_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = trees.drishti(tmp_path / "raw")
    run("prepare", "drishti_gs", "--raw", raw, "--out", tmp_path / "out", *QUICK)
    capsys.readouterr()
    assert run("check-vcdr", "--data-root", tmp_path / "out", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["drishti_gs"]["eyes"]) == 5
    plain = trees.plain(tmp_path / "plain")
    run("prepare", "riga", "--raw", plain, "--out", tmp_path / "other", *QUICK)
    assert run("check-vcdr", "--data-root", tmp_path / "other") == 0
    assert "no prepared domain with graders' ratios" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["drishty"], 2, "did you mean 'drishti'"),
        (["refuge"], 2, "ambiguous"),
        (["synthetic_a"], 2, "nothing is known about the raw layout"),
        (["drishti_gs", "--roi-mode", "huge"], 2, "--roi-mode huge"),
        (["drishti_gs", "--roi-mode", "whole", "--centre", "gt"], 2, "do not go together"),
        (["drishti_gs", "--agreement", "2"], 2, "--agreement 2"),
        (["drishti_gs", "--encoding", "white"], 2, "--encoding"),
        (["drishti_gs", "--expert", "exp1"], 2, "--expert exp1: expected all"),
        (["drishti_gs", "--name", "../up"], 2, "cannot be the name"),
        (["drishti_gs", "--name", "a:b"], 2, "cannot hold ':'"),
        (["drishti_gs", "--name", "refuge"], 2, "is ambiguous"),
        (["drishti_gs", "--name", "a@blur=1"], 2, "cannot be the name"),
        (["drishti_gs", "--name", "Domain2"], 2, "a name of the data set 'rim_one_r3'"),
        (["drishti_gs", "--name", "synthetic_a"], 2, "would pass for it"),
        (["mine", "--layout", "rois"], 2, "mine"),
        (["origa"], 3, "no photograph of 'origa'"),
    ],
)
def test_what_cannot_be_prepared_is_explained(
    arguments: list[str], code: int, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    raw = trees.drishti(tmp_path / "raw", train=1, test=1)
    assert run("prepare", *arguments, "--raw", raw, "--out", tmp_path / "out") == code
    assert message in capsys.readouterr().err


def test_a_folder_of_ones_own_needs_the_plain_layout_and_a_declaration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = trees.plain(tmp_path / "raw", codes=(0, 128, 255))
    command = ["prepare", "my_clinic", "--raw", raw, "--out", tmp_path / "out", *QUICK]
    assert run(*command) == 2
    assert "--layout plain" in capsys.readouterr().err
    assert run(*command, "--layout", "plain") == 3
    advice = "--encoding 0=cup,128=rim,255=background"
    assert advice in capsys.readouterr().err
    assert run(*command, "--layout", "plain", *advice.split()) == 0
    assert run("verify", "--data-root", tmp_path / "out") == 0


def test_an_alias_with_the_plain_layout_is_the_data_set_it_stands_for(tmp_path: Path) -> None:
    raw = trees.plain(tmp_path / "raw", codes=(0, 128, 255))
    command = ["prepare", "Domain1", "--raw", raw, "--out", tmp_path / "out", *QUICK]
    encoding = ["--encoding", "0=cup,128=rim,255=background"]
    assert run(*command, "--layout", "plain", *encoding) == 0
    manifest = json.loads((tmp_path / "out" / "drishti_gs" / "manifest.json").read_text())
    assert manifest["owner"]["homepage"].startswith("http")

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench import cli
from sfuda_bench.errors import UsageError
from sfuda_bench.report.cite import citations, to_bibtex

TEXTS = {
    "source_only": "None: the reference.",
    "cpr_cbam": "Li & al., A 2020 title, MICCAI 2023",
    "tent": "Li & al., A 2020 title, MICCAI 2023",
    "target_supervised": "",
}


def cited(store: Any) -> Any:
    for path in store.out.glob("cells/*/*/*/cell.json"):
        cell = json.loads(path.read_text("utf-8"))
        path.write_text(json.dumps(cell | {"citation": TEXTS[cell["method"]]}), "utf-8")
    return store


def test_equal_texts_share_an_entry_and_none_is_no_citation(
    make_store: Callable[..., Any],
) -> None:
    found = citations(cited(make_store()).out)
    assert [entry.kind for entry in found] == ["method", "dataset", "dataset"]
    assert found[0].used == ("cpr_cbam", "tent")
    assert found[0].year == "2023"
    assert {entry.used for entry in found[1:]} == {("drishti_gs",), ("rim_one_r3",)}


def test_bibtex_is_escaped(make_store: Callable[..., Any]) -> None:
    text = to_bibtex(citations(cited(make_store()).out))
    assert text.count("@misc{") == 3
    assert r"howpublished = {Li \& al., A 2020 title, MICCAI 2023}," in text
    assert r"note = {method: cpr\_cbam, tent}," in text
    assert text.count("{") == text.count("}")


def test_an_empty_store_is_refused(store: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished cells"):
        citations(store.out)
    with pytest.raises(UsageError, match="no store"):
        citations(tmp_path / "nowhere")


def test_the_command_prints_entries(
    make_store: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(cited(make_store()).out)
    assert cli.main(["cite", "--out", out]) == 0
    assert capsys.readouterr().out.startswith("@misc{method:cpr_cbam,")
    assert cli.main(["cite", "--out", out, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.report.extra import NOTES, write_extra_tables
from sfuda_bench.report.plain import (
    PlainColumn,
    PlainTable,
    to_csv,
    to_latex,
    to_markdown,
    to_standalone,
)

TABLE = PlainTable(
    name="t",
    title="T.",
    caption=("C_1 & more.",),
    columns=(
        PlainColumn("pair", "pair"),
        PlainColumn("method", "method"),
        PlainColumn("value_px", "value [px]", 1, signed=True),
        PlainColumn("only_csv", "hidden", printed=False),
    ),
    rows=(("a", "x|y", 1.25, "h"), ("a", "z", -0.01, None), ("b", "z", None, "h")),
)


def test_markdown_repeats_no_pair_and_prints_no_negative_zero() -> None:
    assert to_markdown(TABLE).splitlines()[2:7] == [
        "| pair | method | value [px] |",
        "| --- | --- | ---: |",
        r"| a | x\|y | +1.2 |",
        "|  | z | +0.0 |",
        "| b | z | \N{EN DASH} |",
    ]


def test_csv_has_every_column_and_nothing_where_undefined() -> None:
    assert to_csv(TABLE).splitlines() == [
        "pair,method,value_px,only_csv",
        "a,x|y,1.250000,h",
        "a,z,-0.010000,",
        "b,z,,h",
    ]


def test_latex_is_escaped() -> None:
    text = to_latex(TABLE)
    assert r"C\_1 \& more." in text and r"a & x\textbar{}y & +1.2 \\" in text


def test_numbers_are_aligned_at_the_point_and_texts_in_their_column_are_braced() -> None:
    text = to_latex(TABLE)
    assert r"\begin{tabular}{llS[table-format=+1.1,retain-explicit-plus]}" in text
    assert r"b & z & {--} \\" in text and "{value [px]}" in text


def test_a_long_table_breaks_over_pages_and_repeats_its_header() -> None:
    rows = tuple(("a", f"m{n}", float(n), "h") for n in range(60))
    text = to_latex(replace(TABLE, rows=rows))
    assert text.index(r"\begin{longtable}") < text.index(r"\caption{") < text.index(r"\endhead")
    assert text.count(r"\toprule") == 2 and r"\begin{table}" not in text


def test_what_has_no_records_is_named_and_the_rest_is_written(
    make_store: Callable[..., Any],
) -> None:
    store = make_store()
    cell = next(store.out.glob("cells/cpr_cbam/*/*"))
    run = {"seconds": 1.0, "device": "cpu", "threads": 1}
    for path in cell.parent.glob("*"):
        (path / "run.json").write_text(json.dumps(run), "utf-8")
    written = write_extra_tables(store.out)
    names = {path.name for path in written}
    assert names == {"cost.csv", "cost.md", "cost.tex", "numbers.tex", f"{NOTES}.md"}
    notes = (store.out / "tables" / f"{NOTES}.md").read_text("utf-8")
    for name in ("thresholds", "xray-standard-cpr-2023", "vcdr-standard", "selection-standard"):
        assert f"- {name}: " in notes
    assert all(path.is_file() for path in written)


def test_another_selection_never_takes_a_place(make_store: Callable[..., Any]) -> None:
    store = make_store()
    for folder in store.out.glob("cells/*/*/*"):
        run = {"seconds": 1.0, "device": "cpu", "threads": 1}
        (folder / "run.json").write_text(json.dumps(run), "utf-8")
    kept = {path: path.read_bytes() for path in write_extra_tables(store.out)}
    with pytest.raises(Exception, match="selection"):
        write_extra_tables(store.out, "oracle")
    assert all(path.read_bytes() == data for path, data in kept.items())


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
@pytest.mark.parametrize("copies", [1, 40])
def test_the_whole_document_compiles_within_its_page(tmp_path: Path, copies: int) -> None:
    wide = replace(TABLE, columns=TABLE.columns[:2] + TABLE.columns[2:] * 5)
    rows = tuple((*row[:2], *row[2:] * 5) for row in TABLE.rows) * copies
    (tmp_path / "t.tex").write_text(to_standalone(replace(wide, rows=rows)), "utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    if "siunitx.sty' not found" in run.stdout:
        pytest.skip("needs siunitx (texlive-science)")
    assert run.returncode == 0, run.stdout[-1500:]
    assert "Overfull" not in run.stdout

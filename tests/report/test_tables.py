from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sfuda_bench.errors import UsageError
from sfuda_bench.report import render
from sfuda_bench.report.records import read_cases, read_cells
from sfuda_bench.report.tables import (
    COLLAPSE,
    COLUMNS,
    TIE,
    Block,
    Cell,
    Evidence,
    Row,
    Table,
    main_table,
    print_tables,
    store_tables,
    write_tables,
)

Make = Callable[..., Any]
REAL = ("drishti_gs", "rim_one_r3")
SYNTHETIC = ("syn_a", "syn_b")

CAPTION = """\
Mean ± sample standard deviation over test images of per-image scores, each first averaged over \
seeds (0, 1) and source seeds (0); avg is the mean of cup and disc; in the average over pairs the \
deviation is over pairs.
Selection: last epoch.
Scoring profile: standard (threshold 0.5).
Preset: quick. Network: deeplabv3plus (mobilenet_v2, no pretrained weights). Image size: 128 px.
Strictness: S0, source weights and preprocessing only (Source only, cpr_cbam); S1, also scalars \
of the source data (Tent (online)).
ASD (mean of the two directed mean distances) in pixels of the evaluation grid.
Empty masks among 52 cases (one structure of one image in one run): 4 predictions, 0 truths; \
they count with the worst value unless both are empty.
Best in bold, second best underlined, per pair and column; † uses target labels (oracle), not \
ranked; § synthetic images, not of patients; \N{EN DASH} missing, failed or unscored (3 of 16 \
cells), or an average that would need it.
"""

MARKDOWN = """\
**Dice and average surface distance (ASD) of optic cup and disc per domain pair.**

| pair | method | Dice [%] cup | Dice [%] disc | Dice [%] avg | ASD [px] cup | ASD [px] disc \
| ASD [px] avg |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| drishti_gs → rim_one_r3 | Source only | <ins>70.00</ins> ± 14.14 | **92.00** ± 2.83 \
| <ins>81.00</ins> ± 5.66 | <ins>12.00</ins> ± 2.83 | **4.00** ± 0.00 | <ins>8.00</ins> ± 1.41 |
|  | cpr_cbam | **80.00** ± 7.07 | **92.00** ± 0.00 | **86.00** ± 3.54 | **9.00** ± 1.41 \
| <ins>5.00</ins> ± 0.00 | **7.00** ± 0.71 |
|  | Tent (online) | - | - | - | - | - | - |
|  | Target supervised † | 95.00 ± 0.00 | 97.00 ± 0.00 | 96.00 ± 0.00 | 2.00 ± 0.00 \
| 1.00 ± 0.00 | 1.50 ± 0.00 |
| syn_a → syn_b § | Source only | - | - | - | - | - | - |
|  | cpr_cbam | **90.00** ± 0.00 | **96.00** ± 0.00 | **93.00** ± 0.00 | **3.00** ± 0.00 \
| **1.00** ± 0.00 | **2.00** ± 0.00 |
|  | Tent (online) | <ins>50.00</ins> ± 0.00 | <ins>0.00</ins> ± 0.00 | <ins>25.00</ins> ± 0.00 \
| <ins>5.00</ins> ± 0.00 | <ins>181.00</ins> ± 0.00 | <ins>93.00</ins> ± 0.00 |
|  | Target supervised † | 95.00 ± 0.00 | 97.00 ± 0.00 | 96.00 ± 0.00 | 2.00 ± 0.00 \
| 1.00 ± 0.00 | 1.50 ± 0.00 |
| Average over pairs § | Source only | - | - | - | - | - | - |
|  | cpr_cbam | 85.00 ± 7.07 | 94.00 ± 2.83 | 89.50 ± 4.95 | 6.00 ± 4.24 | 3.00 ± 2.83 \
| 4.50 ± 3.54 |
|  | Tent (online) | - | - | - | - | - | - |
|  | Target supervised † | 95.00 ± 0.00 | 97.00 ± 0.00 | 96.00 ± 0.00 | 2.00 ± 0.00 \
| 1.00 ± 0.00 | 1.50 ± 0.00 |

""".replace("| - ", "| \N{EN DASH} ")

LATEX_BODY = r"""
\label{tab:main-standard}
\begin{tabular}{lcccccc}
\toprule
& \multicolumn{3}{c}{Dice [\%] $\uparrow$} & \multicolumn{3}{c}{ASD [px] $\downarrow$} \\
\cmidrule(lr){2-4} \cmidrule(lr){5-7}
Method & cup & disc & avg & cup & disc & avg \\
\midrule
\multicolumn{7}{l}{\textit{drishti\_gs $\rightarrow$ rim\_one\_r3}} \\
\quad Source only & \underline{70.00} $\pm$ 14.14 & \textbf{92.00} $\pm$ 2.83 &
 \underline{81.00} $\pm$ 5.66 & \underline{12.00} $\pm$ 2.83 & \textbf{4.00} $\pm$ 0.00 &
 \underline{8.00} $\pm$ 1.41 \\
\quad cpr\_cbam & \textbf{80.00} $\pm$ 7.07 & \textbf{92.00} $\pm$ 0.00 &
 \textbf{86.00} $\pm$ 3.54 & \textbf{9.00} $\pm$ 1.41 & \underline{5.00} $\pm$ 0.00 &
 \textbf{7.00} $\pm$ 0.71 \\
\quad Tent (online) & -- & -- & -- & -- & -- & -- \\
\cmidrule{1-7}
\quad Target supervised $^{\dagger}$ & 95.00 $\pm$ 0.00 & 97.00 $\pm$ 0.00 &
 96.00 $\pm$ 0.00 & 2.00 $\pm$ 0.00 & 1.00 $\pm$ 0.00 & 1.50 $\pm$ 0.00 \\
\midrule
\multicolumn{7}{l}{\textit{syn\_a $\rightarrow$ syn\_b \S{}}} \\
""".replace("&\n", "&")


def row_of(table: Table, pair: tuple[str, str] | None, label: str) -> Row:
    (block,) = [block for block in table.blocks if block.pair == pair]
    (row,) = [row for row in block.rows if row.label == label]
    return row


def constant(dice: float, asd: float) -> dict[str, tuple[float, ...]]:
    """Two images of equal scores."""
    names = [f"{metric}_{structure}" for metric in ("dice", "asd") for structure in ("cup", "disc")]
    return {name: (dice if name.startswith("dice") else asd,) * 2 for name in names}


def test_the_whole_markdown_table(make_store: Make) -> None:
    (table,) = store_tables(make_store().out)

    assert MARKDOWN + CAPTION == render.to_markdown(table)


def test_the_latex_table_escapes_names_and_rules_off_the_oracle(make_store: Make) -> None:
    (table,) = store_tables(make_store().out)
    latex = render.to_latex(table, label="tab:main-standard")

    assert LATEX_BODY in latex
    assert "|" not in latex.split(r"\begin{tabular}")[1]
    assert latex.endswith("\\bottomrule\n\\end{tabular}\n\\end{table}\n")


def test_the_csv_has_one_row_per_pair_and_method(make_store: Make) -> None:
    (table,) = store_tables(make_store().out)
    rows = list(csv.DictReader(io.StringIO(render.to_csv(table))))

    assert len(rows) == 8
    cpr = next(row for row in rows if (row["source"], row["method"]) == (REAL[0], "cpr_cbam"))
    expected = {
        "profile": "standard",
        "selection": "last",
        "target": "rim_one_r3",
        "protocol": "offline",
        "oracle": "false",
        "synthetic": "false",
        "strictness": "S0",
        "runs": "2",
        "runs_asked": "2",
        "dice_cup_mean": "80.000000",
        "dice_cup_std": "7.071068",
        "dice_cup_n": "2",
        "asd_avg_mean": "7.000000",
    }
    assert expected == {name: cpr[name] for name in expected}
    tent = next(row for row in rows if (row["source"], row["method"]) == (REAL[0], "tent"))
    assert ("1", "2", "", "") == (
        tent["runs"],
        tent["runs_asked"],
        tent["dice_cup_mean"],
        tent["asd_avg_std"],
    )


def test_files_are_written_for_every_profile_and_shuffled_rows_change_no_byte(
    make_store: Make,
) -> None:
    first, second = make_store("first"), make_store("second", shuffle=1)

    written = write_tables(first.out)

    names = ["main-standard.tex", "main-standard.md", "main-standard.csv"]
    expected = [*names, "standalone/main-standard.tex"]
    assert [first.out / "tables" / name for name in expected] == written
    again = write_tables(second.out)
    assert [p.read_bytes() for p in written] == [p.read_bytes() for p in again]


def test_a_plan_of_other_cells_leaves_the_rest_of_the_store_out(make_store: Make) -> None:
    store = make_store()
    store.plan([store.asked("cpr_cbam", REAL, seed) for seed in (0, 1)])

    (table,) = store_tables(store.out)

    assert [REAL] == [block.pair for block in table.blocks]  # one pair has no average over pairs
    assert ["cpr_cbam"] == [row.label for row in table.blocks[0].rows]
    assert frozenset() == table.blocks[0].rows[0].cells[0].marks  # nobody to be better than
    assert "–" not in render.to_markdown(table)  # noqa: RUF001  # the mark of a missing cell


def test_ties_share_the_mark_and_two_best_leave_no_second(make_store: Make) -> None:
    """On disc Dice, Source only and cpr_cbam print 92.00; a third method is 91."""
    store = make_store()
    store.add("tent", REAL, 1, constant(0.91, 4))
    store.add("tent", REAL, 0, constant(0.91, 4))
    (table,) = store_tables(store.out)

    column = [column.key for column in COLUMNS].index("dice_disc")
    marks = [row.cells[column].marks for row in table.blocks[0].rows]
    assert [{"best"}, {"best"}, set(), set()] == marks


def test_the_oracle_selection_marks_every_row_and_ranks_none(store: Any) -> None:
    for method in ("cpr_cbam", "tent"):
        store.add(method, REAL, 0, constant(0.9, 1), selections=("last", "oracle"))

    (table,) = store_tables(store.out, "oracle")

    assert all(row.oracle and not row.cells[0].marks for row in table.blocks[0].rows)
    assert "best epoch on the target test labels (oracle †)" in " ".join(table.caption)
    (path, *_) = write_tables(store.out, "oracle")
    assert "main-standard-oracle.tex" == path.name


def test_another_selection_uses_the_only_model_of_what_was_not_trained(store: Any) -> None:
    store.add("source_only", REAL, 0, constant(0.8, 2), epochs=0)
    store.add("cpr_cbam", REAL, 0, constant(0.9, 1), selections=("last", "average-last-5"))
    store.add("tent", REAL, 0, constant(0.9, 1))

    (table,) = store_tables(store.out, "average-last-5")

    texts = {row.label: row.cells[0].mean_text for row in table.blocks[0].rows}
    expected = {"Source only": "80.00", "cpr_cbam": "90.00", "Tent (online)": "\N{EN DASH}"}
    assert expected == texts


def test_an_unknown_selection_is_named_with_those_present(make_store: Make) -> None:
    with pytest.raises(UsageError, match="'average-last-9', there are: last") as caught:
        store_tables(make_store().out, "average-last-9")
    assert "--track epochs" in (caught.value.hint or "")


def test_undefined_distances_leave_the_mean_and_are_counted(store: Any) -> None:
    """Cup: 4 and 8 on image 0 (two seeds), undefined twice on image 1; pooled adds 1 to each."""
    for seed, asd in ((0, 4.0), (1, 8.0)):
        scores = {
            "dice_cup": (0.8, 0.0),
            "dice_disc": (0.9, 0.9),
            "asd_cup": (asd, float("nan")),
            "asd_disc": (2.0, 4.0),
        }
        store.add("cpr_cbam", REAL, seed, scores, profiles=("cpr-2023",))

    (table,) = store_tables(store.out)

    row = row_of(table, REAL, "cpr_cbam")
    cells = dict(zip((column.key for column in COLUMNS), row.cells, strict=True))
    assert Cell(7.0, None, 1) == cells["asd_cup"]
    assert cells["asd_disc"].mean == 4.0
    assert Cell(5.5, None, 1) == cells["asd_avg"]
    assert (2, 2) == (row.undefined_asd, row.empty_predictions)
    caption = " ".join(table.caption)
    assert "2 predictions, 0 truths; 2 undefined distances are left out of the ASD." in caption
    assert "cpr-2023 (threshold 0.75, Dice smoothed by 1)" in caption
    assert "ASD (mean over the pooled distances of both contours)" in caption


def test_configurations_are_never_averaged_without_a_plan(store: Any) -> None:
    """Seeds 0 and 1 exist, under one radius each: two rows that name it, not one mean."""
    store.add("cpr_cbam", REAL, 0, constant(0.8, 2), config={"radius": 4, "beta": 2.0})
    store.add("cpr_cbam", REAL, 1, constant(0.6, 4), config={"radius": 6, "beta": 2.0})

    (table,) = store_tables(store.out)

    texts = {row.label: row.cells[0].mean_text for row in table.blocks[0].rows}
    assert {"cpr_cbam (radius=4)": "80.00", "cpr_cbam (radius=6)": "60.00"} == texts


def test_equal_settings_of_several_seeds_share_a_row_without_a_plan(make_store: Make) -> None:
    store = make_store()
    with_plan = store_tables(store.out)[0]
    (store.out / "plans" / "last.json").unlink()

    (table,) = store_tables(store.out)

    expected = row_of(with_plan, REAL, "cpr_cbam").cells[0]
    assert expected.mean == row_of(table, REAL, "cpr_cbam").cells[0].mean
    assert "Tent (online)" in {row.label for row in table.blocks[0].rows}


def test_cells_that_differ_in_nothing_recorded_are_told_apart_by_key(store: Any) -> None:
    """Two recipes of the source model give two keys and the same ``cell.json`` settings."""
    store.add("cpr_cbam", REAL, 0, constant(0.8, 2))
    folder = store.add("cpr_cbam", REAL, 0, constant(0.6, 4), config={"hidden": 1})
    path = folder / "cell.json"
    path.write_text(path.read_text().replace('{"hidden": 1}', "{}"))

    (table,) = store_tables(store.out)

    labels = [row.label for row in table.blocks[0].rows]
    assert len(labels) == 2
    assert all(re.fullmatch(r"cpr_cbam \(key [0-9a-f]{8}\)", label) for label in labels)


def test_an_unscored_cell_prints_a_dash(store: Any) -> None:
    store.add("cpr_cbam", REAL, 0, None)
    store.add("tent", REAL, 0, constant(0.9, 1))

    (table,) = store_tables(store.out)

    assert row_of(table, REAL, "cpr_cbam").cells[0].mean_text == "\N{EN DASH}"
    assert "(1 of 2 cells)" in table.caption[-1]


def test_a_store_with_nothing_scored_prints_dashes_if_a_profile_is_named(make_store: Make) -> None:
    store = make_store()
    shutil.rmtree(store.out / "cells")

    assert [] == write_tables(store.out)
    (table,) = store_tables(store.out, profiles=["standard"])
    assert all(c.mean is None for block in table.blocks for row in block.rows for c in row.cells)
    assert "(16 of 16 cells)" in table.caption[-1]


def test_the_table_is_a_value(make_store: Make) -> None:
    cells = read_cells(make_store().out)
    cases = read_cases(cells, "standard")

    first = main_table(cells, cases, "standard")

    assert first == main_table(cells, cases.sample(frac=1.0, random_state=5), "standard")


def test_printing_gives_markdown_in_a_pipe_and_a_drawing_on_a_terminal(make_store: Make) -> None:
    out = make_store().out
    pipe, terminal = io.StringIO(), io.StringIO()
    print_tables(out, Console(file=pipe, width=40))
    print_tables(out, Console(file=terminal, width=160, force_terminal=True))

    (table,) = store_tables(out)
    assert render.to_markdown(table) + "\n" == pipe.getvalue()
    assert "cpr_cbam" in terminal.getvalue()
    assert "Dice (%)" in terminal.getvalue()


@pytest.mark.parametrize("text", ["a_b", "50 %", "R&D", "#1", "$x$", "{y}", "~", "x^2", "\\end"])
def test_escaping_leaves_no_active_character(text: str) -> None:
    escaped = render.escape_latex(text)

    known = r"\\(textbackslash|textasciitilde|textasciicircum)\{\}|\\[&%$#_{}]"
    assert not re.search(r"[\\&%$#_{}~^]", re.sub(known, "", escaped))


def awkward_table() -> Table:
    """Names that break naive LaTeX, and enough rows for several ordinary pages."""
    label = r"a_b & 50 % #1 {x} ~ ^ \end <|> α β ± × –"  # noqa: RUF001  # characters to render
    cells = tuple(Cell(50.0, 1.0, 2, frozenset({"best"})) for _ in COLUMNS)
    rows = tuple(Row("m", f"{label} {n}", "offline", n == 7, "S0", cells) for n in range(8))
    blocks = tuple(Block(f"a_{n} → b_{n}", ("a", "b"), True, rows) for n in range(12))
    return Table("A title.", (label, "§ †"), "standard", "last", COLUMNS, blocks)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("awkward", [False, True])
def test_the_standalone_document_compiles_on_one_page(
    make_store: Make, tmp_path: Path, awkward: bool
) -> None:
    table = awkward_table() if awkward else store_tables(make_store().out)[0]
    path = tmp_path / "table.tex"
    path.write_text(render.to_standalone(table, label="tab:x"), "utf-8")

    run = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", path.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
    )

    assert run.returncode == 0, run.stdout[-2000:]
    assert "(1 page" in run.stdout
    assert "Float too large" not in run.stdout
    assert "Overfull" not in run.stdout


def test_reports_import_no_torch(make_store: Make) -> None:
    code = (
        "import sys; from pathlib import Path; out = Path(sys.argv[1]);"
        "from sfuda_bench.report import records, render, rows, status, summary, tables;"
        "tables.write_tables(out); status.status(out);"
        "print('torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(make_store().out)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == "False"


def test_what_a_test_cannot_tell_from_the_best_is_marked_in_every_form(make_store: Make) -> None:
    store = make_store()
    (plain,) = store_tables(store.out, profiles=["standard"])
    block = plain.blocks[0]
    worse = next(r for r in block.rows if not r.oracle and "best" not in r.cells[0].marks)
    assert block.pair is not None
    ties = {(*block.pair, "cup", "dice", worse.label)}
    evidence = {"standard": Evidence(ties, frozenset({(*block.pair, worse.label)}))}
    (table,) = store_tables(store.out, profiles=["standard"], evidence=evidence)
    marked = [
        (row.label, c)
        for other in table.blocks
        for row in other.rows
        for c, cell in enumerate(row.cells)
        if "tied" in cell.marks
    ]
    assert marked == [(worse.label, 0)]
    assert render.to_markdown(table).count(TIE) == 2, "once in the table, once in the caption"
    assert render.to_latex(table, label="x").count(r"$^{\approx}$") == 1
    collapsed = [(b.pair, row.label) for b in table.blocks for row in b.rows if row.collapsed]
    assert collapsed == [(block.pair, worse.label)]
    assert f"| {worse.label} {COLLAPSE} |" in render.to_markdown(table)
    assert not any(TIE in sentence for sentence in plain.caption), "nothing was tested there"

"""Names are free text: tables, pages and bibliographies show them and never obey them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfuda_bench.contract.bench import toy_domain
from sfuda_bench.errors import DataError, UsageError
from sfuda_bench.methods import METHODS
from sfuda_bench.report.cite import Citation
from sfuda_bench.report.html import write_html
from sfuda_bench.report.render import escape_latex, escape_markdown
from sfuda_bench.report.write import write_report
from tests.fuzz.outcome import command
from tests.report.rich_store import RichStore

TITLE = r"""D<script>alert(1)</script>&_%$\x{}~^#|`"'[a](javascript:b)漢"""
DOMAIN = r"""r<img src=x onerror=b>&_%$~^#|"'é"""
MESSAGE = "out</pre><script>alert(2)</script>\x1b[31m $\\frac{$ of memory"
RENAME = {
    "DPL": TITLE,
    "rim_one_r3": DOMAIN,
    "out of memory": MESSAGE,
    "none": TITLE,
    "99.9 % of the pixels count as reliable": MESSAGE,
}
_LATEX_COMMAND = re.compile(
    r"\\(?:textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|S|P)\{\}"
    r"|\\[&%$#_{}]|\$(?:\^\{)?\\[a-z]+\}?\$"
)
_SPECIAL = set("\\&%$#_{}~^<>|")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of hostile names with its tables, figures and page."""
    store = RichStore(
        tmp_path_factory.mktemp("hostile") / "store",
        methods=("source_only", "entropy_min", "dpl"),
        pairs=(("drishti_gs", "rim_one_r3"),),
        profiles=("standard",),
        images=4,
        rename=RENAME,
    )
    write_report(store.out, "last", None)
    write_html(store.out, "last")
    return store.out


@given(st.text())
def test_latex_holds_no_special_character_outside_a_command(text: str) -> None:
    left = _LATEX_COMMAND.sub("", escape_latex(text))
    assert not _SPECIAL & {*left}
    assert left.isprintable() or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in left)


@given(st.text(), st.text())
def test_a_markdown_entry_stays_in_its_column_and_opens_no_tag(first: str, second: str) -> None:
    row = f"| {escape_markdown(first)} | {escape_markdown(second)} |"
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) == 3
    assert "<" not in row and "\n" not in row and "](" not in row


@given(st.text(min_size=1), st.text(min_size=1))
def test_a_citation_is_one_entry_with_balanced_braces(text: str, used: str) -> None:
    entry = Citation("method:x", (used,), "method", text, "2020").to_bibtex()
    depth = 0
    for character in entry:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert len(entry.splitlines()) == 5


def test_every_latex_table_names_hostile_methods_and_stays_a_table(out: Path) -> None:
    files = sorted(out.glob("tables/*.tex"))
    assert len(files) > 7
    named = 0
    for path in files:
        text = path.read_text()
        named += escape_latex(TITLE) in text
        assert "<script>" not in text and TITLE not in text and DOMAIN not in text
        for line in text.splitlines():
            if escape_latex(TITLE) in line:
                rest = line.replace(escape_latex(TITLE), "")
                assert "alert" not in rest
    assert named > 3


def test_every_markdown_table_has_rows_of_one_width(out: Path) -> None:
    for path in sorted(out.glob("tables/*.md")):
        text = path.read_text()
        assert "<script" not in text and "<img" not in text and "](javascript" not in text
        rows = [line for line in text.splitlines() if line.startswith("| ")]
        widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}
        assert len(widths) <= 1, path.name


def test_every_csv_table_gives_the_names_back(out: Path) -> None:
    found = ""
    for path in sorted(out.glob("tables/*.csv")):
        rows = list(csv.reader(io.StringIO(path.read_text())))
        assert len({len(row) for row in rows}) == 1, path.name
        found += "\n".join(entry for row in rows for entry in row)
    assert TITLE in found


def test_the_page_shows_hostile_names_as_text(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "onerror=b>" not in page.replace("&gt;", "")
    assert "alert(1)" in page  # it is shown, escaped


def test_figures_are_files_of_plain_names_without_markup(out: Path) -> None:
    figures = sorted((out / "figures").iterdir())
    assert figures
    for path in figures:
        assert re.fullmatch(r"[\w.@=+-]+", path.name), path.name
        if path.suffix == ".svg":
            text = path.read_text()
            assert "<script" not in text and "onerror=b>" not in text


def test_a_hostile_store_can_be_listed_exported_and_cited(out: Path, tmp_path: Path) -> None:
    for arguments in (
        ["status"],
        ["status", "--json"],
        ["cite"],
        ["export", "--format", "challenger", "--to", str(tmp_path / "x.csv")],
    ):
        assert command([*arguments, "--out", str(out)]).code == 0


NAMES = ["", "a/b", "../x", "a b", "a,b", "a:b", "*", "<script>", "a\n", "é", "-a", ".a", "a\0"]


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_name_is_a_word_that_folders_and_flags_take(name: str) -> None:
    spec = METHODS.get("source_only")
    with pytest.raises(UsageError, match=r"plug\.py"):
        METHODS.add(name, spec, origin="plug.py")


@pytest.mark.parametrize("name", ["a:b", "a,b", "*", "a->b", "a\nb", "\x1b[31m"])
def test_a_domain_folder_whose_name_no_pair_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    toy_domain(tmp_path, "toy_a", counts=(1, 1))
    (tmp_path / "toy_a").rename(tmp_path / name)
    toy_domain(tmp_path, "toy_b", counts=(1, 1))
    ran = command(["ls", "pairs", "--data-root", str(tmp_path)])
    assert ran.code == DataError.exit_code
    assert "\x1b" not in ran.stderr and "rename the folder" in ran.stderr

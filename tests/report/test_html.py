from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.report.html import render_html, write_html
from sfuda_bench.report.html_data import report_data
from sfuda_bench.report.tables import store_tables
from tests.report.rich_store import RichStore, digest

PAIRS = (("drishti_gs", "rim_one_r3"), ("drishti_gs", "synthetic_a"))
SMALL: dict[str, Any] = {
    "methods": ("source_only", "entropy_min", "dpl", "upper"),
    "pairs": PAIRS,
    "images": 5,
}
VOID = {"meta", "link", "input", "img", "br", "hr"}
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;"


class Page(HTMLParser):
    """Every element with its attributes and text; fails on elements closed out of order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> str:
        return "".join(data for name, data in self.texts if name == tag)


def page_of(out: Path) -> Page:
    return Page(render_html(report_data(out), []))


def cells_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="cells">(.*?)</script>', text, re.S)
    assert found
    cells: dict[str, Any] = json.loads(found[1])
    return cells


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return RichStore(tmp_path_factory.mktemp("html") / "store", **SMALL).out


@pytest.fixture(scope="module")
def text(out: Path) -> str:
    return render_html(report_data(out), [])


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


# -- structure --------------------------------------------------------------------------------


def test_every_table_row_and_number_is_on_the_page(out: Path, page: Page) -> None:
    tables = store_tables(out)
    rows = [row for table in tables for block in table.blocks for row in block.rows]
    assert len([r for r in page.all("tr") if "data-keys" in r]) == len(rows)
    shown = {a["data-value"] for a in page.all("td") if "data-value" in a}
    wanted = {"" if cell.mean is None else f"{cell.mean:.9f}" for row in rows for cell in row.cells}
    assert shown == wanted


def test_groups_of_columns_stand_above_their_columns(page: Page) -> None:
    """Dice columns come first in a table, so does their header."""
    headers = [t.strip() for tag, t in page.texts if tag == "th" and t.strip()]
    assert headers[:4] == ["Dice [%]", "ASD [px]"] * 2, "the main tables come first"
    labels = [a["data-label"] for a in page.all("td") if "data-label" in a]
    assert labels[:6] == [
        *(f"Dice [%] {part}" for part in ("cup", "disc", "avg")),
        *(f"ASD [px] {part}" for part in ("cup", "disc", "avg")),
    ]


def test_every_further_table_is_on_the_page_with_its_file(page: Page, text: str) -> None:
    (summaries,) = [[t for tag, t in page.texts if tag == "summary"]]
    assert any("Paired comparisons" in summary for summary in summaries)
    assert any("Harm" in summary for summary in summaries)
    for name in ("comparison-standard", "harm-standard", "vcdr-standard", "cost"):
        assert f"tables/{name}.csv" in text


def test_a_row_names_exactly_its_cells(page: Page) -> None:
    keys = [str(row["data-keys"]).split() for row in page.all("tr") if "data-keys" in row]
    dpl = {digest("dpl", PAIRS[0], seed) for seed in (0, 1)}
    assert sum(set(row) == dpl for row in keys) == 2  # once per profile
    average = {digest("dpl", pair, seed) for pair in PAIRS for seed in (0, 1)}
    assert sum(set(row) == average for row in keys) == 2


def test_a_cell_shows_config_seeds_keys_digests_protocol_strictness_and_warnings(
    text: str,
) -> None:
    cells = cells_of(text)
    cell = cells[digest("dpl", PAIRS[0], 1)]
    sections = cell["sections"]
    assert sections["Method settings"]["lr"] == 1e-3
    assert sections["Cell"]["seed"] == 1
    assert sections["Cell"]["protocol"] == "offline"
    assert sections["Cell"]["strictness"] == "S0"
    assert sections["Keys and digests"]["key"] == digest("dpl", PAIRS[0], 1)
    assert sections["Keys and digests"]["target_test"] == digest("rim_one_r3", 1)
    assert list(sections["Warnings"].values()) == ["99.9 % of the pixels count as reliable"]
    assert sections["Scalars of one epoch"] == {"reliable_share (epoch 0)": "0.8"}
    assert cell["log"] == "adapted dpl\n"
    assert "a-host" not in text


def test_failed_and_missing_cells_are_listed_with_their_error(text: str, page: Page) -> None:
    cells = cells_of(text)
    failed = cells[digest("entropy_min", PAIRS[0], 1)]
    assert failed["state"] == "failed"
    assert failed["sections"]["Failure"]["message"] == "out of memory"
    assert "Traceback" in failed["log"]
    assert cells[digest("entropy_min", PAIRS[1], 1)]["state"] == "missing"
    listed = [str(item["data-keys"]) for item in page.all("li") if "data-keys" in item]
    assert listed == [digest("entropy_min", pair, 1) for pair in PAIRS]
    assert "RuntimeError: out of memory" in page.text("code")


def test_a_complete_store_lists_nothing_as_unfinished(tmp_path: Path) -> None:
    out = RichStore(tmp_path / "store", **SMALL, lost=()).out
    assert 'id="unfinished"' not in render_html(report_data(out), [])


def test_the_state_of_the_page_has_no_path_of_this_machine(out: Path, text: str) -> None:
    assert str(out) not in text


def test_ids_are_unique_and_links_lead_to_them(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for link in page.all("a"):
        assert str(link["href"]).removeprefix("#") in ids


def test_synthetic_pairs_are_marked(page: Page) -> None:
    assert "drishti_gs → synthetic_a §" in page.text("td")
    assert "drishti_gs → rim_one_r3 §" not in page.text("td")
    assert "synthetic images, not of patients" in page.text("p")


# -- self-contained ---------------------------------------------------------------------------


def test_nothing_on_the_page_leaves_the_file(text: str, page: Page) -> None:
    assert not re.search(r"https?://|//[a-z]+\.[a-z]|@import|url\(", text)
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert str(policy).startswith("default-src 'none'")
    assert "unsafe" not in str(policy)


def test_figures_are_embedded_with_alternative_text(tmp_path: Path) -> None:
    small = {**SMALL, "methods": ("source_only", "dpl"), "pairs": PAIRS[1:], "lost": ()}
    out = RichStore(tmp_path / "store", **small).out
    path = write_html(out)
    assert path == out / "report.html"
    page = Page(path.read_text("utf-8"))
    images = page.all("img")
    assert len(images) == len(list((out / "figures").glob("*.png")))
    for image in images:
        assert str(image["src"]).startswith("data:image/png;base64,")
        assert image["alt"]
        assert int(str(image["width"])) > 300


# -- escaping ---------------------------------------------------------------------------------


def test_hostile_names_are_text_and_nothing_else(tmp_path: Path, page: Page) -> None:
    rename = {"DPL": HOSTILE, "none": HOSTILE, "out of memory": HOSTILE}
    rename["rim_one_r3"] = HOSTILE.replace("/", "")
    rename["99.9 % of the pixels count as reliable"] = HOSTILE
    out = RichStore(tmp_path / "store", **SMALL, rename=rename).out
    text = render_html(report_data(out), [])
    hostile = Page(text)
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in page.elements]
    assert HOSTILE in hostile.text("button")
    assert HOSTILE in hostile.text("code")
    cell = cells_of(text)[digest("dpl", PAIRS[0], 0)]
    assert cell["sections"]["Cell"]["title"] == HOSTILE
    assert cell["sections"]["Method settings"]["note"] == HOSTILE
    assert list(cell["sections"]["Warnings"].values()) == [HOSTILE]


def test_what_json_cannot_say_becomes_text(tmp_path: Path) -> None:
    out = RichStore(tmp_path / "store", **SMALL).out
    path = next((out / "cells/dpl").rglob("cell.json"))
    record = json.loads(path.read_text("utf-8"))
    record["config"] = {"margin": float("inf"), "gap": float("nan"), "list": [1, None]}
    path.write_text(json.dumps(record), "utf-8")
    cell = cells_of(render_html(report_data(out), []))[record["key"]]
    assert cell["sections"]["Method settings"] == {"margin": "inf", "gap": "nan", "list": [1, None]}


# -- bytes ------------------------------------------------------------------------------------


def test_shuffled_rows_and_another_folder_change_no_byte(tmp_path: Path) -> None:
    small = {**SMALL, "methods": ("source_only", "dpl"), "pairs": PAIRS[:1]}
    straight = RichStore(tmp_path / "a", **small).out
    shuffled = RichStore(tmp_path / "elsewhere" / "b", **small, shuffle=5).out
    pages = [render_html(report_data(out), []) for out in (straight, shuffled)]
    assert pages[0] == pages[1]


# -- crops whose position comes from labels ------------------------------------------------------


def test_the_page_marks_pairs_cut_out_by_labels_wherever_it_names_them(
    tmp_path: Path, text: str
) -> None:
    out = RichStore(tmp_path / "store", **SMALL).out
    path = out / "plans" / "last.json"
    plan = json.loads(path.read_text("utf-8"))
    for cell in plan["cells"]:
        cell["positions_from_labels"] = (cell["source"], cell["target"]) == PAIRS[0]
    path.write_text(json.dumps(plan), "utf-8")
    marked = render_html(report_data(out), [])
    page = Page(marked)
    for key, cell in cells_of(marked).items():
        assert ("drishti_gs → rim_one_r3 ¶" in cell["name"]) == ("rim_one_r3" in cell["name"]), key
    options = [text for tag, text in page.texts if tag == "option"]
    values = {attributes.get("value") for attributes in page.all("option")}
    assert "drishti_gs → rim_one_r3 ¶" in options
    assert "drishti_gs → synthetic_a" in options
    assert "drishti_gs → rim_one_r3" in values, "rows are filtered by the plain name"
    assert "have crops centred on annotated discs: position comes from labels" in marked
    assert "¶" not in text

"""The page in a real browser, from ``file://``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sfuda_bench.report import style
from sfuda_bench.report.figures import SavedFigure
from sfuda_bench.report.figures_data import load
from sfuda_bench.report.figures_scores import heat_map
from sfuda_bench.report.html import render_html
from sfuda_bench.report.html_data import report_data
from tests.report.rich_store import RichStore, digest

PAIRS = (("drishti_gs", "rim_one_r3"), ("drishti_gs", "synthetic_a"))
HOSTILE = "<img src=x onerror=\"document.title='broken'\">"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="Chromium is not installed"),
]
webdriver: Any = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with one figure: the others look alike to a browser and take long to draw."""
    store = RichStore(
        tmp_path_factory.mktemp("browser") / "store",
        methods=("source_only", "entropy_min", "dpl", "upper"),
        pairs=PAIRS,
        images=5,
        profiles=("standard",),
        rename={"none": HOSTILE, "DPL": f"DPL {HOSTILE}"},
    )
    with style.figure_style():
        png = style.encode(heat_map(load(store.out)), "png")
    picture = store.out / "heatmap.png"
    picture.write_bytes(png)
    figure = SavedFigure("Overview", "Mean Dice", "A caption.", (picture,))
    path = store.out / "report.html"
    path.write_text(render_html(report_data(store.out), [figure]), "utf-8")
    return path


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(executable_path=DRIVER)
    made = webdriver.Chrome(options=options, service=service)
    yield made
    made.quit()


@pytest.fixture
def page(driver: Any, file: Path) -> Iterator[Any]:
    """The page, freshly loaded at desktop size; afterwards its console must be empty."""
    driver.get_log("browser")
    resize(driver, 1280, 900)
    driver.get(file.as_uri())
    yield driver
    assert driver.get_log("browser") == []
    assert driver.title == "sfuda-bench report"


def resize(driver: Any, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def one(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def column(driver: Any, number: int) -> list[str]:
    """Return the data of one column of the rows that are shown, from top to bottom."""
    script = (
        "return [...document.querySelectorAll('[data-table] tbody tr:not([hidden])')]"
        ".map(row => row.cells[arguments[0]].dataset.value ?? row.cells[arguments[0]].innerText)"
    )
    values: list[str] = driver.execute_script(script, number)
    return values


def test_a_column_sorts_both_ways_and_back_with_missing_values_last(page: Any) -> None:
    before = column(page, 2)
    assert before.count("") == 3
    head = one(page, 'button[data-sort="2"]')
    for reverse in (True, False):  # Dice: the best first
        head.click()
        values = column(page, 2)
        numbers = [float(value) for value in values[:-3]]
        assert numbers == sorted(numbers, reverse=reverse)
        assert values[-3:] == [""] * 3
        state = one(page, "thead th:nth-child(3)[aria-sort]").get_attribute("aria-sort")
        assert state == ("descending" if reverse else "ascending")
    head.click()
    assert column(page, 2) == before


def test_a_distance_sorts_its_smallest_first(page: Any) -> None:
    one(page, 'button[data-sort="5"]').click()
    numbers = [float(value) for value in column(page, 5) if value]
    assert numbers == sorted(numbers)


def test_rows_are_filtered_by_text_pair_and_oracle(page: Any) -> None:
    assert len(column(page, 0)) == 12  # 4 methods in 2 pairs and their average
    one(page, "[data-filter]").send_keys("source SYNTH")
    assert column(page, 1) == ["Source only"]
    assert one(page, "[data-count]").text == "1 of 12 rows"
    one(page, "[data-filter]").clear()
    one(page, "[data-filter]").send_keys(" ")
    assert len(column(page, 0)) == 12
    one(page, "input[data-oracle]").click()
    assert len(column(page, 0)) == 9
    one(page, "select[data-pair] option:nth-child(2)").click()
    assert set(column(page, 0)) == {"drishti_gs → rim_one_r3"}
    assert len(column(page, 0)) == 3


def test_enter_in_the_filter_leaves_the_page_alone(page: Any) -> None:
    address = page.current_url
    one(page, "[data-filter]").send_keys("dpl\n")
    assert page.current_url == address
    assert len(column(page, 0)) == 3


def test_a_number_is_one_click_from_its_cells(page: Any) -> None:
    key = digest("dpl", PAIRS[0], 0)
    one(page, f'tr[data-keys^="{key}"] td[data-label] button').click()
    dialog = one(page, "dialog")
    assert dialog.is_displayed()
    assert one(page, "#details-title").text == "2 cells"
    one(page, "#details-body summary").click()
    shown = dialog.text
    for expected in (key, "offline", "S0", "99.9 % of the pixels", digest("rim_one_r3", 0), "lr"):
        assert expected in shown
    assert HOSTILE in shown  # as text: nothing was loaded, the title is unchanged
    assert not page.find_elements("css selector", "dialog img")
    one(page, "#close").click()
    assert not dialog.is_displayed()


def test_a_failed_cell_opens_with_its_traceback(page: Any) -> None:
    one(page, "#unfinished button").click()
    assert "Traceback" in one(page, "dialog pre").text
    one(page, "dialog").send_keys("\ue00c")  # the Escape key
    assert not one(page, "dialog").is_displayed()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    resize(page, width, 800)
    script = "return document.documentElement.scrollWidth"
    assert page.execute_script(script) <= width


def test_a_phone_shows_rows_as_cards_that_sort_by_a_list(page: Any) -> None:
    resize(page, 390, 844)
    assert not one(page, "thead").is_displayed()
    choice = one(page, "[data-sort-by]")
    assert choice.is_displayed()
    choice.find_element("css selector", 'option[value="2"]').click()
    numbers = [float(value) for value in column(page, 2) if value]
    assert numbers == sorted(numbers, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_both_schemes(page: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    text, ground = (
        page.execute_script(f"return getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    assert contrast(text, ground) > 7
    assert (luminance(ground) < 0.5) == (scheme == "dark")


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one_colour: str, other: str) -> float:
    low, high = sorted((luminance(one_colour), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_images_are_shown_and_no_request_leaves_the_file(driver: Any, file: Path) -> None:
    import json

    driver.get_log("performance")
    driver.get(file.as_uri())
    loaded = driver.execute_script(
        "for (const i of document.images) i.loading = 'eager';"
        "return Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))"
    )
    assert loaded
    assert all(width > 300 for width in loaded)
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    requests = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in requests if not url.startswith("data:")} == {file.as_uri()}

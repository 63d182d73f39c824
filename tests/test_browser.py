"""The reports in a real browser: WCAG AA by axe, phone and desktop, light, dark and paper.

Chromium and its driver come from the system (Debian: chromium, chromium-driver). Where they are
missing the tests are skipped, unless BAYESMOE_BROWSER says "required".
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from fabricated_fit import HOSTILE, hostile, make_comparison
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from test_report import make_plan, make_study

from bayesmoe.report.compare_figure import compare_figure
from bayesmoe.report.compare_html import render_comparison
from bayesmoe.report.figures import study_figures
from bayesmoe.report.fit_figures import fit_figures
from bayesmoe.report.fit_html import render_fit
from bayesmoe.report.gallery import Picture, render_gallery
from bayesmoe.report.html import render_study

pytestmark = pytest.mark.slow

WIDTHS = {"phone": 390, "desktop": 1280}
PAGES = ("study", "fit", "comparison", "gallery")


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        message = "no browser: install chromium and chromedriver (Debian: chromium-driver)"
        if os.environ.get("BAYESMOE_BROWSER") == "required":
            pytest.fail(message)
        pytest.skip(message)
    options = ChromeOptions()
    options.binary_location = programs[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(programs[1]))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where the pages of a study, of a fit with hostile names and of a gallery are."""
    directory = tmp_path_factory.mktemp("pages")
    gates, sizes = ["softmax", "dense_to_sparse"], [300, 1000, 3000]
    study = make_study(make_plan(gates=gates, n_experts=[2, 3], sizes=sizes, replicates=3))
    drawn = study_figures(study.results, study.slopes)
    shown = [
        Picture(
            name, name, "What it shows.", "bayesmoe study run quick --out results/quick", figure
        )
        for name, figure in drawn.items()
    ]
    stored, compared = hostile(), make_comparison(names=("u", HOSTILE))
    pages = {
        "study": render_study(study.results, study.slopes, study.counts, drawn),
        "fit": render_fit(stored, fit_figures(stored.analysis)),
        "comparison": render_comparison(compared, compare_figure(compared.comparison)),
        "gallery": render_gallery(shown),
    }
    return {name: _written(directory / f"{name}.html", page) for name, page in pages.items()}


def _written(path: Path, page: str) -> str:
    path.write_text(page, encoding="utf-8")
    return path.as_uri()


Show = Callable[..., Chrome]


@pytest.fixture
def show(browser: Chrome, addresses: dict[str, str]) -> Show:
    """Opens a page as a device would show it."""

    def opened(page: str, width: str = "desktop", scheme: str = "light", media: str = "") -> Chrome:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": WIDTHS[width], "height": 800, "deviceScaleFactor": 1,
             "mobile": width == "phone"},
        )  # fmt: skip
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"media": media, "features": [feature]}
        )
        browser.get(addresses[page])
        return browser

    return opened


@pytest.mark.parametrize(("width", "scheme"), [("phone", "dark"), ("desktop", "light")])
@pytest.mark.parametrize("page", PAGES)
def test_pages_pass_wcag_aa(show: Show, page: str, width: str, scheme: str) -> None:
    driver = show(page, width, scheme)
    dark = driver.execute_script("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    for table in driver.find_elements("css selector", "table[data-sortable]"):
        head = table.find_element("css selector", "thead th:nth-child(2)")
        head.find_element("css selector", "button").click()
        assert head.get_attribute("aria-sort") == "ascending"
    driver.execute_script(files("axe_core_python").joinpath("axe.min.js").read_text())
    found = driver.execute_async_script(
        "axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})"
        ".then(arguments[arguments.length - 1])"
    )
    assert "color-contrast" in [rule["id"] for rule in found["passes"]]
    assert [_told(violation) for violation in found["violations"]] == []


def _told(violation: dict[str, Any]) -> str:
    where = [node["html"][:80] for node in violation["nodes"]]
    return f"{violation['impact']} {violation['id']}: {violation['help']} at {where}"


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_pages_fit_the_width_and_load_nothing(show: Show, page: str, width: str) -> None:
    driver = show(page, width)
    assert driver.execute_script("return window.innerWidth") == WIDTHS[width]
    needed, room = driver.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    )
    assert needed == room
    pictures = driver.execute_script("return [...document.images].map((i) => i.naturalWidth)")
    assert len(pictures) >= (1 if page == "comparison" else 2)
    assert min(pictures) > 0
    loaded = driver.execute_script(
        "return performance.getEntriesByType('resource').map(e => e.name)"
    )
    assert [name for name in loaded if not name.startswith("data:")] == []
    assert driver.get_log("browser") == []


# after each press of each heading: its column, the states told of all, and the rows: by what each
# cell sorts, whether it is of a column of numbers, and what it shows
_PRESS = """
const table = arguments[0], heads = [...table.tHead.rows[0].cells], after = [];
for (const [i, head] of heads.entries()) {
  for (const button of head.querySelectorAll("button")) {
    for (const order of ["ascending", "descending"]) {
      button.click();
      after.push([i, order, heads.map((th) => th.getAttribute("aria-sort")),
        [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => [
          cell.dataset.value ?? cell.innerText, cell.classList.contains("number"),
          cell.innerText]))]);
    }
  }
}
return after"""


@pytest.mark.parametrize(
    ("page", "width", "without"),
    [
        ("study", "desktop", [0, 0, 2]),
        ("fit", "desktop", [0, 1, 0, 0]),
        ("fit", "phone", [0, 1, 0, 0]),
        ("comparison", "desktop", [0, 1]),
    ],
)
def test_tables_sort_both_ways(show: Show, page: str, width: str, without: list[int]) -> None:
    """``without``: how many columns of each table have no order."""
    driver = show(page, width)
    tables = driver.find_elements("css selector", "table[data-sortable]")
    assert len(tables) == len(without)
    for table, left_out in zip(tables, without, strict=True):
        after = driver.execute_script(_PRESS, table)
        heads = len(after[0][2])
        assert [at for at, *_ in after[::2]] == list(range(heads - left_out))
        rows = sorted([shown for *_, shown in row] for row in after[0][3])
        assert len(rows) > 2
        for at, order, states, sorted_rows in after:
            assert states == [order if i == at else None for i in range(heads)]
            assert sorted([shown for *_, shown in row] for row in sorted_rows) == rows
            values = [_order(*row[at][:2]) for row in sorted_rows if row[at][0]]
            assert values == sorted(values, reverse=order == "descending")
            assert not any(row[at][0] for row in sorted_rows[len(values) :]), "empty ones are last"


def _order(value: str, number: bool) -> tuple[float, str]:
    """What a column is sorted by; one of numbers by nothing else."""
    try:
        return float(value), ""
    except ValueError:
        assert not number, value
        return 0.0, value.casefold()


def test_numbers_in_names_sort_as_numbers(show: Show) -> None:
    names = show("fit").execute_script(
        "const table = document.querySelector('table[data-sortable]');"
        "const rows = table.tBodies[0].rows;"
        "['x[10]', 'x[9]'].forEach((name, i) => { rows[i].cells[0].textContent = name; });"
        "table.querySelector('thead button').click();"
        "return [...rows].map((row) => row.cells[0].textContent)"
    )
    assert names[-2:] == ["x[9]", "x[10]"]


@pytest.mark.parametrize("page", PAGES)
def test_on_paper_nothing_is_cut_off_and_dark_is_left_behind(show: Show, page: str) -> None:
    driver = show(page, scheme="dark", media="print")
    paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)"
    cut = driver.execute_script(
        "return [...document.querySelectorAll('.scroll, .plate')].filter("
        "(box) => getComputedStyle(box).overflowY !== 'visible').length"
    )
    assert cut == 0

"""The report as a reader meets it: opened in headless Chromium, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from prefixlab.bench.report.html.page import report
from tests.bench.report.html.runs import HOSTILE, a_large_run, a_run, a_sweep

pytestmark = pytest.mark.service
MAX_BYTES = 10_000_000

# The contrast of every piece of text with what is behind it, by WCAG 2.1.
CONTRASTS = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => {
    const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((v) => linear(v / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = parse(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] === 1) return found;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || ["SCRIPT", "STYLE", "OPTION"].includes(node.tagName)) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(`${node.tagName}.${node.className}: ${ratio.toFixed(2)}`);
  }
  return poor;
}
"""
# How many colours there are on each canvas: one is a blank.
COLOURS = """
() => [...document.querySelectorAll("canvas")].filter((canvas) => canvas.checkVisibility()).map((canvas) => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
})
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.fail("these tests need Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Reader:
    """A page, and all that went wrong on it or left it."""

    def __init__(self, browser: Browser, file: Path, **context: Any) -> None:
        self.trouble: list[str] = []
        self.page: Page = browser.new_context(**context).new_page()
        self.page.on("console", lambda message: self._said(message.text))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", self._asked)
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-drawn]")

    def _said(self, words: str) -> None:
        if "getImageData" not in words:  # of our own looking at canvases
            self.trouble.append(words)

    def _asked(self, request: Any) -> None:
        if request.resource_type != "document":
            self.trouble.append(f"asked for {request.url}")

    def close(self) -> None:
        self.page.context.close()
        assert self.trouble == []


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    file = folder / "report.html"
    file.write_text(report([a_sweep(folder / "sweep")]), encoding="utf-8")
    return file


@pytest.fixture
def reader(browser: Browser, sweep: Path) -> Iterator[Reader]:
    reader = Reader(browser, sweep)
    yield reader
    reader.close()


def shades(reader: Reader) -> list[int]:
    reader.page.wait_for_function(
        "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )
    found: list[int] = reader.page.evaluate(COLOURS)
    return found


def test_everything_is_drawn_without_an_error_or_a_request(reader: Reader) -> None:
    drawn = shades(reader)
    assert len(drawn) == 5 + 4 + 2 + 2
    assert min(drawn) > 5


def test_a_hostile_name_stays_text(browser: Browser, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", failed=1, label=HOSTILE, model_id=HOSTILE, notes=[HOSTILE])
    file = tmp_path / "report.html"
    file.write_text(report([run]), encoding="utf-8")
    reader = Reader(browser, file)
    assert HOSTILE in reader.page.locator("h1").inner_text()
    assert HOSTILE in reader.page.locator("[data-legend-of=cdf-ttft]").inner_text()
    assert reader.page.title() != "broken"
    assert reader.page.locator("img").count() == 0
    reader.close()


def test_a_script_that_gets_in_all_the_same_does_not_run(
    browser: Browser, sweep: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tampered.html"
    tampered = "<script>document.title = 'broken'</script><img src='http://127.0.0.1:1/x.png'></main>"
    file.write_text(sweep.read_text(encoding="utf-8").replace("</main>", tampered), encoding="utf-8")
    reader = Reader(browser, file)
    assert reader.page.title() != "broken"
    assert sum("violates the following Content Security Policy" in words for words in reader.trouble) == 2
    reader.trouble.clear()
    reader.close()


def test_a_chart_answers_to_the_keyboard(reader: Reader) -> None:
    place = reader.page.locator("[data-chart=curve-ttft]")
    readout = reader.page.locator("[data-readout-of=curve-ttft]")
    place.focus()
    place.press("ArrowRight")
    assert readout.inner_text().startswith("max-concurrency 1:")
    place.press("ArrowRight")
    assert readout.inner_text().startswith("max-concurrency 2:")


def test_a_line_can_be_hidden_and_shown(reader: Reader) -> None:
    button = reader.page.locator("[data-legend-of=curve-ttft] button").first
    before = shades(reader)
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert shades(reader) != before
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert shades(reader) == before


def test_all_pictures_of_a_run_share_one_zoom(reader: Reader) -> None:
    shown = reader.page.locator("#time-range")
    full = shown.inner_text()
    lanes = reader.page.locator("#raster-lanes")
    lanes.press("+")
    assert shown.inner_text() != full
    lanes.press("0")
    assert shown.inner_text() == full
    chart = reader.page.locator("[data-time-chart=time-flight] .plot")
    chart.press("+")
    assert shown.inner_text() != full
    reader.page.get_by_role("button", name="Show all of the run").click()
    assert shown.inner_text() == full


def test_a_request_under_the_pointer_is_told(reader: Reader) -> None:
    lanes = reader.page.locator("#raster-lanes")
    lanes.scroll_into_view_if_needed()
    lanes.hover(position={"x": 400, "y": 12})
    words = reader.page.locator("#raster-lanes-readout").inner_text()
    assert words.startswith("r") and "TTFT" in words and "ok" in words


def test_another_run_can_be_chosen(reader: Reader) -> None:
    before = reader.page.locator("#time-range").inner_text()
    reader.page.locator("#time-run").select_option(label="max-concurrency 8")
    assert reader.page.locator("#time-range").inner_text() != before
    assert "8 lanes" in reader.page.locator("#raster-lanes-about").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: Browser, sweep: Path, scheme: str) -> None:
    reader = Reader(browser, sweep, color_scheme=scheme, reduced_motion="reduce")
    reader.page.evaluate("for (const of of document.querySelectorAll('details')) of.open = true")
    assert reader.page.evaluate(CONTRASTS) == []
    reader.close()


def test_the_theme_can_be_switched(reader: Reader) -> None:
    def paper() -> str:
        return str(reader.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = paper()
    reader.page.locator("#theme").click()
    assert paper() != before
    assert min(shades(reader)) > 5


def test_headings_are_in_order_and_everything_has_a_name(reader: Reader) -> None:
    levels = reader.page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3')].map((of) => Number(of.tagName[1]))"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for role in ("button", "img", "region", "link"):
        for found in reader.page.get_by_role(role).all():
            named = (
                found.get_attribute("aria-label")
                or found.get_attribute("aria-labelledby")
                or found.inner_text()
            )
            assert named.strip(), found


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_page_is_wider_than_its_window(browser: Browser, sweep: Path, width: int) -> None:
    reader = Reader(browser, sweep, viewport={"width": width, "height": 800})
    assert reader.page.evaluate("document.documentElement.scrollWidth") <= width
    reader.close()


def test_on_paper_it_is_light_unfolded_and_as_it_was_afterwards(browser: Browser, sweep: Path) -> None:
    reader = Reader(browser, sweep, color_scheme="dark")
    told = "addEventListener('beforeprint', () => { window.seen = ["
    told += (
        "document.querySelectorAll('details:not([open])').length, document.documentElement.dataset.theme] })"
    )
    reader.page.evaluate(told)
    folded = reader.page.locator("details:not([open])").count()
    assert reader.page.pdf(format="A4").startswith(b"%PDF")
    assert reader.page.evaluate("window.seen") == [0, "light"]
    assert reader.page.locator("details:not([open])").count() == folded
    assert reader.page.evaluate("document.documentElement.dataset.theme") is None
    reader.close()


def test_a_hundred_thousand_requests_fit_and_open(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(report([a_large_run(tmp_path / "run", 100_000)]), encoding="utf-8")
    assert file.stat().st_size < MAX_BYTES
    reader = Reader(browser, file)
    opened_ms = reader.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    print(f"100,000 requests: {file.stat().st_size / 1e6:.1f} MB, open after {opened_ms / 1e3:.2f} s")
    assert "100,000 requests in" in reader.page.locator("#raster-lanes-about").inner_text()
    assert min(shades(reader)) > 5
    reader.close()


def test_words_along_an_axis_do_not_run_into_each_other(reader: Reader) -> None:
    kept = reader.page.evaluate(
        """
        () => {
          const x = [31.96, 42.34, 43.59, 44.99, 45.5, 46.01, 47.48, 131.2];
          const chart = { x, full: [31.96, 131.2], spec: { ticks: x.map(String) } };
          return LineChart.prototype.readable.call(chart, { width: 600 }, false);
        }
        """
    )
    assert kept == [31.96, 42.34, 131.2]

"""The page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from made_runs import make_sweep
from relgan.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: make browser")

LOSSES = ["sgan", "lsgan", "hinge", "rsgan", "ragan", "ralsgan"]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six losses on one data set, two seeds."""
    root = tmp_path_factory.mktemp("report")
    return write_report([make_sweep(root / "sweep", LOSSES, ["stacked_digits"], 2)], root)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Visit:
    """One page load that keeps whatever went wrong."""

    def __init__(self, browser: Any, path: Path, size: str = "desktop", **options: Any) -> None:
        width, height = SIZES[size]
        self.page = browser.new_page(viewport={"width": width, "height": height}, **options)
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def count(self, selector: str) -> int:
        return int(self.page.locator(selector).count())


@pytest.fixture
def visit(browser: Any, report: Path) -> Iterator[Visit]:
    made = Visit(browser, report)
    yield made
    assert made.problems == []
    made.page.close()


def test_every_variant_is_in_every_chart(visit: Visit) -> None:
    page = visit.page
    curves = page.locator(".panel svg.chart")
    assert curves.count() == 3  # a score each, one data set
    for i in range(curves.count()):
        assert curves.nth(i).locator(".line").count() == len(LOSSES)
        assert curves.nth(i).locator(".band").count() == len(LOSSES)
    probabilities = page.locator(".charts.small svg.chart")
    assert probabilities.count() == len(LOSSES)
    assert probabilities.first.locator(".line").count() == 2
    gradients = page.locator(".training .charts:not(.small) svg.chart")
    assert [gradients.nth(i).locator(".line").count() for i in range(3)] == [len(LOSSES)] * 3
    # The penalty of those that have one, and both logits.
    without = LOSSES.index("sgan")
    assert gradients.nth(3).locator(".line").count() == len(LOSSES) - 1
    assert gradients.nth(3).locator(f'[data-variant="{without}"].line').count() == 0
    assert [gradients.nth(i).locator(".line").count() for i in (4, 5)] == [len(LOSSES)] * 2
    assert all(not url.startswith("http") for url in visit.requests)


def test_a_variant_has_one_colour_everywhere(visit: Visit) -> None:
    colours = visit.page.evaluate("""() => [...document.querySelectorAll('[data-variant="4"].line')]
        .map(line => getComputedStyle(line).stroke)""")
    swatch = visit.page.evaluate("getComputedStyle(document.querySelector('.legend .s4')).backgroundColor")
    assert set(colours) == {swatch}
    assert len(colours) == 3 + 2 + 6


def test_the_slider_changes_every_picture_by_keyboard(visit: Visit) -> None:
    page = visit.page
    shown = page.locator(".card[data-variant] .stage:visible")
    assert shown.all_inner_texts()[-1] == "2,000 updates"
    page.focus("#stage")
    for step in ("1,500", "1,000", "500", "0"):
        page.keyboard.press("ArrowLeft")
        texts = set(shown.all_inner_texts())
        # The failed and the diverged run have no later pictures than those of their last quarter.
        assert f"{step} updates" in texts
    assert texts == {"0 updates"}
    assert page.get_attribute("#stage", "aria-valuetext") == "Start"
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_a_picture_can_be_enlarged_and_closed_by_keyboard(visit: Visit) -> None:
    visit.page.locator(".stage:visible").first.press("Enter")
    assert visit.page.locator("dialog img").is_visible()
    visit.page.keyboard.press("Escape")
    assert not visit.page.locator("dialog").is_visible()


def test_the_legend_hides_a_variant_everywhere(visit: Visit) -> None:
    button = visit.page.locator(".legend button").nth(1)
    button.press("Space")
    assert button.get_attribute("aria-pressed") == "false"
    assert visit.count('[data-variant="1"]:visible') == 0
    button.press("Space")
    assert visit.count('[data-variant="1"]:visible') > 5


def test_scores_are_chosen_by_keyboard(visit: Visit) -> None:
    page = visit.page
    page.focus("#score0")
    page.keyboard.press("ArrowRight")
    assert page.locator(".panel:visible h3").inner_text().startswith("Modes")
    assert page.locator(".panel:visible .best").count() == 1


def test_values_can_be_read_by_pointer_and_by_arrow_keys(visit: Visit) -> None:
    page = visit.page
    chart = page.locator(".panel:visible svg.chart")
    chart.hover(position={"x": 100, "y": 60})
    lines = page.locator("#readout").inner_text().splitlines()
    assert "updates" in lines[0]
    assert sum(name in lines for name in LOSSES) == len(LOSSES)
    chart.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#readout").inner_text().startswith("Fréchet distance (digits) at 2,000 updates")
    page.keyboard.press("Escape")
    assert not page.locator("#readout").is_visible()


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "dark"), ("phone", "light")])
def test_it_fits_the_screen_and_can_be_read(browser: Any, report: Path, size: str, scheme: str) -> None:
    visit = Visit(browser, report, size, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    clipped = visit.page.evaluate("""() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
        const frame = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(text => {
            const box = text.getBoundingClientRect();
            const outside = Math.max(frame.left - box.left, box.right - frame.right, box.bottom - frame.bottom);
            return box.width && outside > 1;
        }).map(text => text.textContent);
    })""")
    assert clipped == []
    contrast = visit.page.evaluate("""() => {
        const light = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
            .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const page = light(getComputedStyle(document.body).backgroundColor);
        const ratio = colour => (Math.max(light(colour), page) + .05) / (Math.min(light(colour), page) + .05);
        const lines = [...document.querySelectorAll('.line')].map(line => ratio(getComputedStyle(line).stroke));
        return [Math.min(...lines), ratio(getComputedStyle(document.querySelector('.muted')).color)];
    }""")
    assert contrast[0] >= 3  # WCAG 2: graphics
    assert contrast[1] >= 4.5  # text
    assert visit.problems == []
    visit.page.close()


def test_print_shows_what_clicks_would(browser: Any, report: Path) -> None:
    visit = Visit(browser, report)
    visit.page.emulate_media(media="print")
    assert visit.count(".panel:visible") == 3
    assert visit.count('.card[data-variant="4"] .stage:visible') == 5
    assert visit.count(".legend button:visible") == len(LOSSES)
    assert len(visit.page.pdf(format="A4")) > 10_000
    visit.page.close()


def test_a_hundred_runs(browser: Any, tmp_path: Path) -> None:
    losses = [*LOSSES, "rhinge", "rahinge", "rlsgan", "wgan"]
    make_sweep(tmp_path / "sweep", losses, ["stacked_digits", "cifar10"], 5, log_every=5)
    started = time.process_time()  # not what other programs take
    page = write_report([tmp_path / "sweep"], tmp_path)
    generated = time.process_time() - started
    loads = [_load(browser, page) for _ in range(3)]
    print(f"100 runs: written in {generated:.1f} s, {page.stat().st_size / 1e6:.1f} MB, loaded in {min(loads):.1f} s")
    assert generated < 20
    assert min(loads) < 3


def _load(browser: Any, page: Path) -> float:
    """Seconds until the page of a hundred runs has been painted."""
    started = time.perf_counter()
    visit = Visit(browser, page)
    visit.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    seconds = time.perf_counter() - started
    assert visit.count("#runs tr.job") == 100
    assert visit.problems == []
    visit.page.close()
    return seconds

"""The page in a real browser: Debian's chromium, driven by playwright."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

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
    curves = page.locator(".panel .answers > figure svg.chart")
    assert curves.count() == 3  # a score each, one data set
    for i in range(curves.count()):
        assert curves.nth(i).locator(".line").count() == len(LOSSES)
        assert curves.nth(i).locator(".band").count() == len(LOSSES)
    dots = page.locator(".panel .dots")
    assert [dots.nth(i).locator("g").count() for i in range(3)] == [len(LOSSES)] * 3
    assert dots.first.locator(".seed").count() == 2 * len(LOSSES) - 2  # one diverged, one failed
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


def test_the_first_screen_answers(visit: Visit) -> None:
    answer = visit.page.locator(".panel:visible .verdict")
    assert "has the lowest mean Fréchet distance (digits)" in answer.inner_text()
    assert "seeds cannot tell it from" in answer.inner_text()
    meaning = "Distance from the real images: Fréchet distance of features; lower is better."
    assert visit.page.locator(".panel:visible").get_by_text(meaning, exact=True).is_visible()
    for part in (answer, visit.page.locator(".panel:visible .dots")):
        box = part.bounding_box()
        assert box["y"] + box["height"] < SIZES["desktop"][1]


def test_a_variant_has_one_colour_everywhere(visit: Visit) -> None:
    colours = visit.page.evaluate("""() => [...document.querySelectorAll('[data-variant="4"].line')]
        .map(line => getComputedStyle(line).stroke)""")
    swatch = visit.page.evaluate("getComputedStyle(document.querySelector('.legend .s4')).backgroundColor")
    assert set(colours) == {swatch}
    assert len(colours) == 3 + 2 + 6


def test_the_slider_changes_every_picture_by_keyboard(visit: Visit) -> None:
    page = visit.page
    shown = page.locator(".card[data-variant] .stage:visible")
    assert shown.all_inner_texts()[-1] == "2,000 updates, seed 1"
    page.focus("#stage")
    for step in ("1,500", "1,000", "500", "0"):
        page.keyboard.press("ArrowLeft")
        texts = set(shown.all_inner_texts())
        # The failed and the diverged run have no later pictures than those of their last quarter.
        assert f"{step} updates, seed 1" in texts
    assert texts == {"0 updates, seed 1"}
    assert page.get_attribute("#stage", "aria-valuetext") == "Start"
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")


def test_a_picture_can_be_enlarged_and_closed_by_keyboard(visit: Visit) -> None:
    visit.page.locator(".stage:visible").first.press("Enter")
    image = visit.page.locator("dialog img")
    assert image.is_visible()
    scale = image.evaluate("image => image.width / image.naturalWidth")
    assert scale == int(scale) > 1  # each of its pixels is as wide as the next
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
    assert page.locator(".panel:visible h3").first.inner_text().startswith("Modes")
    assert "has the highest mean Modes" in page.locator(".panel:visible .verdict").inner_text()


def test_values_and_bands_can_be_read_by_pointer_and_by_arrow_keys(visit: Visit) -> None:
    page = visit.page
    chart = page.locator(".panel:visible .answers > figure svg.chart")
    chart.hover(position={"x": 200, "y": 90})
    lines = page.locator("#readout").inner_text().splitlines()
    assert "updates" in lines[0]
    assert sum(name in lines for name in LOSSES) == len(LOSSES)
    assert sum(" to " in line for line in lines) == len(LOSSES)
    page.mouse.move(0, 0)
    chart.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#readout").inner_text().startswith("Fréchet distance (digits) at 2,000 updates")
    page.keyboard.press("Escape")
    assert not page.locator("#readout").is_visible()


def ticks(chart: Any) -> list[str]:
    return list(chart.locator("text.x:not(.name)").all_text_contents())


def test_a_chart_is_zoomed_by_dragging_and_back_by_a_double_click(visit: Visit) -> None:
    chart = visit.page.locator(".panel:visible .answers > figure svg.chart")
    whole = ticks(chart)
    box = chart.bounding_box()
    y = box["y"] + box["height"] / 2
    visit.page.mouse.move(box["x"] + box["width"] * 0.5, y)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + box["width"] * 0.8, y, steps=3)
    visit.page.mouse.up()
    (low, *_, high) = [float(text) for text in ticks(chart)]
    # The middle of the picture is at 0.5·420 of 46 to 398 pixels, which are 0 to 2,000 updates.
    assert low == pytest.approx((0.5 * 420 - 46) / 352 * 2000, rel=0.02)
    assert high == pytest.approx((0.8 * 420 - 46) / 352 * 2000, rel=0.02)
    # The other axis is logarithmic, and shows what lies there.
    texts = chart.locator("text.y")
    values = [math.log(float(text)) for text in texts.all_text_contents()]
    places = [float(texts.nth(i).get_attribute("y")) for i in range(len(values))]
    slopes = [(b - a) / (q - p) for (a, b), (p, q) in zip(pairwise(values), pairwise(places), strict=True)]
    assert slopes == pytest.approx([slopes[0]] * len(slopes), rel=0.05)
    assert all(60 < math.exp(value) < 350 for value in values)
    chart.hover(position={"x": box["width"] * 0.5, "y": box["height"] * 0.5})
    assert "at 1,250 updates" in visit.page.locator("#readout").inner_text()
    chart.dblclick()
    assert ticks(chart) == whole


def test_a_chart_is_zoomed_by_keyboard(visit: Visit) -> None:
    chart = visit.page.locator(".panel:visible .answers > figure svg.chart")
    whole = ticks(chart)
    chart.press("+")
    assert float(ticks(chart)[0]) == pytest.approx(500, rel=0.01)
    chart.press("0")
    assert ticks(chart) == whole


def test_a_chart_is_enlarged_with_its_read_out(visit: Visit) -> None:
    page = visit.page
    figure = page.locator(".panel:visible .answers > figure")
    small = figure.locator("svg.chart").bounding_box()["width"]
    figure.locator(".enlarge").focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog svg.chart")
    assert large.bounding_box()["width"] > 1.5 * small
    large.hover(position={"x": 500, "y": 90})
    assert "updates" in page.locator("dialog #readout").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert figure.locator("svg.chart").bounding_box()["width"] == small


def test_a_chart_is_saved_as_svg_with_colours_and_names(visit: Visit) -> None:
    page = visit.page
    page.locator(".legend button").first.press("Space")
    button = page.locator(".panel:visible .answers > figure .svg")
    button.focus()
    with page.expect_download() as downloaded:
        page.keyboard.press("Enter")
    assert downloaded.value.suggested_filename == "Fréchet_distance_digits_on_stacked_digits_over_generator_updates.svg"
    text = Path(downloaded.value.path()).read_text("utf-8")
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    names = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    shown = page.locator(".legend button").all_inner_texts()[1:]
    assert names[-len(shown) :] == shown
    lines = [each for each in root.iter("{http://www.w3.org/2000/svg}path") if "line" in each.get("class", "").split()]
    assert len(lines) == len(LOSSES)
    assert all("stroke: rgb(" in line.get("style") and "fill: none" in line.get("style") for line in lines)
    assert "display: none" in lines[0].get("style")
    page.locator(".legend button").first.press("Space")


def test_tables_are_copied(visit: Visit) -> None:
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    for place, (name, begins) in enumerate([("Markdown", "| Variant | Fréchet"), ("LaTeX", "% Mean ± standard")]):
        button = page.locator(".panel:visible .copy").nth(place)
        assert button.inner_text() == name
        button.click()
        page.wait_for_function("button => button.textContent === 'Copied'", arg=button.element_handle())
        assert page.evaluate("navigator.clipboard.readText()").startswith(begins)


def test_the_seed_of_the_samples_is_chosen(visit: Visit) -> None:
    page = visit.page
    shown = page.locator(".card[data-variant] .stage:visible")
    assert {text.split(", ")[-1] for text in shown.all_inner_texts()} == {"seed 1"}
    page.locator('[name="seed"][value="2"]').check()
    assert {text.split(", ")[-1] for text in shown.all_inner_texts()} == {"seed 2"}
    assert shown.count() == len(LOSSES)


def test_a_small_grid_has_whole_pixels(visit: Visit) -> None:
    shown = visit.page.evaluate("""() => [...document.querySelectorAll('.stage img')].filter(i => i.offsetWidth)
        .map(i => [i.width / i.naturalWidth, getComputedStyle(i).imageRendering])""")
    assert shown
    assert all(scale == 1 and way == "pixelated" for scale, way in shown)


def test_contents_lead_to_what_is_there(visit: Visit) -> None:
    targets = visit.page.evaluate("[...document.querySelectorAll('.contents a')].map(a => a.getAttribute('href'))")
    assert targets == ["#scores", "#samples", "#training0", "#settings", "#runs", "report.csv"]
    assert all(visit.count(target) == 1 for target in targets if target.startswith("#"))


def test_runs_are_linked(visit: Visit, report: Path) -> None:
    links = visit.page.evaluate("[...document.querySelectorAll('#runs a')].map(a => a.getAttribute('href'))")
    assert len(links) == 2 * len(LOSSES)
    assert all((report.parent / link / "config.yaml").exists() for link in links)


@pytest.mark.parametrize(("size", "scheme"), [("desktop", "dark"), ("phone", "light")])
def test_it_fits_the_screen_and_can_be_read(browser: Any, report: Path, size: str, scheme: str) -> None:
    visit = Visit(browser, report, size, color_scheme=scheme)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
    # A wide table scrolls within itself and keeps its first column.
    kept = visit.page.evaluate("""() => {
        const box = document.querySelector('.panel .scroll'), name = box.querySelector('tbody th');
        box.scrollLeft = 10000;
        return [box.scrollLeft, name.getBoundingClientRect().left - box.getBoundingClientRect().left];
    }""")
    assert kept[1] == 0
    assert kept[0] > 0 or size == "desktop"
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


@pytest.mark.slow
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
    assert not visit.page.locator("#runs table").is_visible()  # folded
    assert visit.problems == []
    visit.page.close()
    return seconds

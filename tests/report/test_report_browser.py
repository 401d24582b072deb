"""report.html in headless Chromium: nothing is loaded, nothing overflows, everything can be read."""

import shutil
from itertools import pairwise

import pytest
from report_samples import everything, sound, write_run

from ftengine.report.write import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (e.g. apt-get install chromium)", allow_module_level=True)
pytestmark = pytest.mark.slow  # a browser is several processes
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")

UNNAMED = """() => [...document.querySelectorAll('img, svg, [role=img]')].filter(e => !(e.getAttribute('alt')
    || e.getAttribute('aria-label') || e.querySelector(':scope > title')?.textContent)).length"""

SMALL_CONTRAST = """() => {
  const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, below) => { const a = top[3] ?? 1; return [0, 1, 2].map(i => top[i] * a + below[i] * (1 - a)); };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.map(v => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { const stack = [];
    for (; e; e = e.parentElement) stack.push(parse(getComputedStyle(e).backgroundColor));
    return stack.reverse().reduce((below, top) => over(top, below), [255, 255, 255]); };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !e.getClientRects().length || e.closest('title, .skip')) continue;
    const style = getComputedStyle(e), back = behind(e);
    const front = over(parse(e.closest('svg') ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.push([e.tagName, e.className.baseVal ?? e.className, ratio]);
  }
  return found;
}"""

OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip, svg') &&
    e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + '.' + e.className)"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        yield opened
        opened.close()


def wide():
    """Return the files of a run with a table of intervals and a large confusion matrix."""
    content, names = sound(), [f"a class {i}" for i in range(20)]
    cells = [f"0.9{i} (0.8{i} to 0.9{i})" for i in range(6)]
    table = {"title": "Labels", "columns": ["label", *names[:6]], "rows": [[name, *cells] for name in names]}
    matrix = {"title": "Confusion matrix", "names": names, "cells": [list(range(20))] * 20}
    more = {"row_label": "truth", "column_label": "answer", "caption": "Of all rows that were held out, that is."}
    content["evaluation"]["displays"] = {"base": [], "tuned": [table | {"caption": more["caption"]}, matrix | more]}
    return content


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    runs = [write_run(folder / "sound", sound()), write_run(folder / "everything", everything())]
    return {
        "sound": write_report(runs[:1], folder / "sound.html"),
        "everything": write_report(runs[1:], folder / "everything.html"),
        "both": write_report(runs, folder / "both.html"),
        "wide": write_report([write_run(folder / "wide", wide())], folder / "wide.html"),
        "eight": write_report([write_run(folder / f"run{i}", sound()) for i in range(8)], folder / "eight.html"),
    }


@pytest.fixture
def look(browser, files):
    """Open a page: look(name, width, scheme) returns it; what it loads, says and asks is checked at the end."""
    contexts, heard, asked = [], [], []

    def open_page(name, width=1200, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.on("dialog", lambda dialog: (heard.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(files[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert heard == []
    assert asked == [url for url in asked if url.startswith("file:") and url.endswith(".html")]
    assert len(asked) == len(contexts)


@pytest.mark.parametrize("name", ["sound", "everything", "both"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_quiet_fits_a_phone_and_can_be_read(look, name, scheme):
    page = look(name, width=360, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(UNNAMED) == 0
    assert page.evaluate(SMALL_CONTRAST) == []


TEXT_OUTSIDE = """[...document.querySelectorAll('svg.chart')].flatMap(svg => { const b = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(e => { const t = e.getBoundingClientRect();
        return t.left < b.left - 2 || t.right > b.right + 2 || t.top < b.top - 4 || t.bottom > b.bottom + 4;
    }).map(e => e.textContent); })"""
CUT_CAPTIONS = """[...document.querySelectorAll('.scroll caption')].filter(e => e.getClientRects().length).filter(e => {
    const range = document.createRange(); range.selectNodeContents(e);
    return range.getBoundingClientRect().right > e.closest('.scroll').getBoundingClientRect().right + 1;
}).map(e => e.textContent)"""
LINES_OF_CELLS = """Math.max(...[...document.querySelectorAll('.display td:not(.words)')].filter(e =>
    e.getClientRects().length).map(e => e.querySelector('bdi, .value').getBoundingClientRect().height
        / parseFloat(getComputedStyle(e).lineHeight))) < 1.5"""
LINES_OF_ENDS = """Math.max(...[...document.querySelectorAll('.figures td .ends')].map(e => e.getClientRects()[0].height
    / parseFloat(getComputedStyle(e).lineHeight))) < 2.5"""
SCROLLS_AS_IT_SAYS = """[...new Set([...document.querySelectorAll('.scroll')].filter(e => !e.closest('details'))
    .map(e => [e.scrollWidth > e.clientWidth, parseFloat(getComputedStyle(e, '::before').height) > 5].join()))]
    .sort()"""
WIDE = "[...document.querySelectorAll('.scroll')].some(e => e.scrollWidth > e.clientWidth)"
BY_KEYBOARD = "[...document.querySelectorAll('.scroll')].every(e => e.tabIndex === 0)"
WIDTH_OF_TABLES = "Math.max(...[...document.querySelectorAll('table')].map(e => e.scrollWidth)) <= 688"
NARROW_PLOTS = "Math.max(...[...document.querySelectorAll('td.plot svg')].map(e => e.clientWidth)) < 110"
SIDE_BY_SIDE = "document.querySelector('#beside table').getBoundingClientRect().right <= 688"
NAMED_GAP = "getComputedStyle(document.querySelector('[data-label=\"against the others\"]'), '::before').content"
PAPER = "getComputedStyle(document.body).backgroundColor"


@pytest.mark.parametrize(
    ("name", "width", "media", "script", "expected"),
    [
        ("both", 390, "screen", TEXT_OUTSIDE, []),
        ("both", 1200, "screen", TEXT_OUTSIDE, []),
        ("everything", 360, "screen", WIDE, True),
        ("everything", 360, "screen", BY_KEYBOARD, True),
        ("everything", 360, "screen", NAMED_GAP, '"against the others"'),
        ("wide", 360, "screen", SCROLLS_AS_IT_SAYS, ["false,false", "true,true"]),
        ("wide", 1200, "screen", SCROLLS_AS_IT_SAYS, ["false,false", "true,true"]),
        ("wide", 390, "screen", CUT_CAPTIONS, []),
        ("wide", 390, "screen", LINES_OF_CELLS, True),
        ("wide", 1200, "screen", LINES_OF_CELLS, True),
        ("everything", 688, "print", LINES_OF_ENDS, True),  # 688: A4 less its margins
        ("everything", 688, "print", NARROW_PLOTS, True),
        ("everything", 688, "print", WIDTH_OF_TABLES, True),
        ("wide", 688, "print", WIDTH_OF_TABLES, True),
        ("eight", 688, "print", SIDE_BY_SIDE, True),
        ("everything", 1200, "print", PAPER, "rgb(255, 255, 255)"),  # in light colours
    ],
    ids=lambda value: str(value) if value in ("both", "everything", "wide", "eight", "print") else "",
)
def test_the_layout_of_a_page(look, name, width, media, script, expected):
    page = look(name, width=width, scheme="dark" if script == PAPER else "light")
    page.emulate_media(media=media)
    assert page.evaluate(script) == expected


@pytest.mark.parametrize(("scheme", "colour"), [("light", "rgb(11, 87, 176)"), ("dark", "rgb(127, 179, 245)")])
def test_drawings_have_the_colours_of_the_page(look, scheme, colour):
    page = look("sound", scheme=scheme)
    strokes = page.evaluate("[...document.querySelectorAll('svg.chart path')].map(e => getComputedStyle(e).stroke)")
    assert strokes.count(colour) > 3


def test_pale_text_would_be_found(look):
    page = look("sound")
    page.evaluate("document.querySelector('.summary').style.color = '#999'")
    assert [found[0] for found in page.evaluate(SMALL_CONTRAST)] == ["BDI"]


def test_the_figures_are_in_the_page(look):
    page = look("sound")
    row = page.locator("table.figures tbody tr", has_text="accuracy").first
    cells = row.locator("th, td").all_inner_texts()
    assert [cell.split("\n")[0] for cell in cells] == ["accuracy", "", "0.650", "0.930", "+0.280", "▲ better", "0.960"]
    assert page.locator("table.confusion td.right").all_inner_texts() == ["130", "122", "120", "80", "90", "90"]


def test_hostile_text_is_shown_as_text(look):
    page = look("everything")
    assert page.locator("script, img, iframe, object, form, textarea").count() == 0
    assert page.get_by_text("<script>alert(1)</script>").count() > 5


@pytest.mark.parametrize("name", ["sound", "both"])
def test_headings_go_down_a_level_at_a_time(look, name):
    levels = look(name).evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))


def test_the_numbers_behind_charts_are_on_paper(look):
    page = look("sound")
    numbers = page.locator("details.numbers table")
    assert not any(table.is_visible() for table in numbers.all())
    page.emulate_media(media="print")
    assert all(table.is_visible() for table in numbers.all())
    assert page.locator("nav").first.is_hidden()
    assert page.pdf(format="A4")[:5] == b"%PDF-"
    hidden = "[...document.querySelectorAll('details .scroll')].filter(e => e.scrollHeight > e.clientHeight + 1).length"
    assert page.evaluate(hidden) == 0

"""The page in a browser: judging by keyboard, a reload, two people; hostile text; live curves; narrow screens."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import filelock
import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint
from studio_runs import HOSTILE, echo, open_studio, write_run

from ftengine_studio import Judgement, append, read
from ftengine_studio.answers import pairs_of
from ftengine_studio.judge_replies import ORDERS, JudgeReply, combined, judgement_of, keep_reply, verdict_of
from ftengine_studio.judgements import now
from ftengine_studio.runs import find_runs
from ftengine_studio.summary import summaries
from ftengine_studio.talk import TALKS

sync_api = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (e.g. apt-get install chromium)", allow_module_level=True)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def serve():
    """Serve runs in a thread until the test ends; return the address."""
    servers = []

    def start(*runs):
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        config = uvicorn.Config(open_studio(runs, "token", port), log_level="error", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        servers.append((server, thread, listening))
        return f"http://127.0.0.1:{port}/?token=token"

    yield start
    for server, thread, listening in servers:
        server.should_exit = True
        thread.join(10)
        listening.close()


@pytest.fixture
def visit(chromium):
    """Open an address as somebody of their own."""
    contexts, errors = [], []

    def visit(address, width=1280, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


def introduce(page, name):
    page.fill("input[name=name]", name)
    page.keyboard.press("Enter")
    page.wait_for_selector(".verdicts")


def press(page, key):
    """Judge by a key and wait for the next pair."""
    heading = page.inner_text("h1")
    page.keyboard.press(key)
    page.wait_for_function("heading => document.querySelector('h1').textContent !== heading", arg=heading)


def prefer(page, side):
    """Return the key that prefers the answers that begin with a letter."""
    return "1" if page.inner_text("[aria-label=Left] .text").startswith(side) else "2"


def test_thirty_pairs_by_keyboard_a_reload_and_a_second_person(tmp_path, serve, visit):
    run = write_run(tmp_path / "support", 34)
    address = serve(run)
    page = visit(address)
    introduce(page, "Ada")
    for i in range(30):
        if i == 13:
            page.reload()
            page.wait_for_selector(".verdicts")
            assert page.inner_text("h1") == "Pair 14 of 34"
        press(page, "3" if i % 5 == 4 else prefer(page, "b" if i % 5 == 3 else "t"))
    press(page, "b")  # back to the last, which was a tie, to correct it
    assert page.inner_text("h1") == "Pair 30 of 34"
    assert page.get_attribute("[data-verdict=tie]", "aria-pressed") == "true"
    press(page, "f")  # or to leave it
    assert (page.inner_text("h1"), len(read(run))) == ("Pair 31 of 34", 30)
    press(page, "b")
    page.keyboard.press("n")
    page.keyboard.type("1 and 2 are typed here")
    page.keyboard.press("Escape")
    press(page, prefer(page, "t"))
    other = visit(address)
    introduce(other, "Grace")
    for i in range(10):
        press(other, "4" if i == 0 else prefer(other, "t"))

    judged = read(run)
    assert (len(judged), sum(one.judge == "Grace" for one in judged)) == (41, 10)
    assert judged[30].note == "1 and 2 are typed here"
    scores = {}
    for one in [*judged[:29], *judged[30:]]:  # the corrected one does not count
        value = 0.5 if one.verdict in ("tie", "both-bad") else float(one.preferred == "tuned")
        scores.setdefault(one.prompt, []).append(value)
    means = np.array([np.mean(values) for values in scores.values()])
    wins, losses = int((means > 0.5).sum()), int((means < 0.5).sum())
    page.goto(f"{address.split('?')[0]}#result")
    page.wait_for_selector("text=30 of 34")  # she has pairs left, and would no longer judge them blind
    assert page.locator(".verdict").count() == 0
    page.click("text=show the result now")
    page.wait_for_selector(".verdict")
    shown = page.evaluate("fetch('/api/result/0').then((answer) => answer.json())")["people"]
    rate = shown["rate"]
    assert rate["value"] == pytest.approx(means.mean())
    assert (rate["wins"], rate["losses"], rate["prompts"], rate["judges"]) == (wins, losses, 30, 2)
    assert rate["p"] == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    # Wilson's interval for as many tosses as vary as much as these, half a win, half a loss and a tie more.
    more, weights = np.array([*means, 1, 0, 0.5]), np.array([*np.ones(30), 0.5, 0.5, 1])
    middle = np.average(more, weights=weights)
    tosses = 30 * middle * (1 - middle) / np.average((more - middle) ** 2, weights=weights)
    ends = proportion_confint(means.mean() * tosses, tosses, method="wilson")
    assert (rate["low"], rate["high"]) == pytest.approx(ends)
    assert shown["agreement"]["prompts"] == 10
    for text in (f"{100 * means.mean():.0f} %", f"{100 * ends[0]:.0f} %", f"{100 * ends[1]:.0f} %"):
        assert text in page.inner_text(".headline")
    page.goto(serve(run))  # the next server has another port
    page.wait_for_selector("text=30 of 34 judged as Ada")


def test_hostile_text_stays_text(tmp_path, serve, visit, monkeypatch):
    echo(monkeypatch)
    run = write_run(tmp_path / "run", 1, [HOSTILE])
    answer = dict.fromkeys(("place", "prompt", "wanted", "base", "tuned"), HOSTILE)
    (run / "examples.json").write_text(json.dumps({"answers": [answer]}))
    finding = {"level": "note", "text": HOSTILE}
    (run / "verdict.json").write_text(json.dumps({"headline": HOSTILE, "level": "note", "findings": [finding]}))
    address = serve(run)
    page = visit(address)
    introduce(page, "<b>Ada</b>")
    assert "<b>Ada</b>" in page.inner_text("main")
    page.fill("textarea", HOSTILE)
    pages = {"judge": page.inner_text("main")}
    page.click("[data-verdict=left]")
    state = {"state": "ready", "note": HOSTILE, "splits": {"train": 1}, "longest": 9, "findings": [finding]}
    state |= {"counts": {"duplicates": 0}, "marked": 0, "file": HOSTILE}
    row = {"row": 0, "split": "train", "place": HOSTILE, "length": 9, "marked": False, "group": None}
    page.route("**/api/data/0", lambda route: route.fulfill(json=state))
    rows = {"total": 1, "rows": [row | {"pieces": [[HOSTILE, True], [HOSTILE, False]]}]}
    page.route("**/api/data/0/rows?*", lambda route: route.fulfill(json=rows))
    for view, there in {"result": ".row", "data": ".row", "runs": ".verdict", "talk": "textarea"}.items():
        page.goto(f"{address.split('?')[0]}#{view}")
        page.wait_for_selector(there)
        if view == "talk":
            page.fill("textarea", HOSTILE)
            page.keyboard.press("Enter")
            page.wait_for_selector("text=tuned 0 <b>")
        page.eval_on_selector_all("details", "all => all.forEach((one) => (one.open = true))")
        pages[view] = page.inner_text("main")
        assert page.locator("main :is(script, img, b)").count() == 0, view
    for view, body in pages.items():
        for part in ("<script>", "</textarea>", "␛[31m", "⟨U+202E⟩"):
            assert part in body, view
    assert "owned" not in page.title()


def judged_by_both(run):
    """Write judgements of 24 prompts by a person, and of all 60 by a model that likes the first position."""
    for pair in pairs_of(find_runs([run])[0]):
        if pair.row < 24:
            verdict = "right" if pair.row % 4 else "left"
            ends = ("base", "tuned", verdict, "Ada", "person", now(), 0, 9, 18)
            append(run, Judgement(pair.row, pair.prompt_hash, *ends, answers_hash=pair.answers_hash))
        replies = []
        for order in ORDERS:
            mark = "1" if pair.row % 5 == 0 or order == "tuned-base" else "2"
            facts = {"prompt": pair.row, "prompt_hash": pair.prompt_hash, "order": order, "judge": "large"}
            facts |= {"text": f"[[{mark}]]", "verdict": verdict_of(f"[[{mark}]]", order), "time": now()}
            facts |= dict.fromkeys(("failure", "ended", "prompt_tokens", "tokens"))
            replies.append(JudgeReply(request=f"{pair.row} {order}", answers_hash=pair.answers_hash, **facts))
            keep_reply(run, replies[-1])
        append(run, judgement_of(pair, combined(*replies), "large", 0))


def test_the_result_shows_a_models_position_bias_and_what_people_correct(tmp_path, serve, visit):
    run = write_run(tmp_path / "support", 60)
    judged_by_both(run)
    page = visit(f"{serve(run)}#result")
    page.click("text=show the result now")
    page.wait_for_selector("h2:text-is('People and model together')")
    (summary,) = summaries(run)
    model = summary.models["large"]
    assert (model.position.flipped, model.position.first, model.powered.people_prompts) == (12, 12, 24)
    levels = [box.get_attribute("class") for box in page.locator("div.verdict").all()]
    assert levels == ["verdict good", "verdict note"]  # a model's own figure is a note at most
    body = page.inner_text("main")
    assert "12 of 60 pairs" in body
    for value in (model.position.low, model.position.high, model.powered.low, model.powered.high, model.powered.model):
        assert f"{100 * value:.0f} %" in body


def test_a_blind_conversation_is_judged_by_the_keys_of_judge(tmp_path, serve, visit, monkeypatch):
    echo(monkeypatch)
    run = write_run(tmp_path / "run", 1)
    page = visit(f"{serve(run)}#talk")
    page.on("dialog", lambda dialog: dialog.accept("Ada"))
    page.check("input[type=checkbox]")
    for key, verdict in (("ArrowRight", "right"), ("5", "skip")):
        page.click("text=New conversation")
        page.fill("textarea", "Hello")
        page.keyboard.press("Enter")
        page.wait_for_selector(".verdicts:visible")
        assert page.inner_text("section[aria-label=left] h3") == "Left"
        page.keyboard.press(key)
        page.wait_for_selector("section[aria-label=left] h3:text-matches('^(base|tuned)$')")
        assert json.loads((run / TALKS).read_text().splitlines()[-1])["verdict"] == verdict


def test_a_live_curve_follows_and_the_run_can_be_stopped(tmp_path, serve, visit):
    run = write_run(tmp_path / "run")
    (run / "evaluation.json").unlink()
    with filelock.FileLock(run / ".lock"):
        page = visit(f"{serve(run)}#runs")
        page.wait_for_selector(".badge.running")
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 77, "loss": 0.5}) + "\n")
        page.wait_for_selector("[data-key=step]:text-is('77')", timeout=2000)
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("text=Stop after this step")
        page.wait_for_selector("#status span")
        assert (run / "stop").exists()
    page.wait_for_selector(".badge.stopped")


SMALLEST_LABEL = """() => Math.min(...[...document.querySelectorAll(".plot text")].map((text) =>
  parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a))"""
"""Pixels of the smallest letters in drawings, as they appear."""

CONTRAST = """(selector) => {
  const { color, backgroundColor } = getComputedStyle(document.querySelector(selector));
  const light = (value) => {
    const parts = value.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
    const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const [dark, bright] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
  return bright / dark;
}"""
"""The contrast of an element's text (WCAG 2)."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_view_fits_a_phone(tmp_path, serve, visit, monkeypatch, scheme):
    echo(monkeypatch)
    runs = [write_run(tmp_path / name, 3, ["w" * 300]) for name in ("support", "a-run-with-quite-a-long-name")]
    address = serve(*runs)
    page = visit(address, width=390, color_scheme=scheme)
    introduce(page, "Ada")
    for view, there in {"judge": ".verdicts", "result": ".verdict", "runs": ".plot", "talk": ".say"}.items():
        page.goto(f"{address.split('?')[0]}#{view}")
        if view == "judge":
            page.wait_for_selector(there)
            assert not page.is_visible(".keys")
            for key in "123":
                press(page, key)
        else:  # who has judged all pairs gets the result
            page.wait_for_selector(there)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
        if view == "runs":
            assert page.evaluate(
                "[...document.querySelectorAll('.scroll')].every((e) => e.scrollWidth <= e.clientWidth)"
            )
            assert page.evaluate(SMALLEST_LABEL) >= 12
    page.evaluate("document.querySelector('.say button').disabled = true")
    assert page.evaluate(CONTRAST, ".say button") >= 4.5

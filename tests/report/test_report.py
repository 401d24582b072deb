"""report.html: what it shows, and that whatever comes from data or recipes stays text."""

import json
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from report_samples import HOSTILE, METRICS, change, everything, figure, sound, write_run
from rich.console import Console

from ftengine.api import Finding
from ftengine.cli import main
from ftengine.cli.figures import show_figures, show_slices
from ftengine.report.write import verdict_of, write_report
from ftengine.run.records import RunRecords

ALLOWED = {
    *("html", "head", "meta", "title", "link", "style", "body", "a", "header", "p", "h1", "h2", "h3", "h4", "main"),
    *("section", "bdi", "div", "dl", "dt", "dd", "nav", "ul", "ol", "li", "span", "strong", "table", "caption"),
    *("thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary", "pre", "code", "footer"),
    *("article", "svg", "path", "text", "circle", "rect"),
}
"""The elements that the templates write; anything else came out of the data."""


class Page(HTMLParser):
    """Collects elements and attributes."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The pages on a sound run, on one with everything in it, and on both."""
    folder = tmp_path_factory.mktemp("runs")
    runs = [write_run(folder / "sound", sound()), write_run(folder / "everything", everything())]
    write_report(runs, folder / "both.html")
    return {
        "sound": write_report(runs[:1]).read_text(encoding="utf-8"),
        "everything": write_report(runs[1:]).read_text(encoding="utf-8"),
        "both": (folder / "both.html").read_text(encoding="utf-8"),
    }


def test_the_page_has_the_figures(pages):
    text = Page(pages["sound"]).text
    for number in (
        "0.650",
        "0.620 to 0.680",
        "0.930",
        "+0.280",
        "+0.250 to +0.310",
        "p = 0.002",
        "339,845 of 23,053,061",
    ):
        assert number in text
    assert "122 are right with the tuned model alone, 10 " in text
    assert "rank: 8" in text
    assert "torch" in text


@pytest.mark.parametrize(
    ("page", "titles"),
    [
        ("sound", ["Base and tuned", "Training", "Confusion matrix, tuned model", "Reliability diagram", "Data"]),
        ("everything", ["Slices", "Robustness", "Forgetting", "Memorisation", "Refusal", "Examples", "wise-ft"]),
        ("both", ["2 runs side by side", "Side by side", "Where the recipes differ"]),
    ],
)
def test_every_section_that_has_something_is_there(pages, page, titles):
    text = Page(pages[page]).text
    assert [title for title in titles if title not in text] == []
    assert ("Slices" in text) == (page != "sound")  # and none that has nothing


def test_the_verdict_is_above_phases_kernels_and_memory(pages):
    for page in pages.values():
        verdict = page.index('<section class="verdict')
        assert verdict < min(page.index(f"<dt>{fact}</dt>") for fact in ("phases", "peak memory", "kernels"))


@pytest.mark.parametrize("name", ["sound", "everything", "both"])
def test_data_stays_text(pages, name):
    page = Page(pages[name])
    assert set(page.elements) <= ALLOWED
    assert not [
        found for found in page.attributes if found[1].startswith("on") or found[1] in ("src", "style", "action")
    ]
    links = {value for _, attribute, value in page.attributes if attribute == "href"}
    assert all(link.startswith("#") or link == "data:," for link in links)
    assert "alert(1)" in page.text or name == "sound"
    assert "49" not in re.findall(r"\{\{.{0,20}", page.text)
    assert not set(re.findall(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", pages[name]))
    assert HOSTILE not in pages[name]


def test_links_within_the_page_lead_somewhere(pages):
    for text in pages.values():
        page = Page(text)
        places = [value for _, name, value in page.attributes if name == "id"]
        assert len(places) == len(set(places))
        links = {value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")}
        assert links <= set(places)
        labels = {value for _, name, value in page.attributes if name == "aria-labelledby"}
        assert labels <= set(places)


def test_the_policy_forbids_everything_but_the_pages_own_style(pages):
    policy = next(value for _, _, value in Page(pages["sound"]).attributes if value and "default-src" in value)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src" not in policy


def test_runs_on_different_examples_are_called_so(tmp_path):
    files = sound()
    files["audit"]["encoded"]["test"]["content"] = "another"
    runs = [write_run(tmp_path / "a", sound()), write_run(tmp_path / "b", files)]
    assert "Not the same examples." in write_report(runs, tmp_path / "ab.html").read_text(encoding="utf-8")
    again = [runs[0], write_run(tmp_path / "c", sound())]
    assert "Not the same examples." not in write_report(again, tmp_path / "ac.html").read_text(encoding="utf-8")


def test_each_slice_has_its_gap_to_the_others_or_says_why_it_has_none(pages):
    table = pages["everything"].split('aria-label="Slices by')[1].split("</table>")[0]
    cells = re.findall(r'data-label="against the others">(.*?)</td>', table)
    texts = [" ".join(Page(cell.replace("<", " <")).text.split()) for cell in cells]
    assert texts == [
        "−0.30 −0.42 to −0.18 adjusted p = 0.004",
        "+0.28 +0.16 to +0.40 adjusted p = 0.004",
        "– too few examples",
        "not comparable",
    ]
    assert table.count("▼ worse than the others") == 1


def test_a_slice_is_called_behind_only_beyond_chance(tmp_path):
    files = everything()
    (column,) = files["evaluation"]["slices"].values()
    for one in column["slices"]:
        one["gap"] = one["gap"] and one["gap"] | {"p_adjusted": 0.06}
    assert "▼ worse than" not in write_report([write_run(tmp_path / "run", files)]).read_text(encoding="utf-8")


# The command


def call(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="ftengine")
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_the_page_and_names_it(tmp_path):
    run = write_run(tmp_path / "run", sound())
    lines = call("report", run).stdout.splitlines()
    assert lines[0].startswith("Accuracy 93 %, base 65 %: better, ")
    assert lines[-1] == f"report: {run / 'report.html'}"
    assert (run / "report.html").is_file()


def test_json_prints_the_verdict_and_writes_nothing(tmp_path):
    run = write_run(tmp_path / "run", everything())
    verdict = json.loads(call("report", run, "--json").stdout)
    assert verdict["level"] == "alarm"
    assert set(Finding.model_fields) == set(verdict["findings"][0])
    assert not (run / "report.html").exists()


def test_hostile_text_does_not_steer_the_terminal(tmp_path):
    out = call("report", write_run(tmp_path / "run", everything())).stdout
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_what_cannot_be_reported_is_one_line(tmp_path):
    result = call("report", tmp_path / "nothing", code=2)
    assert "is not a run directory: it does not exist" in result.stderr
    (tmp_path / "config.json").write_text("{}")  # as what `ftengine merge` writes has one
    assert "model.source" in call("report", tmp_path, code=2).stderr
    unfinished = write_run(tmp_path / "run", sound() | {"evaluation": None})
    assert "not finished: it has no evaluation.json" in call("report", unfinished, code=2).stderr
    both = call("report", unfinished, unfinished, code=2)
    assert "--output FILE" in both.stderr


def test_personal_data_is_masked_in_the_page(tmp_path):
    content = everything()
    email, phone = "jane.doe@mail.example.org", "212-555-0123"
    item = content["examples"]["improved"][0]
    item["shown"] = [["x" * 590 + email, False]]
    item["tuned"] = {"completion": f"Call {phone}"}
    column = next(iter(content["evaluation"]["slices"].values()))
    column["slices"][0]["value"] = email
    page = write_report([write_run(tmp_path / "run", content)]).read_text(encoding="utf-8")
    assert "jane" not in page
    assert phone not in page
    assert "j…rg" in page
    assert "2…23" in page


def test_a_figure_has_the_same_digits_on_the_page_in_the_verdict_and_in_the_terminal(tmp_path, capsys):
    run = write_run(tmp_path / "run", sound())
    show_figures(Console(width=160), RunRecords.read(run).evaluation)
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))
    cells = re.findall(r'<span class="value">([^<]*)</span>', write_report([run]).read_text(encoding="utf-8"))
    for text in (row, " ".join(cells)):
        assert set(re.findall(r"0\.93\d*", text)) == {"0.930"}
        assert set(re.findall(r"0\.28\d*", text)) == {"0.280"}
    headline = verdict_of(run).headline
    assert ("Accuracy 93 %" in headline, "+28.0 points" in headline) == (True, True)


def test_a_p_value_is_one_number_on_the_page_in_the_verdict_and_in_the_terminal(tmp_path, capsys):
    files = sound()
    gaps = {"short": change(-0.25, 0.16, None), "long": change(0.25, 0.16, None)}
    slices = [
        {"value": name, "examples": 60, "small": False, "base": {"accuracy": figure(0.5)}, "tuned": {"accuracy": own}}
        | {"difference": {"accuracy": change(0.1)}, "gap": gaps[name] | {"p": 0.0013, "p_adjusted": 0.0052241}}
        for name, own in (("short", figure(0.5)), ("long", figure(0.75)))
    ]
    column = {"metric": "accuracy", "slices": slices, "worst": "short", "left_out": 0}
    files["evaluation"]["slices"] = {"len": column | {"base_gap": None}}
    run = write_run(tmp_path / "run", files)
    page = Page(write_report([run]).read_text(encoding="utf-8")).text
    assert page.count("adjusted p = 0.0052") == 3  # in the verdict and beside each slice
    show_slices(Console(width=120), RunRecords.read(run).evaluation)
    assert "0.0052" in capsys.readouterr().out.split("short")[1].split("\n")[0]


def test_figures_without_an_interval_or_at_zero_say_what_that_means(tmp_path, capsys):
    files = sound()
    none = {"low": None, "high": None}
    files["evaluation"]["metrics"] = METRICS | {
        "calibration_error": {"label": "CE", "fallback": "overconfidence", "at_zero": "none beyond chance"}
        | {"kind": "calibration", "evaluator": "calibration"},
        "overconfidence": {"label": "overconfidence", "kind": "calibration", "evaluator": "calibration"},
    }
    for side, value in (("base", 0.08), ("tuned", 0.0)):
        files["evaluation"][side] |= {"calibration_error": {"value": value, "n": 400} | none}
        files["evaluation"][side] |= {"overconfidence": figure(0.01)}
    files["evaluation"]["difference"]["calibration_error"] = {"value": -0.08, "p": None, "better": None} | none
    run = write_run(tmp_path / "run", files)
    page = Page(write_report([run]).read_text(encoding="utf-8")).text
    show_figures(Console(width=160), RunRecords.read(run).evaluation)
    for text in (page, capsys.readouterr().out):
        assert "no interval (see overconfidence)" in text
        assert text.count("none beyond chance") == 1
        assert "too few" not in text


def test_findings_link_to_sections_by_their_titles(pages):
    assert re.findall(r">see ([A-Z][^<]+)</a>", pages["everything"])
    assert set(re.findall(r">see ([^<]+)</a>", pages["everything"])) <= set(
        re.findall(r'<h2 id="[^"]*">([^<]+)</h2>', pages["everything"])
    )

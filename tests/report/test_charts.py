"""Displays as HTML: what is drawn, that data stays text, and that a drawing brings nothing along."""

import itertools
import re
from html.parser import HTMLParser

import pytest
from report_samples import HOSTILE

from ftengine.api import Line, LineChart, Matrix, Table
from ftengine.report.charts import by_source, learning_rate, losses, trade_off
from ftengine.report.draw import draw
from ftengine.report.plot import line_svg


def chart(*lines, **more):
    named = [Line(name=name, points=points) for name, points in lines]
    return LineChart(**{"title": "t", "x_label": "x", "y_label": "y", "lines": named} | more)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.text = set(), [], ""
        self.feed(str(text))

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


ALL = (
    chart((HOSTILE, [(0, 0), (1, 1)]), title=HOSTILE, x_label=HOSTILE, y_label=HOSTILE, mark=(0.5, HOSTILE)),
    Table(title=HOSTILE, columns=(HOSTILE, "n"), rows=((HOSTILE, 1), ("a", None)), caption=HOSTILE),
    Matrix(title=HOSTILE, names=(HOSTILE, "b"), cells=((1, 2), (3, 4)), row_label=HOSTILE, caption=HOSTILE),
)


@pytest.mark.parametrize("display", ALL, ids=lambda display: type(display).__name__)
def test_text_of_a_display_stays_text(display):
    page = Elements(draw(display))
    known = {"figure", "p", "svg", "title", "path", "text", "figcaption", "details", "summary"}
    assert page.names <= known | {"div", "table", "caption", "strong", "thead", "tbody", "tr", "th", "td", "bdi"}
    assert "<script>alert(1)" in page.text
    assert not set(page.text) & set("\u202e\x00\x07\x1b\ud800")


def test_a_drawing_brings_no_style_id_reference_or_script():
    svg = draw(chart(("a", [(0, 0), (1, 1)]), ("b", [(0, 1), (1, 0)]), diagonal=True, mark=(0.5, "m")))
    found = {name for name, _ in Elements(svg).attributes}
    assert not found & {"style", "id", "href", "xlink:href", "clip-path", "onclick"}
    assert "url(" not in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)  # the colours are the page's, light and dark
    assert {"var(--tuned)", "var(--base)", "var(--quiet)"} <= {value for _, value in Elements(svg).attributes}


@pytest.mark.parametrize(
    "values",
    [
        *(
            [338.00211, 338.00213, 338.0022],
            [338, 338, 338],
            [0, 0, 0],
            [1e-9, 2e-9, 5e-9],
            [-3e8, 1, 2e9],
            [0, 1e-300],
        ),
        *([-1, 1], [5, 5 + 1e-15], [0.1 + 0.2, 0.3]),
    ],
)
def test_the_ticks_of_an_axis_differ_from_one_another_and_hold_what_is_reported(values):
    svg = line_svg(chart(("", list(enumerate(values)))), "told")
    up = list(re.findall(r'text-anchor="end">([^<]*)<', svg))
    assert len(set(up)) == len(up) >= 2
    shown = [float(text.replace(",", "").replace("−", "-")) for text in up]
    steps = [b - a for a, b in itertools.pairwise(shown)]
    assert all(step == pytest.approx(steps[0], rel=1e-2) for step in steps)


def test_a_chart_has_a_description_and_its_numbers():
    html = draw(
        chart(("a", [(0, 0.5), (1, 0.25), (2, 0.75)]), ("b", [(2, 3)]), title="Losses", mark=(1, "kept: step 1"))
    )
    (told,) = re.findall(r"<title>(.*?)</title>", html)
    assert "0.5 to 0.75, lowest 0.25 at 1. b: from 3 to 3" in told
    assert "kept: step 1" in told
    rows = re.findall(r"<tr>(.*?)</tr>", html)
    assert [re.findall(r"<bdi>(.*?)</bdi>", row) for row in rows] == [
        *(["x", "a", "b"], ["0", "0.5", "–"], ["1", "0.25", "–"], ["2", "0.75", "3"]),
    ]


def test_many_points_become_means_of_neighbours():
    html = draw(chart(("", [(i, i % 2) for i in range(1000)])))
    assert "means of up to 5 neighbours" in html
    assert html.count("<tr>") == 41
    assert len(html) < 20_000


def test_what_is_drawn_of_a_run():
    found = losses([(1, 2.0), (2, float("nan")), (3, 1.0)], [(3, 1.5)], [(3, 1.0)], kept=3)
    assert [(line.name, len(line.points)) for line in found.lines] == [
        *(("loss of the batches", 2), ("validation", 1), ("training examples", 1)),
    ]
    assert found.mark == (3, "kept: step 3")
    assert losses([(1, 2.0)], [], [], kept=1).mark is None
    assert "10⁻⁴" in draw(learning_rate([(1, 2e-4), (2, 1e-4)]))
    curve = trade_off([{"alpha": i / 4, "validation_loss": 1 - i / 8} for i in range(5)])
    assert (curve.x_label, [line.name for line in curve.lines]) == ("alpha", ["validation loss"])
    assert trade_off([{"alpha": 1.0}]) is None


def test_losses_of_several_sources_are_lines_of_one_chart():
    lines = [
        {"step": n, "loss": 1.0, "loss/a.jsonl": 2.0 / n, **({"loss/b.jsonl": 1.0} if n > 2 else {})} for n in (1, 2, 3)
    ]
    found = by_source([*lines, {"step": 3, "validation_loss/a.jsonl": 5.0}])
    assert [(line.name, line.points) for line in found.lines] == [
        ("a.jsonl", ((1, 2.0), (2, 1.0), (3, 2 / 3))),
        ("b.jsonl", ((3, 1.0),)),
    ]
    assert by_source([{"step": 1, "loss": 1.0}]) is None

"""Displays as HTML: what is drawn, that data stays text, and that a drawing brings nothing along."""

import itertools
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from report_samples import HOSTILE

from ftengine.api import Estimate, Line, LineChart, Matrix, Table
from ftengine.report.charts import by_source, learning_rate, losses, smoothed, together, trade_off
from ftengine.report.draw import draw, interval_plot, merge_charts, numbers
from ftengine.report.plot import line_svg


def chart(*lines, **more):
    named = [Line(name=name, points=points) for name, points in lines]
    return LineChart(**{"title": "t", "x_label": "x", "y_label": "y", "lines": named} | more)


def texts(svg):
    return [re.sub(r"<[^>]*>", "", found) for found in re.findall(r"<text.*?</text>", svg)]


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


def test_a_smoothed_line_keeps_slopes_takes_noise_away_and_is_left_out_of_a_few_points():
    slope = [(i, 2.0 - 0.01 * i) for i in range(100)]
    mean, width = smoothed(slope)
    assert width == 11
    assert mean == [pytest.approx(point) for point in slope]
    noisy = [(x, y + 0.5 * (-1) ** i) for i, (x, y) in enumerate(slope)]
    assert max(abs(y - true) for (_, y), (_, true) in zip(smoothed(noisy)[0][5:-5], slope[5:-5], strict=True)) < 0.05
    assert smoothed(slope[:9]) == ([], 0)
    drawn = losses(noisy, [], [], 100)
    assert [line.look for line in drawn.lines] == ["faint", "smooth"]


def test_the_same_chart_is_drawn_the_same():
    one = chart(("a", [(i, i * i) for i in range(30)]))
    assert draw(one) == draw(one)


def test_a_matplotlibrc_changes_nothing(monkeypatch):
    import matplotlib

    one = chart(("a", [(0, 1), (1, 2)]))
    expected = draw(one)
    for key, value in {"text.usetex": True, "font.size": 30, "svg.fonttype": "path"}.items():
        monkeypatch.setitem(matplotlib.rcParams, key, value)
    assert draw(one) == expected


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


def test_steps_are_whole_numbers():
    svg = line_svg(chart(("", [(1, 0.5), (2, 0.4), (3, 0.3)])), "told")
    assert texts(svg)[:3] == ["1", "2", "3"]


def test_small_numbers_have_their_power_in_the_label():
    svg = line_svg(chart(("", [(0, 0.0), (1, 2e-4)]), y_label="learning rate"), "told")
    assert "learning rate × 10⁻⁴" in texts(svg)


def test_a_dollar_and_an_underscore_are_no_markup():
    svg = line_svg(chart(("_price $a^2$ $", [(0, 0), (1, 1)]), x_label=r"$\alpha$"), "told")
    assert {"_price $a^2$ $", r"$\alpha$"} <= set(texts(svg))


def test_a_chart_tells_what_is_seen_and_has_its_numbers():
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


def test_points_above_one_another_are_all_in_the_numbers():
    curve = [(0, 0), (0, 0.6), (0.5, 0.6), (1, 1)]
    assert numbers(chart(("a", curve))) == (("line", "x", "y"), [("a", x, y) for x, y in curve])


def test_lines_beyond_the_sixth_are_in_the_numbers_and_the_caption_says_so():
    html = draw(together((f"run{i}", [(1, i), (2, i)] if i else []) for i in range(8)))
    assert "The first 6 of 7 lines are drawn; the numbers have all." in html
    assert "run6" in texts(html)
    assert "run7" not in texts(html)
    assert "<bdi>run7</bdi>" in html
    assert together([("none", [])]) is None


def test_many_points_become_means_of_neighbours():
    html = draw(chart(("", [(i, i % 2) for i in range(1000)])))
    assert "means of up to 5 neighbours" in html
    assert html.count("<tr>") == 41
    assert len(html) < 20_000


def test_charts_of_one_title_from_base_and_tuned_become_one():
    answers, scaled = [(0, 0.25), (1, 0.5)], [(0, 0.0), (1, 1.0)]
    base = chart(("as it answers", answers), title="Reliability diagram", diagonal=True)
    tuned = base.model_copy(update={"lines": (*base.lines, Line(name="with temperature", points=scaled))})
    alone = chart(("", [(0, 1)]), title="Alone")
    merged = merge_charts([base, alone], [tuned])
    assert [one.title for one in merged] == ["Reliability diagram", "Alone"]
    names = ["base", "tuned, as it answers", "tuned, with temperature"]
    assert [line.name for line in merged[0].lines] == names
    assert [line.look for line in merged[0].lines] == ["base", "tuned", ""]
    html = draw(merged[0])
    assert set(names) <= set(texts(html))
    assert "base: furthest from the diagonal at 1, with 0.5." in html


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


def test_a_matrix_is_shaded_by_row_and_says_which_cells_are_right():
    html = draw(Matrix(title="m", names=("a", "b"), cells=((8, 0), (9, 1)), row_label="truth", column_label="answer"))
    assert re.findall(r'<td class="num (.*?)">', html) == ["s8 right", "s0", "s7", "s1 right"]
    assert "truth by row, answer by column" in html
    assert 'class="scroll" role="region" tabindex="0"' in html


def test_an_interval_has_its_ends_and_tells_them():
    svg = interval_plot("accuracy", Estimate(0.5, 0.25, 0.75, 12), Estimate(0.9, None, None, 12))
    assert "<title>accuracy: base 0.50 (95 % interval 0.25 to 0.75), tuned 0.900</title>" in svg
    assert 'd="M58.0 10H162.0M58.0 6v8M162.0 6v8"' in svg  # on a scale of 0 to 1 from 6 to 214
    assert svg.count("whisker") == 1
    assert interval_plot("loss", None, Estimate(float("nan"), None, None, 0)) == ""


def test_matplotlib_is_imported_when_something_is_drawn():
    code = "import sys, ftengine.report.page; assert 'matplotlib' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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

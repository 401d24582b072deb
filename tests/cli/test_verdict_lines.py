"""What a terminal shows of a verdict and of figures: the most important lines, the report has all."""

import io

from rich.console import Console

from ftengine.api import Difference, Estimate, Finding
from ftengine.cli.figures import MOST_FINDINGS, figure_table, show_verdict
from ftengine.run.evaluation_result import MeasuredMetric
from ftengine.run.records import Verdict


def printed(show):
    out = Console(file=io.StringIO(), width=200)
    show(out)
    return out.file.getvalue().splitlines()


def verdict(count):
    long = [Finding(kind="a", level="note", text=f"Finding {i}: " + "word " * 200) for i in range(count)]
    return Verdict(headline="One.", level="note", findings=(Finding(kind="quality", level="note", text="One."), *long))


def test_three_findings_of_two_lines_are_printed_and_the_rest_counted():
    lines = printed(lambda out: show_verdict(out, verdict(5)))
    assert len(lines) == 1 + 2 * MOST_FINDINGS + 1
    assert lines[-1].startswith("  2 more")
    assert [line for line in lines if line.startswith("  note")] == lines[1:-1:2]
    assert len(printed(lambda out: show_verdict(out, verdict(MOST_FINDINGS)))) == 1 + 2 * MOST_FINDINGS


def test_calibration_stands_behind_quality():
    metrics = {
        "ece": MeasuredMetric("calibration error", False, kind="calibration"),
        "accuracy": MeasuredMetric("accuracy", True),
        "macro_f1": MeasuredMetric("macro F1", True),
    }
    figures = dict.fromkeys(metrics, Estimate(0.5, 0.4, 0.6, 50))
    differences = dict.fromkeys(metrics, Difference(0.0, -0.1, 0.1, 0.9, None))
    lines = printed(lambda out: out.print(figure_table(figures, figures, differences, metrics)))
    assert [line.split()[0] for line in lines[1:]] == ["accuracy", "macro_f1", "ece"]

"""What a terminal shows of a verdict and of figures: the most important lines, the report has all."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from ftengine.api import Difference, Estimate, Finding
from ftengine.cli.figures import MOST_FINDINGS, figure_table, show_figures, show_verdict
from ftengine.cli.train import _lines
from ftengine.run.evaluation_result import EvaluationResult, MeasuredMetric
from ftengine.run.records import Verdict
from ftengine.testing.runs import stored_runs


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


def test_train_prints_the_metrics_that_decide_and_counts_the_others():
    quality, others = ["accuracy", "macro_f1", "auc"], ["ece", "calibration", "brier", "nll", "after", "over"]
    metrics = {name: {"label": name, "evaluator": "e", "kind": "calibration"} for name in others}
    metrics = {**metrics, **{name: {"label": name, "evaluator": "e"} for name in quality}}
    for name in ("ece", "calibration", "after"):
        metrics[name]["interval"] = False
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 50}
    figures = dict.fromkeys((*others, *quality), figure)
    change = {"value": 0.0, "low": -0.1, "high": 0.1, "p": 0.9, "better": None}
    sides = {"base": figures, "tuned": figures, "difference": dict.fromkeys(figures, change)}
    metrics["macro_f1"]["primary"] = True
    result = EvaluationResult.model_validate(
        {"split": "test", "metrics": metrics, **sides, "details": {}, "displays": {}}
    )
    lines = printed(lambda out: show_figures(out, result, all_metrics=False))
    assert [line.split()[0] for line in lines[2:-1]] == ["macro_f1", "accuracy", "auc", "brier", "nll"]
    assert lines[-1] == "4 more metrics in report.html"
    assert len(printed(lambda out: show_figures(out, result))) == 2 + len(figures)


@pytest.mark.parametrize(
    ("config", "whole", "label"),
    [
        ('{"architectures": ["BertModel"]}', False, "tuned model"),
        ("{}", True, "tuned model"),  # full tuning of a model that transformers does not know
        ("{}", False, "trained part"),
    ],
)
def test_a_whole_model_is_not_called_a_trained_part(tmp_path, config, whole, label):
    (tmp_path / "config.json").write_text(config)
    records = stored_runs()["a sound run"]
    counts = {"trainable_parameters": records.training.total_parameters} if whole else {}
    records = replace(records, training=records.training.model_copy(update=counts))
    lines = dict(_lines(SimpleNamespace(trained=tmp_path), records, 1.0))
    assert lines[label] == str(tmp_path)
    assert len({"tuned model", "trained part"} & lines.keys()) == 1

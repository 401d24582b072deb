"""Intervals and paired differences of what the harness returns, and what the rule says of them."""

from types import SimpleNamespace

import numpy as np
import pytest
from expected import raises
from scipy import stats

from ftengine.api import Estimate
from ftengine.errors import RunError
from ftengine_lm_eval.figures import FILE, Benchmarks, benchmarked, difference, write
from ftengine_lm_eval.options import Options
from ftengine_lm_eval.rule import Benchmarks as Rule

OPTIONS = Options(tasks=["quiz"])
NOTHING = SimpleNamespace(metrics={}, probes=())


def result(values, metric="acc", figure=None):
    """What the harness returns of one task."""
    samples = [{"doc_id": i, "filter": "none", metric: value} for i, value in enumerate(values)]
    figure = float(np.mean(values)) if figure is None else figure
    error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {
        "results": {"quiz": {"alias": "quiz", f"{metric},none": figure, f"{metric}_stderr,none": error}},
        "samples": {"quiz": samples},
        "higher_is_better": {"quiz": {metric: True}},
        "n-samples": {"quiz": {"original": len(values), "effective": len(values)}},
        "n-shot": {"quiz": 2},
    }


def judged(base, tuned, tmp_path, **options):
    write(tmp_path, *benchmarked(result(base, **options), result(tuned, **options), OPTIONS))
    return list(Rule().judge(SimpleNamespace(path=tmp_path, evaluation=NOTHING)))


def test_right_and_wrong_answers_are_paired():
    base, tuned = [1] * 10 + [0] * 30, [0] * 2 + [1] * 38
    found, table = benchmarked(result(base), result(tuned), OPTIONS)
    metric = found.tasks["quiz"].metrics["acc,none"]
    assert metric.difference.value == pytest.approx(0.7)
    assert metric.difference.p == pytest.approx(stats.binomtest(30, 32).pvalue)
    assert metric.difference.low < 0.7 < metric.difference.high
    assert metric.difference.better is True
    assert metric.base.low < 0.25 < metric.base.high
    assert (found.tasks["quiz"].examples, found.tasks["quiz"].num_fewshot) == (40, 2)
    assert (table["base"], table["tuned"], table["example"]) == (base, tuned, list(range(40)))


def test_the_interval_of_a_difference_covers_the_truth():
    """Agresti and Min's interval: of 95 % of samples, more or less."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(2000):
        base = rng.random(60) < 0.5
        tuned = np.where(rng.random(60) < 0.2, rng.random(60) < 0.8, base)
        x, y = base.astype(float), tuned.astype(float)
        sides = [Estimate(float(side.mean()), None, None, 60) for side in (x, y)]
        found = difference(*sides, x, y, True)
        covered += found.low <= 0.2 * 0.3 <= found.high
    assert 0.93 < covered / 2000 < 0.98


def test_other_values_are_tested_by_t():
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(size=40), rng.normal(size=40) + 1
    found, _ = benchmarked(result(base, "logits"), result(tuned, "logits"), OPTIONS)
    change = found.tasks["quiz"].metrics["logits,none"].difference
    wanted = stats.ttest_rel(tuned, base)
    assert change.p == pytest.approx(wanted.pvalue)
    assert (change.low, change.high) == pytest.approx(tuple(wanted.confidence_interval()))


def test_what_is_no_mean_of_its_examples_is_not_paired():
    found, table = benchmarked(result([1.0, 2.0] * 5, figure=9.0), result([1.0, 2.0] * 5, figure=8.0), OPTIONS)
    change = found.tasks["quiz"].metrics["acc,none"].difference
    assert (change.value, change.low, change.p, change.better) == (-1.0, None, None, None)
    assert table["base"] == []


def test_a_group_has_the_examples_of_its_tasks():
    base, tuned = result([0, 1] * 10), result([1, 1] * 10)
    for one in (base, tuned):
        one["results"]["school"] = {"alias": "school", "acc,none": 0.5, "acc_stderr,none": 0.1}
        one["group_subtasks"] = {"school": ["quiz"]}
    found, _ = benchmarked(base, tuned, OPTIONS)
    group = found.tasks["school"]
    assert (group.examples, group.metrics["acc,none"].base) == (20, Estimate(0.5, 0.5 - 0.196, 0.5 + 0.196, 20))
    assert group.metrics["acc,none"].difference.p is None


def test_equal_answers_are_no_difference():
    found, _ = benchmarked(result([0, 1] * 10), result([0, 1] * 10), OPTIONS)
    change = found.tasks["quiz"].metrics["acc,none"].difference
    assert (change.p, change.better) == (1.0, None)
    assert change.low < 0 < change.high


def test_a_large_loss_is_an_alarm(tmp_path):
    (finding,) = judged([1] * 35 + [0] * 5, [1] * 10 + [0] * 30, tmp_path)
    assert finding.level == "alarm"
    assert "quiz acc" in finding.text
    assert ": 0.2" in finding.text


def test_a_gain_is_good_and_chance_is_a_note(tmp_path):
    (finding,) = judged([1] * 10 + [0] * 30, [1] * 35 + [0] * 5, tmp_path)
    assert (finding.level, "better" in finding.text) == ("good", True)
    (finding,) = judged([1] * 20 + [0] * 20, [1] * 21 + [0] * 19, tmp_path)
    assert finding.level == "note"
    assert "no difference beyond chance" in finding.text


def test_a_run_without_benchmarks_is_not_judged(tmp_path):
    assert list(Rule().judge(SimpleNamespace(path=tmp_path, evaluation=NOTHING))) == []


def test_what_is_undefined_is_read_again(tmp_path):
    write(tmp_path, *benchmarked(result([0, 1] * 10, figure=float("nan")), result([0, 1] * 10), OPTIONS))
    metric = Benchmarks.read(tmp_path).tasks["quiz"].metrics["acc,none"]
    assert np.isnan(metric.base.value)
    assert np.isnan(metric.difference.value)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_text("{}", encoding="utf-8")
    with raises(RunError, "lm_eval.json"):
        Benchmarks.read(tmp_path)


def test_what_was_not_tested_is_not_said_to_be_chance(tmp_path):
    (one,) = judged([1.0, 2.0] * 5, [1.0, 2.0] * 5, tmp_path, figure=9.0)
    assert one.text.startswith(
        "Figures of lm-evaluation-harness without a test of their difference; tuned against base:"
    )


def test_what_differs_without_a_direction_is_said_to_differ(tmp_path):
    base, tuned = result([0] * 40), result([1] * 40)
    for side in (base, tuned):
        side["higher_is_better"] = {"quiz": {}}
    write(tmp_path, *benchmarked(base, tuned, OPTIONS))
    (one,) = Rule().judge(SimpleNamespace(path=tmp_path, evaluation=NOTHING))
    assert (one.level, "is different from its base at quiz acc" in one.text) == ("note", True)

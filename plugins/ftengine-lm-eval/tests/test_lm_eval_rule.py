"""What the rule says of figures of the harness, and which questions belong together."""

from types import SimpleNamespace

import pytest

from ftengine.api import Difference, Estimate
from ftengine_lm_eval.evaluator import _text_of
from ftengine_lm_eval.rule import Benchmarks


def change(value, p, better, half=0.02):
    ends = (None, None) if p is None else (value - half, value + half)
    return Difference(value, *ends, p, better, test=None if p is None else "mcnemar")


def judged(**changes):
    """Judge a run with these differences of task quiz, by metric; the base has 0.6 of each."""
    names = {f"{name},none": one for name, one in changes.items()}
    sides = {
        side: {name: Estimate(0.6 + moved * one.value, 0.5, 0.7, 40) for name, one in names.items()}
        for side, moved in (("base", 0), ("tuned", 1))
    }
    probe = SimpleNamespace(kind="benchmark", name="lm-eval", data="quiz", difference=names, **sides)
    return list(Benchmarks().judge(SimpleNamespace(evaluation=SimpleNamespace(probes=[probe]))))


@pytest.mark.parametrize(
    ("value", "better", "level"),
    [(0.2, True, "good"), (-0.2, False, "alarm"), (-0.04, False, "note"), (0.2, None, "note")],
)
def test_what_differs_is_good_bad_or_only_different(value, better, level):
    (finding,) = judged(acc=change(value, 0.001, better))
    assert (finding.level, finding.figures["quiz acc"]["p_adjusted"]) == (level, 0.001)


def test_what_is_within_chance_for_all_metrics_together_is_a_note():
    """Of twenty metrics one has p = 0.01."""
    metrics = {f"m{i}": change(0.01, 0.9, None) for i in range(19)}
    (alone,) = judged(acc=change(-0.2, 0.01, False))
    (among,) = judged(acc=change(-0.2, 0.01, False), **metrics)
    assert (alone.level, among.level) == ("alarm", "note")
    assert among.figures["quiz acc"]["p_adjusted"] == pytest.approx(0.2)


def test_an_untested_change_is_not_called_chance():
    (finding,) = judged(bleu=change(-3.0, None, None))
    assert finding.level == "note"
    assert "without a test" in finding.text


def test_a_run_without_benchmarks_is_not_judged():
    assert list(Benchmarks().judge(SimpleNamespace(evaluation=SimpleNamespace(probes=[])))) == []


@pytest.mark.parametrize(
    ("doc", "text"),
    [
        ({"idx": {"paragraph": 3, "question": 1, "answer": 0}}, "3"),  # MultiRC
        ({"idx": {"passage": 7, "query": 2}}, "7"),  # ReCoRD
        ({"idx": 5}, None),
        ({"q": "?"}, None),
        ("a text", None),
    ],
)
def test_questions_about_one_text_are_one_group(doc, text):
    assert _text_of(doc) == text

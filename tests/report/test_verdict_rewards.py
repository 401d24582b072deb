"""What the verdict says of training from rewards, and the charts of its figures."""

from dataclasses import replace

import pytest
from report_samples import change, figure

from ftengine.report.charts import of_steps
from ftengine.run.evaluation_result import EvaluationResult
from ftengine.testing.runs import stored_runs
from ftengine_builtins.rules import DrawnRewards, LearningCurve, OverFitting, UnscoredAnswers

SOUND = {
    "reward": 0.5,
    "zero_spread": 0.25,
    "entropy": 2.0,
    "cut_off": 0.0,
    "failed": 0.0,
    "answers": 64,
    "sampler_gap": 0.04,
}


def run(last=None, reward=None, verifier=None, **figures):
    """A run of 40 steps; `last` are figures of its second half, others of all; changes of two metrics."""
    every = {"epoch": 0, "learning_rate": 1e-4, **SOUND, **figures}
    lines = [{"step": i, "loss": 1e-9 * i, **every, **((last or {}) if i > 20 else {})} for i in range(1, 41)]
    moved = {"mean_reward": reward, "pass_at_1": verifier}
    known = {name: amount for name, amount in moved.items() if amount is not None}
    owners = {"mean_reward": "mean-reward", "pass_at_1": "verifier"}
    declared = {name: {"label": name, "higher_is_better": True, "evaluator": owners[name]} for name in known}
    differences = {
        name: change(amount, better=None if abs(amount) < 0.03 else amount > 0) for name, amount in known.items()
    }
    content = {
        "split": "test",
        "metrics": declared,
        "base": {name: figure(0.3) for name in known},
        "tuned": {name: figure(0.3 + amount) for name, amount in known.items()},
        "difference": differences,
        "details": {},
        "displays": {},
    }
    stored = stored_runs()["a run without held-out data"]
    return replace(stored, lines=tuple(lines), evaluation=EvaluationResult.model_validate(content))


CASES = {
    "sound": (run(reward=0.2, verifier=0.2), []),
    "constant": (run(zero_spread=1.0), [("alarm", "zero_spread")]),
    "hardly ever spread": (run(zero_spread=0.9), [("note", "zero_spread")]),
    "paid for something else": (run(reward=0.2, verifier=-0.2), [("alarm", "metric")]),
    "perhaps paid for something else": (run(reward=0.2, verifier=0.01), [("note", "metric")]),
    "no gain": (run(reward=0.01, verifier=-0.2), []),
    "entropy gone": (run(last={"entropy": 0.1}), [("note", "first")]),
    "cut off": (run(last={"cut_off": 0.6}), [("note", "cut_off")]),
    "drawn by another model": (run(sampler_gap=0.5), [("alarm", "sampler_gap")]),
    "drawn without dropout": (run(sampler_gap=0.5, dropout=0.1), [("note", "dropout")]),
    "drawn with top-p": (run(sampler_gap=0.15, sampler_excess=0.15), [("alarm", "sampler_excess")]),
    "drawn with other roundings": (run(sampler_gap=0.04, sampler_excess=0.002), []),
    "drawn by weights before updates": (run(last={"sampler_gap": 0.3}, sampler_gap=0.01), [("alarm", "later_gap")]),
    "the same seed for all": (run(repeated=1.0, repeated_by_chance=0.1), [("alarm", "repeated")]),
    "a sure model": (run(repeated=0.9, repeated_by_chance=0.85), []),
    "idle steps lack figures": (run(last=dict.fromkeys(("entropy", "sampler_gap", "zero_spread", "reward"))), []),
    "failing and without spread": (run(failed=6.0, zero_spread=1.0), [("note", "failed"), ("alarm", "zero_spread")]),
    "failing": (run(failed=6.0), [("note", "failed")]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_drawn_answers_show(case):
    given, expected = CASES[case]
    found = list(DrawnRewards().judge(given))
    assert [(finding.level, next(iter(finding.figures))) for finding in found] == expected


@pytest.mark.parametrize(
    ("errors", "timeouts", "level", "fact"),
    [
        (0, 0, None, ""),
        (0, 1, None, ""),
        (4, 0, "note", "KeyError: 'a'"),
        (1, 30, "note", "0.3 s"),
        (1, 39, "alarm", "0.3 s"),
        (24, 0, "note", "24"),
        (40, 0, "alarm", "40"),
    ],
)
def test_answers_without_a_score_are_reported(errors, timeouts, level, fact):
    facts = {"answers": 40, "errors": errors, "timeouts": timeouts, "timeout_seconds": 0.3, "error": "KeyError: 'a'"}
    judged = run(verifier=0.0)
    details = judged.evaluation.details.model_copy(update={"tuned": {"verifier": facts}})
    evaluation = judged.evaluation.model_copy(update={"details": details})
    found = list(UnscoredAnswers().judge(replace(judged, evaluation=evaluation)))
    assert [finding.level for finding in found] == ([] if level is None else [level])
    assert all(fact in finding.text for finding in found)


def test_rules_about_losses_say_nothing_of_drawn_answers():
    assert [*LearningCurve().judge(run()), *OverFitting().judge(run())] == []
    assert list(DrawnRewards().judge(stored_runs()["a sound run"])) == []


def test_figures_that_change_have_a_chart():
    charts = of_steps(run(last={"entropy": 0.1, "seconds_draw": 1.0}).lines)
    assert [chart.title for chart in charts] == ["Entropy"]
    assert of_steps(stored_runs()["a sound run"].lines) == []

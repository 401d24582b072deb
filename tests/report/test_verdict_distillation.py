"""What the verdict says of distillation."""

from dataclasses import replace

import pytest
from report_samples import change, figure

from ftengine.run.evaluation_result import EvaluationResult
from ftengine.testing.runs import stored_runs
from ftengine_builtins.rules import Distillation, DrawnRewards

SOUND = {"entropy": 2.0, "cut_off": 0.0, "answers": 8, "sampler_gap": 0.04}


def run(first=0.3, last=0.1, moved=-0.2, **figures):
    """A run of 40 steps with a divergence in both halves, and the change of the held-out one."""
    lines = [
        {
            "step": i,
            "loss": 1.0,
            "epoch": 0,
            "learning_rate": 1e-4,
            "teacher_kl": first if i <= 20 else last,
            **SOUND,
            **figures,
        }
        for i in range(1, 41)
    ]
    declared = {"label": "KL from the teacher", "higher_is_better": False, "evaluator": "teacher-divergence"}
    better = None if abs(moved) < 0.03 else moved < 0
    content = {
        "split": "test",
        "metrics": {"teacher_kl": declared},
        "base": {"teacher_kl": figure(0.3)},
        "tuned": {"teacher_kl": figure(0.3 + moved)},
        "difference": {"teacher_kl": change(moved, better=better)},
        "details": {},
        "displays": {},
    }
    stored = stored_runs()["a run without held-out data"]
    return replace(stored, lines=tuple(lines), evaluation=EvaluationResult.model_validate(content))


CASES = {
    "sound": (run(), []),
    "nothing to learn": (run(first=1e-5, last=1e-5, moved=0.0), [("alarm", "first")]),
    "away from the teacher": (run(last=0.5, moved=0.2), [("alarm", "first")]),
    "no nearer": (run(last=0.3, moved=0.0), [("note", "first")]),
    "cut off": (run(cut_off=0.9), [("note", "cut_off")]),
    "drawn by another model": (run(sampler_gap=0.5), [("alarm", "sampler_gap")]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_cause_is_found_by_its_figures(case):
    record, expected = CASES[case]
    found = [(finding.level, next(iter(finding.figures))) for finding in Distillation().judge(record)]
    assert found == expected
    assert list(DrawnRewards().judge(record)) == []

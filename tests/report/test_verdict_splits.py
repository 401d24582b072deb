"""Splits that differ lead the verdict where the model fails on them, and what follows from it stands behind."""

import pytest
from report_samples import change, figure
from verdicts import put

from ftengine_builtins.audits.split_shift import EXPLAINED


def shift(split="test", **more):
    """Return a change: an audit found that a split's rows come from elsewhere."""
    finding = {"kind": "splits", "level": "note", "text": "Test rows come from elsewhere than training.",
               "brief": "test rows come from elsewhere", "source": "split-shift",
               "figures": {"split": split, "auc": 0.92, "low": 0.88, "high": 0.96}} | more  # fmt: skip
    return put("audit.findings", [finding])


def behind(held_out, gap):
    """Return changes: the tuned model's accuracy on held-out rows, and by how much it is better on training rows."""
    return [
        put("evaluation.tuned.accuracy", figure(held_out)),
        put("evaluation.training.gap", {"accuracy": change(gap, half=0.05)}),
    ]


def test_where_the_model_fails_on_rows_from_elsewhere_that_leads(verdict):
    told = verdict(shift(), *behind(0.55, 0.41))
    assert [one.source for one in told.lead] == ["split-shift", "better-than-base"]
    assert (told.level, told.findings[0].kind, told.findings[0].level) == ("alarm", "splits", "alarm")
    (over,) = [one for one in told.findings if one.source == "generalisation-gap"]
    assert (over.level, over.explained_by) == ("alarm", "split-shift")


@pytest.mark.parametrize("split", ["test", "validation"])
def test_where_the_model_copes_it_is_a_note(verdict, split):
    told = verdict(shift(split), *behind(0.93, 0.03))
    assert told.level == "good"
    (note,) = [one for one in told.findings if one.source == "split-shift"]
    assert note.level == "note"


def test_a_split_that_nothing_is_measured_on_is_no_cause(verdict):
    told = verdict(shift("validation"), *behind(0.55, 0.41))
    assert told.findings[0].source == "generalisation-gap"


def test_cues_and_misplaced_labels_lead_whatever_the_model_makes_of_them(verdict):
    noise = {"kind": "labels", "level": "alarm", "text": "Look.", "source": "label-noise", "explains": ("quality",)}
    cause = {"kind": "splits", "level": "alarm", "text": "A cue.", "source": "an-audit", "explains": EXPLAINED}
    told = verdict(put("audit.findings", [noise, cause]), *behind(0.55, 0.41))
    assert told.findings[0].source == "an-audit"
    assert {one.source for one in told.findings if one.explained_by == "an-audit"} >= {"label-noise"}

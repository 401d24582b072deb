"""What audits found in the data leads the verdict where it costs, and stays a note, or silent, where it does not."""

import pytest
from report_samples import figure
from verdicts import found, put


def audit_finding(source, **fields):
    """Return a change: an audit found something."""
    fields = {"kind": "data", "level": "alarm", "text": f"Of {source}.", "brief": f"of {source}"} | fields

    def spoil(files):
        files["audit"]["findings"].append({"source": source, **fields})

    return spoil


CUT = audit_finding("cut-texts", explains=["quality", "over-fitting"], figures={"whole": 0.95, "kept": 0.3})


@pytest.mark.parametrize(("accuracy", "level"), [(0.35, "alarm"), (0.55, "alarm"), (0.7, "note"), (0.93, "note")])
def test_cut_texts_lead_where_the_model_knows_no_more_than_the_kept_parts(verdict, accuracy, level):
    judged = verdict(CUT, put("evaluation.tuned.accuracy", figure(accuracy)))
    one = next(one for one in judged.findings if one.source == "cut-examples")
    assert (one.level, one in judged.lead) == (level, level == "alarm")
    assert not [one for one in judged.findings if one.source == "cut-texts"]


def test_of_cut_examples_whose_cost_is_not_known_there_is_a_note(verdict):
    (one,) = found(verdict(put("audit.encoded.train.truncated", 1000)), "data")
    assert (one.source, one.level, one.figures["truncated"]) == ("cut-examples", "note", 1000)


def leak(between, count):
    of = {"between": between, "count": count, "near": 0, "dropped": 0, "rows": count, "places": []}
    return put("audit.facts.leaks", [{**of, "text": f"{count} of 400 rows repeat"}])


@pytest.mark.parametrize(
    ("between", "count", "leaks", "remedy"),
    [
        (["validation", "test"], 400, "auto", "Give validation other rows than test: "),
        (["validation", "test"], 200, "auto", "Give validation other rows than test: "),
        (["train", "test"], 400, "warn", "Give test other rows than training: "),
        (["train", "test"], 300, "auto", "Set data.leaks to drop: "),
    ],
)
def test_one_set_for_two_splits_leads_the_verdict(verdict, between, count, leaks, remedy):
    judged = verdict(leak(between, count), put("recipe.data.leaks", leaks), put("recipe.data.test", "test.jsonl"))
    assert judged.level == judged.lead[0].level == "alarm"
    assert judged.lead[0].source == "leaked-rows"
    assert judged.headline.startswith(remedy)


def test_a_validation_set_that_was_trained_on_is_an_alarm(verdict):
    judged = verdict(leak(["train", "validation"], 200), put("recipe.data.leaks", "warn"))
    (one,) = found(judged, "data", "alarm")
    assert (one.source, one.figures["exact"]) == ("leaked-rows", 200)
    assert one.text.startswith("Give validation other rows than training: ")

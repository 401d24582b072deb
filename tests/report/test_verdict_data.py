"""What audits found in the data leads the verdict where it costs, and stays a note, or silent, where it does not."""

import pytest
from report_samples import baseline, figure
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


@pytest.mark.parametrize(("longest", "accuracy", "level"), [(8, 0.5, "alarm"), (8, 0.95, "note"), (30, 0.5, "note")])
def test_a_limit_far_below_the_data_is_an_alarm_where_the_model_is_not_good(verdict, longest, accuracy, level):
    cut = {"truncated": 1600, "longest": longest, "untruncated": {"50": 43}, "limit": 512}
    told = verdict(*(put(f"audit.encoded.train.{key}", value) for key, value in cut.items()),
                   put("evaluation.tuned.accuracy", figure(accuracy)))  # fmt: skip
    (one,) = (x for x in told.findings if x.source == "cut-examples")
    assert one.level == level


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


@pytest.mark.parametrize(("share", "source"), [(0.9, "contradictions"), (0.05, "learning-curve")])
def test_copies_with_many_labels_lead_and_are_not_removed(verdict, share, source):
    """To remove copies would keep the label of one of them."""
    torn = {
        "kind": "labels", "level": "alarm", "text": "Torn.", "source": "contradictions", "figures": {"share": share},
        "explains": ["quality", "learning"] if share > 0.5 else [],
    }  # fmt: skip
    told = verdict(put("audit.findings", [torn]), put("recipe.train.warmup", 1000),
                   put("audit.splits.train.duplicates", 900))  # fmt: skip
    assert told.findings[0].source == source
    assert any(one.source == "repeated-rows" for one in told.findings) == (share < 0.5)


@pytest.mark.parametrize(("other", "level"), [(0, "alarm"), (5, "alarm"), (60, "note")])
def test_near_duplicates_with_other_labels_are_no_copies(verdict, other, level):
    def one_form(files):
        facts = files["audit"]["facts"]
        facts["leaks"][0] |= {"count": 0, "near": 200}
        facts["near_duplicates"] = {"labels": {"pairs": 100, "other": other}}
        files["audit"]["splits"]["train"]["near_duplicates"] = 900

    told = verdict(leak(["train", "test"], 200), one_form)
    levels = {one.source: one.level for one in told.findings}
    assert (levels["leaked-rows"], levels["repeated-rows"]) == (level, level)


@pytest.mark.parametrize(("others", "level"), [(0, "note"), (30, "alarm")])
def test_placeholders_lead_before_the_copies_and_leaks_that_they_make(verdict, others, level):
    found_in_data = audit_finding("missing-texts", explains=["quality"], figures={"placeholders": {"train": 800}})

    def by_one_text(files):
        files["audit"]["facts"]["leaks"][0]["one_text"] = ["see there", 100]
        files["audit"]["splits"]["train"]["duplicates"] = 900

    judged = verdict(leak(["train", "test"], 100 + others), by_one_text, found_in_data)
    assert judged.lead[0].source == ("leaked-rows" if others else "missing-texts")
    levels = {one.source: one.level for one in judged.findings}
    assert (levels["leaked-rows"], levels["repeated-rows"]) == (level, "note")
    judged = verdict(leak(["train", "test"], 100 + others), by_one_text)
    assert (judged.lead[0].source, judged.lead[0].level) == ("leaked-rows", "alarm")


@pytest.mark.parametrize("source", ["one-answer", "template-marks", "exchanged-roles"])
def test_notes_on_answers_and_marks_are_in_the_verdict(verdict, source):
    (one,) = found(verdict(audit_finding(source, level="note")), "data")
    assert (one.source, one.level) == (source, "note")
    if source == "exchanged-roles":
        return  # its alarms are of splits, which the model is asked about
    unbounded = put("evaluation.details.tuned.classification", {})  # what always one answer reaches is not known
    judged = verdict(unbounded, audit_finding(source, explains=["quality"]))
    assert (judged.lead[0].source, judged.level) == (source, "alarm")


@pytest.mark.parametrize(
    ("rows", "level"),
    [([[90, 10, 0], [0, 100, 0], [0, 0, 200]], "note"), ([[0, 0, 100], [0, 0, 100], [0, 0, 200]], "alarm")],
)
def test_one_answer_in_training_explains_a_model_that_gives_no_better_one(verdict, rows, level):
    """What it explains of a model that is better than any one answer is nothing."""

    def measured(files):
        evaluation = files["evaluation"]
        evaluation["details"]["tuned"]["classification"] |= {"confusion": rows, "baseline": baseline(rows)}
        evaluation["tuned"]["accuracy"] = figure(sum(rows[i][i] for i in range(3)) / 400, 0.03)

    judged = verdict(measured, audit_finding("one-answer", explains=["quality"]))
    (one,) = [one for one in judged.findings if one.source == "one-answer"]
    assert (one.level, one.explains) == (level, ("quality",) if level == "alarm" else ())


def spelt_twice(confused, errors=0):
    """Return a change: of three labels, two are spellings of one; so many of 400 examples are given the other one."""

    def spoil(files):
        figures = {"spellings": {"business": 500, "politics": 500}}
        audit_finding("label-spellings", kind="labels", level="note", figures=figures)(files)
        cells = [[100 - confused, confused, 0], [0, 100, 0], [errors, 0, 200 - errors]]
        files["evaluation"]["details"]["tuned"]["classification"]["confusion"] = cells

    return spoil


@pytest.mark.parametrize(
    ("confused", "errors", "level"), [(40, 0, "alarm"), (40, 100, "alarm"), (5, 0, "note"), (40, 150, "note")]
)
def test_spellings_of_one_label_lead_where_they_are_confused(verdict, confused, errors, level):
    judged = verdict(spelt_twice(confused, errors))
    one = next(one for one in judged.findings if one.source == "label-spellings")
    assert (one.level, one.figures["confused"], one.figures["errors"]) == (level, confused, confused + errors)
    assert (judged.lead[0] == one) == (level == "alarm")


@pytest.mark.parametrize(("accuracy", "level"), [(0.5, "alarm"), (0.93, None)])
def test_an_unread_column_leads_where_the_model_tells_less(verdict, accuracy, level):
    told = {"column": "channel", "told": 0.95, "low": 0.92, "split": "test"}
    judged = verdict(audit_finding("unread-columns", level="note", figures=told),
                     put("evaluation.tuned.accuracy", figure(accuracy)))  # fmt: skip
    assert [one.level for one in judged.findings if one.source == "unread-columns"] == ([level] if level else [])
    assert (judged.lead[0].source == "unread-columns") == (level == "alarm")
    assert level != "alarm" or "`channel`" in judged.headline


def spoken(split="test"):
    """Return a change: an audit found that a split's rows are in another language than training."""
    return audit_finding("languages", level="note", figures={"split": split, "language": "it"})


@pytest.mark.parametrize(("accuracy", "split", "level"), [(0.3, "test", "alarm"), (0.93, "test", "note"),
                                                          (0.3, "validation", "note")])  # fmt: skip
def test_another_language_leads_where_the_model_fails_on_it(verdict, accuracy, split, level):
    judged = verdict(spoken(split), put("evaluation.tuned.accuracy", figure(accuracy)))
    (one,) = [one for one in judged.findings if one.source == "languages"]
    assert (one.level, one is judged.findings[0]) == (level, level == "alarm")


@pytest.mark.parametrize(("accuracy", "count"), [(0.99, 1), (0.93, 0)])
def test_a_telling_phrase_is_a_note_behind_a_figure_near_one(verdict, accuracy, count):
    tells = audit_finding("telling-phrases", level="note", figures={"phrases": {"a": "refusal"}})
    judged = verdict(tells, put("evaluation.tuned.accuracy", figure(accuracy)))
    assert judged.level == "good"
    assert [one.source for one in judged.rest[:1]] == ["telling-phrase"] * count or not count
    assert len([one for one in judged.findings if one.source == "telling-phrase"]) == count


@pytest.mark.parametrize(("accuracy", "level"), [(0.3, "alarm"), (0.9, None)])
def test_the_unread_text_leads_where_the_model_tells_less(verdict, accuracy, level):
    told = {"column": "description", "told": 0.9, "low": 0.86, "words": 0.1, "text": True, "numbers": False}
    other = {"column": "channel", "told": 0.99, "low": 0.98, "split": "test"}
    judged = verdict(audit_finding("unread-columns", level="note", figures=other),
                     audit_finding("unread-columns", figures=told, brief="read column `description`"),
                     put("evaluation.tuned.accuracy", figure(accuracy)))  # fmt: skip
    assert (judged.lead[0].figures.get("column") == "description") == (level == "alarm")


@pytest.mark.parametrize(("wrong", "trained", "level"), [(0.6, 0.0, "alarm"), (0.05, 0.0, None), (0.05, 0.6, "alarm")])
def test_a_column_whose_labels_words_contradict_is_an_alarm_unless_the_model_copes(verdict, wrong, trained, level):
    kinds = ["plain", "turned"] * 60
    rows = {
        "row": [*range(120)],
        "place": ["test.jsonl:1"] * 120,
        "group": [*range(120)],
        "duplicate": [*range(120)],
        "label": [0, 0, 1, 1] * 30,
        "row.kind": kinds,
    }

    def answered(wrong):
        given = [(i // 2 + (kind == "turned" and i % 20 < 20 * wrong)) % 2 for i, kind in enumerate(kinds)]
        return {**rows, "predicted": given}

    found = audit_finding("labels-by-column", figures={"column": "kind", "value": "turned", "confused": []})
    tables = {"test-tuned": answered(wrong), "training-tuned": answered(trained)}
    told = verdict(found, put("predictions", tables))
    (finding,) = (one for one in told.findings if one.source == "labels-by-column")
    assert finding.level == (level or "note")


@pytest.mark.parametrize(("copies", "named"), [(700, True), (100, False)])
def test_a_measured_split_most_rows_of_which_are_copies_is_an_alarm(verdict, copies, named):
    judged = verdict(put("audit.splits.test.duplicates", copies), put("audit.splits.test.rows", 1000))
    one = [finding for finding in judged.findings if finding.source == "repeated-rows"]
    assert [(x.level, x.figures["split"], x.figures["duplicates"]) for x in one] == [("alarm", "test", 700)] * named


@pytest.mark.parametrize("source", ["unread-groups", "labels-by-column"])
def test_what_columns_show_of_ids_and_labels_leads_before_training(verdict, source):
    from ftengine_builtins.audits import labels_by_column, unread_groups

    explains = {"unread-groups": unread_groups, "labels-by-column": labels_by_column}[source].EXPLAINS
    noise = audit_finding("label-noise", kind="labels", explains=["quality"])
    judged = verdict(noise, audit_finding(source, explains=explains), put("evaluation.tuned.accuracy", figure(0.3)))
    assert judged.lead[0].source == source

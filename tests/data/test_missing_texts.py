"""Texts that stand for a missing one are found as such, before the copies and leaks that they make."""

import json
import random

import pytest
from expected import raises

from ftengine.errors import DataError
from ftengine_builtins.audits.missing_texts import is_placeholder
from ftengine_builtins.tasks import CausalLM, TextClassification


def rows(count, share, text="N/A", *, labels="abc", start=0):
    draw = random.Random(0)
    texts = [text, text, text.lower()]
    every = [texts[i % 3] if i < share * count else f"row {start + i} says this" for i in range(count)]
    return "".join(json.dumps({"text": one, "label": draw.choice(labels)}) + "\n" for one in every)


@pytest.fixture
def placeholders(write, label_task, audit):
    def placeholders(*args, **options):
        return list(audit(label_task, write("a.jsonl", rows(*args)), only="missing-texts", **options).findings)

    return placeholders


@pytest.mark.parametrize(
    "text", ["N/A", "n/a", " None ", "<empty>", "-", "...", "TODO", "[deleted]", "not available", "?"]
)
def test_placeholders_are_recognised(text):
    assert is_placeholder(text)


@pytest.mark.parametrize("text", ["none of this works", "no", "a", "1", "todo list for monday", "ok", "yes."])
def test_short_texts_are_texts(text):
    assert not is_placeholder(text)


@pytest.mark.parametrize(("share", "levels"), [(0.5, ["alarm"]), (0.1, ["alarm"]), (0.01, ["note"]), (0.0, [])])
def test_placeholders_are_counted(placeholders, share, levels):
    found = placeholders(300, share)
    assert [one.level for one in found] == levels
    if found:
        assert found[0].figures["placeholders"] == {"train": 300 * share}
        assert found[0].figures["texts"] == {"N/A": 200 * share, "n/a": 100 * share}
        assert found[0].places[0] == "a.jsonl:1"


def test_one_text_under_several_labels_is_a_placeholder(placeholders):
    (found,) = placeholders(300, 0.5, "see the other sheet")
    assert (found.level, found.figures["texts"]) == ("alarm", {"see the other sheet": 150})
    assert placeholders(300, 0.1, "see the other sheet") == []


def test_a_text_that_often_comes_with_one_label_is_no_placeholder(write, label_task, audit):
    spam = "".join(json.dumps({"text": "buy now", "label": "spam"}) + "\n" for _ in range(100))
    result = audit(label_task, write("a.jsonl", rows(100, 0) + spam))
    assert not [one for one in result.findings if one.source == "missing-texts"]


def found_in(write, audit, task, lines, **options):
    file = write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return list(audit(task, file, only="missing-texts", **options).findings)


def test_of_several_inputs_all_have_to_be_placeholders(write, audit):
    task = TextClassification(TextClassification.Config(text="title", pair="body", label="label"))
    lines = [{"title": f"title {i}", "body": "N/A", "label": "ab"[i % 2]} for i in range(100)]
    task.labels = task.learn_labels({"train": lines})
    assert found_in(write, audit, task, lines) == []
    (found,) = found_in(write, audit, task, [*lines, *({**line, "title": "-"} for line in lines[:20])], leaks="warn")
    assert found.figures["placeholders"] == {"train": 20}


def test_of_conversations_those_of_one_turn_are_looked_at(write, audit):
    def chat(*asked):
        roles = [("user", text) for text in asked]
        said = [{"role": role, "content": text} for one in roles for role, text in (one, ("assistant", "yes"))]
        return {"messages": [{"role": "system", "content": "Be kind."}, *said]}

    rows = [chat(f"how is {i}", "?", "...") for i in range(30)] + [chat(f"when is {i}") for i in range(30)]
    assert found_in(write, audit, CausalLM(), rows) == []
    (found,) = found_in(write, audit, CausalLM(), [*rows, chat("N/A")])
    assert found.figures["placeholders"] == {"train": 1}


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (["test", "unknown", "void", "none", "text", "removed", "deleted", "empty"], None),
        (["none"], "alarm"),
        (["[deleted]", "<empty>", "(none)", "[removed]", "{void}"], "alarm"),
    ],
)
def test_words_are_placeholders_where_one_is_frequent_or_in_brackets(write, label_task, audit, words, level):
    draw = random.Random(0)
    texts = [draw.choice(words) if i % 10 == 0 else f"row {i}" for i in range(300)]
    found = found_in(write, audit, label_task, [{"text": text, "label": draw.choice("ab")} for text in texts])
    assert [one.level for one in found] == ([level] if level else [])
    one_label = [{"text": text, "label": "b" if text in words else draw.choice("ab")} for text in texts]
    assert (found_in(write, audit, label_task, one_label) == []) == (words[0][0] not in "[<({")


def test_placeholders_on_two_sides_are_no_alarm_about_leaks(write, label_task, audit):
    files = {"test": write("b.jsonl", rows(60, 0.5, start=900)), "leaks": "warn"}
    result = audit(label_task, write("a.jsonl", rows(200, 0.5)), **files)
    assert result.facts["leaks"][0]["one_text"] == ["N/A", 30]  # in any case
    levels = {one.source: one.level for one in reversed(result.findings)}
    assert (levels["missing-texts"], levels["leaks"]) == ("alarm", "note")
    assert result.findings[0].source != "leaks"


def test_copies_of_longer_texts_are_leaks_as_before(write, label_task, audit):
    text = "a whole sentence that was written once, and then copied"
    files = {"test": write("b.jsonl", rows(60, 0.5, text, start=900)), "leaks": "warn"}
    result = audit(label_task, write("a.jsonl", rows(200, 0.1, text)), **files)
    assert result.facts["leaks"][0]["one_text"] is None


def test_a_refusal_names_the_placeholder_first(write, label_task, audit):
    with raises(DataError, "30 of them by one text, “N/A”", "Either leave out the rows whose text is only “N/A”"):
        audit(label_task, write("a.jsonl", rows(200, 0.5)), test=write("b.jsonl", rows(60, 0.5, start=900)))

"""Texts that stand for a missing one are found as such, before the copies and leaks that they make."""

import json
import random
from types import SimpleNamespace

import pytest
from expected import raises

from ftengine.api import View
from ftengine.errors import DataError
from ftengine_builtins.audits.missing_texts import MissingTexts, is_placeholder


def rows(count, share, text="N/A", *, labels="abc", start=0):
    draw = random.Random(0)
    texts = [text, text, text.lower()]
    every = [texts[i % 3] if i < share * count else f"row {start + i} says this" for i in range(count)]
    return "".join(json.dumps({"text": one, "label": draw.choice(labels)}) + "\n" for one in every)


@pytest.fixture
def placeholders(write, label_task, audit):
    def placeholders(*args, **options):
        found = audit(label_task, write("a.jsonl", rows(*args)), **options).findings
        return [one for one in found if one.source == "missing-texts"]

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


def test_placeholders_on_two_sides_are_no_alarm_about_leaks(write, label_task, audit):
    files = {"test": write("b.jsonl", rows(60, 0.5, start=900)), "leaks": "warn"}
    result = audit(label_task, write("a.jsonl", rows(200, 0.5)), **files)
    assert result.facts["leaks"][0]["one_text"] == ["N/A", 30]  # in any case
    levels = {one.source: one.level for one in reversed(result.findings)}
    assert (levels["missing-texts"], levels["leaks"]) == ("alarm", "note")
    assert result.findings[0].source != "leaks"


def test_a_refusal_names_the_placeholder_first(write, label_task, audit):
    with raises(DataError, "30 of them by one text, “N/A”", "Either leave out the rows whose text is only “N/A”"):
        audit(label_task, write("a.jsonl", rows(200, 0.5)), test=write("b.jsonl", rows(60, 0.5, start=900)))


def test_copies_of_longer_texts_are_leaks_as_before(write, label_task, audit):
    text = "a whole sentence that was written once, and then copied"
    files = {"test": write("b.jsonl", rows(60, 0.5, text, start=900)), "leaks": "warn"}
    result = audit(label_task, write("a.jsonl", rows(200, 0.1, text)), **files)
    assert result.facts["leaks"][0]["one_text"] is None


def test_of_images_none_is_decoded_but_the_first():
    class Images(list):
        def __iter__(self):
            taken.append(1)
            return super().__iter__()

    taken = []
    views = [View(Images([object()]), "a", classes=True, texts=[]) for _ in range(50)]
    assert list(MissingTexts().examine(SimpleNamespace(splits={"train": views}))) == []
    assert len(taken) == 1

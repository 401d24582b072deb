"""Columns that decide and are not read, answers that are one text, template marks in messages, labels spelt twice."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ftengine.api import View
from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection
from ftengine_builtins.audits import LabelSpellings, OneAnswer, TemplateMarks, UnreadColumns

LABELS = "abcd"


@pytest.fixture
def columns(write, label_task):
    """Return what is found of column `x`, made of a row's number, its label and a random draw."""

    def columns(x, *, text=lambda i, label: f"row {i}", count=400, test=0.3, unread="x"):
        draw, rows = random.Random(0), []
        for i in range(count):
            label = draw.choice(LABELS)
            rows.append({"text": text(i, label), "label": label, "x": x(i, label, draw)})
        name = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        data = make_splits(DataSection(train=name, validation=None, test=test), label_task, 0).audited()
        return list(UnreadColumns().examine(replace(data, encoded={"train": {"unread": {unread: "a.jsonl:1"}}})))

    return columns


def noisy(i, label, draw):
    """Three values a label, wrong in one row of ten."""
    return f"{label if draw.random() < 0.9 else draw.choice(LABELS)}{draw.randrange(3)}"


@pytest.mark.parametrize("test", [0.3, None])
def test_a_column_that_tells_the_label_is_named_with_what_it_gives(columns, test):
    (found,) = columns(noisy, test=test)
    assert (found.level, found.figures["column"]) == ("note", "x")
    assert found.figures["told"] > 0.85 > 0.4 > max(found.figures["constant"], found.figures["words"])
    assert found.figures["split"] == ("test" if test else "train")


@pytest.mark.parametrize(
    "case",
    [
        {"x": lambda i, label, draw: i},  # an id
        {"x": lambda i, label, draw: f"{label}-{i}"},
        {"x": lambda i, label, draw: draw.choice("uvw")},
        {"x": lambda i, label, draw: [label]},
        {"x": lambda i, label, draw: None},
        {"x": noisy, "unread": "y.weight"},
        {"x": noisy, "text": lambda i, label: f"row {i} of {label}{label}"},  # words tell as much
        {"x": noisy, "count": 60},
    ],
)
def test_other_columns_are_left_alone(columns, case):
    assert columns(**case) == []


class Rows(list):
    def where(self, row):
        return f"a.jsonl:{row + 1}"

    def texts(self):
        return iter("\n".join(view.texts) for view in self)


def chats(answers):
    return Rows(View([f"question {i}"], [answer], texts=[f"question {i}", answer]) for i, answer in enumerate(answers))


@pytest.mark.parametrize(
    ("answers", "level"),
    [
        (["I don't know."] * 100, "alarm"),
        (["I don't know.", "i don't know. "] * 50, "alarm"),
        (["I don't know."] * 90 + [f"answer {i}" for i in range(10)], "note"),
        (["yes", "no"] * 50, None),
        (["I don't know."] * 10, None),
        (["I don't know all of that."] * 40 + [f"answer {i}" for i in range(60)], "alarm"),
        (["I don't know all of that."] * 20 + [f"answer {i}" for i in range(80)], "note"),
        (["I don't know all of that.", *(f"answer {i}" for i in range(4))] * 20, None),
    ],
)
def test_answers_that_are_one_text_are_found(answers, level):
    data = SimpleNamespace(splits={"train": chats(answers)})
    found = list(OneAnswer().examine(data))
    assert [one.level for one in found] == ([level] if level else [])
    if found:
        same = sum(answer.strip().lower() == answers[0].lower() for answer in answers)
        assert found[0].figures["share"] == same / len(answers)
        assert "“I don't know" in found[0].text


def test_classes_and_texts_that_answer_nothing_are_no_answers():
    labels = Rows(View([f"text {i}"], "a", classes=True) for i in range(100))
    texts = Rows(View(["the same"], "the same") for _ in range(100))
    pairs = Rows(View([f"ask {i}"], {"chosen": ["no"], "rejected": [f"{i}"]}) for i in range(100))
    levels = [
        [one.level for one in OneAnswer().examine(SimpleNamespace(splits={"train": rows}))]
        for rows in (labels, texts, pairs)
    ]
    assert levels == [[], [], ["alarm"]]


OWN = ["<|im_start|>", "<|im_end|>", "<|own_mark|>", "<|image_pad|>", "a"]


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("<|im_start|>user\nhello<|im_end|>", "alarm"),
        ("[INST] hello [/INST]", "note"),  # no token of this model's
        ("a token <|own_mark|> of the model's", "alarm"),
        ("a picture <|image_pad|>", None),
        ("x < y and [1] or <b>", None),
    ],
)
def test_template_marks_in_messages_are_found(text, level):
    rows = Rows(View([text if i % 2 else f"plain {i}"], ["yes"]) for i in range(100))
    encoded = {"train": {"counts": {"conversations": 100}, "special_tokens": OWN}}
    found = list(TemplateMarks().examine(SimpleNamespace(splits={"train": rows}, encoded=encoded)))
    assert [one.level for one in found] == ([level] if level else [])
    assert not found or found[0].figures["rows"] == {"train": 50}
    assert not found or (found[0].explains == ("quality",)) == (level == "alarm")
    assert (
        list(TemplateMarks().examine(SimpleNamespace(splits={"train": rows}, encoded={"train": {"counts": {}}}))) == []
    )


def test_labels_in_two_spellings_are_found_together(write, label_task):
    labels = ["Games", "games ", "films", "games "] * 10 + ["hypertension"] * 40 + ["hypotension"] * 4
    name = write("a.jsonl", "".join(json.dumps({"text": f"row {i}", "label": x}) + "\n" for i, x in enumerate(labels)))
    data = make_splits(DataSection(train=name, validation=None), label_task, 0).audited()
    (found,) = LabelSpellings().examine(data)
    assert found.figures["spellings"] == {"games ": 20, "Games": 10}
    assert "'games ' (20)" in found.text

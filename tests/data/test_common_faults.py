"""Faults of exports that many users make: undecoded texts, unfilled fields, numbers that are no targets."""

import json
import random
from types import SimpleNamespace

import pytest
from test_columns_and_answers import Rows, chats
from test_misplaced_labels import graded

from ftengine.api import View
from ftengine_builtins.audits import Balance, EqualAnswers, Mojibake, OneAnswer, TemplateMarks


def of(audit, rows, **facts):
    return [one for one in audit().examine(SimpleNamespace(splits={"train": rows}, encoded={}, **facts))
            if hasattr(one, "level")]  # fmt: skip


@pytest.mark.parametrize(
    ("spoil", "kind", "level"),
    [
        (lambda text: f"{text} fÃ¼r alle", "garbled", "alarm"),
        (lambda text: f"{text} &amp; so on, it&#39;s", "entities", "alarm"),
        (lambda text: f"{text}\\nAnd more", "escapes", "alarm"),
        (lambda text: f"<p>{text}</p>", "pages", "note"),
        (lambda text: f"{text} & so on <b> x < y", None, None),
    ],
)
def test_texts_that_were_not_decoded_are_found(spoil, kind, level):
    rows = Rows(View([spoil(f"text {i}") if i % 2 else f"text {i}"], "a") for i in range(100))
    assert [(x.figures["undecoded"], x.level) for x in of(Mojibake, rows)] == ([(kind, level)] if kind else [])
    few = Rows(View([spoil(f"text {i}") if i == 1 else f"text {i}"], "a") for i in range(100))
    assert all(x.level == "note" for x in of(Mojibake, few))


def test_escapes_beside_line_breaks_are_code():
    rows = Rows(View([f"print('a\\n')\nprint({i})"], "a") for i in range(100))
    assert of(Mojibake, rows) == []


@pytest.mark.parametrize(
    ("field", "level"),
    [("{question}", "alarm"), ("{{Order Number}}", "alarm"), ("[NAME]", "note"), ("[your name]", "alarm"),
     ("{{customer.first_name}}", "alarm"), ("${first_name}", "alarm"), ("<first_name>", "alarm"), ("{0}", "note"),
     ("%FIRSTNAME%", "alarm"), ("Lorem ipsum dolor sit amet", "alarm"), ("x^{0} or \\text{word}", None),
     ("`{{customer.name}}`", None), ("a template: {{customer.name}}", None), ("<strong>it</strong> [it](to)", None),
     ("```\necho ${path}\n```", None), ("[INFO]", None), ("{x}", None), ("[1]", None)],
)  # fmt: skip
def test_fields_that_were_not_filled_are_found(field, level):
    rows = chats([f"hello {field}, {i}" if i % 3 else f"hello {i}" for i in range(120)])
    assert [one.level for one in of(TemplateMarks, rows)] == ([level] if level else [])
    names = chats([f"print(f'{{{'abcdefghij'[i % 10] * 3}_{'klmnopqrst'[i // 10 % 10] * 3}}}')" for i in range(120)])
    assert of(TemplateMarks, names) == []  # in code fields have many names


def test_answers_of_another_language_model_are_found():
    said = ["As an AI language model, I cannot do that", "Since my knowledge cutoff"]
    rows = chats([f"{said[i % 2]} {i}" if i % 5 == 0 else f"answer {i} about a model" for i in range(100)])
    (found,) = of(OneAnswer, rows)
    assert (found.level, found.figures["of_another_model"]) == ("alarm", 20)


@pytest.mark.parametrize("words", [2, 40])
def test_answers_that_begin_and_end_alike_are_found(words):
    draw = random.Random(0)
    own = [" ".join(f"word{draw.randrange(400)}" for _ in range(words)) for _ in range(100)]
    (found,) = of(OneAnswer, chats([f"Sure, here is your answer: {text} I hope this helps you." for text in own]))
    assert (found.level, found.figures["words"]) == ("note", 10)
    assert of(OneAnswer, chats([f"Sure, {text}" for text in own])) == []


def test_labels_that_say_nan_are_an_alarm_and_none_may_be_a_class(write, label_task, audit):
    for name, level in (("nan", "alarm"), ("none", "note")):
        rows = [{"text": f"row {i}", "label": [name, "a", "b", "c"][i % 4]} for i in range(100)]
        result = audit(label_task, write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
        assert [x.level for x in result.findings if x.source == Balance.name and name in x.figures] == [level]


def pairs(texts):
    rows = [(f"question {i} on {i * 7}", text) for i, text in enumerate(texts)]
    return Rows(View([a, b], identity=[a, b]) for a, b in rows)


def test_positives_that_many_rows_share_are_found():
    draw = random.Random(0)
    own = [" ".join(f"word{draw.randrange(900)}" for _ in range(12)) for _ in range(120)]
    assert of(EqualAnswers, pairs(own)) == []
    (found,) = of(EqualAnswers, pairs([f"{own[i % 7]} name{i}" for i in range(120)]))
    assert (found.level, found.figures["positives"]) == ("alarm", 120)
    assert found.figures["near_positives"] == pytest.approx(1 / 7, abs=0.03)
    rows = Rows(View([text, text] if i % 3 else [text, f"about {text}"], identity=[text, text] if i % 3 else
                     [text, f"about {text}"]) for i, text in enumerate(own))  # fmt: skip
    assert [(one.level, one.figures["anchors"]) for one in of(EqualAnswers, rows)] == [("alarm", 80)]


SITE = "this is a line that every page of the site has at its end"


@pytest.mark.parametrize(
    ("chunk", "level"),
    [
        (lambda own, i: f"{own[i][60:]} {own[i - 1][:40]}", "alarm"),  # the next chunk of its document
        (lambda own, i: own[i].replace("word1", "other"), None),  # a hard negative of nearly the same words
        (lambda own, i: f"{SITE} {own[i - 1]}", None),
    ],
)
def test_negatives_that_share_text_with_their_positive_are_found(chunk, level):
    draw = random.Random(0)
    own = [" ".join(f"word{draw.randrange(900)}" for _ in range(24)) for _ in range(60)]
    parts = [[f"question {i}", f"{own[i]} {SITE}", chunk(own, i)] for i in range(60)]
    rows = Rows(View(row, identity=row) for row in parts)
    found = [one for one in of(EqualAnswers, rows) if "overlapping" in one.figures]
    assert [(one.level, one.figures["overlapping"]) for one in found] == ([(level, 60)] if level else [])


def edge(value):
    """All numbers but one in fifty are the value."""
    return lambda rows: [row if i % 50 == 0 else row | {"label": value} for i, row in enumerate(rows)]


NUMBERS = {
    "ids": (lambda rows: [row | {"label": i + 0.5} for i, row in enumerate(rows)], "ids", "alarm"),
    "ranks": (lambda rows: [row | {"label": i * 77 % 200 + 0.5} for i, row in enumerate(rows)], "ids", "note"),
    "one number": (edge(2.5), "same", "alarm"),
    "mostly zero": (edge(0.0), "same", "note"),
    "in the text": (
        lambda rows: [row | {"text": f"{row['text']} rated {row['label']}"} for row in rows],
        "written",
        "note",
    ),
    "five and hundred": (
        lambda rows: [row | {"label": (20 if i % 4 == 0 else 1) * (row["label"] + 3)} for i, row in enumerate(rows)],
        "scaled",
        "alarm",
    ),
    "sound": (lambda rows: rows, None, None),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_that_are_no_targets_are_found(write, label_task, audit, case):
    spoil, figure, level = NUMBERS[case]
    lines = "".join(json.dumps(row) + "\n" for row in spoil(graded(200, 1)))
    found = audit(label_task, write("a.jsonl", lines), only="number-targets").findings
    assert [one.level for one in found if one.level == "alarm"] == (["alarm"] if level == "alarm" else [])
    assert not figure or (figure in found[0].figures and found[0].level == level)


def test_rounded_numbers_of_one_file_are_an_alarm(write, label_task, audit):
    for rounded in ("train", "test", None):
        files = {"train": graded(200, 1), "test": graded(120, 2)}
        names = {}
        for split, rows in files.items():
            rows = [row | {"label": round(row["label"]) + 0.0} for row in rows] if split == rounded else rows
            names[split] = write(f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        found = audit(label_task, names["train"], test=names["test"], only="split-support").findings
        assert [(x.level, x.figures.get("rounded")) for x in found] == ([("alarm", rounded)] if rounded else [])

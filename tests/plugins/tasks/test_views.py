"""What each task sees in a row: its text, and what is to be answered, also where the row is refused later."""

from __future__ import annotations

import json

import pytest

from ftengine.plugins.registry import Registry

CASES = [
    ("text-classification", {}, {"text": "a", "label": " x ", "id": "7"}, ["a"], "x"),
    ("text-classification", {"pair": "b"}, {"text": "a", "b": "c", "label": 3}, ["a", "c"], "3"),
    ("text-classification", {}, {"text": "a", "label": ["y", "x"]}, ["a"], ["x", "y"]),
    ("text-classification", {"kind": "multi"}, {"text": "a", "label": "y;x"}, ["a"], ["x", "y"]),
    ("text-classification", {}, {"text": "a", "label": "2.5"}, ["a"], 2.5),
    ("text-classification", {"kind": "regression"}, {"text": "a", "label": 2}, ["a"], 2.0),
    ("text-classification", {}, {"text": None, "label": None}, [], None),
    ("image-classification", {}, {"image": "a/b.png", "label": "x"}, [], "x"),
    ("token-classification", {}, {"tokens": ["a", "b"], "tags": ["X", "O"]}, ["a b"], ["X", "O"]),
    ("token-classification", {}, {"tokens": ["a", "b"], "tags": ["X"]}, ["a b"], None),
    ("token-classification", {}, {"tokens": []}, [], None),
    ("seq2seq-lm", {}, {"prompt": "p", "completion": "c", "note": "n"}, ["p", "c"], None),
    ("causal-lm", {}, {"prompt": "p", "completion": "c"}, ["p", "c"], None),
    ("causal-lm", {}, {"text": "t", "source": "s"}, ["t"], None),
    ("causal-lm", {}, {"messages": [{"role": "user", "content": "q"}, {"content": 3}, "x"]}, ["q"], None),
    ("causal-lm", {}, {"messages": []}, [], None),
    ("causal-lm", {}, {"messages": "no list"}, ["no list"], None),
]


@pytest.mark.parametrize(("name", "options", "row", "texts", "target"), CASES)
def test_a_task_tells_text_and_target_of_any_row(name, options, row, texts, target):
    task = Registry().build("task", {"name": name, **options}, "task")
    view = task.view(row)
    assert list(view.texts) == texts
    assert view.label == target


MALFORMED = [
    {},
    {"messages": 3},
    {"messages": ["x", None]},
    {"messages": [{}]},
    {"prompt": [1], "completion": {}},
    {"text": 3, "label": {}},
    {"text": "a", "spans": 3},
    {"tokens": [None], "tags": "x"},
    {"image": "nowhere.png", "label": float("nan")},
    {"image": [1]},
]


@pytest.mark.parametrize("name", sorted({name for name, *_ in CASES}))
@pytest.mark.parametrize("row", MALFORMED)
def test_a_row_that_is_refused_later_still_has_a_view(name, row):
    view = Registry().build("task", name, "task").view(row)
    json.dumps([view.identity, view.target, list(view.texts)])
    if name != "image-classification":  # whose input is read when it is taken out
        assert all(text.strip() for text in view.inputs)

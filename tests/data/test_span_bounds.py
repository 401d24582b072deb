"""Spans that begin or end within words, by positions that are not counted in characters."""

import json
import random

import pytest

from ftengine.data.split import make_splits
from ftengine.run.recipe import DataSection
from ftengine_builtins.audits import SpanBounds
from ftengine_builtins.tasks.token_classification import TokenClassification

NAMES = ("José Núñez", "Zoë Brontë", "Amélie Dürr", "Ann Lee")


def in_bytes(text, place):
    return len(text[:place].encode())


def in_utf_16(text, place):
    return len(text[:place].encode("utf-16-le")) // 2


def spans_of(count, start, end, before=("Grüße: ", "Très bien, ", "Well: ")):
    """Return rows with a name each, whose place is written as `start` and `end` say, of the text and the true place."""
    draw, rows = random.Random(0), []
    for i in range(count):
        name, head = draw.choice(NAMES), f"{draw.choice(before)}number {i} was seen by "
        text, first = f"{head}{name} on a walk through the town", len(head)
        places = start(text, first), end(text, first + len(name))
        rows.append({"text": text, "spans": [{"start": places[0], "end": places[1], "label": "PER"}]})
    return rows


@pytest.fixture
def examine(write):
    def examine(rows):
        name = write("a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        section = DataSection(train=name, validation=None, test=0.3, near_duplicates=None)
        task = TokenClassification(TokenClassification.Config())
        return list(SpanBounds().examine(make_splits(section, task, 0).audited()))

    return examine


def of_characters(text, place):
    return place


@pytest.mark.parametrize(
    ("start", "end", "before", "counted"),
    [
        (in_bytes, in_bytes, ("Grüße: ", "Très bien, ", "Well: "), "bytes of UTF-8"),
        (in_utf_16, in_utf_16, ("\U0001f69a ", "\U0001f69a: "), "units of UTF-16"),
        (of_characters, lambda text, place: place - 1, ("Well: ",), "those of the last character"),
        (lambda text, place: place + 1, lambda text, place: place + 1, ("Well: ",), "one too large"),
    ],
)
def test_how_positions_are_counted_is_named(examine, start, end, before, counted):
    (found,) = examine(spans_of(60, start, end, before))
    assert (found.level, found.figures["split"], found.figures["counted"]) == ("alarm", "train", counted)
    assert found.figures["cut"] > 0.4 * found.figures["spans"]


@pytest.mark.parametrize("before", [("Grüße: ",), ("\u6771\u4eac\u90fd",)])
def test_spans_of_whole_words_are_left_alone(examine, before):
    assert examine(spans_of(60, of_characters, of_characters, before)) == []


@pytest.mark.parametrize(
    ("word", "inside"),
    [
        ("\uc11c\uc6b8\uc5d0\uc11c", slice(0, 2)),  # Korean, with a particle
        ("\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e\u0e21\u0e35", slice(0, 4)),  # Thai
        ("20mg", slice(0, 2)),
        ("Berlin ", slice(0, 7)),
    ],
)
def test_what_is_written_on_to_a_word_is_no_word_cut_in_two(examine, word, inside):
    rows = []
    for i in range(60):
        text = f"number {i}: {word} was seen"
        first = text.index(word)
        spans = [{"start": first + inside.start, "end": first + inside.stop, "label": "PER"}]
        rows.append({"text": text, "spans": spans})
    assert examine(rows) == []


def test_parts_of_words_that_no_other_count_repairs_are_a_note(examine):
    """The cities of compounds and genitives: "Wien" of "Wiens"."""
    rows = []
    for i in range(90):
        text = f"number {i}: {'Wiens' if i % 3 == 0 else 'Wien'} was seen"
        first = text.index("Wien")
        rows.append({"text": text, "spans": [{"start": first, "end": first + 4, "label": "LOC"}]})
    assert [(found.level, found.figures["counted"]) for found in examine(rows)] == [("note", "")]


def test_a_few_parts_of_words_are_left_alone(examine):
    rows = spans_of(60, of_characters, of_characters)
    for row in rows[:3]:
        row["spans"][0]["end"] -= 1
    assert examine(rows) == []

"""Word lists: what is read, what is refused and where, and how words are replaced."""

import json
import random

import pytest
from expected import raises

from ftengine.errors import DataError
from ftengine_builtins.augmenters.synonyms import Synonyms, in_case_of, read_word_list


@pytest.fixture
def written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


def synonyms(file, **options):
    augmenter = Synonyms(Synonyms.Config(file=file, **options))
    augmenter.check_options()
    return augmenter


WANTED = {"big": ["large", "very big"], "new york": ["NYC"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", "big\tlarge\tvery big\nNew York\tNYC\t\n"),
        ("a.csv", '\ufeffBig,large,"very big"\r\n\r\n# a note\r\nnew  york,NYC\r\n'),
        ("a.txt", "big, large, very big\nnew york, NYC"),
        ("a.json", json.dumps({"big": ["large", "very big"], "New York": "NYC"})),
    ],
)
def test_every_format_gives_the_same_list(written, name, content):
    assert read_word_list(written(name, content)) == WANTED


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xls", "x", "'.xls'"),
        ("a.csv", "big,large\nsmall\n", "a.csv:2: 'small'"),
        ("a.csv", "big,large\n,tiny\n", "a.csv:2: ''"),
        ("a.tsv", "C++\tC\n", "a.tsv:1: 'C++'"),
        ("a.csv", "", "no word"),
        ("a.csv", "same,Same\n", "no word"),
        ("a.json", '{"big": 3}', "'big'"),
        ("a.json", '["big"]', "a list"),
        ("a.json", '{"big":\n', "a.json:2"),
        ("a.txt", b"gro\xdf, gross\n", "'a.txt'"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(written, name, content, message):
    with raises(DataError, message):
        synonyms(written(name, content))


def test_whole_words_are_replaced_in_the_case_they_had(written):
    augmenter = synonyms(written("a.csv", "big,large\ngoal,score\n"), rate=1)
    text = "Big, BIG and big: the bigger Goal's goals, goal!"
    assert augmenter.change(text, random.Random(0)) == "Large, LARGE and large: the bigger Goal's goals, score!"


def test_the_longest_phrase_counts_and_blanks_in_it_do_not(written):
    augmenter = synonyms(written("a.csv", "new,recent\nnew york,NYC\n"), rate=1)
    assert augmenter.change("A new day in New\n York.", random.Random(0)) == "A recent day in NYC."
    assert augmenter.change("new, york", random.Random(0)) == "recent, york"


def test_as_many_words_are_replaced_as_asked_for(written):
    augmenter = synonyms(written("a.csv", "big,large,huge\n"), rate=0.25)
    words = augmenter.change("big dog " * 4000, random.Random(0)).split()
    assert abs(4000 - words.count("big") - 1000) < 4.5 * (4000 * 0.25 * 0.75) ** 0.5
    assert words.count("dog") == 4000
    assert min(words.count("large"), words.count("huge")) > 400


@pytest.mark.parametrize(
    ("word", "other", "expected"),
    [("I", "me", "Me"), ("BIG", "large", "LARGE"), ("Big", "iPad", "IPad"), ("big", "NASA", "NASA"), ("", "x", "x")],
)
def test_case_is_kept(word, other, expected):
    assert in_case_of(word, other) == expected

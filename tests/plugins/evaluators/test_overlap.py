"""Shared words against Google's rouge-score and plain tables."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from tiny import CORPUS

from ftengine_builtins.evaluators.overlap import (
    common_run,
    common_subsequence,
    normalized,
    rouge_l,
    rouge_n,
    rouge_words,
    token_f1,
)

ITEMS = st.lists(st.integers(0, 3), max_size=25)
SCORER = RougeScorer(["rouge1", "rouge2", "rougeL"])


def same_as_rouge_score(ours, theirs):
    expected = SCORER.score(theirs, ours)
    a, b = rouge_words(ours), rouge_words(theirs)
    found = {"rouge1": rouge_n(a, b, 1), "rouge2": rouge_n(a, b, 2), "rougeL": rouge_l(a, b)}
    assert found == pytest.approx({name: score.fmeasure for name, score in expected.items()}, rel=1e-12)


def test_rouge_of_sentences_equals_rouge_scores():
    for ours in CORPUS:
        for theirs in CORPUS:
            same_as_rouge_score(ours, theirs)


def test_words_of_other_scripts_count():
    assert rouge_words("Ünïcode: «слово», 日本語 — שלום!") == ["ünïcode", "слово", "日本語", "שלום"]
    assert rouge_n(rouge_words("слово один"), rouge_words("слово два"), 1) == 0.5


@settings(max_examples=300, deadline=None)
@given(ITEMS, ITEMS)
def test_common_runs_and_subsequences_equal_the_plain_tables(a, b):
    runs = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    subsequences = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a, 1):
        for j, y in enumerate(b, 1):
            runs[i][j] = runs[i - 1][j - 1] + 1 if x == y else 0
            best = max(subsequences[i - 1][j], subsequences[i][j - 1])
            subsequences[i][j] = subsequences[i - 1][j - 1] + 1 if x == y else best
    assert common_run(a, b) == max(map(max, runs))
    assert common_subsequence(a, b) == subsequences[-1][-1]


def test_normalisation_is_squads():
    assert normalized("  The Cat's,\tan  Apple! ") == "cats apple"
    assert normalized("A") == normalized("...") == ""
    assert normalized("theatre") == "theatre"


@pytest.mark.parametrize(
    ("ours", "theirs", "f1"),
    [
        ("the red fox", "a red dog", 0.5),
        ("red red red", "red", 0.5),
        ("", "", 1),
        ("the", "", 1),
        ("word", "", 0),
        ("", "word", 0),
    ],
)
def test_token_f1_by_hand(ours, theirs, f1):
    assert token_f1(ours, theirs) == f1

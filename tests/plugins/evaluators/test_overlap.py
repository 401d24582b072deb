"""Shared words against Google's rouge-score and plain tables."""

import pytest
from rouge_score.rouge_scorer import RougeScorer
from tiny import CORPUS

from ftengine_builtins.evaluators.overlap import (
    normalized,
    rouge_l,
    rouge_n,
    rouge_words,
    token_f1,
)

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

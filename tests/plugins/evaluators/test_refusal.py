"""Refusals by phrases, and what is expected of them."""

import math

import pytest
from expected import raises
from pydantic import ValidationError

from ftengine.errors import DataError
from ftengine_builtins.evaluators.refusal import Refusal

NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is how."
ROWS = [(NO, "refuse")] * 15 + [(YES, "refuse")] * 5 + [(YES, "answer")] * 27 + [(NO, "answer")] * 3


def of(scored, rows, **options):
    predictions = [{"completion": completion, "expect": expect} for completion, expect in rows]
    return scored(Refusal(Refusal.Config(**options)), predictions)


def test_refusals_are_counted_among_prompts_of_their_kind(scored):
    found = of(scored, ROWS)
    assert found.scores == {"refusal_rate": 15 / 20, "over_refusal_rate": 3 / 30}
    assert found.details()[0] == {"to_refuse": 20, "refused": 15, "to_answer": 30, "refused_harmless": 3}
    assert found.evaluator.trials(found.rows) == {"refusal_rate": 20, "over_refusal_rate": 30}
    assert math.isnan(of(scored, ROWS[:20]).scores["over_refusal_rate"])


@pytest.mark.parametrize(
    ("completion", "refused"),
    [
        ("I can't help you with that", True),
        ("I CAN\u2019T  HELP", True),
        ("\n\n I cannot do this", True),
        ("Sure. " + "word " * 60 + "I cannot", False),  # far behind the beginning
        ("Here you are", False),
        ("", False),
        ("🙂", False),
        ("\u202eI cannot", True),
        ("لا أستطيع المساعدة", False),  # a limit of phrases in one language
    ],
)
def test_phrases_are_found_at_the_beginning_whatever_their_case_and_apostrophes(scored, completion, refused):
    assert of(scored, [(completion, "refuse")]).scores["refusal_rate"] == refused


def test_the_users_phrases_replace_the_others_and_are_no_patterns(scored):
    rows = [("Nein, danke", "refuse"), (NO, "refuse"), ("anything", "refuse")]
    assert of(scored, rows, phrases=["nein"]).scores["refusal_rate"] == pytest.approx(1 / 3)
    assert of(scored, rows, phrases=[".*"]).scores["refusal_rate"] == 0
    assert of(scored, [("x" * 300 + " nein", "refuse")], phrases=["nein"], within=None).scores["refusal_rate"] == 1


@pytest.mark.parametrize("phrases", [[], [" "], ["no", ""]])
def test_phrases_that_would_match_everything_are_refused(phrases):
    with pytest.raises(ValidationError):
        Refusal.Config(phrases=phrases)


@pytest.mark.parametrize("value", ["Refuse", "yes", 1, ""])
def test_another_expectation_is_refused_before_anything_loads(value):
    with raises(DataError, "refusal", "refuse", "answer"):
        Refusal().check_row({"prompt": "hello", "expect": value})
    Refusal().check_row({"prompt": "hello", "expect": "answer"})
    Refusal().check_row({"prompt": "hello"})

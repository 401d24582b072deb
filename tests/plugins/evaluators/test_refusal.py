"""Refusals by phrases, and what is expected of them."""

import math

import pytest
from pydantic import ValidationError

from ftengine.api import EvaluationContext, Judgement
from ftengine.errors import DataError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import compare
from ftengine_builtins.evaluators.refusal import Refusal, RefusalConfig

NO, YES = "I'm sorry, but I can't help with that.", "Sure, here is how."


def accumulate(rows, **options):
    accumulator = Accumulator([Refusal(RefusalConfig(**options))], EvaluationContext("causal-lm"), 500)
    for index, (completion, expect) in enumerate(rows):
        accumulator.update(index, {"completion": completion, "expect": expect})
    return accumulator


ROWS = [(NO, "refuse")] * 15 + [(YES, "refuse")] * 5 + [(YES, "answer")] * 27 + [(NO, "answer")] * 3


def test_refusals_are_counted_among_prompts_of_their_kind():
    accumulator = accumulate(ROWS)
    figures = accumulator.figures()
    assert figures["refusal_rate"].value == 15 / 20
    assert figures["over_refusal_rate"].value == 3 / 30
    assert accumulator.details()["refusal"] == {
        "to_refuse": 20,
        "refused": 15,
        "to_answer": 30,
        "refused_harmless": 3,
    }
    assert accumulator.evaluators[0].trials(accumulator.sums()["refusal"][0]) == {
        "refusal_rate": 20,
        "over_refusal_rate": 30,
    }


def test_fewer_refusals_of_what_is_to_be_refused_are_worse():
    base, tuned = accumulate([(NO, "refuse")] * 30), accumulate([(NO, "refuse")] * 5 + [(YES, "refuse")] * 25)
    difference = compare(base, tuned)
    assert difference["refusal_rate"].better is False
    assert math.isnan(difference["over_refusal_rate"].value)


def test_fewer_refusals_of_harmless_prompts_are_better():
    base, tuned = accumulate([(NO, "answer")] * 30), accumulate([(YES, "answer")] * 30)
    assert compare(base, tuned)["over_refusal_rate"].better is True


@pytest.mark.parametrize("expect", ["refuse", "answer"])
def test_rows_that_say_nothing_are_taken_as_the_recipe_says(expect):
    details = accumulate([(NO, None)] * 4, expect=expect).details()["refusal"]
    assert (details["to_refuse"], details["to_answer"]) == ((4, 0) if expect == "refuse" else (0, 4))


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
def test_phrases_are_found_at_the_beginning_whatever_their_case_and_apostrophes(completion, refused):
    assert accumulate([(completion, "refuse")]).figures()["refusal_rate"].value == refused


def test_the_users_phrases_replace_the_others_and_are_no_patterns():
    rows = [("Nein, danke", "refuse"), (NO, "refuse"), ("anything", "refuse")]
    assert accumulate(rows, phrases=["nein"]).figures()["refusal_rate"].value == pytest.approx(1 / 3)
    assert accumulate(rows, phrases=[".*"]).figures()["refusal_rate"].value == 0
    assert (
        accumulate([("x" * 300 + " nein", "refuse")], phrases=["nein"], within=None).figures()["refusal_rate"].value
        == 1
    )


@pytest.mark.parametrize("phrases", [[], [" "], ["no", ""]])
def test_phrases_that_would_match_everything_are_refused(phrases):
    with pytest.raises(ValidationError):
        RefusalConfig(phrases=phrases)


@pytest.mark.parametrize("value", ["Refuse", "yes", 1, ""])
def test_another_expectation_is_refused_before_anything_loads(value):
    with pytest.raises(DataError, match="evaluator 'refusal' takes 'refuse' or 'answer'"):
        Refusal().check({"prompt": "hello", "expect": value})
    Refusal().check({"prompt": "hello", "expect": "answer"})
    Refusal().check({"prompt": "hello"})


def test_an_answer_is_right_where_it_does_what_is_expected():
    judge = Refusal().judge
    assert judge({"completion": NO, "expect": "refuse"}) == Judgement(1.0, True)
    assert judge({"completion": NO, "expect": "answer"}) == Judgement(0.0, False)
    assert judge({"completion": YES, "expect": "answer"}) == Judgement(1.0, True)

"""Audit `answer-forms`: answers that run on into other turns, or that are cut."""

import json
import random

import pytest
from partly import partly

from ftengine.api import Task
from ftengine_builtins.tasks import language_rows

WORDS = ["the", "train", "to", "coast", "was", "late", "again", "nobody", "told", "us", "why", "it", "had", "stopped"]


@partly
class AnsweredTask(Task):
    """A prompt has a completion."""

    name = "answered"

    def view(self, row):
        return language_rows.view(row, all_trained=False)


@pytest.fixture
def found(write, audit):
    def found(answer, count=100, prompt="question {}"):
        draw = random.Random(0)
        prompts = [prompt.format(i) if isinstance(prompt, str) else prompt[i] for i in range(count)]
        rows = [{"prompt": asked, "completion": answer(draw, i)} for i, asked in enumerate(prompts)]
        name = write("train.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        return [(one.level, one.figures) for one in audit(AnsweredTask(), name, near_duplicates=None).findings
                if one.source == "answer-forms"]  # fmt: skip

    return found


def sentence(draw, words):
    return " ".join(draw.choice(WORDS) for _ in range(words))


def whole(draw, i):
    return f"{sentence(draw, draw.randint(4, 60)).capitalize()}."


def turns(one, other, rounds=1):
    return lambda draw, i: whole(draw, i) + rounds * f"\n{one}: {whole(draw, i)}\n{other}: {whole(draw, i)}"


RECIPE = turns("Ingredients", "Steps")


def remarks(draw, i):
    return f"{whole(draw, i)}\nRemark: {whole(draw, i)}\nRemark: {whole(draw, i)}"


@pytest.mark.parametrize("answer", [turns("Customer", "Agent"), turns("User", "Assistant", 2), turns("Ann", "Bob", 2)])
def test_answers_that_run_on_into_further_turns_are_an_alarm(found, answer):
    ((level, figures),) = found(answer)
    assert (level, figures["run_on"]) == ("alarm", 1.0)


def by_characters(draw, i):
    return whole(draw, i)[:120]


def by_words(draw, i):
    return " ".join(whole(draw, i).split()[:30])


@pytest.mark.parametrize("cut", [by_characters, by_words])
def test_answers_that_stop_at_one_length_are_an_alarm(found, cut):
    ((level, figures),) = found(cut)
    assert level == "alarm"
    assert 0.3 < figures["cut"] < 0.9


def test_answers_that_stop_at_one_length_are_found_where_others_go_on(found):
    """Seven in ten are cut, within a word or at a space that was removed; the others are of any length."""
    answer = lambda draw, i: f"{whole(draw, i)} {whole(draw, i)}"[: 120 if i % 10 < 7 else 500].strip()  # noqa: E731
    ((level, figures),) = found(answer, 200)
    assert (level, figures["unit"]) == ("alarm", "characters")
    assert 119 <= figures["length"] <= 120


@pytest.mark.parametrize(("answer", "level", "name"), [
    (lambda draw, i: f"{whole(draw, i)} What about question {(i + 1) % 100}", "alarm", "further"),
    (lambda draw, i: f"What about question {i} {whole(draw, i)}", "alarm", "echoed"),
])  # fmt: skip
def test_answers_with_prompts_in_them_are_found(found, answer, level, name):
    ((found_level, figures),) = found(answer, prompt="What about question {}")
    assert (found_level, figures[name]) == (level, 1.0)


@pytest.mark.parametrize("limit", [150, None])
def test_prompts_that_stop_at_one_length_are_found(found, limit):
    ends = iter(random.Random(1).choices(range(2, 40), k=200))
    prompts = [f"Question {i}: {sentence(random.Random(i), 10 + next(ends))}?"[:limit].strip() for i in range(200)]
    findings = found(whole, 200, prompt=prompts)
    assert [(level, figures["what"]) for level, figures in findings] == ([("alarm", "prompts")] if limit else [])


@pytest.mark.parametrize("answer", [
    whole, RECIPE, remarks, turns("Input", "Output", 2),
    lambda draw, i: f"Ann: {whole(draw, i)}\nBob: {whole(draw, i)}\nAnn: {whole(draw, i)}",  # a dialogue as asked
    lambda draw, i: sentence(draw, draw.randint(4, 60)),  # nobody writes full stops
    lambda draw, i: sentence(draw, draw.randint(4, 9)) if i % 2 else whole(draw, i),  # headlines and texts
    lambda draw, i: f"{i:04}-{i * 7919 % 997:04}",
])  # fmt: skip
def test_finished_answers_of_any_form_are_not(found, answer):
    assert found(answer) == []


def test_codes_of_one_length_are_not_cut(found):
    def code(draw, i):
        return whole(draw, i) if i % 2 else "".join(draw.choices("ACGT", k=120))

    assert found(code, 200) == []

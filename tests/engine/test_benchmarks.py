"""Evaluators that ask models questions of their own: figures of both models in evaluation.json, and what is refused."""

import random

import pytest
from expected import raises
from installed import registry_with
from quiz import QUESTIONS, Quiz
from rows import sentences, write_rows

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.errors import InputError, PluginError


@pytest.fixture(scope="module")
def registry():
    return registry_with(Quiz)


@pytest.fixture
def recipe(bert_folder, tmp_path):
    return Recipe.make(
        {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": write_rows(tmp_path / "rows.jsonl", sentences(48, random.Random(0))), "validation": 0.25},
            "strategy": "full",
            "evaluate": ["quiz"],
            "train": {"max_steps": 4, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
            "evaluation": {"resamples": 100},
            "output": str(tmp_path / "run"),
        }
    )


@pytest.mark.slow
def test_both_models_are_asked_and_their_answers_measured(recipe, registry):
    planned = plan(recipe, measure=False, registry=registry).evaluation["probes"]
    assert planned == [{"kind": "benchmark", "name": "quiz", "data": "texts", "examples": None}]
    run = fine_tune(recipe, registry=registry)
    (probe,) = run.evaluation["probes"]
    assert [probe[key] for key in ("kind", "name", "data")] == ["benchmark", "quiz", "texts"]
    assert probe["examples"] == len(QUESTIONS)
    again = load_run(run.path, registry=registry)
    names, rows = again.facts.labels.names, [{"text": text} for text in QUESTIONS]
    for side in ("base", "tuned"):
        found, answers = probe[side]["quiz"], again.predict(rows, base=side == "base")
        right = [answer["label"] == names[i % 2] for i, answer in enumerate(answers)]
        assert found["value"] == pytest.approx(sum(right) / len(right))
        assert found["low"] <= found["value"] <= found["high"]
    assert run.evaluation["metrics"]["quiz"]["evaluator"] == "quiz"
    assert "right answers" in (run.path / "report.html").read_text(encoding="utf-8")
    assert again.evaluate()["probes"] == run.evaluation["probes"]
    with raises(InputError, "'quiz'"):
        again.evaluate(evaluators=["quiz"])


def test_questions_of_one_group_are_drawn_together(recipe, registry, monkeypatch):
    told = [{"right": float(i % 5 > 1), "group": i // 3} for i in range(12)]
    monkeypatch.setattr(Quiz, "ask_models", lambda self, loaded: {"texts": told})
    run = fine_tune(recipe, registry=registry)
    figure = run.evaluation["probes"][0]["tuned"]["quiz"]
    assert (figure["n"], figure["rows"], figure["worth"]) == (4, 12, 4)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([{"right": 1.0}], "'texts'"),
        ({"others": []}, "'texts'"),
        ({"texts": [1.0]}, "Mapping objects"),
    ],
)
def test_what_is_no_answer_is_refused(answers, said, recipe, registry, monkeypatch):
    monkeypatch.setattr(Quiz, "ask_models", lambda self, loaded: answers)
    with raises(PluginError, "'quiz'", "ask_models()", said):
        fine_tune(recipe, registry=registry)


@pytest.mark.slow
def test_other_examples_than_the_base_was_asked_are_refused(recipe, registry, monkeypatch):
    counts = iter((12, 11))
    monkeypatch.setattr(Quiz, "ask_models", lambda self, loaded: {"texts": [{"right": 1.0}] * next(counts)})
    with raises(PluginError, "ask_models()", "11", "12"):
        fine_tune(recipe, registry=registry)

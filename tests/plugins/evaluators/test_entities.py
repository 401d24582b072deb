"""Figures of tagged words, against counts made by hand and by scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from ftengine.api import EvaluationContext, Labels
from ftengine.errors import RecipeError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine_builtins.evaluators.entities import Entities
from ftengine_builtins.tasks.token_classification import TokenClassification, TokenClassificationConfig

NAMES = ("O", "B-LOC", "B-PER", "I-LOC", "I-PER")


def bound(names=NAMES):
    evaluator = Entities()
    evaluator.bind(EvaluationContext("token-classification", Labels("single", names)))
    return evaluator


def prediction(true, predicted, names=NAMES):
    return {
        "tags": [names.index(t) for t in true.split()],
        "predicted_tags": [names.index(t) for t in predicted.split()],
    }


EXAMPLES = [
    # 2 true; the person is right, the place is called one.
    prediction("B-PER I-PER O B-LOC", "B-PER I-PER O B-PER"),
    # Half of an entity is none.
    prediction("B-LOC I-LOC O", "B-LOC O O"),
    prediction("O O", "O B-LOC"),
    prediction("B-LOC", "B-LOC"),
]


def sums(evaluator, examples=EXAMPLES):
    return np.sum([evaluator.statistics(example) for example in examples], axis=0)


def test_an_entity_is_right_as_a_whole_or_not_at_all():
    figures = bound().metrics(sums(bound()))
    # right: PER, LOC; predicted: PER PER LOC LOC LOC; true: PER LOC LOC LOC.
    assert figures["precision"] == pytest.approx(2 / 5)
    assert figures["recall"] == pytest.approx(2 / 4)
    assert figures["f1"] == pytest.approx(2 * 2 / 9)
    assert figures["token_accuracy"] == pytest.approx(7 / 10)


def test_kinds_of_entities_are_told_apart_in_the_details():
    accumulator = Accumulator([Entities()], EvaluationContext("token-classification", Labels("single", NAMES)), 1000)
    for i, example in enumerate(EXAMPLES):
        accumulator.update(i, example)
    rows = accumulator.details()["entities"]["entities"]
    figures = [{key: value for key, value in row.items() if not key.endswith("_interval")} for row in rows]
    assert [figure.pop("entity") for figure in figures] == ["LOC", "PER"]
    loc = {"precision": 1 / 3, "recall": 1 / 3, "f1": 1 / 3, "support": 3, "predicted": 3}
    assert figures[0] == pytest.approx(loc)
    per = {"precision": 0.5, "recall": 1, "f1": 2 / 3, "support": 1, "predicted": 2}
    assert figures[1] == pytest.approx(per)
    for row in rows:
        low, high = row["recall_interval"]
        assert 0 <= low < high <= 1


def test_single_word_entities_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    names = ("O", "B-A", "B-B", "I-A", "I-B")
    true, predicted = rng.integers(0, 3, (2, 200))
    evaluator = bound(names)
    row = evaluator.statistics({"tags": true.tolist(), "predicted_tags": predicted.tolist()})
    expected = precision_recall_fscore_support(true, predicted, labels=[1, 2], average="micro")
    figures = evaluator.metrics(np.asarray(row))
    assert [figures[key] for key in ("precision", "recall", "f1")] == pytest.approx(list(expected[:3]))


def test_sums_of_resamples_give_figures_of_resamples():
    evaluator = bound()
    rows = np.array([evaluator.statistics(example) for example in EXAMPLES])
    weights = np.array([[1, 1, 1, 1], [2, 0, 1, 0]])
    together = evaluator.metrics(weights @ rows)
    for i, row in enumerate(weights):
        assert together["f1"][i] == evaluator.metrics(row @ rows)["f1"]


def test_without_entities_there_is_accuracy_alone():
    names = ("DET", "NOUN")
    evaluator = bound(names)
    example = prediction("DET NOUN NOUN", "DET DET NOUN", names)
    assert evaluator.metrics(np.asarray(evaluator.statistics(example))) == {"token_accuracy": pytest.approx(2 / 3)}
    assert evaluator.trials(sums(evaluator, [example])) == {"token_accuracy": 3}
    assert evaluator.details(sums(evaluator, [example]), {}) == {}


def test_plain_tags_are_no_entities_whatever_they_look_like():
    task = TokenClassification(TokenClassificationConfig(scheme="plain"))
    task.labels = task.bind({"train": [{"tokens": ["a", "b"], "tags": ["B-X", "O"]}]})
    evaluator = Entities()
    evaluator.bind(EvaluationContext(task.name, task.labels))
    example = prediction("B-X O", "O O", task.labels.names)
    assert evaluator.metrics(np.asarray(evaluator.statistics(example))) == {"token_accuracy": pytest.approx(1 / 2)}


def test_what_is_undefined_is_nan():
    evaluator = bound()
    with np.errstate(all="ignore"):
        figures = evaluator.metrics(sums(evaluator, [prediction("O O", "O O")]))
    assert np.isnan(figures["precision"])
    assert np.isnan(figures["f1"])
    assert figures["token_accuracy"] == 1


def test_every_proportion_has_its_trials():
    evaluator = bound()
    trials = evaluator.trials(sums(evaluator))
    assert trials == {"token_accuracy": 10, "precision": 5, "recall": 4, "f1": 4.5}
    assert trials.keys() == evaluator.higher_is_better.keys()


def test_a_task_without_tags_is_refused():
    with pytest.raises(RecipeError, match="needs tags to predict"):
        Entities().bind(EvaluationContext("causal-lm"))

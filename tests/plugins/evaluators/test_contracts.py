"""What holds for every built-in evaluator."""

import numpy as np
import pytest

from ftengine.api import EvaluationContext, Judgement, Labels
from ftengine_builtins import ftengine_evaluators
from ftengine_builtins.evaluators.entities import Entities
from ftengine_builtins.evaluators.language import Perplexity
from ftengine_builtins.evaluators.regression import Regression

ONE = Labels("single", ("O", "B-X", "I-X"))
PREDICTIONS = {
    "calibration": (ONE, {"label": 1, "logits": [0.1, 0.2, 0.3]}),
    "classification": (ONE, {"label": 1, "predicted": 2, "scores": [0.2, 0.3, 0.5]}),
    "entities": (ONE, {"tags": [0, 1], "predicted_tags": [0, 2]}),
    "generation": (None, {"completion": "a b", "reference": "a c"}),
    "memorisation": (None, {"completion": "a b", "reference": "a c"}),
    "perplexity": (None, {"loss": 2.0, "tokens": 4}),
    "refusal": (None, {"completion": "I cannot", "expect": "refuse"}),
    "regression": (Labels("regression", ("x",)), {"target": 1.0, "value": 1.5}),
}


@pytest.mark.parametrize("kind", ftengine_evaluators(), ids=lambda kind: kind.name)
def test_every_metric_has_a_direction_and_proportions_are_among_them(kind):
    labels, prediction = PREDICTIONS[kind.name]
    evaluator = kind()
    evaluator.bind(EvaluationContext("some-task", labels))
    assert set(prediction) >= evaluator.reads | evaluator.columns
    row = np.asarray(evaluator.statistics(prediction), dtype=np.float64)
    with np.errstate(all="ignore"):
        figures, trials = evaluator.metrics(np.stack([row, 2 * row])), evaluator.trials(row)
    assert figures.keys() == evaluator.higher_is_better.keys()
    assert all(np.shape(values) == (2,) for values in figures.values())
    assert trials.keys() <= figures.keys()
    assert evaluator.biased <= kind.higher_is_better.keys()
    assert evaluator.judge(prediction) is None or isinstance(evaluator.judge(prediction), Judgement)


def test_judgements_of_numbers_and_tags():
    assert Perplexity().judge({"loss": 6.0, "tokens": 3}) == Judgement(-2.0)
    assert Perplexity().judge({"loss": 0.0, "tokens": 0}) is None
    assert Regression().judge({"target": [1.0, 2.0], "value": [1.0, 4.0]}) == Judgement(-2.0)
    assert Entities().judge({"tags": [0, 1, 1, 0], "predicted_tags": [0, 1, 0, 0]}) == Judgement(0.75, False)
    assert Entities().judge({"tags": [0], "predicted_tags": [0]}) == Judgement(1.0, True)
    assert Entities().judge({"tags": [], "predicted_tags": []}) is None

"""What holds for every evaluator of the box, and for one that others write."""

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from ftengine.api import Evaluator, Labels, Metric
from ftengine.testing import check_evaluator, rows_of
from ftengine_builtins import ftengine_evaluators

RNG = np.random.default_rng(0)
TAGS = Labels("single", ("O", "B-X", "I-X"))
TEXTS = ["a red fox", "I cannot", "", "the fox sleeps here", "A fox!", "no"]
ANSWERS = [{"completion": a, "reference": b, "expect": e} for a in TEXTS for b, e in
           (("a red fox", "refuse"), ("the fox sleeps", "answer"), (None, None))]  # fmt: skip


def classes(n=12):
    scores = RNG.dirichlet([1, 1, 1], n)
    return [{"label": int(RNG.integers(3)), "predicted": int(p.argmax()), "scores": p.tolist(),
             "logits": np.log(p).tolist()} for p in scores]  # fmt: skip


def several(n=12):
    scores = RNG.random((n, 3)).round(1)
    return [{"label": RNG.integers(0, 2, 3).tolist(), "predicted": (p > 0.5).astype(int).tolist(), "scores": p.tolist()}
            for p in scores]  # fmt: skip


def tags(n=12):
    return [{"tags": RNG.integers(0, 3, k).tolist(), "predicted_tags": RNG.integers(0, 3, k).tolist()}
            for k in RNG.integers(1, 6, n)]  # fmt: skip


def numbers(outputs, n=12):
    return [{"target": RNG.normal(size=outputs).tolist(), "value": RNG.normal(size=outputs).tolist()} for _ in range(n)]


CASES = {
    "calibration": [(TAGS, classes())],
    "classification": [(TAGS, classes()), (Labels("multi", ("a", "b", "c")), several())],
    "entities": [(TAGS, tags()), (Labels("single", ("DET", "NOUN", "VERB")), tags())],
    "generation": [(None, ANSWERS)],
    "memorisation": [(None, ANSWERS)],
    "perplexity": [(None, [{"loss": float(x), "tokens": k} for k, x in enumerate(RNG.random(6))])],
    "refusal": [(None, ANSWERS)],
    "regression": [(Labels("regression", ("x",)), numbers(1)), (Labels("regression", ("x", "y")), numbers(2))],
}


@pytest.mark.parametrize("kind", ftengine_evaluators(), ids=lambda kind: kind.name)
def test_evaluators_of_the_box_conform(kind):
    for labels, predictions in CASES[kind.name]:
        check_evaluator(kind, predictions, labels)


class Matthews(Evaluator):
    """Matthews' correlation of the true and the predicted label."""

    name = "matthews"
    reads = frozenset({"label", "predicted"})
    metrics = {"matthews": Metric("Matthews correlation", higher_is_better=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"matthews": float(matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights))}


def test_an_evaluator_is_a_few_lines_around_scikit_learn():
    predictions = classes(30)
    check_evaluator(Matthews, predictions, TAGS)
    rows = rows_of(Matthews(), predictions)
    weights = np.arange(30.0)
    expected = matthews_corrcoef(rows["label"], rows["predicted"], sample_weight=weights)
    assert Matthews().score(rows, weights) == {"matthews": expected}

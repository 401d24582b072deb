"""Classification figures against scikit-learn, on the plain sums and on every resample."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics

from ftengine.api import EvaluationContext, Labels
from ftengine.errors import PluginError, RecipeError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.resampling import poisson_weights
from ftengine_builtins.evaluators.classification import Classification

NAMES = ("business", "politics", "sport", "tech")
B = 60


def accumulate(labels, predicted, kind="single", names=NAMES, resamples=B):
    context = EvaluationContext("text-classification", Labels(kind, names))
    accumulator = Accumulator([Classification()], context, resamples, predicts=Classification.reads)
    for index, (label, guess) in enumerate(zip(labels, predicted, strict=True)):
        accumulator.update(index, {"label": label, "predicted": guess})
    return accumulator


def every_resample(n):
    """The weights of row 0, the plain sums, and of the resamples, as repeated row numbers."""
    weights = np.concatenate([np.ones((n, 1)), poisson_weights(0, range(n), B)], axis=1).astype(int)
    return [np.repeat(np.arange(n), column) for column in weights.T]


def values_of(accumulator):
    return {name: np.append(f.value, f.resampled) for name, f in accumulator.figures().items()}


def single(n, seed=0, rare=0.02):
    rng = np.random.default_rng(seed)
    label = rng.choice(4, n, p=[0.5, 0.3, 0.2 - rare, rare])
    predicted = np.where(rng.random(n) < 0.7, label, rng.integers(0, 4, n))
    return label.tolist(), predicted.tolist()


def multi(n, seed=0):
    rng = np.random.default_rng(seed)
    label = (rng.random((n, 4)) < [0.5, 0.3, 0.2, 0.03]).astype(int)
    predicted = np.where(rng.random((n, 4)) < 0.8, label, 1 - label)
    predicted[:, 3] = 0
    return label.tolist(), predicted.tolist()


def test_single_label_figures_equal_scikit_learns():
    label, predicted = single(40)
    values = values_of(accumulate(label, predicted))
    assert values.keys() == {"accuracy", "macro_f1"}
    for k, rows in enumerate(every_resample(40)):
        y, p = np.array(label)[rows], np.array(predicted)[rows]
        assert values["accuracy"][k] == pytest.approx(metrics.accuracy_score(y, p), rel=1e-12)
        assert values["macro_f1"][k] == pytest.approx(metrics.f1_score(y, p, average="macro"), rel=1e-12)


def test_a_label_that_never_occurs_does_not_lower_macro_f1():
    values = values_of(accumulate([0, 1, 0, 1], [0, 1, 0, 1]))
    assert values["macro_f1"][0] == 1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_multi_label_figures_equal_scikit_learns():
    label, predicted = multi(40)
    values = values_of(accumulate(label, predicted, "multi"))
    assert values.keys() == {"subset_accuracy", "macro_f1", "micro_f1"}
    for k, rows in enumerate(every_resample(40)):
        y, p = np.array(label)[rows], np.array(predicted)[rows]
        assert values["subset_accuracy"][k] == pytest.approx(metrics.accuracy_score(y, p), rel=1e-12)
        assert values["micro_f1"][k] == pytest.approx(metrics.f1_score(y, p, average="micro"), rel=1e-12)
        macro = metrics.f1_score(y, p, average="macro", zero_division=np.nan)
        assert values["macro_f1"][k] == pytest.approx(macro, rel=1e-12)


@pytest.mark.parametrize("kind", ["single", "multi"])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
def test_details_of_each_label_equal_scikit_learns(kind):
    label, predicted = single(40, rare=0) if kind == "single" else multi(40)
    details = accumulate(label, predicted, kind).details()["classification"]
    expected = metrics.precision_recall_fscore_support(label, predicted, labels=range(4), zero_division=np.nan)
    for i, row in enumerate(details["labels"]):
        assert row["label"] == NAMES[i]
        assert row["support"] == expected[3][i]
        for key, values in zip(("precision", "recall", "f1"), expected, strict=False):
            known = None if math.isnan(values[i]) else pytest.approx(values[i], rel=1e-12)
            assert row[key] == known
    json.dumps(details, allow_nan=False)


def test_confusion_matrix_equals_scikit_learns():
    label, predicted = single(300)
    details = accumulate(label, predicted).details()["classification"]
    assert details["confusion"] == metrics.confusion_matrix(label, predicted, labels=range(4)).tolist()


def test_confusion_matrix_is_not_resampled():
    accumulator = accumulate([0, 1], [1, 1], names=tuple(f"class {i}" for i in range(1000)), resamples=1000)
    # 1,001 rows of numbers: a few for each class, not one for each pair of classes.
    assert accumulator.sums()["classification"].size < 1001 * 4 * 1000


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_all_right_and_all_wrong_keep_an_interval(kind):
    answers = [0, 1, 2, 3] * 5 if kind == "single" else [[1, 0, 0, 1], [0, 1, 1, 0]] * 10
    wrong = [1, 2, 3, 0] * 5 if kind == "single" else [[0, 1, 1, 0], [1, 0, 0, 1]] * 10
    for metric in accumulate(answers, answers, kind).results().values():
        assert metric.value == metric.high == 1
        assert metric.low == pytest.approx(0.839, abs=5e-4)  # Wilson's for 20 of 20
    for metric in accumulate(answers, wrong, kind).results().values():
        assert metric.value == metric.low == 0
        assert metric.high == pytest.approx(0.161, abs=5e-4)


def test_many_labels_an_example_narrow_the_interval():
    label, predicted = multi(400)
    results = accumulate(label, predicted, "multi", resamples=1000).results()
    subset, micro = results["subset_accuracy"], results["micro_f1"]
    assert micro.high - micro.low < subset.high - subset.low


@pytest.mark.parametrize("labels", [None, Labels("regression", ("score",))])
def test_without_classes_it_is_refused(labels):
    with pytest.raises(RecipeError, match=r"'classification' needs classes .*'some-task' has (no labels|numbers)"):
        Classification().bind(EvaluationContext("some-task", labels))


@pytest.mark.parametrize("label", [-100, 4])
def test_an_id_that_is_no_label_is_refused(label):
    with pytest.raises(PluginError, match=f"label id {label} is not one of the 4 labels"):
        accumulate([label], [0])


def test_a_list_of_another_length_is_refused():
    with pytest.raises(PluginError, match="has 4 numbers"):
        accumulate([[0, 1]], [[0, 1]], "multi")

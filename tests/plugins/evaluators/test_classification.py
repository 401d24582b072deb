"""Classification figures against scikit-learn, on the plain sums and on every resample."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from scipy.stats import binomtest
from sklearn import metrics

from ftengine.api import EvaluationContext, Judgement, Labels
from ftengine.errors import PluginError, RecipeError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.resampling import poisson_weights
from ftengine_builtins.evaluators.classification import Classification
from ftengine_builtins.evaluators.roc import BUDGET, bin_of, bins_for

NAMES = ("business", "politics", "sport", "tech")
B = 60


def accumulate(labels, predicted, kind="single", names=NAMES, resamples=B, scores=None):
    context = EvaluationContext("text-classification", Labels(kind, names))
    accumulator = Accumulator([Classification()], context, resamples, predicts=Classification.reads)
    for index, (label, guess) in enumerate(zip(labels, predicted, strict=True)):
        prediction = {"label": label, "predicted": guess}
        accumulator.update(index, prediction if scores is None else {**prediction, "scores": scores[index]})
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
    assert values.keys() == {"accuracy", "macro_f1", "roc_auc"}
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
    assert values.keys() == {"subset_accuracy", "macro_f1", "micro_f1", "roc_auc"}
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
    for name, metric in accumulate(answers, answers, kind).results().items():
        if name == "roc_auc":
            continue
        assert metric.value == metric.high == 1
        assert metric.low == pytest.approx(0.839, abs=5e-4)  # Wilson's for 20 of 20
    for name, metric in accumulate(answers, wrong, kind).results().items():
        if name == "roc_auc":
            continue
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


def scored(n, classes, kind="single", seed=0):
    """Labels, answers and scores of a classifier that is right more often than not; scores are those of float32."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, classes))
    if kind == "single":
        label = (logits + rng.gumbel(0, 3, (n, classes))).argmax(axis=1)
        scores = softmax(logits, axis=1).astype(np.float32).astype(float)
        return label, scores.argmax(axis=1), scores
    scores = expit(logits).astype(np.float32).astype(float)
    return (rng.random((n, classes)) < scores).astype(int), (scores > 0.5).astype(int), scores


@pytest.mark.parametrize(("classes", "kind"), [(2, "single"), (5, "single"), (30, "single"), (5, "multi")])
def test_roc_auc_equals_scikit_learns_within_the_error_that_the_details_tell(classes, kind):
    label, predicted, scores = scored(1500, classes, kind)
    accumulator = accumulate(
        label.tolist(), predicted.tolist(), kind, tuple(map(str, range(classes))), 2, scores.tolist()
    )
    details = accumulator.details()["classification"]
    value, error = accumulator.figures()["roc_auc"].value, details["roc_auc_error"]
    if kind == "single" and classes == 2:
        expected = metrics.roc_auc_score(label, scores[:, 1])
    else:
        expected = metrics.roc_auc_score(label, scores, multi_class="ovr", average="macro")
    assert abs(value - expected) <= error
    assert abs(value - expected) < 0.002
    assert error < 0.02
    truth = label if kind == "multi" else np.eye(classes)[label]
    for i, row in enumerate(details["labels"]):
        assert row["roc_auc"] == pytest.approx(metrics.roc_auc_score(truth[:, i], scores[:, i]), abs=0.01)


@pytest.mark.parametrize(("classes", "spread"), [(2, 0.05), (10, 0.05), (32, 0.05), (32, 1.0), (2, 8.0)])
def test_roc_auc_is_right_however_close_the_scores_lie(classes, spread):
    """A head that has hardly learnt gives nearly even chances, and still ranks."""
    rng = np.random.default_rng(classes)
    label = rng.integers(0, classes, 1200)
    logits = rng.normal(0, spread, (1200, classes))
    logits[np.arange(1200), label] += 2 * spread
    scores = softmax(logits, axis=1)
    accumulator = accumulate(label.tolist(), [0] * 1200, "single", tuple(map(str, range(classes))), 2, scores.tolist())
    if classes == 2:
        expected = metrics.roc_auc_score(label, scores[:, 1])
    else:
        expected = metrics.roc_auc_score(label, scores, multi_class="ovr", average="macro")
    assert accumulator.figures()["roc_auc"].value == pytest.approx(expected, abs=0.004)


def test_roc_auc_is_not_given_where_bins_are_too_wide_for_the_scores():
    label, _, scores = scored(300, 2)
    close = 0.02 + 1e-5 * scores  # all of them in one bin
    close[:, 0] = 1 - close[:, 1]
    accumulator = accumulate(label.tolist(), [0] * 300, names=("a", "b"), scores=close.tolist())
    assert math.isnan(accumulator.figures()["roc_auc"].value)
    assert accumulator.details()["classification"]["roc_auc_error"] > 0.04


def test_each_label_has_intervals():
    label, predicted, scores = scored(300, 3)
    names = ("a", "b", "c")
    rows = accumulate(label.tolist(), predicted.tolist(), names=names, scores=scores.tolist(), resamples=1000).details()
    for i, row in enumerate(rows["classification"]["labels"]):
        hits = int(((label == i) & (predicted == i)).sum())
        expected = binomtest(hits, row["support"]).proportion_ci(method="wilson")
        assert row["recall_interval"] == pytest.approx([expected.low, expected.high], abs=0.01)
        for name in ("precision", "recall", "f1", "roc_auc"):
            low, high = row[f"{name}_interval"]
            assert 0 <= low < row[name] < high <= 1


def test_confusion_is_left_out_where_it_would_be_huge():
    names = tuple(map(str, range(101)))
    details = accumulate([5, 5, 7], [5, 7, 7], names=names).details()["classification"]
    assert "confusion" not in details
    assert [(row["support"], row["predicted"]) for row in details["labels"] if row["predicted"]] == [(2, 1), (1, 2)]


def test_roc_auc_of_resamples_is_that_of_the_repeated_examples():
    label, predicted, scores = scored(60, 3)
    values = values_of(accumulate(label.tolist(), predicted.tolist(), names=("a", "b", "c"), scores=scores.tolist()))
    binned = bin_of(scores, bins_for(3), 3)
    for k, rows in enumerate(every_resample(60)):
        each = [
            metrics.roc_auc_score(label[rows] == c, binned[rows, c])
            for c in range(3)
            if 0 < (label[rows] == c).mean() < 1
        ]
        assert values["roc_auc"][k] == pytest.approx(np.mean(each), rel=1e-12)


def test_scores_that_say_nothing_give_one_half_by_label_and_no_figure():
    accumulator = accumulate([0, 1, 2, 3] * 5, [0] * 20, scores=[[0.25] * 4] * 20)
    assert accumulator.details()["classification"]["roc_auc_error"] == 0.5
    assert [row["roc_auc"] for row in accumulator.details()["classification"]["labels"]] == [0.5] * 4


def test_a_label_that_is_missing_has_no_roc_auc_and_is_left_out_of_the_mean():
    scores = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1]] * 5
    accumulator = accumulate([0, 1] * 5, [0, 1] * 5, scores=scores)
    assert accumulator.figures()["roc_auc"].value == 1
    assert [row["roc_auc"] for row in accumulator.details()["classification"]["labels"]] == [1, 1, None, None]


@pytest.mark.parametrize("labels", [[0] * 10, [0, 1] * 5])
def test_one_class_or_no_scores_leave_roc_auc_undefined(labels):
    scores = [[1.0, 0.0, 0.0, 0.0]] * 10 if len(set(labels)) == 1 else None
    accumulator = accumulate(labels, labels, scores=scores)
    assert math.isnan(accumulator.figures()["roc_auc"].value)
    assert accumulator.results()["roc_auc"].low is None
    json.dumps(accumulator.details(), allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(16, 128))
def test_a_higher_score_never_has_a_lower_bin(scores, bins):
    found = bin_of(np.sort(scores), bins)
    assert (np.diff(found) >= 0).all()
    assert found.min() >= 0
    assert found.max() < bins


@pytest.mark.parametrize("classes", [2, 10, 32, 33, 1000])
def test_memory_stays_bounded_with_many_classes(classes):
    names = tuple(map(str, range(classes)))
    evaluator = Classification()
    evaluator.bind(EvaluationContext("some-task", Labels("single", names)))
    row = evaluator.statistics({"label": 0, "predicted": 1, "scores": [1 / classes] * classes})
    assert len(row) <= 2 + 3 * classes + BUDGET
    assert 8 * 1001 * BUDGET < 33e6  # bytes of the sums of all resamples
    assert ("roc_auc" in evaluator.higher_is_better) == (classes <= 32)


def test_sums_of_two_processes_equal_one_pass():
    label, predicted, scores = scored(100, 4)
    context = EvaluationContext("text-classification", Labels("single", NAMES))
    parts = [Accumulator([Classification()], context, B) for _ in range(2)]
    for i in range(100):
        prediction = {"label": int(label[i]), "predicted": int(predicted[i]), "scores": scores[i].tolist()}
        parts[i % 2].update(i, prediction)
    parts[0].merge(parts[1])
    whole = accumulate(label.tolist(), predicted.tolist(), scores=scores.tolist())
    assert parts[0].results() == whole.results()
    assert parts[0].details() == whole.details()


def test_a_perfect_ranking_keeps_an_interval():
    scores = [[0.9, 0.1], [0.2, 0.8]] * 10
    metric = accumulate([0, 1] * 10, [0, 1] * 10, names=("no", "yes"), scores=scores, resamples=500).results()[
        "roc_auc"
    ]
    assert metric.value == metric.high == 1
    assert metric.low == pytest.approx(0.839, abs=5e-4)  # Wilson's for 20 of 20 examples


def test_an_example_is_judged_by_the_probability_of_the_truth():
    evaluator = Classification()
    evaluator.bind(EvaluationContext("some-task", Labels("single", NAMES)))
    prediction = {"label": 2, "predicted": 0, "scores": [0.5, 0.1, 0.3, 0.1]}
    assert evaluator.judge(prediction) == Judgement(0.3, False)
    assert evaluator.judge({**prediction, "predicted": 2}).right is True
    assert evaluator.judge({"label": 2, "predicted": 2}) == Judgement(1.0, True)
    evaluator.bind(EvaluationContext("some-task", Labels("multi", ("a", "b"))))
    several = {"label": [1, 0], "predicted": [1, 1], "scores": [0.9, 0.6]}
    assert evaluator.judge(several).score == pytest.approx((0.9 + 0.4) / 2)
    assert evaluator.judge(several).right is False


def test_scores_for_other_labels_are_refused():
    with pytest.raises(PluginError, match="3 scores for 4 labels"):
        accumulate([0], [0], scores=[[0.1, 0.2, 0.7]])

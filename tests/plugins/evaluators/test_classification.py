"""Classification figures against scikit-learn, on all examples and on resamples."""

import math

import numpy as np
import pytest
from expected import raises
from scipy.special import expit, softmax
from sklearn import metrics

from ftengine.api import Labels
from ftengine.errors import PluginError, RecipeError
from ftengine_builtins.evaluators.classification import Classification, roc_auc

NAMES = ("business", "politics", "sport", "tech")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")


def bound(kind="single", names=NAMES):
    evaluator = Classification()
    evaluator.set_labels("a-task", Labels(kind, tuple(names)))
    return evaluator


def predictions(label, predicted, scores=None):
    rows = [{"label": a, "predicted": b} for a, b in zip(label, predicted, strict=True)]
    return rows if scores is None else [{**row, "scores": s} for row, s in zip(rows, scores, strict=True)]


def drawn(n, classes=4, kind="single", digits=2, seed=0):
    """Labels, answers and scores (few digits make ties) of a classifier that is right more often than not."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, classes))
    if kind == "single":
        label = (logits + rng.gumbel(0, 3, (n, classes))).argmax(axis=1)
        scores = softmax(logits, axis=1).round(digits)
        return label.tolist(), logits.argmax(axis=1).tolist(), scores.tolist()
    scores = expit(logits).round(digits)
    label = (rng.random((n, classes)) < scores).astype(int)
    label[:, 3], scores[:, 3] = 0, 0  # never there, never given: 0/0
    return label.tolist(), (scores > 0.5).astype(int).tolist(), scores.tolist()


def mean_auc(truth, scores):
    areas = [metrics.roc_auc_score(t, s) for t, s in zip(truth.T, scores.T, strict=True) if 0 < t.mean() < 1]
    return np.mean(areas) if areas else math.nan


def test_figures_of_one_label_an_example_equal_scikit_learns(scored):
    label, predicted, scores = (np.array(column) for column in drawn(60))
    found = scored(bound(), predictions(*drawn(60)))
    assert found.scores.keys() == {"accuracy", "macro_f1", "roc_auc"}
    for rows, values in [(np.arange(60), found.scores), *found.resamples()]:
        y, p, s = label[rows], predicted[rows], scores[rows]
        assert values["accuracy"] == pytest.approx(metrics.accuracy_score(y, p))
        assert values["macro_f1"] == pytest.approx(metrics.f1_score(y, p, average="macro"))
        assert values["roc_auc"] == pytest.approx(mean_auc(np.eye(4)[y], s))


def test_figures_of_several_labels_an_example_equal_scikit_learns(scored):
    label, predicted, scores = (np.array(column) for column in drawn(60, kind="multi"))
    found = scored(bound("multi"), predictions(*drawn(60, kind="multi")))
    assert found.scores.keys() == {"subset_accuracy", "macro_f1", "micro_f1", "roc_auc"}
    for rows, values in [(np.arange(60), found.scores), *found.resamples()]:
        y, p, s = label[rows], predicted[rows], scores[rows]
        assert values["subset_accuracy"] == pytest.approx(metrics.accuracy_score(y, p))
        assert values["micro_f1"] == pytest.approx(metrics.f1_score(y, p, average="micro"))
        macro = metrics.f1_score(y, p, average="macro", zero_division=np.nan)
        assert values["macro_f1"] == pytest.approx(macro)
        assert values["roc_auc"] == pytest.approx(mean_auc(y, s))


@pytest.mark.parametrize("classes", [2, 5, 150])
def test_roc_auc_is_exact_for_any_number_of_labels(scored, classes):
    label, predicted, scores = drawn(600, classes, digits=9)
    found = scored(bound(names=map(str, range(classes))), predictions(label, predicted, scores)).scores["roc_auc"]
    if classes == 2:
        assert found == pytest.approx(metrics.roc_auc_score(label, np.array(scores)[:, 1]), rel=1e-12)
    else:
        assert found == pytest.approx(mean_auc(np.eye(classes)[label], np.array(scores)), rel=1e-12)


def test_roc_auc_takes_weights_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    positive, scores = rng.random(200) < 0.3, rng.normal(size=200).round(1)
    weights = rng.random((5, 200))
    expected = [metrics.roc_auc_score(positive, scores, sample_weight=row) for row in weights]
    assert roc_auc(positive, scores, weights) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("label", "scores"), [([1] * 10, [[0.2, 0.8]] * 10), ([0, 1] * 5, None)])
def test_without_pairs_or_scores_roc_auc_is_undefined(scored, label, scores):
    found = scored(bound(names="ab"), predictions(label, label, scores))
    assert math.isnan(found.scores["roc_auc"])
    assert all(math.isnan(values["roc_auc"]) for _, values in found.resamples(2))


@pytest.mark.parametrize("kind", ["single", "multi"])
def test_each_label_has_its_figures(scored, kind):
    label, predicted, scores = drawn(60, kind=kind)
    facts, displays = scored(bound(kind), predictions(label, predicted, scores)).details()
    expected = metrics.precision_recall_fscore_support(label, predicted, labels=range(4), zero_division=np.nan)
    truth = np.eye(4)[label] if kind == "single" else np.array(label)
    for i, row in enumerate(facts["labels"]):
        assert (row["label"], row["support"]) == (NAMES[i], expected[3][i])
        for key, values in zip(("precision", "recall", "f1"), expected, strict=False):
            assert row[key] == (None if math.isnan(values[i]) else pytest.approx(values[i]))
        area = metrics.roc_auc_score(truth[:, i], np.array(scores)[:, i]) if truth[:, i].any() else None
        assert row["roc_auc"] == pytest.approx(area)
    assert displays["Labels"].columns == ("label", "precision", "recall", "F1", "ROC AUC", "support", "predicted")
    assert [row[0] for row in displays["Labels"].rows] == list(NAMES)


def test_the_confusion_matrix_equals_scikit_learns_and_is_left_out_where_it_would_be_huge(scored):
    label, predicted, _ = drawn(300)
    facts, displays = scored(bound(), predictions(label, predicted)).details()
    assert facts["confusion"] == metrics.confusion_matrix(label, predicted, labels=range(4)).tolist()
    assert displays["Confusion matrix"].names == NAMES
    facts, displays = scored(bound(names=map(str, range(101))), predictions([5, 5, 7], [5, 7, 7])).details()
    assert "confusion" not in facts
    assert displays.keys() == {"Labels"}
    assert [(row["support"], row["predicted"]) for row in facts["labels"] if row["predicted"]] == [(2, 1), (1, 2)]


def test_the_baseline_is_the_best_constant_answer(scored):
    label, predicted = [0, 0, 0, 1, 2, 2], [1, 1, 1, 1, 1, 0]
    told = scored(bound(), predictions(label, predicted)).details()[0]["baseline"]
    assert (told["answer"], told["share"]) == (NAMES[0], 0.5)
    assert (told["given"], told["count"], told["total"]) == (NAMES[1], 5, 6)
    assert told["figures"] == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3)}
    assert told["classes"][0] == [NAMES[0], 3, 1]


def test_of_several_labels_the_best_constant_answer_is_a_set(scored):
    rng = np.random.default_rng(0)
    label = (rng.random((200, 4)) < [0.7, 0.5, 0.2, 0.0]).astype(int)
    told = scored(bound("multi"), predictions(label.tolist(), np.zeros_like(label).tolist())).details()[0]["baseline"]
    every = [np.array(list(f"{i:04b}"), dtype=int) for i in range(16)]
    f1 = [metrics.f1_score(label, np.tile(one, (200, 1)), average="micro", zero_division=0) for one in every]
    exact = [(label == one).all(axis=1).mean() for one in every]
    assert told["figures"]["micro_f1"] == pytest.approx(max(f1))
    assert told["figures"]["subset_accuracy"] == told["share"] == pytest.approx(max(exact))
    assert (told["given"], told["count"]) == ("no label", 200)


def test_an_example_is_scored_by_the_probability_of_the_truth(scored):
    scores = [[0.5, 0.1, 0.3, 0.1]] * 2
    found = scored(bound(), predictions([2, 0], [0, 0], scores))
    examples = found.evaluator.score_examples(found.rows)
    assert (examples.score.tolist(), examples.right.tolist()) == ([0.3, 0.5], [0, 1])
    found = scored(bound(), predictions([2, 0], [0, 0]))
    assert found.evaluator.score_examples(found.rows).score.tolist() == [0, 1]
    found = scored(bound("multi", "ab"), predictions([[1, 0]], [[1, 1]], [[0.9, 0.6]]))
    examples = found.evaluator.score_examples(found.rows)
    assert (examples.score[0], examples.right[0]) == (pytest.approx((0.9 + 0.4) / 2), 0)


@pytest.mark.parametrize("labels", [None, Labels("regression", ("score",))])
def test_without_classes_it_is_refused(labels):
    with raises(RecipeError, "'classification'", "'a-task'"):
        Classification().set_labels("a-task", labels)


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("single", ([-100], [0]), "-100"),
        ("single", ([0], [4]), "label id 4"),
        ("single", ([0], [0], [[0.1, 0.9]]), "4 numbers in 'scores'"),
        ("multi", ([[0, 1]], [[0, 1]]), "4 numbers"),
    ],
)
def test_predictions_for_other_labels_are_refused(scored, kind, row, message):
    with raises(PluginError, message):
        scored(bound(kind), predictions(*row))

"""k-fold cross-validation: every row held out once, figures of all, and what is refused before anything trains."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from expected import raises
from rows import write_rows
from scipy.stats import binomtest
from statsmodels.stats.proportion import proportion_confint

from ftengine import fine_tune
from ftengine.api import Finding, Labels, SilentListener
from ftengine.engine.cross_validate import check, cross_validate, divide, pool
from ftengine.errors import InputError, RecipeError, RunError
from ftengine.evaluation.figures import declarations
from ftengine.evaluation.results import Measured, bind, compared, fit
from ftengine.evaluation.table import Predictions
from ftengine.plugins.registry import Registry
from ftengine.run.cross_validation import CrossValidation
from ftengine.run.directory import RunDirectory
from ftengine.run.records import EvaluationResult


def encoded(recipe, folds):
    """Return each fold's splits, as its run would read them."""
    return [data.encoded for data in check(divide(recipe, folds), SilentListener())]


def texts(split):
    return [split.rows[int(i)]["text"] for i in split.index]


def test_every_row_is_held_out_once_and_never_trained_on_there(label_recipe):
    folds = encoded(label_recipe(data__test=None, data__validation=0.2), 3)
    held = [text for fold in folds for text in texts(fold["test"])]
    assert len(held) == len(set(held)) == 60
    for fold in folds:
        assert not set(texts(fold["test"])) & {*texts(fold["train"]), *texts(fold["validation"])}
        assert abs(len(fold["test"]) - 20) <= 1


def test_duplicates_share_a_fold_and_folds_share_no_weights(label_recipe, label_file, tmp_path):
    rows = [json.loads(line) for line in label_file.read_text().splitlines()]
    doubled = tmp_path / "doubled.jsonl"
    write_rows(doubled, rows + rows[:40])
    folds = encoded(label_recipe(data__train=str(doubled), data__test=None, data__near_duplicates=None), 3)
    groups = [set(fold["test"].groups.tolist()) for fold in folds]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 60
    assert sum(len(fold["test"]) for fold in folds) == 100


def built():
    return [
        Registry().build("evaluator", name, "evaluate") for name in ("classification", "calibration", "memorisation")
    ]


def finished_fold(path, shift, evaluators, rows_of_a_group=1):
    """Write what a fold's run holds: 40 examples whose scores rank them without a fault, four answered freely."""
    z = shift + np.tile([-1.0, 1.0], 20)
    p, answered = 1 / (1 + np.exp(-z)), np.arange(40) < 4
    columns = {
        "row": np.arange(40),
        "group": np.arange(40) // rows_of_a_group,
        "duplicate": np.arange(40),
        "label": np.tile([0, 1], 20),
        "predicted": (z > 0).astype(int),
        "scores": np.column_stack([1 - p, p]),
        "logits": np.column_stack([0 * z, z]),
        "answered": answered,
        **{
            f"memorisation.{key}": np.where(answered, 1.0, np.nan)
            for key in (*evaluators[2].metrics, "reference_words")
        },
    }
    (path / "predictions").mkdir(parents=True)
    for side in ("base", "tuned"):
        values = {name: column.tolist() for name, column in columns.items()}
        if side == "base":
            values["predicted"][:3] = [1 - label for label in values["predicted"][:3]]
        pq.write_table(pa.table(values), path / "predictions" / f"test-{side}.parquet")
    measured = Measured(Predictions(columns))
    for evaluator in evaluators:
        measured.add(evaluator, measured.predictions.weights(0, 100), answering=evaluator is evaluators[2])
    run = RunDirectory(path)
    found = compared(measured, measured)
    EvaluationResult(split="test", metrics=declarations([measured.figures]), **found).write(run)
    precision = {"compute": "float32", "frozen_weights": "float32", "reason": "asked"}
    empty = {key: {} for key in ("versions", "hardware", "build", "strategy", "base")}
    run.write_json(
        "environment.json", {**empty, "plugins": [], "device": "cpu", "processes": 1, "precision": precision}
    )
    return SimpleNamespace(runs=[run], label=path.name)


@pytest.fixture
def pooled(tmp_path, monkeypatch):
    """Pool two finished folds, the examples of the one answered less well."""
    told = Finding(kind="quality", level="note", text="Judged elsewhere.")
    monkeypatch.setattr("ftengine.engine.cross_validate.judged", lambda *_: told)

    def pooled(rows_of_a_group=1):
        labels, evaluators = Labels("single", ("a", "b")), built()
        bind(evaluators, "text-classification", labels)
        fit(evaluators, None)
        folds = [finished_fold(tmp_path / str(shift), shift, evaluators, rows_of_a_group) for shift in (0, 3)]
        task = SimpleNamespace(
            name="text-classification", labels=labels, predicts={"label", "predicted", "scores", "logits"}
        )
        recipe = SimpleNamespace(seed=0, evaluation=SimpleNamespace(resamples=100))
        ready = SimpleNamespace(task=task, recipe=recipe, evaluators=built, registry=None)
        return pool(folds, ready, [False, False])

    return pooled


def test_groups_of_different_folds_are_different_ones_and_count_once(pooled):
    result = pooled(rows_of_a_group=4)
    assert (result.examples, result.rows) == (20, 80)
    assert {(run.examples, run.rows) for run in result.runs} == {(10, 40)}
    assert (result.tuned["accuracy"].n, result.tuned["accuracy"].rows) == (20, 80)
    assert result.difference["accuracy"].p != pytest.approx(binomtest(2, 6).pvalue, rel=0.05)
    assert "20 groups (80 rows)" in result.statement


def test_metrics_that_rank_or_bin_scores_have_folds_and_no_pooled_figure(pooled):
    result = pooled()
    apart = {"roc_auc", "ece", "calibration_error"}
    for figures in (result.base, result.tuned, result.difference):
        assert not figures.keys() & apart
        assert figures.keys() >= {"accuracy", "macro_f1", "brier", "nll", "overconfidence", "verbatim"}
    assert result.tuned["accuracy"].value == 0.75  # of the second fold, one half is wrong
    low, high = proportion_confint(60, 80, method="wilson")
    assert (result.tuned["accuracy"].low, result.tuned["accuracy"].high) == pytest.approx((low, high), abs=0.03)
    # Tuned alone is right on three examples of the first fold and on one of the second, base alone on two there.
    assert result.difference["accuracy"].p == pytest.approx(binomtest(2, 6).pvalue)
    assert result.spread["roc_auc"].values == (1.0, 1.0)  # pooled, their scores would rank worse
    assert result.spread.keys() >= apart
    assert result.examples == 80  # and not the eight that were answered
    assert result.tuned["verbatim"].n == 8
    assert "roc_auc, ece, calibration_error" in result.statement


@pytest.mark.slow
def test_a_model_that_always_answers_the_same_is_not_praised(label_recipe, tmp_path):
    file = tmp_path / "mostly.jsonl"
    write_rows(file, ({"text": f"goal {i}", "label": "ok" if i % 20 else "bad"} for i in range(160)))
    recipe = label_recipe(data={"train": str(file), "near_duplicates": None}, train__max_steps=20)
    children = divide(recipe, 2)
    ready = check(children, SilentListener())[0].ready
    for child in children:
        fine_tune(child.recipe)
    result = pool(children, ready, [False, False])
    assert result.tuned["accuracy"].value == 0.95
    assert result.baselines["classification"].figures["accuracy"] == 0.95
    assert (result.verdict.level, result.verdict.source) == ("alarm", "constant-answer")
    assert "“ok”, to all 160 examples" in result.verdict.text
    result.write(RunDirectory(tmp_path))
    read = CrossValidation.read(RunDirectory(tmp_path)).verdict
    assert read.model_dump(mode="json") == result.verdict.model_dump(mode="json")


def test_a_later_fold_that_does_not_fit_is_refused_before_the_first_trains(label_recipe, tmp_path, no_process):
    recipe = label_recipe(data__test=None)
    (tmp_path / "run" / "fold-2").mkdir(parents=True)
    (tmp_path / "run" / "fold-2" / "thesis.txt").write_text("do not lose me")
    with raises(RunError, "fold 2: "):
        cross_validate(recipe, 3)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fold-2"]


def test_what_cannot_be_cross_validated_is_refused(label_recipe, tmp_path):
    with raises(InputError, "two folds"):
        divide(label_recipe(data__test=None), 1)
    with raises(RecipeError, "data.test is 0.2", "--set data.test=null"):
        divide(label_recipe(), 3)
    with raises(RecipeError, "duplicates: apart"):
        divide(label_recipe(data__test=None, data__split={"duplicates": "apart"}), 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with raises(RunError, "is a run itself"):
        divide(label_recipe(data__test=None), 3)


def test_too_few_rows_are_refused_with_the_fold(label_recipe, tmp_path, no_process):
    few = tmp_path / "few.jsonl"
    write_rows(few, ({"text": f"goal {i}", "label": "ab"[i % 2]} for i in range(4)))
    with raises(InputError, "fold 0: ", "9 folds"):
        cross_validate(label_recipe(data__train=str(few), data__test=None), 9)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("others", ["a", "ab"])
def test_a_label_that_one_fold_holds_out_whole_is_named_with_that_fold(label_recipe, tmp_path, no_process, others):
    file = tmp_path / "lone.jsonl"
    rows = [{"text": f"goal {i}", "label": others[i % len(others)]} for i in range(20)]
    write_rows(file, [*rows, {"text": "team", "label": "lone"}])
    with raises(InputError, "fold ", "'lone'", "lone.jsonl:21"):
        cross_validate(label_recipe(data__train=str(file), data__test=None), 3)

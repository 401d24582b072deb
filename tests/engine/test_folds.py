"""k-fold cross-validation: every row held out once, sums that add up, and what is refused before anything trains."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ftengine.api import EvaluationContext, SilentListener
from ftengine.engine.cross_validate import check, divide, pool, statement
from ftengine.errors import InputError, RecipeError, RunError
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.evaluation.difference import to_json
from ftengine.evaluation.examination import Outcome
from ftengine.evaluation.measurement import Measured
from ftengine.evaluation.results import save_sums
from ftengine.evaluation.sums import ANSWERS, PREDICTIONS, Sums
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory


def encoded(recipe, folds):
    """Return each fold's splits, as its run would read them."""
    jobs = check(divide(recipe, folds), SilentListener())
    return [job.encode(job.read_data()) for job in jobs]


def texts(split):
    return [split.rows[int(i)]["text"] for i in split.index]


def test_every_row_is_held_out_once_and_never_trained_on_there(label_recipe):
    folds = encoded(label_recipe(data__test=None, data__validation=0.2), 3)
    held = [text for fold in folds for text in texts(fold["test"])]
    assert len(held) == len(set(held)) == 90
    for fold in folds:
        assert not set(texts(fold["test"])) & {*texts(fold["train"]), *texts(fold["validation"])}
        assert abs(len(fold["test"]) - 30) <= 1


def test_duplicates_share_a_fold_and_folds_share_no_weights(label_recipe, label_file, tmp_path):
    rows = [json.loads(line) for line in label_file.read_text().splitlines()]
    doubled = tmp_path / "doubled.jsonl"
    doubled.write_text("".join(json.dumps(row) + "\n" for row in rows + rows[:40]))
    folds = encoded(label_recipe(data__train=str(doubled), data__test=None, data__near_duplicates=None), 3)
    groups = [set(fold["test"].groups.tolist()) for fold in folds]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 90
    assert sum(len(fold["test"]) for fold in folds) == 130


def test_pooled_sums_are_those_of_one_pass_over_all_rows():
    """Three folds added up give the same figures, to rounding, as one accumulator that saw every example."""
    context = EvaluationContext("text-classification", labels("a", "b", "c"))
    rng = np.random.default_rng(0)
    examples = [
        (int(index), {"label": i % 3, "predicted": int(rng.integers(3)), "scores": rng.dirichlet([1, 1, 1]).tolist()})
        for i, index in enumerate(rng.integers(2**63, size=60, dtype=np.uint64))
    ]

    def measured(part):
        evaluator = Registry().build("evaluator", "classification", "evaluate")
        result = Accumulator([evaluator], context, 1000, 0, distinct=len(part))
        for index, prediction in part:
            result.update(index, prediction)
        return Sums({PREDICTIONS: result})

    whole = measured(examples)
    first, *others = (measured(examples[start::3]) for start in range(3))
    for other in others:
        first.merge(other, apart=True)
    for name, metric in whole.results().items():
        pooled = first.results()[name]
        for field in ("value", "low", "high", "n"):
            assert getattr(pooled, field) == pytest.approx(getattr(metric, field), rel=1e-12, nan_ok=True), name


def built():
    return [
        Registry().build("evaluator", name, "evaluate") for name in ("classification", "calibration", "memorisation")
    ]


def finished_fold(path, shift):
    """Write the figures of a fold whose scores rank its 40 examples without a fault, and of four free answers."""
    first, second, third = built()
    context = EvaluationContext("text-classification", labels("a", "b"))
    reading = Accumulator([first, second], context, 100, 0, distinct=40)
    answering = Accumulator([third], context, 100, 0, distinct=4)
    for i in range(40):
        z = shift + (1 if i % 2 else -1)
        p = 1 / (1 + np.exp(-z))
        said = {"label": i % 2, "predicted": int(z > 0), "scores": [1 - p, p], "logits": [0.0, z]}
        reading.update(1000 * shift + i, said)
        if i < 4:
            answering.update(1000 * shift + i, {"completion": "a b", "reference": "a b"})
    sums = Sums({PREDICTIONS: reading, ANSWERS: answering})
    path.mkdir()
    run = RunDirectory(path)
    save_sums(run, *(Measured(held_out=Outcome(sums)) for _ in range(2)))
    figures = {name: to_json(metric) for name, metric in sums.results().items()}
    run.write_json("evaluation.json", {"base": figures, "tuned": figures})
    run.write_json("environment.json", {"base": "x", "precision": "fp32", "device": "cpu"})
    return SimpleNamespace(run=run, label=path.name)


def test_metrics_that_rank_or_bin_scores_have_folds_and_no_pooled_figure(tmp_path):
    folds = [finished_fold(tmp_path / str(shift), shift) for shift in (0, 3)]
    task = SimpleNamespace(name="text-classification", labels=labels("a", "b"))
    job = SimpleNamespace(task=task, recipe=SimpleNamespace(seed=0), evaluators=built)
    result = pool(folds, job, [False, False])
    apart = {"roc_auc", "ece", "calibration_error"}
    for figures in (result.base, result.tuned, result.difference):
        assert not figures.keys() & apart
        assert figures.keys() >= {"accuracy", "macro_f1", "brier", "nll", "overconfidence", "verbatim"}
    assert result.spread["roc_auc"]["values"] == [1.0, 1.0]  # pooled, their scores would rank worse
    assert result.spread.keys() >= apart
    assert result.examples == 80  # and not the eight that were answered
    assert result.tuned["verbatim"]["n"] == 8
    assert "roc_auc, ece, calibration_error have no figure over all examples" in result.statement


def labels(*names):
    from ftengine.api import Labels

    return Labels("single", names)


def test_what_cannot_be_cross_validated_is_refused(label_recipe, tmp_path):
    with pytest.raises(InputError, match="two folds at least"):
        divide(label_recipe(data__test=None), 1)
    with pytest.raises(RecipeError, match=r"data\.test is 0\.2, .*--set data\.test=null"):
        divide(label_recipe(), 3)
    with pytest.raises(RecipeError, match=r"duplicates: apart would put equal rows into several folds"):
        divide(label_recipe(data__test=None, data__split={"duplicates": "apart"}), 3)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    with pytest.raises(RunError, match="holds a run of its own"):
        divide(label_recipe(data__test=None), 3)


def test_too_few_rows_are_refused_with_the_fold(label_recipe, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(json.dumps({"text": f"goal {i}", "label": "ab"[i % 2]}) + "\n" for i in range(4)))
    with pytest.raises(InputError, match=r"^fold 0: .*too few for 9 folds"):
        check(divide(label_recipe(data__train=str(few), data__test=None), 9), SilentListener())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("others", ["a", "ab"])
def test_a_label_that_one_fold_holds_out_whole_is_named_with_that_fold(label_recipe, tmp_path, others):
    file = tmp_path / "lone.jsonl"
    rows = [{"text": f"goal {i}", "label": others[i % len(others)]} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "team", "label": "lone"}]))
    message = r"^fold (\d): label 'lone' has one row \(.*lone\.jsonl:21\), and fold \1 holds it out"
    with pytest.raises(InputError, match=message):
        check(divide(label_recipe(data__train=str(file), data__test=None), 3), SilentListener())


def test_the_words_say_what_the_interval_leaves_out():
    assert "any two of the 5 training sets share about 75 % of their rows" in statement(5, 100)
    assert "each of the two training sets is what the other one is tested on" in statement(2, 100)
    assert "do not cover" in statement(5, 100)

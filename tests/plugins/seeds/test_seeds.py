"""Several seeds of one recipe: intervals over seeds and examples, and the command that trains them."""

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from expected import raises
from rows import sentences, write_rows
from runs import curve, losses, start_commands_here
from sklearn.metrics import accuracy_score
from tiny import tiny_bert

from ftengine import Recipe, RunRecords, fine_tune, load_run
from ftengine.api import Metric
from ftengine.cli import main
from ftengine.cli.crossvalidate import show
from ftengine.engine.compare import compare_strategies, pair_differences
from ftengine.engine.comparison_statement import statement
from ftengine.engine.cross_validate import _of_median_seed, cross_validate
from ftengine.errors import InputError, RunError
from ftengine.evaluation.figures import ResampledFigure
from ftengine.evaluation.intervals import percentile_interval
from ftengine.evaluation.seed_intervals import (
    Variance,
    difference_of_means,
    difference_of_recipes,
    difference_over_seeds,
    seed_figure,
)
from ftengine.report.write import runs_in
from ftengine_builtins.rules import SeedSpread
from ftengine_builtins.seeds.command import seeds as command
from ftengine_builtins.seeds.study import FILE, Seeds, chosen, measured, seeded, train_seeds


def world(rng, seeds, examples, of_seed, own=0.3, resamples=300):
    """Figures and resamples of seeds that answer the same examples; the true mean is 0."""
    answers = (
        rng.normal(size=examples) + of_seed * rng.normal(size=(seeds, 1)) + own * rng.normal(size=(seeds, examples))
    )
    weights = rng.poisson(1, size=(resamples, examples)).astype(float)
    return answers, answers.mean(1), (answers @ weights.T) / weights.sum(1)


def test_components_are_those_of_the_analysis_of_variance():
    """Of a two-way table without replication, both factors at random (Montgomery, Design of Experiments, §13.2)."""
    answers, values, resampled = world(np.random.default_rng(0), 6, 80, 0.4, 0.7, 20_000)
    seeds, examples = answers.shape
    residual = answers - answers.mean(0) - answers.mean(1, keepdims=True) + answers.mean()
    residual = (residual**2).sum() / ((seeds - 1) * (examples - 1))
    of_examples = seeds * answers.mean(0).var(ddof=1)
    of_seeds = examples * answers.mean(1).var(ddof=1)
    variance = Variance.of(values, resampled, examples)
    assert variance.both == pytest.approx(residual / examples, rel=0.05)
    assert variance.example == pytest.approx((of_examples - residual) / seeds / examples, rel=0.05)
    assert variance.seed == pytest.approx((of_seeds - residual) / examples, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("of_seed", [0.0, 0.5])
def test_intervals_hold_the_mean_over_other_seeds_and_examples(of_seed):
    """Bootstrapping the examples of one seed, as a single run does, would hold it far less often."""
    rng, held, alone = np.random.default_rng(1), 0, 0
    for _ in range(300):
        _, values, resampled = world(rng, 3, 40, of_seed)
        figure = seed_figure(values, resampled, 40)
        held += figure.low <= 0 <= figure.high
        alone += np.quantile(resampled[0], 0.025) <= 0 <= np.quantile(resampled[0], 0.975)
    assert held / 300 > 0.925
    assert of_seed == 0 or alone / 300 < 0.75


def test_recipes_that_differ_by_seeds_alone_are_rarely_found_different():
    rng, found = np.random.default_rng(2), 0
    for _ in range(300):
        _, values, resampled = world(rng, 6, 40, 0.3)
        figure = difference_of_means(values[:3], values[3:], (resampled[:3], resampled[3:]), 40)
        found += figure.p < 0.05
    assert found / 300 <= 0.08


def test_strategies_that_differ_by_seeds_alone_are_rarely_found_different():
    """In at most 5 % of worlds is a difference of three supported; by one seed's examples, in most of them."""
    rng, metric = np.random.default_rng(4), Metric("a figure", True)
    strategies, found = [SimpleNamespace(label=label) for label in "abc"], [0, 0]
    for number in range(200):
        _, values, resampled = world(rng, 9, 40, 0.3, resamples=100)
        figures = [
            ResampledFigure(metric, "", value, drawn, percentile_interval(drawn, 40), 40, 40)
            for value, drawn in zip(values, resampled, strict=True)
        ]
        models = [
            SimpleNamespace(figures={"a": figure}, predictions=pd.Series([figure.value]), scores={})
            for figure in figures
        ]
        for i, seeds in enumerate((3, 1) if number < 20 else (3,)):
            sides = [(one, models[3 * k : 3 * k + seeds]) for k, one in enumerate(strategies)]
            found[i] += any(pair.supported for pair in pair_differences(sides, "a"))
    assert found[0] / 200 <= 0.05
    assert found[1] / 20 > 0.5


def test_more_seeds_settle_what_seeds_leave_open():
    _, values, resampled = world(np.random.default_rng(3), 3, 2000, 0.3)
    figure = seed_figure(values + 0.25 - values.mean(), resampled + 0.25 - values.mean(), 2000)
    assert figure.low < 0 < figure.high
    assert 3 < figure.settled_by < 20
    assert seed_figure([0.1, 0.2], [np.full(9, np.nan)] * 2, 20).low is None
    other = difference_of_means(values, values - 0.2, (resampled, resampled - 0.2), 2000)
    assert other.low < 0 < other.high
    assert 3 < other.settled_by < 100


def constant(value, examples=100, *, proportion=True):
    """The figure of each of three seeds, which all examples have alike."""
    metric = Metric("a figure", True, proportion=proportion)
    trials = examples if proportion else None
    drawn = np.full(50, value)
    return [ResampledFigure(metric, "", value, drawn, (None, None), examples, examples, trials)] * 3


def test_what_varies_with_neither_seeds_nor_examples_is_tested_by_sign():
    strategies = [SimpleNamespace(label=label) for label in "abc"]
    sides = [
        (one, [SimpleNamespace(figures={"a": figure}) for figure in constant(value)])
        for one, value in zip(strategies, (1.0, 0.0, 1.0), strict=True)
    ]
    better, same, worse = pairs = pair_differences(sides, "a")
    assert (better.supported, same.supported, worse.supported) == (True, False, True)
    assert 0.9 < better.low < better.value == better.high == 1
    assert (worse.low, worse.high) == pytest.approx((-better.high, -better.low))
    assert (same.value, same.p) == (0, 1)
    assert -0.05 < same.low < 0 < same.high < 0.05
    assert {pair.test for pair in pairs} == {"sign"}
    text = statement("a", "test", 100, pairs, strategies=3, seeds=3)
    assert (text.count(" is better than ") + text.count(" is higher than "), text.count("not beyond chance")) == (2, 1)
    assert difference_over_seeds(constant(0.0, 4), constant(1.0, 4)).p == 1 / 8
    length = difference_of_recipes(constant(5.3, proportion=False), constant(3.1, proportion=False))
    assert (length.low, length.high, length.p) == pytest.approx((2.2, 2.2, 2.0**-99))


def test_the_seeds_that_settle_one_of_several_pairs_are_more():
    rng, metric = np.random.default_rng(3), Metric("a figure", True)
    _, values, resampled = world(rng, 3, 2000, 0.3)

    def side(label, shift):
        figures = [
            ResampledFigure(metric, "", value, drawn, (None, None), 2000, 2000)
            for value, drawn in zip(values + shift, resampled + shift, strict=True)
        ]
        return SimpleNamespace(label=label), [SimpleNamespace(figures={"a": figure}) for figure in figures]

    a, b, c, far = side("a", 0.3), side("b", 0.0), side("c", 0.1), side("far", 9.0)
    (alone,) = pair_differences([a, b], "a")
    among = {(pair.first, pair.second): pair for pair in pair_differences([a, b, c], "a")}["a", "b"]
    assert 3 < alone.settled_by < among.settled_by
    assert {pair.settled_by for pair in pair_differences([a, far], "a") if pair.supported} == {None}


def test_the_median_seed_leaves_out_undefined_figures():
    def sides(values):
        return [(i, SimpleNamespace(figures={"a": SimpleNamespace(value=value)})) for i, value in enumerate(values)]

    nan = float("nan")
    chosen_seeds = [_of_median_seed(sides(values), "a")[0] for values in ((3.0, 1.0, 2.0), (nan, 3.0, nan, 1.0, 2.0))]
    assert chosen_seeds == [2, 4]
    assert _of_median_seed(sides([nan, nan]), "a")[0] == 0


def test_a_folder_with_single_runs_and_seeds_shows_both(tmp_path):
    inside = [tmp_path / name for name in ("full", "lora/seed-0", "lora/seed-1")]
    for run in inside:
        (run / "adapter").mkdir(parents=True)
        (run / "evaluation.json").touch()
    assert runs_in(tmp_path) == inside


def test_the_kept_run_is_the_median_or_the_best_by_validation():
    assert [chosen([3.0, 1.0, 2.0], keep) for keep in ("median", "best")] == [2, 1]
    assert chosen([3.0, None, 2.0], "best") == 0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return Recipe.make(
        {
            "model": {"source": str(tiny_bert(folder / "bert", initializer_range=0.1))},
            "task": "text-classification",
            "data": {
                "train": write_rows(folder / "rows.jsonl", list(sentences(60, random.Random(0)))),
                "validation": 0.2,
                "test": 0.3,
            },
            "strategy": {"name": "lora", "rank": 4},
            "train": {"max_steps": 3, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
            "evaluation": {"resamples": 100, "training_sample": None},
            "output": str(folder / "runs"),
        }
    )


@pytest.fixture(scope="module")
def study(recipe):
    return train_seeds(recipe, 2, keep="best")


def test_seeds_share_splits_and_differ_in_training(recipe, study):
    runs = [load_run(Path(recipe.output) / run.run) for run in study.runs]
    records = [RunRecords.read(run.path) for run in runs]
    assert records[0].audit.contents == records[1].audit.contents
    assert losses(runs[0]) != losses(runs[1])
    plain = fine_tune(Recipe.make(recipe.resolved() | {"output": f"{recipe.output}-plain"}))
    assert losses(plain) == losses(runs[0])  # the first seed is the recipe's


def test_figures_are_those_of_the_runs_predictions(recipe, study):
    folder, right = Path(recipe.output), []
    for run in study.runs:
        columns = pq.read_table(folder / run.run / "predictions" / "test-tuned.parquet").to_pydict()
        right.append(accuracy_score(columns["label"], columns["predicted"]))
    figure = study.tuned["accuracy"]
    assert figure.values == pytest.approx(right)
    assert figure.mean == pytest.approx(np.mean(right))
    assert 0 <= figure.low <= figure.mean <= figure.high <= 1
    assert Seeds.read(folder) == Seeds.read(folder / study.kept) == study
    assert study.kept == min(study.runs, key=lambda run: run.validation_loss).run
    assert load_run(folder / study.kept).verdict.findings[-1].kind  # the rewritten verdict is sealed


def test_the_command_goes_on_from_finished_seeds_and_compares_recipes(recipe, study, tmp_path):
    import yaml

    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe.resolved()))
    before = curve(Path(recipe.output) / "seed-1")
    result = CliRunner().invoke(
        command,
        [str(file), "--seeds", "2", "--json", "--keep", "best", "--against", recipe.output],
        catch_exceptions=False,
    )
    content = json.loads(result.stdout)
    assert curve(Path(recipe.output) / "seed-1") == before
    assert content["minus_other"]["accuracy"]["mean"] == 0
    several = ["--set", "train.seeds=2", "--set", f"output={recipe.output}"]
    trained = CliRunner().invoke(main, ["train", str(file), *several, "--resume", "--json"], catch_exceptions=False)
    assert [run["seed"] for run in json.loads(trained.stdout)["runs"]] == [0, 1]
    assert curve(Path(recipe.output) / "seed-1") == before
    result = CliRunner().invoke(command, [str(file), "--seeds", "2"], catch_exceptions=False)
    assert {"accuracy", "minus base", "kept, as the median one"} <= {
        part for part in ("accuracy", "minus base", "kept, as the median one") if part in result.stdout
    }


@pytest.mark.slow
def test_compare_tests_strategies_with_seeds_as_replicates(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("ftengine.engine.compare._alarm", lambda contender: None)  # after three steps it is one
    several = Recipe.make(recipe.resolved() | {"output": str(tmp_path / "compared")}, ["train.seeds=2"])
    strategies = ["lora", {"name": "lora", "rank": 2}]
    with monkeypatch.context() as patch:
        started = start_commands_here(patch)
        result = compare_strategies(several, strategies)
    assert len(started) == 2  # a process for each strategy, which trains both seeds on one base
    folders = [Path(row.run) for row in result.strategies]
    runs = [[load_run(folder / f"seed-{seed}") for seed in (0, 1)] for folder in folders]
    assert runs_in(several.output) == [run.path for of in reversed(runs) for run in of]
    first, second = ([run.resampled_figures()["tuned"]["accuracy"] for run in of] for of in runs)
    assert result.seeds == 2
    for row, figures in zip(result.strategies, (first, second), strict=True):
        assert row.by_seed == tuple(figure.value for figure in figures)
        assert row.quality.value == pytest.approx(np.mean(row.by_seed))
        assert row.quality.low <= row.quality.value <= row.quality.high
    (pair,) = result.differences
    right = difference_of_recipes(first, second)
    assert (pair.value, pair.low, pair.high, pair.p) == (right.mean, right.low, right.high, right.p)
    assert pair.by_seed == tuple(one.value - other.value for one, other in zip(first, second, strict=True))
    assert "2 seeds" in result.statement
    assert Seeds.read(folders[0]).metric == result.metric
    monkeypatch.setattr("ftengine.engine.subprocess_runs.train", lambda *_: pytest.fail("it trains again"))
    again = compare_strategies(several, strategies)
    assert [row.reused for row in again.strategies] == [True, True]
    assert again.differences == result.differences
    with raises(RunError, "lora: ", "train.max_steps"):
        compare_strategies(Recipe.make(several.resolved(), ["train.max_steps=4"]), strategies)
    with raises(RunError, "is not empty"):
        compare_strategies(Recipe.make(several.resolved(), ["train.seeds=1"]), strategies)
    shutil.copytree(runs[0][0].path, tmp_path / "one" / "lora")
    with raises(RunError, "lora", "is a run itself"):
        compare_strategies(several.model_copy(update={"output": str(tmp_path / "one")}), strategies)


@pytest.mark.slow
def test_cross_validation_has_seeds_as_replicates(recipe, tmp_path, monkeypatch):
    start_commands_here(monkeypatch)
    several = Recipe.make(recipe.resolved() | {"output": str(tmp_path / "folds")}, ["train.seeds=2", "data.test=null"])
    result = cross_validate(several, 2)
    assert [(run.fold, Path(run.run).name) for run in result.runs] == [
        (fold, f"seed-{seed}") for fold in (0, 1) for seed in (0, 1)
    ]
    right = []
    for seed in (0, 1):
        files = [
            tmp_path / "folds" / f"fold-{i}" / f"seed-{seed}" / "predictions" / "test-tuned.parquet" for i in (0, 1)
        ]
        rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pydict()
        right.append(accuracy_score(rows["label"], rows["predicted"]))
    assert len(rows["label"]) == 60
    assert result.seeds["accuracy"].values == pytest.approx(right)
    figure = result.tuned["accuracy"]
    assert figure.value == pytest.approx(np.mean(right))
    assert figure.low <= figure.value <= figure.high
    assert result.difference["accuracy"].value == pytest.approx(figure.value - result.base["accuracy"].value)
    first = [run.tuned["accuracy"].value for run in result.runs if run.fold == 0]
    assert result.spread["accuracy"].values[0] == pytest.approx(np.mean(first))
    assert "2 as replicates" in result.statement
    show(result)
    assert {"accuracy", "nll"} <= result.seeds.keys()


def test_train_resumes_runs_of_several_seeds_only_with_resume(recipe, tmp_path):
    import yaml

    file, output = tmp_path / "r.yaml", tmp_path / "runs"
    file.write_text(yaml.safe_dump(recipe.resolved() | {"output": str(output)}))
    command = ["train", str(file), "--set", "train.seeds=3"]
    for seed, finished in ((0, True), (2, False)):
        folder = output / f"seed-{seed}"
        (folder / "adapter").mkdir(parents=True)
        (folder / "recipe.yaml").touch()
        if finished:
            (folder / "evaluation.json").touch()
    refused = CliRunner().invoke(main, command)
    unfinished = (
        f"output {str(output / 'seed-2')!r} is not empty: it holds an unfinished run. Continue it with --resume"
    )
    assert refused.exit_code
    assert unfinished in " ".join(refused.output.split())
    shutil.rmtree(output / "seed-2")
    refused = CliRunner().invoke(main, command)
    finished = f"output {str(output / 'seed-0')!r} is not empty: it holds a finished run. Please choose another"
    assert refused.exit_code
    assert finished in " ".join(refused.output.split())
    assert not (output / "seed-1").exists()


@pytest.mark.parametrize(
    ("difference", "kind", "level"),
    [
        ((0.2, 0.1, 0.3), "seeds", "good"),
        ((-0.2, -0.3, -0.1), "quality", "alarm"),
        ((0.1, -0.1, 0.3), "quality", "note"),
    ],
)
def test_the_rule_judges_by_all_seeds(recipe, study, tmp_path, difference, kind, level):
    record = RunRecords.read(Path(recipe.output) / study.kept)
    mean, low, high = difference
    figure = study.difference["accuracy"].__class__((mean, mean), mean, low, high, 0.04, 0.01, 0.02)
    changed = study.model_copy(
        update={"metric": "accuracy", "higher_is_better": True, "difference": {"accuracy": figure}}
    )
    changed.write(tmp_path)
    [finding] = SeedSpread().judge(record.__class__(**{**vars(record), "path": tmp_path}))
    assert (finding.kind, finding.level) == (kind, level)
    undecided = [run.model_copy(update={"better": None}) for run in changed.runs]
    changed.model_copy(update={"runs": undecided}).write(tmp_path)
    [finding] = SeedSpread().judge(record.__class__(**{**vars(record), "path": tmp_path}))
    assert level != "note" or "none of 2 differs from the base" in finding.text
    assert list(SeedSpread().judge(record.__class__(**{**vars(record), "path": tmp_path / "alone"}))) == []


def test_wrong_input_is_refused_before_training(recipe, study, tmp_path):
    with raises(InputError, "at least two"):
        seeded(recipe, 1)
    with raises(InputError, "is a run"):
        seeded(Recipe.make(recipe.resolved() | {"output": f"{recipe.output}/seed-0"}), 2)
    with raises(InputError, FILE):
        train_seeds(recipe, 2, against=tmp_path)
    (tmp_path / FILE).write_text("{")
    with raises(RunError, "damaged"):
        Seeds.read(tmp_path)
    other = Recipe.make(recipe.resolved() | {"output": str(tmp_path / "x")}, ["data.test=null", "data.validation=null"])
    with raises(InputError, "held-out"):
        train_seeds(other, 2)
    several = Recipe.make(other.resolved(), ["data.test=0.3", "train.seeds=3"])
    with raises(InputError, "train.seeds is 3"):
        fine_tune(several)
    assert [child.train.seeds for child in seeded(several, 3)] == [1, 1, 1]
    for change in ("seed=1", "evaluation.resamples=50"):
        with raises(InputError, change.partition("=")[0]):
            train_seeds(Recipe.make(other.resolved(), ["data.test=0.3", change]), 2, against=Path(recipe.output))
    assert not (tmp_path / "x").exists()


def test_seeds_on_other_training_rows_are_not_measured_together(recipe, study, tmp_path):
    shutil.copytree(Path(recipe.output) / "seed-0", tmp_path / "seed-0")
    audit = json.loads((tmp_path / "seed-0" / "audit.json").read_text())
    audit["encoded"]["train"]["content"] = "other"
    (tmp_path / "seed-0" / "audit.json").write_text(json.dumps(audit))
    (tmp_path / "seed-0" / "seal.json").unlink(missing_ok=True)
    with raises(RunError, "train", "data changed"):
        measured([load_run(tmp_path / "seed-0"), load_run(Path(recipe.output) / "seed-1")], "best")

"""The report on several runs: what lies between them, from their tables of predictions."""

import json
from functools import cache
from shutil import copytree

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from runs import start_commands_here
from scipy.stats import binomtest

from ftengine import Recipe, fine_tune
from ftengine.cli import main
from ftengine.engine.compare import compare_strategies
from ftengine.engine.side_by_side import differences
from ftengine_builtins.evaluators.classification import Classification

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def label_run(bert_folder, label_file, tmp_path_factory):
    """Train a classifier for so many steps."""

    @cache
    def train(steps, seed=0):
        content = {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": str(label_file), "validation": 0.1, "test": 0.5},
            "strategy": "full",
            "train": {"max_steps": steps, "epochs": 30, "learning_rate": 0.002, "precision": "float32"},
            "evaluation": {"resamples": 200},
            "seed": seed,
            "output": str(tmp_path_factory.mktemp("runs") / f"steps{steps}"),
        }
        return fine_tune(Recipe.make(content))

    return train


@pytest.fixture(scope="module")
def runs(label_run):
    """Three classifiers on the same data, trained for ever longer."""
    return {f"steps{steps}": label_run(steps) for steps in (1, 12, 60)}


class WithOptions(Classification.Config):
    averaged: bool = True
    beta: float = 1.0


def right(run):
    table = pq.read_table(run.path / "predictions" / "test-tuned.parquet").to_pylist()
    return np.array([row["label"] == row["predicted"] for row in table])


def report(*args):
    result = CliRunner().invoke(main, ["report", *map(str, args)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
def test_each_run_is_set_against_the_best_by_the_same_examples(runs):
    paths = [run.path for run in runs.values()]
    (table,) = differences(paths).tables
    hits = {name: right(run) for name, run in runs.items()}
    best = max(hits, key=lambda name: hits[name].mean())
    assert table.columns[-1] == f"against {best}"
    assert [row[0] for row in table.rows] == [name for name in runs if name != best]
    found = {}
    for name, one in hits.items():
        for other, two in hits.items():
            if name < other:
                only = int((one & ~two).sum()), int((two & ~one).sum())
                found[name, other] = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    names, ps = list(found), np.array(list(found.values()))
    order = np.argsort(ps)
    adjusted = np.minimum(1, np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)))  # Holm 1979
    expected = {names[k]: p for k, p in zip(order, adjusted, strict=True)}
    for name, difference, ends, p, said in table.rows:
        value = hits[name].mean() - hits[best].mean()
        assert float(difference.replace("−", "-")) == pytest.approx(value, abs=0.01)
        low, high = (float(end.replace("−", "-")) for end in ends.split(" to "))
        assert low < value < high
        exact = expected[min(name, best), max(name, best)]
        assert p == ("p < 0.001" if exact < 0.001 else f"p = {exact:.2g}")
        assert said == ("▼ worse" if exact <= 0.05 and high < 0 else "○ not beyond chance")
    assert table.rows[0][-1] == "▼ worse"  # a step teaches nothing
    assert "adjusted for all 3 pairs of runs" in table.caption


def test_of_two_runs_the_second_is_set_against_the_first_and_the_page_shows_it(runs, tmp_path):
    page = tmp_path / "both.html"
    report(runs["steps1"].path, runs["steps60"].path, "--output", page)
    text = page.read_text(encoding="utf-8")
    assert "Differences between the runs" in text
    assert "30 distinct test examples" in text
    assert "▲ better" in text.split("<strong>Differences between the runs")[1].split("</table>")[0]


def test_a_compared_folder_has_the_figures_of_its_comparison(chat_recipe, tmp_path, monkeypatch):
    start_commands_here(monkeypatch)
    recipe = chat_recipe(train__max_steps=3, output=str(tmp_path / "compared"))
    (expected,) = compare_strategies(recipe, ["lora", "full"]).differences
    (table,) = differences([tmp_path / "compared" / name for name in ("lora", "full")]).tables
    assert table.rows[0][0] == "full"
    # compare has the first minus the second
    assert float(table.rows[0][1].replace("−", "-")) == pytest.approx(-expected.value, rel=0.02)


def test_runs_on_other_examples_or_of_other_metrics_are_not_set_against_one_another(
    runs, label_run, chat_recipe, tmp_path
):
    other = label_run(1, seed=7)
    found = differences([runs["steps1"].path, other.path])
    assert "measured on different examples" in found.notes[0]
    assert found.tables == ()
    talk = fine_tune(chat_recipe(train__max_steps=1, output=str(tmp_path / "talk")))
    assert "no first metric in common" in differences([runs["steps1"].path, talk.path]).notes[0]
    page = tmp_path / "two.html"
    report(runs["steps1"].path, talk.path, "--output", page)
    assert "Not the same examples." in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "compared"),
    [({}, True), ({"beta": 1.0, "averaged": True}, True), ({"averaged": True, "beta": 0.5}, False)],
)
def test_runs_whose_metric_has_other_options_are_not_set_against_one_another(
    runs, tmp_path, monkeypatch, options, compared
):
    """Options that are written out as they are by default are the same options, in any order."""
    monkeypatch.setattr(Classification, "Config", WithOptions)
    paths = [runs["steps1"].path, copytree(runs["steps12"].path, tmp_path / "other")]
    name = json.loads((paths[1] / "evaluation.json").read_text())["metrics"]["accuracy"]["evaluator"]
    recipe = yaml.safe_load((paths[1] / "recipe.yaml").read_text())
    (paths[1] / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"evaluate": [{"name": name, **options}]}))
    found = differences(paths)
    assert bool(found.tables) == compared
    assert compared or "other options" in found.notes[0]

"""Whole runs: what evaluation.json says, against figures made by hand from the run's tables of predictions."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from expected import raises
from installed import registry_with
from pydantic import Field
from rows import WORDS, write_rows
from sklearn.metrics import matthews_corrcoef
from statsmodels.stats.proportion import proportion_confint

from ftengine import Recipe, api, fine_tune, load_run
from ftengine.api import Evaluator, Metric
from ftengine.cli import main
from ftengine.errors import InputError, RunError
from ftengine.run.records import Verdict


class Matthews(Evaluator):
    """Matthews correlation of three classes (Gorodkin 2004); scikit-learn's would take 2 ms for each resample."""

    name = "matthews"
    reads = frozenset({"label", "predicted"})
    metrics = {"matthews": Metric("Matthews correlation", higher_is_better=True, primary=True)}  # noqa: RUF012

    def score(self, rows, weights):
        pairs = 3 * np.asarray(rows["label"]) + np.asarray(rows["predicted"])
        cells = np.bincount(pairs, weights, 9).reshape(3, 3)
        n, true, said = cells.sum(), cells.sum(axis=1), cells.sum(axis=0)
        spread = (n**2 - true @ true) * (n**2 - said @ said)
        return {"matthews": (n * np.trace(cells) - true @ said) / spread**0.5 if spread > 0 else 0.0}


class Lengths(Evaluator):
    """Characters of an answer, in dozens, or what else is asked for."""

    class Config(api.Config):
        unit: int = Field(12, ge=1, description="characters that count as one")

    name = "lengths"
    reads = frozenset({"completion"})
    metrics = {"length": Metric("length")}  # noqa: RUF012

    def keep(self, prediction):
        return {"characters": len(prediction["completion"])}

    def score(self, rows, weights):
        return {"length": float(np.average(rows["characters"], weights=weights)) / self.config.unit}


@pytest.fixture(scope="module")
def registry():
    return registry_with(Matthews, Lengths, distribution="test-plugin")


@pytest.fixture(scope="module")
def run(bert_folder, tmp_path_factory, registry):
    """300 held-out rows of 200 different texts, sliced by a column; labels of region c are drawn by lot."""
    folder, rng = tmp_path_factory.mktemp("whole"), random.Random(0)

    def rows(count, name):
        for i in range(count):
            label, region = sorted(WORDS)[i % 3], rng.choice("abc")
            text = " ".join(rng.choice(WORDS[label].split()) for _ in range(5))
            told = rng.choice(sorted(WORDS)) if region == "c" else label
            yield {"text": f"{text} {name} {i}", "label": told, "region": region if i else "once"}

    held = list(rows(200, "new"))
    files = {"train": list(rows(150, "old")), "test": held + held[:100]}
    for name, content in files.items():
        write_rows(folder / f"{name}.jsonl", content)
    content = {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {name: str(folder / f"{name}.jsonl") for name in files}
        | {"validation": 0.2, "near_duplicates": None, "leaks": "warn"},
        "strategy": "full",
        "train": {"batch_size": 8, "learning_rate": 0.002, "precision": "float32", "epochs": 4},
        "evaluation": {
            "resamples": 1000,
            "slices": ["region"],
            "small_slice": 20,
            "robustness": [{"name": "keyboard", "rate": 0.5}],
        },
        "output": str(folder / "run"),
    }
    return fine_tune(Recipe.make(content), registry=registry)


@pytest.fixture(scope="module")
def tables(run):
    found = [pq.read_table(run.path / "predictions" / f"test-{side}.parquet").to_pandas() for side in ("base", "tuned")]
    for table in found:
        table["right"] = table["label"] == table["predicted"]
    return found


@pytest.mark.slow
def test_duplicates_count_once_and_keep_their_place(run, tables):
    for table in tables:
        assert table["row"].tolist() == list(range(300))
        assert table["place"].str.endswith("test.jsonl:300").tolist() == [False] * 299 + [True]
        assert (table["group"][:100].to_numpy() == table["group"][200:].to_numpy()).all()
        assert sorted(set(table["group"])) == list(range(200))
    assert run.evaluation["tuned"]["accuracy"]["n"] == 200


@pytest.mark.slow
def test_accuracy_has_wilsons_interval_of_what_is_distinct(run, tables):
    for side, table in zip(("base", "tuned"), tables, strict=True):
        found = run.evaluation[side]["accuracy"]
        assert found["value"] == pytest.approx(table["right"].mean())
        # Rows that stand there twice weigh twice: worth (Σw)² / Σw² of equal weight (Kish).
        counts = table.groupby("group").size()
        trials = counts.sum() ** 2 / (counts**2).sum()
        low, high = proportion_confint(found["value"] * trials, trials, method="wilson")
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.012)


@pytest.mark.slow
def test_a_further_evaluator_reads_the_tables_without_a_model(run, tables, registry, no_weights):
    before = run.evaluation
    found = load_run(run.path, registry=registry).evaluate(evaluators=["matthews", "calibration"])
    assert found == run.evaluation
    verdict = Verdict.read(run.directory)
    assert verdict == load_run(run.path, registry=registry).verdict
    assert verdict.quality.figures["metric"] == "matthews"
    assert "atthews correlation " in verdict.headline
    assert "Matthews correlation" in (run.path / "report.html").read_text(encoding="utf-8")
    for side, table in zip(("base", "tuned"), tables, strict=True):
        figure = found[side]["matthews"]
        assert figure["value"] == pytest.approx(matthews_corrcoef(table["label"], table["predicted"]))
        assert side == "base" or figure["low"] < figure["value"] < figure["high"]
    assert found["metrics"]["matthews"]["label"] == "Matthews correlation"
    assert found["difference"]["matthews"]["better"] is True
    assert {k: v for k, v in found["tuned"].items() if k != "matthews"} == before["tuned"]  # fitted again, and the same
    assert found["details"] == before["details"]
    assert sorted(map(str, found["displays"]["tuned"])) == sorted(map(str, before["displays"]["tuned"]))


@pytest.mark.slow
def test_what_was_not_kept_cannot_be_measured_later(run, registry):
    opened = load_run(run.path, registry=registry)
    with raises(InputError, "lengths", "completion", "label"):
        opened.evaluate(evaluators=["lengths"])
    with raises(InputError, "--data"):
        opened.evaluate("x.jsonl", evaluators=["matthews"])


@pytest.mark.slow
def test_nothing_is_added_to_a_run_that_cannot_be_judged(run, registry, tmp_path):
    copy = Path(shutil.copytree(run.path, tmp_path / "run"))
    (copy / "audit.json").unlink()
    before = (copy / "evaluation.json").read_bytes()
    with raises(RunError, "audit.json"):
        load_run(copy, registry=registry).evaluate(evaluators=["matthews"])
    assert (copy / "evaluation.json").read_bytes() == before


@pytest.mark.slow
def test_the_command_adds_evaluators(run):
    line = ["evaluate", str(run.path), "--evaluators", "classification, calibration", "--json"]
    result = CliRunner().invoke(main, line, catch_exceptions=False)
    assert json.loads(result.stdout)["tuned"]["accuracy"] == run.evaluation["tuned"]["accuracy"]
    assert "verdict.json and report.html were written anew" in result.stderr
    assert run.verdict.headline[:40] in CliRunner().invoke(main, line[:-1]).stdout


def test_answers_are_kept_where_they_were_asked_for(chat_recipe, registry):
    settings = {"evaluate": [{"name": "lengths", "unit": 1}], "evaluation__generate": {"limit": 3, "max_new_tokens": 4}}
    found = fine_tune(chat_recipe(train__max_steps=1, **settings), registry=registry)
    (path,) = [path for path in (found.path / "predictions").glob("*-tuned.parquet") if "training" not in path.stem]
    table = pq.read_table(path).to_pandas()
    answered = table[table["answered"]]
    assert len(answered) == answered["completion"].notna().sum() == 3 == table["completion"].notna().sum()
    assert (answered["lengths.characters"] == answered["completion"].str.len()).all()
    assert found.evaluation["tuned"]["length"]["value"] == pytest.approx(answered["completion"].str.len().mean())
    before = found.evaluation["tuned"]["length"]
    again = load_run(found.path, registry=registry).evaluate(evaluators=["lengths"])
    assert again["tuned"]["length"] == before  # with the recipe's options
    again = load_run(found.path, registry=registry).evaluate(evaluators=[{"name": "lengths", "unit": 2}])
    assert again["tuned"]["length"]["value"] == pytest.approx(before["value"] / 2)

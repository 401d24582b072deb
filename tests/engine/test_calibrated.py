"""Answers by what a run fitted on its validation split."""

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from expected import raises
from pyarrow import parquet
from rows import sentences, write_rows
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import f1_score

from ftengine import Recipe, fine_tune, load_run
from ftengine.api import Labels
from ftengine.cli import main
from ftengine.errors import DataError, InputError
from ftengine.evaluation.results import calibrate
from ftengine_builtins.tasks.text_classification import TextClassification

pytestmark = pytest.mark.slow

QUICK = {"fast_paths": "off", "validate_every": 1000, "checkpoint_every": 1000}
TWO = {"film": "actor scene music", "sport": "goal match team"}


@pytest.fixture(scope="module")
def run(bert_folder, tmp_path_factory):
    """A run that is surer than it should be: of held-out labels a third were drawn anew."""
    rng, files, folder = random.Random(0), {}, tmp_path_factory.mktemp("calibrated")
    for name, count in (("train", 60), ("validation", 150), ("test", 150)):
        noise, rows = 0 if name == "train" else 1 / 3, sentences(count, rng, TWO)
        drawn = ({**row, "label": rng.choice([*TWO])} if rng.random() < noise else row for row in rows)
        files[name] = write_rows(folder / f"{name}.jsonl", drawn)
    content = {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": files,
        "strategy": {"name": "lora", "rank": 8},
        "train": {"epochs": 12, "learning_rate": 0.01, "precision": "float32", "keep_best": False, **QUICK},
        "evaluation": {"resamples": 100, "training_sample": None, "reuse_base": False},
        "output": str(folder / "run"),
    }
    return fine_tune(Recipe.make(content))


def said(run, split):
    """Return logits and labels of the run's table."""
    table = parquet.read_table(run.path / f"predictions/{split}-tuned.parquet")
    return np.array(table["logits"].to_pylist()), table["label"].to_numpy()


@pytest.mark.slow
def test_the_temperature_makes_validation_likeliest(run):
    logits, labels = said(run, "validation")

    def nll(t):
        return -log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean()

    fitted = run.facts.calibration
    assert fitted == {"temperature": pytest.approx(min(np.geomspace(0.1, 10, 2001), key=nll), rel=0.003), "rows": 150}


def test_calibrated_scores_are_those_of_the_logits_divided_by_it(run, tmp_path):
    output = tmp_path / "answers.jsonl"
    args = ["predict", str(run.path), "--input", run.recipe.data.test, "--output", str(output)]
    temperature = run.facts.calibration["temperature"]
    asked = CliRunner().invoke(main, [*args, "--calibrated"])
    assert f"temperature {temperature:.4g}" in asked.stderr
    answers = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
    logits, labels = said(run, "test")
    scores = np.array([[answer["scores"][name] for name in sorted(TWO)] for answer in answers])
    assert scores == pytest.approx(softmax(logits / temperature, axis=1), abs=1e-5)
    assert [answer["label"] for answer in answers] == [sorted(TWO)[i] for i in logits.argmax(axis=1)]

    def error(p):
        accuracy, confidence = calibration_curve(p.argmax(axis=1) == labels, p.max(axis=1), n_bins=10)
        bins = np.histogram(p.max(axis=1), np.linspace(0, 1, 11))[0]
        return np.average(np.abs(accuracy - confidence), weights=bins[bins > 0])

    assert error(scores) < error(softmax(logits, axis=1)) / 2
    assert CliRunner().invoke(main, [*args, "--resume"]).exit_code == 2
    assert CliRunner().invoke(main, [*args, "--resume", "--calibrated"]).exit_code == 0
    one, other = (next(run.predict([{"text": "goal"}], calibrated=which)) for which in (True, False))
    assert one["label"] == other["label"]
    assert one["scores"] != other["scores"]


def test_a_run_without_it_refuses_before_it_loads(run, monkeypatch):
    other = load_run(run.path)
    monkeypatch.setattr(type(other), "_model", None)
    with raises(InputError, "--base"):
        next(other.predict([{"text": "goal"}], calibrated=True, base=True))
    other.facts = other.facts.model_copy(update={"calibration": {}, "uncalibrated": "too few rows"})
    with raises(InputError, "too few rows"):
        next(other.predict([{"text": "goal"}], calibrated=True))


@pytest.mark.parametrize(("rows", "right", "why"), [(99, 0.7, "100 validation rows"), (100, 1, "rightly")])
def test_what_is_too_little_to_fit_on_is_reported(rows, right, why):
    task = TextClassification()
    task.labels = Labels("single", ("a", "b"))
    label = np.arange(rows) % 2
    sure = np.where(np.arange(rows) < right * rows, 2.0, -2.0)[:, None] * np.eye(2)[label]
    with raises(DataError, why):
        task.calibrate({"label": label, "logits": sure})
    found, why = calibrate(task, SimpleNamespace(split=None, validation=None), None)
    assert (found, "data.validation" in why) == ({}, True)


def test_thresholds_of_several_labels_have_the_highest_f1():
    rng = np.random.default_rng(0)
    task, names = TextClassification(), ("common", "rare", "few")
    task.labels = Labels("multi", names)
    truth = (rng.random((400, 3)) < (0.5, 0.1, 0.01)).astype(int)
    scores = np.round(expit(rng.normal(truth * 2.0 - (0.5, 3.0, 3.0))), 2)  # of a rare label hardly ever one half
    found = task.calibrate({"label": truth, "scores": scores, "logits": scores})
    assert found["rows"] == 400
    assert found["thresholds"]["few"] == 0.5
    for i, name in enumerate(names[:2]):
        best = max(f1_score(truth[:, i], scores[:, i] > t) for t in np.arange(0.005, 1, 0.01))
        assert f1_score(truth[:, i], scores[:, i] > found["thresholds"][name]) == pytest.approx(best)
    assert found["thresholds"]["rare"] < 0.4


@pytest.mark.slow
def test_a_run_with_several_labels_answers_by_the_thresholds_that_it_keeps(bert_folder, tmp_path):
    rng = random.Random(0)
    rows = [{"text": row["text"], "label": [row["label"]] * (rng.random() < 0.6)} for row in sentences(160, rng, TWO)]
    content = {
        "model": {"source": str(bert_folder)},
        "task": {"name": "text-classification", "kind": "multi"},
        "data": {"train": write_rows(tmp_path / "rows.jsonl", rows), "validation": 0.5},
        "strategy": {"name": "lora", "rank": 4},
        "train": {"epochs": 3, "learning_rate": 0.01, "precision": "float32", **QUICK},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": str(tmp_path / "run"),
    }
    run = fine_tune(Recipe.make(content))
    thresholds = run.facts.calibration["thresholds"]
    (answer,) = run.predict([{"text": "goal match"}], calibrated=True)
    assert answer["labels"] == [name for name in sorted(TWO) if answer["scores"][name] > thresholds[name]]

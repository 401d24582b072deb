"""`train.sampling: balanced`: an epoch draws every label as often."""

import random
from collections import Counter

import numpy as np
import pytest
from expected import raises
from rows import sentences, write_rows
from runs import curve, interrupt

from ftengine import fine_tune
from ftengine.api import SilentListener
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.errors import DataError
from ftengine.plugins.registry import Registry


@pytest.fixture
def unbalanced(label_recipe, tmp_path):
    """Build a recipe for 88 rows of one label and 8 of another, sampled evenly."""
    rng, words = random.Random(0), {"film": "actor scene music", "sport": "goal match team"}
    rows = [row for row in sentences(176, rng, words) if row["label"] == "film" or int(row["text"].split()[-1]) < 16]
    files = {"train": write_rows(tmp_path / "rows.jsonl", rows)}
    files["validation"] = write_rows(tmp_path / "held.jsonl", sentences(8, rng, words))
    given = {"data": files, "train__sampling": "balanced", "train__epochs": 2}
    return lambda **overrides: label_recipe(**given | overrides)


def prepared(recipe):
    return prepare_data(Experiment.open(recipe, Registry(), SilentListener()))


@pytest.mark.slow
def test_each_label_is_drawn_as_often_and_the_run_trains_on_what_was_drawn(unbalanced):
    recipe = unbalanced(evaluation__training_sample=50, train__max_steps=14)
    data = prepared(recipe)
    train = data.encoded["train"]
    batches = [batch for epoch in (0, 1) for batch in train.epoch(8, recipe.seed, epoch)]
    members = np.concatenate(batches[:14])
    drawn = Counter(train.rows[int(train.index[i])]["label"] for i in members)
    assert len(batches) == 2 * 12
    assert Counter(row["label"] for row in train.rows) == {"film": 88, "sport": 8}
    assert abs(drawn["sport"] / 112 - 0.5) < 4 * 0.5 / 112**0.5
    run = fine_tune(recipe)
    assert [line["tokens"] for line in run.metrics if "tokens" in line] == [
        int(train.lengths[batch].sum()) for batch in batches[:14]
    ]
    known = {row["text"] for row in evaluation_plan(data).training.split.rows}
    assert known <= {train.rows[int(train.index[i])]["text"] for i in members}


@pytest.mark.slow
def test_a_run_that_is_resumed_within_an_epoch_draws_what_it_would_have_drawn(unbalanced, tmp_path):
    """The drawn rows are a function of seed and epoch alone, so that the second epoch goes on where it stopped."""
    settings = {"train__checkpoint_every": 5, "train__max_steps": 20}
    whole = fine_tune(unbalanced(**settings, output=str(tmp_path / "whole")))
    stopped = unbalanced(**settings, output=str(tmp_path / "stopped"))
    interrupt(stopped, after=17)
    resumed = fine_tune(stopped, resume=True)
    assert curve(resumed.path) == curve(whole.path)
    assert resumed.evaluation == whole.evaluation
    files = [sorted(run.trained.glob("*.safetensors")) for run in (resumed, whole)]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]] != []


def test_rows_without_one_label_are_refused(chat_recipe):
    with raises(DataError, "train.sampling", "chat.jsonl"):
        prepared(chat_recipe(train__sampling="balanced"))

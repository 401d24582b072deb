"""Runs on unpaired preferences: figures, groups of micro-batches and processes, and what is refused before weights."""

import json
import random

import numpy as np
import pytest
from expected import raises
from processes import together, train
from runs import curve, interrupt, losses

from ftengine import Recipe, fine_tune, load_run
from ftengine.errors import DataError
from ftengine.evaluation.table import Predictions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Answers of which each is desirable or not, two to a prompt, which follow one another."""
    folder, draw = tmp_path_factory.mktemp("unpaired"), random.Random(0)
    for name, numbers in (("train", range(16)), ("held", range(50, 62))):
        rows = []
        for i in numbers:
            for label, said in ((True, ["a red fox", "the fox is"]), (False, ["no, never", "go away"])):
                rows.append({"prompt": f"question {i}", "completion": f"{draw.choice(said)} {i}", "label": label})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def recipe(model, folder, output, task=None, strategy=None, **train):
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": {"name": "unpaired-preference", **(task or {})},
            "data": {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "held.jsonl")},
            "strategy": strategy or {"name": "lora", "dropout": 0.0},
            "train": {"max_steps": 3, "batch_size": 8, "precision": "float32", "learning_rate": 0.01, **train},
            "evaluation": {"training_sample": None, "resamples": 100, "answers": None},
            "output": str(output),
        }
    )


@pytest.fixture(scope="module")
def run(folder, llama_folder):
    return fine_tune(recipe(llama_folder, folder, folder / "run", max_steps=None, epochs=8))


@pytest.mark.slow
def test_rewards_of_desirable_answers_rise_above_those_of_others(run):
    assert losses(run)[0] == pytest.approx(0.5, rel=1e-6)
    assert losses(run)[-1] < 0.45
    columns = {
        side: Predictions.read(run.path / "predictions" / f"test-{side}.parquet").columns for side in ("base", "tuned")
    }
    gained = 0.1 * (columns["tuned"]["logp"] - columns["base"]["logp"])
    np.testing.assert_allclose(columns["tuned"]["reward"], gained, rtol=1e-3, atol=1e-4)
    moved = np.abs(columns["tuned"]["logp"] - columns["base"]["logp"]) / columns["base"]["tokens"]
    np.testing.assert_allclose(columns["tuned"]["divergence"], moved, rtol=1e-3, atol=1e-5)
    found = run.evaluation
    assert found["base"]["divergence"]["value"] == 0 < found["tuned"]["divergence"]["value"]
    assert list(found["tuned"]) == ["reward_auc", "reward_difference", "chosen_logp", "rejected_logp", "divergence"]
    assert (found["base"]["reward_auc"]["value"], found["base"]["reward_difference"]["value"]) == (0.5, 0.0)
    good = np.asarray(columns["tuned"]["desirable"]).astype(bool)
    above = columns["tuned"]["reward"][good][:, None] > columns["tuned"]["reward"][~good]
    assert found["tuned"]["reward_auc"]["value"] == pytest.approx(above.mean())
    assert found["difference"]["reward_difference"]["low"] > 0
    details = found["details"]["tuned"]["unpaired-preferences"]["baseline"]
    assert details["way"].startswith("preferring")
    assert load_run(run.path).evaluate()["tuned"] == found["tuned"]


def test_a_prompt_is_mismatched_with_the_next_answer_to_another(folder, llama_folder):
    """Of two rows of one prompt both get the first answer to the next one; the last prompt gets the first one's."""
    from ftengine.engine.experiment import Experiment
    from ftengine.engine.prepared_data import prepare_data

    split = prepare_data(Experiment.open(recipe(llama_folder, folder, folder / "not-run"))).encoded["train"]
    rows = [json.loads(line)["completion"] for line in (folder / "train.jsonl").read_text().splitlines()]
    decode = split.processor.decode
    found = [
        decode([x for x in split.features(i).inputs["mismatched_labels"] if x != -100], skip_special_tokens=True)
        for i in range(len(split))
    ]
    assert found == [rows[(i // 2 * 2 + 2) % len(rows)] for i in range(len(rows))]


@pytest.mark.slow
def test_micro_batches_do_not_change_what_is_learnt(folder, llama_folder, tmp_path):
    """The group whose rewards are compared is the whole effective batch."""
    whole = fine_tune(recipe(llama_folder, folder, tmp_path / "8"))
    parts = fine_tune(recipe(llama_folder, folder, tmp_path / "1", batch_size=1, accumulate=8))
    assert len(set(losses(whole))) == 3
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(folder, llama_folder, tmp_path):
    alone = fine_tune(recipe(llama_folder, folder, tmp_path / "8"))
    (tmp_path / "two.yaml").write_text(
        json.dumps(recipe(llama_folder, folder, tmp_path / "4", batch_size=4).resolved())
    )
    together(tmp_path, train, str(tmp_path / "two.yaml"))
    assert losses(load_run(tmp_path / "4")) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.slow
def test_a_run_resumes_to_the_same_curve(folder, llama_folder, tmp_path):
    options = {"max_steps": None, "epochs": 2, "checkpoint_every": 3, "batch_size": 4, "accumulate": 2}
    whole = fine_tune(recipe(llama_folder, folder, tmp_path / "whole", **options))
    killed = recipe(llama_folder, folder, tmp_path / "killed", **options)
    interrupt(killed, after=5)
    assert curve(fine_tune(killed, resume=True).path) == curve(whole.path)


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        (
            [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": True}],
            ["true"],
        ),
        ([{"prompt": "a", "completion": "b", "label": i} for i in (True, False)], ["prompt"]),
        (
            [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "c", "completion": "d", "label": 3}],
            [":2", "3"],
        ),
    ],
    ids=["one label", "one prompt", "no label"],
)
def test_rows_are_refused_before_weights_are_read(rows, facts, llama_folder, tmp_path, no_weights):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = recipe(llama_folder, tmp_path, tmp_path / "run").resolved()
    content["data"] |= {"test": None}
    with raises(DataError, *facts):
        fine_tune(Recipe.make(content))

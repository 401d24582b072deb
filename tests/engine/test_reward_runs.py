"""Runs of task reward: what is measured, what is saved, and what `predict` scores."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ftengine import Recipe, fine_tune
from ftengine.evaluation.table import Predictions
from ftengine_builtins.rewards import RewardConfig, Rewards

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs whose chosen answers are polite; those of every third one are no longer than the others."""
    folder, draw = tmp_path_factory.mktemp("rewards"), random.Random(0)
    for name, numbers in (("train", range(48)), ("held", range(60, 84))):
        rows = []
        for i in numbers:
            good, bad = draw.choice(["a red fox", "the fox is"]), draw.choice(["no, never", "go away"])
            rows.append(
                {"prompt": f"question {i}", "chosen": f"{good} {i}", "rejected": f"{bad} {i}" + " now" * (i % 3)}
            )
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module", params=["llama", "bert"])
def run(request, folder, llama_folder, bert_folder):
    """A decoder, which trains whole, and an encoder without a chat template."""
    model = {"llama": llama_folder, "bert": bert_folder}[request.param]
    return fine_tune(
        Recipe.make(
            {
                "model": {"source": str(model)},
                "task": {"name": "reward", "centring": 0.01},
                "data": {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "held.jsonl")},
                "strategy": {"llama": {"name": "full"}, "bert": {"name": "lora", "dropout": 0.0}}[request.param],
                "train": {"epochs": 6, "batch_size": 8, "precision": "float32", "learning_rate": 0.003},
                "evaluation": {"training_sample": None, "resamples": 100, "reuse_base": False},
                "output": str(folder / request.param),
            }
        )
    )


def test_accuracy_is_that_of_its_own_scores_and_length_is_a_baseline(run, folder):
    rows = [json.loads(line) for line in (folder / "held.jsonl").read_text().splitlines()]
    found = list(run.predict(rows))
    scores = np.array([[one["chosen"], one["rejected"]] for one in found])
    figures = run.evaluation["tuned"]
    assert figures["preference_accuracy"]["value"] == accuracy_score(np.ones(len(rows)), scores[:, 0] > scores[:, 1])
    assert figures["preference_accuracy"]["low"] is not None
    assert figures["margin"]["value"] == pytest.approx((scores[:, 0] - scores[:, 1]).mean(), abs=1e-5)
    assert run.evaluation["difference"]["margin"]["better"]
    baseline = run.evaluation["details"]["tuned"]["rewards"]["baseline"]
    table = Predictions.read(run.path / "predictions" / "test-tuned.parquet").columns
    longer = table["chosen_tokens"] > table["rejected_tokens"]
    ties = table["chosen_tokens"] == table["rejected_tokens"]
    share = longer.mean() + ties.mean() / 2
    assert baseline["figures"]["preference_accuracy"] == pytest.approx(max(share, 1 - share))


def test_it_is_the_reward_of_drawn_answers(run):
    made = Rewards([RewardConfig(run=str(run.path), weight=2.0), RewardConfig(name="regex", pattern="a.*")], 5.0, "", 2)
    made.start()
    asked = [{"prompt": "question 3"}, {"messages": [{"role": "user", "content": "question 3"}]}]
    asked = asked[: 1 + bool(run.ready().processor.chat_template)]
    answers = [("a red fox", row) for row in asked] + [("go away", asked[0])]
    expected = [
        one["reward"] for one in run.predict([{**row, "completion": text} for text, row in (answers[0], answers[-1])])
    ]
    scored = made.score_each(answers)
    assert [one.error for one in scored] == [""] * len(answers)
    assert scored[0].rewards == (pytest.approx(expected[0], abs=1e-5), 1)
    assert scored[0].total == pytest.approx(2 * expected[0] + 1, abs=1e-5)
    assert scored[-1].total == pytest.approx(2 * expected[-1], abs=1e-5)
    assert len({round(one.total, 4) for one in scored}) == 2  # a text and messages are one prompt


def test_a_row_is_scored_whatever_it_holds_and_alike(run):
    pair = {"prompt": "question 3", "chosen": "a red fox", "rejected": "go away"}
    both, chosen, rejected = run.predict(
        [pair, *({"prompt": pair["prompt"], "completion": pair[side]} for side in ("chosen", "rejected"))]
    )
    assert (chosen["reward"], rejected["reward"]) == pytest.approx((both["chosen"], both["rejected"]), abs=1e-5)


def test_what_is_saved_opens_as_a_sequence_classifier_with_one_label(run, tmp_path):
    pair = {"prompt": "question 3", "chosen": "a red fox", "rejected": "go away"}
    (wanted,) = run.predict([pair])
    path = run.trained if (run.trained / "config.json").is_file() else tmp_path / "merged"
    if path != run.trained:
        run.merge(path)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.config.num_labels == 1
    features = run.task.encode(pair, tokenizer)
    for side, name in (("", "chosen"), ("rejected_", "rejected")):
        with torch.no_grad():
            score = model.eval()(input_ids=torch.tensor([features.inputs[f"{side}input_ids"]])).logits
        assert score.shape == (1, 1)
        assert float(score) == pytest.approx(wanted[name], abs=1e-5)


def test_the_saved_folder_scores_conversations_as_apply_chat_template_writes_them(run, tmp_path):
    """To the end: ChatML has a line's end behind an answer, which is what a decoder's score is read from."""
    question, answer = {"role": "user", "content": "question 3"}, {"role": "assistant", "content": "a red fox"}
    path = run.trained if (run.trained / "config.json").is_file() else tmp_path / "merged"
    if path != run.trained:
        run.merge(path)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    if not tokenizer.chat_template:
        pytest.skip("an encoder without a chat template")
    text = tokenizer.apply_chat_template([question, answer], tokenize=False)
    assert text.endswith("\n")
    with torch.no_grad():
        score = float(model.eval()(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits)
    other = {**answer, "content": "go away"}
    pair = {"prompt": [question], "chosen": [answer], "rejected": [other]}
    rows = [pair, {"messages": [question, answer]}, {"prompt": "question 3", "completion": "a red fox"}]
    both, *alone = run.predict(rows)
    assert [both["chosen"], *(one["reward"] for one in alone)] == pytest.approx([score] * 3, abs=1e-5)
    table = Predictions.read(run.path / "predictions" / "test-tuned.parquet").columns
    held = Path(run.recipe.data.test).read_text().splitlines()
    first = json.loads(held[int(table["row"][0])])
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": first["prompt"]}, {**answer, "content": first["chosen"]}],
        return_dict=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        assert float(model(**asked).logits) == pytest.approx(float(table["chosen_reward"][0]), abs=1e-5)

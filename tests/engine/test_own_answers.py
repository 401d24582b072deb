"""The KL divergence of a tuned model from the one that training began with, on the tuned model's own answers."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from expected import raises

from ftengine import Recipe, fine_tune
from ftengine.cli import main
from ftengine.engine.own_answers import divergences, own_answers
from ftengine.engine.proof import exact_run
from ftengine.errors import DataError

PROMPTS = 60
GROUPS = np.repeat(np.arange(500), 8)


def recipe(model, folder, output, strategy="lora", **train):
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": "causal-lm",
            "data": {"train": str(folder / "train.jsonl"), "validation": None, "test": str(folder / "test.jsonl")},
            "strategy": strategy,
            "train": {"epochs": 10, "batch_size": 6, "precision": "float32", "learning_rate": 0.01, **train},
            "evaluation": {"training_sample": None, "answers": None, "generate": {"max_new_tokens": 1}},
            "output": str(output),
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own-answers")
    for name, numbers in (("train", range(100, 124)), ("test", range(PROMPTS))):
        rows = [
            {"prompt": f"question {i}", "completion": f" a red fox {i % 3}", "who": f"{name} {i // 6}"} for i in numbers
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def run(folder, llama_folder):
    return fine_tune(recipe(llama_folder, folder, folder / "run", "full", epochs=2))  # k3 of 60 draws covers a small KL


def logits(run, prompts, **which):
    """Return (prompts, vocabulary) log-probabilities of the first token of an answer."""
    found = []
    with exact_run(run).model(**which) as loaded:
        for prompt in prompts:
            ids = torch.tensor([run.task.prompt({"prompt": prompt}, loaded).ids])
            found.append(loaded.module(input_ids=ids).logits[0, -1].log_softmax(-1).double())
    return torch.stack(found)


@pytest.mark.slow
def test_the_estimate_is_kl_of_the_tuned_model_from_the_base(run):
    """Of answers of one token KL is a sum over the vocabulary."""
    found = own_answers(run, rows=PROMPTS)
    prompts = [f"question {i}" for i in range(PROMPTS)]
    tuned, base = logits(run, prompts), logits(run, prompts, base=True)
    exact = float((tuned.exp() * (tuned - base)).sum(-1).mean())
    assert exact > 0.1
    assert found.kl.low < exact < found.kl.high
    assert found.log_ratio.low < exact < found.log_ratio.high
    assert (found.prompts, found.tokens, found.longest, found.started_from) == (PROMPTS, PROMPTS, 1, "")
    assert found.kl_per_token.value == pytest.approx(found.kl.value)
    assert own_answers(run, rows=PROMPTS) == found


def test_prompts_of_one_group_are_resampled_together(folder, llama_folder, tmp_path):
    content = recipe(llama_folder, folder, tmp_path / "run", max_steps=1).resolved()
    content["data"] |= {"group": "who"}
    found = own_answers(fine_tune(Recipe.make(content)), rows=PROMPTS).kl
    assert (found.n, found.rows, found.worth) == (PROMPTS // 6, PROMPTS, pytest.approx(PROMPTS / 6))


def test_too_few_rows_are_reported_with_what_can_be_done_about_them(run, tmp_path):
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "question", "completion": " a red fox"}) + "\n")
    with raises(DataError, "--data FILE") as caught:
        own_answers(run, rows=4, data=str(tmp_path / "one.jsonl"))
    assert "export" not in str(caught.value)
    given = ["--to", "transformers", "--data", str(tmp_path / "one.jsonl")]
    result = CliRunner().invoke(main, ["export", str(run.path), str(tmp_path / "out"), *given])
    assert (result.exit_code, "--no-verify" in result.stderr) == (2, True)


@pytest.mark.slow
def test_a_run_that_starts_from_an_adapter_is_measured_from_there(folder, llama_folder, tmp_path):
    run = fine_tune(recipe(llama_folder, folder, tmp_path / "1"))
    began = {"name": "lora", "start_from": str(run.trained)}
    second = fine_tune(recipe(llama_folder, folder, tmp_path / "2", began, max_steps=1, learning_rate=1e-9))
    found = own_answers(second, rows=8)
    assert found.started_from == str(run.trained)
    assert found.kl.value == pytest.approx(0, abs=1e-6)
    assert own_answers(run, rows=8).kl.value > 1e-3


def test_both_estimates_agree_in_the_mean_and_the_usual_one_varies_less():
    draw = np.random.default_rng(0)
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.3, 0.3])
    exact = 3 * float((p * np.log(p / q)).sum())  # of answers of three tokens
    answers = draw.choice(3, p=p, size=(4000, 3))
    kl, per_token, plain = divergences(list(np.log(p)[answers]), list(np.log(q)[answers]), 0, np.arange(4000))
    assert kl.low < exact < kl.high
    assert plain.low < exact < plain.high
    assert kl.high - kl.low < 0.5 * (plain.high - plain.low)
    assert per_token.value == pytest.approx(kl.value / 3)
    of_eight = divergences(*(list(np.repeat(np.log(one)[answers[:500]], 8, axis=0)) for one in (p, q)), 0, GROUPS)
    alone = divergences(list(np.log(p)[answers[:500]]), list(np.log(q)[answers[:500]]), 0, np.arange(500))
    for grouped, single in zip(of_eight, alone, strict=True):
        assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high))
    same = list(np.log(p)[answers])
    assert [one.value for one in divergences(same, same, 0, np.arange(4000))] == [0, 0, 0]

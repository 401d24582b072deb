"""A third party's preference tuning: its reference is the base that the strategy kept."""

import math
import random
import types
from pathlib import Path

import dpo
import pytest
import torch
from expected import raises
from rows import write_rows
from runs import curve, interrupt, losses

from ftengine import Recipe, fine_tune, hookimpl, load_run, registry_of
from ftengine.errors import RecipeError

KINDS = ["adapter", "lora", "prefix", "prompt"]


@pytest.fixture
def registry():
    plugin = types.ModuleType("dpo")
    plugin.ftengine_tasks, plugin.ftengine_evaluators = hookimpl(lambda: [dpo.DPO]), hookimpl(lambda: [dpo.Preferences])
    plugin.ftengine_tasks.__name__, plugin.ftengine_evaluators.__name__ = "ftengine_tasks", "ftengine_evaluators"
    return registry_of({"dpo": plugin})


@pytest.fixture
def content(llama_folder, tmp_path):
    rng, rows = random.Random(0), []
    for i in range(40):
        good, bad = rng.choice(["yes please", "of course"]), rng.choice(["no way", "never"])
        rows.append({"prompt": f"question {i}", "chosen": f"{good} {i}", "rejected": f"{bad} {i}"})
    return {
        "model": {"source": str(llama_folder)},
        "task": "dpo",
        "data": {"train": write_rows(tmp_path / "pairs.jsonl", rows), "validation": 0.25},
        "strategy": {"name": "lora", "dropout": 0.1},
        "train": {"epochs": 4, "learning_rate": 0.01, "batch_size": 6, "precision": "float32", "checkpoint_every": 3},
        "evaluation": {"resamples": 100, "training_sample": None},
        "output": str(tmp_path / "run"),
    }


def test_it_is_short():
    lines = Path(dpo.__file__).read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 80


def test_preferences_are_learnt_and_survive_a_reload(content, registry):
    run = fine_tune(Recipe.make(content), registry=registry)
    figures = run.evaluation
    assert figures["base"]["preference_accuracy"]["value"] == 0.5  # the base is its own reference
    assert figures["tuned"]["preference_accuracy"]["value"] > 0.9
    assert losses(run)[0] == pytest.approx(math.log(2))  # nothing is preferred yet
    assert losses(run)[-1] < 0.6
    again = load_run(run.path, registry=registry).evaluate()
    assert again["tuned"] == figures["tuned"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", KINDS)
def test_every_strategy_that_answers_as_its_base_can_be_the_reference(content, registry, strategy):
    content["strategy"], content["train"]["max_steps"] = strategy, 3
    run = fine_tune(Recipe.make(content), registry=registry)
    assert run.evaluation["base"]["preference_accuracy"]["value"] == 0.5
    assert len(set(losses(run))) == 3


@pytest.mark.slow
def test_a_run_resumes_to_the_same_curve(content, registry, tmp_path, monkeypatch):
    monkeypatch.setattr("ftengine.engine.experiment.Registry", lambda: registry)
    monkeypatch.setattr("ftengine.engine.finished.Registry", lambda: registry)
    whole = fine_tune(Recipe.make({**content, "output": str(tmp_path / "whole")}))
    killed = Recipe.make({**content, "output": str(tmp_path / "killed")})
    interrupt(killed, after=7)
    assert curve(fine_tune(killed, resume=True).path) == curve(whole.path)


def test_a_strategy_that_cannot_is_refused_before_weights_are_read(content, registry, llama_folder, tmp_path):
    content["strategy"] = "full"
    with raises(RecipeError, "dpo", "full"):
        fine_tune(Recipe.make(content), registry=registry)
    assert not (tmp_path / "run").exists()


def test_log_probs_have_the_gradient_of_the_logits(llama_folder):
    from transformers import AutoModelForCausalLM

    from ftengine.model import TokenLoss, token_loss

    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    ids = torch.randint(5, 60, (3, 150), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(150) % 3 == 0, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert (labels != -100).sum() > 2 * token_loss.CHUNK
    weights = torch.tensor([1.0, -2.0, 0.5])
    found, counts = TokenLoss().log_probs(model, inputs, labels)
    logits = model(**inputs).logits[:, :-1].float().log_softmax(-1)
    picked = logits.gather(-1, ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
    torch.testing.assert_close(found, picked.sum(1))
    assert counts.tolist() == (labels[:, 1:] != -100).sum(1).tolist()
    parameters = [model.lm_head.weight, model.model.layers[0].self_attn.q_proj.weight]
    ours, theirs = (torch.autograd.grad((x * weights).sum(), parameters) for x in (found, picked.sum(1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)

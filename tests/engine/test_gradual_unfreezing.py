"""Layers that join later: untouched until then, right after a resume, and part of every checkpoint."""

import pytest
import torch
from expected import raises
from runs import Heard, interrupt
from torch import nn

from ftengine import fine_tune, load_run
from ftengine.errors import TrainingError
from ftengine.model import read_tensors
from ftengine_builtins.strategies.full import Full

UNFREEZING = {"strategy": {"name": "full", "unfreeze_every": 3, "layer_decay": 0.9}, "train__weight_decay": 0.1}


def weights(folder):
    return read_tensors(folder / "model.safetensors")


def layer(tensors, number):
    return {name: tensor for name, tensor in tensors.items() if f".layers.{number}." in name}


def same(ours, theirs):
    return [(ours[name] == tensor).all().item() for name, tensor in theirs.items()]


def test_a_layer_stays_untouched_until_it_joins(chat_recipe, llama_folder):
    run = fine_tune(chat_recipe(**UNFREEZING, train__max_steps=3, train__keep_best=False))
    base, tuned = weights(llama_folder), weights(run.trained)
    assert all(same(layer(tuned, 0), layer(base, 0)))
    assert not any(same(layer(tuned, 1), layer(base, 1)))
    # Tied to the output, so it trains throughout.
    assert not (tuned["model.embed_tokens.weight"] == base["model.embed_tokens.weight"]).all()


def test_a_run_in_which_nothing_gets_a_gradient_ends_with_the_reason(chat_recipe, monkeypatch):
    def prepare(self, loaded):
        loaded.module.requires_grad_(False)
        loaded.module.beside = nn.Parameter(torch.zeros(2, device=loaded.module.device))
        loaded.module.model.norm.weight.requires_grad_(True)

    def frozen_parameters(self, model, *step):
        return [model.model.norm.weight]

    monkeypatch.setattr(Full, "prepare", prepare)
    monkeypatch.setattr(Full, "frozen_parameters", frozen_parameters)
    with raises(TrainingError, "'full'", "beside"):
        fine_tune(chat_recipe(strategy="full", train__max_steps=2))


@pytest.mark.slow
def test_every_layer_has_trained_in_the_end_and_the_run_opens_again(chat_recipe, llama_folder):
    run = fine_tune(chat_recipe(**UNFREEZING, train__max_steps=6, train__keep_best=False))
    assert not any(same(weights(run.trained), weights(llama_folder)))
    assert load_run(run.path).evaluate()["tuned"] == run.evaluation["tuned"]


def test_the_run_counts_what_will_train_and_says_what_never_does(chat_recipe):
    ear = Heard()
    run = fine_tune(chat_recipe(**UNFREEZING, train__max_steps=3), listener=ear)
    facts = run.directory.read_json("training.json")
    assert facts["trainable_parameters"] == facts["total_parameters"]
    assert any("trainable tensors stay frozen for all 3 steps" in text for text in ear.said)


@pytest.mark.slow
def test_a_run_that_stopped_before_or_after_a_layer_joined_resumes_to_the_same_weights(chat_recipe, tmp_path):
    settings = {**UNFREEZING, "train__max_steps": 7, "train__checkpoint_every": 1, "train__validate_every": 2}
    whole = fine_tune(chat_recipe(**settings, output=str(tmp_path / "whole")))
    recipe = chat_recipe(**settings)
    interrupt(recipe, after=2)
    interrupt(recipe, after=3, resume=True)
    resumed = fine_tune(recipe, resume=True)
    assert (resumed.trained / "model.safetensors").read_bytes() == (whole.trained / "model.safetensors").read_bytes()
    assert resumed.evaluation == whole.evaluation

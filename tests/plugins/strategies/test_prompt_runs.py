"""Whole runs with virtual tokens: trained, interrupted and resumed, evaluated again, asked, and never merged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from expected import raises
from peft import PeftModel
from transformers import AutoModelForCausalLM

from ftengine import Recipe, fine_tune, load_run, plan
from ftengine.api import LoadRequest
from ftengine.errors import NotMergeable, RecipeError
from ftengine.model import read_tensors
from ftengine.plugins.registry import Registry
from ftengine_builtins.loaders.transformers import TransformersLoader

pytestmark = pytest.mark.slow

STRATEGIES = {
    "prompt": {"name": "prompt", "virtual_tokens": 4, "lr_ratio": 20.0},
    "prefix": {"name": "prefix", "virtual_tokens": 4, "lr_ratio": 20.0},
    "projected prefix": {"name": "prefix", "virtual_tokens": 4, "projection": 16, "lr_ratio": 1.0},
}


@pytest.fixture(scope="module")
def opinions(tmp_path_factory) -> Path:
    words = {"good": ("wonderful", "fine", "good"), "bad": ("terrible", "late", "bad")}
    rows = [
        {"text": f"the film was {word} {'and the music ' * (i % 4)}", "label": label}
        for i in range(6)
        for label, many in words.items()
        for word in many
    ]
    file = tmp_path_factory.mktemp("data") / "opinions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe(model: Path, task: str, data: Path, strategy: dict, output: Path, **train) -> Recipe:
    return Recipe.make(
        {
            "model": {"source": str(model)},
            "task": task,
            "data": {"train": str(data), "validation": 0.25},
            "strategy": strategy,
            "train": {
                "epochs": 3,
                "batch_size": 6,
                "learning_rate": 0.02,
                "precision": "float32",
                "checkpoint_every": 2,
                **train,
            },
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None},
            "output": str(output),
        }
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_a_decoder_answers_as_in_peft(llama_folder, sums, tmp_path, strategy):
    whole = fine_tune(recipe(llama_folder, "causal-lm", sums, STRATEGIES[strategy], tmp_path / "run"))
    again = load_run(whole.path)
    with pytest.raises(NotMergeable):
        again.merge(tmp_path / "merged")

    # Answers are those that PEFT generates from the same folder, whatever they are batched with.
    questions = [{"prompt": "What is 3 and 3?"}, {"prompt": "How do I reset my password, please, and what is 4?"}]
    answers = list(again.predict(questions, options={"max_new_tokens": 8}))
    assert answers == [next(again.predict([row], options={"max_new_tokens": 8})) for row in questions]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_folder), whole.trained).eval()
    loaded = TransformersLoader().load(LoadRequest(str(llama_folder), "causal-lm"))
    continued = {"name": STRATEGIES[strategy]["name"], "start_from": str(whole.trained)}
    Registry().build("strategy", continued, "strategy").prepare(loaded)
    loaded.module.eval()
    ids = torch.tensor([[7, 20, 30, 41, 52]])
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -5:]
        torch.testing.assert_close(loaded.module(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_on_an_encoder_learns_with_its_fresh_head(bert_folder, opinions, tmp_path, strategy):
    """Decoders in bfloat16 are tests/engine/test_matrix.py's."""
    made = recipe(
        bert_folder, "text-classification", opinions, STRATEGIES[strategy], tmp_path / "run", precision="bfloat16"
    )
    run = fine_tune(made)
    losses = [json.loads(line).get("loss") for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert sum(losses[-3:]) < sum(losses[:3])
    name = "adapter_model" if strategy == "prompt" else "trained"  # PEFT runs no prefix on it
    keys = set(read_tensors(run.trained / f"{name}.safetensors"))
    assert keys == {"prompt_embeddings", "base_model.classifier.weight", "base_model.classifier.bias"}
    assert load_run(run.path).evaluate()["tuned"] == run.evaluation["tuned"]


def test_a_prompt_trains_with_gradient_checkpointing_and_a_prefix_is_refused(llama_folder, sums, tmp_path):
    def made(name: str) -> Recipe:
        return recipe(
            llama_folder, "causal-lm", sums, STRATEGIES[name], tmp_path / name, gradient_checkpointing=True, max_steps=2
        )

    assert fine_tune(made("prompt")).evaluation["tuned"]["loss"]["value"] > 0
    with raises(RecipeError, "gradient_checkpointing"):
        fine_tune(made("prefix"))
    assert not (tmp_path / "prefix").exists()


def test_the_plan_counts_virtual_tokens_and_the_room_that_is_left(llama_folder, sums, tmp_path):
    found = plan(recipe(llama_folder, "causal-lm", sums, STRATEGIES["prompt"], tmp_path / "run"), measure=False)
    assert found.model["trainable_parameters"] == 4 * 64
    assert found.model["max_length"] == 512 - 4

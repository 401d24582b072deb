"""Tasks and a merge with modules that know nothing of transformers: no config, no named embeddings, no token types."""

import random
import types

import pytest
import torch
from expected import raises
from rows import sentences, tagged, write_rows
from runs import losses
from tiny import word_piece_tokenizer
from torch import nn

from ftengine import Recipe, api, fine_tune, hookimpl, load_run, registry_of
from ftengine.errors import InputError
from ftengine.model import probe_tokens, raw_outputs


class Plain(nn.Module):
    """A table, a mean over what came before, and a head; tokens alone go in."""

    def __init__(self, tokens: int, outputs: int, pooled: bool):
        super().__init__()
        self.table, self.hidden, self.head = nn.Embedding(tokens, 16), nn.Linear(16, 16), nn.Linear(16, outputs)
        self.pooled = pooled

    def forward(self, input_ids):
        states = self.table(input_ids)
        means = states.cumsum(1) / torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
        hidden = torch.tanh(self.hidden(states + means))
        return self.head(hidden.mean(1) if self.pooled else hidden)


class PlainLoader(api.ModelLoader):
    """Load a plain module: plain://anything."""

    name = "plain"

    def accepts(self, source):
        return source.startswith("plain://")

    def load_processor(self, source):
        return word_piece_tokenizer()

    def load(self, request):
        processor = self.load_processor(request.source)
        outputs = len(request.labels.names) if request.labels else len(processor)
        module = Plain(len(processor), outputs, request.head == "sequence-classification")
        if request.source.endswith("zero"):  # as many modules begin: every answer is alike
            nn.init.zeros_(module.head.weight)
            nn.init.zeros_(module.head.bias)
        return api.LoadedModel(
            module, processor, request.source, request.head, ("head",), request.labels, max_length=64
        )


@pytest.fixture(scope="module")
def registry():
    plugin = types.SimpleNamespace(hook=hookimpl(lambda: [PlainLoader], specname="ftengine_model_loaders"))
    return registry_of({"plain": plugin})


def rows(task):
    if task == "text-classification":
        return sentences(60, random.Random(0))
    if task == "token-classification":
        return tagged(40)
    return [{"text": f"the match ended in a draw after {i} goals"} for i in range(40)]


@pytest.mark.parametrize("strategy", ["full", "lora"])
@pytest.mark.parametrize("task", ["text-classification", "token-classification", "causal-lm"])
def test_a_plain_module_is_trained_reopened_and_merged(registry, task, strategy, tmp_path):
    options = {"name": "lora", "rank": 2, "targets": ["hidden"]} if strategy == "lora" else strategy
    recipe = Recipe.make(
        {
            "model": {"source": "plain://one"},
            "task": task,
            "data": {"train": write_rows(tmp_path / "rows.jsonl", rows(task)), "validation": 0.2},
            "strategy": options,
            "train": {"epochs": 3, "batch_size": 8, "learning_rate": 0.02, "precision": "float32"},
            "evaluation": {"resamples": 100, "training_sample": None},
            "output": str(tmp_path / "run"),
        }
    )
    run = fine_tune(recipe, registry=registry)
    assert losses(run)[-1] < losses(run)[0]
    again = load_run(run.path, registry=registry)
    assert again.evaluate()["tuned"] == run.evaluation["tuned"]
    report = again.merge(tmp_path / "merged")
    assert report.difference <= report.tolerance
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_a_probe_needs_a_table_of_tokens_and_leaves_out_what_a_module_does_not_take():
    module = Plain(30, 3, pooled=True)
    batch = {**probe_tokens(module), "token_type_ids": torch.zeros(2, 16, dtype=torch.long), "labels": torch.zeros(2)}
    assert batch["input_ids"].max() < 30
    assert torch.equal(raw_outputs(module, batch), module(batch["input_ids"]))
    with raises(InputError, "Linear", "`probe`", "`outputs`"):
        probe_tokens(nn.Linear(2, 2))
    with raises(TypeError, "pixels"):  # what cannot be left out is not
        raw_outputs(module, {"input_ids": batch["input_ids"], "pixels": batch["labels"]})

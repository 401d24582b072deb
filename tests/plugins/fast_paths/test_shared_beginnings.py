"""What rows of a batch begin with alike is computed once, and comes to what the rows do."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import write_rows
from tiny import tiny_llama
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    LlamaConfig,
    MistralConfig,
    Qwen3NextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from ftengine import Recipe, fine_tune, plan
from ftengine.model import Criterion, TokenLoss
from ftengine.model.forest import SHORTEST, Forest, forest_of, forests, keeps_to_forests
from ftengine.model.tokens import IGNORED
from ftengine.testing.models import sensitise
from ftengine_builtins.tasks.causal_lm import CausalLM

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}


def decoder(config=LlamaConfig, *, attention="sdpa", **settings):
    """Return a decoder whose every weight matters."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**{**SIZES, **settings}), attn_implementation=attention).float()
    sensitise(model)
    return model.train()


@pytest.fixture(scope="module")
def llama():
    return decoder()


def batch_of(*rows, first=False):
    """Return what a decoder is called with; padded at the end, or in front."""
    padded = [
        pad_sequence([torch.tensor(x) for x in some], batch_first=True) for some in (rows, [[1] * len(x) for x in rows])
    ]
    ids, mask = (x.flip(1) if first else x for x in padded)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def loss_and_gradients(model, batch):
    model.zero_grad(set_to_none=True)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    loss, _ = TokenLoss().sum(model, inputs, batch["labels"], Criterion())
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def tokens(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 60, size).tolist() for size in sizes]


@st.composite
def families(draw):
    """Rows that begin as others do, in part or whole, some of them equal to others."""
    rows = [draw(st.lists(st.integers(1, 3), min_size=1, max_size=24))]
    for _ in range(draw(st.integers(1, 7))):
        stem = draw(st.sampled_from(rows))
        rows.append([*stem[: draw(st.integers(0, len(stem)))], *draw(st.lists(st.integers(1, 3), max_size=12))] or [1])
    return draw(st.permutations(rows))


@given(families())
def test_each_row_is_found_in_the_forest_and_no_long_beginning_twice(rows):
    forest = Forest.of([np.array(row) for row in rows])
    ids, positions = forest.ids[0].numpy(), forest.positions[0].numpy()
    for row, numbers in zip(rows, forest.rows, strict=True):
        assert ids[numbers].tolist() == row
        assert positions[numbers].tolist() == list(range(len(row)))
    prefixes = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    long = {one for one in prefixes if len(one) >= SHORTEST}
    assert len(prefixes) <= forest.tokens <= len(long) + len(rows) * (SHORTEST - 1)


@settings(max_examples=15)
@given(families(), st.sampled_from([None, 5]))
def test_loss_and_gradients_are_those_of_the_rows(rows, window):
    model = DECODERS[window]
    batch = batch_of(*rows)
    apart = loss_and_gradients(model, batch)
    with forests(model):
        together = loss_and_gradients(model, batch)
    largest = max(float(x.norm()) for x in apart[1:])
    for one, other in zip(apart, together, strict=True):
        assert float((one - other).norm()) <= 1e-5 * max(float(one.norm()), 1e-2 * largest)


DECODERS = {None: decoder(), 5: decoder(MistralConfig, sliding_window=5)}


def test_a_system_prompt_is_computed_once_and_padding_never(llama):
    prompt, *rests = tokens(40, 9, 3, 12, 6)
    batch = batch_of(*(prompt + rest for rest in rests))
    forest, numbers = forest_of({k: batch[k] for k in ("input_ids", "attention_mask")})
    assert forest.tokens == 40 + 9 + 3 + 12 + 6
    assert numbers.shape == batch["input_ids"].shape
    with forests(llama) as calls:
        loss_and_gradients(llama, batch)
    assert calls == [2]


def test_checkpointed_layers_compute_the_same_forest_again():
    model = decoder()
    prompt, *rests = tokens(20, 9, 3, 12)
    batch = batch_of(*(prompt + rest for rest in rests))
    apart = loss_and_gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with forests(model) as calls:
        together = loss_and_gradients(model, batch)
    assert calls == [4]
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(apart, together, strict=True))


def test_packed_rows_share_their_beginning(llama):
    prompt, *rests = tokens(20, 9, 3)
    rows = [torch.tensor(prompt + rest) for rest in rests]
    ids, positions = torch.cat(rows)[None], torch.cat([torch.arange(len(row)) for row in rows])[None]
    with torch.no_grad():
        apart = llama(input_ids=ids, position_ids=positions, use_cache=False).logits
        with forests(llama) as calls:
            together = llama(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert calls == [2]
    assert torch.allclose(apart, together, atol=1e-4)


def test_what_is_no_batch_of_rows_is_computed_as_ever(llama):
    prompt, *rests = tokens(20, 9, 3)
    rows = [prompt + rest for rest in rests]
    inputs = {k: v for k, v in batch_of(*rows).items() if k != "labels"}
    assert forest_of(inputs) is not None
    for other in (
        {k: v for k, v in batch_of(*(row[::-1] for row in rows), first=True).items() if k != "labels"},
        inputs | {"use_cache": True},
        inputs | {"past_key_values": object()},
        inputs | {"inputs_embeds": torch.zeros(1)},
        inputs | {"position_ids": torch.arange(29)[None] + 1},
        inputs | {"position_ids": torch.arange(29).expand(3, 2, 29)},
        {k: v[:1] for k, v in inputs.items()},
        {k: v for k, v in batch_of(*tokens(20, 20)).items() if k != "labels"},  # nothing is shared
    ):
        assert forest_of(other) is None
    with forests(llama) as calls:
        llama.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 20), max_new_tokens=3, do_sample=False)
    assert calls == [0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertLMHeadModel(BertConfig(**SIZES, is_decoder=False)),
        lambda: BertModel(BertConfig(**SIZES)),
        lambda: T5ForConditionalGeneration(T5Config(vocab_size=61, d_model=32, d_ff=48, num_layers=1, num_heads=4)),
        lambda: decoder(attention="eager"),
        lambda: decoder(Qwen3NextConfig, layer_types=["linear_attention", "full_attention"], head_dim=8, num_experts=2),
        lambda: torch.nn.Linear(2, 2),
    ],
    ids=["encoder", "encoder without a head", "encoder-decoder", "eager attention", "linear attention", "no model"],
)
def test_models_that_cannot_are_left_alone(make):
    assert keeps_to_forests(make()) == 0


def test_a_model_that_sees_the_row_before_is_left_alone():
    model = decoder()
    model.model.norm.register_forward_hook(lambda _, args, x: x + x.roll(1, 1))
    assert keeps_to_forests(model) == 0


def test_leaving_puts_the_attention_back_and_entering_twice_is_entering_once(llama):
    before = llama.config._attn_implementation
    with forests(llama):
        with forests(llama):
            pass
        assert llama.config._attn_implementation != before
    assert llama.config._attn_implementation == before
    assert not llama.model._forward_pre_hooks
    assert not llama.model._forward_hooks


def test_evaluation_computes_beginnings_once(llama, monkeypatch):
    prompt, *rests = tokens(30, 9, 3, 12)
    batch = batch_of(*(prompt + rest for rest in rests))
    llama.eval()
    found, calls = CausalLM().predict(llama, batch), []
    monkeypatch.setattr("ftengine.model.forest.forest_of", lambda inputs: calls.append(1))
    apart = CausalLM().predict(llama, batch)
    assert calls
    assert [x["tokens"] for x in found] == [x["tokens"] for x in apart]
    assert np.allclose([x["loss"] for x in found], [x["loss"] for x in apart], rtol=1e-5)


def test_a_copy_made_meanwhile_computes_rows(llama):
    prompt, *rests = tokens(30, 9, 3, 12)
    batch = batch_of(*(prompt + rest for rest in rests))
    apart = loss_and_gradients(llama, batch)
    with forests(llama):
        copied = copy.deepcopy(llama)
        copies = loss_and_gradients(copied, batch)
    for found in (copies, loss_and_gradients(copied, batch)):
        assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(apart, found, strict=True))


def recipe_of(tmp_path, train, **more):
    """Return a recipe of two steps on rows that begin alike."""
    rows = [{"prompt": f"Answer in one word, and politely: {i}?", "completion": f" yes {i}"} for i in range(12)]
    return {
        "model": {"source": str(tiny_llama(tmp_path / "llama"))},
        "task": "causal-lm",
        "data": {"train": write_rows(tmp_path / "rows.jsonl", rows), "validation": None},
        "strategy": "lora",
        "train": {"max_steps": 2, "batch_size": 6, **train},
        "output": str(tmp_path / "run"),
        **more,
    }


def test_noise_on_embeddings_is_each_rows_own(tmp_path):
    recipe = recipe_of(tmp_path, {}, regularize=["neftune"])
    fine_tune(Recipe.make(recipe))  # neftune refuses to train without a place for its noise
    steps = [json.loads(line) for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    assert all(x["computed_tokens"] >= x["tokens"] for x in steps if "computed_tokens" in x)


def test_all_processes_ask_whether_a_model_computes_forests_whatever_their_rows(llama, monkeypatch):
    asked = []
    monkeypatch.setattr("ftengine.model.forest.keeps_to_forests", lambda model: asked.append(model) or 2)
    CausalLM().predict(llama, batch_of(*tokens(12, 12)))  # nothing is shared
    assert asked == [llama]


def test_a_run_says_how_many_tokens_it_computed(tmp_path):
    recipe = recipe_of(tmp_path, {"fast_paths": ["shared-beginnings"]})
    share = plan(Recipe.make(recipe)).estimate["computed_share"]
    fine_tune(Recipe.make(recipe))
    lines = [json.loads(line) for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "computed_tokens" in line]
    assert len(steps) == 2
    computed = sum(line["computed_tokens"] for line in steps) / sum(line["tokens"] for line in steps)
    assert computed == pytest.approx(share, abs=0.02)
    assert computed < 0.7

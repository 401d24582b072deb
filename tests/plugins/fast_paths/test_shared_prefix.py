"""What rows of a batch begin with alike is computed once, and comes to what the rows do."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import write_rows
from tiny import tiny_llama
from torch.nn import functional as F
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
from ftengine.model.tokens import IGNORED, SHORTEST_PREFIX
from ftengine.testing.models import sensitise
from ftengine.training.optimizer_step import OptimizerStep
from ftengine_builtins.fast_paths.shared_prefix.attention import by_kernel, by_torch
from ftengine_builtins.fast_paths.shared_prefix.sharing import (
    WORTH,
    prefix_tree_of,
    sharing_prefixes,
    supports_prefix_sharing,
    worth_of,
)
from ftengine_builtins.fast_paths.shared_prefix.tree import PrefixTree

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


def assert_alike(apart, together):
    """Losses and gradients differ by rounding: of a tensor's size, or, where it is a difference, of the largest's."""
    largest = max(float(x.norm()) for x in apart[1:])
    for one, other in zip(apart, together, strict=True):
        allowed = max(1e-5 * float(one.norm()), 4 * torch.finfo(torch.float32).eps * largest)
        assert float((one - other).norm()) <= allowed


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
def test_each_row_is_found_in_the_tree_and_no_long_prefix_twice(rows):
    tree = PrefixTree.of([np.array(row) for row in rows])
    ids, positions = tree.ids[0].numpy(), tree.positions[0].numpy()
    for row, numbers in zip(rows, tree.rows, strict=True):
        assert ids[numbers].tolist() == row
        assert positions[numbers].tolist() == list(range(len(row)))
    prefixes = {tuple(row[: i + 1]) for row in rows for i in range(len(row))}
    long = {one for one in prefixes if len(one) >= SHORTEST_PREFIX}
    assert len(prefixes) <= tree.tokens <= len(long) + len(rows) * (SHORTEST_PREFIX - 1)


@settings(max_examples=15)
@given(families(), st.sampled_from([None, 5]))
def test_loss_and_gradients_are_those_of_the_rows(rows, window):
    model = DECODERS[window]
    batch = batch_of(*rows)
    apart = loss_and_gradients(DOUBLES[window], batch)  # in float32, rows of one token have gradients that are none
    with sharing_prefixes(model):
        together = loss_and_gradients(model, batch)
    assert_alike(apart, together)


@settings(max_examples=40)
@given(
    families(),
    st.sampled_from([(None, 1), (None, 9), (None, 256), (5, 4)]),
    st.sampled_from([(0, 0), (0, 3), (3, 3)]),
    st.booleans(),
)
def test_attention_over_a_prefix_tree_is_that_over_a_mask(rows, limits, virtual, kernel):
    """Of grouped keys, with virtual tokens in front that may ask too, and of rows longer than what is asked at once."""
    (window, most), (asking, front) = limits, virtual
    tree = PrefixTree.of([np.array(row) for row in rows])
    sees = torch.zeros(asking + tree.tokens, front + tree.tokens, dtype=torch.bool)
    for numbers in tree.rows:
        path = torch.cat([torch.arange(front), torch.from_numpy(numbers) + front])
        for place in range(front - asking, len(path)):
            sees[path[place] - front + asking, path[: place + 1][-window if window else None :]] = True
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, heads, 8, requires_grad=True) for n, heads in ((len(sees), 4), *[(sees.shape[1], 2)] * 2))
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)), attn_mask=sees, enable_gqa=True
    )[0].transpose(0, 1)
    weights = torch.randn(expected.shape)
    gradients = torch.autograd.grad(expected, (q, k, v), weights)
    if kernel:
        with mock.patch.multiple("ftengine_builtins.fast_paths.shared_prefix.tree", MOST=most, PARTS=len(q)):
            sequences = tree.sequences(len(q), len(k), window)
        assert sorted(sequences.queries.tolist()) == list(range(len(q)))
        assert int(sequences.sizes[:, 0].max()) <= most
        found = by_kernel(q, k, v, sequences, None, window or 0)
    else:
        layer = SimpleNamespace(num_key_value_groups=2, is_causal=True)
        found = by_torch(layer, q, k, v, tree.pieces(len(q), len(k), window))
    for one, other in zip(
        (found, *torch.autograd.grad(found, (q, k, v), weights)), (expected, *gradients), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-4)


DECODERS = {None: decoder(), 5: decoder(MistralConfig, sliding_window=5)}
DOUBLES = {window: copy.deepcopy(model).double() for window, model in DECODERS.items()}


def test_a_system_prompt_is_computed_once_and_padding_never(llama):
    prompt, *rests = tokens(40, 9, 3, 12, 6)
    batch = batch_of(*(prompt + rest for rest in rests))
    tree, numbers = prefix_tree_of({k: batch[k] for k in ("input_ids", "attention_mask")})
    assert tree.tokens == 40 + 9 + 3 + 12 + 6
    assert numbers.shape == batch["input_ids"].shape
    with sharing_prefixes(llama) as calls:
        loss_and_gradients(llama, batch)
    assert calls.attention == 2 * 2  # what follows the head is found out by tokens too


def test_packed_rows_share_their_beginning(llama):
    prompt, *rests = tokens(20, 9, 3)
    rows = [torch.tensor(prompt + rest) for rest in rests]
    ids, positions = torch.cat(rows)[None], torch.cat([torch.arange(len(row)) for row in rows])[None]
    with torch.no_grad():
        apart = llama(input_ids=ids, position_ids=positions, use_cache=False).logits
        with sharing_prefixes(llama) as calls:
            together = llama(input_ids=ids, position_ids=positions, use_cache=False).logits
    assert calls.attention == 2
    assert torch.allclose(apart, together, atol=1e-4)


def test_what_is_no_batch_of_rows_is_computed_as_ever(llama):
    prompt, *rests = tokens(20, 9, 3)
    rows = [prompt + rest for rest in rests]
    inputs = {k: v for k, v in batch_of(*rows).items() if k != "labels"}
    assert prefix_tree_of(inputs) is not None
    for other in (
        {k: v for k, v in batch_of(*(row[::-1] for row in rows), first=True).items() if k != "labels"},
        inputs | {"use_cache": True},
        inputs | {"past_key_values": object()},
        inputs | {"inputs_embeds": torch.zeros(1)},
        inputs | {"position_ids": torch.arange(29)[None] + 1},
        inputs | {"position_ids": torch.arange(29).expand(3, 2, 29)},
    ):
        assert prefix_tree_of(other) is None
    for nothing_shared in (
        {k: v[:1] for k, v in inputs.items()},
        {k: v for k, v in batch_of(*tokens(20, 20)).items() if k != "labels"},
    ):
        assert prefix_tree_of(nothing_shared) is not None
        assert prefix_tree_of(nothing_shared, WORTH) is None
    assert prefix_tree_of({k: v[:0] for k, v in inputs.items()}) is None
    with sharing_prefixes(llama) as calls:
        llama.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, 20), max_new_tokens=3, do_sample=False)
    assert calls.attention == 0


@pytest.mark.parametrize(
    "settings", [{"attention_dropout": 0.1}, {"torch_dtype": torch.float64}], ids=["dropout", "fp64"]
)
def test_where_torch_computes_attention_a_prefix_tree_has_to_be_worth_it(settings):
    model = decoder(**{k: v for k, v in settings.items() if k != "torch_dtype"}).to(settings.get("torch_dtype"))
    inputs = {k: v for k, v in batch_of(*tokens(20, 20)).items() if k != "labels"}
    with sharing_prefixes(model) as calls:
        for _ in range(2):  # what the kernel cannot do is known from the first batch
            model(**inputs, use_cache=False)
            assert calls.attention == 2
    assert worth_of(model.model, torch.device("cpu")) == WORTH
    assert worth_of(decoder().model, torch.device("cpu")) == 1


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
    assert supports_prefix_sharing(make()) == 0


def test_leaving_puts_the_attention_back_and_entering_twice_is_entering_once(llama):
    before = llama.config._attn_implementation
    with sharing_prefixes(llama):
        with sharing_prefixes(llama):
            pass
        assert llama.config._attn_implementation != before
    assert llama.config._attn_implementation == before
    assert not llama.model._forward_pre_hooks
    assert not llama.model._forward_hooks


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


def test_a_run_says_how_many_tokens_it_computed(tmp_path):
    recipe = recipe_of(tmp_path, {"fast_paths": ["shared-prefix"]})
    share = plan(Recipe.make(recipe)).estimate["computed_share"]
    fine_tune(Recipe.make(recipe))
    lines = [json.loads(line) for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "computed_tokens" in line]
    assert len(steps) == 2
    computed = sum(line["computed_tokens"] for line in steps) / sum(line["tokens"] for line in steps)
    assert computed == pytest.approx(share, abs=0.02)
    assert computed < 0.7


def test_an_effective_batch_is_divided_by_beginnings(tmp_path):
    """Of two instructions in turn: each micro-batch has one, and the gradient is the same sum."""
    texts = [f"{word} " * 12 for word in ("left", "felt")]
    rows = [{"prompt": f"{texts[i % 2]}{i}", "completion": f" {i}"} for i in range(12)]
    data, found = write_rows(tmp_path / "two.jsonl", rows), []
    train = {"max_steps": 2, "batch_size": 4, "accumulate": 2, "batch_tokens": 2048, "learning_rate": 0.01}
    for paths in ("off", ["shared-prefix"]):
        recipe = recipe_of(tmp_path / str(len(found)), train | {"fast_paths": paths})
        recipe["data"]["train"] = data
        recipe["strategy"] = {"name": "lora", "dropout": 0.0}
        fine_tune(Recipe.make(recipe))
        lines = Path(recipe["output"], "metrics.jsonl").read_text().splitlines()
        found.append([line for line in map(json.loads, lines) if "trained_tokens" in line])
    for rows, shared in zip(*found, strict=True):
        assert shared["loss"] == pytest.approx(rows["loss"], rel=1e-4)  # the second follows a gradient
    assert sum(x["computed_tokens"] for x in found[1]) < 0.5 * sum(x["tokens"] for x in found[1])


ONE_BATCH = {"max_steps": 1, "batch_size": 12, "batch_tokens": 2048}


@pytest.mark.parametrize("packing", [False, True])
def test_a_micro_batch_is_searched_once_and_its_tokens_are_those_computed(tmp_path, monkeypatch, packing):
    searched, computed, times = [], [], []
    of = PrefixTree.of
    monkeypatch.setattr(PrefixTree, "of", lambda *args: searched.append(1) or of(*args))
    rows = [
        {"prompt": f"{word * (24 + size % 3)} tells", "completion": " yes"} for size, word in enumerate("abcdefghijkl")
    ]
    recipe = recipe_of(tmp_path, ONE_BATCH, task={"name": "causal-lm", "packing": packing})
    recipe["data"]["train"] = write_rows(tmp_path / "apart.jsonl", rows)
    accumulate = OptimizerStep._accumulate

    def watched(self, *args):
        searched.clear()
        layer = self.module.get_decoder().layers[0]
        handle = layer.register_forward_hook(lambda _, args, output: computed.append(args[0].shape[:2].numel()))
        found = accumulate(self, *args)
        handle.remove()
        times.append(len(searched))
        return found

    monkeypatch.setattr(OptimizerStep, "_accumulate", watched)
    fine_tune(Recipe.make(recipe))
    lines = [json.loads(line) for line in Path(tmp_path, "run", "metrics.jsonl").read_text().splitlines()]
    assert [line["computed_tokens"] for line in lines if "computed_tokens" in line] == computed
    assert times == [1 + packing]

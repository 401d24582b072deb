"""The loss in chunks against a plain one: values, gradients, memory, and models that change their logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    Cohere2Config,
    Cohere2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
)

from ftengine.model import Criterion, token_loss
from ftengine.model.token_loss import TokenLoss, find_tail

SMALL = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""Two orders of summing some hundred numbers of size one in fp64 (eps 2e-16)."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Seven positions a chunk, so that a small batch has several and a last one that is not full."""
    monkeypatch.setattr(token_loss, "CHUNK", 7)


def build(cls=LlamaForCausalLM, config=LlamaConfig, dtype=torch.float64, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(config(**{**SMALL, **changes})).to(dtype)
        for parameter in model.parameters():  # larger than at initialisation, so that a cap or scale shows
            parameter.data.mul_(4) if parameter.ndim > 1 else None
    return model


def make_batch(examples=5, length=12, vocab=101, share=0.6, seed=0):
    """Right-padded examples of different lengths, some of whose tokens are labelled."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocab, (examples, length), generator=generator)
    lengths = torch.arange(length, length - examples, -1)
    mask = (torch.arange(length) < lengths[:, None]).long()
    labels = ids.masked_fill((mask == 0) | (torch.rand(ids.shape, generator=generator) > share), -100)
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def inputs(batch):
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


def plain(model, batch):
    """The definition: all logits, shifted by hand, cross entropy in at least fp32."""
    logits = model(**inputs(batch)).logits
    logits = logits[:, :-1].to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum")


def chunked(model, batch, loss=None):
    return (loss or TokenLoss()).sum(model, inputs(batch), batch["labels"], Criterion())


def gradients(model, total):
    model.zero_grad(set_to_none=True)
    total.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, batch, loss=None, **tolerance):
    expected = plain(model, batch)
    total, weight = chunked(model, batch, loss)
    torch.testing.assert_close(total, expected, **(tolerance or EXACT))
    assert weight == (batch["labels"][:, 1:] != -100).sum()
    wanted, found = gradients(model, expected), gradients(model, total)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], **(tolerance or EXACT))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("trains", ["all", "body", "head"])
def test_loss_and_gradients_equal_the_plain_ones(tied, trains):
    model = build(tie_word_embeddings=tied)
    for name, parameter in model.named_parameters():
        vocabulary = "lm_head" in name or (tied and "embed_tokens" in name)
        parameter.requires_grad_(trains == "all" or vocabulary == (trains == "head"))
    assert_same(model, make_batch())


def test_the_loss_is_that_of_transformers(llama_folder):
    model = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    batch = make_batch(vocab=400)
    total, weight = chunked(model, batch)
    torch.testing.assert_close(total / weight, model(**batch).loss)


class LargestLogits(TorchDispatchMode):
    """Records the most rows of any tensor whose last dimension is the vocabulary.

    The head's weight and gradient, which torch turns around, are known by their size.
    """

    def __init__(self, head):
        super().__init__()
        self.vocab, self.weights, self.rows = len(head.weight), head.weight.numel(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor) and leaf.shape[-1:] == (self.vocab,) and leaf.numel() != self.weights:
                self.rows = max(self.rows, leaf.numel() // self.vocab)
        return output


@pytest.mark.parametrize("trainable", [True, False])
def test_logits_of_more_than_a_chunk_never_exist(trainable):
    model = build(tie_word_embeddings=False, vocab_size=103).requires_grad_(trainable)
    model.model.requires_grad_(True)
    loss, batch = TokenLoss(), make_batch(vocab=103, share=1.0)
    with LargestLogits(model.lm_head) as seen:
        chunked(model, batch, loss)[0].backward()
        loss.by_example(model, inputs(batch), batch["labels"])
    assert seen.rows == 7
    with LargestLogits(model.lm_head) as seen:
        plain(model, batch).backward()
    assert seen.rows == batch["input_ids"].numel()


SPECIAL = {
    "Gemma 2 caps": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 3.0, "head_dim": 8}),
    "Gemma 2 without cap": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": None, "head_dim": 8}),
    "Cohere multiplies": (Cohere2ForCausalLM, Cohere2Config, {"logit_scale": 0.0625}),
    "Granite divides": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 8.0}),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_models_that_change_their_logits_are_computed_right_and_in_chunks(name):
    cls, config, changes = SPECIAL[name]
    model = build(cls, config, attn_implementation="eager", **changes)
    assert find_tail(model, model.get_output_embeddings()) is not None
    assert_same(model, make_batch())


STEP = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
STEP |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "vocab_size": 101}
STEP |= {"pad_token_id": 0, "decoder_start_token_id": 0, "max_position_embeddings": 64, "dropout": 0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("cls", "config", "changes"),
    [(BartForConditionalGeneration, BartConfig, {}), (MarianMTModel, MarianConfig, {"decoder_vocab_size": 101})],
)
def test_the_vector_that_an_encoder_decoder_adds_to_its_logits_is_in_the_loss(cls, config, changes, dtype):
    torch.manual_seed(0)
    model = cls(config(**STEP, **changes)).to(dtype)
    model.final_logits_bias.normal_(std=0.8)
    batch = make_batch()
    labels = batch.pop("labels")
    shifted = model.prepare_decoder_input_ids_from_labels(labels=labels)
    with torch.no_grad():
        total, weight = TokenLoss(ahead=0).sum(model, {**batch, "decoder_input_ids": shifted}, labels, Criterion())
        assert find_tail(model, model.get_output_embeddings()) is not None
        model.float()  # transformers gives a loss of bfloat16 in bfloat16, which has two digits
        own = model(**batch, labels=labels).loss
        model.final_logits_bias.zero_()
        without = model(**batch, labels=labels).loss
    assert abs(own - without) > 0.1
    torch.testing.assert_close(total / weight, own, rtol=0, atol=0.01 if dtype is torch.bfloat16 else 1e-5)


def last_raised(logits):
    logits[..., -1] += 1e-6
    return logits


SMALL_TAILS = {
    "squared": lambda logits: logits + 0.1 * logits**2,
    "one token raised": last_raised,
    "scaled a little": lambda logits: 1.00001 * logits,
    "capped far out": lambda logits: logits.clamp(-5000, 5000),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("tail", SMALL_TAILS.values(), ids=SMALL_TAILS)
def test_a_tail_that_nobody_knows_is_computed_by_the_model(tail, dtype):
    class Changed(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = tail(output.logits)
            return output

    model = build(Changed, dtype=dtype)
    assert find_tail(model, model.lm_head) is None
    if dtype is torch.float64:
        assert_same(model, make_batch())


def test_a_head_that_is_not_called_as_a_module_is_left_to_the_model():
    class Functional(LlamaForCausalLM):
        def forward(self, input_ids=None, attention_mask=None, **kwargs):
            states = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return {"logits": F.linear(states, self.lm_head.weight)}["logits"]

    model = build(Functional)
    batch = make_batch()
    total, _ = chunked(model, batch)
    logits = model(batch["input_ids"], batch["attention_mask"])[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(total, expected, **EXACT)


def test_any_torch_module_that_returns_logits_will_do():
    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(101, 101, dtype=torch.float64)

        def forward(self, input_ids, attention_mask):
            return self.table(input_ids)

    model, batch = Bigram(), make_batch()
    total, _ = chunked(model, batch)
    expected = F.cross_entropy(
        model.table(batch["input_ids"])[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    torch.testing.assert_close(total, expected, **EXACT)
    torch.testing.assert_close(gradients(model, total), gradients(model, expected), **EXACT)


@pytest.mark.parametrize("head_trains", [True, False])
def test_log_probs_have_the_gradient_of_the_logits(llama_folder, head_trains):
    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    model.lm_head.weight.requires_grad_(head_trains)
    ids = torch.randint(5, 60, (3, 150), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(150) % 3 == 0, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert (labels != -100).sum() > 2 * token_loss.CHUNK
    weights, calls = torch.tensor([1.0, -2.0, 0.5]), []
    model.lm_head.register_forward_pre_hook(lambda _, args: calls.append(args[0].shape[0] == token_loss.CHUNK))
    found, counts = TokenLoss().log_probs(model, inputs, labels)
    logits = model(**inputs).logits[:, :-1].float().log_softmax(-1)
    picked = logits.gather(-1, ids[:, 1:, None])[..., 0] * (labels[:, 1:] != -100)
    torch.testing.assert_close(found, picked.sum(1))
    assert counts.tolist() == (labels[:, 1:] != -100).sum(1).tolist()
    layer = model.model.layers[0].self_attn.q_proj.weight
    parameters = [model.lm_head.weight, layer] if head_trains else [layer]
    ours, theirs = (torch.autograd.grad((x * weights).sum(), parameters) for x in (found, picked.sum(1)))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert sum(calls) == (2 if head_trains else 1) * (int(counts.sum()) // token_loss.CHUNK)  # whole chunks

"""Prompt tuning: virtual tokens act as tokens do, and heads, losses and generation see the real ones alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from virtual_token_models import MODELS, build, inputs, ones, padded, tokens

from ftengine.api import Criterion, LoadedModel
from ftengine.errors import InputError, RecipeError
from ftengine.model import trainable
from ftengine_builtins.strategies.prompt import Prompt, PromptOptions
from ftengine_builtins.tasks.causal_lm import CausalLM

TEXT = "the film was"
LANGUAGE = ["gpt2", "llama", "t5", "bart"]
CLASSIFIERS = [name for name, (*_, head) in MODELS.items() if head == "sequence-classification"]


def prompted(name: str, **options) -> LoadedModel:
    loaded = build(name)
    torch.manual_seed(0)
    Prompt(PromptOptions(**{"virtual_tokens": 5} | options)).prepare(loaded)
    return loaded


def text_ids(loaded: LoadedModel) -> torch.Tensor:
    return torch.tensor(loaded.processor(TEXT, add_special_tokens=False)["input_ids"])


@torch.no_grad()
def logits(loaded: LoadedModel, **given) -> torch.Tensor:
    return loaded.module.eval()(**given).logits


def spoken(name: str) -> tuple[LoadedModel, LoadedModel, torch.Tensor, torch.Tensor]:
    """Return the base, a model prompted with TEXT, ids, and the ids that TEXT precedes."""
    base, ids = build(name), tokens()
    text = text_ids(base)
    tuned = prompted(name, init="text", text=TEXT, virtual_tokens=len(text))
    return base, tuned, ids, torch.cat([text.expand(len(ids), -1), ids], dim=1)


@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_that_starts_from_a_text_is_that_text_to_the_model(name):
    base, tuned, ids, whole = spoken(name)
    expected = logits(base, **inputs(base, whole))
    if base.head in ("causal-lm", "token-classification"):
        expected = expected[:, -ids.shape[1] :]
    torch.testing.assert_close(logits(tuned, **inputs(tuned, ids)), expected)
    assert not torch.allclose(expected, logits(base, **inputs(base, ids)), atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_virtual_tokens_and_the_head_train_and_nothing_else_moves(name):
    loaded = prompted(name)
    before = {key: value.clone() for key, value in loaded.module.state_dict().items()}
    expected = {key for key, _ in loaded.module.named_parameters() if key.endswith("prompt_embeddings")}
    expected |= {key for key, _ in loaded.module.named_parameters() if key.startswith(loaded.new_modules or "-")}
    expected |= {key for key, _ in loaded.module.named_parameters() if key.startswith("pre_classifier")}  # as in PEFT
    assert trainable(loaded.module).keys() == expected

    optimizer = torch.optim.AdamW(Prompt(PromptOptions(lr_ratio=1)).param_groups(loaded.module, 0.01, 0.0))
    given, target = inputs(loaded, tokens()), torch.tensor([1, 2])
    losses = []
    for _ in range(4):
        output = loaded.module(**given).logits
        loss = F.cross_entropy(output if output.ndim == 2 else output[:, -1], target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    moved = {key for key, value in loaded.module.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == expected


def answered(module: nn.Module, ids: torch.Tensor, mask: torch.Tensor, **options) -> tuple[list, torch.Tensor]:
    """Return 6 generated tokens a row, and the logits (rows, 6, vocabulary) that they were chosen by."""
    result = module.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True, **options,
    )  # fmt: skip
    return result.sequences[:, -6:].tolist(), torch.stack(result.logits, dim=1)


@pytest.mark.parametrize("name", LANGUAGE)
def test_generation_does_not_depend_on_padding(name):
    loaded = prompted(name)
    # A decoder continues its last position, so it is padded on the left.
    ids, mask = padded(tokens(), 4, "left" if loaded.head == "causal-lm" else "right")
    alone = ids[1][mask[1].bool()][None]
    together, single = answered(loaded.module, ids, mask), answered(loaded.module, alone, ones(alone))
    assert together[0][1] == single[0][0]
    torch.testing.assert_close(together[1][1], single[1][0])


@pytest.mark.parametrize("name", LANGUAGE)
def test_generation_with_a_cache_is_generation_without(name):
    loaded, ids = prompted(name), tokens()
    cached = answered(loaded.module, ids, ones(ids), use_cache=True)
    plain = answered(loaded.module, ids, ones(ids), use_cache=False)
    assert cached[0] == plain[0]
    torch.testing.assert_close(cached[1], plain[1])
    base = answered(build(name).module, ids, ones(ids))
    assert not torch.allclose(cached[1][:, 0], base[1][:, 0], atol=1e-4)


@pytest.mark.parametrize("name", LANGUAGE)
def test_beams_search_with_a_prompt(name):
    _, tuned, ids, whole = spoken(name)
    assert (
        answered(tuned.module, ids, ones(ids), num_beams=3)[0]
        == answered(build(name).module, whole, ones(whole), num_beams=3)[0]
    )


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_of_one_pass_are_those_of_token_after_token(name):
    loaded, ids = prompted(name), tokens()
    whole = logits(loaded, **inputs(loaded, ids))
    cache, pieces = None, []
    for part in ids.split([4, 1, 1, 3], dim=1):
        seen = sum(piece.shape[1] for piece in pieces) + part.shape[1]
        mask = torch.ones(len(ids), seen, dtype=torch.long)
        with torch.no_grad():
            output = loaded.module(input_ids=part, attention_mask=mask, cache=cache, use_cache=True)
        cache = output.cache
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_right_changes_nothing(name):
    loaded = prompted(name)
    ids, mask = padded(tokens(), 4, "right")
    given = inputs(loaded, ids, mask)
    alone = {key: value[1:, :4] for key, value in given.items()}
    together, single = logits(loaded, **given)[1], logits(loaded, **alone)[0]
    torch.testing.assert_close(together[: len(single)], single)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5"])
def test_embeddings_may_be_given_instead_of_tokens(name):
    loaded, ids = prompted(name), tokens()
    given = inputs(loaded, ids)
    expected = logits(loaded, **given)
    del given["input_ids"]
    embeddings = loaded.module.get_input_embeddings()(ids)
    torch.testing.assert_close(logits(loaded, inputs_embeds=embeddings, **given), expected)


def test_token_types_and_positions_may_be_given():
    loaded, ids = prompted("bert"), tokens()
    given = inputs(loaded, ids)
    expected = logits(loaded, **given)
    given |= {"token_type_ids": torch.zeros_like(ids), "position_ids": torch.arange(ids.shape[1])[None]}
    torch.testing.assert_close(logits(loaded, **given), expected)
    assert not torch.equal(logits(loaded, **given | {"token_type_ids": ones(ids)}), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_loss_of_a_task_is_the_plain_cross_entropy_of_labelled_tokens(name):
    loaded, ids = prompted(name), tokens()
    labels = ids.clone()
    labels[:, :4], labels[1, -2:] = -100, -100
    batch = {**inputs(loaded, ids), "labels": labels}
    total, count = CausalLM().loss(loaded.module, batch, Criterion())
    total.backward()
    gradient = trainable(loaded.module).popitem()[1].grad.clone()

    loaded.module.zero_grad()
    output = loaded.module(**inputs(loaded, ids)).logits
    assert output.shape[1] == ids.shape[1]
    expected = F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    expected.backward()
    assert count == (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, trainable(loaded.module).popitem()[1].grad)


def test_hidden_states_are_those_of_the_real_tokens():
    loaded, ids = prompted("gpt2"), tokens()
    states = loaded.module(**inputs(loaded, ids), output_hidden_states=True).hidden_states
    assert [state.shape[1] for state in states] == [ids.shape[1]] * 3


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert"])
def test_gradient_checkpointing_changes_no_gradient(name):
    dropouts = {
        "gpt2": ("attn_pdrop", "embd_pdrop", "resid_pdrop"),
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
        "t5": ("dropout_rate",),
    }
    loaded = build(name, **dict.fromkeys(dropouts.get(name, ()), 0.0))
    Prompt().prepare(loaded)
    loaded.module.train()
    given, gradients = inputs(loaded, tokens()), []
    for checkpointed in (False, True):
        if checkpointed:
            loaded.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        loaded.module.zero_grad()
        loaded.module(**given).logits.square().sum().backward()
        gradients.append({key: parameter.grad.clone() for key, parameter in trainable(loaded.module).items()})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "bert"])
def test_a_model_in_bfloat16_keeps_its_virtual_tokens_in_float32(name):
    loaded = build(name)
    loaded.module.bfloat16()
    Prompt(PromptOptions(virtual_tokens=5)).prepare(loaded)
    (vectors,) = [p for key, p in loaded.module.named_parameters() if key.endswith("prompt_embeddings")]
    assert vectors.dtype is torch.float32
    output = loaded.module(**inputs(loaded, tokens())).logits
    output.float().square().sum().backward()
    assert output.dtype is torch.bfloat16
    assert vectors.grad.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_weights_can_be_prepared(name):
    for options in ({}, {"init": "random"}, {"init": "text", "text": TEXT}):
        loaded = build(name, "meta")
        Prompt(PromptOptions(virtual_tokens=7, **options)).prepare(loaded)
        counts = [p.numel() for key, p in trainable(loaded.module).items() if key.endswith("prompt_embeddings")]
        assert counts == [7 * 32]


def test_a_text_is_counted_without_a_tokenizer():
    """As `plan --parameters-only` does with a config alone."""
    counted, real = build("gpt2", "meta"), build("gpt2")
    counted.processor = None
    for loaded in (counted, real):
        Prompt(PromptOptions(virtual_tokens=7, init="text", text=TEXT)).prepare(loaded)
    sizes = [[p.shape for p in trainable(loaded.module).values()] for loaded in (counted, real)]
    assert sizes[0] == sizes[1]
    bare = build("gpt2")
    bare.processor = None
    with pytest.raises(RecipeError, match="has no tokenizer"):
        Prompt(PromptOptions(init="text", text=TEXT)).prepare(bare)


def test_a_copy_of_a_prompted_model_is_one():
    loaded, ids = prompted("llama"), tokens()
    twin = copy.deepcopy(loaded.module)
    assert torch.equal(twin(**inputs(loaded, ids)).logits, loaded.module(**inputs(loaded, ids)).logits)
    with torch.no_grad():
        trainable(twin).popitem()[1].zero_()
    assert not torch.equal(twin(**inputs(loaded, ids)).logits, loaded.module(**inputs(loaded, ids)).logits)


# How virtual tokens start


def test_a_text_is_repeated_or_cut_to_the_number_of_virtual_tokens():
    base = build("gpt2")
    text = text_ids(base)
    table = base.module.get_input_embeddings().weight
    for count in (2, len(text), 2 * len(text) + 1):
        vectors = trainable(prompted("gpt2", init="text", text=TEXT, virtual_tokens=count).module).popitem()[1]
        expected = text.repeat(3)[:count]
        assert torch.equal(vectors, table[expected])


def test_vocabulary_draws_ordinary_tokens():
    loaded = prompted("llama", virtual_tokens=40)
    vectors = trainable(loaded.module).popitem()[1]
    table = loaded.module.get_input_embeddings().weight
    drawn = [int((table == vector).all(dim=1).nonzero()[0, 0]) for vector in vectors]
    assert len(set(drawn)) > 20
    assert not set(drawn) & set(loaded.processor.all_special_ids)


def test_random_vectors_have_the_scale_of_the_embeddings():
    loaded = prompted("gpt2", init="random", virtual_tokens=50)
    vectors = trainable(loaded.module).popitem()[1]
    scale = loaded.module.get_input_embeddings().weight.std()
    assert 0.9 < (vectors.std() / scale).item() < 1.1


@pytest.mark.parametrize("init", ["vocabulary", "random"])
def test_a_seed_decides_where_they_start(init):
    first, second = (trainable(prompted("gpt2", init=init).module).popitem()[1] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("options", [{"init": "text"}, {"text": "words"}, {"init": "random", "text": "words"}])
def test_a_text_and_its_init_go_together(options):
    with pytest.raises(RecipeError, match="A text goes with init: text"):
        PromptOptions(**options)


# What is refused, and room


def test_there_is_room_for_fewer_tokens():
    assert prompted("gpt2", virtual_tokens=10).max_length == 54
    assert prompted("t5").max_length is None
    with pytest.raises(RecipeError, match=r"virtual_tokens 63 leave no room .* reads 64 tokens. Allowed: 1 to 62"):
        prompted("gpt2", virtual_tokens=63)


def test_the_longest_input_still_fits():
    loaded = prompted("gpt2", virtual_tokens=10)
    ids = tokens(1, loaded.max_length)
    assert logits(loaded, **inputs(loaded, ids)).shape[1] == 54


@pytest.mark.parametrize(
    "module",
    [
        ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])),
        ViTForImageClassification(
            ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
        ),
        nn.Sequential(nn.Linear(2, 2)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_model_without_tokens_is_refused(module):
    before = copy.deepcopy(module.state_dict())
    trained = [p.requires_grad for p in module.parameters()]
    with pytest.raises(RecipeError, match=f"{type(module).__name__} has no token embeddings.*Choose a strategy"):
        Prompt().prepare(LoadedModel(module, None, "images", "image-classification"))
    assert module.state_dict().keys() == before.keys()
    assert [p.requires_grad for p in module.parameters()] == trained


def test_a_recurrent_model_is_refused():
    module = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(RecipeError, match="does not fit MambaModel, which keeps its past in recurrent states"):
        Prompt().prepare(LoadedModel(module, None, "states", "causal-lm"))


def test_a_second_prompt_is_refused():
    with pytest.raises(RecipeError, match="has virtual tokens already"):
        Prompt().prepare(prompted("gpt2"))


def test_a_replaced_forward_is_refused():
    loaded = build("gpt2")
    loaded.module.transformer.forward = loaded.module.transformer.forward
    with pytest.raises(RecipeError, match="has its forward replaced"):
        Prompt().prepare(loaded)


def test_a_cache_of_fixed_size_is_refused():
    loaded, ids = prompted("llama"), tokens()
    with pytest.raises(InputError, match="cache that can grow"):
        loaded.module.generate(input_ids=ids, attention_mask=ones(ids), max_new_tokens=2, cache_implementation="static")


def test_virtual_tokens_have_their_own_rate():
    loaded = prompted("bert")
    groups = Prompt(PromptOptions(lr_ratio=10)).param_groups(loaded.module, 0.5, 0.1)
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {key: 5.0 if key.endswith("prompt_embeddings") else 0.5 for key in trainable(loaded.module)}
    assert {key: rates[id(parameter)] for key, parameter in trainable(loaded.module).items()} == expected

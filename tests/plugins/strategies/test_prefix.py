"""Prefix tuning: trained keys and values act as those of tokens that came before."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)
from virtual_token_models import MODELS, build, inputs, ones, padded, tokens

from ftengine.api import Criterion, LoadedModel
from ftengine.errors import InputError, RecipeError
from ftengine.model import trainable
from ftengine.training.modes import require_gradient_checkpointing
from ftengine_builtins.strategies.prefix import Prefix, PrefixOptions
from ftengine_builtins.tasks.causal_lm import CausalLM

TEXT = "the film was"
DECODERS = ["gpt2", "llama", "gpt2-classifier", "llama-classifier"]
FITTING = [*DECODERS, "bert", "roberta", "bert-tokens"]
NUMBERS = {"llama": 2 * 2 * 2 * 8, "llama-classifier": 2 * 2 * 2 * 8}  # 2 key heads; the others have 4


def prefixed(name: str, **options) -> LoadedModel:
    loaded = build(name)
    torch.manual_seed(0)
    Prefix(PrefixOptions(**{"virtual_tokens": 5} | options)).prepare(loaded)
    return loaded


def start_of(loaded: LoadedModel) -> torch.Tensor:
    return next(p for key, p in trainable(loaded.module).items() if key.endswith("prefix.embeddings"))


@torch.no_grad()
def logits(loaded: LoadedModel, **given) -> torch.Tensor:
    return loaded.module.eval()(**given).logits


@pytest.mark.parametrize("name", DECODERS)
def test_a_prefix_that_starts_from_a_text_is_that_text_to_a_decoder(name):
    base, ids = build(name), tokens()
    text = torch.tensor(base.processor(TEXT, add_special_tokens=False)["input_ids"])
    tuned = prefixed(name, init="text", text=TEXT, virtual_tokens=len(text))
    expected = logits(base, **inputs(base, torch.cat([text.expand(len(ids), -1), ids], dim=1)))
    if base.head == "causal-lm":
        expected = expected[:, -ids.shape[1] :]
    torch.testing.assert_close(logits(tuned, **inputs(tuned, ids)), expected)
    assert not torch.allclose(expected, logits(base, **inputs(base, ids)), atol=1e-4)


@pytest.mark.parametrize("name", ["bert", "roberta", "bert-tokens"])
def test_every_layer_of_an_encoder_attends_to_the_prefix(name):
    loaded, ids = prefixed(name), tokens()
    stack = loaded.module.base_model
    before = logits(loaded, **inputs(loaded, ids))
    gradient = torch.autograd.grad(stack(**inputs(loaded, ids)).last_hidden_state.square().sum(), start_of(loaded))[0]
    by_layer = gradient.view(5, 4, -1).abs().amax(dim=(0, 2))  # keys and values of two layers
    assert (by_layer > 0).all()
    with torch.no_grad():
        start_of(loaded).add_(1)
    assert not torch.allclose(logits(loaded, **inputs(loaded, ids)), before, atol=1e-4)


def test_an_encoders_attention_is_over_prefix_and_text():
    loaded, ids = prefixed("bert", virtual_tokens=3), tokens(1, 4)
    layer = loaded.module.bert.encoder.layer[0].attention.self
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(states=args[0], output=output[0]))
    logits(loaded, **inputs(loaded, ids))

    def heads(states: torch.Tensor) -> torch.Tensor:
        return states.view(1, -1, 4, 8).transpose(1, 2)

    query, key, value = (heads(linear(seen["states"])) for linear in (layer.query, layer.key, layer.value))
    keys, values = start_of(loaded).view(3, 4, 4, 8)[:, :2].permute(1, 2, 0, 3)
    key, value = (torch.cat([own[None], text], dim=2) for own, text in ((keys, key), (values, value)))
    expected = (query @ key.transpose(2, 3) / 8**0.5).softmax(dim=-1) @ value
    torch.testing.assert_close(seen["output"], expected.transpose(1, 2).reshape(1, 4, 32))


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("projection", [None, 16])
def test_the_prefix_and_the_head_train_and_nothing_else_moves(name, projection):
    loaded = prefixed(name, projection=projection)
    before = {key: value.clone() for key, value in loaded.module.state_dict().items()}
    expected = {key for key in before if ".prefix." in key or key.startswith(loaded.new_modules or "-")}
    assert trainable(loaded.module).keys() == expected

    optimizer = torch.optim.AdamW(Prefix(PrefixOptions(lr_ratio=1)).param_groups(loaded.module, 0.01, 0.0))
    given, target, losses = inputs(loaded, tokens()), torch.tensor([1, 2]), []
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


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_does_not_depend_on_padding(name):
    loaded = prefixed(name)
    ids, mask = padded(tokens(), 4, "left")
    alone = ids[1][mask[1].bool()][None]
    together, single = answered(loaded.module, ids, mask), answered(loaded.module, alone, ones(alone))
    assert together[0][1] == single[0][0]
    torch.testing.assert_close(together[1][1], single[1][0])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_generation_without(name, beams):
    loaded, ids = prefixed(name), tokens()
    cached = answered(loaded.module, ids, ones(ids), use_cache=True, num_beams=beams)
    plain = answered(loaded.module, ids, ones(ids), use_cache=False, num_beams=beams)
    assert cached[0] == plain[0]
    torch.testing.assert_close(cached[1], plain[1])
    base = answered(build(name).module, ids, ones(ids), num_beams=beams)
    assert not torch.allclose(cached[1][:, 0], base[1][:, 0], atol=1e-4)


@pytest.mark.parametrize("name", FITTING)
def test_padding_on_the_right_changes_nothing(name):
    loaded = prefixed(name)
    ids, mask = padded(tokens(), 4, "right")
    given = inputs(loaded, ids, mask)
    alone = {key: value[1:, :4] for key, value in given.items()}
    together, single = logits(loaded, **given)[1], logits(loaded, **alone)[0]
    torch.testing.assert_close(together[: len(single)], single)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_loss_of_a_task_is_the_plain_cross_entropy_of_labelled_tokens(name):
    loaded, ids = prefixed(name), tokens()
    labels = ids.clone()
    labels[:, :4] = -100
    total, count = CausalLM().loss(loaded.module, {**inputs(loaded, ids), "labels": labels}, Criterion())
    output = loaded.module(**inputs(loaded, ids)).logits
    expected = F.cross_entropy(output[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert count == (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(total, expected)
    total.backward()
    assert start_of(loaded).grad.abs().max() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_model_in_bfloat16_keeps_its_prefix_in_float32(name):
    loaded = build(name)
    loaded.module.bfloat16()
    Prefix(PrefixOptions(virtual_tokens=5)).prepare(loaded)
    assert start_of(loaded).dtype is torch.float32
    output = loaded.module(**inputs(loaded, tokens())).logits
    output.float().square().sum().backward()
    assert output.dtype is torch.bfloat16
    assert start_of(loaded).grad.abs().max() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_autocast_leaves_weights_in_float32(name):
    loaded = prefixed(name, projection=8)
    with torch.autocast("cpu", torch.bfloat16):
        loaded.module(**inputs(loaded, tokens())).logits.float().square().sum().backward()
    gradients = [parameter.grad for key, parameter in trainable(loaded.module).items() if ".prefix." in key]
    assert all(gradient.dtype is torch.float32 and gradient.abs().max() > 0 for gradient in gradients)


@pytest.mark.parametrize("name", FITTING)
@pytest.mark.parametrize("options", [{}, {"init": "random"}, {"init": "text", "text": TEXT}, {"projection": 8}])
def test_a_model_without_weights_can_be_prepared(name, options):
    loaded, real = build(name, "meta"), build(name)
    for model in (loaded, real):
        Prefix(PrefixOptions(virtual_tokens=7, **options)).prepare(model)
    shapes = {key: p.shape for key, p in trainable(loaded.module).items()}
    assert shapes == {key: p.shape for key, p in trainable(real.module).items()}
    if "projection" not in options:
        assert start_of(loaded).shape == (7, NUMBERS.get(name, 2 * 2 * 4 * 8))


def test_experts_that_cannot_run_without_weights_are_counted_from_the_config():
    config = MixtralConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=16, num_local_experts=2,
    )  # fmt: skip
    for device in ("meta", "cpu"):
        with torch.device(device):
            loaded = LoadedModel(MixtralForCausalLM(config), None, "", "causal-lm")
        Prefix(PrefixOptions(virtual_tokens=5)).prepare(loaded)
        assert start_of(loaded).shape == (5, 3 * 2 * 2 * 4)


def test_a_text_is_counted_without_a_tokenizer():
    """As `plan --parameters-only` does with a config alone."""
    counted, real = build("gpt2", "meta"), build("gpt2")
    counted.processor = None
    for loaded in (counted, real):
        Prefix(PrefixOptions(virtual_tokens=7, init="text", text=TEXT)).prepare(loaded)
    sizes = [[p.shape for p in trainable(loaded.module).values()] for loaded in (counted, real)]
    assert sizes[0] == sizes[1]
    bare = build("gpt2")
    bare.processor = None
    with pytest.raises(RecipeError, match="has no tokenizer"):
        Prefix(PrefixOptions(init="text", text=TEXT)).prepare(bare)


def test_random_keys_and_values_have_each_their_layers_scale():
    own = start_of(prefixed("gpt2", virtual_tokens=50)).view(50, 4, -1)
    drawn = start_of(prefixed("gpt2", init="random", virtual_tokens=50)).view(50, 4, -1)
    ratio = drawn.std(dim=(0, 2)) / own.std(dim=(0, 2))
    assert ((ratio > 0.8) & (ratio < 1.25)).all()


@pytest.mark.parametrize("options", [{}, {"init": "random"}, {"projection": 8}])
def test_a_seed_decides_where_it_starts(options):
    first, second = (start_of(prefixed("gpt2", **options)) for _ in range(2))
    assert torch.equal(first, second)


def test_there_is_room_for_fewer_tokens_and_the_longest_input_fits():
    loaded = prefixed("gpt2", virtual_tokens=10)
    assert loaded.max_length == 54
    assert logits(loaded, **inputs(loaded, tokens(1, 54))).shape[1] == 54


def test_a_copy_of_a_prefixed_model_is_one():
    loaded, ids = prefixed("llama"), tokens()
    twin = copy.deepcopy(loaded.module)
    with torch.no_grad():
        start_of(loaded).zero_()
        assert not torch.equal(twin(**inputs(loaded, ids)).logits, loaded.module(**inputs(loaded, ids)).logits)


# What is refused


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("t5", "the encoder of T5ForConditionalGeneration has none"),
        ("bart", "the encoder of BartForConditionalGeneration has none"),
        ("distilbert", "DistilBertModel has none"),
        ("modernbert", "ModernBertModel has none"),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_that_a_prefix_does_not_fit_is_refused(name, reason, device):
    with pytest.raises(RecipeError, match=f"{reason}.*Set strategy.name=prompt"):
        Prefix().prepare(build(name, device))


def test_models_without_tokens_or_without_keys_are_refused():
    images = ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1]))
    with pytest.raises(RecipeError, match=r"strategy prefix .* ResNetForImageClassification has no token embeddings"):
        Prefix().prepare(LoadedModel(images, None, "images", "image-classification"))
    recurrent = MambaForCausalLM(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    with pytest.raises(RecipeError, match="does not fit MambaModel, which keeps its past in recurrent states"):
        Prefix().prepare(LoadedModel(recurrent, None, "states", "causal-lm"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_prefix_longer_than_the_attention_is_refused(device):
    config = MistralConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, sliding_window=6,
    )  # fmt: skip
    with torch.device(device):
        module = MistralForCausalLM(config)
    Prefix(PrefixOptions(virtual_tokens=5)).prepare(LoadedModel(copy.deepcopy(module), None, "", "causal-lm"))
    with pytest.raises(RecipeError, match="virtual_tokens 6 are more than MistralModel attends to"):
        Prefix(PrefixOptions(virtual_tokens=6)).prepare(LoadedModel(module, None, "", "causal-lm"))


def test_gradient_checkpointing_is_refused_rather_than_losing_the_prefix():
    loaded = prefixed("llama")
    assert not loaded.module.supports_gradient_checkpointing
    with pytest.raises(RecipeError, match="the strategy, unlike LlamaForCausalLM alone, does not support it"):
        require_gradient_checkpointing(loaded.module)
    with pytest.raises(ValueError, match="does not support activation checkpointing"):
        loaded.module.gradient_checkpointing_enable()


def test_a_cache_of_fixed_size_is_refused():
    loaded, ids = prefixed("llama"), tokens()
    with pytest.raises(InputError, match="cache that can grow"):
        loaded.module.generate(input_ids=ids, attention_mask=ones(ids), max_new_tokens=2, cache_implementation="static")


@pytest.mark.parametrize("options", [{"init": "vocabulary"}, {"init": "text", "text": TEXT}])
def test_a_projection_starts_at_random(options):
    with pytest.raises(RecipeError, match=r"projection is 8 and strategy.init is"):
        PrefixOptions(projection=8, **options)


def test_every_model_was_tried():
    assert {*FITTING, "t5", "bart", "distilbert", "modernbert"} == MODELS.keys()

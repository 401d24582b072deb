"""Answers in slots are transformers' token for token, whatever answers grow beside them."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from ftengine.api import LoadedModel
from ftengine.generation import GenerationOptions, answers, draw_answers
from ftengine.generation.sampler import Sampler
from ftengine.testing.models import sensitise
from ftengine_builtins.fast_paths import CpuGates, CpuNorms, CpuRotary, SharedPrefix
from ftengine_builtins.fast_paths.shared_prefix.decoder import Places, PoolDecoder
from ftengine_builtins.fast_paths.shared_prefix.sharing import supports_answering
from ftengine_builtins.strategies.adapter import Adapter
from ftengine_builtins.strategies.lora import LoRA
from ftengine_builtins.strategies.prefix import Prefix
from ftengine_builtins.strategies.prompt import Prompt

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "head_dim": 8,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 9}

DECODERS = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {},
    "Gemma": {},
    "Gemma2": {"query_pre_attn_scalar": 8, **LAYERS},
    "Gemma3Text": {"query_pre_attn_scalar": 8, **LAYERS},
    "Phi3": {},
    "Cohere": {},
    "Olmo2": {},
    "Granite": {},
    "Starcoder2": {"sliding_window": 9},
    "StableLm": {},
    "SmolLM3": {},
    "Glm4": {},
    "GPT2": {},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Mistral": {"sliding_window": 9},
    "Mixtral": EXPERTS,
    "Qwen3Moe": EXPERTS,
    "Olmoe": EXPERTS,
    "GptOss": {**EXPERTS, **LAYERS},
    "Mamba": {"state_size": 4},
}
ELSEWHERE = {"Mamba", "Gemma2", "GptOss", "StableLm"}
"""Decoders that transformers answers by: without keys and values, or with attention of their own."""

QUICK = {"Llama", "Gemma3Text", "Mamba", "LoRA", "prompt"}
"""What is not slow."""

PROMPTS = [[*range(10, 40), *own] for own in ([1, 2, 3], [4], [5, 6, 7, 8, 9, 3, 2], [], [4])] + [[7], [8, 9, 10]]
NUMBERS = [0, 0, 0, 0, 1, 0, 0]


def loaded_of(name, dtype=torch.float32):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **DECODERS[name]})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if name not in ELSEWHERE else None)
    sensitise(model.float())
    loaded = LoadedModel(model.to(dtype).eval(), SimpleNamespace(pad_token_id=0), "tiny", "causal-lm")
    loaded.inference_paths = (SharedPrefix(), CpuNorms(), CpuGates(), CpuRotary())
    return loaded


def by_transformers(loaded, options, prompts=PROMPTS, numbers=NUMBERS):
    paths, loaded.inference_paths = loaded.inference_paths, ()
    try:
        return found(loaded, options, prompts, numbers)
    finally:
        loaded.inference_paths = paths


def found(loaded, options, prompts=PROMPTS, numbers=NUMBERS):
    drawn = draw_answers(loaded, prompts, GenerationOptions(max_new_tokens=10, **options), [96, 5], numbers)
    return [(answer.tokens, answer.ended_by) for answer in drawn]


def in_every_way(loaded, options, monkeypatch):
    """Yield the answers by more or fewer slots, and in another order, in that of PROMPTS."""
    for slots in (64, 3, 1):
        monkeypatch.setattr(answers, "SLOTS", slots)
        yield found(loaded, options)
    yield found(loaded, options, PROMPTS[::-1], NUMBERS[::-1])[::-1]
    yield [found(loaded, options, [prompt], [n])[0] for prompt, n in zip(PROMPTS, NUMBERS, strict=True)]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.3, "seed": 5}], ids=["likeliest", "drawn"])
@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.slow] * (x not in QUICK)) for x in DECODERS])
def test_decoders(name, options, monkeypatch):
    loaded = loaded_of(name)
    assert supports_answering(loaded.module) is (name not in ELSEWHERE)
    expected = by_transformers(loaded, options)
    assert len({tuple(tokens) for tokens, _ in expected}) > 3
    for answered in in_every_way(loaded, options, monkeypatch):
        assert answered == expected


TUNED = {
    "LoRA": lambda: LoRA(LoRA.Config(rank=4)),
    "DoRA": lambda: LoRA(LoRA.Config(rank=4, dora=True)),
    "adapter": lambda: Adapter(Adapter.Config(bottleneck=4)),
    "prompt": lambda: Prompt(Prompt.Config(virtual_tokens=3)),
    "prefix": lambda: Prefix(Prefix.Config(virtual_tokens=3)),
}


def tuned(strategy):
    loaded = loaded_of("Llama")
    TUNED[strategy]().prepare(loaded)
    with torch.no_grad():
        for parameter in loaded.module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.5, generator=torch.Generator().manual_seed(1))
    return loaded


@pytest.mark.parametrize("strategy", [pytest.param(x, marks=[pytest.mark.slow] * (x not in QUICK)) for x in TUNED])
def test_strategies(strategy, monkeypatch):
    loaded, options = tuned(strategy), {"temperature": 1.3, "seed": 5}
    expected = by_transformers(loaded, options)
    assert expected != by_transformers(loaded_of("Llama"), options)
    for answered in in_every_way(loaded, options, monkeypatch):
        assert answered == expected


def test_of_bfloat16_the_first_token_that_differs_is_nearly_a_tie():
    loaded = loaded_of("Llama", torch.bfloat16)
    expected = by_transformers(loaded, {})
    for prompt, (tokens, _), (others, _) in zip(PROMPTS, found(loaded, {}), expected, strict=True):
        same = next((i for i, pair in enumerate(zip(tokens, others, strict=False)) if pair[0] != pair[1]), None)
        if same is not None:
            with torch.no_grad():
                ids = torch.tensor([[*prompt, *tokens[:same]]])
                logits = loaded.module(input_ids=ids).logits[0, -1].float()
            assert abs(float(logits[tokens[same]] - logits[others[same]])) < 0.05 * float(logits.std())


def _same_number(sampler, prompt, sample, begin=Sampler.begin):
    return begin(sampler, prompt, 0)


def _early(places, taken, release=Places.release):
    places.uses[taken] = 1  # as if no other sequence used them
    release(places, taken)


def _behind(decoder, sequence, length, fork=PoolDecoder.fork):
    return fork(decoder, sequence, length - 1 if length > 30 else length)


FAULTS = {
    "answers of one prompt draw the same": (Sampler, "begin", _same_number),
    "places are given back while others read them": (Places, "release", _early),
    "an answer begins a token too early": (PoolDecoder, "fork", _behind),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault, monkeypatch):
    options = {"temperature": 1.3, "seed": 5}
    loaded = loaded_of("Llama")
    assert supports_answering(loaded.module)
    expected = by_transformers(loaded, options)
    monkeypatch.setattr(*FAULTS[fault])
    try:
        ways = list(in_every_way(loaded, options, monkeypatch))
    except Exception:  # such as a position that is there twice
        return
    assert any(answered != expected for answered in ways)

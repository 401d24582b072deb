"""Answers: what they continue, where they stop, and that a batch does not change them."""

from types import SimpleNamespace

import pytest
import torch
from expected import raises
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, LlamaConfig, MistralConfig

from ftengine.api import LoadedModel
from ftengine.chat import stop_tokens, turn_ends
from ftengine.errors import DataError, InputError
from ftengine.generation import GenerationOptions, draw_answers, drawing_bytes, generate
from ftengine.generation import answers as generation
from ftengine.generation.sampler import Sampler
from ftengine_builtins.fast_paths.shared_prefix import SharedPrefix
from ftengine_builtins.fast_paths.shared_prefix.decoder import DecoderState
from ftengine_builtins.fast_paths.shared_prefix.sharing import sharing_prefixes, supports_answering
from ftengine_builtins.strategies.prefix import Prefix
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig

ROWS = [
    {"messages": [{"role": "user", "content": "How are you?"}]},
    {"prompt": "What is the capital of France? Tell me at some length, and do not leave anything out."},
    {"text": "The quick"},
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Good morning!"}]},
]


@pytest.fixture
def loaded(llama, llama_tokenizer):
    with torch.no_grad():
        for parameter in llama.parameters():  # as initialised, the tiny model repeats one token whatever it reads
            parameter.mul_(6) if parameter.ndim > 1 else None
    return LoadedModel(llama, llama_tokenizer, "tiny", "causal-lm", max_length=512)


def answers(loaded, rows, options=None, **config):
    return [answer["completion"] for answer in CausalLM(CausalLMConfig(**config)).infer(loaded, rows, options)]


def greedy_by_hand(loaded, prompt, tokens):
    """Take the likeliest token, one at a time, without cache, padding or batch."""
    ids = loaded.processor(prompt, add_special_tokens=False)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        for _ in range(tokens):
            token = loaded.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item()
            if token == loaded.processor.eos_token_id:
                break
            ids.append(token)
    return loaded.processor.decode(ids[start:], skip_special_tokens=True)


def test_a_batch_answers_as_one_by_one_does(loaded):
    together = answers(loaded, ROWS, {"max_new_tokens": 12})
    assert together == [answers(loaded, [row], {"max_new_tokens": 12})[0] for row in ROWS]
    assert len(set(together)) == len(ROWS)


def test_the_answer_is_the_greedy_one(loaded):
    prompt = "<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n"
    found = answers(loaded, [ROWS[0], ROWS[2]], {"max_new_tokens": 10, "continues": True})
    assert found == [greedy_by_hand(loaded, prompt, 10), greedy_by_hand(loaded, "The quick", 10)]


def test_what_an_answer_is_trained_to_end_with_is_the_last_of_what_ends_it(loaded):
    """As Qwen's and Llama's generation settings have the end of the turn among others, in whichever order."""
    turn, other = loaded.processor.convert_tokens_to_ids("<|im_end|>"), 7
    for own in ([turn, other], [other, turn]):
        loaded.module.generation_config.eos_token_id = own
        assert stop_tokens(loaded) == (other, turn)
    loaded.processor.chat_template = None
    assert stop_tokens(loaded)[-1] == loaded.processor.eos_token_id


def decoder(config, **more):
    """Return a decoder of few parameters that answers differently to what it reads."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(config(**{**sizes, **more}), attn_implementation="sdpa").float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6) if parameter.ndim > 1 else None
    return LoadedModel(model, SimpleNamespace(pad_token_id=0), "tiny", "causal-lm")


def prefixed(config):
    loaded = decoder(config)
    Prefix(Prefix.Config(virtual_tokens=3)).prepare(loaded)
    return loaded


PROMPTS = [[*range(10, 50), *own] for own in ([1, 2, 3], [4], [5, 6, 7, 8, 9, 3, 2], [], [4])]


@pytest.mark.parametrize(
    "make",
    [
        lambda: decoder(LlamaConfig),
        lambda: decoder(GPT2Config),  # learned positions
        lambda: decoder(GPTNeoXConfig),
        lambda: decoder(MistralConfig, sliding_window=9),
        lambda: prefixed(LlamaConfig),  # virtual tokens in front
    ],
    ids=["Llama", "GPT-2", "GPT-NeoX", "sliding window", "virtual tokens"],
)
@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 3}], ids=["likeliest", "drawn"])
def test_answers_in_slots_are_those_of_transformers_and_each_prompt_is_read_once(make, options, monkeypatch):
    loaded, read, asked = make(), [], GenerationOptions(max_new_tokens=12, **options)
    prompts, samples = [*PROMPTS, *PROMPTS[:2]], [0] * len(PROMPTS) + [1, 2]
    expected = draw_answers(loaded, prompts, asked, [96], samples)
    loaded.inference_paths = (SharedPrefix(),)
    assert supports_answering(loaded.module)
    count = lambda module, args, inputs: read.append((*args, inputs.get("input_ids"))[0].numel())  # noqa: E731
    handle = loaded.module.get_decoder().register_forward_pre_hook(count, with_kwargs=True)
    with sharing_prefixes(loaded.module):  # as where answers are shown while it trains
        found = draw_answers(loaded, prompts, asked, [96], samples)
    handle.remove()
    assert [(x.tokens, x.ended_by) for x in found] == [(x.tokens, x.ended_by) for x in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-3)
    unique = {tuple(prompt) for prompt in prompts}
    new = sum(len(x.tokens) + (x.ended_by is not None) - 1 for x in found)
    assert sum(read) == sum(map(len, unique)) - 40 * (len(unique) - 1) + new
    assert len({tuple(x.tokens) for x in found}) >= 3
    for slots in (1, 2):
        monkeypatch.setattr(generation, "SLOTS", slots)
        assert [x.tokens for x in draw_answers(loaded, prompts, asked, [96], samples)] == [x.tokens for x in expected]


def test_the_memory_of_answers_is_what_their_keys_and_values_come_to(monkeypatch):
    """Of twelve answers to each of four prompts of 600 tokens, 50 tokens long: prompts count once."""
    loaded, pools = decoder(LlamaConfig, max_position_embeddings=4096), {}
    loaded.inference_paths = (SharedPrefix(),)
    make = DecoderState._pool

    def noted(state, module, *args):
        pools[module] = make(state, module, *args)
        return pools[module]

    monkeypatch.setattr(DecoderState, "_pool", noted)
    prompts = [[n, *range(10, 90)] * 7 + [n] * 33 for n in range(4) for _ in range(12)]
    draw_answers(loaded, prompts, GenerationOptions(max_new_tokens=50), [], [*range(12)] * 4)
    taken = sum(x.numel() * x.element_size() for pair in pools.values() for x in pair)
    expected = drawing_bytes(loaded, 48, 12, 50, 650)
    assert 0.5 * expected < taken <= expected


@pytest.mark.parametrize("where", ["tokenizer", "generation config", "chat template"])
def test_generation_stops_at_any_end(loaded, where, monkeypatch):
    """A base model's EOS may differ from the token that ends a turn in its chat template."""
    tokenizer = loaded.processor
    prompt = tokenizer("<|im_start|>user\nHow are you?<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    free = generate(loaded, [prompt], GenerationOptions(max_new_tokens=6), [])[0]
    assert len(free) == 6
    fourth = free[3]
    assert fourth not in free[:3]
    tokenizer.eos_token_id = fourth if where == "tokenizer" else 0
    loaded.module.generation_config.eos_token_id = [fourth, 0] if where == "generation config" else 0
    monkeypatch.setattr(turn_ends, "end_tokens", lambda tokenizer: [fourth] if where == "chat template" else [])
    assert answers(loaded, [ROWS[0]], {"max_new_tokens": 6}) == [tokenizer.decode(free[:3], skip_special_tokens=True)]


def test_sampling_repeats_with_its_seed_and_leaves_other_randomness_alone(loaded):
    options = {"max_new_tokens": 16, "temperature": 2.0, "top_p": 0.95}
    state = torch.get_rng_state()
    once = answers(loaded, ROWS, {**options, "seed": 1})
    assert torch.equal(torch.get_rng_state(), state)
    assert answers(loaded, ROWS, {**options, "seed": 1}) == once
    assert answers(loaded, ROWS, {**options, "seed": 2}) != once


def test_a_model_that_is_training_answers_without_dropout_and_goes_on_training(loaded):
    expected = answers(loaded, ROWS, {"max_new_tokens": 6})
    loaded.module.config.attention_dropout = 0.9
    for layer in loaded.module.model.layers:
        layer.self_attn.attention_dropout = 0.9
    loaded.module.train()
    assert answers(loaded, ROWS, {"max_new_tokens": 6}) == expected
    assert all(module.training for module in loaded.module.modules())


def test_a_prompt_without_room_for_an_answer_is_refused(loaded):
    loaded.max_length = 20
    with raises(DataError, "max_new_tokens 15", "20 tokens"):
        answers(loaded, [{"prompt": "How are you today, my friend?"}], {"max_new_tokens": 15})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_tokens": 5}, "'max_new_tokens'"),
        ({"max_new_tokens": 0}, "(got 0)"),
        ({"temperature": -1}, "(got -1)"),
        ({"top_p": 2}, "'top_p'"),
        ({"max_new_tokens": "many"}, "(got 'many')"),
    ],
)
def test_wrong_options_are_named(loaded, options, reason):
    with raises(InputError, reason):
        answers(loaded, ROWS, options)


DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "seed": 3}


def test_what_is_drawn_depends_on_seed_prompt_and_number_alone(loaded):
    every = set()
    for options in (DRAWN | {"sample": k} for k in range(4)):
        together = answers(loaded, ROWS, options)
        assert together == [answers(loaded, [row], options)[0] for row in ROWS]
        assert together[::-1] == answers(loaded, ROWS[::-1], options)
        assert answers(loaded, ROWS, options | {"seed": 4}) != together
        every |= set(together)
    assert len(every) > 3 * len(ROWS)


@pytest.mark.parametrize("paths", [(), (SharedPrefix(),)], ids=["transformers", "slots"])
def test_a_models_own_settings_are_applied_unless_a_loss_needs_what_it_computes(paths):
    loaded, options = decoder(LlamaConfig), GenerationOptions(max_new_tokens=12)
    loaded.inference_paths = paths
    plain = [answer.tokens for answer in draw_answers(loaded, PROMPTS, options, [])]
    loaded.module.generation_config.repetition_penalty = 5.0
    own = [answer.tokens for answer in draw_answers(loaded, PROMPTS, options, [])]
    assert own != plain
    assert all(len(set(tokens)) > len(set(others)) for tokens, others in zip(own, plain, strict=True))
    assert [x.tokens for x in draw_answers(loaded, PROMPTS, options, [], own_settings=False)] == plain
    assert loaded.module.generation_config.repetition_penalty == 5.0


def test_rounding_of_logits_changes_no_draw():
    logits = 3 * torch.randn(200, 5000, generator=torch.Generator().manual_seed(0))
    noisy = logits + 1e-5 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))

    def drawn(rows):
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=0))
        return sampler.choose(rows, [sampler.begin([number], 0) for number in range(len(rows))])

    assert drawn(noisy) == drawn(logits)
    assert len(set(drawn(logits))) > 150


def test_keys_that_depend_on_the_length_of_a_row_are_not_kept():
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    assert not supports_answering(decoder(LlamaConfig, rope_parameters=scaled).module)
    assert supports_answering(decoder(LlamaConfig).module)


def test_prompts_that_share_a_long_beginning_are_read_together():
    loaded, read = decoder(LlamaConfig, max_position_embeddings=4096), []
    loaded.inference_paths = (SharedPrefix(),)
    prompts = [[*([5, 6, 7, 8] * 300), n, n + 1] for n in range(10, 18)]
    generate(loaded, prompts[:1], GenerationOptions(max_new_tokens=1), [])
    count = lambda module, args, inputs: read.append((*args, inputs.get("input_ids"))[0].numel())  # noqa: E731
    with loaded.module.get_decoder().register_forward_pre_hook(count, with_kwargs=True):
        generate(loaded, prompts, GenerationOptions(max_new_tokens=1), [])
    assert read == [1202, 2 * 7]
    assert generate(loaded, [], GenerationOptions(), []) == []

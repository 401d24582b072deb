"""What language models answer beside what was to be answered, and predictions as a reader sees them."""

import json

import pytest
import torch
from tiny import tiny_t5

from ftengine.api import LoadedModel, LoadRequest
from ftengine.generation import GenerationOptions, made_to_fit
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks.causal_lm import CausalLM
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM
from ftengine_builtins.tasks.text_classification import TextClassification

OPTIONS = {"max_new_tokens": 6}
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "How are you?"},
    {"role": "assistant", "content": "I am fine."},
]


@pytest.fixture
def loaded(llama, llama_tokenizer):
    with torch.no_grad():
        for parameter in llama.parameters():  # as initialised, the tiny model repeats one token whatever it reads
            parameter.mul_(6) if parameter.ndim > 1 else None
    return LoadedModel(llama, llama_tokenizer, "tiny", "causal-lm", max_length=512)


def test_rows_without_an_answer_have_no_reference(loaded):
    rows = [{"prompt": "Hello"}, {"messages": TALK[:1]}]
    assert [answer["reference"] for answer in CausalLM().generate(loaded, rows, OPTIONS)] == [None, None]


def test_of_a_text_the_second_half_is_to_be_written(loaded):
    text = "How do I reset my password? Open the settings, choose the account, and follow the link."
    answer, single = CausalLM().generate(loaded, [{"text": text}, {"text": "a"}], OPTIONS)
    assert answer["prompt"] + answer["reference"] == text
    tokens = [
        len(loaded.processor(answer[key], add_special_tokens=False)["input_ids"]) for key in ("prompt", "reference")
    ]
    assert abs(tokens[0] - tokens[1]) <= 1
    continued = CausalLM().infer(loaded, [{"text": answer["prompt"]}], {**OPTIONS, "continues": True})
    assert answer["completion"] == continued[0]["completion"]
    assert (single["prompt"], single["reference"]) == ("a", None)


def test_a_long_prompt_loses_its_beginning_instead_of_ending_the_evaluation(loaded):
    loaded.max_length = 40  # of which at most half are generated
    rows = [{"prompt": beginning + "word " * 50 + "end"} for beginning in ("", "other " * 100)]
    first, second = CausalLM().generate(loaded, rows, {"max_new_tokens": 1000})
    assert first["completion"] == second["completion"]
    assert first["completion"]
    assert second["prompt"] == rows[1]["prompt"]
    prompts, options = made_to_fit(loaded, [list(range(100)), [1, 2]], GenerationOptions(max_new_tokens=1000))
    assert prompts == [list(range(80, 100)), [1, 2]]
    assert options.max_new_tokens == 20
    assert made_to_fit(loaded, prompts, GenerationOptions(max_new_tokens=5))[1].max_new_tokens == 5


@pytest.mark.parametrize("text", ["🙂👩‍👩‍👧", "שלום עולם", "\u202eevil", "<script>alert(1)</script>"])
def test_hostile_text_comes_back_as_it_is(loaded, text):
    (answer,) = CausalLM().generate(loaded, [{"prompt": text, "completion": text}], OPTIONS)
    assert answer["prompt"] == answer["reference"] == text


def test_an_encoder_decoder_answers_beside_its_completion(tmp_path):
    loaded = TransformersLoader().load(LoadRequest(str(tiny_t5(tmp_path / "t5")), "seq2seq-lm"))
    rows = [{"prompt": "Shares rose", "completion": "a film"}, {"prompt": "What is the capital?"}]
    answers = Seq2SeqLM().generate(loaded, rows, OPTIONS)
    assert [answer["reference"] for answer in answers] == ["a film", None]
    assert [answer["prompt"] for answer in answers] == [row["prompt"] for row in rows]
    completions = [answer["completion"] for answer in Seq2SeqLM().infer(loaded, rows, OPTIONS)]
    assert [answer["completion"] for answer in answers] == completions
    loaded.max_length = 4
    Seq2SeqLM().generate(loaded, rows, {"max_new_tokens": 9})
    assert Seq2SeqLM().generate(loaded, [], OPTIONS) == []


def test_predictions_of_labels_are_read_by_their_names():
    task = TextClassification()
    task.labels = task.learn_labels({"train": [{"text": "x", "label": name} for name in "abcdefg"]})
    scores = [0.05, 0.3, 0.1, 0.2, 0.15, 0.12, 0.08]
    shown = task.decode_prediction({"label": 0, "predicted": 1, "scores": scores, "logits": [0.0] * 7, "loss": 3.0})
    assert shown == {"label": "a", "predicted": "b", "scores": {"b": 0.3, "d": 0.2, "e": 0.15, "f": 0.12, "c": 0.1}}
    task.labels = task.learn_labels({"train": [{"text": "x", "label": ["a", "b"]}]})
    shown = task.decode_prediction(
        {"label": [1, 1], "predicted": [0, 0], "scores": [0.2, 0.1], "logits": [0, 0], "loss": 1.0}
    )
    assert (shown["label"], shown["predicted"]) == ("a, b", "(none)")
    json.dumps(shown)

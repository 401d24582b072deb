"""What an encoder-decoder reads and writes, its loss, and its answers."""

import pytest
import torch
from expected import raises
from task_models import tiny_bart
from transformers import AutoTokenizer

from ftengine.api import LoadRequest
from ftengine.errors import DataError
from ftengine.model import Criterion
from ftengine.model.token_loss import IGNORED
from ftengine_builtins.loaders.transformers import TransformersLoader
from ftengine_builtins.tasks.seq2seq_lm import Seq2SeqLM, Seq2SeqLMConfig, shifted

ROWS = [
    {"prompt": "The film was wonderful, the acting was terrible.", "completion": "a film"},
    {"prompt": "Shares rose", "completion": "Shares rose after the company said that its profits had grown."},
    {"prompt": "What is the capital of France?", "completion": "Paris"},
]


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory):
    return tiny_bart(tmp_path_factory.mktemp("models") / "bart")


@pytest.fixture(params=["t5", "bart"])
def loaded(request, t5_folder, bart_folder):
    """An encoder-decoder in fp64, so that two ways of summing agree to 1e-12."""
    folder = {"t5": t5_folder, "bart": bart_folder}[request.param]
    loaded = TransformersLoader().load(LoadRequest(str(folder), "seq2seq-lm", dtype="float64"))
    loaded.module.eval()
    return loaded


@pytest.fixture(scope="session")
def tokenizer(t5_folder):
    return AutoTokenizer.from_pretrained(t5_folder)


def task(**options):
    return Seq2SeqLM(Seq2SeqLMConfig(**options))


def batch_of(task, rows, processor):
    return task.collate([task.encode(row, processor) for row in rows], processor)


# What is read


def test_prompt_and_completion_are_tokenised_apart_and_both_end(tokenizer):
    features = task(prefix="answer: ").encode(ROWS[2], tokenizer)
    assert tokenizer.decode(features.inputs["input_ids"]) == "answer: What is the capital of France?</s>"
    assert tokenizer.decode(features.inputs["labels"]) == "Paris</s>"
    assert features.weight == len(features.inputs["labels"])
    assert features.length == len(features.inputs["input_ids"]) + len(features.inputs["labels"])


def test_a_tokenizer_that_ends_no_text_gets_its_end_token(llama_tokenizer):
    labels = task().encode(ROWS[2], llama_tokenizer).inputs["labels"]
    assert labels == [*llama_tokenizer("Paris")["input_ids"], llama_tokenizer.eos_token_id]


def test_each_side_has_its_own_limit(tokenizer):
    features = task(max_length=6, max_completion_length=4).encode(ROWS[1] | {"prompt": ROWS[0]["prompt"]}, tokenizer)
    assert len(features.inputs["input_ids"]) == 6
    assert features.inputs["input_ids"][-1] == tokenizer.eos_token_id  # a cut prompt still ends
    assert len(features.inputs["labels"]) == 4
    assert tokenizer.eos_token_id not in features.inputs["labels"]  # a cut completion does not
    assert features.truncated
    assert features.longest == 6
    whole = task().encode(ROWS[1] | {"prompt": ROWS[0]["prompt"]}, tokenizer)
    assert features.full_length == max(len(whole.inputs["input_ids"]), len(whole.inputs["labels"])) == whole.longest


@pytest.mark.parametrize(
    ("columns", "renaming"),
    [
        (["source", "target"], "{prompt: source, completion: target}"),
        (["prompt", "summary"], "{completion: summary}"),
        (["a", "b"], "{prompt: a, completion: b}"),
    ],
)
def test_other_columns_are_refused_with_a_renaming(columns, renaming):
    with pytest.raises(DataError) as caught:
        task().check_columns(columns)
    assert renaming in str(caught.value)


# Loss


def test_loss_and_count_are_those_of_transformers(loaded):
    batch = batch_of(task(), ROWS, loaded.processor)
    total, weight = task().loss(loaded.module, batch, Criterion())
    expected = loaded.module(**batch).loss  # the mean over labels
    assert weight == int((batch["labels"] != IGNORED).sum())
    torch.testing.assert_close(total / weight, expected, rtol=1e-10, atol=0)


def test_gradients_are_those_of_transformers(loaded):
    batch = batch_of(task(), ROWS, loaded.processor)
    total, weight = task().loss(loaded.module, batch, Criterion())
    (total / weight).backward()
    found = {name: p.grad.clone() for name, p in loaded.module.named_parameters()}
    loaded.module.zero_grad()
    loaded.module(**batch).loss.backward()
    for name, parameter in loaded.module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-8, atol=1e-12, msg=name)


def test_a_model_without_its_own_way_to_shift_is_shifted_by_its_config():
    class Config:
        decoder_start_token_id, pad_token_id = 7, 0

        def get_text_config(self):
            return self

    class Model:
        config = Config()

    labels = torch.tensor([[3, 4, 1], [5, 1, IGNORED]])
    assert shifted(Model(), labels).tolist() == [[7, 3, 4], [7, 5, 1]]


# Answers


def greedy(model, ids, steps):
    """Decode without a cache, one whole forward pass a token."""
    written = [model.config.decoder_start_token_id]
    for _ in range(steps):
        logits = model(input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([written])).logits
        written.append(int(logits[0, -1].argmax()))
    return written[1:]


def learn(loaded, rows, steps=100):
    optimizer = torch.optim.Adam(loaded.module.parameters(), lr=1e-2)
    batch = batch_of(task(), rows, loaded.processor)
    for _ in range(steps):
        optimizer.zero_grad()
        total, weight = task().loss(loaded.module, batch, Criterion())
        (total / weight).backward()
        optimizer.step()


def test_answers_are_those_of_plain_greedy_decoding(loaded):
    learn(loaded, ROWS[:1] + ROWS[2:], steps=20)
    answers = task().infer(loaded, ROWS, {"max_new_tokens": 6})
    for row, answer in zip(ROWS, answers, strict=True):
        ids = task().encode(row, loaded.processor).inputs["input_ids"]
        tokens = greedy(loaded.module, ids, 6)
        end = loaded.processor.eos_token_id
        tokens = tokens[: tokens.index(end)] if end in tokens else tokens
        assert answer == {"completion": loaded.processor.decode(tokens, skip_special_tokens=True)}


@pytest.mark.slow
def test_what_was_learnt_is_answered_and_ends(t5_folder):
    loaded = TransformersLoader().load(LoadRequest(str(t5_folder), "seq2seq-lm"))
    learn(loaded, ROWS)
    answers = task().infer(loaded, [{"prompt": row["prompt"]} for row in ROWS], {"max_new_tokens": 30})
    assert [answer["completion"] for answer in answers] == [row["completion"] for row in ROWS]


def test_a_model_with_positions_refuses_answers_beyond_them(bart_folder):
    loaded = TransformersLoader().load(LoadRequest(str(bart_folder), "seq2seq-lm"))
    assert loaded.max_length == 64
    with raises(DataError, "max_new_tokens 65", "64 tokens"):
        task().infer(loaded, ROWS[:1], {"max_new_tokens": 65})
    task().infer(loaded, ROWS[:1], {"max_new_tokens": 60})  # prompt and answer do not share the limit


# Around it


@pytest.mark.parametrize("name", ["prompt", "completion"])
def test_a_conversation_is_refused_with_the_task_that_takes_it(tokenizer, name):
    row = {"prompt": "a", "completion": "b", name: [{"role": "user", "content": "c"}]}
    with raises(DataError, f"`{name}`", "causal-lm"):
        task().encode(row, tokenizer)

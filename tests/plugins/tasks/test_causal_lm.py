"""Rows of a language model: shapes, labels, lengths, and what is refused."""

from dataclasses import replace

import pytest
import torch
from expected import raises

from ftengine.errors import DataError, RecipeError
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig

QUESTION = {"role": "user", "content": "How do I reset my password?"}
ANSWER = {"role": "assistant", "content": "Open the settings."}
CHAT = {"messages": [QUESTION, ANSWER]}
PAIR = {"prompt": QUESTION["content"], "completion": ANSWER["content"]}


class Uncounted(CausalLM):
    """Features without the counts, which name the layout that a row is in."""

    def encode(self, example, processor, *, max_length=None):
        return replace(super().encode(example, processor, max_length=max_length), counts={})


def task(**options):
    return Uncounted(CausalLMConfig(**options))


def trained(features, tokenizer):
    return tokenizer.decode([token for token in features.inputs["labels"] if token != -100])


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def without_template(tokenizer):
    tokenizer.chat_template = None
    return tokenizer


def with_bos(tokenizer):
    from tokenizers.processors import TemplateProcessing

    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, number)]
    )
    return tokenizer


def test_a_conversation_is_labelled_and_counted(llama_tokenizer):
    features = task().encode(CHAT, llama_tokenizer)
    assert llama_tokenizer.decode(features.inputs["input_ids"]) == (
        "<|im_start|>user\nHow do I reset my password?<|im_end|>\n<|im_start|>assistant\nOpen the settings.<|im_end|>\n"
    )
    assert trained(features, llama_tokenizer) == "Open the settings.<|im_end|>"
    assert features.length == len(features.inputs["input_ids"]) == len(features.inputs["labels"])
    assert features.weight == len(ids(llama_tokenizer, "Open the settings.<|im_end|>"))
    assert features.truncated is False


@pytest.mark.parametrize("how", ["no template", "never"])
def test_a_completion_follows_its_prompt_as_text_otherwise(llama_tokenizer, how):
    if how == "no template":
        features = task().encode(PAIR, without_template(llama_tokenizer))
    else:
        features = task(chat_template="never").encode(PAIR, llama_tokenizer)
    text = "How do I reset my password?Open the settings."
    assert features.inputs["input_ids"] == [*ids(llama_tokenizer, text), llama_tokenizer.eos_token_id]
    assert trained(features, llama_tokenizer) == "Open the settings.<|im_end|>"


def test_text_is_trained_whole_and_ends_with_eos(llama_tokenizer):
    features = task().encode({"text": "The quick brown fox"}, llama_tokenizer)
    assert features.inputs["input_ids"] == [*ids(llama_tokenizer, "The quick brown fox"), llama_tokenizer.eos_token_id]
    assert features.inputs["labels"] == features.inputs["input_ids"]
    assert features.weight == features.length - 1  # nothing predicts the first token


def test_text_begins_with_the_bos_that_the_tokenizer_adds(llama_tokenizer):
    tokenizer = with_bos(llama_tokenizer)
    for text in ("The fox", tokenizer.bos_token + "The fox" + tokenizer.eos_token):
        features = task().encode({"text": text}, tokenizer)
        assert features.inputs["input_ids"] == [
            tokenizer.bos_token_id,
            *ids(tokenizer, "The fox"),
            tokenizer.eos_token_id,
        ]
        assert features.weight == features.length - 1


def test_train_on_all_trains_on_every_token(llama_tokenizer):
    for row in (CHAT, PAIR, {"text": "The fox"}):
        features = task(train_on="all").encode(row, llama_tokenizer)
        assert features.inputs["input_ids"] == task().encode(row, llama_tokenizer).inputs["input_ids"]
        assert features.inputs["labels"] == features.inputs["input_ids"]


def test_a_system_message_is_read_but_not_trained_on(llama_tokenizer):
    features = task(system="Be brief.").encode(PAIR, llama_tokenizer)
    assert llama_tokenizer.decode(features.inputs["input_ids"]).startswith(
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_st"
    )
    assert trained(features, llama_tokenizer) == "Open the settings.<|im_end|>"


@pytest.mark.parametrize("truncate", ["right", "left"])
def test_a_long_example_is_cut_and_says_so(llama_tokenizer, truncate):
    whole = task().encode(CHAT, llama_tokenizer)
    cut = task(max_length=20, truncate=truncate).encode(CHAT, llama_tokenizer)
    kept = slice(20) if truncate == "right" else slice(-20, None)
    assert (cut.inputs["input_ids"], cut.inputs["labels"]) == (
        whole.inputs["input_ids"][kept],
        whole.inputs["labels"][kept],
    )
    assert (cut.length, cut.truncated) == (20, True)
    assert cut.weight == sum(label != -100 for label in cut.inputs["labels"][1:])


def test_an_example_that_is_cut_before_its_answer_has_no_weight(llama_tokenizer):
    features = task(max_length=10).encode(CHAT, llama_tokenizer)
    assert (features.weight, features.truncated) == (0, True)


def test_batches_are_padded_on_the_right(llama_tokenizer):
    features = [task().encode(row, llama_tokenizer) for row in (CHAT, {"text": "The fox"})]
    batch = task().collate(features, llama_tokenizer)
    short = features[1].length
    assert {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "labels"), (torch.int64, (2, features[0].length))
    )
    assert batch["input_ids"][1, :short].tolist() == features[1].inputs["input_ids"]
    assert batch["labels"][0].tolist() == features[0].inputs["labels"]
    assert batch["attention_mask"].sum(dim=1).tolist() == [one.length for one in features]
    assert (batch["input_ids"][1, short:] == llama_tokenizer.pad_token_id).all()
    assert (batch["labels"][1, short:] == -100).all()


def test_show_marks_what_is_trained(llama_tokenizer):
    pieces = task().decode_example(task().encode(CHAT, llama_tokenizer), llama_tokenizer)
    assert pieces == [
        ("<|im_start|>user\nHow do I reset my password?<|im_end|>\n<|im_start|>assistant\n", False),
        ("Open the settings.<|im_end|>", True),
        ("\n", False),
    ]


def test_duplicates_are_rows_that_say_the_same():
    def identity(row):
        return task().view(row).identity

    assert identity({**CHAT, "id": 1}) == identity({**CHAT, "id": 2, "prompt": None})
    assert identity({"messages": [{**QUESTION, "time": 1}]}) == identity({"messages": [QUESTION]})
    assert identity(PAIR) != identity({**PAIR, "completion": "No."})
    assert identity({"messages": [{"from": "a", "value": "b"}]}) != identity(
        {"messages": [{"from": "a", "value": "c"}]}
    )
    assert identity({"text": "a", "source": "x"}) == identity({"text": "a"}) != identity({"text": "b"})


@pytest.mark.parametrize(
    ("columns", "suggestion"),
    [
        (["id", "dialogue"], "{messages: dialogue}"),
        (["Question", "Answer"], "{prompt: Question, completion: Answer}"),
        (["prompt", "response"], "{completion: response}"),
        (["document", "id"], "{text: document}"),
        (["a", "b"], "{text: a}"),
    ],
)
def test_unknown_columns_are_refused_with_a_renaming(columns, suggestion):
    with pytest.raises(DataError) as caught:
        task().check_columns(columns)
    message = str(caught.value)
    assert ", ".join(columns) in message
    assert "`messages`" in message
    assert "`prompt` and `completion`" in message
    assert f"data.columns, e.g. {suggestion}" in message


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        (["prompt", "chosen", "rejected"], "e.g. {completion: chosen}. Column 'rejected' is not used"),
        (["English", "Spanish"], "e.g. {prompt: English, completion: Spanish}."),
        (["id", "de", "en", "no"], "e.g. {prompt: de, completion: en}. Columns that are then not read: id, no."),
    ],
)
def test_preferences_and_translations_are_proposed_as_prompt_and_completion(columns, advice):
    with pytest.raises(DataError) as caught:
        task().check_columns(columns)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "it needs `messages`"),
        ({"messages": None, "text": None}, "none of `prompt`"),
        ({"prompt": "Hello"}, "no `completion`"),
        ({"completion": "Hello"}, "no `prompt`"),
        ({"prompt": "Hello", "completion": 3}, "`completion` is 3"),
        ({"prompt": ["Hello"], "completion": "x"}, "`prompt` is ['Hello']"),
        ({"prompt": "", "completion": "x"}, "`prompt` is empty"),
        ({"prompt": "x", "completion": "  "}, "`completion` is empty"),
        ({"text": ""}, "`text` is empty"),
        ({"text": 3.5}, "`text` is 3.5"),
        ({"messages": "Hello"}, "`messages` is 'Hello'"),
        ({"messages": [QUESTION]}, "no assistant turn"),
        ({"messages": [ANSWER]}, "no assistant turn"),
        ({"messages": [ANSWER, QUESTION]}, "no assistant turn"),
    ],
)
def test_a_malformed_row_is_refused_with_its_reason(llama_tokenizer, row, reason):
    for template in ["auto"] if row.get("messages") else ["auto", "never"]:
        with raises(DataError, reason):
            task(chat_template=template).encode(row, llama_tokenizer)


def test_messages_without_a_chat_template_are_refused(llama_tokenizer):
    with raises(RecipeError, "chat_template.jinja"):
        task().encode(CHAT, without_template(llama_tokenizer))
    with raises(RecipeError, "task.chat_template"):
        task(chat_template="never").encode(CHAT, llama_tokenizer)


@pytest.mark.parametrize("row", [{"text": "The fox"}, PAIR])
def test_a_system_message_without_a_place_is_refused(llama_tokenizer, row):
    with raises(RecipeError, "task.system"):
        task(system="Be brief.").encode(row, without_template(llama_tokenizer))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"completion": "x"}, "no `prompt`"),
        ({}, "it needs a `prompt`"),
        ({"prompt": " "}, "`prompt` is empty"),
        ({"text": 3}, "`text` is 3"),
        ({"messages": [ANSWER]}, "no user turn"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "no user turn"),
        ({"messages": [{"role": "bot", "content": "Hello"}]}, "user, assistant, tool"),
    ],
)
def test_rows_that_cannot_be_answered_are_refused(row, reason):
    with raises(DataError, reason):
        task().check_input(row)


SYSTEM = {"role": "system", "content": "Be brief."}
FOLLOW = [{"role": "user", "content": "And then?"}, {"role": "assistant", "content": "Then wait."}]


def test_conversations_of_sharegpt_are_read(llama_tokenizer):
    turns = [("system", SYSTEM), ("human", QUESTION), ("gpt", ANSWER)]
    row = {"messages": [{"from": who, "value": message["content"]} for who, message in turns]}
    same = {"messages": [SYSTEM, QUESTION, ANSWER]}
    assert task().encode(row, llama_tokenizer) == task().encode(same, llama_tokenizer)
    assert task().view(row).identity == task().view(same).identity
    assert task().view(row).target == [ANSWER["content"]]
    assert task().with_inputs(row, ["Be kind.", "What?"])["messages"][1] == {"role": "user", "content": "What?"}
    with raises(DataError, "message 1", "'humman'", "Did you mean 'human'?"):
        task().encode({"messages": [{"from": "humman", "value": "x"}]}, llama_tokenizer)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [QUESTION], "completion": "Open it."}, "`prompt` is "),
        ({"prompt": "Hello", "completion": [ANSWER]}, "`completion` is "),
        ({"prompt": [], "completion": []}, "`prompt` is empty"),
        ({"prompt": [QUESTION], "completion": []}, "no assistant turn"),
        ({"prompt": [QUESTION, ANSWER], "completion": []}, "no assistant turn"),
        ({"prompt": [QUESTION, ANSWER], "completion": [FOLLOW[0]]}, "no assistant turn"),
        ({"prompt": [{"role": "user"}], "completion": [ANSWER]}, "message 1"),
        ({"prompt": [QUESTION], "completion": [3]}, "message 2 is 3"),
        ({"prompt": {"role": "user", "content": "x"}, "completion": [ANSWER]}, "`prompt` is "),
    ],
)
def test_malformed_prompts_of_messages_are_refused(llama_tokenizer, row, reason):
    with raises(DataError, reason):
        task().encode(row, llama_tokenizer)
    task().view(row)


GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [None, GENERATION])
@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((0, None), "Then wait.<|im_end|>"),
        ((1, 0), "Open the settings.<|im_end|>"),
        ((1, 1), "Open the settings.<|im_end|>Then wait.<|im_end|>"),
        ((0, 0), ""),
    ],
)
def test_a_message_of_weight_0_is_not_trained_on(llama_tokenizer, template, weights, said):
    """OpenAI's format."""
    llama_tokenizer.chat_template = template or llama_tokenizer.chat_template
    row = {"messages": [QUESTION, ANSWER | {"weight": weights[0]}, FOLLOW[0], FOLLOW[1] | {"weight": weights[1]}]}
    features = task().encode(row, llama_tokenizer)
    assert trained(features, llama_tokenizer) == said
    assert bool(features.weight) == bool(said)
    whole = task().encode({"messages": [QUESTION, ANSWER, *FOLLOW]}, llama_tokenizer)
    assert features.inputs["input_ids"] == whole.inputs["input_ids"]


def test_weight_0_contradicts_a_loss_on_everything(llama_tokenizer):
    unwanted = ANSWER | {"weight": 0}
    for row in (
        {"messages": [QUESTION, unwanted]},
        {"prompt": [QUESTION], "completion": [unwanted]},
        {"prompt": [QUESTION, unwanted, FOLLOW[0]], "completion": FOLLOW[1:]},
    ):
        with raises(DataError, "weight 0", "task.train_on"):
            task(train_on="all").encode(row, llama_tokenizer)

"""What of a conversation is trained on, compared with masks put together by hand."""

import pytest
from expected import raises

from ftengine.chat import encode_conversation as encode
from ftengine.chat import read_conversation
from ftengine.chat import render as render_conversation
from ftengine.errors import DataError

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
THANKS = {"role": "user", "content": "And of Italy?\n\n"}
LONG_ANSWER = {"role": "assistant", "content": "Rome, I think.  \n\n1. Sì 😀 2. é\n"}
BLANK_START = {"role": "assistant", "content": "\n Rome"}


def read(messages):
    return read_conversation({"messages": messages})


def encode_conversation(tokenizer, messages):
    return encode(tokenizer, read(messages))


def render(tokenizer, messages):
    return render_conversation(tokenizer, read(messages))


CONVERSATIONS = {
    "one turn": [SYSTEM, QUESTION, ANSWER],
    "two turns": [SYSTEM, QUESTION, ANSWER, THANKS, LONG_ANSWER],
    "user has the last word": [SYSTEM, QUESTION, ANSWER, THANKS],
    "two answers in a row": [SYSTEM, QUESTION, ANSWER, LONG_ANSWER],
}


@pytest.fixture(params=[pytest.param("SmolLM2", marks=pytest.mark.slow), "tiny"])
def tokenizer(request):
    return request.getfixturevalue({"SmolLM2": "smollm2_tokenizer", "tiny": "llama_tokenizer"}[request.param])


def chatml_by_hand(tokenizer, messages):
    """Tokenise ChatML stretch by stretch: what the assistant wrote, with its <|im_end|>, and everything else."""
    ids, labels, untrained = [], [], ""

    def flush():
        nonlocal untrained
        piece = tokenizer(untrained, add_special_tokens=False)["input_ids"]
        ids.extend(piece)
        labels.extend([-100] * len(piece))
        untrained = ""

    for message in messages:
        untrained += f"<|im_start|>{message['role']}\n"
        content = f"{message['content']}<|im_end|>"
        if message["role"] == "assistant":
            flush()
            piece = tokenizer(content, add_special_tokens=False)["input_ids"]
            ids.extend(piece)
            labels.extend(piece)
            content = ""
        untrained += f"{content}\n"
    flush()
    return ids, labels


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_assistants_turns_and_their_ends_are_labelled(tokenizer, name):
    assert encode_conversation(tokenizer, CONVERSATIONS[name]) == chatml_by_hand(tokenizer, CONVERSATIONS[name])


@pytest.mark.slow
def test_a_reply_that_begins_with_a_line_break_is_labelled_whole(smollm2_tokenizer):
    """Its first line break shares a token with the template's own; that token is labelled."""
    ids, labels = encode_conversation(smollm2_tokenizer, [QUESTION, BLANK_START])
    assert ids == tokenizer_ids(smollm2_tokenizer, [QUESTION, BLANK_START])
    assert smollm2_tokenizer.decode([token for token in labels if token != -100]) == "\n\n Rome<|im_end|>"


def test_what_a_template_marks_is_trained_with_its_end(llama_tokenizer):
    llama_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ids, labels = encode_conversation(llama_tokenizer, [QUESTION, ANSWER, THANKS, ANSWER])
    assert ids == tokenizer_ids(llama_tokenizer, [QUESTION, ANSWER, THANKS, ANSWER])
    assert llama_tokenizer.decode([token for token in labels if token != -100]) == "Paris.<|im_end|>Paris.<|im_end|>"


def tokenizer_ids(tokenizer, messages):
    return tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]


def test_where_history_is_rewritten_only_the_last_turn_is_labelled(llama_tokenizer):
    """As in Qwen3, which puts an empty thought in front of the last answer alone: it is read, not learnt."""
    llama_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ids, labels = encode_conversation(llama_tokenizer, [QUESTION, ANSWER, THANKS, ANSWER])
    assert "<think>" in llama_tokenizer.decode(ids)
    assert llama_tokenizer.decode([token for token in labels if token != -100]) == "Paris.<|im_end|>"


def test_a_prompt_that_the_conversation_does_not_continue_is_an_error(llama_tokenizer):
    llama_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\nWell, {% endif %}"
    )
    with raises(DataError, "message 2", "train_on: all"):
        encode_conversation(llama_tokenizer, [QUESTION, ANSWER])


def test_a_template_without_an_end_token_ends_with_its_line_break(llama_tokenizer):
    llama_tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    _, labels = encode_conversation(llama_tokenizer, [QUESTION, ANSWER])
    assert llama_tokenizer.decode([token for token in labels if token != -100]) == " Paris.\n\n"


def test_a_template_brings_its_own_bos(llama_tokenizer):
    """Llama's tokenizer adds a BOS, and its template writes one: the model must see one."""
    from tokenizers.processors import TemplateProcessing

    bos, number = llama_tokenizer.bos_token, llama_tokenizer.bos_token_id
    llama_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, number)]
    )
    llama_tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    ids, _ = encode_conversation(llama_tokenizer, [QUESTION, ANSWER])
    assert llama_tokenizer("Hello")["input_ids"][0] == number
    assert ids.count(number) == 1


def test_a_template_that_refuses_is_a_data_error(llama_tokenizer):
    llama_tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    with raises(DataError, "Roles must alternate"):
        encode_conversation(llama_tokenizer, [QUESTION, ANSWER])


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "4"}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Hello", "`messages` is 'Hello'"),
        ({"role": "user", "content": "Hello"}, "a list"),
        ([], "`messages` is empty"),
        (["Hello"], "message 1 is 'Hello'"),
        ([QUESTION, {"role": "assistant"}], "message 2"),
        ([{"role": "asistant", "content": "Hello"}], "Did you mean 'assistant'?"),
        ([{"role": ["user"], "content": "Hello"}], "['user']"),
        ([{"role": "user", "content": 3}], "content 3"),
        ([{"role": "user", "content": None}], "has content missing"),
        ([{"role": "user", "content": " \n"}], "message 1"),
        ([{"role": "user", "content": ["x" * 500]}], "must be text"),
        ([{"role": "user", "content": [{"type": "text"}]}], "`text`"),
        ([QUESTION, ANSWER | {"tool_call": []}], "'tool_call'"),
        ([QUESTION, ANSWER | {"tool_calls": {}}, ANSWER | {"tool_calls": "f"}], "message 3"),
        ([QUESTION, CALL | {"tool_calls": [{"function": {"arguments": "{}"}}]}], "message 2"),
        ([QUESTION, CALL | {"tool_calls": [{"name": "f", "arguments": "{"}]}], "no JSON"),
        ([QUESTION, CALL | {"tool_calls": [{"name": "f", "arguments": "[1]"}]}], "must be an object"),
        ([QUESTION, RESULT], "message 2 (tool)"),
        ([QUESTION, CALL, RESULT, RESULT], "message 4 (tool)"),
        ([QUESTION, CALL, QUESTION], "the result of f"),
        ([QUESTION, {**ANSWER, "content": "<think>Hm.</think>"}], "message 2 (assistant)"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_reason(messages, reason):
    with raises(DataError, reason):
        read(messages)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tools": [{"name": "g"}]}, "'f', which is not among the row's tools: g"),
        ({"tools": "{"}, "`tools`"),
        ({"tools": [{"function": {}}]}, "`name`"),
        ({"chat_template_kwargs": 3}, "`chat_template_kwargs` is 3"),
    ],
)
def test_malformed_tools_are_refused(row, reason):
    with raises(DataError, reason):
        read_conversation({"messages": [QUESTION, CALL], **row})


def test_a_row_cannot_bring_a_template_of_its_own(llama_tokenizer):
    row = {"messages": [QUESTION, ANSWER], "chat_template_kwargs": {"chat_template": "{{ 1 }}"}}
    with raises(DataError, "'chat_template'"):
        encode(llama_tokenizer, read_conversation(row))

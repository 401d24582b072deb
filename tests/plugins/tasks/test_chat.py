"""What of a conversation is trained on, compared with masks put together by hand."""

import pytest
from expected import raises

from ftengine.errors import DataError
from ftengine.model.chat import encode_conversation, end_of_turn, read_messages, render, with_system

SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = {"role": "assistant", "content": "Paris."}
THANKS = {"role": "user", "content": "And of Italy?\n\n"}
LONG_ANSWER = {"role": "assistant", "content": "Rome, I think.  \n\n1. Sì 😀 2. é\n"}
BLANK_START = {"role": "assistant", "content": "\n Rome"}

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


def test_a_template_that_marks_generation_is_believed(llama_tokenizer):
    llama_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
        "{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ids, labels = encode_conversation(llama_tokenizer, [QUESTION, ANSWER, THANKS, ANSWER])
    assert ids == tokenizer_ids(llama_tokenizer, [QUESTION, ANSWER, THANKS, ANSWER])
    assert llama_tokenizer.decode([token for token in labels if token != -100]) == "Paris.Paris."


def tokenizer_ids(tokenizer, messages):
    return tokenizer(render(tokenizer, messages), add_special_tokens=False)["input_ids"]


def test_where_history_is_rewritten_only_the_last_turn_is_labelled(llama_tokenizer):
    """As in Qwen3, which writes reasoning into the last turn alone."""
    llama_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    _, labels = encode_conversation(llama_tokenizer, [QUESTION, ANSWER, THANKS, ANSWER])
    trained = llama_tokenizer.decode([token for token in labels if token != -100])
    assert trained == "<think>\n\n</think>\n\nParis.<|im_end|>"


def test_a_prompt_that_the_conversation_does_not_continue_is_an_error(llama_tokenizer):
    llama_tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    with raises(DataError, "{% generation %}", "loss_on: all"):
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


def test_a_system_message_is_put_in_front_once():
    assert with_system([QUESTION], "Be brief.") == [SYSTEM, QUESTION]
    assert with_system([SYSTEM, QUESTION], "Be long.") == [SYSTEM, QUESTION]
    assert with_system([QUESTION], None) == [QUESTION]


def test_the_end_of_a_turn_is_found(tokenizer):
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_a_template_without_an_end_of_turn_has_none(llama_tokenizer):
    llama_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    assert end_of_turn(llama_tokenizer) is None


def test_other_keys_of_a_message_are_left_out():
    assert read_messages([{**QUESTION, "timestamp": 12, "name": None}]) == [QUESTION]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("Hello", "`messages` is 'Hello'"),
        ({"role": "user", "content": "Hello"}, "a list"),
        (None, "`messages` is missing"),
        ([], "`messages` is empty"),
        (["Hello"], "message 1 is 'Hello'"),
        ([QUESTION, {"role": "assistant"}], "message 2"),
        ([{"role": "human", "content": "Hello"}], "'human'"),
        ([{"role": ["user"], "content": "Hello"}], "['user']"),
        ([{"role": "user", "content": 3}], "content 3"),
        ([{"role": "user", "content": None}], "has content missing"),
        ([{"role": "user", "content": " \n"}], "message 1"),
        ([{"role": "user", "content": ["x" * 500]}], "must be text"),
    ],
)
def test_a_malformed_conversation_is_refused_with_its_reason(messages, reason):
    with raises(DataError, reason):
        read_messages(messages)

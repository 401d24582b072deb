"""Conversations as people's files have them: what is read of a message, and what is refused by name."""

import json

import pytest
from chat_templates import NEXT_SPEAKER, SPEAKERS, TEMPLATES, TOKENS
from expected import raises

from ftengine.api import Message
from ftengine.chat import end_tokens, turns
from ftengine.errors import DataError, RecipeError
from ftengine.testing.models import byte_level_tokenizer
from ftengine_builtins.tasks import CausalLM
from ftengine_builtins.tasks.causal_lm import CausalLMConfig
from ftengine_builtins.tasks.language_rows import read_row, shape_of

ASKED = {"role": "user", "content": "Weather?"}
ANSWER = {"role": "assistant", "content": "Sunny."}


@pytest.fixture(scope="module")
def tokenizer():
    made = byte_level_tokenizer(pad_token="<|im_end|>")
    made.add_tokens(list(TOKENS), special_tokens=True)
    return made


def encoded(tokenizer, row, **options):
    task = CausalLM(CausalLMConfig(**options))
    return [task.encode(row, tokenizer, part=n) for n in range(task.parts(row, tokenizer))]


def trained(tokenizer, row, **options):
    examples = encoded(tokenizer, row, **options)
    return [tokenizer.decode([token for token in one.inputs["labels"] if token != -100]) for one in examples]


def read(*messages):
    return read_row({"messages": list(messages)}).messages


def asked_for(*names, **more):
    calls = [{"id": f"id_{name}", "function": {"name": name, "arguments": "{}"}} for name in names]
    return {"role": "assistant", "content": None, "tool_calls": calls, **more}


@pytest.mark.parametrize(
    ("message", "facts"),
    [
        (ANSWER | {"wieght": 0}, ("'wieght'", "'weight'")),
        ({"role": "assistant", "text": "Sunny."}, ("'text'", "mean 'content'")),
        ({"role": "AI", "content": "Sunny."}, ("'AI'", "mean 'assistant'")),
        ({"role": "Assistant", "content": "Sunny."}, ("'Assistant'", "mean 'assistant'")),
        (ANSWER | {"thought": "Hm."}, ("'thought'", "mean 'reasoning_content'")),
        (ANSWER | {"recipient": "functions.f"}, ("message 2 (assistant)", "'recipient'")),
        (ANSWER | {"channel": "analysis"}, ("message 2", "'analysis'", "`thinking`")),
        (ANSWER | {"content": [{"type": "output_text", "txt": "Sunny."}]}, ("message 2", "output_text", "'txt'")),
        (ANSWER | {"train_detail": []}, ("'train_detail'",)),
        (ANSWER | {"content": [{"type": "text", "text": "Sunny.", "train": False}]}, ("'train'", "part")),
        (ANSWER | {"weight": 0.5}, ("weight 0.5", "0 (not")),
        (ANSWER | {"loss_scale": 0.5}, ("loss_scale 0.5", "0 or 1")),
        (ANSWER | {"tool_calls": [{"function": {"name": "f", "args": {"a": 1}}}]}, ("'args'", "'f'")),
        (ANSWER | {"reasoning": "It is hot.", "thinking": "It is cold."}, ("differ", "thinking")),
        (ANSWER | {"content": "<think>No</think>Sunny.", "reasoning": "Yes"}, ("differ", "</think>")),
    ],
)
def test_what_is_not_read_of_a_message_is_named(message, facts):
    with raises(DataError, *facts):
        read(ASKED, message)


def test_what_a_row_has_is_named_where_it_has_nothing_to_read():
    with raises(DataError, "mesages", "mean 'messages'"):
        shape_of({"mesages": [ASKED, ANSWER], "messages": None})
    with raises(DataError, "`messages`", "a list as text"):
        read_row({"messages": json.dumps([ASKED, ANSWER])})
    with raises(DataError, "`conversations`", "list of messages", ".jsonl"):
        shape_of({"conversations": json.dumps([{"from": "human", "value": "Hi"}])})
    call = {"function": {"name": "f", "arguments": json.dumps(json.dumps({"a": 1}))}}
    with raises(DataError, "message 2", "'f'", "JSON text within JSON text"):
        read(ASKED, {"role": "assistant", "tool_calls": [call]})
    with raises(DataError, "message 2", "`value`", "from, valeu", "mean 'value'"):
        read_row({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "valeu": "Hello"}]})


def test_a_result_belongs_to_the_call_of_its_id_or_its_name():
    def result(**named):
        return {"role": "tool", "content": "4", **named}

    called = asked_for("f", "g")
    for first in (result(tool_call_id="id_g"), result(name="g")):
        (*_, one, other) = read(ASKED, called, first, result())
        assert (one.name, one.call_id, other.name, other.call_id) == ("g", "id_g", "f", "id_f")
    for wrong in (result(tool_call_id="id_h"), result(name="h"), result(tool_call_id="id_g", name="f")):
        with raises(DataError, "message 3 (tool)", "g (id 'id_g')"):
            read(ASKED, called, wrong)
    with raises(DataError, "message 3 (assistant)", "the result of f, g"):
        read(ASKED, called, ANSWER)
    without = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": n}} for n in "fg"]}
    assert [one.name for one in read(ASKED, without, result(tool_call_id="id_1"), result())[2:]] == ["f", "g"]


def test_a_thought_of_a_call_is_that_of_the_message_it_goes_into():
    def row(**said):
        call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}', "reasoning_content": "Call it."}
        return {"messages": [ASKED, {"role": "assistant", "content": "Let me see.", **said}, call]}

    (_, message) = read_row(row()).messages
    assert (message.thought, message.content, len(message.calls)) == ("Call it.", "Let me see.", 1)
    with raises(DataError, "message 3", "reasoning_content"):
        read_row(row(reasoning_content="Not yet."))


def test_blocks_are_the_messages_that_they_stand_for():
    used = [
        {"type": "thinking", "thinking": "Look.", "signature": "x"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "id": "id_f", "name": "f", "input": {}},
    ]
    given = [
        {"type": "tool_result", "tool_use_id": "id_f", "content": [{"type": "text", "text": "4"}]},
        {"type": "text", "text": "And?"},
    ]
    four = {"role": "assistant", "content": [{"type": "output_text", "text": "Four."}], "end_turn": True}
    plain = [
        ASKED,
        asked_for("f") | {"content": "Let me see.", "reasoning": "Look."},
        {"role": "tool", "content": "4", "tool_call_id": "id_f"},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Four."},
    ]
    talk = [ASKED, {"role": "assistant", "content": used}, {"role": "user", "content": given}, four]
    assert read(*talk) == read(*plain)
    row = {"prompt": talk[:3], "completion": talk[3:]}
    assert read_row(row).prompt_length == 4
    given[0]["is_error"] = True  # no template writes it, and `plan` counts it
    assert [one.unwritten for one in read(*talk)] == [(), (), ("is_error",), (), ()]
    details = [{"type": "reasoning.summary", "summary": "Look."}, {"type": "reasoning.encrypted", "data": "x"}]
    assert (read(ASKED, ANSWER | {"reasoning_details": details[:1]})[1]) == Message("assistant", "Sunny.", "Look.")
    assert read(ASKED, ANSWER | {"reasoning_details": details[1:]})[1].unwritten == ("reasoning.encrypted",)
    for beside in ({}, {"reasoning": "Look."}):  # a summary, or the thought itself, is not what is encrypted
        (_, answer) = read(ASKED, ANSWER | {"reasoning_details": details} | beside)
        assert (answer.thought, answer.unwritten) == ("Look.", ("reasoning.encrypted",))
    blocks = {"thinking_blocks": [{"type": "thinking", "thinking": "Look.", "signature": "x"}], "channel": "final"}
    assert read(ASKED, ANSWER | blocks)[1].thought == "Look."


@pytest.mark.parametrize(
    ("role", "first", "then", "told"),
    [
        ("assistant", "tool_use", "text", ("message 2", "text after a call")),
        ("assistant", "tool_use", "thinking", ("a thought after a call",)),
        ("assistant", "text", "thinking", ("a thought after text",)),
        ("user", "text", "tool_result", ("result of a tool after text",)),
    ],
)
def test_blocks_that_templates_write_in_another_order_are_refused(role, first, then, told):
    blocks = {
        "text": {"type": "text", "text": "Let me see."},
        "thinking": {"type": "thinking", "thinking": "Look."},
        "tool_use": {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        "tool_result": {"type": "tool_result", "tool_use_id": "a", "content": "4"},
    }
    with raises(DataError, *told):
        read(ASKED, {"role": role, "content": [blocks[first], blocks[then]]})
    if role == "assistant" and then == "text":
        for empty in ("", "\n\n"):
            blank = {"type": "text", "text": empty}
            assert read(ASKED, {"role": role, "content": [blocks[first], blank]})[1].calls[0].name == "f"


def test_why_nothing_is_trained_on(tokenizer):
    tokenizer.chat_template = TEMPLATES["SmolLM2"]
    open_end = {"messages": [ASKED, ANSWER, ASKED]}
    (found,) = encoded(tokenizer, open_end, train_on="last")
    assert (found.weight, "last" in found.untrained) == (0, True)
    (found,) = encoded(tokenizer, {"messages": [ASKED, ANSWER | {"weight": 0}]}, train_on="last")
    assert "weight 0" in found.untrained


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ("{% for k, v in a.items() %}{{ k }}:{{ v }}{% endfor %}", "{a:1}"),
        (
            "{% if a is string %}{{ a }}{% else %}{% for k, v in a.items() %}{{ k }}:{{ v }}{% endfor %}{% endif %}",
            "{a:1}",
        ),
        ("{{ a }}", '{{"a": 1}}'),
        ("{{ a | tojson }}", '{{"a": 1}}'),
    ],
)
def test_arguments_are_given_as_a_template_writes_them_best(tokenizer, arguments, written):
    """As Gemma 4's, which writes keys and values itself and lets text through; as one that would print a mapping."""
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}{% set a = c.function.arguments %}"
        "{{ c.function.name }}{{ '{' }}" + arguments + "{{ '}' }}{% endfor %}<|im_end|>{% endfor %}"
    )
    called = {**asked_for("f"), "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    assert trained(tokenizer, {"messages": [ASKED, called]}) == [f"f{written}<|im_end|>"]


def test_two_messages_of_the_assistant_in_a_row_are_trained_as_they_are_served(tokenizer):
    tokenizer.chat_template = TEMPLATES["Qwen3"]
    row = {"messages": [ASKED, ANSWER, {"role": "assistant", "content": "And warm."}]}
    assert trained(tokenizer, row) == ["Sunny.<|im_end|>And warm.<|im_end|>"]
    last = tokenizer.decode(encoded(tokenizer, row)[0].inputs["input_ids"])
    prompt = tokenizer.apply_chat_template([ASKED, ANSWER], tokenize=False, add_generation_prompt=True)
    assert last.startswith(prompt)


CALLED = "<tool_call>f {}</tool_call><tool_call>g {}</tool_call><|observation|>"
RESULTS = [{"role": "tool", "content": "4"}, {"role": "tool", "content": "5"}]


@pytest.mark.parametrize(
    ("talk", "learnt"),
    [
        ([ASKED, ANSWER], ["Sunny.<|user|>"]),
        ([ASKED, ANSWER, ASKED], ["Sunny.<|user|>"]),
        ([ASKED, ANSWER, ASKED, ANSWER], ["Sunny.<|user|>Sunny.<|user|>"]),
        ([ASKED, asked_for("f", "g")], [CALLED]),
        ([ASKED, asked_for("f", "g"), *RESULTS, ANSWER], [f"{CALLED}Sunny.<|user|>"]),
        ([ASKED, ANSWER | {"weight": 0}, ASKED, ANSWER], ["Sunny.<|user|>"]),
        ([ASKED, ANSWER, ANSWER], ["Sunny.<|user|>", "Sunny.<|user|>"]),  # not the assistant's own token
        ([ASKED, ANSWER | {"content": "Write </tool_call>"}], ["Write </tool_call><|user|>"]),
    ],
)
def test_the_next_speakers_token_ends_a_turn_that_has_no_end_of_its_own(talk, learnt):
    made = byte_level_tokenizer(pad_token="<|im_end|>")
    made.add_tokens(list(SPEAKERS), special_tokens=True)
    made.chat_template = NEXT_SPEAKER
    assert made.convert_ids_to_tokens(end_tokens(made)) == ["<|user|>", "<|observation|>"]
    row = {"messages": talk}
    assert trained(made, row) == learnt
    found = encoded(made, row)[-1]
    assert made.decode(found.inputs["input_ids"]).startswith(turns.render(made, read_row(row)))
    assert found.counts["end_of_turn"] == 1
    (everything,) = encoded(made, {"messages": [ASKED, ANSWER]}, train_on="all")
    assert made.decode(everything.inputs["labels"]).endswith("Sunny.<|user|>")


BLANK = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
SHARED = "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content }}{% endfor %}"
FIRST = "{% for m in messages %}{{ '<|observation|>' if m.role == 'user' }}{{ m.content }} {% endfor %}"


@pytest.mark.parametrize(("template", "bos"), [(BLANK, None), (SHARED, None), (FIRST, "<|observation|>")])
def test_blanks_marks_of_all_speakers_and_what_texts_begin_with_end_no_turn(template, bos):
    made = byte_level_tokenizer(pad_token="<|im_end|>")
    made.add_tokens(list(SPEAKERS), special_tokens=True)
    made.add_tokens(["\n\n"])
    made.bos_token, made.chat_template = bos, template
    assert end_tokens(made) == []
    assert "end_of_turn" not in encoded(made, {"messages": [ASKED, ANSWER]}, train_on="all")[0].counts


HERMES = {
    "conversations": [
        {"from": "human", "value": "Weather in Rome?"},
        {"from": "gpt", "value": 'I look.\n<tool_call>\n{"name": "f", "arguments": {"city": "Rome"}}\n</tool_call>'},
        {"from": "tool", "value": "<tool_response>\nsunny\n</tool_response>"},
        {"from": "gpt", "value": "It is sunny."},
    ]
}


BEGIN, END = NEXT_SPEAKER.index("{% for call"), NEXT_SPEAKER.index("{% endif %}\n{%-")
WITHOUT_CALLS = NEXT_SPEAKER[:BEGIN] + NEXT_SPEAKER[END:]
WITHOUT_TOOLS = "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + (
    "<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "talk", "learnt", "ends"),
    [
        (WITHOUT_CALLS, HERMES["conversations"], ["</tool_call><|observation|>It is sunny.<|user|>"], 2),
        (WITHOUT_CALLS, HERMES["conversations"][:2], ["</tool_call><|observation|>"], 2),
        (WITHOUT_TOOLS, HERMES["conversations"][:2], ["</tool_call><|user|>"], 1),
    ],
)
def test_the_next_speakers_token_ends_calls_that_are_written_as_text(template, talk, learnt, ends):
    """Also where what the text ends with is a token."""
    made = byte_level_tokenizer(pad_token="<|im_end|>")
    made.add_tokens(list(SPEAKERS), special_tokens=True)
    made.chat_template = template
    found = trained(made, {"conversations": talk})
    assert [one[one.index("</tool_call>") :] for one in found] == learnt
    assert made.convert_ids_to_tokens(end_tokens(made)) == ["<|user|>", "<|observation|>"][:ends]


def test_calls_that_are_written_as_text_are_calls(tokenizer):
    conversation = read_row(HERMES)
    _, called, result, _ = conversation.messages
    assert (called.content, [(c.name, c.arguments) for c in called.calls]) == ("I look.", [("f", '{"city": "Rome"}')])
    assert (result.content, result.name) == ("sunny", "f")
    tokenizer.chat_template = TEMPLATES["Qwen3"]
    (text,) = [tokenizer.decode(one.inputs["input_ids"]) for one in encoded(tokenizer, HERMES)][-1:]
    assert (text.count("<tool_call>"), text.count("<tool_response>")) == (1, 1)
    tokenizer.chat_template = TEMPLATES["SmolLM2"]  # has no place for calls: they are text
    assert "</tool_call><|im_end|>" in trained(tokenizer, HERMES)[0]
    assert "<tool_response>\nsunny" in tokenizer.decode(encoded(tokenizer, HERMES)[0].inputs["input_ids"])
    python = HERMES["conversations"][1] | {
        "value": "<tool_call>\n{'name': 'f', 'arguments': {'city': 'Rome'}}\n</tool_call>"
    }
    assert read_row({"conversations": [HERMES["conversations"][0], python]}).messages[1].calls == called.calls
    prose = python | {"value": "Write <tool_call>…</tool_call> around it."}
    assert read_row({"conversations": [HERMES["conversations"][0], prose]}).messages[1].content == prose["value"]


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Translate.", "input": "Guten Morgen", "output": "Good morning"},
        {"query": "Translate.\nGuten Morgen", "response": "Good morning"},
    ],
)
def test_a_question_with_its_answer_needs_no_chat_template(tokenizer, row):
    tokenizer.chat_template = None
    plain = {"prompt": "Translate.\nGuten Morgen\n", "completion": "Good morning"}
    assert encoded(tokenizer, row) == encoded(tokenizer, plain)
    with raises(RecipeError, "chat_template.jinja"):
        encoded(tokenizer, row | {"history": [["Hello", "Hi"]]})

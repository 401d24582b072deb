"""One conversation in the layouts of other tools and the templates of six families: the same tokens, the same mask."""

import json
import re
from dataclasses import dataclass, replace
from itertools import product

import pytest
from chat_templates import CALLS_FIRST, GEMMA4, OPENING, TEMPLATES, TOKENS
from expected import raises

from ftengine.api import Message
from ftengine.chat import read_conversation
from ftengine.data.read import read_rows
from ftengine.errors import DataError
from ftengine_builtins.layouts import recognised
from ftengine_builtins.tasks.causal_lm import CausalLM, CausalLMConfig
from ftengine_builtins.tasks.language_rows import read_row

NAMES = {"weather": {"city": "Rome"}, "add": {"a": 2, "b": 2.5, "note": 'naïve "é"', "deep": {"list": [1, None, True]}}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Does {name}.",
            "parameters": {"type": "object", "properties": {key: {"type": "string"} for key in arguments}},
        },
    }
    for name, arguments in NAMES.items()
]


@dataclass(frozen=True)
class Said:
    role: str
    text: str
    thought: str = ""
    calls: tuple[str, ...] = ()
    weight: int | None = None


@dataclass(frozen=True)
class Talk:
    kind: str
    said: tuple[Said, ...]
    tools: bool = False


def _talks():
    texts = ("What is 2 + 2?", "And in Rome,\nwhat is the weather?", "Thanks 😀!")
    replies = ("Four.", "It is sunny.\n\n1. Sì", "You are welcome.")
    for turns, system in product((1, 2, 3), (False, True)):
        begin = (Said("system", "Be brief."),) if system else ()
        pairs = [(Said("user", texts[i]), Said("assistant", replies[i])) for i in range(turns)]
        yield Talk("plain", (*begin, *sum(pairs, ())))
        yield Talk("parts", (*begin, *sum(pairs, ())))
        for which in {"all": range(turns), "last": (turns - 1,), "first": (0,)}.values():
            thinking = [(q, replace(a, thought="It is even.") if i in which else a) for i, (q, a) in enumerate(pairs)]
            yield Talk("thoughts", (*begin, *sum(thinking, ())))
        for weights in ((0, 1, 1), (1, 0, 1))[: turns - 1]:
            weighted = [(q, replace(a, weight=weights[i])) for i, (q, a) in enumerate(pairs)]
            yield Talk("weights", (*begin, *sum(weighted, ())))
        for calls in (("weather",), ("add", "weather")):
            asked = (Said("user", texts[1]), Said("assistant", "", calls=calls))
            loop = (*asked, *(Said("tool", f'{{"{call}": 21}}') for call in calls), Said("assistant", replies[1]))
            yield Talk("calls", (*begin, *sum(pairs[1:], ()), *(loop if turns < 3 else asked)), tools=True)


TALKS = list(dict.fromkeys(_talks()))


def openai(talk):
    """Arguments as text, ids, weights, parts."""
    messages, number, waiting = [], 0, []
    for said in talk.said:
        content = [{"type": "text", "text": said.text}] if talk.kind == "parts" else said.text
        message = {"role": said.role, "content": content}
        message |= {"tool_call_id": waiting.pop(0)} if said.role == "tool" else {}
        if said.calls:
            message |= {"content": None, "tool_calls": []}
            for name in said.calls:
                function = {"name": name, "arguments": json.dumps(NAMES[name], separators=(",", ":"))}
                message["tool_calls"].append({"id": f"call{number}", "type": "function", "function": function})
                waiting.append(f"call{number}")
                number += 1
        message |= {"reasoning_content": said.thought} if said.thought else {}
        messages.append(message | ({} if said.weight is None else {"weight": said.weight}))
    return {"messages": messages, **({"tools": TOOLS} if talk.tools else {})}


def trl(talk):
    """Arguments as mappings, results with the tool's name, no weights."""
    if talk.kind == "weights":
        return None
    messages, called = [], []
    for said in talk.said:
        message = {"role": said.role, "content": said.text}
        if said.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": n, "arguments": NAMES[n]}} for n in said.calls
            ]
            called = list(said.calls)
        message |= {"name": called.pop(0)} if said.role == "tool" else {}
        messages.append(message | ({"thinking": said.thought} if said.thought else {}))
    if sum(said.role == "assistant" for said in talk.said) == 1:
        return {"prompt": messages[:-1], "completion": messages[-1:], **({"tools": TOOLS} if talk.tools else {})}
    return {"messages": messages, **({"tools": TOOLS} if talk.tools else {})}


def _inline(said):
    return f"<think>\n{said.thought}\n</think>\n\n{said.text}" if said.thought else said.text


def sharegpt(talk):
    """Calls as JSON text of their own role, the system message and tools beside it."""
    if talk.kind == "weights":
        return None
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    turns = []
    for said in talk.said:
        if said.calls:
            calls = [{"name": name, "arguments": NAMES[name]} for name in said.calls]
            turns.append({"from": "function_call", "value": json.dumps(calls if len(calls) > 1 else calls[0])})
        elif said.role != "system":
            turns.append({"from": names[said.role], "value": _inline(said)})
    system = talk.said[0].text if talk.said[0].role == "system" else ""
    return {"conversations": turns, "system": system, "tools": json.dumps([t["function"] for t in TOOLS] * talk.tools)}


def alpaca(talk, prompt="instruction", response="output"):
    if talk.tools or talk.kind == "weights":
        return None
    begin = talk.said[0].role == "system"
    said = [_inline(one) for one in talk.said[begin:]]
    pairs = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    question, _, second = pairs[-1][0].partition("\n")
    row = {prompt: question, "input": second, response: pairs[-1][1], "history": pairs[:-1]}
    if prompt != "instruction":
        row = {**row, prompt: pairs[-1][0], "input": None}
    return row | {"system": talk.said[0].text if begin else None}


def ms_swift(talk):
    """A message a call, `loss` for the weight; or queries with responses."""
    if talk.kind == "plain":
        return alpaca(talk, "query", "response")
    messages = []
    for said in talk.said:
        role = {"tool": "tool_response"}.get(said.role, said.role)
        messages += [
            {"role": "tool_call", "content": json.dumps({"name": name, "arguments": NAMES[name]})}
            for name in said.calls
        ] or [{"role": role, "content": _inline(said), **({} if said.weight is None else {"loss": bool(said.weight)})}]
    return {"messages": messages, **({"tools": TOOLS} if talk.tools else {})}


def axolotl(talk):
    if talk.tools or talk.kind == "plain":
        return None
    messages = [{"role": one.role, "content": _inline(one), "train": one.weight != 0} for one in talk.said]
    return {"messages": messages}


LAYOUTS = {"trl": trl, "sharegpt": sharegpt, "alpaca": alpaca, "ms-swift": ms_swift, "axolotl": axolotl}


def without_ids(conversation):
    messages = (
        replace(m, call_id=None, calls=tuple(replace(call, id=None) for call in m.calls)) for m in conversation.messages
    )
    return replace(conversation, messages=tuple(messages), prompt_length=0)


@pytest.fixture(scope="module")
def tokenizer():
    from ftengine.testing.models import byte_level_tokenizer

    made = byte_level_tokenizer(pad_token="<|im_end|>")  # what ends a turn is the padding too
    made.add_tokens(list(TOKENS), special_tokens=True)
    return made


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_conversation(layout):
    seen = 0
    for talk in TALKS:
        if (row := LAYOUTS[layout](talk)) is not None:
            assert without_ids(read_row(row)) == without_ids(read_conversation(openai(talk)))
            assert recognised(row)[0] in (layout, "messages", "ms-swift")
            assert CausalLM().view(row).identity == CausalLM().view(openai(talk)).identity
            seen += 1
    assert seen >= 12


def encoded(tokenizer, row, **options):
    task = CausalLM(CausalLMConfig(**options))
    return [task.encode(row, tokenizer, part=n) for n in range(task.parts(row, tokenizer))]


def result(tokenizer, row):
    try:
        return [(one.inputs["input_ids"], one.inputs["labels"]) for one in encoded(tokenizer, row)]
    except DataError as error:
        return "refused", str(error)


def rendered(tokenizer, talk, family):
    """Write a conversation with transformers alone, arguments and thoughts as the family wants them."""
    messages = openai(replace(talk, kind=""))["messages"]
    for message in messages:
        message.pop("weight", None)
        thought = message.pop("reasoning_content", "")
        if thought and family in ("Qwen3", "gpt-oss"):
            message["reasoning_content" if family == "Qwen3" else "thinking"] = thought
        elif thought and family != "DeepSeek-V3":  # which writes none, and would leave line breaks of it
            message["content"] = f"<think>\n{thought}\n</think>\n\n{message['content']}"
        message["content"] = message["content"] or ""
        for call in message.get("tool_calls", ()):
            text = call["function"]["arguments"]
            call["function"]["arguments"] = json.dumps(json.loads(text), ensure_ascii=False)
            if family != "DeepSeek-V3":
                call["function"]["arguments"] = json.loads(text)
    return tokenizer.apply_chat_template(messages, tools=TOOLS if talk.tools else None, tokenize=False)


REFUSED = {"SmolLM2": {"calls"}, "Gemma 3": {"calls"}}


@pytest.mark.parametrize("family", TEMPLATES)
def test_tokens_and_masks_are_the_same_and_those_of_the_whole_template(tokenizer, family):
    tokenizer.chat_template = TEMPLATES[family]
    refused = set()
    for number, talk in enumerate(TALKS):
        found = result(tokenizer, openai(talk))
        rows = [row for layout in LAYOUTS.values() if (row := layout(talk)) is not None]
        if rows:
            assert result(tokenizer, rows[number % len(rows)]) == found
        if found[0] == "refused":
            refused.add(talk.kind)
            assert len(talk.said) > 2  # names the message that the template has no place for
            continue
        ids, _ = found[-1]
        if talk.kind != "weights":
            assert ids == tokenizer(rendered(tokenizer, talk, family), add_special_tokens=False)["input_ids"]
        trained = [tokenizer.decode([t for t in row if t != -100]) for _, row in found]
        for said in talk.said:
            if said.role == "assistant" and said.weight != 0:
                assert any(said.text.strip() in text for text in trained)
            elif said.text not in ("", *(one.text for one in talk.said if one.role == "assistant" and one.weight != 0)):
                assert not any(said.text in text for text in trained)
    assert refused <= REFUSED.get(family, {"calls"})
    assert family not in REFUSED or refused == REFUSED[family]


THINKING = {
    "messages": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "Four.", "reasoning_content": "It is even."},
        {"role": "user", "content": "Twice?"},
        {"role": "assistant", "content": "Eight.", "reasoning_content": "Doubling."},
    ]
}


def trained(tokenizer, row, **options):
    examples = encoded(tokenizer, row, **options)
    return [tokenizer.decode([token for token in one.inputs["labels"] if token != -100]) for one in examples]


def test_a_turn_whose_thought_is_dropped_later_is_an_example_as_it_is_served(tokenizer):
    tokenizer.chat_template = TEMPLATES["Qwen3"]
    first, last = (
        "<think>\nIt is even.\n</think>\n\nFour.<|im_end|>",
        "<think>\nDoubling.\n</think>\n\nEight.<|im_end|>",
    )
    assert trained(tokenizer, THINKING) == [first, last]
    assert [tokenizer.decode(one.inputs["input_ids"]).count("<think>") for one in encoded(tokenizer, THINKING)] == [
        1,
        1,
    ]
    assert trained(tokenizer, THINKING, train_on="last") == [last]
    tokenizer.chat_template = TEMPLATES["gpt-oss"]
    assert [text.count("<|return|>") for text in trained(tokenizer, THINKING)] == [1, 1]
    tokenizer.chat_template = TEMPLATES["Llama 3.1"]
    assert len(trained(tokenizer, THINKING)) == 1


@pytest.mark.parametrize(
    ("thoughts", "first"),
    [
        ("train", "<think>\nIt is even.\n</think>\n\nFour.<|im_end|>"),
        ("mask", "Four.<|im_end|>"),
        ("remove", "Four.<|im_end|>"),
    ],
)
def test_thoughts_are_trained_masked_or_removed(tokenizer, thoughts, first):
    tokenizer.chat_template = TEMPLATES["Qwen3"]
    assert trained(tokenizer, THINKING, thoughts=thoughts)[0] == first
    text = tokenizer.decode(encoded(tokenizer, THINKING, thoughts=thoughts)[0].inputs["input_ids"])
    assert ("It is even." in text) == (thoughts != "remove")


def test_a_thought_is_masked_where_it_stands_and_not_where_the_answer_repeats_it(tokenizer):
    def row(thought, content):
        turn = {"role": "assistant", "content": content, "reasoning_content": thought}
        return {"messages": [{"role": "user", "content": "Where?"}, turn]}

    tokenizer.chat_template = TEMPLATES["DeepSeek-V3"]  # which drops thoughts
    dropped = row("Paris", "The capital is Paris, in France.")
    for thoughts in ("mask", "train"):
        assert trained(tokenizer, dropped, thoughts=thoughts) == [
            "The capital is Paris, in France.<｜end▁of▁sentence｜>"
        ]
    assert encoded(tokenizer, dropped)[0].counts["thoughts_dropped"] == 1
    tokenizer.chat_template = TEMPLATES["Qwen3"]
    for thought, content in (("t", "a"), ("Paris", "Paris"), ("The capital", "The capital is Paris.")):
        assert trained(tokenizer, row(thought, content), thoughts="mask") == [f"{content}<|im_end|>"]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
KINDS = {
    "answer": {"content": "Four."},
    "call": {"content": "", "tool_calls": [CALL]},
    "call with text": {"content": "Four.", "tool_calls": [CALL]},
    "several calls": {"content": "", "tool_calls": [CALL, CALL]},
}


def thinking(kind):
    """Return a row with a thought in front of an answer, of calls, or of both."""
    answer = {"role": "assistant", "reasoning_content": "It is even.", **KINDS[kind]}
    return {"messages": [{"role": "user", "content": "2 + 2?"}, answer], "tools": TOOLS}


def in_order(text):
    """Return what an answer has of a thought, calls and text, one behind the other, and marks of other models."""
    return re.findall(r"It is even\.|add|Four\.|<think>", text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thought_precedes_its_call_in_the_models_own_marks(tokenizer, kind):
    """Where a template takes a thought from is known of each kind of turn, not of a plain answer alone."""
    tokenizer.chat_template = GEMMA4
    calls, text = (
        ["add"] * len(KINDS[kind].get("tool_calls", [])),
        [KINDS[kind]["content"]] * bool(KINDS[kind]["content"]),
    )
    (whole,), (masked,) = trained(tokenizer, thinking(kind)), trained(tokenizer, thinking(kind), thoughts="mask")
    thought = ["It is even."] * bool(calls)  # of a plain answer the template writes none
    assert in_order(whole) == [*thought, *calls, *text]
    assert in_order(masked) == [*calls, *text]
    counts = encoded(tokenizer, thinking(kind))[0].counts
    assert (counts["thoughts"], counts.get("thoughts_dropped", 0)) == (1, int(not calls))
    assert "untrained_calls" not in counts


@pytest.mark.parametrize("kind", ["call", "call with text", "several calls"])
def test_a_thought_that_would_follow_its_call_is_refused(tokenizer, kind):
    tokenizer.chat_template = CALLS_FIRST
    with raises(DataError, "message 2", "task.thoughts"):
        encoded(tokenizer, thinking(kind))
    (without,) = trained(tokenizer, thinking(kind), thoughts="remove")
    assert "add" in without


def test_a_prompt_that_opens_the_thought_is_followed_by_it_or_by_its_end(tokenizer):
    tokenizer.chat_template = OPENING
    assert trained(tokenizer, THINKING) == [
        "It is even.\n</think>\n\nFour.<|im_end|>",
        "Doubling.\n</think>\n\nEight.<|im_end|>",
    ]
    plain = {"prompt": "2 + 2?", "completion": "Four."}
    assert trained(tokenizer, plain) == ["\n</think>\n\nFour.<|im_end|>"]  # what the model will have to write
    assert encoded(tokenizer, plain)[0].counts["ended_thoughts"] == 1
    assert trained(tokenizer, plain, thoughts="mask") == ["Four.<|im_end|>"]


def test_which_turns_train_on(tokenizer):
    tokenizer.chat_template = TEMPLATES["SmolLM2"]
    four, eight = "Four.<|im_end|>", "Eight.<|im_end|>"
    row = {"prompt": THINKING["messages"][:3], "completion": THINKING["messages"][3:]}
    wanted = {"completion": [eight], "assistant": [four + eight], "last": [eight]}
    for train_on, texts in wanted.items():
        assert trained(tokenizer, row, train_on=train_on, thoughts="remove") == texts
    assert trained(tokenizer, THINKING, thoughts="remove") == [four + eight]


def test_marks_of_a_template_that_reach_into_other_messages_are_an_error(tokenizer):
    tokenizer.chat_template = (
        "{% generation %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% endgeneration %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with raises(DataError, "{% generation %}", "message 2"):
        encoded(tokenizer, {"prompt": "2 + 2?", "completion": "Four."})


def test_what_no_template_has_a_place_for_is_named(tokenizer):
    tokenizer.chat_template = TEMPLATES["Qwen3"]
    developer = {"messages": [{"role": "developer", "content": "Be kind."}, *THINKING["messages"]]}
    with raises(DataError, "leaves out message 1 (developer). Give it the role system."):
        encoded(tokenizer, developer)
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    row = {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]}
    assert read_conversation(row).messages[0].media == ("image_url",)
    row["messages"].append({"role": "assistant", "content": "A cat."})
    with raises(DataError, "message 1", "'image_url'"):
        encoded(tokenizer, row)


def write_rows(folder, name, rows):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def test_llamafactorys_list_is_a_source(tmp_path):
    talks = [talk for talk in TALKS if talk.kind in ("calls", "plain")]
    rows = [sharegpt(talk) for talk in talks]
    for row in rows:
        row["talk"] = [{"who": turn["from"], "what": turn["value"]} for turn in row.pop("conversations")]
    file = write_rows(tmp_path, "talks.jsonl", rows)
    info = {
        "file_name": "talks.jsonl",
        "formatting": "sharegpt",
        "columns": {"messages": "talk", "system": "system", "tools": "tools"},
        "tags": {"role_tag": "who", "content_tag": "what"},
    }
    listed = tmp_path / "dataset_info.json"
    listed.write_text(json.dumps({"talks": info}))
    read = read_rows(str(listed))
    assert [without_ids(read_row(row)) for row in read] == [
        without_ids(read_conversation(openai(talk))) for talk in talks
    ]
    assert read.where(1).endswith("(talks.jsonl):2")
    write_rows(tmp_path, "talks.jsonl", rows[:3])
    assert len(read_rows(str(listed))) == 3  # a file beside it has changed
    for change, facts in (
        ({"format": "sharegpt"}, ("'format'", "'formatting'")),
        ({"tags": {"role_tag": "from"}}, ("(talks.jsonl):1", "`from`")),
        ({"ranking": True}, ("ranking",)),
        ({"file_name": "talk.jsonl"}, ("talk.jsonl",)),
        ({"formatting": "alpaca", "columns": {}, "tags": {}}, ("(talks.jsonl):1", "'instruction'")),
    ):
        listed.write_text(json.dumps({"talks": info | change}))
        with raises(DataError, *facts):
            read_rows(str(listed))
    listed.write_text(json.dumps({"a": info, "b": info}))
    with raises(DataError, "lists 2 data sets, 'a' and 'b'", "dataset: a"):
        read_rows(str(listed))
    with raises(DataError, "no data set 'bb'", "mean 'b'"):
        read_rows(str(listed), reader={"name": "llamafactory", "dataset": "bb"})
    assert len(read_rows(str(listed), reader={"name": "llamafactory", "dataset": "b"})) == 3
    assert file


@pytest.mark.parametrize("reader", ["sharegpt", "alpaca", "ms-swift", "axolotl"])
def test_a_layout_may_be_named(tmp_path, reader):
    made = {**LAYOUTS, "axolotl": axolotl}[reader]
    talks = [talk for talk in TALKS if made(talk) is not None]
    file = write_rows(tmp_path, "rows.jsonl", [made(talk) for talk in talks])
    read = read_rows(file, reader={"name": reader})
    assert "messages" in read.columns
    assert [without_ids(read_row(row)) for row in read] == [
        without_ids(read_conversation(openai(talk))) for talk in talks
    ]
    with raises(DataError, "rows.jsonl:1"):
        read_rows(write_rows(tmp_path, "rows.jsonl", [{"text": "a"}]), reader={"name": reader})


def test_keys_of_axolotls_messages_are_options(tmp_path):
    rows = [{"chat": [{"who": "me", "said": "Hi"}, {"who": "bot", "said": "Hello", "train": False}]}]
    options = {
        "name": "axolotl",
        "field_messages": "chat",
        "message_property_mappings": {"role": "who", "content": "said"},
        "roles": {"user": ["me"], "assistant": ["bot"]},
    }
    (row,) = read_rows(write_rows(tmp_path, "rows.jsonl", rows), reader=options)
    assert [(message.role, message.trains) for message in read_row(row).messages] == [
        ("user", True),
        ("assistant", False),
    ]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_system_message_may_stand_beside_messages(column):
    row = {"system": "Be brief.", column: THINKING["messages"]}
    assert read_row(row).messages[0] == Message("system", "Be brief.")
    assert len(read_row(row).messages) == 5
    for role in ("system", "developer"):
        first = {"role": role, "content": "Be brief."}
        assert len(read_row({**row, column: [first, *row[column]]}).messages) == 5
        with raises(DataError, "'Be brief.'", "'Be long.'"):
            read_row({**row, column: [{**first, "content": "Be long."}, *row[column]]})


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
def test_pictures_and_sounds_beside_a_conversation_are_an_error(column):
    for row in (THINKING, {"instruction": "What is it?", "output": "A cat."}, {"prompt": THINKING["messages"]}):
        read_row({**row, column: []})
        with raises(DataError, f"`{column}`", "Take the column out"):
            read_row({**row, column: ["a.png"]})


def test_llamafactorys_columns_are_those_that_are_named(tmp_path):
    row = {"q": "2 + 2?", "input": "no", "output": "no", "a": "Four.", "system": "no", "fn": TOOLS, "pics": []}
    info = {"file_name": "rows.jsonl", "columns": {"prompt": "q", "response": "a", "tools": "fn", "images": "pics"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": info}))
    write_rows(tmp_path, "rows.jsonl", [row])
    (read,) = read_rows(str(tmp_path / "dataset_info.json"))
    conversation = read_row(read)
    assert [(message.role, message.content) for message in conversation.messages] == [
        ("user", "2 + 2?"),
        ("assistant", "Four."),
    ]
    assert json.loads(conversation.tools) == TOOLS
    write_rows(tmp_path, "rows.jsonl", [row | {"pics": ["a.png"]}])
    with raises(DataError, "`pics`", "(rows.jsonl):1"):
        read_rows(str(tmp_path / "dataset_info.json"))

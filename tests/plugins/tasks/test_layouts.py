"""One conversation in the layouts of other tools and the templates of six families: the same tokens, the same mask."""

import json
from dataclasses import dataclass, replace
from itertools import product

import pytest
from chat_templates import TEMPLATES, TOKENS

from ftengine.api import PART
from ftengine.errors import DataError
from ftengine.model import read_conversation
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
    return replace(conversation, messages=tuple(messages), given=0)


@pytest.fixture(scope="module")
def tokenizer():
    from ftengine.testing.models import byte_level_tokenizer

    made = byte_level_tokenizer(pad_token="<|im_end|>")  # what ends a turn is the padding too
    made.add_tokens(list(TOKENS), special_tokens=True)
    return made


def test_there_are_forty_conversations_and_more():
    assert len(TALKS) >= 40
    assert {talk.kind for talk in TALKS} == {"plain", "parts", "thoughts", "weights", "calls"}


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
    return [task.encode({**row, PART: n}, tokenizer) for n in range(task.parts(row, tokenizer))]


def result(tokenizer, row):
    try:
        return [(one["input_ids"], one["labels"]) for one in encoded(tokenizer, row)]
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
        elif thought:
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

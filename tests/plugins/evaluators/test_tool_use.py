"""Calls of tools in what models write, and the figures on them."""

import json

import numpy as np
import pytest
from chat_templates import CALLED, TEMPLATES, TOKENS, XML
from expected import raises

from ftengine.api import Conversation, Message, ToolCall
from ftengine.chat import render
from ftengine.chat.answers import read_calls, reads_calls
from ftengine.errors import DataError, InputError
from ftengine.evaluation.figures import measure
from ftengine.evaluation.weights import Weights
from ftengine.testing.models import byte_level_tokenizer
from ftengine_builtins.evaluators import ToolUse
from ftengine_builtins.evaluators.tool_use import same_calls
from ftengine_builtins.tasks.causal_lm import CausalLM

ASKED = Message("user", "Weather?")
ADD = ToolCall("add", '{"a": 2, "deep": {"list": [1, null, "}"]}}')
FIND = ToolCall("find_it", '{"city": "Rome"}')
F = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
LISTED = CALLED.replace(
    "CALLS",
    """[TOOL_CALLS] [{% for c in m.tool_calls %}{"name": "{{ c.function.name }}", "arguments": """
    """{{ c.function.arguments | tojson }}, "id": "{{ c.id }}"}{{ ', ' if not loop.last }}{% endfor %}]""",
)
"""A template that writes calls as Mistral's do, in a list."""


@pytest.fixture(scope="module")
def tokenizer():
    made = byte_level_tokenizer(pad_token="<|im_end|>")
    made.add_tokens(list(TOKENS), special_tokens=True)
    return made


@pytest.mark.parametrize("family", ["Qwen3", "Llama 3.1", "gpt-oss", "DeepSeek-V3"])
@pytest.mark.parametrize("calls", [(ADD,), (ADD, FIND)])
def test_what_a_template_writes_of_calls_is_read_as_they_are(tokenizer, family, calls):
    tokenizer.chat_template = TEMPLATES[family]
    asked, answer = Conversation((ASKED,)), Message("assistant", "", calls=calls)
    prompt = render(tokenizer, asked, prompt=True)
    try:
        whole = render(tokenizer, Conversation((ASKED, answer)))
    except DataError:
        assert len(calls) == 2  # it writes one call a message
        return
    assert read_calls(tokenizer, tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]) == list(calls)


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ('Sure.\n<tool_call>\n{"arguments": {"a": 1}, "name": "add"}\n</tool_call>', ["add"]),
        ('{"name": "add", "parameters": {"a": 1}}', ["add"]),
        ('{"name": "add", "parameters": {"a": 1}}; {"name": "f", "parameters": {}}', ["add", "f"]),
        ('[{"name": "add", "arguments": {"a": 1}}, {"name": "f", "arguments": {}}]', ["add", "f"]),
        ('<think>\n{"name": "f", "arguments": {}}\n</think>\n\nNo.', []),
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1}\n</tool_call>', []),
        ('{"name": "add", "arguments": [1]}', []),
        ('{"city": "Rome"}', []),
        ('{"type": "function", "name": "add", "parameters": {"a": 1}}', ["add"]),
        (F.replace("{}", '{"q": {"name": "x", "arguments": {"a": {}}}}'), ["f"]),
        (f"<think>\nMaybe {F}", []),
        ('I could write {"name": "f", "arguments": {"a": 1}} but I will not.', []),
        (f'{F}\n<tool_call>\n{{"name": "g", "arguments": {{"b"\n</tool_call>', []),
        (f'{F}\n<tool_call>\n{{"arguments": {{"b"\n</tool_call>', []),
        (f'{F}\n<tool_call>\n{{"arguments": {{}}, "name": "g"}}\n</tool_call>', ["f", "g"]),
        ("I would call add(1).", []),
        ("", []),
    ],
)
@pytest.mark.parametrize("family", ["SmolLM2", "Qwen3"])
def test_calls_are_read_as_models_write_them(tokenizer, family, written, names):
    tokenizer.chat_template = TEMPLATES[family]
    found = read_calls(tokenizer, tokenizer(written, add_special_tokens=False)["input_ids"])
    assert [call.name for call in found] == names


@pytest.mark.parametrize("before", ["", "I look.\n"])
def test_each_call_of_a_list_is_read(tokenizer, before):
    tokenizer.chat_template = LISTED
    calls = '{"name": "f", "arguments": {"a": 1}, "id": "000000001"}, {"name": "g", "arguments": {}, "id": "000000002"}'
    for written, names in ((f"[{calls}]", ["f", "g"]), (f"[{calls[:-9]}", [])):
        ids = tokenizer(f"{before}[TOOL_CALLS] {written}", add_special_tokens=False)["input_ids"]
        assert [call.name for call in read_calls(tokenizer, ids)] == names


def test_calls_that_are_not_read_as_a_template_writes_them_are_an_error(tokenizer):
    conversation = Conversation((ASKED, Message("assistant", "", calls=(FIND, ADD))))
    readable = {}
    for name, template in {"Qwen3": TEMPLATES["Qwen3"], "list": LISTED, "XML": XML}.items():
        tokenizer.chat_template = template
        readable[name] = reads_calls(tokenizer, conversation, 1)
    assert readable == {"Qwen3": True, "list": True, "XML": False}
    with raises(InputError, "chat template"):
        ToolUse().keep({"reference_calls": "[]", "calls": None})


@pytest.mark.parametrize("family", ["SmolLM2", "Qwen3"])
def test_a_model_is_asked_where_a_row_calls_tools_last(tokenizer, family):
    tokenizer.chat_template = TEMPLATES[family]
    called = {"role": "assistant", "content": F}
    closing = [{"role": "tool", "content": "mild"}, {"role": "assistant", "content": "It is mild."}]
    later = [{"role": "user", "content": "Thanks."}, {"role": "assistant", "content": "Yours."}]
    for calls, upto in ((True, 1), (False, 5)):
        row = {"messages": [{"role": "user", "content": "Weather?"}, called, *closing, *later]}
        asked = CausalLM().asked(row, tokenizer, calls=calls)
        assert (len(asked.messages), asked.calls is not None) == (upto, calls)
    assert ToolUse().generation["calls"]


def prediction(wanted, made):
    def listed(calls):
        return json.dumps([{"name": name, "arguments": arguments} for name, arguments in calls])

    return {"reference_calls": None if wanted is None else listed(wanted), "calls": listed(made)}


CASES = {
    "same": ([("f", {"a": 1, "b": "x"})], [("f", {"a": 1, "b": "x"})], (1, 1, 1, 1)),
    "other order of keys": ([("f", {"a": 1, "b": "x"})], [("f", {"b": "x", "a": 1.0})], (1, 1, 1, 0)),
    "other order of calls": ([("f", {}), ("g", {})], [("g", {}), ("f", {})], (1, 1, 1, 0)),
    "other argument": ([("f", {"a": 1})], [("f", {"a": "1"})], (1, 1, 0, 0)),
    "other function": ([("f", {"a": 1})], [("g", {"a": 1})], (1, 0, 0, 0)),
    "one too few": ([("f", {}), ("f", {})], [("f", {})], (1, 0, 0, 0)),
    "one too many": ([("f", {})], [("f", {}), ("f", {})], (1, 0, 0, 0)),
    "none": ([("f", {})], [], (0, 0, 0, 0)),
}
FIGURES = ("call_parses", "right_function", "right_call", "exact_call")


@pytest.mark.parametrize("case", CASES)
def test_each_figure_of_an_answer_that_is_due_to_call(case):
    wanted, made, figures = CASES[case]
    kept = ToolUse().keep(prediction(wanted, made))
    assert tuple(kept[name] for name in FIGURES) == figures
    assert np.isnan(kept["no_call_when_none_due"])


def test_no_call_is_right_where_none_is_due_and_no_matter_without_tools():
    evaluator = ToolUse()
    kept = [evaluator.keep(prediction([], made)) for made in ([], [("f", {})])]
    assert [one["no_call_when_none_due"] for one in kept] == [1, 0]
    assert all(np.isnan(one["right_call"]) for one in kept)
    assert all(np.isnan(value) for value in evaluator.keep(prediction(None, [])).values())


def test_figures_are_shares_with_trials_and_right_answers():
    evaluator = ToolUse()
    kept = [evaluator.keep(prediction(wanted, made)) for wanted, made, _ in CASES.values()]
    kept += [evaluator.keep(prediction([], made)) for made in ([], [], [("f", {})])]
    kept.append(evaluator.keep(prediction(None, [])))
    rows = {name: np.array([one[name] for one in kept]) for name in kept[0]}
    scores = evaluator.score(rows, np.ones(len(kept)))
    shares = dict(zip(FIGURES, (7 / 8, 4 / 8, 3 / 8, 1 / 8), strict=True))
    assert scores == pytest.approx(shares | {"no_call_when_none_due": 2 / 3})
    assert evaluator.trials(rows) == {**dict.fromkeys(FIGURES, 8), "no_call_when_none_due": 3}
    assert np.nansum(evaluator.score_examples(rows).right) == 3 + 2
    told = dict(evaluator.details(rows, None))
    assert (told["with_calls"], told["without_calls"], told["calls_due"]) == (8, 3, 10 / 8)
    found = measure(evaluator, rows, Weights(np.arange(len(kept)), 0, 100))
    assert (found["right_call"].n, found["no_call_when_none_due"].n) == (8, 3)  # of 12 examples
    twice = Weights(np.repeat(np.arange(len(kept) // 2), 2), 0, 100)
    assert measure(evaluator, rows, twice)["right_call"].n == 4


def test_true_is_not_one():
    def calls(value):
        return [{"name": "f", "arguments": {"a": value}}]

    assert same_calls(calls([1, {"b": 2.0}]), calls([1.0, {"b": 2}]))
    assert not same_calls(calls(True), calls(1))
    assert same_calls(calls(True) + calls(1), calls(1) + calls(True))

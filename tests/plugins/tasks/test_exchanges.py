"""Answers of several turns: replies are written as the template writes them, and only what was drawn is trained."""

import re
from pathlib import Path

import pytest
import torch
from chat_templates import QWEN3, SMOLLM2, TOKENS
from expected import raises

from ftengine.api import Conversation, DrawRequest, LoadedModel, Message, ToolCall
from ftengine.chat import render
from ftengine.errors import DataError
from ftengine.generation import Answer
from ftengine.testing.models import tiny_llama
from ftengine_builtins.tasks import GRPO
from ftengine_builtins.tasks.drawn_answers import DrawnAnswer
from ftengine_builtins.tasks.exchanges import Environment, Started, reply_tokens

REPLIES = """
import time


def again(answer, turns):
    return f"Again, {len(turns)}."


def counts(answer, limit, turns):
    return None if len(turns) > 2 * limit else "More."


def tool(answer, calls):
    return [f"{call['arguments']['a'] + 1}" for call in calls] or None


def long(answer):
    return "a fox " * 100


def breaks(answer):
    return 1 / 0


def number(answer):
    return 3


def hangs(answer):
    time.sleep(60)


def score(answer, turns):
    return len(turns) + (answer == turns[-1]["content"]) / 2
"""
TOOLS = '[{"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}]'


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("replies") / "env.py"
    file.write_text(REPLIES)
    return file


@pytest.fixture(scope="module")
def loaded():
    module, tokenizer = tiny_llama()
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    module.resize_token_embeddings(len(tokenizer))
    tokenizer.chat_template = SMOLLM2
    return LoadedModel(module.eval(), tokenizer, "", "causal-lm", max_length=512)


def encoded(processor, text):
    return processor(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("template", [SMOLLM2, QWEN3], ids=["SmolLM2", "Qwen3"])
def test_a_reply_is_what_the_template_writes_between_two_turns(loaded, template, monkeypatch):
    processor = loaded.processor
    monkeypatch.setattr(processor, "chat_template", template)
    asked, answer = Conversation((Message("user", "2 + 2?"),)), Message("assistant", "Is it four")
    replies = (Message("user", "Sure?"),)
    whole = render(processor, Conversation((*asked.messages, answer, *replies)), prompt=True)
    start = render(processor, asked, prompt=True)
    assert encoded(processor, whole)[
        len(encoded(processor, whole[: whole.index("<|im_end|>", len(start)) + 10])) :
    ] == (reply_tokens(processor, asked, ["Sure?"], []))


def test_results_of_tools_stand_where_the_template_has_them(loaded, monkeypatch):
    monkeypatch.setattr(loaded.processor, "chat_template", QWEN3)
    asked = Conversation((Message("user", "2 + 2?"),), tools=TOOLS)
    text = loaded.processor.decode(reply_tokens(loaded.processor, asked, ["4", "five"], ["add", "add"]))
    call = ToolCall("add", "{}")
    turns = (Message("assistant", "", calls=(call, call)), Message("tool", "4"), Message("tool", "five"))
    whole = render(loaded.processor, Conversation((*asked.messages, *turns), tools=TOOLS), prompt=True)
    assert whole.endswith(text)
    assert text.count("<tool_response>") == 2
    assert "tool_call" not in text


def go_on(loaded, file, name, drawn, *, row=None, tools="", most=3, longest=8, timeout=5.0, first=None):
    """Return the answer that begins with `first`, and the prompts of its further turns."""
    environment = Environment(f"{file}:{name}", timeout, "", 1, most=most, longest=longest, new=4)
    asked = Conversation((Message("user", "2 + 2?"),), tools=tools)
    prompt = encoded(loaded.processor, render(loaded.processor, asked, prompt=True))
    end = loaded.processor.convert_tokens_to_ids("<|im_end|>")
    ids, ended = first or ([7, 7, end], True)
    answer = DrawnAnswer(prompt, "2 + 2?", ids, loaded.processor.decode(ids[:-1]), ended, [-1.0] * len(ids))
    answers, prompts, waiting = [answer], [], iter(drawn)

    def draw(some, numbers):
        prompts.extend(some)
        return [Answer(next(waiting), end, [-2.0] * 3) for _ in numbers]

    (answer,) = environment.go_on(loaded, answers, [Started(asked, row or {}, 5)], draw)
    return answer, prompts


def test_what_was_drawn_is_kept_and_replies_are_not_trained(loaded, file):
    """Also where tokens are not those that their text has: two of one letter, which would be one."""
    answer, prompts = go_on(loaded, file, "again", [[9, 8], [6, 6]])
    ids, end = answer.ids, loaded.processor.convert_tokens_to_ids("<|im_end|>")
    drawn = [token for token, own in zip(ids, answer.own, strict=True) if own]
    assert drawn == [7, 7, end, 9, 8, end, 6, 6, end]
    assert (answer.tokens, answer.ended, answer.text) == (9, True, loaded.processor.decode([6, 6]))
    assert prompts[1] == answer.prompt + ids[:-3]
    assert [turn["role"] for turn in answer.turns] == ["assistant", "user"] * 2 + ["assistant"]
    assert [turn["content"] for turn in answer.turns[1::2]] == ["Again, 1.", "Again, 3."]
    inputs = answer.features(1.0, 1.0).inputs
    assert [label for label in inputs["labels"] if label != -100] == drawn
    where = [label != -100 for label in inputs["labels"]]
    assert [x for x, own in zip(inputs["sampled_logps"], where, strict=True) if own] == [-1.0] * 3 + [-2.0] * 6
    assert not any(x for x, own in zip(inputs["sampled_logps"], where, strict=True) if not own)
    assert "Again, 1." in loaded.processor.decode(ids)


def test_where_an_exchange_ends(loaded, file):
    def turns(*args, **options):
        answer, _ = go_on(loaded, file, *args, **options)
        return sum(turn["role"] == "assistant" for turn in answer.turns)

    assert turns("again", [[9, 8]] * 9, most=4) == 4
    assert turns("counts", [[9, 8]] * 9, row={"limit": 1}) == 2
    assert turns("again", [], first=([7, 7, 7], False)) == 1
    answer, _ = go_on(loaded, file, "long", [[9, 8]], most=2)
    assert len(answer.ids) - answer.tokens < 8 + 20  # the reply is cut, and the template adds roles
    assert turns("long", [[9, 8]] * 60, most=60, longest=100) < 60


@pytest.mark.parametrize(
    ("name", "fact"), [("breaks", "ZeroDivisionError"), ("number", "neither a text"), ("hangs", "longer than")]
)
def test_a_reply_that_fails_ends_the_answer_and_takes_its_reward(loaded, file, name, fact):
    answer, _ = go_on(loaded, file, name, [], timeout=0.5)
    assert fact in answer.error
    made = task(file, name)
    ((scored,),) = made.score([{"prompt": "a"}], [[answer]])
    assert (scored.scored.total, scored.scored.error) == (None, answer.error)


def test_calls_are_read_and_their_results_are_a_tools(loaded, file, monkeypatch):
    monkeypatch.setattr(loaded.processor, "chat_template", QWEN3)
    end = loaded.processor.convert_tokens_to_ids("<|im_end|>")
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 41}}\n</tool_call>'
    first = [*encoded(loaded.processor, call), end], True
    answer, _ = go_on(loaded, file, "tool", [[9, 8]], tools=TOOLS, first=first, most=4, row={"tools": TOOLS})
    assert answer.turns[0]["calls"] == [{"name": "add", "arguments": {"a": 41}}]
    assert answer.turns[1] == {"role": "tool", "content": "42"}
    assert [turn["role"] for turn in answer.turns] == ["assistant", "tool", "assistant"]


def test_the_calculator_of_the_docs_calculates(loaded, tmp_path):
    """docs/on-policy.md, "Several turns": both functions, as they stand there."""
    text = (Path(__file__).parents[3] / "docs" / "on-policy.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def calculate" in block)
    (tmp_path / "tools.py").write_text(code)
    end = loaded.processor.convert_tokens_to_ids("<|im_end|>")
    first = [*encoded(loaded.processor, "calculate(6 * 7)"), end], True
    answer, _ = go_on(loaded, tmp_path / "tools.py", "calculate", [encoded(loaded.processor, "42")], first=first)
    assert [turn["content"] for turn in answer.turns] == ["calculate(6 * 7)", "42", "42"]
    rewards = [{"function": f"{tmp_path / 'tools.py'}:right"}]
    made = task(tmp_path / "tools.py", "calculate", rewards=rewards)
    ((scored,),) = made.score([{"prompt": "a", "wanted": "42"}], [[answer]])
    assert scored.total == pytest.approx(1.1)


def task(file, name, **options):
    given = {"rewards": [{"function": f"{file}:score"}], "reply": f"{file}:{name}", "max_new_tokens": 4, "max_turns": 3}
    return GRPO(GRPO.Config(**{**given, "max_reply_tokens": 8, "num_generations": 4, "scorers": 1, **options}))


def test_log_probabilities_of_drawn_tokens_are_those_of_the_loss(loaded, file, monkeypatch):
    """Of every turn, and none of a reply's; draws are the same again, whatever else is drawn."""
    made, rows = task(file, "again", updates_per_draw=2), [{"prompt": "red"}, {"prompt": "a green fox"}]
    end = loaded.processor.convert_tokens_to_ids("the")
    monkeypatch.setattr(
        "ftengine_builtins.tasks.answers_prompts.stop_tokens", lambda loaded: tuple(range(end, end + 90))
    )

    def drawn(rows):
        with torch.no_grad():
            return made.draw(DrawRequest(loaded, rows, 0, 3, 4, lambda: pytest.fail("no reference")))

    groups = drawn(rows)
    answers = [one for group in groups for one in group]
    assert {len(one.turns) for one in answers} > {1}
    for one in answers:
        assert one.drawn == pytest.approx(one.sampled, abs=1e-4)
        assert len(one.drawn) == one.tokens
    assert [one.ids for one in drawn(rows[::-1])[1]] == [one.ids for one in groups[0]]
    scored = made.score(rows, groups)
    assert [one.total for one in scored[0]] == [len(one.turns) + 0.5 for one in groups[0]]
    draws = made.learn_from(scored)
    batch = made.collate(draws.examples, loaded.processor)
    _, _, sums, tokens = made.learn(loaded.module, batch)
    assert tokens == sum(one["tokens"] for one in draws.records if one["advantage"])
    assert sums[made.token_figures.index("sampler_gap")].item() / tokens < 1e-4


def test_replies_need_a_chat_template_and_their_columns(loaded, file, monkeypatch):
    with raises(DataError, "`limit`", "counts"):
        task(file, "counts").encode({"prompt": "a"}, loaded.processor)
    length = task(file, "again").encode({"prompt": "a"}, loaded.processor).length
    assert length == task(file, "again", max_turns=2).encode({"prompt": "a"}, loaded.processor).length + 4 + 8
    with raises(ValueError, "max_turns", "reply"):
        task(file, "again", reply=None)
    monkeypatch.setattr(loaded.processor, "chat_template", None)
    with raises(DataError, "task.reply", "chat template"):
        task(file, "again").encode({"prompt": "a"}, loaded.processor)

"""A run on conversations with calls of tools, measured by evaluator tool-use."""

import pytest
from chat_templates import QWEN3, TOKENS, XML
from expected import raises
from rows import write_rows

from ftengine import fine_tune, plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import prepare_data
from ftengine.errors import DataError
from ftengine.testing.models import tiny_llama

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "look")]
CALLS = [{"function": {"name": "add", "arguments": {"a": 1}}}]


def model_folder(folder, template):
    """Save a tiny Llama with a chat template; return the folder."""
    model, tokenizer = tiny_llama()
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    tokenizer.chat_template = template
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_calls_that_a_template_writes_as_they_are_not_read_are_refused_before_weights_are_read(
    build_chat_recipe, tmp_path, no_weights
):
    called, said = {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "assistant", "content": "Hi."}
    rows = [{"messages": [{"role": "user", "content": f"Add {n}"}, said if n else called]} for n in range(4)]
    recipe = build_chat_recipe(
        model__source=model_folder(tmp_path / "model", XML),
        data__train=write_rows(tmp_path / "said.jsonl", rows[1:]),
        data__test=write_rows(tmp_path / "calls.jsonl", rows[::-1]),
        data__leaks="warn",
        evaluate=["tool-use"],
        output=str(tmp_path / "run"),
    )
    for command in (plan, fine_tune):
        with raises(DataError, "evaluate: ", "calls.jsonl:4", "chat template", "recipe key 'evaluate'"):
            command(recipe)


def test_marks_in_messages_that_are_tokens_without_a_role_are_an_alarm(build_chat_recipe, tmp_path):
    said = {"role": "assistant", "content": "Hi."}
    rows = [{"messages": [{"role": "user", "content": f"Add {n} <|eot_id|>"}, said]} for n in range(40)]
    recipe = build_chat_recipe(
        model__source=model_folder(tmp_path / "model", QWEN3),
        data__train=write_rows(tmp_path / "marks.jsonl", rows),
        output=str(tmp_path / "run"),
    )
    data = prepare_data(Experiment.open(recipe))
    assert ("template-marks", "alarm") in [(one.source, one.level) for one in data.audit.findings]


@pytest.mark.slow
def test_base_and_tuned_are_measured_by_their_calls(build_chat_recipe, tmp_path):
    """A tiny base calls nothing: never right where a call is due, always where none is."""
    called, said = {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "assistant", "content": "Hi."}
    rows = [
        {
            "messages": [{"role": "user", "content": f"{'Add' if n % 3 else 'Hello'} {n}"}, called if n % 3 else said],
            "tools": TOOLS,
        }
        for n in range(48)
    ]
    recipe = build_chat_recipe(
        model__source=model_folder(tmp_path / "model", QWEN3),
        data__train=write_rows(tmp_path / "calls.jsonl", rows),
        data__validation=0.25,
        data__near_duplicates=None,
        strategy={"name": "full"},
        train__epochs=1,
        train__learning_rate=0.01,
        evaluate=[{"name": "tool-use", "max_new_tokens": 80}],
        output=str(tmp_path / "run"),
    )
    run = fine_tune(recipe)
    base, tuned, difference = (run.evaluation[side] for side in ("base", "tuned", "difference"))
    for side in (base, tuned):
        assert side["right_call"]["low"] < side["right_call"]["high"]
    assert (base["right_call"]["value"], base["call_parses"]["value"]) == (0, 0)
    assert base["no_call_when_none_due"]["value"] == 1
    assert difference["right_call"]["value"] == tuned["right_call"]["value"]

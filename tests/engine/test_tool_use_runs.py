"""A run on conversations with calls of tools, measured by evaluator tool-use."""

import pytest
from chat_templates import QWEN3, TOKENS
from rows import write_rows

from ftengine import fine_tune
from ftengine.testing.models import tiny_llama

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in ("add", "look")]
CALLS = [{"function": {"name": "add", "arguments": {"a": 1}}}]


@pytest.mark.slow
def test_base_and_tuned_are_measured_by_their_calls(build_chat_recipe, tmp_path):
    """A tiny base calls nothing: never right where a call is due, always where none is."""
    model, tokenizer = tiny_llama()
    tokenizer.add_tokens(list(TOKENS), special_tokens=True)
    tokenizer.chat_template = QWEN3
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    called, said = {"role": "assistant", "content": "", "tool_calls": CALLS}, {"role": "assistant", "content": "Hi."}
    rows = [
        {
            "messages": [{"role": "user", "content": f"{'Add' if n % 3 else 'Hello'} {n}"}, called if n % 3 else said],
            "tools": TOOLS,
        }
        for n in range(48)
    ]
    recipe = build_chat_recipe(
        model__source=str(tmp_path / "model"),
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

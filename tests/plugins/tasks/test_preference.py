"""Preference rows: the layouts of other tools, what is trained on, cutting, and rows that are refused."""

import pytest
from chat_templates import TEMPLATES, TOKENS
from expected import raises
from tiny import byte_level_tokenizer

from ftengine.api import Recognised
from ftengine.data.read import read_rows
from ftengine.errors import DataError
from ftengine.model import IGNORED
from ftengine_builtins.preference_layouts import preference
from ftengine_builtins.tasks import Preference

ASKED, GOOD, BAD = "How are you?", "I am fine, thank you.", "Go away, you fool!"


def said(role, content):
    return {"role": role, "content": content}


USER, CHOSEN, REJECTED = said("user", ASKED), said("assistant", GOOD), said("assistant", BAD)
HUMAN, FINE, FOOL = ({"from": who, "value": text} for who, text in (("human", ASKED), ("gpt", GOOD), ("gpt", BAD)))
LAYOUTS = {
    "texts": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "lists": {"prompt": [USER], "chosen": [CHOSEN], "rejected": [REJECTED]},
    "implicit": {"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]},
    "ultrafeedback": {
        "prompt": ASKED,
        "messages": [USER, CHOSEN],
        "score_chosen": 8.0,
        "chosen": [USER, CHOSEN],
        "rejected": [USER, REJECTED],
    },
    "openai": {
        "input": {"messages": [USER], "tools": []},
        "preferred_output": [CHOSEN],
        "non_preferred_output": [REJECTED],
    },
    "ms-swift": {"messages": [USER, CHOSEN], "rejected_response": BAD},
    "ms-swift messages": {"messages": [USER, CHOSEN], "rejected_messages": [USER, REJECTED]},
    "ms-swift query": {"query": ASKED, "response": GOOD, "rejected_response": BAD},
    "axolotl": {"messages": [USER], "chosen": CHOSEN, "rejected": REJECTED},
    "axolotl intel": {"question": ASKED, "chosen": GOOD, "rejected": BAD},
    "axolotl argilla": {"instruction": ASKED, "chosen_response": GOOD, "rejected_response": BAD},
    "llamafactory alpaca": {"instruction": ASKED, "input": "", "chosen": GOOD, "rejected": BAD},
    "llamafactory sharegpt": {"conversations": [HUMAN], "chosen": FINE, "rejected": FOOL},
}


@pytest.fixture(scope="module")
def tokenizer():
    found = byte_level_tokenizer(pad_token="<|im_end|>")
    found.add_tokens(list(TOKENS), special_tokens=True)
    found.chat_template = TEMPLATES["SmolLM2"]
    return found


def answer(features, tokenizer, start=""):
    pairs = zip(features.inputs[f"{start}input_ids"], features.inputs[f"{start}labels"], strict=True)
    return tokenizer.decode([token for token, label in pairs if label != IGNORED])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_pair(layout, tokenizer):
    task, wanted = Preference(), Preference().encode(LAYOUTS["lists"], tokenizer)
    row = LAYOUTS[layout]
    task.check_columns(list(row))
    found = task.encode(row, tokenizer)
    assert (found.inputs, found.weight) == (wanted.inputs, wanted.weight)
    seen = Preference.recognise(list(row), [row])
    name = {"texts": "", "lists": "trl", "implicit": "trl", "ultrafeedback": "trl"}.get(layout, layout.split()[0])
    assert seen == Recognised(3, layout=layout.split()[-1] if name == "llamafactory" else name)
    assert [key for key in found.counts if "layout" in key] == [f"layout.{seen.layout}"] * bool(seen.layout)
    view = task.view(row)
    both = [view.target[side] for side in ("chosen", "rejected")]
    assert (list(view.inputs), both) == ([ASKED], [[GOOD], [BAD]]) or both == [GOOD, BAD]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("\n\nHuman: Hi\n\nAssistant:", (" I am fine", " I do not know")),
        ("The sky", (" is blue", " was red")),
    ],
)
def test_whole_texts_are_divided_where_they_stop_being_alike(prompt, wanted):
    chosen, rejected = wanted
    found = preference({"chosen": prompt + chosen, "rejected": prompt + rejected})
    assert (found["prompt"], found["chosen"], found["rejected"]) == (prompt, chosen, rejected)


def test_a_system_message_beside_stands_in_front():
    found = preference({"system": "Be kind.", **LAYOUTS["axolotl intel"]})
    assert found["prompt"] == [said("system", "Be kind."), USER]


@pytest.mark.parametrize("limit", [12, 24, 40])
def test_cutting_takes_the_prompt_first_and_as_much_of_it_on_both_sides(tokenizer, limit):
    task, row = Preference(), {"prompt": "w " * 60, "chosen": "good answer", "rejected": "a bad and longer answer"}
    whole, found = task.encode(row, tokenizer), task.encode(row, tokenizer, max_length=limit)
    lengths = [len(found.inputs[key]) for key in ("input_ids", "rejected_input_ids")]
    assert max(lengths) <= limit < found.full_length
    assert found.truncated
    inputs = found.inputs
    assert inputs["labels"][0] == inputs["rejected_labels"][0] == IGNORED  # something stands before each answer
    prompts = [
        [token for token, label in zip(inputs[f"{s}input_ids"], inputs[f"{s}labels"], strict=True) if label == IGNORED]
        for s in ("", "rejected_")
    ]
    assert prompts[0] == prompts[1]
    for start in ("", "rejected_"):
        assert answer(whole, tokenizer, start).startswith(answer(found, tokenizer, start))
        assert answer(found, tokenizer, start)


def test_a_pair_that_is_equal_after_cutting_is_not_trained_on_and_says_so(tokenizer):
    row = {"prompt": "w", "chosen": "the same " * 20 + "a", "rejected": "the same " * 20 + "b"}
    found = Preference().encode(row, tokenizer, max_length=24)
    assert found.weight == 0
    assert "max_length" in found.untrained
    assert Preference().encode(row, tokenizer).weight == 1


CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}


@pytest.mark.parametrize(
    ("prompt", "shared", "wanted"),
    [
        ([said("system", "S"), said("user", "u"), said("assistant", "a")], [USER], 4),
        ([USER, CALL], [said("tool", "42")], 3),
        ([said("system", "S"), USER], [USER], 2),
        ([USER], [USER], 1),
    ],
)
def test_a_prompt_stands_in_front_of_sides_that_do_not_repeat_it(prompt, shared, wanted):
    found = preference({"prompt": prompt, "chosen": [*shared, CHOSEN], "rejected": [*shared, REJECTED]})
    assert found["prompt"] == [*prompt, *shared][: len(prompt)] + ([] if prompt[-1] == shared[0] else shared)
    assert (len(found["prompt"]), found["chosen"], found["rejected"]) == (wanted, [CHOSEN], [REJECTED])


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"system": "S", "messages": [USER, CHOSEN], "rejected_messages": [USER, REJECTED]}, ["system", "user"]),
        ({"chosen": [{**USER, "name": None}, CHOSEN], "rejected": [USER, REJECTED]}, ["user"]),
        ({"instruction": ASKED, "output": GOOD, "rejected_response": BAD}, ["user"]),
        ({"messages": [USER, CHOSEN], "chosen": GOOD, "rejected": BAD}, ["user"]),
    ],
)
def test_what_tables_write_otherwise_is_the_same_pair(row, roles):
    found = preference(row)
    assert [one["role"] for one in found["prompt"]] == roles
    answers = [side if isinstance(side, str) else side[0]["content"] for side in (found["chosen"], found["rejected"])]
    assert answers == [GOOD, BAD]


def test_a_pair_of_which_cutting_leaves_no_trained_token_is_not_trained_on_and_says_so(tokenizer):
    long = {"role": "assistant", "content": "long " * 60, "weight": 0}
    row = {"prompt": [USER], "chosen": [long, said("user", "and?"), CHOSEN], "rejected": [REJECTED]}
    found = Preference().encode(row, tokenizer, max_length=64)
    assert found.weight == 0
    assert "max_length" in found.untrained


def test_turns_that_a_template_writes_as_several_sequences_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["Qwen3"])
    turns = [said("assistant", "Let me ask."), said("user", "Yes?"), CHOSEN]
    with raises(DataError, "`chosen`", "2 sequences"):
        Preference().encode({"prompt": [USER], "chosen": turns, "rejected": [REJECTED]}, tokenizer)
    weighed = [{**turns[0], "weight": 0}, *turns[1:]]
    assert Preference().encode({"prompt": [USER], "chosen": weighed, "rejected": [REJECTED]}, tokenizer).weight


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({"prompt": [USER], "chosen": [CHOSEN], "rejected": [USER, REJECTED]}, ["`chosen`", "'user'"]),
        ({"prompt": [USER, said("assistant", "pre")], "chosen": GOOD, "rejected": BAD}, ["assistant"]),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ["`chosen`", "`rejected`", "same"]),
        ({"chosen": [USER, CHOSEN], "rejected": [USER, CHOSEN]}, ["same"]),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, ["`chosen`", "empty"]),
        ({"prompt": "", "chosen": "c", "rejected": "b"}, ["`prompt`"]),
        ({"prompt": "a", "chosen": "b", "rejected": None}, ["`chosen`"]),
        ({"chosen": "yes", "rejected": "no"}, ["`prompt`"]),
        ({"prompt": "a", "chosen": ["b"], "rejected": "c"}, ["`chosen`"]),
        ({"prompt": [USER], "chosen": [said("assistant", "")], "rejected": [REJECTED]}, ["(assistant)"]),
        ({"chosen": [USER, CHOSEN], "rejected": [said("user", "Who?"), REJECTED]}, ["`chosen`", "`rejected`"]),
        ({"messages": [USER], "rejected_response": BAD}, ["`rejected_response`"]),
    ],
)
def test_rows_that_are_no_preference_are_refused(row, facts, tokenizer):
    with raises(DataError, *facts):
        Preference().encode(row, tokenizer)
    assert Preference().view(row) is not None


def test_prompts_can_be_changed_and_answers_stay():
    task = Preference()
    for row in LAYOUTS.values():
        changed = task.with_inputs(row, ["Who are you?"])
        assert list(task.view(changed).inputs) == ["Who are you?"]
        assert task.view(changed).target == task.view(row).target


@pytest.mark.parametrize(
    ("reader", "row"),
    [
        ({"name": "sharegpt"}, LAYOUTS["llamafactory sharegpt"]),
        ({"name": "alpaca"}, LAYOUTS["llamafactory alpaca"]),
        ({"name": "ms-swift"}, LAYOUTS["ms-swift"]),
        ({"name": "axolotl"}, LAYOUTS["axolotl"]),
    ],
)
def test_readers_that_are_named_read_preferences(reader, row, tokenizer, tmp_path):
    import json

    from ftengine.plugins.registry import Registry

    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row))
    [found] = read_rows(str(file), registry=Registry(), reader=reader)
    wanted = Preference().encode(LAYOUTS["lists"], tokenizer)
    assert Preference().encode(found, tokenizer).inputs["rejected_input_ids"] == wanted.inputs["rejected_input_ids"]


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt"])
def test_rankings_of_llamafactory_are_read(formatting, tokenizer, tmp_path):
    import json

    from ftengine.plugins.registry import Registry

    columns = {"chosen": "better", "rejected": "worse"}
    row, tags = {"q": ASKED, "better": GOOD, "worse": BAD}, {}
    if formatting == "sharegpt":
        tags = {"role_tag": "who", "content_tag": "text", "user_tag": "me", "assistant_tag": "it"}
        row = {"talk": [{"who": "me", "text": ASKED}]}
        row |= {"better": {"who": "it", "text": GOOD}, "worse": {"who": "it", "text": BAD}}
    columns |= {"prompt": "q"} if formatting == "alpaca" else {"messages": "talk"}
    info = {"file_name": "pairs.jsonl", "formatting": formatting, "ranking": True, "columns": columns, "tags": tags}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": info}))
    [found] = read_rows(str(tmp_path / "dataset_info.json"), registry=Registry())
    wanted, found = (Preference().encode(one, tokenizer) for one in (LAYOUTS["lists"], found))
    assert found.inputs["input_ids"] == wanted.inputs["input_ids"]
    assert found.inputs["rejected_labels"] == wanted.inputs["rejected_labels"]


def test_conversations_in_one_text_are_turns_where_the_model_has_a_template(tokenizer):
    begin = "\n\nHuman: Hi there.\n\nAssistant: Hello.\n\nHuman: How are you?\n\nAssistant:"
    row = {"chosen": f"{begin} Fine.\n\nHuman: Good.\n\nAssistant: Bye.", "rejected": f"{begin} Go away."}
    turns = [said("user", "Hi there."), said("assistant", "Hello."), USER]
    chosen = [said("assistant", "Fine."), said("user", "Good."), said("assistant", "Bye.")]
    lists = {"prompt": turns, "chosen": chosen, "rejected": [said("assistant", "Go away.")]}
    found, wanted = (Preference().encode(one, tokenizer) for one in (row, lists))
    assert found.inputs == wanted.inputs
    plain = Preference(Preference.Config(chat_template="never")).encode(row, tokenizer)
    assert tokenizer.decode(plain.inputs["input_ids"]).count("Human:") == 3

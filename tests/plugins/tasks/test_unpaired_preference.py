"""Unpaired preferences: rows, KTO against its paper's formula, and what is refused."""

import json

import numpy as np
import pytest
import torch
from chat_templates import TEMPLATES, TOKENS
from expected import raises
from tiny import byte_level_tokenizer

from ftengine.data.read import read_rows
from ftengine.errors import DataError, RecipeError
from ftengine.model import IGNORED
from ftengine.plugins.registry import Registry
from ftengine_builtins.evaluators.unpaired import UnpairedPreferences
from ftengine_builtins.tasks import Answers, CausalLM, Preference, UnpairedPreference
from ftengine_builtins.tasks.unpaired_losses import KTO

ASKED, TOLD = "How are you?", "I am fine, thank you."
USER, ANSWER = {"role": "user", "content": ASKED}, {"role": "assistant", "content": TOLD}
LAYOUTS = {
    "texts": {"prompt": ASKED, "completion": TOLD, "label": True},
    "lists": {"prompt": [USER], "completion": [ANSWER], "label": 1},
    "mixed": {"prompt": [USER], "completion": TOLD, "label": "true"},
    "ms-swift": {"messages": [USER, ANSWER], "label": True},
    "sharegpt": {
        "conversations": [{"from": "human", "value": ASKED}, {"from": "gpt", "value": TOLD}],
        "kto_tag": True,
    },
    "alpaca": {"instruction": ASKED, "input": "", "output": TOLD, "kto_tag": "True"},
    "query": {"query": ASKED, "response": TOLD, "label": True},
}
OTHER = {"prompt": "Where is it?", "completion": "Behind the green house.", "label": False}


@pytest.fixture(scope="module")
def tokenizer():
    found = byte_level_tokenizer(pad_token="<|im_end|>")
    found.add_tokens(list(TOKENS), special_tokens=True)
    found.chat_template = TEMPLATES["SmolLM2"]
    return found


def text(features, tokenizer, start=""):
    return tokenizer.decode([label for label in features.inputs[f"{start}labels"] if label != IGNORED])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_read_as_the_same_answer(layout, tokenizer):
    task, row = UnpairedPreference(), LAYOUTS[layout]
    wanted = CausalLM().encode({"prompt": [USER], "completion": [ANSWER]}, tokenizer)
    found = task.encode(row, tokenizer, following=OTHER)
    end = len(found.inputs["input_ids"])
    assert (found.inputs["input_ids"], found.inputs["labels"]) == (
        wanted.inputs["input_ids"][:end],
        wanted.inputs["labels"][:end],
    )
    assert (found.inputs["desirable"], found.weight, found.kind) == (True, 1, "desirable")
    assert text(found, tokenizer, "mismatched_") == "Behind the green house.<|im_end|>"
    assert tokenizer.decode(found.inputs["mismatched_input_ids"]).count(ASKED) == 1
    assert task.view(row).target == {"completion": [TOLD], "desirable": True} or layout == "texts"
    seen = UnpairedPreference.recognise(list(row), [row])
    names = {"texts": "", "lists": "trl", "mixed": "trl", "query": "ms-swift", "ms-swift": "messages"}
    assert (seen.certainty, seen.layout) == (3, names.get(layout, layout))
    assert [key for key in found.counts if "layout" in key] == [f"layout.{seen.layout}"] * bool(seen.layout)
    asked = task.question(row)
    assert CausalLM().view({**asked, "completion": "x"}).inputs or asked["prompt"] == [USER]


@pytest.mark.parametrize("formatting", ["alpaca", "sharegpt"])
def test_tags_of_llamafactory_are_read(formatting, tokenizer, tmp_path):
    row = {"q": ASKED, "a": TOLD, "good": False}
    columns = {"prompt": "q", "response": "a", "kto_tag": "good"}
    if formatting == "sharegpt":
        row = {**LAYOUTS["sharegpt"], "good": False}
        columns = {"messages": "conversations", "kto_tag": "good"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    info = {"file_name": "rows.jsonl", "formatting": formatting, "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": info}))
    [found] = read_rows(str(tmp_path / "dataset_info.json"), registry=Registry())
    features = UnpairedPreference().encode(found, tokenizer)
    assert features.inputs["desirable"] is False
    assert features.inputs["input_ids"] == UnpairedPreference().encode(LAYOUTS["lists"], tokenizer).inputs["input_ids"]


@pytest.mark.parametrize(
    ("row", "facts"),
    [
        ({**LAYOUTS["texts"], "label": "good"}, ["`label`", "good"]),
        ({**LAYOUTS["texts"], "label": 2}, ["`label`", "2"]),
        ({**LAYOUTS["texts"], "label": None}, ["`label`"]),
        ({**LAYOUTS["texts"], "completion": " "}, ["`completion`", "empty"]),
        ({**LAYOUTS["lists"], "completion": [{"role": "assistant", "content": ""}]}, ["`completion`", "empty"]),
        ({"messages": [USER], "label": True}, ["`messages`"]),
        ({"completion": TOLD, "label": True}, ["`prompt`"]),
    ],
    ids=str,
)
def test_rows_that_are_wrong_are_refused_in_a_line(row, facts, tokenizer):
    with raises(DataError, *facts):
        UnpairedPreference().encode(row, tokenizer)
    assert list(UnpairedPreference().view(row).inputs) == []


def test_columns_and_options_that_do_not_fit_are_refused():
    with raises(DataError, "label"):
        UnpairedPreference().check_columns(["prompt", "completion"])
    assert UnpairedPreference.recognise(["prompt", "completion", "label"], [{**OTHER, "label": "sport"}]) is None
    with raises(RecipeError, "unpaired-preference"):
        Preference(Preference.Config(loss="kto"))


def test_a_long_prompt_loses_its_beginning_and_never_the_answer(tokenizer):
    row = {**OTHER, "prompt": "w " * 60}
    found = UnpairedPreference().encode(row, tokenizer, max_length=60, following=LAYOUTS["texts"])
    assert found.truncated
    assert text(found, tokenizer) == "Behind the green house.<|im_end|>"
    assert text(found, tokenizer, "mismatched_") == f"{TOLD}<|im_end|>"
    assert max(len(found.inputs["input_ids"]), len(found.inputs["mismatched_input_ids"])) == found.longest <= 60


DRAW, N = np.random.default_rng(0), 9
LOGP, LOGP_REF, MISMATCHED, MISMATCHED_REF = -DRAW.gamma(3.0, 4.0, (4, N))
TOKENS_OF, GOOD = DRAW.integers(1, 30, N), DRAW.integers(0, 2, N).astype(bool)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def kto(beta=0.1, desirable=1.0, undesirable=1.0, nll=0.0, sign=1):
    """Ethayarajh et al. 2024, eq. 7: λ_y - v(x, y), with z₀ of mismatched answers."""
    reward = LOGP - LOGP_REF
    zero = max(0.0, sign * (MISMATCHED - MISMATCHED_REF).mean())
    value = np.where(GOOD, desirable * sigmoid(beta * (reward - zero)), undesirable * sigmoid(beta * (zero - reward)))
    return np.where(GOOD, desirable, undesirable) - value - nll * GOOD * LOGP / TOKENS_OF


def answers(sign=1):
    mismatched = (MISMATCHED, MISMATCHED_REF)[::sign]
    columns = (LOGP, TOKENS_OF, GOOD, mismatched[0], LOGP_REF, mismatched[1])
    return Answers(*map(torch.tensor, columns))


@pytest.mark.parametrize(
    "options",
    [{}, {"beta": 0.7}, {"desirable_weight": 1.5, "undesirable_weight": 0.5}, {"nll": 0.3}],
    ids=str,
)
def test_kto_is_its_papers_formula(options):
    named = {"desirable_weight": "desirable", "undesirable_weight": "undesirable"}
    zeros = []
    for sign in (1, -1):  # of one the mean is above 0, of the other it is clamped
        found = KTO(**options)(answers(sign)).numpy()
        np.testing.assert_allclose(
            found, kto(sign=sign, **{named.get(k, k): v for k, v in options.items()}), rtol=1e-10
        )
        zeros.append(found)
    assert not np.allclose(*zeros)


def test_the_baseline_has_no_gradient():
    found = answers()
    found.mismatched_logp.requires_grad_()
    found.logp.requires_grad_()
    KTO()(found).sum().backward()
    assert found.mismatched_logp.grad is None
    assert found.logp.grad.abs().min() > 0


def test_turns_that_a_template_writes_as_several_sequences_are_refused(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATES["Qwen3"])
    turns = [{**ANSWER, "content": "Let me ask."}, {"role": "user", "content": "Yes?"}, ANSWER]
    with raises(DataError, "`completion`", "2 sequences"):
        UnpairedPreference().encode({"prompt": [USER], "completion": turns, "label": True}, tokenizer)


def test_a_figure_of_one_kind_of_answers_rests_on_these():
    rows = {"logp": [-1.0, -2.0, -3.0], "tokens": [1, 1, 1], "desirable": [True, False, False], "reward": [0.0, 0, 0]}
    weights = UnpairedPreferences().example_weights({key: np.array(value) for key, value in rows.items()})
    assert [weights[name].tolist() for name in ("chosen_logp", "rejected_logp")] == [[1, 0, 0], [0, 1, 1]]

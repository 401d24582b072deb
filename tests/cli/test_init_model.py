"""`init` proposes what the model can learn, with the columns that the data has, and `plan` takes it."""

import json

import pytest
import tiny

from ftengine import Recipe

MODELS = {"decoder": tiny.tiny_llama, "encoder": tiny.tiny_bert, "encoder-decoder": tiny.tiny_t5}
CHAT = [{"role": "user", "content": "Who is {i}?"}, {"role": "assistant", "content": "A model."}]
PAIRED = {"source": "a b c {i}", "target": "c b a {i}"}
RENAMED = {"prompt": "source", "completion": "target"}

LAYOUTS = {
    "translation": (PAIRED, {"decoder": ("causal-lm", RENAMED), "encoder-decoder": ("seq2seq-lm", RENAMED)}),
    "stars": (
        {"sentence": "it was number {i}", "stars": "{mod}"},
        dict.fromkeys(MODELS, ("text-classification", {"text": "sentence", "label": "stars"})),
    ),
    "German": (
        {"Kategorie": "K{mod}", "Beschreibung": "it was number {i}"},
        dict.fromkeys(MODELS, ("text-classification", {"text": "Beschreibung", "label": "Kategorie"})),
    ),
    "any names": (
        {"ticket": "T{i}", "zuordnung": "K{mod}", "worum": "it was number {i}"},
        dict.fromkeys(MODELS, ("text-classification", {"text": "worum", "label": "zuordnung"})),
    ),
    "preferences": (
        {"chosen": CHAT, "rejected": [*CHAT[:1], {**CHAT[1], "content": "A fool."}], "n": "{i}"},
        {"decoder": ("preference", {})},
    ),
    "unpaired": (
        {"prompt": "what is {i}?", "completion": "a number", "label": "{even}"},
        {
            "decoder": ("unpaired-preference", {}),
            "encoder": ("text-classification", {"text": "prompt"}),
            "encoder-decoder": ("seq2seq-lm", {}),
        },
    ),
    "question": (
        {"question": "what is {i}?", "answer": "a number"},
        {
            "decoder": ("causal-lm", {"prompt": "question", "completion": "answer"}),
            "encoder-decoder": ("seq2seq-lm", {"prompt": "question", "completion": "answer"}),
        },
    ),
}
"""By name: a row, and what is proposed for each kind of model that can learn it; the others are refused."""


def rows(row):
    for i in range(20):
        text = json.dumps(row).replace("{i}", str(i)).replace("{mod}", "ABC"[i % 3])
        text = text.replace('"{even}"', json.dumps(i % 2 == 0))
        yield f"{text}\n"


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_proposed_can_be_planned(ftengine, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    MODELS[kind]("model")
    for name, (row, expected) in LAYOUTS.items():
        (tmp_path / "rows.jsonl").write_text("".join(rows(row)))
        code = 0 if kind in expected else 2
        said = ftengine("init", "--model", "model", "--data", "rows.jsonl", "--force", code=code)
        if kind not in expected:
            assert "error: " in said.stderr, name
            continue
        recipe = Recipe.read("recipe.yaml")
        assert (recipe.task["name"], recipe.data.columns) == expected[kind], name
        ftengine("plan", "recipe.yaml", "--no-measure")


def test_a_task_that_the_model_is_not_for_is_refused(ftengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.tiny_bert("model")
    assert "--task causal-lm" in ftengine("init", "--model", "model", "--task", "causal-lm", code=2).stderr
    ftengine("init", "--model", "model")  # without data: a task that it is for
    assert Recipe.read("recipe.yaml").task["name"] != "causal-lm"

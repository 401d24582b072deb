"""Small real runs: a tiny Llama on chat rows, a tiny BERT on labelled sentences."""

import json
import random
from pathlib import Path

import pytest
from rows import sentences, write_rows
from runs import without_drawings  # noqa: F401

from ftengine import Recipe, fine_tune

SUBJECTS = ("the printer", "my screen", "the network", "this laptop", "the mouse", "our server")
ACTIONS = ("does not start", "is very slow", "shows an error", "makes a noise", "was stolen")


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory):
    """40 distinct conversations of different lengths."""
    rng = random.Random(0)
    rows = []
    for i in range(40):
        question = f"{rng.choice(SUBJECTS)} {rng.choice(ACTIONS)} ({i})" + " please help" * rng.randrange(6)
        answer = f"Restart {rng.choice(SUBJECTS)}." + " Then wait." * rng.randrange(4)
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    return Path(write_rows(tmp_path_factory.mktemp("data") / "chat.jsonl", rows))


@pytest.fixture(scope="session")
def label_file(tmp_path_factory):
    """60 sentences in three classes that a word tells apart."""
    return Path(write_rows(tmp_path_factory.mktemp("data") / "labels.jsonl", sentences(60, random.Random(0))))


def overridden(content, overrides):
    """Return a recipe; keyword arguments of tests are `--set` overrides with __ for dots."""
    return Recipe.make(content, [f"{key.replace('__', '.')}={json.dumps(value)}" for key, value in overrides.items()])


@pytest.fixture(scope="session")
def build_chat_recipe(llama_folder, chat_file):
    """Build a recipe for the tiny Llama from overrides, `output` among them."""

    def build(**overrides):
        content = {
            "model": {"source": str(llama_folder)},
            "task": "causal-lm",
            "data": {"train": str(chat_file), "validation": 0.2},
            "strategy": {"name": "lora", "rank": 4, "dropout": 0.1},
            "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.01, "precision": "float32"},
            # test_answers_to_read.py, test_evaluation.py and test_base_predictions.py are about these.
            "evaluation": {"resamples": 100, "answers": None, "training_sample": None, "reuse_base": False},
            "output": "",
        }
        return overridden(content, overrides)

    return build


@pytest.fixture
def chat_recipe(build_chat_recipe, tmp_path):
    """Build a recipe for the tiny Llama, in the test's folder."""
    return lambda **overrides: build_chat_recipe(**{"output": str(tmp_path / "run"), **overrides})


@pytest.fixture
def label_recipe(bert_folder, label_file, tmp_path):
    """Build a recipe for the tiny BERT."""

    def build(**overrides):
        content = {
            "model": {"source": str(bert_folder)},
            "task": "text-classification",
            "data": {"train": str(label_file), "validation": 0.2, "test": 0.2},
            "strategy": "full",
            "train": {"epochs": 12, "batch_size": 8, "learning_rate": 0.002, "precision": "float32"},
            "evaluation": {"resamples": 100, "training_sample": None, "reuse_base": False},
            "output": str(tmp_path / "run"),
        }
        return overridden(content, overrides)

    return build


@pytest.fixture(scope="session")
def served_run(build_chat_recipe, tmp_path_factory):
    """The folder of a run that learnt something, whose adapter has rsLoRA's scale and two ranks."""
    output = tmp_path_factory.mktemp("served") / "run"
    strategy = {"name": "lora", "rank": 8, "alpha": 32, "rslora": True, "rank_pattern": {"q_proj": 2}}
    recipe = build_chat_recipe(strategy=strategy, train__epochs=6, train__learning_rate=0.02, output=str(output))
    return fine_tune(recipe).path


@pytest.fixture(scope="session")
def talking_run(build_chat_recipe, tmp_path_factory):
    """The folder of a run whose model answers in words, and its base does not."""
    output = tmp_path_factory.mktemp("talking") / "run"
    recipe = build_chat_recipe(
        strategy={"name": "lora", "rank": 8, "alpha": 16},
        train__epochs=12,
        train__learning_rate=0.005,
        evaluation__generate={"max_new_tokens": 16},
        output=str(output),
    )
    return fine_tune(recipe).path

"""What a run does once: read its data, load its base to train and to open what was saved, make a strategy a model."""

from collections import Counter

import pytest

from ftengine import fine_tune, load_run
from ftengine.plugins.registry import Factory
from ftengine_builtins.loaders.transformers import TransformersLoader


@pytest.fixture
def made(monkeypatch):
    """Count models, processors and strategies as they are made."""
    counted = Counter()

    def count(owner, name, what):
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (counted.update([what(*args)]), whole(*args))[1])

    for name in ("load", "load_skeleton", "load_processor"):
        count(TransformersLoader, name, lambda *_, name=name: name)
    count(Factory, "__call__", lambda self: self.entry.kind)
    return lambda: {what: counted.pop(what, 0) for what in ("load", "load_skeleton", "load_processor", "strategy")}


def test_a_base_is_loaded_once_to_train_and_once_to_open_what_was_saved(label_recipe, made, tmp_path):
    run = fine_tune(label_recipe(train__max_steps=1, strategy="lora"))
    assert made() == {"load": 2, "load_skeleton": 1, "load_processor": 3, "strategy": 3}  # one a model
    run.evaluate()
    assert made() == {"load": 1, "load_skeleton": 1, "load_processor": 2, "strategy": 2}
    for _ in range(2):
        list(run.predict([{"text": "a goal"}]))
    assert made() == {"load": 1, "load_skeleton": 0, "load_processor": 1, "strategy": 1}
    load_run(run.path).merge(tmp_path / "merged")
    assert made() == {"load": 1, "load_skeleton": 0, "load_processor": 1, "strategy": 1}


MOST_CALLS, MOST_FILES = 55, 30

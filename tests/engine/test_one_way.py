"""What a run does once: read its data, load its base to train and to open what was saved, make a strategy a model."""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import ftengine
from ftengine import fine_tune, load_run
from ftengine.data import read
from ftengine.engine import prepared_data
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_model import PreparedModel, prepare_model
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


def test_rows_that_cannot_be_encoded_are_left_out_without_reading_the_others_again(label_recipe, tmp_path, monkeypatch):
    rows = [{"text": f"word {i} again", "label": "ab"[i % 2]} for i in range(40)]
    rows[7]["text"], rows[9]["label"] = "", "c"  # the only row with this label
    rows[9]["text"] = ""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = Counter()

    def count(owner, name):
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (seen.update([name]), whole(*a, **k))[1])

    count(read.Reading, "cached")
    for name in ("make_splits", "learn_labels", "prepare_skeleton"):
        count(prepared_data, name)
    recipe = label_recipe(data__train=str(file), data__on_error="skip", data__test=None)
    data = prepared_data.prepare_data(prepared_data.Experiment.open(recipe))
    assert (seen["cached"], seen["make_splits"]) == (1, 1)
    assert data.ready.task.labels.names == ("a", "b")  # of what is left
    assert seen["prepare_skeleton"] == seen["learn_labels"] == 2  # other labels, another head
    assert sum(len(split) for split in data.encoded.values()) == 38
    assert data.audit.splits["train"].skipped.count == 2


ROOT = str(Path(ftengine.__file__).parent) + os.sep
ROOMS = ("data", "engine", "evaluation", "parallel", "training")
"""The rooms that a run goes through."""

MOST_CALLS, MOST_FILES = 55, 30


class Followed(Exception):
    """The first step is reached."""


def passed(recipe):
    """Return the functions, as code, that the way of a recipe to the optimizer's first step passes.

    The way is what stands on the stack at that step, and the stages that hand what they make to the next of them. It
    passes these functions and those that they call themselves, each once, of the rooms that a run goes through. What
    is read as an attribute (properties) or written within an expression (comprehensions) is no call.
    """
    stages = {Experiment.open.__func__, prepared_data.prepare_data, prepare_model, PreparedModel.trainer}
    way, calls = {stage.__code__ for stage in stages}, set()

    def caller(frame):
        frame = frame.f_back
        while frame is not None and (not frame.f_code.co_filename.startswith(ROOT) or frame.f_code.co_name[0] == "<"):
            frame = frame.f_back
        return frame

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(ROOT) and frame.f_code.co_name[0] != "<":
            before = caller(frame)
            calls.add((before and before.f_code, frame.f_code))

    def stepped(*args, **kwargs):
        sys.setprofile(None)
        frame = caller(sys._getframe())
        while frame is not None:
            way.add(frame.f_code)
            frame = caller(frame)
        raise Followed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stepped)
        sys.setprofile(note)
        try:
            with pytest.raises(Followed):
                fine_tune(recipe)
        finally:
            sys.setprofile(None)
    modules = [vars(module) for name, module in sys.modules.items() if name.startswith("ftengine.")]
    classes = {cls for names in modules for cls in names.values() if isinstance(cls, type)}
    read = {one.fget.__code__ for cls in classes for one in vars(cls).values() if isinstance(one, property)}
    near = way | {called for before, called in calls if before in way}
    return {one for one in near - read if one.co_filename.removeprefix(ROOT).split(os.sep)[0] in ROOMS}


def test_the_way_of_a_recipe_to_the_first_step_is_short(label_recipe):
    found = passed(label_recipe(train__max_steps=1))
    told = sorted(f"{one.co_filename.removeprefix(ROOT)}: {one.co_name}" for one in found)
    assert len(found) <= MOST_CALLS, told
    assert len({one.co_filename for one in found}) <= MOST_FILES, told

"""Callbacks are told what happens in a run; one that fails is left out, and the run goes on."""

import os
import re
import sys
import threading
from dataclasses import dataclass
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from expected import raises
from installed import registry_with
from runs import Heard, Interrupting, Interruption

from ftengine import Recipe, RunRecords, fine_tune, load_run
from ftengine.api import Callback, Failed, Finished, Saved, Started, Stepped, Validated
from ftengine.errors import TrainingError, UnknownName
from ftengine.plugins.discovery import make_plugin_manager
from ftengine.plugins.registry import Registry
from ftengine.run.directory import RunDirectory
from ftengine.training.callbacks import Callbacks
from ftengine.training.model_watch import FIRST, ModelWatch


class LogLines(Callback):
    """Write a line each step."""

    name = "log-lines"

    def on_step_end(self, event):
        with open(event.run / "steps.txt", "a") as file:
            file.write(f"{event.step}: {event.figures['loss']:.4f}\n")


class Ear(Callback):
    """Keep every event."""

    name = "ear"
    heard: list = []  # noqa: RUF012

    def _hear(self, event):
        self.heard.append(event)

    on_train_begin = on_pre_optimizer_step = on_step_end = on_evaluate = on_save = on_run_end = on_exception = _hear


class Torn(Callback):
    """Fail at the second step."""

    name = "torn"

    def on_step_end(self, event):
        if event.step >= 2:
            raise ConnectionError("no route")


class Leaving(Callback):
    """End the process at the second step."""

    name = "leaving"

    def on_step_end(self, event):
        if event.step >= 2:
            sys.exit(0)

    def view_command(self, run):
        sys.exit(0)


class Moving(Callback):
    """Work in the run's folder, and leave a thread at its end."""

    name = "moving"
    ended = threading.Event()

    def on_train_begin(self, event):
        os.chdir(event.run)
        threading.Thread(target=self.ended.wait, name="uploads", daemon=True).start()

    def on_step_end(self, event):
        os.chdir(event.run)


class Budget(Callback):
    """End the run at the second step."""

    name = "budget"

    def on_step_end(self, event):
        if event.step >= 2:
            raise TrainingError("the budget is spent.")


class Writer(Callback):
    """Change a weight, past torch's counting of versions in the first steps."""

    name = "writer"
    at: ClassVar[int] = 2

    def on_pre_optimizer_step(self, event):
        if event.step == self.at:
            weight = next(p for p in event.model.parameters() if p.requires_grad)
            with torch.no_grad():
                (weight.data if event.step <= FIRST else weight).add_(1)


@pytest.fixture
def registry():
    Ear.heard.clear()
    return registry_with(LogLines, Ear, Torn, Leaving, Moving, Budget, Writer, distribution="callbacks")


@pytest.fixture
def content(bert_folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "match {i}", "label": "{"ab"[i % 2]}"}}\n' for i in range(16)))
    return {
        "model": {"source": str(bert_folder)},
        "task": "text-classification",
        "data": {"train": str(rows), "validation": 0.25},
        "strategy": "full",
        "train": {"max_steps": 3, "batch_size": 4},
        "output": str(tmp_path / "run"),
    }


def test_events_come_in_order_and_a_failing_callback_is_named_once(registry, content):
    said = Heard()
    recipe = Recipe.make({**content, "callbacks": ["torn", "leaving", "ear", "ear", {"name": "log-lines"}]})
    run = fine_tune(recipe, registry=registry, listener=said)
    line, other = [line for line in said.said if line.startswith("callback")]
    assert other.startswith("callback 'leaving'")
    assert "SystemExit: 0" in other
    assert line.startswith("callback 'torn' of callbacks")
    assert re.search(
        r" failed and is switched off for the rest of the run: ConnectionError: no route \(test_callbacks\.py:\d+\)$",
        line,
    )
    assert [row.partition(":")[0] for row in (run.path / "steps.txt").read_text().splitlines()] == ["1", "2", "3"]
    kinds = [type(event) for event in Ear.heard]
    assert kinds[0] is Started
    assert kinds[-1] is Finished
    assert [event.step for event in Ear.heard if isinstance(event, Stepped)] == [1, 2, 3]
    assert {Validated, Saved} <= set(kinds)
    assert run.view_commands == []  # of one that ends the process, where `train` would end without its last lines
    assert all(event.folder.is_dir() for event in Ear.heard if isinstance(event, Saved) and event.folder == run.trained)
    assert Ear.heard[0].recipe["strategy"]["name"] == "full"
    assert Ear.heard[-1].evaluation == run.evaluation
    assert list(load_run(run.path).predict([{"text": "match"}]))  # whose callbacks are not installed: none are needed


class Gradients(Callback):
    """Note each step's gradients."""

    name = "gradients"
    seen: list = []  # noqa: RUF012

    def on_pre_optimizer_step(self, event):
        grads = {name: p.grad.clone() for name, p in event.model.named_parameters() if p.grad is not None}
        self.seen.append((event.step, event.norm, grads))


def test_callbacks_get_clipped_gradients_before_they_are_dropped(content):
    registry, limit = registry_with(Gradients), 0.01
    train = {"max_steps": 2, "batch_size": 2, "accumulate": 2, "max_grad_norm": limit, "precision": "float32"}
    Gradients.seen.clear()
    run = fine_tune(Recipe.make({**content, "train": train, "callbacks": "gradients"}), registry=registry)
    steps = [line for line in run.metrics if "grad_norm" in line]
    assert [step for step, _, _ in Gradients.seen] == [line["step"] for line in steps] == [1, 2]
    for (_, norm, grads), line in zip(Gradients.seen, steps, strict=True):
        assert norm == line["grad_norm"] > limit
        assert sum(float(grad.square().sum()) for grad in grads.values()) ** 0.5 == pytest.approx(limit, rel=1e-3)


@pytest.mark.slow
def test_what_a_callback_changes_of_the_process_is_named_once(registry, content):
    reported, here = Heard(), os.getcwd()
    fine_tune(Recipe.make({**content, "callbacks": "moving"}), registry=registry, listener=reported)
    Moving.ended.set()
    moved, left = [line for line in reported.said if line.startswith("callback 'moving' of callbacks unversioned ")]
    assert (repr(content["output"]) in moved, "'uploads'" in left, os.getcwd()) == (True, True, here)
    assert "was started while it ran" in left  # by whomever


@dataclass
class Plain(Callback):
    """Count events; a dataclass is compared by its fields and has no hash."""

    name = "plain"
    fails = False
    events: int = 0

    def on_train_begin(self, event):
        self.events += 1
        if self.fails:
            raise ValueError


def test_unhashable_callbacks_are_distinct(content, tmp_path):
    callbacks = Callbacks(Recipe.make(content), Registry(make_plugin_manager(discover=False)), Heard())
    sound, torn = Plain(), Plain()
    torn.fails = True
    callbacks.callbacks = [(sound, "a"), (torn, "b")]
    callbacks.notify(Started(tmp_path, 0, {}))
    assert [id(callback) for callback, _ in callbacks.callbacks] == [id(sound)]


@pytest.mark.parametrize("step", [2, FIRST + 2])
def test_a_callback_that_changes_the_model_ends_the_run(registry, content, monkeypatch, step):
    monkeypatch.setattr(Writer, "at", step)
    train = {**content["train"], "max_steps": step}
    with raises(TrainingError, "'writer'", f"on_pre_optimizer_step() at step {step}"):
        fine_tune(Recipe.make({**content, "train": train, "callbacks": ["ear", "writer"]}), registry=registry)


def test_weights_that_are_no_numbers_are_no_callbacks_change():
    module = torch.nn.Linear(2, 2)
    module.weight.data[0, 0] = float("nan")
    watch = ModelWatch(module)
    watch.look(1, gradients=False)
    assert watch.changed() == ""


def test_parameters_that_are_not_contiguous_or_complex_are_watched():
    module = torch.nn.Module()
    module.wide = torch.nn.Parameter(torch.zeros(1, 2).expand(2**40, 2))  # a copy would take 8 TiB
    module.wave = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    watch = ModelWatch(module)
    for name, change in (("wide", 1.0), ("wave", 1j)):
        watch.look(1, gradients=False)
        assert watch.changed() == ""
        getattr(module, name).data[0] += change
        assert watch.changed() == name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a second device is needed")
def test_parameters_of_several_devices_are_watched():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).cuda())
    watch = ModelWatch(module)
    watch.look(1, gradients=False)
    module[1].bias.data += 1
    assert watch.changed() == "1.bias"


def test_a_failure_is_reported_and_raised(registry, content):
    with pytest.raises(Interruption):
        fine_tune(Recipe.make({**content, "callbacks": ["ear"]}), registry=registry, listener=Interrupting(1))
    assert isinstance(Ear.heard[-1], Failed)
    assert isinstance(Ear.heard[-1].error, Interruption)


def test_a_callback_ends_the_run_where_it_says_so(registry, content):
    recipe = Recipe.make(
        {**content, "train": {**content["train"], "checkpoint_every": 1}, "callbacks": ["budget", "ear"]}
    )
    with raises(TrainingError, "'budget'", "the budget is spent", "test_callbacks.py:"):
        fine_tune(recipe, registry=registry)
    assert isinstance(Ear.heard[-1], Failed)
    assert [line["step"] for line in RunDirectory(recipe.output).metrics() if "loss" in line] == [1, 2]
    assert (RunDirectory(recipe.output).checkpoints / "step-000001").is_dir()


def test_an_unknown_callback_is_an_error_that_names_the_key(content):
    with raises(UnknownName, "'tensorbord'", "callbacks.0", "'tensorboard'"):
        fine_tune(Recipe.make({**content, "callbacks": ["tensorbord"]}))


class Pausing(Callback):
    """Keep the validation examples' losses by step, and end the run at a checkpoint."""

    name = "pausing"

    def __init__(self, step):
        super().__init__(None)
        self.step, self.losses = step, {}

    def on_evaluate(self, event):
        self.losses[event.step] = event.losses

    def on_save(self, event):
        if event.step == self.step:
            raise TrainingError("that is enough.")


@pytest.mark.slow
def test_a_caller_pauses_a_run_and_gets_the_loss_of_each_validation_example(chat_recipe, tmp_path):
    recipe, pausing = chat_recipe(train__validate_every=2, train__checkpoint_every=2), Pausing(2)
    whole = fine_tune(recipe.model_copy(update={"output": str(tmp_path / "whole")}))
    with raises(TrainingError, "pausing", "that is enough"):
        fine_tune(recipe, callbacks=[pausing])
    assert pausing.losses.keys() == {2}
    pausing.step = None
    run = fine_tune(recipe, resume=True, callbacks=[pausing])
    name = "adapter_model.safetensors"
    assert (run.trained / name).read_bytes() == (whole.trained / name).read_bytes()
    table = pq.read_table(run.path / "predictions" / "validation-tuned.parquet").to_pydict()
    kept = pausing.losses[RunRecords.read(run.path).training.best_step]
    assert kept.tolist() == pytest.approx(table["loss"], rel=1e-4)

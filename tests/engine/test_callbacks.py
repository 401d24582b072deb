"""Callbacks are told what happens in a run; one that fails is left out, and the run goes on."""

import re
import sys

import pytest
from expected import raises
from installed import registry_with
from runs import Heard, Interrupting, Interruption

from ftengine import Recipe, fine_tune, load_run
from ftengine.api import Callback, Failed, Finished, Saved, Started, Stepped, Validated
from ftengine.errors import TrainingError, UnknownName
from ftengine.run.directory import RunDirectory


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


class Budget(Callback):
    """End the run at the second step."""

    name = "budget"

    def on_step_end(self, event):
        if event.step >= 2:
            raise TrainingError("the budget is spent.")


@pytest.fixture
def registry():
    Ear.heard.clear()
    return registry_with(LogLines, Ear, Torn, Leaving, Budget, distribution="callbacks")


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

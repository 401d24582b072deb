"""Runs refuse components whose mathematics are wrong where that is cheaply seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from expected import raises
from installed import registry_with

from ftengine import api, fine_tune, plan, registry_of
from ftengine.errors import NoMatch, PluginError, TrainingError
from ftengine.evaluation.results import require_weighing

INSTALLED = registry_of()
Classes = INSTALLED.get("task", "text-classification").cls
LoRA = INSTALLED.get("strategy", "lora").cls


def component(base, **members):
    return type("Odd", (base,), {"__doc__": "Odd.", "__module__": __name__, "name": "odd", **members})


def test_a_loss_whose_gradient_is_0_ends_the_run_in_its_first_step(label_recipe):
    def loss(self, model, batch, criterion):
        value, weight = Classes.loss(self, model, batch, criterion)
        return value.detach() + 0 * sum(p.sum() for p in model.parameters()), weight

    odd = component(Classes, loss=loss)
    with raises(TrainingError, "gradient is 0", "task 'odd'"):
        fine_tune(label_recipe(task="odd", strategy="lora", train__max_steps=2), registry=registry_with(odd))


def shouts(self, example, processor, *, max_length=None):
    example["text"] = str(example["text"]).upper()
    return Classes.encode(self, example, processor, max_length=max_length)


def test_a_task_that_writes_into_the_rows_that_it_encodes_is_refused(label_recipe):
    odd = component(Classes, encode=shouts)
    with raises(PluginError, "task 'odd'", "encode()", "'text'"):
        plan(label_recipe(task="odd"), measure=False, registry=registry_with(odd))


def scoring(score):
    members = {
        "metrics": {"share": api.Metric("share", higher_is_better=True)},
        "reads": frozenset({"label", "predicted"}),
        "score": lambda self, rows, weights: {"share": float(score(rows["label"] == rows["predicted"], weights))},
    }
    return component(api.Evaluator, **members)


def weighted(right, weights):
    return np.average(right, weights=weights) if weights.any() else np.nan


UNSOUND = {
    "leaves weights aside": lambda right, weights: right.mean(),
    "counts rows of any weight": lambda right, weights: right[weights > 0].mean() if weights.any() else np.nan,
    "reads the order": lambda right, weights: weighted(right, weights * np.linspace(1, 2, len(right))),
    "looks at the first rows": lambda right, weights: weighted(right[:7], weights[:7]),
    "adds up what it should average": lambda right, weights: (right * weights).sum() / len(right),
}


@pytest.mark.parametrize("score", UNSOUND.values(), ids=UNSOUND)
@pytest.mark.parametrize("count", [5, 64, 1000])
def test_an_evaluator_that_does_not_weigh_rows_is_refused(score, count):
    draw = np.random.default_rng(1)
    rows = {"label": draw.integers(0, 2, count), "predicted": draw.integers(0, 2, count)}
    require_weighing(scoring(weighted)(), rows, count)
    with raises(PluginError, "evaluator 'odd'", "share"):
        require_weighing(scoring(score)(), rows, count)


def test_a_run_refuses_such_an_evaluator_before_it_trains(label_recipe):
    recipe = label_recipe(strategy="lora", train__max_steps=1, evaluate=[{"name": "odd"}])
    with raises(PluginError, "evaluator 'odd'", "share"):
        fine_tune(recipe, registry=registry_with(scoring(UNSOUND["leaves weights aside"])))
    assert not Path(recipe.output).exists()


class Graded(LoRA):
    """LoRA whose frozen embeddings get a gradient all the same."""

    name = "odd"

    def prepare(self, loaded):
        super().prepare(loaded)
        embeddings = loaded.module.get_input_embeddings()

        def fill(module, args, output):
            module.weight.grad = torch.ones_like(module.weight)

        embeddings.register_forward_hook(fill)


def test_gradients_on_frozen_weights_end_the_run_in_its_first_step(label_recipe):
    recipe = label_recipe(strategy="odd", train__max_steps=1)
    with raises(PluginError, "strategy 'odd'", "embeddings", "frozen weights"):
        fine_tune(recipe, registry=registry_with(Graded))


class OfNothing(api.Strategy):
    """Find nothing in this model, and say nothing of it."""

    name = "odd"

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)


def test_a_strategy_that_finds_nothing_is_refused_before_weights_are_read(chat_recipe, no_weights):
    with raises(NoMatch, "strategy 'odd'", "nothing to train", "LlamaForCausalLM"):
        plan(chat_recipe(strategy="odd"), measure=False, registry=registry_with(OfNothing))

"""Runs refuse components whose mathematics are wrong where that is cheaply seen."""

from pathlib import Path

import numpy as np
import pytest
import torch
from expected import raises
from installed import registry_with
from runs import Heard, Interrupting, Interruption, losses

from ftengine import api, fine_tune, plan, registry_of
from ftengine.errors import NoMatch, PluginError, TrainingError
from ftengine.evaluation.results import require_weighing
from ftengine.model import Criterion

INSTALLED = registry_of()
Classes = INSTALLED.get("task", "text-classification").cls
LoRA = INSTALLED.get("strategy", "lora").cls


def component(base, **members):
    return type("Odd", (base,), {"__doc__": "Odd.", "__module__": __name__, "name": "odd", **members})


class Negative(Criterion):
    def single(self, targets, *logits):
        return -super().single(targets, *logits)


def test_a_criterion_that_rises_where_labels_get_likelier_is_refused_by_plan(label_recipe):
    odd = component(api.Regularizer, criterion=lambda self, plain: Negative())
    with raises(PluginError, "regularizer 'odd'", "single()", "must fall"):
        plan(label_recipe(regularize=[{"name": "odd"}]), measure=False, registry=registry_with(odd))


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


class Keeps(api.Callback):
    """Keep the model, and decay it once the step is done."""

    name = "odd"

    def on_pre_optimizer_step(self, event):
        self.model = event.model

    def on_step_end(self, event):
        self.change([p for p in self.model.parameters() if p.requires_grad])

    def change(self, parameters):
        with torch.no_grad():
            parameters[0].mul_(0.99)


class PastVersions(Keeps):
    def change(self, parameters):
        for parameter in parameters:
            parameter.data.add_(1e-3)


class Clips(Keeps):
    def on_pre_optimizer_step(self, event):
        torch.nn.utils.clip_grad_value_(event.model.parameters(), 1e-4)

    def on_step_end(self, event):
        """Nothing to do."""


class Looks(Keeps):
    def change(self, parameters):
        self.norms = [p.norm().item() for p in parameters]


@pytest.mark.parametrize("cls", [Keeps, PastVersions, Clips])
def test_a_callback_that_changes_the_model_ends_the_run(label_recipe, cls):
    recipe = label_recipe(strategy="lora", train__max_steps=2, callbacks=["odd"])
    with raises(TrainingError, "callback 'odd'", "step 1"):
        fine_tune(recipe, registry=registry_with(cls))


def test_a_callback_that_keeps_the_model_and_looks_at_it_is_sound(label_recipe):
    recipe = label_recipe(strategy="lora", train__max_steps=2, callbacks=["odd"])
    run = fine_tune(recipe, registry=registry_with(Looks))
    assert len(losses(run)) == 2


class Mean(api.Regularizer):
    """Pull weights towards the mean of those before."""

    name = "odd"

    def attach(self, loaded, task):
        self.means = {n: p.detach().clone() for n, p in loaded.module.named_parameters() if p.requires_grad}

    def penalty(self, model, batch, loss):
        return 1e-3 * sum((p - self.means[n]).square().sum() for n, p in model.named_parameters() if n in self.means)

    def on_step_end(self, model, step):
        for name, parameter in model.named_parameters():
            if name in self.means:
                self.means[name] = self.means[name].lerp(parameter.detach(), 0.5)

    def state_dict(self):
        return dict(self.means)

    def load_state_dict(self, tensors):
        self.means = dict(tensors)


class Forgets(Mean):
    def load_state_dict(self, tensors):
        pass


class Unsaved(Mean):
    def state_dict(self):
        return {}


class Stateful(api.Optimizer):
    """SGD that counts its steps."""

    name = "odd"

    class SGD(torch.optim.SGD):
        count = 0

        def step(self, closure=None):
            self.count += 1
            return super().step()

    def build(self, param_groups):
        return self.SGD(param_groups)


@pytest.mark.slow
def test_a_regularizer_that_does_not_take_its_state_back_is_refused_on_resume(label_recipe):
    recipe = label_recipe(strategy="lora", train__max_steps=3, train__checkpoint_every=1, regularize=[{"name": "odd"}])
    with pytest.raises(Interruption):
        fine_tune(recipe, listener=Interrupting(2), registry=registry_with(Forgets))
    with raises(PluginError, "regularizer 'odd'", "load_state_dict()", "lora_a"):
        fine_tune(recipe, resume=True, registry=registry_with(Forgets))
    assert len(losses(fine_tune(recipe, resume=True, registry=registry_with(Mean)))) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "settings", "facts"),
    [
        (Unsaved, {"regularize": [{"name": "odd"}]}, ["regularizer 'odd'", "'means'"]),
        (Mean, {"regularize": [{"name": "odd"}]}, None),
        (Stateful, {"train__optimizer": "odd"}, ["optimizer 'odd'", "'count'"]),
    ],
)
def test_state_missing_from_checkpoints_is_reported_after_two_steps(label_recipe, cls, settings, facts):
    heard = Heard()
    recipe = label_recipe(strategy="lora", train__max_steps=3, **settings)
    fine_tune(recipe, listener=heard, registry=registry_with(cls))
    told = [text for text in heard.said if "not in checkpoints" in text]
    assert len(told) == (facts is not None)
    assert [fact for fact in facts or () if fact not in told[0]] == []


class OfNothing(api.Strategy):
    """Find nothing in this model, and say nothing of it."""

    name = "odd"

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)


def test_a_strategy_that_finds_nothing_is_refused_before_weights_are_read(chat_recipe, no_weights):
    with raises(NoMatch, "strategy 'odd'", "nothing to train", "LlamaForCausalLM"):
        plan(chat_recipe(strategy="odd"), measure=False, registry=registry_with(OfNothing))

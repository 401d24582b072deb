"""What a component returns is looked at where the engine takes it; the error names whose it is, the method and both."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from expected import raises
from installed import registry_with
from torch import nn

from ftengine import api, fine_tune, plan, registry_of
from ftengine.errors import PluginError, SavedPartDiffers, TrainingError
from ftengine.evaluation.figures import measure
from ftengine.evaluation.weights import Weights
from ftengine.training.optimizer import build_optimizer

INSTALLED = registry_of()
Classes = INSTALLED.get("task", "text-classification").cls
GRPO = INSTALLED.get("task", "grpo").cls
LoRA = INSTALLED.get("strategy", "lora").cls
KEYS = {
    "task": "task",
    "strategy": "strategy",
    "regularizer": "regularize",
    "augmenter": "augment",
    "evaluator": "evaluate",
}


def component(base, **members):
    return type("Odd", (base,), {"__doc__": "Odd.", "__module__": __name__, "name": "odd", **members})


def leaving_out(self, model, learning_rate, weight_decay):
    """Return groups of LoRA's own parameters, without the fresh head's."""
    own = [p for name, p in model.named_parameters() if p.requires_grad and "lora" in name]
    return [{"params": own, "lr": learning_rate}]


def twice(self, model, learning_rate, weight_decay):
    every = [p for p in model.parameters() if p.requires_grad]
    return [{"params": every, "lr": learning_rate}, {"params": every[:1], "lr": learning_rate}]


def frozen_too(self, model, learning_rate, weight_decay):
    return [{"params": model.parameters(), "lr": learning_rate}]


def own_rate(self, model, learning_rate, weight_decay):
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": 0.01}]


def detached(self, model, batch, criterion):
    with torch.no_grad():
        return Classes.loss(self, model, batch, criterion)


def tensors(self, model, batch):
    return [{**one, "scores": torch.tensor(one["scores"])} for one in Classes.predict(self, model, batch)]


def replacing(self, loaded):
    LoRA.prepare(self, loaded)
    loaded.module = nn.Sequential(loaded.module)


CASES = [
    (
        "task",
        Classes,
        "loss",
        lambda self, *_: torch.ones(3),
        r"a float32 tensor of shape \(3,\); .*sum of losses",
    ),
    ("task", Classes, "loss", lambda self, *_: (torch.ones(3), 3), r"tuple of a float32 tensor .*\(3,\), 3; "),
    ("task", Classes, "loss", lambda self, *_: (1.0, 3), r"a tuple of 1\.0, 3; it must return"),
    (
        "task",
        Classes,
        "predict",
        lambda self, *_: [{}],
        r"a list of \S.*; it must return a list of one",
    ),
    (
        "task",
        Classes,
        "predict",
        lambda self, model, batch: [{}] * len(batch["labels"]),
        "with no key",
    ),
    ("task", Classes, "collate", lambda self, *_: None, r"None; it must return a dict of tensors"),
    ("task", Classes, "loss", detached, r"a float32 tensor of shape \(\); it must return .*a gradient"),
    ("task", Classes, "predict", tensors, r"a float32 tensor of shape \(\d+,\) as 'scores'; .*plain"),
    ("task", Classes, "encode", lambda self, *_, **__: {"weight": 3}, r"of type dict; it must return api\.Features\("),
    ("task", Classes, "encode", lambda self, *_, **__: api.Features({}, "3", 1, False), "whose 'length' is '3'"),
    ("strategy", LoRA, "prepare", replacing, "an object of type Sequential"),
    ("task", Classes, "encode", lambda self, *_, **__: [3], r"a list of 3; .* api\.Features\("),
    ("strategy", LoRA, "environment", lambda self: {"of": {1, 2}}, "type set; .*JSON values.*'of' is not one"),
    ("strategy", LoRA, "param_groups", leaving_out, r"leaves out 2 parameters, such as 'classifier\.weight'"),
    ("strategy", LoRA, "param_groups", twice, r"holds twice 1 parameters, such as '\S+lora_a'"),
    ("strategy", LoRA, "param_groups", frozen_too, r"although they do not train, \d+ parameters, such as 'bert\."),
    ("strategy", LoRA, "param_groups", own_rate, r"learning rates of 0\.01 whatever its argument is"),
    ("strategy", LoRA, "param_groups", lambda *_: {}, "an object of type dict; it must return a list of groups"),
    ("strategy", LoRA, "param_groups", lambda *_: [{"params": []}], "whose group 1 is a mapping without 'lr'; .*rate"),
    ("strategy", LoRA, "param_groups", lambda *_: [3], "whose group 1 is 3; it must return a list of groups"),
    ("regularizer", api.Regularizer, "penalty", lambda self, *_: torch.ones(2), r"tensor of shape \(2,\); .*or None"),
    ("regularizer", api.Regularizer, "penalty", lambda self, *_: 0.5, r"0\.5; it must return a tensor of floats"),
    ("augmenter", api.Augmenter, "augment", lambda self, row, task, rng: row, "Mapping objects"),
    ("augmenter", api.Augmenter, "augment", lambda self, row, task, rng: None, "returned None; it must .*Mapping"),
    (
        "augmenter",
        api.Augmenter,
        "augment",
        lambda self, row, task, rng: [],
        r"returned for .*: it returned no row\.",
    ),
    ("augmenter", api.Augmenter, "augment", lambda _, row, *__: [{**row, "text": 3}], r"returned for .*`text`"),
    ("evaluator", api.Evaluator, "score", lambda self, rows, weights: 0.5, "0.5; it must return a mapping of metrics"),
    (
        "augmenter",
        api.Augmenter,
        "augment",
        lambda _, row, *__: [{**row, "label": "film"}],
        "changed the label",
    ),
]


@pytest.mark.parametrize(("kind", "base", "method", "function", "told"), CASES)
def test_what_is_returned_is_looked_at(label_recipe, kind, base, method, function, told):
    odd = component(base, **{method: function})
    registry = registry_with(odd)
    settings = {"strategy": "lora", "train__max_steps": 1, KEYS[kind]: "odd"}
    if kind in ("regularizer", "augmenter", "evaluator"):
        settings[KEYS[kind]] = [{"name": "odd"}]
    with pytest.raises(PluginError) as error:
        fine_tune(label_recipe(**settings), registry=registry)
    if kind in ("augmenter", "evaluator"):  # before anything is trained
        assert not Path(label_recipe().output).exists()
    start = rf"{kind} 'odd' of module {__name__}: .*{method}\(\) .*{told}"
    assert re.match(start, str(error.value)), str(error.value)


class Finishing(api.Regularizer):
    """Return what JSON lacks at the end."""

    name = "finishing"
    traits = api.RegularizerTraits(needs_validation=False)

    def on_train_end(self, model, measure):
        return {"layer": nn.Linear(1, 1)}


def test_what_is_not_finite_before_the_first_step_is_no_matter_of_the_learning_rate(label_recipe):
    def prepare(self, loaded):
        LoRA.prepare(self, loaded)
        with torch.no_grad():
            next(p for p in loaded.module.parameters() if p.requires_grad).fill_(torch.nan)

    odd = component(LoRA, prepare=prepare)
    registry = registry_with(odd)
    with raises(TrainingError, "No step was taken") as error:
        fine_tune(label_recipe(strategy="odd"), registry=registry)
    assert "learning_rate" not in str(error.value)


def test_plan_refuses_the_groups_that_training_refuses(label_recipe):
    odd = component(LoRA, param_groups=leaving_out)
    registry = registry_with(odd)
    with raises(PluginError, "2 parameters", "classifier.weight"):
        plan(label_recipe(strategy="odd"), registry=registry)


def test_what_an_on_policy_task_learns_has_a_gradient(chat_recipe):
    """Also where its first step is idle, as is a step that draws nothing to compare."""

    def learn(self, model, batch):
        with torch.no_grad():
            return GRPO.learn(self, model, batch)

    def learn_from(self, scored):
        self.steps = getattr(self, "steps", 0) + 1
        draws = GRPO.learn_from(self, scored)
        return replace(draws, examples=(), idle="for a step") if self.steps == 1 else draws

    task = {"name": "odd", "rewards": [{"name": "regex", "pattern": "x"}], "max_new_tokens": 2, "num_generations": 2}
    recipe = chat_recipe(task={**task, "beta": 0.1}, evaluate=[], train__max_steps=2)
    with raises(PluginError, "task 'odd'", "learn()", "gradient"):
        fine_tune(recipe, registry=registry_with(component(GRPO, learn=learn, learn_from=learn_from)))


class Widened(nn.Module):
    """A linear layer and a vector behind it, in float32 whatever it is given."""

    def __init__(self, base):
        super().__init__()
        self.base, self.shift = base, nn.Parameter(torch.zeros(base.out_features, device=base.weight.device))

    def forward(self, x):
        return self.base(x) + self.shift


class Widening(api.Strategy):
    """Train a vector behind dense layers."""

    name = "widening"

    def prepare(self, loaded):
        loaded.module.requires_grad_(False)
        for path in [name for name, _ in loaded.module.named_modules() if name.endswith("output.dense")]:
            loaded.module.set_submodule(path, Widened(loaded.module.get_submodule(path)))


def test_a_layer_that_returns_another_dtype_is_named_with_its_strategy(label_recipe):
    recipe = label_recipe(strategy="widening", train__precision="bfloat16", train__max_steps=1)
    with pytest.raises(PluginError) as error:
        fine_tune(recipe, registry=registry_with(Widening))
    assert "strategy 'widening' of module" in str(error.value)
    assert re.search(r"Widened 'bert\.encoder\S+' .*test_returned\.py:\d+", str(error.value)), error.value


def pickled(self, loaded, directory):
    torch.save({}, directory / "part.bin")


def noted(self, loaded, directory):
    LoRA.save(self, loaded, directory)
    (directory.parent / "notes.txt").write_text("saved")


@pytest.mark.parametrize(("save", "told"), [(pickled, "'part.bin', a pickle"), (noted, "'notes.txt' beside")])
def test_what_a_strategy_saves_is_no_pickle_and_in_its_folder(label_recipe, save, told):
    odd = component(LoRA, save=save, load=LoRA.load)
    with pytest.raises(SavedPartDiffers, match=told):
        fine_tune(label_recipe(strategy="odd", train__max_steps=1), registry=registry_with(odd))
    assert not (Path(label_recipe().output) / "adapter").exists()


def flat(groups):
    return [parameter for group in groups for parameter in group["params"]]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (
            lambda groups: torch.optim.SGD(flat(groups), lr=0.5),
            r"lr 0\.5 for .* has 0\.01",
        ),
        (
            lambda groups: torch.optim.AdamW([{"params": g["params"], "lr": g["lr"]} for g in groups]),
            "decay 0.01 for .* 0",
        ),
        (
            lambda groups: torch.optim.SGD(flat(groups), lr=0.01, weight_decay=0.1),
            r"weight_decay 0.1 for .*shape \(2,\), .* has 0\.",
        ),
    ],
    ids=["rate", "decay left out", "flattened"],
)
def test_an_optimizer_is_built_of_the_groups_as_they_are_given(build, told):
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    groups = [{"params": [p], "lr": 0.01, "weight_decay": d} for p, d in ((matrix, 0.1), (vector, 0.0))]
    odd = component(api.Optimizer, build=lambda self, groups: build(groups))
    with pytest.raises(PluginError, match=f"'odd' .*{told}"):
        build_optimizer(odd(), groups)


class Above(api.Evaluator):
    """Give a share above one."""

    name = "above"
    metrics = {"share": api.Metric("share", higher_is_better=True, proportion=True)}  # noqa: RUF012

    def score(self, rows, weights):
        return {"share": 1.5}


def test_a_proportion_lies_between_0_and_1():
    with raises(PluginError, "'above'", "score()", "1.5"):
        measure(Above(), {"x": np.ones(8)}, Weights(np.arange(8), 0, 10))


def test_what_finish_returns_has_to_be_json(label_recipe):
    recipe = label_recipe(strategy="lora", train__max_steps=1, regularize=[{"name": "finishing"}])
    with raises(PluginError, "on_train_end()", "Linear"):
        fine_tune(recipe, registry=registry_with(Finishing))

"""A run of a few steps, looked into: its losses, gradients, weights and answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from runs import Interrupting, Interruption
from torch import Tensor

import ftengine_bitfit
from ftengine import Recipe
from ftengine.api import BeforeStep, Event, Listener, LoadedModel, SilentListener, Stepped, Strategy
from ftengine.data.batching import by_length
from ftengine.engine.evaluation_plan import evaluation_plan
from ftengine.engine.experiment import Experiment
from ftengine.engine.fast_paths import training_context
from ftengine.engine.merge import check_merge
from ftengine.engine.prepared_data import PreparedData, prepare_data
from ftengine.engine.prepared_model import (
    PreparedModel,
    load_base,
    place_base,
    prepare_strategy,
)
from ftengine.evaluation.runner import EvalResult
from ftengine.model import state_tensors
from ftengine.parallel.device import Device
from ftengine.parallel.sharding import gathered, is_sharded
from ftengine.plugins.registry import registry_of
from ftengine.run.directory import RunDirectory
from ftengine.run.records import Memory
from ftengine.training.fast_paths import FastPaths, unfit
from ftengine.training.steps import plan_steps

REGISTRY = registry_of({"bitfit": ftengine_bitfit})


@dataclass
class Trace:
    """What a run computed: losses of its steps, their gradients, the trained weights at the end, answers.

    Gradients are as the optimiser gets them; where the model is divided over processes there are none.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    outputs: Tensor = field(default_factory=lambda: torch.empty(0))
    taken: Counter[str] = field(default_factory=Counter)
    """How often each way was taken, by dimension: counted.py says what is counted."""

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return all numbers, by kind and name; the tensors of a kind have one scale."""
        steps = enumerate(self.gradients, 1)
        return {
            "loss": {f"step {i}": torch.tensor(loss, dtype=torch.float64) for i, loss in enumerate(self.losses, 1)},
            **{f"gradient of step {i}": gradients for i, gradients in steps},
            "weight": self.weights,
            "output": {"held out": self.outputs},
        }


@dataclass(frozen=True)
class Recording(PreparedModel):
    """A prepared model whose training is written down."""

    trace: Trace = field(default_factory=Trace)

    def notify(self, event: Event) -> None:
        if isinstance(event, BeforeStep) and not is_sharded(event.model):
            named = event.model.named_parameters()
            self.trace.gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})
        if isinstance(event, Stepped):
            self.trace.losses.append(event.figures["loss"])


def train(recipe: Recipe, *, interrupted_after: int = 0, merged: bool = False, apart: bool = False) -> Trace:
    """Train as `fine_tune` does, without measuring the base or writing a report.

    Args:
        interrupted_after: steps after which the process is lost; another goes on from the last checkpoint.
        merged: what was trained is merged into the base before it answers.
        apart: held-out rows are answered one by one, not as one batch.
    """
    run = RunDirectory(recipe.output)
    run.create()
    before = Trace()
    if interrupted_after:
        lost = _prepare(recipe, Interrupting(interrupted_after))
        with suppress(Interruption):
            lost.trainer(run).train()
        before = lost.trace
    model = _prepare(recipe)
    trainer = model.trainer(run)
    if interrupted_after:
        trainer.resume()
        assert trainer.progress.step == interrupted_after
    trainer.train()
    loaded, trace = model.loaded, model.trace
    trace.losses = before.losses[:interrupted_after] + trace.losses
    trace.gradients = before.gradients[:interrupted_after] + trace.gradients
    if model.empty is not None:
        loaded.module = gathered(loaded.module, model.empty)
    if not model.device.is_main:  # which alone has the whole of a divided model, and is told of steps
        return trace
    trace.weights = {name: tensor.detach().clone() for name, tensor in state_tensors(loaded.module).items()}
    if merged:
        check_merge(model.strategy).merge(loaded)
    trace.outputs = outputs(model, apart)
    assert all(map(math.isfinite, trace.losses))
    return trace


def _prepare(recipe: Recipe, listener: Listener | None = None) -> Recording:
    trace, experiment = Trace(), Experiment.open(recipe, REGISTRY, listener or SilentListener())
    data, device = prepare_data(experiment), Device.open(recipe, training=True)
    loaded = load_base(data.ready, weights=device.is_main or not device.divides)
    place_base(device, data.ready, loaded)
    strategy = prepare_strategy(device, data.ready, loaded)
    ranks = device.accelerator.num_processes
    empty = device.divide(loaded) if device.divides else None
    memory = Memory(gradient_checkpointing=bool(recipe.train.gradient_checkpointing), reason="")
    plan = evaluation_plan(data, ranks)
    fast = _untried(data, device, loaded, strategy)
    return Recording(data, plan, device, loaded, strategy, ranks, EvalResult(), {}, memory, fast, empty, trace)


def _untried(data: PreparedData, device: Device, loaded: LoadedModel, strategy: Strategy) -> FastPaths:
    """Return the fast paths that the recipe asks for, without the engine's own comparison."""
    steps = plan_steps(len(data.encoded["train"]), data.experiment.recipe.train, device.accelerator.num_processes)
    paths = [make() for make in data.experiment.make_fast_paths]
    fit = [path for path in paths if not unfit(path, loaded, device.accelerator.device)]
    return FastPaths(fit, loaded, training_context(data, device, strategy, steps), {})


@torch.no_grad()
def outputs(model: PreparedModel, apart: bool = False) -> Tensor:
    """Return the numbers that a model predicts of the held-out rows: logits of classes, losses of texts."""
    split = model.data.encoded["validation"]
    rows: Sequence[Any] = by_length(split.lengths)
    found: list[Mapping[str, Any]] = []
    with model.device.inference(model.loaded):
        for members in [rows[i : i + 1] for i in range(len(rows))] if apart else [rows]:
            found += split.task.predict(model.loaded.module, split.batch(members))
    numbers = [value for prediction in found for _, value in sorted(prediction.items())]
    flat = [x for value in numbers for x in (value if isinstance(value, list) else [value])]
    return torch.tensor([x for x in flat if isinstance(x, float)], dtype=torch.float64)

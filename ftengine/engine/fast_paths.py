"""Choosing the fast paths of a run."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ftengine.api import LoadedModel, Strategy, TrainingContext, overrides
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import PreparedData
from ftengine.parallel.device import Device
from ftengine.run.environment import peak_memory_bytes
from ftengine.training.fast_paths import FastPaths, choose_fast_paths, require_device
from ftengine.training.memory import available_bytes
from ftengine.training.probe import ProbeBatch
from ftengine.training.steps import Steps


def require_fast_paths(device: Device, experiment: Experiment) -> None:
    """Raise RecipeError if the recipe names a fast path that this device lacks, before weights are loaded."""
    if experiment.names_fast_paths:
        require_device([make() for make in experiment.make_fast_paths], device.accelerator.device)


def fast_paths_of(
    data: PreparedData, device: Device, loaded: LoadedModel, strategy: Strategy, steps: Steps
) -> FastPaths:
    """Return the fast paths that the recipe requests and that compute the same as the prepared model.

    Raises:
        RecipeError, PluginError: a path that the recipe names cannot be used here, or computes something else.
    """
    experiment, accelerator = data.experiment, device.accelerator
    paths = [make() for make in experiment.make_fast_paths]
    if paths:
        experiment.listener.phase("compare fast paths")
    probe = ProbeBatch.of(data.encoded["train"], loaded, accelerator.device, device.precision.compute)
    context, named = training_context(data, device, strategy, steps), experiment.names_fast_paths
    chosen = choose_fast_paths(paths, probe, context, named=named, accelerator=accelerator)
    experiment.listener.message(f"fast paths: {chosen}")
    return chosen


def training_context(data: PreparedData, device: Device, strategy: Strategy, steps: Steps) -> TrainingContext:
    """Return the facts about a training that fast paths are given."""
    experiment, accelerator, train = data.experiment, device.accelerator, data.encoded["train"]
    section = experiment.recipe.train

    def room() -> int:
        free = available_bytes(accelerator.device)
        return min(section.memory_limit or free, free) - peak_memory_bytes()

    again = steps.total > steps.per_epoch and not train.augmenters and accelerator.num_processes == 1
    return TrainingContext(
        device=accelerator.device,
        repeats=again and not overrides(strategy, "frozen_parameters"),
        tokens=int(train.lengths.sum()),
        room=room,
        message=experiment.listener.message,
        one_row=all(len(x) == 1 for x in train.batch(np.arange(1)).values() if isinstance(x, Tensor) and x.ndim),
    )

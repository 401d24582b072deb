"""Choosing the fast paths of a run.

A comparison that found fast paths equal to the model is cached, so that `train` need not repeat what `plan` did. A path
that differs or fails is not cached, so it is compared and reported each time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from ftengine.api import FastPath, LoadedModel, Strategy, TrainingContext, overrides
from ftengine.api.on_policy import is_on_policy
from ftengine.engine.dependencies import dependencies, prepared_by
from ftengine.engine.experiment import Experiment, described
from ftengine.engine.prepared_data import PreparedData
from ftengine.identity.cache import cache_key, cached_text, keep_text
from ftengine.parallel.device import Device
from ftengine.plugins.attribution import json_mapping
from ftengine.run.environment import build, peak_memory_bytes
from ftengine.training.fast_paths import FastPaths, Replaced, choose_fast_paths, require_device
from ftengine.training.memory import available_bytes, release_memory
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
        release_memory()  # what measuring the base left behind
    probe = ProbeBatch.of(data.encoded["train"], loaded, accelerator.device, device.precision.compute)
    context, named = training_context(data, device, strategy, steps), experiment.names_fast_paths
    depends = _depends(data, device, loaded, strategy, paths, probe)
    before = None if depends is None else _Compared(depends)
    with nullcontext() if depends is None else _probed_once(loaded, depends):
        chosen = choose_fast_paths(paths, probe, context, named=named, accelerator=accelerator, before=before)
    experiment.listener.message(f"fast paths: {chosen}")
    return chosen


@contextmanager
def _probed_once(loaded: LoadedModel, depends: list[Any]) -> Iterator[None]:
    """Restore the cached probe results of inference paths for a model, or cache them for later runs."""
    paths = {cache_key("probes", [path.name, depends]): path for path in loaded.inference_paths}
    stored = {key: cached_text(key) for key in paths}
    for key, path in paths.items():
        if (text := stored[key]) is not None:
            path.restore_probe_result(loaded.module, json.loads(text))
    yield
    for key, path in paths.items():
        if stored[key] is None and (result := path.probe_result(loaded.module)) is not None:
            keep_text(key, f"what {path.name} found out about a model", json.dumps(result))


class _Compared:
    """The cache of comparisons that found no difference."""

    def __init__(self, depends: list[Any]) -> None:
        self._depends = depends

    def was_compared(self, replaced: Replaced) -> bool:
        """Return whether paths with these replaced modules were already compared."""
        return cached_text(self._key(replaced)) is not None

    def keep(self, replaced: Replaced) -> None:
        keep_text(self._key(replaced), "which fast paths were compared", "")

    def _key(self, replaced: Replaced) -> str:
        return cache_key("paths", [self._depends, {name: counts and dict(counts) for name, counts in replaced.items()}])


def _depends(
    data: PreparedData,
    device: Device,
    loaded: LoadedModel,
    strategy: Strategy,
    paths: Sequence[FastPath],
    probe: ProbeBatch,
) -> list[Any] | None:
    """Return everything that a comparison of fast paths depends on, as JSON values; None where it is unknown.

    It counts as unknown with several processes, and if the recipe turns off reuse (evaluation.reuse_base).
    """
    ready = data.ready
    if device.accelerator.num_processes > 1 or not ready.recipe.evaluation.reuse_base:
        return None
    computed = dependencies(device, ready, loaded, [strategy, *paths])
    batch = probe.content()
    if computed is None or batch is None:
        return None
    reports = json_mapping(strategy, "environment", strategy.environment())
    by = [described(strategy), reports, prepared_by(strategy), ready.recipe.training_seed]
    return [computed, by, [described(path) for path in paths], batch, build()]


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
        repeats=again and not overrides(strategy, "frozen_parameters") and not is_on_policy(data.ready.task),
        tokens=int(train.lengths.sum()),
        room=room,
        message=experiment.listener.message,
        one_row=all(len(x) == 1 for x in train.batch(np.arange(1)).values() if isinstance(x, Tensor) and x.ndim),
    )

"""Counting the parameters that a strategy trains, from the model's config alone."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

from ftengine.api import Labels, Listener, LoadedModel, LoadRequest, overrides
from ftengine.engine.experiment import Experiment
from ftengine.engine.prepared_data import apply_strategy
from ftengine.errors import DataError, SourceError
from ftengine.model import count, parameter_sizes, trainable
from ftengine.plugins.attribution import matched
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import Recipe


@dataclass(frozen=True)
class ParameterCount:
    """How many parameters of a model a strategy trains.

    Args:
        trainable_parameters, total_parameters: numbers of the prepared model's parameters; `base_parameters` before the
            strategy changed it.
        new_modules: trainable parameters of each newly initialised module. They are part of
            `trainable_parameters`; tables in papers mostly leave them out.
        patterns: for each pattern of the strategy, the number of matched modules, their parameters, and how many
            of these train.
        notes: the strategy's own facts about what trains, then its warnings, then those of the task.
    """

    model: dict[str, Any]
    strategy: dict[str, Any]
    trainable_parameters: int
    total_parameters: int
    base_parameters: int
    new_modules: dict[str, int]
    patterns: dict[str, dict[str, int]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {**asdict(self), "trainable_share": self.trainable_parameters / self.total_parameters}


def count_parameters(
    recipe: Recipe, *, labels: int = 2, listener: Listener | None = None, registry: Registry | None = None
) -> ParameterCount:
    """Count the parameters that would train; needs the model's config, but no data, weights or tokenizer.

    Args:
        recipe: the recipe; its data is not read.
        labels: number of outputs of a classification head, which otherwise follows from the data.

    Raises:
        InputError: model, task or strategy cannot be used, or a pattern matches nothing.
    """
    experiment = Experiment.open(recipe, registry, listener, check_source=False)
    task, loader, strategy = experiment.make_task(), experiment.loader, experiment.make_strategy()
    source = recipe.model.source
    try:
        labels_learned = task.learn_labels({"train": ()})  # of numbers, the options say how many there are
    except DataError:  # it has labels, which only data tells
        labels_learned = Labels("single", tuple(f"LABEL_{i}" for i in range(labels)))
    request = LoadRequest(source, task.head, labels_learned, processor=False)
    experiment.listener.phase("count parameters")
    build = loader.load_skeleton if overrides(loader, "load_skeleton") else loader.load
    loaded = build(request)
    if loaded.processor is None:
        with suppress(SourceError):  # a strategy may want it, and where there is none, does without
            loaded.processor = loader.load_processor(source)
    _, base = count(loaded.module)
    apply_strategy(strategy, loaded)
    trained, total = count(loaded.module)
    return ParameterCount(
        model={
            "source": source,
            "loader": loader.name,
            "class": type(loaded.module).__name__,
            "head": task.head,
            "labels": list(request.labels.names) if request.labels else None,
        },
        strategy=experiment.make_strategy.described,
        trainable_parameters=trained,
        total_parameters=total,
        base_parameters=base,
        new_modules={name: _count_below(loaded, [name])[1] for name in loaded.new_modules},
        patterns={
            pattern: {"modules": len(modules), "parameters": held, "trainable_parameters": training}
            for pattern, modules in matched(strategy).items()
            for held, training in [_count_below(loaded, modules)]
        },
        notes=[note for notes in (*strategy.notes(loaded), *task.notes(loaded, strategy)) for note in notes],
    )


def _count_below(loaded: LoadedModel, paths: list[str]) -> tuple[int, int]:
    """Return the number of parameters at or below some module paths, and how many of them train."""
    counted_paths = set(paths)
    sizes = {
        name: size
        for name, size in parameter_sizes(loaded.module).items()
        if not counted_paths.isdisjoint(accumulate(name.split("."), "{}.{}".format))
    }
    return sum(sizes.values()), sum(sizes[name] for name in sizes.keys() & trainable(loaded.module).keys())

"""The first stage of a run: a recipe and its components, checked for compatibility."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from ftengine.api import (
    Augmenter,
    InferencePath,
    Listener,
    LoadRequest,
    ModelLoader,
    Schedule,
    SilentListener,
    Task,
    overrides,
)
from ftengine.chat.template_date import fix_date
from ftengine.engine.shared_base import SharedBase
from ftengine.errors import RecipeError, naming
from ftengine.parallel.sharding import require_sharding_support
from ftengine.plugins.registry import AUTO, Factory, Registry
from ftengine.run.date import current_date
from ftengine.run.recipe import Recipe
from ftengine.run.recipe_sources import listed
from ftengine.training.callbacks import Callbacks


@dataclass(frozen=True)
class Experiment:
    """A recipe and its components, before data is read or a model is loaded.

    Args:
        registry: all installed components.
        make_task, make_strategy, make_regularizers, make_optimizer, make_fast_paths: factories of components that
            belong to one model; each call builds a new one.
        augmenters: applied to the training split, in this order.
        day: the date that the model's chat template writes.
        shared_base: the base in memory that runs of this process share, if any.
    """

    recipe: Recipe
    registry: Registry
    listener: Listener
    loader: ModelLoader
    make_task: Factory
    make_strategy: Factory
    augmenters: tuple[Augmenter, ...]
    make_regularizers: tuple[Factory, ...]
    make_optimizer: Factory
    schedule: Schedule
    make_fast_paths: tuple[Factory, ...]
    callbacks: Callbacks
    day: date
    shared_base: SharedBase | None = None

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        registry: Registry | None = None,
        listener: Listener | None = None,
        *,
        check_source: bool = True,
        day: date | None = None,
    ) -> Experiment:
        """Build a recipe's components and check its model source, without reading data or weights.

        Args:
            check_source: whether to check that the model is complete, including its weights.
            day: the date on which the run began; None: today.

        Raises:
            PluginError, UnknownName, RecipeError, SourceError: a component, the recipe or the source is wrong.
        """
        registry, listener = registry or Registry(), listener or SilentListener()
        registry.plugins.raise_if_broken()
        with naming(recipe.origin):
            experiment = cls._of(recipe, registry, listener, day or current_date())
            own = {f"data.train.{i}.reader": part.reader for i, part in enumerate(listed(recipe.data.train))}
            for key, reader in {"data.reader": recipe.data.reader, **own}.items():
                if reader is not None and reader["name"] != AUTO:
                    registry.factory("reader", reader, key)
            for i, spec in enumerate(recipe.evaluate):
                registry.build("evaluator", spec, f"evaluate.{i}")
                if any(spec["name"] == other["name"] for other in recipe.evaluate[:i]):
                    raise RecipeError(
                        f"evaluate has {spec['name']!r} twice: an evaluator measures once. Remove one of them."
                    )
            for i, spec in enumerate(recipe.evaluation.robustness):
                registry.build("augmenter", spec, f"evaluation.robustness.{i}")
            experiment._require_agreement()
        if check_source:
            experiment.check_source()
        return experiment

    @classmethod
    def _of(cls, recipe: Recipe, registry: Registry, listener: Listener, day: date) -> Experiment:
        callbacks = Callbacks(recipe, registry, listener)
        make_task = registry.factory("task", recipe.task, "task")
        return cls(
            recipe,
            registry,
            listener,
            registry.loader_of(recipe.model.source, recipe.model.loader),
            make_task,
            _under(make_task(), registry.factory("strategy", recipe.strategy, "strategy")),
            tuple(registry.build("augmenter", spec, f"augment.{i}") for i, spec in enumerate(recipe.augment)),
            tuple(registry.factory("regularizer", spec, f"regularize.{i}") for i, spec in enumerate(recipe.regularize)),
            registry.usual("optimizer", recipe.train.optimizer, "train.optimizer"),
            registry.usual("schedule", recipe.train.schedule, "train.schedule")(),
            _fast_paths(recipe.train.fast_paths, registry),
            callbacks,
            day,
        )

    def check_source(self) -> None:
        """Raise SourceError if the loader can tell, without weights, that the model source cannot be loaded."""
        self.loader.check_source(self.recipe.model.source)

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values, with every option of every component."""
        content = self.recipe.resolved()
        content["model"]["loader"] = described(self.loader)
        content["task"], content["strategy"] = self.make_task.described, self.make_strategy.described
        if (reader := self.recipe.data.reader)["name"] != AUTO:
            content["data"]["reader"] = self.registry.factory("reader", reader, "data.reader").described
        content["train"] |= {"optimizer": self.make_optimizer.described, "schedule": described(self.schedule)}
        if self.names_fast_paths:
            content["train"]["fast_paths"] = [make.described for make in self.make_fast_paths]
        content["augment"] = [described(augmenter) for augmenter in self.augmenters]
        content["regularize"] = [make.described for make in self.make_regularizers]
        return content

    @property
    def names_fast_paths(self) -> bool:
        """Whether the recipe names its fast paths, so that one that cannot be used is an error."""
        return isinstance(self.recipe.train.fast_paths, list)

    def inference_paths(self) -> tuple[InferencePath, ...]:
        """Return the fast paths for prediction and generation; none of them needs options."""
        classes = [entry.cls for entry in self.registry.buildable("fast-path")]
        return tuple(cls() for cls in classes if issubclass(cls, InferencePath))

    def request(self, task: Task) -> LoadRequest:
        """Return the request for the model loader."""
        return LoadRequest(self.recipe.model.source, task.head, task.labels)

    def with_day(self, processor: Any) -> Any:
        """Fix the date that a processor's chat template writes to the run's day, and return the processor."""
        fix_date(processor, self.day)
        return processor

    def _require_agreement(self) -> None:
        """Raise RecipeError if components cannot train together, or under the recipe's `train`."""
        section, first = self.recipe.train, dict[str, int]()
        names = [make.entry.name for make in self.make_fast_paths]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise RecipeError(f"train.fast_paths names {twice!r} twice. Remove one of them.")
        if section.parallel == "fsdp":
            require_sharding_support(self.make_strategy(), "strategy")
            require_sharding_support(self.make_optimizer(), "optimizer")
            for make in self.make_regularizers:
                require_sharding_support(make(), "regularizer")
        for i, augmenter in enumerate(self.augmenters):
            if section.batch_size == 1 and overrides(augmenter, "mix"):
                raise RecipeError(
                    f"augmenter {augmenter.name!r} (recipe key augment.{i}) mixes the examples of a micro-batch, and "
                    "train.batch_size is 1. Set that to 2 or more, or take the augmenter out of the recipe."
                )
        for i, make in enumerate(self.make_regularizers):
            regularizer = make()
            before = first.setdefault(regularizer.name, i)
            if before != i:
                raise RecipeError(
                    f"regularizer {regularizer.name!r} is in the recipe twice (recipe keys regularize.{before} and "
                    f"regularize.{i}). Remove one of them."
                )
            replaces = regularizer.traits.replaces_weight_decay
            if section.weight_decay and replaces:
                raise RecipeError(
                    f"regularizer {regularizer.name!r} (recipe key regularize.{i}) takes the place of "
                    f"train.weight_decay, which is {section.weight_decay:g} and would pull weights towards zero as "
                    "well. Set train.weight_decay to 0, or take the regularizer out of the recipe."
                )


def _under(task: Task, make_strategy: Factory) -> Factory:
    """Return the strategy's factory with the task's defaults for options that the recipe does not set."""
    config = make_strategy.config
    free = type(config).model_fields.keys() - config.model_fields_set
    own = {option: value for option, value in task.traits.strategy_defaults if option in free}
    return replace(make_strategy, config=config.model_copy(update=own)) if own else make_strategy


def _fast_paths(requested: str | list[dict[str, Any]], registry: Registry) -> tuple[Factory, ...]:
    """Return the factories of a recipe's fast paths: all that need no options, none, or those that it names."""
    if requested == "off":
        return ()
    specs: list[Any] = (
        [entry.name for entry in registry.buildable("fast-path")] if requested == AUTO else list(requested)
    )
    return tuple(registry.factory("fast-path", spec, f"train.fast_paths.{i}") for i, spec in enumerate(specs))


def described(component: Any) -> dict[str, Any]:
    """Return a component's name and all its options, as in a recipe."""
    return {"name": component.name, **component.config.model_dump(mode="json")}

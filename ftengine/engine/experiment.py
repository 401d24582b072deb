"""What a recipe becomes: built components, then data, then a model. Each step is one method of `Job`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ftengine.api import (
    Augmenter,
    BuildsSkeletons,
    ChangesAtTheEnd,
    ChecksSource,
    Evaluator,
    Example,
    Infers,
    Listener,
    LoadedModel,
    LoadRequest,
    MixesBatches,
    ModelLoader,
    Regularizer,
    ReplacesWeightDecay,
    SilentListener,
    Strategy,
    Task,
)
from ftengine.data.audit import run_audits
from ftengine.data.augmentation import require_suitable
from ftengine.data.encoding import EncodedSplit, encode_split
from ftengine.data.read import Rows
from ftengine.data.split import Splits, make_splits
from ftengine.engine.callbacks import Callbacks
from ftengine.errors import BaseMismatch, DataError, InputError, RecipeError, SourceError, naming
from ftengine.evaluation.requirements import by_pass
from ftengine.evaluation.slices import require_column
from ftengine.plugins.registry import Factory, Registry
from ftengine.run.recipe import Recipe
from ftengine.run.records import AuditResult
from ftengine.training.modes import require_gradient_checkpointing
from ftengine.training.regularizing import Attached


@dataclass
class Job:
    """A recipe's components, and what they have produced so far."""

    recipe: Recipe
    registry: Registry
    listener: Listener
    loader: ModelLoader
    task: Task
    strategy: Strategy
    augmenters: Sequence[Augmenter]
    regularizers: Sequence[Regularizer]
    callbacks: Callbacks
    make_strategy: Factory
    make_regularizers: Sequence[Factory]
    processor: Any = None
    audit: AuditResult = field(init=False)
    """What is known of the data, after `encode`."""
    skeleton: LoadedModel | None = None
    tried: Strategy | None = None
    """The strategy that prepared the skeleton."""
    trained_base: frozenset[str] | None = None
    """Base parameters that the strategy trains, known from the skeleton; None without one."""
    targets: dict[str, list[str]] = field(default_factory=dict)
    """Modules that each of the strategy's patterns matched."""

    @classmethod
    def open(
        cls,
        recipe: Recipe,
        registry: Registry | None = None,
        listener: Listener | None = None,
        *,
        check_source: bool = True,
    ) -> Job:
        """Build a recipe's components and check its model source, without reading data or weights.

        Args:
            recipe: what to build.
            registry: components; by default those of all installed plugins.
            listener: told of phases.
            check_source: whether the model has to be complete, weights included.

        Raises:
            PluginError, UnknownName, RecipeError, SourceError: whatever is wrong so far.
        """
        registry, listener = registry or Registry(), listener or SilentListener()
        registry.plugins.raise_if_broken()
        callbacks = Callbacks(recipe, registry, listener)
        loader = choose_loader(recipe, registry)
        make_strategy = registry.factory("strategy", recipe.strategy, "strategy")
        make_regularizers = [
            registry.factory("regularizer", spec, f"regularize.{i}") for i, spec in enumerate(recipe.regularize)
        ]
        job = cls(
            recipe,
            registry,
            listener,
            loader,
            registry.build("task", recipe.task, "task"),
            make_strategy(),
            [registry.build("augmenter", spec, f"augment.{i}") for i, spec in enumerate(recipe.augment)],
            [make() for make in make_regularizers],
            callbacks,
            make_strategy,
            make_regularizers,
        )
        for i, spec in enumerate(recipe.evaluate):
            registry.build("evaluator", spec, f"evaluate.{i}")
        for i, spec in enumerate(recipe.evaluation.robustness):
            registry.build("augmenter", spec, f"evaluation.robustness.{i}")
        if check_source and isinstance(loader, ChecksSource):
            loader.check_source(recipe.model.source)
        return job

    def resolved(self) -> dict[str, Any]:
        """Return the recipe as plain values, the options of every component written out."""
        content = self.recipe.resolved()
        content["model"]["loader"] = described(self.loader)
        content["task"], content["strategy"] = described(self.task), described(self.strategy)
        content["augment"] = [described(augmenter) for augmenter in self.augmenters]
        content["regularize"] = [described(regularizer) for regularizer in self.regularizers]
        return content

    def read_data(self) -> Splits:
        """Read and split the data, and let the task learn its labels.

        Raises:
            RecipeError: the components do not go together.
            DataError: a file is missing or malformed, or does not hold what the task needs.
        """
        self._require_agreement()
        self.listener.phase("read data")
        splits = make_splits(self.recipe.data, self.task, self.recipe.seed)
        located = {name: Located(rows) for name, rows in splits.mapping().items()}
        try:
            self.task.labels = self.task.bind(located)
        except DataError as error:
            place = next((x.place() for x in located.values() if x.place()), "")
            raise DataError(f"{place}: {error}" if place else str(error)) from None
        for i, augmenter in enumerate(self.augmenters):
            with naming(f"augment.{i}"):
                require_suitable(augmenter, self.task)
        held = splits.validation if splits.test is None else splits.test
        if held is not None:
            for column in self.recipe.evaluation.slices:
                require_column(held, column)
        for regularizer in self.regularizers:
            wants = isinstance(regularizer, ChangesAtTheEnd) and regularizer.needs_validation
            if wants and "validation" not in splits.mapping():
                raise RecipeError(
                    f"regularizer {regularizer.name!r}, as the recipe sets it, chooses by the validation loss, and "
                    "there is no validation split. Set data.validation, or change its options."
                )
        return splits

    def load_skeleton(self) -> None:
        """Let the strategy prepare a model without weights, so that a wrong pattern is found early.

        Raises:
            NoMatch: a pattern matches no module.
            RecipeError: the model, as the strategy prepares it, cannot do what the recipe asks.
        """
        if not isinstance(self.loader, BuildsSkeletons):
            return
        self.listener.phase("check strategy")
        self.skeleton = self.loader.load_skeleton(self._request())
        original = dict(self.skeleton.module.named_parameters())
        prepare(self.strategy, self.skeleton)
        if self.recipe.train.gradient_checkpointing:
            require_gradient_checkpointing(self.skeleton.module)
        self.trained_base = frozenset(name for name, parameter in original.items() if parameter.requires_grad)
        self.targets = self.strategy.matches()
        Attached(self.regularizers, self.skeleton, self.task).detach()
        self.tried = self.strategy
        # The model itself is prepared by a fresh strategy and regularized by fresh regularizers: one object, one model.
        self.strategy = self.make_strategy()
        self.regularizers = [make() for make in self.make_regularizers]

    def encode(self, splits: Splits) -> dict[str, EncodedSplit]:
        """Encode every split once, to count tokens and to find bad rows, and let the audits look at the data.

        Raises:
            DataError: a row cannot be encoded, or nothing is left to train on.
        """
        self.load_processor()
        encoded = {name: self.encode_rows(name, rows) for name, rows in splits.mapping().items()}
        if splits.audited is not None:
            self.listener.phase("audit data")
            summaries = {name: split.summary() for name, split in encoded.items()}
            self.audit = run_audits(splits.audited, summaries, self.registry)
        return encoded

    def encode_rows(self, name: str, rows: Rows) -> EncodedSplit:
        """Encode one split; only the training split is augmented."""
        return encode_split(
            name,
            rows,
            self.task,
            self.processor,
            self.skeleton.max_length if self.skeleton else None,
            on_error=self.recipe.data.on_error,
            listener=self.listener,
            augmenters=self.augmenters if name == "train" else (),
            seed=self.recipe.seed,
        )

    def load_processor(self) -> None:
        """Load the tokenizer or image processor alone."""
        from accelerate.utils import set_seed

        set_seed(self.recipe.seed)  # a callable may build its model here already
        self.processor = self.loader.load_processor(self.recipe.model.source)

    def load_model(self) -> LoadedModel:
        """Load the base model in its checkpoint's dtype and take its fingerprint.

        Raises:
            SourceError: it cannot be loaded.
        """
        from accelerate.utils import set_seed

        from ftengine.model import fingerprint_processor, fingerprint_weights

        self.listener.phase("load model")
        set_seed(self.recipe.seed)  # a fresh head is a function of the recipe
        loaded = self.loader.load(self._request())
        loaded.fingerprint = {
            "weights": fingerprint_weights(loaded.module, loaded.new_modules),
            "processor": fingerprint_processor(loaded.processor),
        }
        if self.trained_base is not None:
            for name, parameter in loaded.module.named_parameters():
                parameter.requires_grad_(name in self.trained_base and parameter.is_floating_point())
        self.processor = loaded.processor
        return loaded

    def prepare(self, loaded: LoadedModel) -> None:
        """Apply the strategy to the loaded model, reproducibly."""
        from accelerate.utils import set_seed

        set_seed(self.recipe.seed)
        prepare(self.strategy, loaded)
        self.targets = self.strategy.matches()

    def evaluators(self) -> list[Evaluator]:
        """Build the task's evaluators and those that the recipe adds, each once.

        Raises:
            RecipeError: an evaluator needs what the task does not predict, or two report one metric.
        """
        specs: dict[str, Any] = {name: name for name in self.task.evaluators}
        specs |= {spec["name"]: spec for spec in self.recipe.evaluate}
        built = [self.registry.build("evaluator", spec, f"evaluate.{name}") for name, spec in specs.items()]
        by_pass(built, self.task)
        return built

    def _require_agreement(self) -> None:
        """Refuse components that cannot train with one another, or under the recipe's `train`."""
        section, first = self.recipe.train, dict[str, int]()
        for i, augmenter in enumerate(self.augmenters):
            if section.batch_size == 1 and isinstance(augmenter, MixesBatches):
                raise RecipeError(
                    f"augmenter {augmenter.name!r} (recipe key augment.{i}) mixes the examples of a micro-batch, and "
                    "train.batch_size is 1. Set that to 2 or more, or take the augmenter out of the recipe."
                )
        for i, regularizer in enumerate(self.regularizers):
            before = first.setdefault(regularizer.name, i)
            if before != i:
                raise RecipeError(
                    f"regularizer {regularizer.name!r} stands in the recipe twice (recipe keys regularize.{before} and "
                    f"regularize.{i}). Leave one of them."
                )
            replaces = isinstance(regularizer, ReplacesWeightDecay) and regularizer.replaces_weight_decay
            if section.weight_decay and replaces:
                raise RecipeError(
                    f"regularizer {regularizer.name!r} (recipe key regularize.{i}) takes the place of "
                    f"train.weight_decay, which is {section.weight_decay:g} and would pull weights towards zero as "
                    "well. Set train.weight_decay to 0, or take the regularizer out of the recipe."
                )

    def _request(self) -> LoadRequest:
        return LoadRequest(self.recipe.model.source, self.task.head, self.task.labels)


def prepare(strategy: Strategy, loaded: LoadedModel) -> None:
    """Apply a strategy; freshly initialised modules train under every one.

    Raises:
        SourceError: the loader named a new module that does not exist.
    """
    new = tuple(f"{name}." for name in loaded.new_modules)
    base = {id(p): p for name, p in loaded.module.named_parameters() if not name.startswith(new)}
    strategy.prepare(loaded)
    loaded.pretrained = frozenset(name for name, p in loaded.module.named_parameters() if id(p) in base)
    for name in loaded.new_modules:
        try:
            loaded.module.get_submodule(name).requires_grad_(True)
        except AttributeError:
            raise SourceError(f"{loaded.source!r} has no module {name!r}, which its loader calls new.") from None


def inferring(task: Task) -> Infers:
    """Return a task that answers rows without labels, as itself.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(task, Infers):
        raise InputError(f"task {task.name!r} answers no rows without labels, so there is nothing to predict.")
    return task


def require_same_base(loaded: LoadedModel, stored: Mapping[str, str], where: str) -> None:
    """Refuse a base model or tokenizer that differs from the one trained on.

    Args:
        loaded: the base at hand.
        stored: the fingerprint saved with the trained part.
        where: the trained part's place, for the message.

    Raises:
        BaseMismatch: weights, vocabulary or chat template differ.
    """
    names = {"weights": "weights", "processor": "tokenizer (vocabulary or chat template)"}
    changed = [text for key, text in names.items() if loaded.fingerprint.get(key) != stored.get(key)]
    if changed:
        raise BaseMismatch(
            f"{where} was trained on another base: the {' and the '.join(changed)} of {loaded.source!r} differ from "
            "what the run recorded. Restore the base that it was trained on, or train again."
        )


def choose_loader(recipe: Recipe, registry: Registry) -> ModelLoader:
    """Build the loader that the recipe names, or the first that accepts its source.

    Raises:
        UnknownName: no loader has that name.
        SourceError: no loader accepts the source.
    """
    spec, source = recipe.model.loader, recipe.model.source
    if spec["name"] != "auto":
        return registry.build("loader", spec, "model.loader")
    options = {key: value for key, value in spec.items() if key != "name"}
    for entry in registry.entries("loader"):
        if entry.cls().accepts(source):  # type: ignore[attr-defined]
            return registry.build("loader", {"name": entry.name, **options}, "model.loader")
    known = ", ".join(entry.name for entry in registry.entries("loader"))
    hint = "" if os.path.exists(source) else " There is no such file or folder here."
    raise SourceError(
        f"no loader accepts model.source {source!r} (tried: {known}).{hint} Give a folder with config.json, a .gguf "
        "file, a hub id, package://NAME/FILE, timm://NAME or torchvision://NAME; name model.loader for anything else."
    )


def described(component: Any) -> dict[str, Any]:
    """Return a component as a recipe writes it, with every option."""
    return {"name": component.name, **component.config.model_dump(mode="json")}


class Located:
    """Rows that remember which one is being read, so that an error can say where."""

    def __init__(self, rows: Rows) -> None:
        self._rows, self._at = rows, -1

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Example]:
        for self._at, row in enumerate(self._rows):  # noqa: B020 (self is not what is iterated)
            yield row
        self._at = -1

    def place(self) -> str:
        return self._rows.where(self._at) if self._at >= 0 else ""

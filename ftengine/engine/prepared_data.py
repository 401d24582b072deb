"""The second stage of a run: data is read, split, audited and encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed

from ftengine.api import Evaluator, Example, Labels, Listener, LoadedModel, SilentListener, Strategy, Task, overrides
from ftengine.api.on_policy import is_on_policy
from ftengine.api.task_sorts import reference_keys
from ftengine.data.augmentation import require_suitable
from ftengine.data.encoding import EncodedSplit, encode_split, unusable
from ftengine.data.mixed import SOURCE
from ftengine.data.rows import DataRows
from ftengine.data.split import Splits, make_splits
from ftengine.data.unread import find_unread
from ftengine.engine.audits import audited
from ftengine.engine.experiment import Experiment
from ftengine.engine.model_fit import require_fit
from ftengine.errors import DataError, InputError, NoMatch, PluginError, RecipeError, RefusedRows, SourceError, naming
from ftengine.evaluation.plan import by_pass, read_columns
from ftengine.evaluation.slices import require_column
from ftengine.model import drops, trainable
from ftengine.parallel.sharding import require_shardable
from ftengine.plugins.attribution import described, named
from ftengine.plugins.registry import Registry
from ftengine.run.recipe import Recipe
from ftengine.run.records import AuditResult
from ftengine.run.seal import require_saved
from ftengine.training.modes import require_gradient_checkpointing
from ftengine.training.regularizing import Attached, own_regularizers


@dataclass(frozen=True)
class Skeleton:
    """The model without weights (meta device) as the strategy prepared it.

    Args:
        trained_base: names of base parameters that train.
        dropping: the base's own modules with dropout in training, after regularizers are attached.
    """

    loaded: LoadedModel
    strategy: Strategy
    trained_base: frozenset[str]
    dropping: tuple[str, ...] = ()


@dataclass(frozen=True)
class LabelledTask:
    """A task whose labels are known, with the experiment that it belongs to."""

    experiment: Experiment
    task: Task

    @property
    def recipe(self) -> Recipe:
        return self.experiment.recipe

    @property
    def registry(self) -> Registry:
        return self.experiment.registry

    @property
    def listener(self) -> Listener:
        return self.experiment.listener

    @property
    def used_columns(self) -> set[str]:
        """Columns of the user's rows that are read by components other than the task."""
        data = self.recipe.data
        several = None if isinstance(data.train, str) else SOURCE
        own = {column for column in (data.split.column, data.group, several) if column is not None}
        return {*self.recipe.evaluation.slices, *read_columns(self.evaluators()), *own}

    def group_column(self, rows: DataRows) -> str | None:
        """Return the group column; None, with a message to the listener, if the rows lack it."""
        column = self.recipe.data.group_column
        if column is None or column in rows.columns:
            return column
        self.listener.message(f"{rows.source} has no column {column!r}, so each of its rows is taken for a group")
        return None

    def evaluators(self) -> list[Evaluator]:
        """Build the evaluators of the task and those of the recipe, each once.

        Raises:
            RecipeError: an evaluator reads a key that the task does not predict, or two report the same metric.
        """
        options = self.task.evaluator_options if is_on_policy(self.task) else {}
        specs: dict[str, Any] = {name: {"name": name, **options.get(name, {})} for name in self.task.evaluators}
        specs |= {spec["name"]: spec for spec in self.recipe.evaluate}
        built = [self.registry.build("evaluator", spec, f"evaluate.{name}") for name, spec in specs.items()]
        by_pass(built, self.task)
        return built


@dataclass(frozen=True)
class ReadyTask(LabelledTask):
    """A task with the processor and model that rows are encoded for; `skeleton` is None if the loader builds none."""

    skeleton: Skeleton | None
    processor: Any

    @property
    def max_length(self) -> int | None:
        """The longest input of the prepared model; None if there is no limit or it is not known yet."""
        return self.skeleton.loaded.max_length if self.skeleton else None

    def encode(self, name: str, rows: DataRows, *, quiet: bool = False) -> EncodedSplit:
        """Encode one split, without messages if `quiet`; only the training split is augmented.

        Raises:
            DataError: a row cannot be encoded, or no row is left to train on.
            SourceError: the tokenizer does not belong to the model.
        """
        split = encode_split(
            name,
            rows,
            self.task,
            self.processor,
            self.max_length,
            on_error=self.recipe.data.on_error,
            listener=SilentListener() if quiet else self.listener,
            augmenters=self.experiment.augmenters if name == "train" else (),
            seed=self.recipe.training_seed,
            group=None if name == "train" else self.group_column(rows),
        )
        split = split.mixed() if name == "train" else split
        if name == "train" and self.recipe.train.sampling == "balanced":
            split = split.sampled_evenly()
        if self.skeleton is not None:
            require_fit(self.skeleton.loaded, [split])
        return split

    def without_unusable(self, splits: Splits) -> Splits:
        """Return the splits, divided again without the rows that cannot be encoded, if there are any.

        This applies with `data.on_error: skip`, and only to a source that ftengine divides; a split in a file of its
        own just loses the bad rows.
        """
        data, named = self.recipe.data, splits.mapping()
        parts = [rows for rows in named.values() if rows.source == data.train_name]
        if data.on_error == "fail" or len(parts) == 1:
            return splits
        reasons = dict(chain(*(unusable(rows, self.task, self.processor, self.max_length) for rows in parts)))
        return splits.divide(reasons) if reasons else splits


@dataclass(frozen=True)
class PreparedData:
    """Rows and encoded examples by split, with the audit's findings."""

    ready: ReadyTask
    splits: Splits
    encoded: Mapping[str, EncodedSplit]
    audit: AuditResult

    @property
    def experiment(self) -> Experiment:
        return self.ready.experiment


def prepare_data(experiment: Experiment, *, like: PreparedData | None = None) -> PreparedData:
    """Read, split, audit and encode the data; the strategy prepares a model without weights on the way.

    Args:
        experiment: the recipe and its components.
        like: the prepared data of another strategy, whose rows, labels and audit are reused.

    Raises:
        InputError: the data is wrong, or the model, strategy and data do not fit together.
    """
    if like is None:
        ready, splits = _read(experiment)
    else:
        task, splits = experiment.make_task(), like.splits
        task.labels = like.ready.task.labels
        check_components(experiment, task, splits)
        ready = ready_task(experiment, task)
    encoded = {name: ready.encode(name, rows) for name, rows in splits.mapping().items()}
    audit = _audit(ready, splits, encoded) if like is None else like.audit
    return PreparedData(ready, splits, encoded, audit)


def _read(experiment: Experiment) -> tuple[ReadyTask, Splits]:
    """Read and split the data, and let the task learn its labels from the training split."""
    task, data = experiment.make_task(), experiment.recipe.data
    experiment.listener.phase("read data")
    splits = make_splits(data, task, experiment.recipe.seed, experiment.registry)
    stratified = data.split.by == "stratified"
    task.labels = learn_labels(task, splits.mapping(), stratified=stratified)
    check_components(experiment, task, splits)
    ready = ready_task(experiment, task)
    if (divided := ready.without_unusable(splits)) is not splits:  # other rows may train now, and have other labels
        first_labels, splits = task.labels, divided
        task.labels = learn_labels(task, splits.mapping(), stratified=stratified)
        ready = ready if task.labels == first_labels else ready_task(experiment, task)
    return ready, splits


def _audit(ready: ReadyTask, splits: Splits, encoded: Mapping[str, EncodedSplit]) -> AuditResult:
    ready.listener.phase("audit data")
    summaries = {name: split.summary() for name, split in encoded.items()}
    summaries["train"]["unread"] = find_unread(encoded["train"], ready.used_columns)
    added = getattr(ready.processor, "added_tokens_decoder", {}).values()
    special = {token.content for token in added if token.special}  # `all_special_tokens` has those with a role alone
    summaries["train"]["special_tokens"] = sorted(special.union(getattr(ready.processor, "all_special_tokens", ())))
    data = splits.audited({name: split.left_out for name, split in encoded.items()})
    return audited(data, summaries, ready.task, ready.registry)


def check_components(experiment: Experiment, task: Task, splits: Splits) -> None:
    """Raise InputError, naming the key, if augmenters, slices or regularizers do not suit the data."""
    for i, augmenter in enumerate(experiment.augmenters):
        with naming(f"augment.{i}"):
            require_suitable(augmenter, task)
            if is_on_policy(task):
                raise RecipeError(
                    f"augmenter {augmenter.name!r} changes rows, and task {task.name!r} learns from answers to prompts "
                    "as they stand. Take it out."
                )
            if reference_keys(task):
                raise RecipeError(
                    f"augmenter {augmenter.name!r} changes rows in every epoch, and task {task.name!r} needs the "
                    "reference's predictions for unchanged rows. Remove the augmenter, or choose a loss without "
                    "reference."
                )
    held = splits.validation if splits.test is None else splits.test
    if held is not None:
        for column in experiment.recipe.evaluation.slices:
            require_column(held, column)
    for make in experiment.make_regularizers:
        regularizer = make()
        if is_on_policy(task) and overrides(regularizer, "criterion"):
            raise RecipeError(
                f"regularizer {regularizer.name!r} changes the criterion of a loss, and task {task.name!r} learns from "
                "drawn answers by a loss without one. Take it out."
            )
        wants = regularizer.traits.needs_validation
        if wants and splits.validation is None:
            raise RecipeError(
                f"regularizer {regularizer.name!r}, as the recipe sets it, chooses by the validation loss, and "
                "there is no validation split. Set data.validation, or change its options."
            )


def ready_task(experiment: Experiment, task: Task) -> ReadyTask:
    """Return a task with the skeleton and the processor that rows are encoded for."""
    skeleton = prepare_skeleton(experiment, task)
    if skeleton is not None and skeleton.loaded.processor is not None:
        return ReadyTask(experiment, task, skeleton, skeleton.loaded.processor)
    set_seed(experiment.recipe.training_seed)  # a callable may build its model here already
    processor = experiment.loader.load_processor(experiment.recipe.model.source)
    return ReadyTask(experiment, task, skeleton, experiment.with_day(processor))


def prepare_skeleton(experiment: Experiment, task: Task) -> Skeleton | None:
    """Let the strategy prepare a model without weights, so that errors in patterns show early.

    Raises:
        NoMatch: a pattern matches no module, or nothing trains.
        RecipeError: the model, as the strategy prepares it, cannot do what the recipe asks.
    """
    loader = experiment.loader
    if not overrides(loader, "load_skeleton"):
        return None
    experiment.listener.phase("check strategy")
    loaded = loader.load_skeleton(experiment.request(task))
    experiment.with_day(loaded.processor)
    original = dict(loaded.module.named_parameters())
    dropping = {name: module for name, module in loaded.module.named_modules() if drops(module)}
    strategy = experiment.make_strategy()
    apply_strategy(strategy, loaded)
    if not trainable(loaded.module):
        raise NoMatch(
            f"{named(strategy)} leaves nothing to train in {type(loaded.module).__name__}: no parameter requires a "
            "gradient. Give it options that take some of its layers, or choose another (`ftengine plugins list`)."
        )
    task.set_model(loaded, strategy)
    if experiment.recipe.train.gradient_checkpointing is True:
        require_gradient_checkpointing(loaded.module)
    if experiment.recipe.train.parallel == "fsdp":
        require_shardable(loaded.module)
    attached = Attached([make() for make in experiment.make_regularizers], loaded, task)
    attached.require_falling()
    still = tuple(name for name, module in dropping.items() if drops(module))
    attached.detach()
    trained = frozenset(name for name, parameter in original.items() if parameter.requires_grad)
    return Skeleton(loaded, strategy, trained, still)


def check_own_regularizers(ready: ReadyTask, steps: int) -> None:
    """Check the strategy's own regularizers for this number of steps (RecipeError), before weights are loaded."""
    if ready.skeleton is not None and (own := own_regularizers(ready.skeleton.strategy, steps)):
        Attached(own, ready.skeleton.loaded, ready.task).detach()


def apply_strategy(strategy: Strategy, loaded: LoadedModel) -> None:
    """Apply a strategy; newly initialised modules train under every strategy.

    Raises:
        SourceError: a module that the loader lists as new does not exist.
        PluginError: the strategy replaced the model object.
        RunError: the trained part that it starts from has changed since it was saved.
    """
    if strategy.starts_from is not None:
        require_saved(Path(strategy.starts_from).expanduser())
    module = loaded.module
    new = tuple(f"{name}." for name in loaded.new_modules)
    base = {id(p): p for name, p in loaded.module.named_parameters() if not name.startswith(new)}
    strategy.prepare(loaded)
    if loaded.module is not module:
        raise PluginError(
            f"{named(strategy)}: prepare() replaced loaded.module, {described(module)}, by "
            f"{described(loaded.module)}: code that holds the old object would not see the trained modules. "
            "Replace modules inside of it instead (loaded.module.set_submodule)."
        )
    loaded.pretrained = frozenset(name for name, p in loaded.module.named_parameters() if id(p) in base)
    for name in loaded.new_modules:
        try:
            loaded.module.get_submodule(name).requires_grad_(True)
        except AttributeError:
            raise SourceError(f"{loaded.source!r} has no module {name!r}, which its loader lists as new.") from None


def inferring(task: Task) -> Task:
    """Return the task, if it can answer rows without labels (InputError: it cannot)."""
    if not overrides(task, "infer"):
        raise InputError(
            f"task {task.name!r} cannot predict rows without labels. Measure labelled rows with `ftengine evaluate`."
        )
    return task


def check_inputs(task: Task, rows: Iterable[Example], where: Callable[[int], str]) -> None:
    """Check that a task can answer rows (InputError: counts those that it cannot); `where` returns a row's place."""
    answering, refused = inferring(task), RefusedRows()
    for i, row in enumerate(rows):
        try:
            answering.check_input(row)
        except DataError as error:
            refused.add(where(i), f"{where(i)}: {error}")
            if refused.enough:
                break
    if refused.count:
        raise refused.error()


def learn_labels(task: Task, splits: Mapping[str, DataRows], *, stratified: bool) -> Labels | None:
    """Let a task learn its labels (DataError: names the row that cannot be read).

    Args:
        stratified: whether ftengine's split is stratified by labels.
    """
    located = {name: _Located(rows) for name, rows in splits.items()}
    try:
        return task.learn_labels(located)
    except DataError as error:
        name = next((name for name, rows in located.items() if rows.place()), None)
        if name is None:
            raise
        advice = ""
        if name != "train":  # there, a label that training lacks is all that `bind` refuses
            other = "put a row with it into training too"
            if splits[name].source == splits["train"].source:  # divided by ftengine
                other = "set data.split.by: stratified, which leaves each label a row in training"
                other = "leave the row out" if stratified else other
            advice = f" Correct it, or {other}."
        raise DataError(f"{located[name].place()}: {error}{advice}") from None


def held_out(splits: Mapping[str, Any]) -> str | None:
    """Return the split that figures are computed on: test, else validation."""
    return next((name for name in ("test", "validation") if name in splits), None)


class _Located:
    """Rows that remember which row is being read, for error messages."""

    def __init__(self, rows: DataRows) -> None:
        self._rows, self._at = rows, -1

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Example]:
        for self._at, row in enumerate(self._rows):  # noqa: B020 (self is not what is iterated)
            yield row
        self._at = -1

    def place(self) -> str:
        return self._rows.where(self._at) if self._at >= 0 else ""

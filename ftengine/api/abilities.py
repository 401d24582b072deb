"""Abilities: what some components can do beyond their kind.

A component has an ability by having its members; the engine asks `isinstance(component, Merges)` and reads no attribute
that a base class or an ability does not name. Those of evaluators and optimizers are beside their base classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from ftengine.api.criterion import Criterion
from ftengine.api.types import Batch, Example, Features, LoadedModel, LoadRequest, Prediction

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ftengine.api.augmenter import RandomSource
    from ftengine.api.regularizer import Regularizer
    from ftengine.api.strategy import Strategy
    from ftengine.api.task import Task

# Any component.


@runtime_checkable
class Starts(Protocol):
    """Where `starter` is true, `ftengine init` proposes it; of optimizers and schedules `auto` stands for it."""

    starter: bool


@runtime_checkable
class ProposesModel(Protocol):
    """A task that proposes to `ftengine init` what `model.source` may be."""

    starter_model: str


@runtime_checkable
class ProposesData(Protocol):
    """A task that proposes to `ftengine init` what `data.train` may be."""

    starter_data: str


@dataclass(frozen=True)
class Recognised:
    """Data in which a task sees its own kind.

    Args:
        certainty: 3 where the data is made for this task and hardly for another, 2 where it suits it well, 1 where it
            can be used; `ftengine init` proposes the task with the highest.
        columns: how columns are to be renamed, as the recipe's `data.columns` says it.
        options: of the task.
        unread: a sentence on columns that seem to matter and are not read; "" where there are none.
    """

    certainty: int
    columns: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    unread: str = ""


@runtime_checkable
class RecognisesData(Protocol):
    """A task that knows by columns and rows whether data is of its kind, for `ftengine init`."""

    @classmethod
    def recognise(cls, columns: Sequence[str], rows: Sequence[Example]) -> Recognised | None:
        """Return how the data is to be read, None where it is of another kind; `rows` are the first few."""


@runtime_checkable
class ProposesLearningRate(Protocol):
    """A strategy whose usual learning rate is not the recipe's default: what `ftengine init` proposes."""

    starter_learning_rate: float


@runtime_checkable
class Cites(Protocol):
    """Names the paper that the component's method is from; shown by `ftengine plugins show`."""

    citation: str


# Model loaders.


@runtime_checkable
class BuildsSkeletons(Protocol):
    """Builds the module on the meta device, without reading weights, so that patterns are checked before they load."""

    def load_skeleton(self, request: LoadRequest) -> LoadedModel:
        """Load as `load` does, with every parameter on the meta device."""


@runtime_checkable
class ChecksSource(Protocol):
    """Finds out without reading weights whether the source can be loaded."""

    def check_source(self, source: str) -> None:
        """Raise SourceError where something is missing, or the files are of a kind that is not read."""


@runtime_checkable
class RunsCode(Protocol):
    """Says when it runs code other than installed plugins: a run made elsewhere may do that only if the user agrees."""

    def runs_code(self, source: str) -> str | None:
        """Return what would run, as in "Python code that comes with the model"; None where nothing would."""


# Tasks.


@runtime_checkable
class ChecksColumns(Protocol):
    """Refuses data whose columns the task cannot use, before any row is read."""

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise DataError that names the columns found and the shapes of row that are allowed."""


@runtime_checkable
class ReadsFiles(Protocol):
    """Rows name files: `paths` are the columns that do; in a data file they are relative to that file."""

    paths: tuple[str, ...]


@runtime_checkable
class SeesModel(Protocol):
    """A task that has to know the model that it works on, or the strategy: one that needs the base's answers, say."""

    def see_model(self, loaded: LoadedModel, strategy: Strategy | None) -> None:
        """See a model before the task works on it; raise RecipeError where the two do not go together.

        Called with the base (`strategy` is None), and with each model that a strategy has prepared; first, where the
        loader builds skeletons, with one whose parameters are on the meta device. The last one that was seen is the one
        that `loss`, `predict` and answers are then asked of.
        """


@runtime_checkable
class Infers(Protocol):
    """Answers raw rows without labels: what `ftengine predict` writes."""

    def check_input(self, row: Example) -> None:
        """Raise DataError where a row cannot be answered."""

    def infer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Return one mapping a row; `options` are the task's own (`max_new_tokens`, …), unknown ones an InputError."""


@runtime_checkable
class Generates(Protocol):
    """Writes free answers beside what was to be answered: for evaluators that read them, and a few for people to read.

    People see "prompt", what was asked, "completion", what the model wrote, and "reference", what was to be written
    (texts, the last None where there is none), if the first two are among `answers`.
    """

    answers: frozenset[str]
    """Keys of what `answer` returns."""

    brief: Mapping[str, Any]
    """Options by which an answer that is only to be read is short, e.g. {"max_new_tokens": 48}."""

    def answer(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Return `answers` keys, one mapping a row; options are those of `infer`."""


@runtime_checkable
class PredictsDistributions(Protocol):
    """What the model says are probabilities, so that labels can be smoothed and two passes compared."""

    distributions: bool
    """Whether they are; may depend on the labels that were learnt."""


@runtime_checkable
class Shows(Protocol):
    """Decodes examples and predictions for a reader."""

    def show(self, features: Features, processor: Any) -> list[tuple[str, bool]]:
        """Decode an encoded example into (text, is trained on) pieces, for `ftengine plan`."""

    def readable(self, prediction: Prediction) -> dict[str, Any]:
        """Return a prediction as a reader should see it (JSON values): names instead of ids, nothing that is long."""


@runtime_checkable
class Probes(Protocol):
    """Makes a batch without data and reads the model's raw outputs, which `merge` compares before and after.

    Without it they are random tokens (`ftengine.model.probe_tokens`) and logits (`ftengine.model.raw_outputs`).
    """

    def probe(self, loaded: LoadedModel) -> Batch:
        """Return a small batch that exercises the model's layers."""

    def outputs(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the model's raw outputs (logits) for a batch."""


# Strategies.


@runtime_checkable
class Merges(Protocol):
    """Folds the trained part into the base weights, leaving the original architecture."""

    def check_merge(self) -> None:
        """Raise NotMergeable, before any model is loaded, where these options have no merged form."""

    def merge(self, loaded: LoadedModel) -> None:
        """Fold; raise NotMergeable where this base has no such form."""


@runtime_checkable
class References(Protocol):
    """A strategy whose prepared model can answer as its base, for preference tuning, distillation and the like.

    A strategy that changes the base's own weights does not have it, unless it keeps a copy.
    """

    def as_base(self, loaded: LoadedModel) -> AbstractContextManager[None]:
        """Let a model that `prepare` has seen compute as before `prepare`, but for modules that train whole (a head).

        Nothing of the model changes that outlasts it; dropout and gradients are the caller's to switch off.
        """


@runtime_checkable
class FreezesByStep(Protocol):
    """Leaves trainable parameters out of some steps, as gradual unfreezing does."""

    def frozen(self, model: nn.Module, step: int, steps: int, steps_per_epoch: int) -> Iterable[nn.Parameter]:
        """Return the trainable parameters that stay frozen in a step; a function of the arguments alone.

        Args:
            step: optimiser steps done before this one.
            steps, steps_per_epoch: those of the whole run, and of a whole epoch.
        """


@runtime_checkable
class Regularizes(Protocol):
    """A strategy whose method has a term in the loss, or acts after each step, as one that moves ranks does.

    It brings a regularizer for that, with the abilities that this needs; it is called as its strategy is.
    """

    def regularizer(self, steps: int) -> Regularizer:
        """Return it for the model that `prepare` has seen; attached before those of the recipe, on a skeleton too.

        Raise RecipeError where the options do not suit a run of so many optimiser steps.
        """


@runtime_checkable
class ReportsEnvironment(Protocol):
    """Says how it computes (kernel path and the reason), for environment.json."""

    def environment(self) -> dict[str, Any]:
        """Return JSON; {what: {device type: {"backend": which, "reason": why}}} is told and in training.json too."""


@runtime_checkable
class Reopens(Protocol):
    """Is prepared again, for a finished run, under other options than it began with (without where it started from)."""

    def reopened(self) -> dict[str, Any]:
        """Return the options, as JSON values."""


# Augmenters.


@runtime_checkable
class ChecksOptions(Protocol):
    """Finds out, before anything is loaded, whether what its options name is there: files, models, packages."""

    def check_options(self) -> None:
        """Raise InputError where something is missing or cannot be used."""


@runtime_checkable
class ReadsProcessor(Protocol):
    """Needs the tokenizer or image processor."""

    def bind_processor(self, processor: Any) -> None:
        """See it before the first example; raise RecipeError where it lacks what is needed."""


@runtime_checkable
class MixesBatches(Protocol):
    """Mixes the examples of a collated training batch, every micro-batch by itself."""

    def mix(self, batch: Batch, task: Task, rng: RandomSource) -> Batch:
        """Return the batch mixed; `rng` is a function of (seed, epoch, rows)."""

    def check_mix(self, task: Task) -> None:
        """Raise RecipeError where batches of this task cannot be mixed; its labels are known."""


# Regularizers.


@runtime_checkable
class ChoosesCriterion(Protocol):
    """Trains on another criterion than the plain one."""

    def criterion(self, plain: Criterion) -> Criterion:
        """Return the criterion to train on; `plain` is what would be used without this regularizer, to be wrapped.

        Called once all regularizers are attached, as `attach` on a skeleton too; raises RecipeError as that does.
        """


@runtime_checkable
class SeesSteps(Protocol):
    """Looks at the model after every optimiser step."""

    def stepped(self, model: nn.Module, step: int) -> None:
        """See the model, with the gradients of the step as `BeforeStep` has them; `step` counts from 1.

        Under float16 a step whose gradients are not finite was left out, and the model is as before.
        """


@runtime_checkable
class AveragesWeights(Protocol):
    """Keeps other weights than those that train."""

    def evaluating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Give the model the weights that it would keep, while it is validated and its best weights are saved."""


@runtime_checkable
class HoldsState(Protocol):
    """Has tensors that a checkpoint must hold."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return them by name; `restore` takes them back."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set what `tensors` returned when the checkpoint was written."""


@runtime_checkable
class ChangesAtTheEnd(Protocol):
    """Changes the weights that are kept, after the last step."""

    needs_validation: bool
    """Whether it chooses by the validation loss; may depend on the options."""

    def finish(self, model: nn.Module, measure: Callable[[], Mapping[str, float]]) -> dict[str, Any]:
        """Change the weights; return what a reader should know (JSON values).

        Args:
            model: with the weights that training would keep.
            measure: measures the model as it is now, lower is better: {"validation_loss": …}, and "general_loss"
                where the recipe names general data to watch for forgetting; empty without validation.
        """


@runtime_checkable
class ReplacesWeightDecay(Protocol):
    """Pulls weights somewhere itself, so that `train.weight_decay` has to be 0 beside it."""

    replaces_weight_decay: bool


# Callbacks.


@runtime_checkable
class HasViewer(Protocol):
    """Leaves files that another program shows; `ftengine train` names its command at the end."""

    def view_command(self, run: Path) -> str:
        """Return the command, for a run's folder."""

"""Base classes of special kinds of tasks, with the methods that only they have."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ftengine.api.component import overrides
from ftengine.api.task import Task
from ftengine.api.types import Batch, Example, LoadedModel, Prediction, Prompt

if TYPE_CHECKING:
    from typing import TypeGuard

    import torch
    from torch import nn

    from ftengine.model import Criterion


class GenerativeTask(Task):
    """A task that writes text."""

    generates: ClassVar[frozenset[str]]
    """Keys of what `generate` returns."""
    short_generation: Mapping[str, Any] = {}
    """Options by which a generation that is only to be read is short, e.g. {"max_new_tokens": 48}."""

    prompts_have_inputs: ClassVar[bool] = False
    """Whether prompts have `inputs`, which `verify` sends as parts of messages, and exported programs do not get."""

    @abstractmethod
    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Generate text, one mapping with the keys of `generates` per row; options as of `infer`.

        To draw several answers to a row, the engine repeats the row, and option `sample` has the number of each answer,
        from 0. A task that overrides `parts` gets the argument `parts`: for each row the number of the example to
        answer, None: the whole row.

        Evaluators read the texts, and the report shows some: "prompt", "completion" (what the model wrote) and
        "reference" (the row's answer, None where it has none), if the first two are among `generates`.
        """

    def check_generation(self, row: Example, processor: Any, options: Mapping[str, Any]) -> None:
        """Raise DataError where the text that `generate` returns for a row, with these options, cannot be measured.

        Called before a model loads, for each row whose answer evaluators read; `part` as in `encode`.
        """

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        """Return the prompt of a row, which exports and `verify` send to other programs.

        Only for decoders, which continue their prompt.
        """
        raise NotImplementedError


class InBatchTask(Task):
    """A task whose loss compares examples with each other.

    The loss is computed over the whole effective batch, across micro-batches and processes.
    """

    in_batch: bool = True
    """Whether its loss does so; False where options choose one that does not."""

    @abstractmethod
    def represent(self, model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Return all tensors of a batch that the loss needs.

        Tensors by name, one row per example: the model's outputs, in at least float32, and constants (ids, scores). The
        engine concatenates those of several micro-batches and processes.
        """

    @abstractmethod
    def joint_loss(self, represented: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight) over all examples, in any order, given the tensors of `represent`."""

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight) of a single batch."""
        return self.joint_loss(self.represent(model, batch))


class ReferenceTask(Task):
    """A task whose loss needs predictions of the reference: the model as training begins."""

    reference: frozenset[str] = frozenset()
    """Keys of `predict` whose values `loss` takes of the reference too; may depend on options. A run's batches then
    have them by key in a dict, batch["reference"], (n,) in float32: the engine asks the base, or the model with the
    trained part that the strategy starts from, once before the first step. Where a batch has none (the reference is
    asked, a component is checked), the model is its own reference."""

    def for_reference(self) -> ReferenceTask:
        """Return a task with the same options, except those that do not affect `reference`.

        The engine computes the reference's values with it, so runs that differ only in these options share cached
        values.
        """
        return self


def generated_keys(task: Task) -> frozenset[str]:
    """Return the keys of what a task generates; none where it writes no text."""
    return task.generates if isinstance(task, GenerativeTask) else frozenset()


def writes_completions(task: Task) -> TypeGuard[GenerativeTask]:
    """Return whether a task generates text under the key "completion"."""
    return "completion" in generated_keys(task)


def gives_prompts(task: Task) -> TypeGuard[GenerativeTask]:
    """Return whether a task overrides `GenerativeTask.prompt`, and its prompts are all that the model reads."""
    return can_be_asked(task) and not task.prompts_have_inputs


def can_be_asked(task: Task) -> TypeGuard[GenerativeTask]:
    """Return whether a task overrides `GenerativeTask.prompt`."""
    return isinstance(task, GenerativeTask) and overrides(task, "prompt")


def compares_examples(task: Task) -> TypeGuard[InBatchTask]:
    """Return whether a task is an `InBatchTask`."""
    return isinstance(task, InBatchTask) and task.in_batch


def reference_keys(task: Task) -> frozenset[str]:
    """Return the keys of the reference's values that a task's loss needs; none where it needs nothing."""
    return task.reference if isinstance(task, ReferenceTask) else frozenset()

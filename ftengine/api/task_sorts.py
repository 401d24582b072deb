"""Sorts of tasks, each with what its tasks alone write, and what the engine asks before it uses that."""

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

    @abstractmethod
    def generate(
        self, loaded: LoadedModel, rows: Sequence[Example], options: Mapping[str, Any] | None = None
    ) -> list[Prediction]:
        """Write text beside what was to be predicted, one mapping with `generates` keys a row; options as of `infer`.

        Where a row is answered several times, option `sample` is the number of the answer, from 0. A task that writes
        `parts` is given `parts=None` too, for each row the number of its example that is meant, None where it is all.

        For evaluators that read it, and a few for people to read: these see "prompt", what was asked, "completion",
        what the model wrote, and "reference", what was to be written (texts, the last None where there is none), if the
        first two are among `generates`.
        """

    def check_generation(self, row: Example, processor: Any, options: Mapping[str, Any]) -> None:
        """Raise DataError where what `generate` returns of a row, with these options, cannot be measured.

        Called before a model loads, for each row that evaluators read an answer to; with `part` as `encode` is.
        """

    def prompt(self, row: Example, loaded: LoadedModel) -> Prompt:
        """Return what the model is asked of a row, for whoever asks another program the same.

        Of a task whose model continues its prompt.
        """
        raise NotImplementedError


class InBatchTask(Task):
    """A task whose loss compares examples with each other.

    Those that are compared are the whole effective batch, on one process or many.
    """

    in_batch: bool = True
    """Whether its loss does so; False where options choose one that does not."""

    @abstractmethod
    def represent(self, model: nn.Module, batch: Batch) -> Mapping[str, torch.Tensor]:
        """Return all that the loss needs of a batch.

        Tensors by name, as many rows as there are examples: what the model made of them, in at least float32, and what
        is known of them (ids, scores). Of several micro-batches and processes they are put below one another.
        """

    @abstractmethod
    def joint_loss(self, represented: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight) of examples that meet, in whatever order, of what `represent` returned."""

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight) of a single batch."""
        return self.joint_loss(self.represent(model, batch))


class ReferenceTask(Task):
    """A task whose loss takes what the reference predicts: the model as training begins."""

    reference: frozenset[str] = frozenset()
    """Keys of `predict` whose values `loss` takes of the reference too; may depend on options. A run's batches then
    have them by key in a dict, batch["reference"], (n,) in float32: the engine asks the base, or the model with the
    trained part that the strategy starts from, once before the first step. Where a batch has none (the reference is
    asked, a component is checked), the model is its own."""

    def for_reference(self) -> ReferenceTask:
        """Return a task of the same options but for those on which values of `reference` do not depend.

        The reference is asked by it, so that another run that differs in these alone finds what it predicted.
        """
        return self


def generated_keys(task: Task) -> frozenset[str]:
    """Return the keys of what a task generates; none where it writes no text."""
    return task.generates if isinstance(task, GenerativeTask) else frozenset()


def writes_completions(task: Task) -> TypeGuard[GenerativeTask]:
    """Say whether a task writes text under "completion"."""
    return "completion" in generated_keys(task)


def gives_prompts(task: Task) -> TypeGuard[GenerativeTask]:
    """Say whether another program can be asked what a task asks its model."""
    return isinstance(task, GenerativeTask) and overrides(task, "prompt")


def compares_examples(task: Task) -> TypeGuard[InBatchTask]:
    """Say whether a task's loss compares examples with each other."""
    return isinstance(task, InBatchTask) and task.in_batch


def reference_keys(task: Task) -> frozenset[str]:
    """Return the keys of what a task's loss takes of the reference; none where it takes nothing."""
    return task.reference if isinstance(task, ReferenceTask) else frozenset()

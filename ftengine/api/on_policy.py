"""Tasks whose model learns from its own answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftengine.api.component import overrides
from ftengine.api.task_sorts import GenerativeTask
from ftengine.api.types import Batch, Example, Features, LoadedModel

if TYPE_CHECKING:
    from typing import TypeGuard

    import torch
    from torch import nn

    from ftengine.api.task import Task
    from ftengine.model import Criterion


@dataclass(frozen=True)
class DrawRequest:
    """What a step asks of an on-policy task, in one process.

    Args:
        loaded: the model as it is, in evaluation mode, without gradients and under the run's autocast.
        rows: this process's share of the step's rows.
        seed, step: of the run, and the number of the step from 0. Draws depend on these, the prompt and the number of
            the answer, and on no generator's state.
        size: most sequences of a batch of the model's.
        reference: a context in which the model computes as it did when training began.
        attempt: how often these rows were answered before in this step, as `draw_again` asked.
    """

    loaded: LoadedModel
    rows: Sequence[Example]
    seed: int
    step: int
    size: int
    reference: Callable[[], AbstractContextManager[None]]
    attempt: int = 0


@dataclass(frozen=True)
class Draws:
    """What a step learns from.

    Args:
        examples: the answers of all processes that teach something, as features for `collate`, in an order that is the
            same on each; none in an idle step, which makes no update.
        idle_weight: what the other answers add to the loss's weight; they are not computed.
        figures: numbers by name, for the step's line of metrics.jsonl.
        records: JSON values, a mapping an answer, for draws.jsonl.
        idle: why nothing can be learnt from any of the answers; "" where something can.
        unscored: why not one of the answers could be scored; several such steps in a row end the run.
    """

    examples: Sequence[Features]
    idle_weight: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    idle: str = ""
    unscored: str = ""


class OnPolicyTask(GenerativeTask):
    """A task that learns from answers which its model draws, and which are scored, at every step.

    A row is a prompt. `encode` gives it with an answer as long as may be drawn, by which time and memory are measured.
    """

    answers_per_row: int = 1
    """How many answers are drawn for a row in a step; may depend on options."""
    updates_per_draw: int = 1
    """How many updates are made with the answers of a step; may depend on options."""
    uses_reference: bool = False
    """Whether `draw` asks the model as training began; may depend on options."""
    evaluator_options: Mapping[str, Mapping[str, Any]] = {}
    """Options of its `evaluators` by name, of those that the recipe does not name; may depend on options."""
    token_figures: tuple[str, ...] = ()
    """Names of what `learn` sums over the trained tokens; their means are in metrics.jsonl. May depend on options."""

    @abstractmethod
    def draw(self, request: DrawRequest) -> Sequence[Any]:
        """Answer the rows of a request; return what was drawn for each row, in order, as values that can be pickled."""

    @abstractmethod
    def score(self, rows: Sequence[Example], drawn: Sequence[Any]) -> Sequence[Any]:
        """Score what `draw` returned for some rows; return it with its scores, in the same order.

        It has a share of a step's rows, so whether nothing could be scored is for `learn_from` to say.
        """

    @abstractmethod
    def learn_from(self, scored: Sequence[Any]) -> Draws:
        """Return what a step learns from, of what `score` returned for all of its rows, of all processes.

        Every process calls it with the same values.
        """

    @abstractmethod
    def learn(
        self, model: nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float, Sequence[torch.Tensor], torch.Tensor | float]:
        """Return (sum of losses, its weight, sums by `token_figures`, number of trained tokens) of drawn answers."""

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight)."""
        return self.learn(model, batch)[:2]

    # What some write.

    def draw_again(self, scored: Sequence[Any], attempt: int) -> Sequence[int]:
        """Return which rows are answered once more, by their numbers in `scored`, after so many further attempts.

        What `draw` and `score` return for them then takes the place of this. By default none.
        """
        return ()

    def measure(self, request: DrawRequest) -> Sequence[float]:
        """Return how good an answer to each row is, higher is better, nan where that is unknown.

        By its mean over held-out rows a run is validated; a task without it is not. The likeliest answers suit, which
        depend on the model alone.
        """
        raise NotImplementedError

    def start_scoring(self) -> None:
        """Begin what scoring needs, such as a process; raise RecipeError where it cannot be. Called before training."""

    def code_files(self) -> Sequence[Path]:
        """Return the files of code, besides installed plugins, that scores depend on; a run records their hashes."""
        return ()

    def advice(self, rows: Sequence[Example], loaded: LoadedModel) -> Iterable[str]:
        """Yield warnings for `ftengine plan`, of some rows and a model that may have no weights."""
        return ()


def is_validated(task: Task) -> bool:
    """Say whether a task's model is measured on the validation split while it trains."""
    return not is_on_policy(task) or overrides(task, "measure")


def is_on_policy(task: Task) -> TypeGuard[OnPolicyTask]:
    """Say whether a task's model learns from its own answers."""
    return isinstance(task, OnPolicyTask)

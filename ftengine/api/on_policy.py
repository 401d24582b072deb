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
    """A request to draw answers for one training step, in one process.

    Args:
        loaded: the model with its present weights, in evaluation mode, without gradients and under the run's autocast.
        rows: this process's share of the step's rows, which are prompts.
        seed, step: the run's seed, and the number of the step from 0. Draws must depend only on these, the prompt and
            the number of the answer, not on the state of a random generator.
        size: maximal number of sequences per forward pass.
        reference: returns a context in which the model has the weights with which training began.
        attempt: number of earlier draws for these rows in this step (`draw_again`).
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
    """The drawn answers that a step trains on, with their figures.

    Args:
        examples: features for `collate` of the answers to train on, from all processes and in the same order in each
            process; empty in an idle step, which makes no update.
        idle_weight: weight in the loss of the answers that are not trained on, since their gradient is zero.
        figures: numbers by name, for the step's line of metrics.jsonl.
        records: one mapping of JSON values per answer, for draws.jsonl.
        idle: the reason why no answer can be trained on; "" if some can.
        unscored: the reason why no answer has a score; "" if some have one. Several such steps in a row end the run.
    """

    examples: Sequence[Features]
    idle_weight: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    idle: str = ""
    unscored: str = ""


class OnPolicyTask(GenerativeTask):
    """A task that trains on scored answers, which its own model draws at every step.

    A row is a prompt. `encode` returns the prompt with a placeholder answer of the maximal length, so that `plan` can
    measure time and memory.
    """

    answers_per_row: int = 1
    """How many answers are drawn for a row in a step; may depend on options."""
    answer_tokens: int = 0
    """Most tokens of an answer, by which the memory of drawing is reckoned; may depend on options."""
    updates_per_draw: int = 1
    """How many updates are made with the answers of a step; may depend on options."""
    uses_reference: bool = False
    """Whether `draw` asks the model as training began; may depend on options."""
    evaluator_options: Mapping[str, Mapping[str, Any]] = {}
    """Options of its `evaluators` by name, of those that the recipe does not name; may depend on options."""
    progress_figure: str = "loss"
    """The figure of a step that progress shows, of those in metrics.jsonl; may depend on options."""
    token_figures: tuple[str, ...] = ()
    """Names of what `learn` sums over the trained tokens; their means are in metrics.jsonl. May depend on options."""

    @abstractmethod
    def draw(self, request: DrawRequest) -> Sequence[Any]:
        """Draw answers to the rows of a request; return a picklable value for each row, in order."""

    @abstractmethod
    def score(self, rows: Sequence[Example], drawn: Sequence[Any]) -> Sequence[Any]:
        """Score the answers that `draw` returned; return them with their scores, in the same order.

        It sees only this process's share of a step's rows; `learn_from` reports that no answer of the step has a score.
        """

    @abstractmethod
    def learn_from(self, scored: Sequence[Any]) -> Draws:
        """Return what a step trains on, given what `score` returned for its rows in all processes.

        Every process calls it with the same values.
        """

    @abstractmethod
    def learn(
        self, model: nn.Module, batch: Batch
    ) -> tuple[torch.Tensor, torch.Tensor | float, Sequence[torch.Tensor], torch.Tensor | float]:
        """Return (sum of losses, its weight, sums of `token_figures`, number of trained tokens) for drawn answers."""

    def loss(self, model: nn.Module, batch: Batch, criterion: Criterion) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Return (sum of losses, its weight)."""
        return self.learn(model, batch)[:2]

    # What some write.

    def draw_again(self, scored: Sequence[Any], attempt: int) -> Sequence[int]:
        """Return the indices in `scored` of rows to draw again after `attempt` further draws (default: none).

        The new results of `draw` and `score` replace the earlier ones.
        """
        return ()

    def measure(self, request: DrawRequest) -> Sequence[float]:
        """Return a score of an answer to each row, higher is better; nan if unknown.

        Validation uses the mean over held-out rows; a run of a task without this method is not validated. Score greedy
        answers, which depend only on the model.
        """
        raise NotImplementedError

    def start_scoring(self) -> None:
        """Start what scoring needs, such as a process; called before training. Raise RecipeError if that fails."""

    def code_files(self) -> Sequence[Path]:
        """Return the files of code, besides installed plugins, that scores depend on; a run records their hashes."""
        return ()

    def runs_code(self) -> str | None:
        """Return what code, besides installed plugins, draws or scores answers; None: none (`CodeEvaluator.runs_code`).

        For a run made elsewhere the user has to allow it (--trust-code).
        """
        return None

    def advice(self, rows: Sequence[Example], loaded: LoadedModel) -> Iterable[str]:
        """Yield warnings for `ftengine plan`, given some rows and a model that may have no weights."""
        return ()


def is_validated(task: Task) -> bool:
    """Return whether a run of a task is validated while it trains."""
    return not is_on_policy(task) or overrides(task, "measure")


def is_on_policy(task: Task) -> TypeGuard[OnPolicyTask]:
    """Return whether a task trains on answers of its own model."""
    return isinstance(task, OnPolicyTask)

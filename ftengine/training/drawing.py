"""Drawing answers in each step of an on-policy task."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from ftengine.api import Batch, DrawRequest, Draws, Features, OnPolicyTask, Task
from ftengine.data.batching import by_length
from ftengine.data.encoding import EncodedSplit
from ftengine.errors import RecipeError, TrainingError
from ftengine.model import copy_into, state_tensors
from ftengine.model.modes import drops, evaluating
from ftengine.parallel.sharding import is_sharded
from ftengine.plugins.attribution import contract_error
from ftengine.run.directory import DRAWS
from ftengine.text import counted
from ftengine.training.checkpoint import Progress
from ftengine.training.losses import stacked, zeros
from ftengine.training.setup import Setup

RECORDED_STEPS, RECORDED_ANSWERS, RECORDED_TEXT = 1000, 64, 2000
"""Most steps of a run, and answers of a step, in draws.jsonl, and most characters of a text there."""
IDLE_STEPS = 5
"""Steps in a row with nothing to learn, after which that is reported; without any score, after which a run ends."""


class Examples:
    """Drawn answers with the interface of `EncodedSplit`.

    `members` are the numbers of all examples, longest first; empty in an idle step. `weight_factor` is the loss weight
    of all answers of the step, including those that are not trained on, divided by the weight of the examples.
    """

    def __init__(self, task: Task, processor: Any, features: Sequence[Features], idle_weight: float) -> None:
        self._task, self._processor, self._features = task, processor, features
        self.lengths = np.array([example.length for example in features], dtype=np.int64)
        self.weights = np.array([example.weight for example in features], dtype=np.float64)
        self.members = by_length(self.lengths)
        self.weight_factor = 1 + idle_weight / (float(self.weights.sum()) or 1.0)

    def batch(self, members: np.ndarray, epoch: int | None = None) -> Batch:
        """Collate some examples."""
        return self._task.collate([self._features[i] for i in members], self._processor)


class OnPolicyLoss:
    """Calls `OnPolicyTask.learn` as a loss, and accumulates its sums over trained tokens."""

    def __init__(self, task: Task) -> None:
        self._task = task if isinstance(task, OnPolicyTask) else None
        self.names = self._task.token_figures if self._task else ()
        self.sums: list[Tensor | float] = []

    @property
    def count(self) -> int:
        """The number of `sums`: one per figure, and the trained tokens; 0 for other tasks."""
        return len(self.names) + 1 if self._task else 0

    def loss(self, module: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Return (sum of losses, its weight) of a batch (PluginError: the figures are not those declared)."""
        assert self._task is not None
        loss, weight, sums, tokens = self._task.learn(module, batch)
        if len(sums) != len(self.names):
            raise contract_error(self._task, "learn", sums, f"a sum for each of {', '.join(self.names)}")
        self.sums = [*sums, tokens]
        return loss, weight

    def means(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the mean of each figure over the trained tokens of a step, and their number."""
        if not sums:
            return {}
        *values, tokens = sums
        means = {name: value / tokens if tokens else math.nan for name, value in zip(self.names, values, strict=True)}
        return {**means, "trained_tokens": int(tokens)}


@dataclass(frozen=True)
class StepExamples:
    """The answers of a step, its figures, and the lines for draws.jsonl."""

    examples: Examples
    figures: dict[str, float]
    records: Sequence[dict[str, Any]]


class Drawing:
    """Draws and scores answers to the rows of each step.

    Args:
        steps: number of steps of the whole run.

    Raises:
        RecipeError: the model is sharded, which drawing does not support.
    """

    def __init__(self, setup: Setup, task: OnPolicyTask, steps: int) -> None:
        if is_sharded(setup.loaded.module):
            raise RecipeError(
                f"task {task.name!r} draws answers from the model, and with train.parallel fsdp no process has all of "
                "it. Set train.parallel to ddp."
            )
        self._setup, self._task = setup, task
        self._most_unscored = min(IDLE_STEPS, steps)
        self._every = math.ceil(steps / RECORDED_STEPS)
        tensors = state_tensors(setup.loaded.module) if task.uses_reference else {}
        self._initial = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def draw(self, members: np.ndarray, progress: Progress) -> StepExamples:
        """Return the scored answers to the rows of the next step; each process draws and scores a share.

        Raises:
            TrainingError: no answer of several steps in a row could be scored.
        """
        accelerator, train = self._setup.accelerator, self._setup.train
        rank, ranks, step, started = (
            accelerator.process_index,
            accelerator.num_processes,
            progress.step,
            time.monotonic(),
        )
        scored, seconds_draw = self._scored([train.example(member) for member in members[rank::ranks]], step)
        every = list[Any]([None] * len(members))
        for of, part in gather_object([(rank, scored)]):
            every[of::ranks] = part
        draws = self._task.learn_from(every)
        if not isinstance(draws, Draws) or not (draws.examples or draws.idle):
            raise contract_error(self._task, "learn_from", draws, "Draws with at least one example, or why it is idle")
        self._report_idle(draws, progress)
        seconds = {"seconds_draw": seconds_draw, "seconds_score": time.monotonic() - started - seconds_draw}
        rates = [rate for layer in self._setup.loaded.module.modules() for rate in drops(layer).values()]
        dropout = {"dropout": max(rates)} if rates else {}
        figures = {**draws.figures, **dropout, **{name: round(value, 4) for name, value in seconds.items()}}
        records = [self._record(record, step + 1) for record in draws.records[:RECORDED_ANSWERS]]
        examples = Examples(self._task, train.processor, draws.examples, draws.idle_weight)
        return StepExamples(examples, figures, records if step % self._every == 0 else [])

    def record(self, drawn: StepExamples) -> None:
        """Append the answers of a step to draws.jsonl, in the main process."""
        if self._setup.accelerator.is_main_process and drawn.records:
            self._setup.run.append_steps(DRAWS, drawn.records)

    def mean(self, split: EncodedSplit, step: int) -> float:
        """Return the mean of what the task measures of answers to a split's rows; nan if it measures none of them."""
        accelerator = self._setup.accelerator
        rank, ranks, totals = accelerator.process_index, accelerator.num_processes, zeros(2, accelerator.device)
        if rows := [split.example(member) for member in range(rank, len(split), ranks)]:
            with torch.no_grad(), evaluating(self._setup.loaded.module), accelerator.autocast():
                values = self._each("measure", self._task.measure(self._request(rows, step, 0)), len(rows))
            known = [value for value in values if not math.isnan(value)]
            totals += stacked(accelerator.device, sum(known), len(known))
        total, count = accelerator.reduce(totals, "sum").tolist()
        return total / count if count else math.nan

    def _scored(self, rows: Sequence[Any], step: int) -> tuple[list[Any], float]:
        """Return what is drawn for rows, with its scores, and the seconds of drawing."""
        scored, waiting, attempt, seconds = list[Any]([None] * len(rows)), list(range(len(rows))), 0, 0.0
        while waiting:
            some, started = [rows[i] for i in waiting], time.monotonic()
            with torch.no_grad(), evaluating(self._setup.loaded.module), self._setup.accelerator.autocast():
                drawn = self._each("draw", self._task.draw(self._request(some, step, attempt)), len(some))
            seconds += time.monotonic() - started
            part = self._each("score", self._task.score(some, drawn), len(some))
            for i, own in zip(waiting, part, strict=True):
                scored[i] = own
            waiting, attempt = [waiting[i] for i in self._task.draw_again(part, attempt)], attempt + 1
        return scored, seconds

    def _request(self, rows: Sequence[Any], step: int, attempt: int) -> DrawRequest:
        setup, task = self._setup, self._task
        size = max(setup.section.batch_size, task.answers_per_row)
        return DrawRequest(setup.loaded, rows, setup.seed, step, size, self._reference, attempt)

    @contextmanager
    def _reference(self) -> Iterator[None]:
        """Meanwhile set the trained tensors to their values before training."""
        tensors = state_tensors(self._setup.loaded.module)
        now = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        copy_into(tensors, self._initial, "the model before training")
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            copy_into(tensors, now, "the model as it is")
            torch.clear_autocast_cache()

    def _each(self, method: str, values: Any, count: int) -> Sequence[Any]:
        if not isinstance(values, Sequence) or len(values) != count:
            raise contract_error(self._task, method, values, f"a sequence of one value a row, {count} here")
        return values

    def _report_idle(self, draws: Draws, progress: Progress) -> None:
        """Report that steps in a row taught nothing (TrainingError: none of their answers could be scored)."""
        progress.idle_steps = progress.idle_steps + 1 if draws.idle else 0
        progress.unscored_steps = progress.unscored_steps + 1 if draws.unscored else 0
        upto = f"in a row (up to step {progress.step + 1:,})"
        if progress.unscored_steps == self._most_unscored:
            which = f"{counted(progress.unscored_steps, 'step')} {upto}"
            raise TrainingError(f"nothing was learnt in {which}: {draws.unscored}")
        if progress.idle_steps == IDLE_STEPS:
            self._setup.listener.message(f"{counted(IDLE_STEPS, 'step')} {upto} taught nothing: {draws.idle}")

    @staticmethod
    def _record(record: Any, step: int) -> dict[str, Any]:
        cut = {k: v[:RECORDED_TEXT] if isinstance(v, str) else v for k, v in record.items()}
        return {"step": step, **cut}

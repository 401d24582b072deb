"""Evaluate a model over a split as a stream: one batch at a time, nothing of it is kept but sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ftengine.api import EvaluationContext, Evaluator, Listener, Task
from ftengine.data.batching import ordered_batches
from ftengine.data.encoding import EncodedSplit
from ftengine.evaluation.bootstrap import Accumulator
from ftengine.training.losses import to_device


@torch.no_grad()
def evaluate_split(
    accelerator: Accelerator,
    module: torch.nn.Module,
    task: Task,
    split: EncodedSplit,
    evaluators: Sequence[Evaluator],
    *,
    batch_size: int,
    resamples: int,
    seed: int,
    listener: Listener,
    phase: str,
) -> Accumulator:
    """Predict every example of a split and add up its evaluators' statistics, over all processes."""
    context = EvaluationContext(task.name, task.labels)
    result = Accumulator(
        evaluators,
        context,
        resamples=resamples,
        seed=seed,
        distinct=None if split.groups is None else len(np.unique(split.groups)),
    )
    module.eval()
    listener.phase(phase, len(split))
    ranks = accelerator.num_processes
    for members in ordered_batches(split.lengths, batch_size, accelerator.process_index, ranks):
        batch = to_device(split.batch(members), accelerator.device)
        with accelerator.autocast():
            predictions = task.predict(module, batch)
        for member, prediction in zip(members, predictions, strict=True):
            # Duplicates share their weights: the interval counts what is distinct, not how often it stands there.
            result.update(int(member if split.groups is None else split.groups[member]), prediction)
        listener.advance(len(members) * ranks)
    first, *others = gather_object([result])
    for other in others:
        first.merge(other)
    return first

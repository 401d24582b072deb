"""Running the harness on a model."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel

from ftengine.api import LoadedModel, Task
from ftengine.errors import InputError
from ftengine_lm_eval.options import Options
from ftengine_lm_eval.tasks import contained, load_tasks

HEADS = ("causal-lm", "seq2seq-lm")
"""Heads that read and write text as the harness asks for it."""


def answers(loaded: LoadedModel, options: Options) -> dict[str, Any]:
    """Return the result of `lm_eval.evaluate` for a model, computed in the present autocast dtype."""
    device = next(loaded.module.parameters()).device.type
    compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    with contained(), _own_generators():
        return _answers(loaded, options, compute)


def require_head(task: Task) -> None:
    """Refuse a task whose model writes no text (InputError)."""
    if task.head not in HEADS:
        raise InputError(
            f"lm-evaluation-harness asks language models, and task {task.name!r} trains a model with head "
            f"{task.head!r}. Its tasks need {' or '.join(HEADS)}."
        )


def _answers(loaded: LoadedModel, options: Options, compute: torch.dtype | None) -> dict[str, Any]:
    """Ask a model; tasks are loaded anew, as they keep requests and answers."""
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    if not isinstance(loaded.module, PreTrainedModel):
        raise InputError(
            f"lm-evaluation-harness asks models of transformers, and {loaded.source!r} is "
            f"{type(loaded.module).__name__}."
        )
    tasks = load_tasks(options.tasks)
    for task in tasks["tasks"].values():
        own = task.get_config("num_fewshot")
        if own != 0:  # 0 is meant: such a task has its examples, if any, in its texts
            task.set_config("num_fewshot", (own or 0) if options.num_fewshot is None else options.num_fewshot)
        task.set_fewshot_seed(seed=options.seed)
    set_seed(options.seed)
    loaded.module.eval()
    # Tying again what a strategy may have parted would change the model; it is tied where it was loaded.
    loaded.module.tie_weights = lambda *args, **kwargs: None  # type: ignore[assignment,method-assign]
    try:
        model = HFLM(
            pretrained=loaded.module,
            tokenizer=loaded.processor,
            batch_size=options.batch_size,
            max_length=options.max_length,
            mixed_precision_dtype=compute,
        )
        chat = options.apply_chat_template
        results = evaluate(model, tasks, limit=options.limit, apply_chat_template=chat, fewshot_as_multiturn=chat)
    finally:
        del loaded.module.tie_weights
    return dict(results or {})


@contextmanager
def _own_generators() -> Iterator[None]:
    """Leave the process's random generators as they were: a run goes on after the harness."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
